"""Counting, encoding and preparing beside an older version of this program, gigatoken and run_mlm's
path, on one core.

    python benchmarks/tokenizing.py CHECKOUT FILE ...     # CHECKOUT: of the older version

The files are text with a blank line between documents and a paragraph a line, plain or .xz. Each
version runs in a process of its own, and a small text goes through each stage before, so that the
start (imports, compiled code) is not in it. Seconds are the processor's. gigatoken is measured
where it is installed. Ids, counts, vocabularies and tokens of both versions are compared by their
hashes. The table is printed and written to benchmarks/results/tokenizing-<date>.md."""

import contextlib
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from beside import Watched, case, main, plain
from preparation import run_mlm

HERE = Path(__file__).resolve().parents[1]
VOCAB_SIZE = 50_265
BATCH = 64
PATTERNS = ("gpt2", "unicode")
UNITS = ("line", "sentence")
PAGE = """
base: roberta_base.yaml
name: benchmark
corpus: {{sources: {sources}, documents: blank_line, validation: 0.0}}
tokenizer: {{vocab_size: {vocab_size}, min_frequency: 2, accept_fewer: true, pattern: {pattern}}}
data: {{unit: {unit}, block_length: {length}}}
run: {{workers: 1}}
paths: {{root: {root}, tokenizer: {tokenizer}}}
"""


# ---------------------------------------------------------------------------- cases, a process each


def ours(files: list[str], few: str, scratch: str) -> dict[str, Any]:
    """Seconds for everything, by name, and a hash of all that was made."""
    from robustly.cli import main as command

    seconds: dict[str, float] = {}
    made = hashlib.sha256()

    def run(name: str, stage: str, root: Path, unit: str, pattern: str, tokenizer: Path) -> None:
        for sources, entries, folder in (([few], 300, root / "few"), (files, VOCAB_SIZE, root)):
            folder.mkdir(parents=True, exist_ok=True)
            page = folder / "page.yaml"
            known = folder / "tokenizer" if stage == "tokenizer" else tokenizer
            page.write_text(
                PAGE.format(
                    sources=sources, vocab_size=entries, pattern=pattern, unit=unit, root=folder,
                    tokenizer=known, length=16 if sources == [few] else 512,
                )
            )  # fmt: skip
            start = time.process_time()
            with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
                command([stage, str(page)])
            seconds[name] = time.process_time() - start

    for pattern in PATTERNS:
        root = Path(scratch, pattern)
        run(f"`robustly tokenizer`, `{pattern}`", "tokenizer", root, "line", pattern, root)
        for name in ("counts.tsv.zst", "tokenizer.json"):
            made.update(Path(root, "tokenizer", name).read_bytes())

        for name, took, ids in encoded(str(root / "tokenizer"), files, ""):
            seconds[f"encoding, `{pattern}`, {name}"] = took
            made.update(ids)

    for unit in UNITS:
        known = Path(scratch, "gpt2", "tokenizer")
        root = Path(scratch, unit)
        run(f"`robustly prepare`, `unit: {unit}`", "prepare", root, unit, "gpt2", known)
        for path in sorted(Path(root, "data").glob("train-*.tokens.npy")):
            made.update(path.read_bytes()[128:])  # without the header, which has the length

    return {"seconds": seconds, "made": made.hexdigest()}


def encoded(folder: str, files: list[str], engine: str) -> Iterator[tuple[str, float, bytes]]:
    """Seconds for texts that are new, and for the same once more, each with a hash of the ids."""
    from robustly.tokenizer import load_tokenizer
    from robustly.tokenizer.vocabulary import fast_tokenizer

    texts = [
        text for file in files for text in Path(file).read_text(encoding="utf-8").split("\n\n")
    ]
    tokenizer = load_tokenizer(Path(folder))
    tokenizer._encoded = 2**40  # the table is started at once
    encode: Callable[[list[str]], list[Any]] = tokenizer.encode_documents

    if engine == "gigatoken":
        from gigatoken.gigatoken_rs import load_hf_json

        other = load_hf_json(fast_tokenizer(tokenizer.vocabulary).to_str())
        encode = lambda batch: [other.encode(text).astype(tokenizer.dtype) for text in batch]  # noqa: E731

    encode(["a"])
    for name in ("new text", "the same again"):
        seconds, made = 0.0, hashlib.sha256()
        for first in range(0, len(texts), BATCH):
            batch = texts[first : first + BATCH]
            start = time.process_time()
            ids = encode(batch)
            seconds += time.process_time() - start
            for each in ids:
                made.update(each.tobytes())

        yield name, seconds, made.digest()


def gigatoken(folder: str, files: list[str]) -> dict[str, Any]:
    """Seconds of gigatoken, and whether its ids are ours."""
    theirs = [*encoded(folder, files, "gigatoken")]
    mine = [*encoded(folder, files, "")]
    return {
        "seconds": {name: took for name, took, _ in theirs},
        "same": [ids for *_, ids in theirs] == [ids for *_, ids in mine],
    }


def peer(files: list[str], folder: str, cache: str) -> float:
    """Seconds of run_mlm's path."""
    import datasets
    import transformers

    assert datasets and transformers
    start = time.process_time()
    run_mlm(files, folder, cache, None)  # type: ignore[arg-type]  # in this process
    return time.process_time() - start


CASES: dict[str, Callable[..., Any]] = {"ours": ours, "gigatoken": gigatoken, "peer": peer}


# ---------------------------------------------------------------------------------------- measuring


def measure(given: list[str], scratch: Path) -> str:
    files = plain(given[1:], scratch)
    megabytes = sum(Path(file).stat().st_size for file in files) / 1e6
    few = scratch / "few.txt"
    few.write_text("\n\n".join(["a few words"] * 8), encoding="utf-8")

    def run(code: Path, *arguments: Any) -> Any:
        path = os.pathsep.join([str(code), os.environ.get("PYTHONPATH", "")])
        output = Watched(case(*arguments), environment={"PYTHONPATH": path}).output
        return json.loads(output.strip().splitlines()[-1])

    before = run(Path(given[0]).resolve(), "ours", files, str(few), str(scratch / "before"))
    now = run(HERE, "ours", files, str(few), str(scratch / "now"))
    same = before["made"] == now["made"]
    rows = [
        f"| {name} | {megabytes / took:.1f} | {megabytes / now['seconds'][name]:.1f} |"
        f" {took / now['seconds'][name]:.1f} |"
        for name, took in before["seconds"].items()
    ]
    folder = str(scratch / "now" / "gpt2" / "tokenizer")
    if find_spec("gigatoken"):
        other = run(HERE, "gigatoken", folder, files)
        same &= other["same"]
        rows += [
            f"| gigatoken, `gpt2`, {name} | | {megabytes / took:.1f} | |"
            for name, took in other["seconds"].items()
        ]

    theirs = run(HERE, "peer", files, folder, str(scratch / "cache"))
    took = now["seconds"]["`robustly prepare`, `unit: line`"]
    libraries = ("numba", "tiktoken", "datasets", "transformers", "sentencex", "gigatoken")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries if find_spec(name))

    return f"""# Counting, encoding, preparing

{time.strftime("%Y-%m-%d")}, one core of {os.cpu_count()}, {platform.machine()}, Python {platform.python_version()}, {versions}.
Text: {", ".join(Path(file).name for file in files)}, {megabytes:.1f} MB. Load of the machine over the last five minutes:
{os.getloadavg()[1]:.1f}. Megabytes for each second of the processor, without the start.

| | before | now | times as fast |
| --- | --- | --- | --- |
{chr(10).join(rows)}

Ids, counts, vocabularies and tokens the same: {"yes" if same else "NO"}. run_mlm's path takes {theirs:.1f} s of the processor
({megabytes / theirs:.1f} MB/s), {theirs / took:.1f} times what `robustly prepare` takes (`unit: line`).
"""


if __name__ == "__main__":
    main(__doc__, CASES, measure, "tokenizing")
