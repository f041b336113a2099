"""How fast each kind of file is found, cut into partitions and read, beside JSON lines.

    python benchmarks/formats.py FILE...     # the project's figures: text8.xz, prose.xz

The same documents of some KB in every format, one process. Seconds are a core's. "Cut" is what `partitions` takes, which
reads .csv, .tsv and arrays of JSON once for the places where rows begin; "read" is every document,
partition by partition. The table is printed and written to benchmarks/results/formats-<date>.md."""

import csv
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pyarrow
import pyarrow.feather
import pyarrow.parquet
from backports import zstd
from beside import Watched, case, main, plain

from robustly.corpus.config import CorpusConfig
from robustly.corpus.documents import documents
from robustly.corpus.partitions import partitions

MB = 2**20
TEXT_BYTES = 100 * MB
DOCUMENT = 4000  # characters


def _jsonl(texts: list[str], path: Path) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def _array(texts: list[str], path: Path) -> None:
    path.write_text(json.dumps([{"text": text} for text in texts]))


def _cells(texts: list[str], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["text"], *([text] for text in texts)])


def _tabs(texts: list[str], path: Path) -> None:
    lines = (" ".join(text.split()) for text in texts)
    path.write_text("text\n" + "\n".join(lines), encoding="utf-8")


def _parquet(texts: list[str], path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=4096)


def _arrow(texts: list[str], path: Path) -> None:
    table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.string_view())})
    with pyarrow.ipc.new_stream(path, table.schema) as out:
        out.write_table(table, max_chunksize=1000)


def _feather(texts: list[str], path: Path) -> None:
    pyarrow.feather.write_feather(pyarrow.table({"text": texts}), path, "lz4", chunksize=4096)


def _zst(window: int, texts: list[str], path: Path) -> None:
    options = {zstd.CompressionParameter.window_log: window}
    squeezed = zstd.ZstdCompressor(options=options)
    lines = (json.dumps({"text": text}).encode() + b"\n" for text in texts)
    with path.open("wb") as out:  # as from a pipe: the frame does not tell the size of the text
        out.writelines(squeezed.compress(line) for line in lines)
        out.write(squeezed.flush())


FORMS: dict[str, tuple[str, Callable[[list[str], Path], None]]] = {
    "JSON lines": ("a.jsonl", _jsonl),
    "JSON array": ("a.json", _array),
    "CSV, all cells in quotes": ("a.csv", _cells),
    "TSV": ("a.tsv", _tabs),
    "Parquet (snappy)": ("a.parquet", _parquet),
    "Arrow stream, string_view": ("a.arrow", _arrow),
    "Feather (lz4)": ("a.feather", _feather),
    "JSON lines, zstd, window 2 MiB": ("b.jsonl.zst", lambda *given: _zst(21, *given)),
    "JSON lines, zstd, window 2 GiB": ("c.jsonl.zst", lambda *given: _zst(31, *given)),
}


def write(name: str, files: list[str], path: str) -> None:
    whole = "".join(Path(file).read_text(encoding="utf-8") for file in files)
    texts = [whole[start : start + DOCUMENT] for start in range(0, len(whole), DOCUMENT)]
    count = TEXT_BYTES // sum(len(text.encode()) for text in texts) + 1
    FORMS[name][1](texts * count, Path(path))


def read(path: str) -> tuple[float, float, int, int]:
    corpus = CorpusConfig(
        sources=[path], documents="line", text_key="text", validation=0, max_bad_lines=0
    )
    start = time.process_time()
    cut = partitions(corpus)
    between = time.process_time()
    size = sum(len(text.encode()) for part in cut for text in documents(part, corpus, []))
    return between - start, time.process_time() - between, len(cut), size


def measure(given: list[str], scratch: Path) -> str:
    files = plain(given, scratch)
    rows, base = [], 0.0
    for name, (file, _) in FORMS.items():
        path = str(scratch / file)
        Watched(case("write", name, files, path))
        ran = Watched(case("read", path))
        cut, seconds, parts, size = json.loads(ran.output)
        Path(path).unlink()
        base = base or size / seconds
        rows.append(
            f"| {name} | {parts} | {cut:.2f} | {seconds:.2f} | {size / MB / seconds:.0f} |"
            f" {size / seconds / base:.2f} | {ran.largest / MB:.0f} |"
        )

    head = (
        f"# Formats\n\n{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores"
        f" (load {os.getloadavg()[0]:.1f}), Python {platform.python_version()}, pyarrow"
        f" {version('pyarrow')}, backports.zstd {version('backports.zstd')}. One process,\nseconds of its core,"
        f" {TEXT_BYTES // MB} MiB of text in documents of {DOCUMENT:,} characters.\n\n"
        "| format | partitions | s to cut | s to read | MiB read/s | of JSON lines | MiB of memory |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
    )
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main(__doc__, {"write": write, "read": read}, measure, "formats")
