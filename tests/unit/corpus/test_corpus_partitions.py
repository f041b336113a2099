"""How a corpus is cut: small files are gathered, and the cut is stable when files are added."""

import gzip
import json
from pathlib import Path
from unittest import mock

import pyarrow
import pyarrow.parquet
from hypothesis import given
from hypothesis import strategies as st

from robustly.corpus import partitions as partitioning
from robustly.corpus.documents import documents
from robustly.corpus.partitions import PARTITION_BYTES, partitions


def texts(corpus):
    return [text for part in partitions(corpus) for text in documents(part, corpus, [])]


def names(corpus):
    return [[Path(piece.path).name for piece in part.pieces] for part in partitions(corpus)]


def test_two_thousand_small_files_are_one_partition(corpus_of, tmp_path):
    for number in range(2000):
        (tmp_path / f"{number:04d}.txt").write_text(f"{number} ".ljust(1000, "x"))

    corpus = corpus_of(tmp_path)
    (part,) = partitions(corpus)
    assert len(part.pieces) == 2000
    assert [int(text.split()[0]) for text in texts(corpus)] == list(range(2000))
    assert str(part) == f"2,000 files from {tmp_path / '0000.txt'} to {tmp_path / '1999.txt'}"


@given(
    sizes=st.lists(st.integers(0, 250), max_size=12),
    added=st.lists(st.integers(0, 250), max_size=6),
)
def test_files_are_gathered_in_order_and_the_cut_is_stable(
    corpus_of, tmp_path_factory, sizes, added
):
    folder = tmp_path_factory.mktemp("files")
    corpus = corpus_of(folder, documents="file")
    (folder / "00.txt").write_text("first")

    def write(sizes, first):
        for number, size in enumerate(sizes, first):
            (folder / f"{number:02d}.txt").write_text("x" * size)

    with mock.patch.object(partitioning, "PARTITION_BYTES", 100):
        write(sizes, 1)
        before = partitions(corpus)
        write(added, 1 + len(sizes))
        after = partitions(corpus)

    assert before[:-1] == after[: len(before) - 1]
    assert after[len(before) - 1].pieces[: len(before[-1].pieces)] == before[-1].pieces

    files = [path for path in sorted(folder.iterdir()) if path.stat().st_size]
    assert [piece.path for part in after for piece in part.pieces] == [str(path) for path in files]

    bytes_of = [[Path(piece.path).stat().st_size for piece in part.pieces] for part in after]
    for one, following in zip(bytes_of, [*bytes_of[1:], [101]], strict=True):
        assert sum(one) <= 100 or len(one) == 1  # as much as there is room for
        assert sum(one) + following[0] > 100


def test_a_large_file_is_cut_as_if_it_were_alone(corpus_of, tmp_path):
    for name, size in {"a": 30, "b": 30, "c": 250, "d": 30, "e": 30}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(["x" * 9] * (size // 10)) + "\n")

    with mock.patch.object(partitioning, "PARTITION_BYTES", 100):
        corpus = corpus_of(tmp_path, documents="line")
        assert names(corpus) == [["a.txt", "b.txt"], *[["c.txt"]] * 3, ["d.txt", "e.txt"]]
        assert [part.pieces for part in partitions(corpus)[1:4]] == [
            part.pieces for part in partitions(corpus_of(tmp_path / "c.txt", documents="line"))
        ]
        assert len(texts(corpus)) == 37


def test_sources_are_not_gathered_together(corpus_of, tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(name)

    corpus = corpus_of(tmp_path / "[ab].txt", {"path": str(tmp_path / "[cd].txt"), "name": "two"})
    assert [(part.source, len(part.pieces)) for part in partitions(corpus)] == [(0, 2), (1, 2)]
    assert texts(corpus) == ["a", "b", "c", "d"]


def test_files_of_all_kinds_are_gathered_and_compressed_ones_by_the_text_in_them(
    corpus_of, tmp_path
):
    for number in range(3):
        (tmp_path / f"{number}a.txt.gz").write_bytes(gzip.compress(f"gz {number}".encode()))
        (tmp_path / f"{number}b.jsonl").write_text(json.dumps({"text": f"row {number}"}))
        table = pyarrow.table({"text": [f"column {number}"]})
        pyarrow.parquet.write_table(table, tmp_path / f"{number}c.parquet")

    corpus = corpus_of(tmp_path)
    assert len(partitions(corpus)) == 1
    assert texts(corpus) == [f"{kind} {n}" for n in range(3) for kind in ("gz", "row", "column")]

    size = (tmp_path / "0a.txt.gz").stat().st_size
    packed = corpus_of(tmp_path / "*.gz")
    for room, expected in ((size * 3, 3), (size * 6, 2), (size * 9, 1)):  # a byte is 3 of text
        with mock.patch.object(partitioning, "PARTITION_BYTES", room):
            assert len(partitions(packed)) == expected


def test_a_compressed_file_is_read_whole_however_large(corpus_of, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt.gz").write_bytes(gzip.compress(b"x" * 2 * PARTITION_BYTES))

    corpus = corpus_of(tmp_path, documents="file")
    assert [len(text) for text in texts(corpus)] == [2 * PARTITION_BYTES] * 2
