"""The tokenizer builder beside `tokenizers`: time of training, memory of counting, speed of
encoding.

    python benchmarks/bpe.py FILE.txt.xz ...     # the project's figures: dev_wikipedia_en and
    dev_books_en

The files are text with a blank line between documents, plain or .xz. Both builders start from the
plain text, on all cores of the machine, in processes of their own, one after the other, twice; the
better time counts. Memory is the proportional set size of the whole tree of processes, seen every
50 ms. The table is printed and written to benchmarks/results/bpe-<date>.md."""

import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from beside import Watched, case, main, plain

VOCAB_SIZE = 50_265
MEMORY_GB = 1.0
MORE_WORDS = 20  # times as many distinct words in the corpus that is made up
ROUNDS = 2
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
PAGE = """
base: roberta_base.yaml
name: benchmark
corpus: {{sources: {sources}, documents: blank_line, validation: 0.0}}
tokenizer: {{vocab_size: {vocab_size}, min_frequency: 2}}
run: {{workers: {workers}, memory_gb: {memory_gb}}}
paths: {{root: {root}}}
"""


# ---------------------------------------------------------------------------- cases, a process each


def peer_training(files: list[str], target: str) -> None:
    """As the documentation of `tokenizers` trains a byte-level BPE: from files."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 1,  # <mask> comes after
        min_frequency=2,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train(files, trainer)
    tokenizer.save(target)


def encoding(folder: str, files: list[str]) -> dict[str, Any]:
    """Encode every document by both engines on one core; are the ids the same on every one?"""
    from tokenizers import Tokenizer

    from robustly.tokenizer import load_tokenizer

    texts = [
        text
        for file in files
        for text in Path(file).read_text(encoding="utf-8").strip().split("\n\n")
    ]
    size = sum(len(text.encode()) for text in texts)
    encoder = load_tokenizer(Path(folder))
    peer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    peer.encode_special_tokens = True
    ours: list[Any] = []
    theirs: list[Any] = []
    seconds = {"robustly": 0.0, "tokenizers": 0.0}

    for first in range(0, len(texts), 512):  # turn by turn, so that both see the same machine
        batch = texts[first : first + 512]
        start = time.perf_counter()
        ours = encoder.encode_documents(batch)
        middle = time.perf_counter()
        theirs = peer.encode_batch(batch, add_special_tokens=False)
        seconds["robustly"] += middle - start
        seconds["tokenizers"] += time.perf_counter() - middle
        for text, mine, other in zip(batch, ours, theirs, strict=True):
            if mine.tolist() != other.ids:
                raise SystemExit(f"other ids: {text[:200]!r}")

    return {name: size / taken / 1e6 for name, taken in seconds.items()} | {"documents": len(texts)}


CASES: dict[str, Callable[..., Any]] = {"peer_training": peer_training, "encoding": encoding}


# ---------------------------------------------------------------------------------------- measuring


def robustly(
    sources: list[str], root: Path, vocab_size: int = VOCAB_SIZE, memory_gb: float = 16.0
) -> Watched:
    page = root.with_suffix(".yaml")
    page.write_text(
        PAGE.format(
            sources=sources,
            vocab_size=vocab_size,
            workers=os.cpu_count(),
            memory_gb=memory_gb,
            root=root,
        )
    )
    return Watched([sys.executable, "-m", "robustly.cli", "tokenizer", str(page)], "training on")


def merges_of(file: Path) -> list[list[str]]:
    return [list(pair) for pair in json.loads(file.read_text(encoding="utf-8"))["model"]["merges"]]


def made_up(path: Path, words: int) -> None:
    """Text of so many distinct words, each once: random letters, in documents of 1,000 words."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for first in range(0, words, 1000):
            numbers = range(first, min(first + 1000, words))
            # the number, in letters, makes each of them another word
            rows = [
                "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=4)) + letters(number)
                for number in numbers
            ]
            file.write(" ".join(rows) + "\n\n")


def letters(number: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, 26)
        text += chr(ord("a") + digit)
    return text or "a"


def measure(given: list[str], scratch: Path) -> str:
    files = plain(given, scratch)
    size = sum(Path(file).stat().st_size for file in files)

    ours, theirs = [], []
    for number in range(ROUNDS):
        ours.append(robustly(files, scratch / f"ours-{number}"))
        theirs.append(Watched(case("peer_training", files, str(scratch / "peer.json"))))

    mine, other = (min(each.seconds for each in some) for some in (ours, theirs))
    same = merges_of(scratch / "ours-0" / "tokenizer" / "tokenizer.json") == merges_of(
        scratch / "peer.json"
    )

    bounded = robustly(files, scratch / "bounded", memory_gb=MEMORY_GB)
    distinct = json.loads((scratch / "bounded/tokenizer/manifest.json").read_text())["counts"][
        "distinct_words"
    ]
    made_up(scratch / "made_up.txt", MORE_WORDS * distinct)
    many = robustly(
        [str(scratch / "made_up.txt")], scratch / "many", vocab_size=2000, memory_gb=MEMORY_GB
    )
    speed = json.loads(
        Watched(
            case("encoding", str(scratch / "ours-0" / "tokenizer"), files),
            environment={"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        ).output
    )

    versions = ", ".join(
        f"{library} {version(library)}" for library in ("tokenizers", "tiktoken", "numba", "regex")
    )
    gb = 1e9

    return f"""# Tokenizer

{time.strftime("%Y-%m-%d")}, {os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()},
{versions}. Text: {", ".join(Path(file).name for file in files)}, {size:,} bytes, {distinct:,} distinct words.

| training {VOCAB_SIZE:,} entries | seconds | ratio | peak memory, GB |
| --- | --- | --- | --- |
| tokenizers' BpeTrainer | {other:.1f} | 1.00 | {max(each.peak for each in theirs) / gb:.2f} |
| robustly tokenizer | {mine:.1f} | {mine / other:.2f} | {max(each.peak for each in ours) / gb:.2f} |

Merges the same: {"yes" if same else "NO"}. All seconds, start of the processes included: ours
{", ".join(f"{each.seconds:.1f}" for each in ours)}; theirs {", ".join(f"{each.seconds:.1f}" for each in theirs)}.

| `run.memory_gb: {MEMORY_GB:g}` | peak while counting, GB | peak while training, GB | said before training |
| --- | --- | --- | --- |
| the text above | {bounded.before / gb:.2f} | {bounded.after / gb:.2f} | {bounded.marked[0]} |
| {MORE_WORDS} times as many distinct words | {many.before / gb:.2f} | {many.after / gb:.2f} | {many.marked[0]} |

| encoding, one core, {speed["documents"]:,} documents, same ids on every one | MB/s | ratio |
| --- | --- | --- |
| tokenizers' encode_batch | {speed["tokenizers"]:.1f} | 1.00 |
| encode_documents | {speed["robustly"]:.1f} | {speed["robustly"] / speed["tokenizers"]:.2f} |
"""


if __name__ == "__main__":
    main(__doc__, CASES, measure, "bpe")
