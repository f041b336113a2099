"""Every kind of file in one corpus: the same bytes on disk for 1, 2 and 5 workers, and all
documents back from them."""

import gzip
import json
import lzma
from pathlib import Path
from unittest import mock

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from small_stores import VIEW, files_of, train_tokenizer

from robustly.corpus import partitions as partitioning
from robustly.corpus.config import CorpusConfig, Processing
from robustly.corpus.partitions import partitions
from robustly.data_prep.prepare import DataStage
from robustly.data_prep.store import SPLITS, Store
from robustly.tokenizer import load_tokenizer
from stated import stated

SOURCES = ("plain", "packed", "rows", "table")
TXT = {
    ".txt": bytes,
    ".txt.gz": gzip.compress,
    ".txt.xz": lzma.compress,
    ".txt.zst": zstandard.compress,
}
JSONL = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}


def texts(source: str, file: str) -> list[str]:
    """Documents of one line, told apart by where they lie."""
    return [
        f"The {n}th thing in {file} of {source}. It is “short”, or so they said." for n in range(12)
    ]


def write_corpus(root: Path) -> dict[str, list[str]]:
    """A folder for each of SOURCES; returns its documents, file by file in the order of the
    names."""
    written: dict[str, list[str]] = {}
    for source, kinds in (
        ("plain", [".txt"]),
        ("packed", list(TXT)[1:]),
        ("rows", list(JSONL)),
        ("table", [".parquet"]),
    ):
        (root / source).mkdir(parents=True)
        for place, kind in enumerate(kinds):
            path = root / source / f"{place}{kind}"
            written[source] = written.get(source, []) + (documents := texts(source, path.name))
            if kind == ".parquet":
                pyarrow.parquet.write_table(
                    pyarrow.table({"text": documents}), path, row_group_size=4
                )
            elif kind in JSONL:
                rows = "".join(json.dumps({"text": text}) + "\n" for text in documents)
                path.write_bytes(JSONL[kind](rows.encode()))
            else:
                path.write_bytes(TXT[kind]("\n\n".join(documents).encode()))

    return written


@pytest.mark.processes
@pytest.mark.parametrize(
    ("documents", "workers"), [("blank_line", (1, 2, 5)), ("line", (1, 2)), ("file", (1, 2))]
)
def test_any_number_of_workers_writes_the_same_bytes_of_every_kind_of_file(
    tmp_path, documents, workers
):
    trained = train_tokenizer(tmp_path / "tokenizer")
    written = write_corpus(tmp_path / "corpus")
    sources = [str(tmp_path / "corpus" / source) for source in SOURCES]
    config = CorpusConfig(sources=sources, documents=documents, text_key="text", validation=0.2)
    folders = [tmp_path / f"data{count}" for count in workers]

    with mock.patch.object(partitioning, "PARTITION_BYTES", 300):
        assert len(partitions(stated(tmp_path, config))) > 12
        made = [
            DataStage(stated(tmp_path, config), VIEW, folder, trained, Processing(count)).make()
            for folder, count in zip(folders, workers, strict=True)
        ]

    for folder, other in zip(folders[1:], made[1:], strict=True):
        assert files_of(folder) == files_of(folders[0])
        assert (other.outputs, other.hash, other.counts) == (
            made[0].outputs,
            made[0].hash,
            made[0].counts,
        )

    tokenizer = load_tokenizer(trained)
    back = [pair for split in SPLITS for pair in Store(folders[0], split).named_texts(tokenizer)]

    for source in SOURCES:
        expected = written[source]
        if documents == "file" and source in ("plain", "packed"):
            expected = [
                "\n\n".join(expected[first : first + 12]) for first in range(0, len(expected), 12)
            ]

        assert sorted(text for name, text in back if name == source) == sorted(expected)
