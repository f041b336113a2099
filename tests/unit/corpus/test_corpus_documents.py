"""The raw text: which documents there are, to the byte, however the files are cut, packed and
named."""

import gzip
import json
import lzma
import multiprocessing
import os
import re
import signal
from functools import partial
from pathlib import Path
from unittest import mock

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from robustly import StartAgain, UserError
from robustly.corpus import files as corpus_files
from robustly.corpus import partitions as partitioning
from robustly.corpus import reading
from robustly.corpus.config import Processing
from robustly.corpus.documents import documents, refuse_many
from robustly.corpus.executors import process
from robustly.corpus.files import FILES, hash_corpus, remember_files, remembered_files
from robustly.corpus.partitions import Partition, Piece, partitions
from robustly.manifest import Stage
from stated import stated

LINES = st.lists(
    st.sampled_from(
        ["", " ", "\t \r", "\v\f", "\r", "a", " b ", "cé\r", "\u3000", "d" * 40, "\u2028e"]
    ),
    max_size=40,
)


def read(corpus, beside=Path(), bad_lines=None):
    """The texts of a corpus, read part by part."""
    bad_lines = [] if bad_lines is None else bad_lines
    return [
        text
        for part in partitions(stated(beside, corpus))
        for text in documents(part, corpus, bad_lines)
    ]


# ------------------------------------------------------------------------------- what a document is


def test_blank_lines_end_documents_and_nothing_else_is_lost(corpus_of, tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\n \none \n  two\r\n\t\r\nthree\n\n\nfour")
    assert read(corpus_of(file)) == ["one \n  two\r", "three", "four"]


def test_documents_that_are_lines_or_files(corpus_of, tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"one \n\n two\r\n  \nthree")
    assert read(corpus_of(file, documents="line")) == ["one ", " two\r", "three"]
    assert read(corpus_of(file, documents="file")) == ["one \n\n two\r\n  \nthree"]


@pytest.mark.parametrize("mode", ["blank_line", "line", "file"])
def test_a_byte_order_mark_is_not_text(corpus_of, tmp_path, mode):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone \xef\xbb\xbf")
    assert read(corpus_of(file, documents=mode)) == ["one \ufeff"]


def test_rows_hold_documents(corpus_of, tmp_path):
    rows = [{"text": "one\n\ntwo", "n": 1}, {"text": ""}, {"text": "三 \U0001f600"}]
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps(row) for row in rows) + "\n\n \n", encoding="utf-8"
    )
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [row["text"] for row in rows]}), tmp_path / "a.parquet"
    )
    for name in ("a.jsonl", "a.parquet"):
        assert read(corpus_of(tmp_path / name)) == [row["text"] for row in rows]


def test_a_document_knows_its_source(corpus_of, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)

    corpus = corpus_of(tmp_path / "b.txt", {"path": str(tmp_path / "a.txt"), "name": "first"})
    found = [
        (text, part.source) for part in partitions(corpus) for text in documents(part, corpus, [])
    ]
    assert found == [("b", 0), ("a", 1)]


# -------------------------------------------------------------------------------- however it is cut


@given(
    lines=LINES,
    last=st.sampled_from(["", "\n"]),
    size=st.integers(1, 60),
    at_once=st.integers(1, 30),
)
def test_parts_hold_each_document_once(corpus_of, tmp_path_factory, lines, last, size, at_once):
    text = "\n".join(lines) + last
    file = tmp_path_factory.mktemp("cut") / "a.txt"
    file.write_bytes(text.encode())
    blank = re.compile(r"[ \t\r\v\f]*", re.ASCII)
    runs = "\n".join("\0" if blank.fullmatch(line) else line for line in lines).split("\0")
    expected = {
        "blank_line": [run.strip("\n") for run in runs if run.strip("\n")],
        "line": [line for line in lines if not blank.fullmatch(line)],
    }

    with (
        mock.patch.object(partitioning, "PARTITION_BYTES", size),
        mock.patch.object(reading, "AT_ONCE", at_once),
    ):
        for mode, texts in expected.items():
            corpus = corpus_of(file, documents=mode)
            assert len(partitions(corpus)) == -(-len(text.encode()) // size)
            assert read(corpus) == texts


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)),
    size=st.integers(1, 100),
)
def test_parts_hold_each_row_once(corpus_of, tmp_path_factory, texts, size):
    folder = tmp_path_factory.mktemp("cut")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.large_string())})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=3)

    with mock.patch.object(partitioning, "PARTITION_BYTES", size):
        assert read(corpus_of(folder / "a.jsonl")) == texts
        assert read(corpus_of(folder / "a.parquet")) == texts
        if len(texts) > 6:
            assert len(partitions(corpus_of(folder / "a.parquet"))) > 1


def test_a_part_ends_with_the_document_that_began_in_it(corpus_of, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one\n\ntwo\ntwo\n\nthree\n")
    corpus = corpus_of(file)
    assert [text for text in documents(Partition(0, (Piece(str(file), 0, 6),)), corpus, [])] == [
        "one",
        "two\ntwo",
    ]
    assert [text for text in documents(Partition(0, (Piece(str(file), 6, 20),)), corpus, [])] == [
        "three"
    ]


def test_a_document_of_a_hundred_megabytes(corpus_of, tmp_path):
    file = tmp_path / "a.txt"
    line = "All work and no play makes a long document. " * 2**16 + "\n"
    text = line * (100 * 2**20 // len(line))
    file.write_text("first\n\n" + text + "\nlast")
    assert len(partitions(corpus_of(file))) > 5
    found = read(corpus_of(file))
    assert [len(document) for document in found] == [5, len(text) - 1, 4]
    assert found[1] == text[:-1]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize(
    ("compression", "compress"),
    [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.ZstdCompressor().compress)],
)
def test_compressed_files_are_read_to_their_end(corpus_of, tmp_path, suffix, compression, compress):
    pieces = [
        b'"one"\n\n',
        b'"two"\n',
    ]  # two members, streams or frames in one file, as parallel tools write them
    if suffix == ".jsonl":
        pieces = [b'{"text": ' + piece.strip() + b"}\n" for piece in pieces]

    plain, packed = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}{compression}"
    plain.write_bytes(b"".join(pieces))
    packed.write_bytes(b"".join(map(compress, pieces)))

    with mock.patch.object(partitioning, "PARTITION_BYTES", 4):
        assert read(corpus_of(packed)) == read(corpus_of(plain))
        assert len(read(corpus_of(plain))) == 2


# -------------------------------------------------------------------------------------- which files


def test_sources_come_as_on_the_page_and_files_by_name(corpus_of, tmp_path):
    for name in (
        "b/2.txt",
        "b/10.txt",
        "b/c/1.jsonl",
        "b/.hidden/x.txt",
        "b/.DS_Store",
        "a.txt",
        "z.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}')

    names = [
        Path(piece.path).relative_to(tmp_path).as_posix()
        for part in partitions(corpus_of(tmp_path / "b", str(tmp_path / "*.txt")))
        for piece in part.pieces
    ]
    assert names == ["b/10.txt", "b/2.txt", "b/c/1.jsonl", "a.txt"]


def test_relative_paths_lie_beside_the_page_or_in_the_working_directory(
    corpus_of, tmp_path, monkeypatch
):
    beside, here = tmp_path / "configs", tmp_path / "work"
    for folder in (beside, here):
        folder.mkdir()
        (folder / "both.txt").write_text(folder.name)

    (here / "here.txt").write_text("here")
    monkeypatch.chdir(here)
    assert read(corpus_of("both.txt", "here.txt"), beside) == ["configs", "here"]


def test_an_empty_file_has_no_part(corpus_of, tmp_path):
    for name in ("a.txt", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b.txt").write_text("b")
    assert read(corpus_of(tmp_path)) == ["b"]


@pytest.mark.parametrize(
    ("source", "message"),
    [("nowhere.txt", "no file there; looked at"), ("empty", "no file there"), ("*.txt", "no file there"),
     ("odd/a.pdf", "unknown kind of file"), ("odd", "unknown kind of file"), ("odd/a.parquet.gz", "unknown kind")],
)  # fmt: skip
def test_sources_that_hold_no_text_are_refused(corpus_of, tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    for name in ("a.pdf", "a.parquet.gz"):
        (tmp_path / "odd" / name).write_text("x")

    with pytest.raises(UserError, match=message) as error:
        partitions(stated(tmp_path, corpus_of(source)))

    assert str(tmp_path) in str(error.value)


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("mode", ["blank_line", "line", "file"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [(b"\xe9", "not UTF-8 (byte 0xe9)"), (b"\xed\xa0\x80", "not UTF-8"), (b"\0", "NUL")],
)
def test_bytes_that_are_not_text_are_named_with_file_and_line(
    corpus_of, tmp_path, mode, bad, message
):
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\n\n" + "zwö\n".encode() + b"three " + bad + b"\n")
    with (
        mock.patch.object(partitioning, "PARTITION_BYTES", 8),
        pytest.raises(UserError, match=re.escape(message)) as error,
    ):
        read(corpus_of(file, documents=mode, max_bad_lines=0))

    assert str(error.value).startswith(f"{file}: line 4 (byte 16 of the text)")
    assert (
        read(corpus_of(file, documents=mode))
        == {
            "blank_line": ["one"],
            "line": ["one", "zwö"],
            "file": [],
        }[mode]
    )


def test_bytes_that_are_not_text_are_found_in_compressed_files(corpus_of, tmp_path):
    file = tmp_path / "a.txt.gz"
    file.write_bytes(gzip.compress(b"one\n\ntwo \xff\n"))
    with pytest.raises(UserError, match=r"a\.txt\.gz: line 3 \(byte 9 of the text\): not UTF-8"):
        read(corpus_of(file, max_bad_lines=0))
    assert read(corpus_of(file)) == ["one"]


@pytest.mark.parametrize(
    ("text", "message"),
    [(r"\ud83d", r"half of a surrogate pair: \ud83d in the text"), (r"\u0000", "NUL character")],
)
def test_escapes_that_stand_for_no_text_are_bad_rows(corpus_of, tmp_path, text, message):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n{"text": "two ' + text + '"}\n')
    assert read(corpus_of(file)) == ["one"]
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read(corpus_of(file, max_bad_lines=0))
    assert str(error.value).startswith(f"{file}: line 2 ")


def test_a_surrogate_pair_is_a_character(corpus_of, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(r'{"text": "\ud83d\ude00"}')
    assert read(corpus_of(file)) == ["\U0001f600"]


def test_rows_without_text_are_skipped_and_named(corpus_of, tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [
        '{"text": "one"}',
        '{"text": "tw',
        "[1]",
        '{"Text": "x", "n": 1}',
        '{"text": null}',
        "[" * 100_000,
        "{}",
    ]
    file.write_text("\n".join([*rows, '{"text": "last"}']))
    bad_lines = []
    assert read(corpus_of(file), bad_lines=bad_lines) == ["one", "last"]
    reasons = ["not JSON: Unterminated string", "expected a JSON object, found list",
               "no key 'text' (corpus.text_key); the keys here: 'Text', 'n'", "expected a string at 'text' (corpus.text_key), found null",
               "nested too deeply", "no key 'text'"]  # fmt: skip
    assert len(bad_lines) == len(reasons)
    for line, reason in zip(bad_lines, reasons, strict=True):
        assert reason in line.reason

    assert bad_lines[1].place == len("\n".join(rows[:2])) + 1


def test_more_rows_without_text_than_allowed_are_an_error(corpus_of, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\nx\ny\n{"text": "two"}\n')
    assert read(corpus_of(file, max_bad_lines=2)) == ["one", "two"]
    with pytest.raises(UserError) as error:
        read(corpus_of(file, max_bad_lines=1))

    assert str(error.value).startswith(f"{file}: line 3 (byte 18 of the text): not JSON")
    assert f"{file}: line 2 " in str(error.value) and "corpus.max_bad_lines = 1" in str(error.value)


def test_bad_rows_are_counted_over_all_parts(corpus_of, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("x\ny\n")
    corpus = corpus_of(file, max_bad_lines=1)
    bad_lines = []

    with mock.patch.object(partitioning, "PARTITION_BYTES", 2):
        for part in partitions(corpus):
            in_part = []
            assert list(documents(part, corpus, in_part)) == []
            bad_lines += in_part

    assert len(bad_lines) == 2
    with pytest.raises(UserError, match="2 broken rows"):
        refuse_many(bad_lines, corpus)


def test_columns_of_parquet_are_checked(corpus_of, tmp_path):
    table = {"text": ["one", None, "two"], "number": [1, 2, 3], "nul": ["a", "b\0", "c"]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    bad_lines = []
    assert read(corpus_of(tmp_path / "a.parquet"), bad_lines=bad_lines) == ["one", "two"]
    assert [line.place for line in bad_lines] == [1]
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "b.parquet", row_group_size=1)
    with mock.patch.object(partitioning, "PARTITION_BYTES", 1):
        assert read(corpus_of(tmp_path / "b.parquet"), bad_lines=bad_lines) == ["one", "two"]

    assert [line.place for line in bad_lines] == [1, 1]

    for key, message in (
        ("words", "its columns: text, number, nul"),
        ("number", "found int64"),
        ("nul", "row 1 .*NUL"),
    ):
        with pytest.raises(UserError, match=message):
            read(corpus_of(tmp_path / "a.parquet", text_key=key, max_bad_lines=0))


def test_strings_of_parquet_that_are_not_utf8_are_bad_rows(corpus_of, tmp_path):
    broken = pyarrow.array([b"one", b"\xff", b"two"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "a.parquet")
    bad_lines = []
    assert read(corpus_of(tmp_path / "a.parquet"), bad_lines=bad_lines) == ["one", "two"]
    assert [(line.place, line.reason) for line in bad_lines] == [(1, "not UTF-8 (byte 0xff)")]
    with pytest.raises(UserError, match=r"a\.parquet: row 1 .*not UTF-8"):
        read(corpus_of(tmp_path / "a.parquet", max_bad_lines=0))


@pytest.mark.parametrize("cut", [1, 40, 2000])
@pytest.mark.parametrize("form", [".txt.gz", ".txt.xz", ".txt.zst", ".jsonl.gz", ".parquet"])
def test_files_that_are_cut_off_are_named(corpus_of, tmp_path, form, cut):
    file = tmp_path / f"a{form}"
    text = os.urandom(20_000).hex()
    raw = (json.dumps({"text": text}) if "jsonl" in form else text).encode()
    compress = {
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }
    if form == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": [text]}), file)
    else:
        file.write_bytes(compress[file.suffix](raw))

    assert read(corpus_of(file)) == [text]
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(UserError, match=rf"{re.escape(str(file))}: cannot be read"):
        read(corpus_of(file))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz", "a.txt.zst", "a.parquet"])
def test_files_that_are_not_what_their_name_says_are_named(corpus_of, tmp_path, name):
    (tmp_path / name).write_text("plain text")
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        read(corpus_of(tmp_path))


# ------------------------------------------------------------------------------------------- hashes


def test_the_hash_follows_contents_names_and_order_but_not_paths(corpus_of, tmp_path):
    for name, text in {
        "one/a.txt": "a",
        "one/b.txt": "b",
        "two/x/a.txt": "a",
        "two/x/c.txt": "b",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def hash_of(*sources):
        return hash_corpus(stated(tmp_path, corpus_of(*sources)), {}).corpus

    first = hash_of({"path": "one", "name": "n"})
    assert hash_of({"path": "two/x", "name": "n"}) == first
    assert hash_of({"path": "one", "name": "other"}) != first
    assert hash_of("one/a.txt", "one/b.txt") != hash_of("one/b.txt", "one/a.txt")
    (tmp_path / "one/b.txt").write_text("B")
    assert hash_of({"path": "one", "name": "n"}) != first


def test_the_hash_tells_one_kind_of_file_from_another(corpus_of, tmp_path):
    for name in ("t.txt", "t.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}')
    sources = [{"path": name, "name": "n"} for name in ("t.txt", "t.jsonl")]
    assert (
        len({hash_corpus(stated(tmp_path, corpus_of(source)), {}).corpus for source in sources})
        == 2
    )


def test_what_is_held_out_is_no_training_text(corpus_of, tmp_path):
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(name)

    sources = [
        {"path": str(tmp_path / "a.txt")},
        {"path": str(tmp_path / "b.txt"), "held_out": True},
        {"path": str(tmp_path / "c.txt")},
    ]
    corpus = corpus_of(*sources)
    found = hash_corpus(corpus, {})
    assert found.training == hash_corpus(corpus.training, {}).corpus != found.corpus
    assert found.found == corpus_files.corpus_files(corpus)
    assert partitions(corpus, found.found) == partitions(corpus)


def test_known_files_are_not_hashed_anew(corpus_of, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    corpus = corpus_of(tmp_path)
    first = hash_corpus(corpus, {})
    assert {fact["bytes"] for fact in first.files.values()} == {1}
    with mock.patch.object(corpus_files, "sha256", side_effect=AssertionError("hashed anew")):
        assert hash_corpus(corpus, first.files) == first

    (tmp_path / "a.txt").write_text("A")
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    with mock.patch.object(corpus_files, "sha256", wraps=corpus_files.sha256) as hashing:
        assert hash_corpus(corpus, first.files) == hash_corpus(corpus, {}) != first

    assert [call.args[0].name for call in hashing.call_args_list] == ["a.txt", "a.txt", "b.txt"]


@pytest.mark.parametrize("damage", ["deleted", "changed", "cut off"])
def test_facts_of_files_that_are_not_what_was_written_are_forgotten(tmp_path, damage):
    facts = {str(tmp_path / "a.txt"): {"bytes": 1, "mtime_ns": 2, "sha256": "3"}}
    stage, file = Stage(tmp_path, "data", {}, {}), tmp_path / FILES
    stage.finish([], {}, remember_files(tmp_path, facts))
    assert remembered_files(tmp_path) == facts

    content = file.read_text()
    if damage == "deleted":
        file.unlink()
    else:
        file.write_text(content.replace("3", "4") if damage == "changed" else content[:-9])
    assert remembered_files(tmp_path) == {}


def test_a_name_that_is_not_utf8_is_refused(corpus_of, tmp_path):
    try:
        (tmp_path / os.fsdecode(b"na\xefve.txt")).write_text("x")
    except OSError:
        pytest.skip("this file system takes no such names")

    with pytest.raises(UserError, match=r"na\\xefve\.txt.*: a name that is not UTF-8; rename it"):
        read(corpus_of(tmp_path))


# ------------------------------------------------------------------------------------------ process


def note(folder: Path, number: int, part: Partition) -> None:
    with (folder / f"{number}.done").open("a") as out:
        out.write(f"{part.pieces[0].start} {os.getpid()}\n")


def fail_at_two(folder: Path, number: int, part: Partition) -> None:
    if number == 2:
        raise UserError("the fault of part 2")
    note(folder, number, part)


def stop(folder: Path, number: int, part: Partition) -> None:
    """Stopped in the second part, in its first run."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGSTOP)


def die(folder: Path, number: int, part: Partition) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FIVE = [Partition(0, (Piece("a.txt", start, start + 1),)) for start in range(5)]


@pytest.mark.processes
@pytest.mark.parametrize("workers", [1, 2])
def test_every_part_is_worked_on_once_though_a_run_fails(tmp_path, capfd, workers):
    with pytest.raises(UserError, match=r"^the fault of part 2$"):
        process(
            partial(fail_at_two, tmp_path), FIVE, tmp_path / "tasks", Processing(workers), "testing"
        )

    done = len(list(tmp_path.glob("*.done")))
    assert 2 <= done < 5
    for _ in range(2):  # the second time there is nothing to do
        process(partial(note, tmp_path), FIVE, tmp_path / "tasks", Processing(workers), "testing")

    lines = [(tmp_path / f"{number}.done").read_text().splitlines() for number in range(5)]
    assert [[line.split()[0] for line in part] for part in lines] == [
        ["0"],
        ["1"],
        ["2"],
        ["3"],
        ["4"],
    ]
    assert {int(line.split()[1]) == os.getpid() for part in lines for line in part} == {
        workers == 1
    }
    assert capfd.readouterr() == ("", "")


@pytest.mark.processes
def test_a_worker_that_is_killed_ends_the_run(tmp_path):
    with pytest.raises(
        UserError, match="a worker process was killed, most likely because memory ran out"
    ):
        process(partial(die, tmp_path), FIVE, tmp_path / "tasks", Processing(2), "testing")


@pytest.mark.processes
def test_a_worker_that_is_stopped_ends_the_run(tmp_path):
    two = Processing(2, timeout=3)
    with pytest.raises(StartAgain, match=r"worker process \d+ on .*: no sign of life for \d s"):
        process(partial(stop, tmp_path), FIVE, tmp_path / "tasks", two, "testing")

    assert not multiprocessing.active_children()


def test_a_corpus_without_parts_is_no_work(tmp_path):
    process(partial(note, tmp_path), [], tmp_path / "tasks", Processing(2), "testing")
    assert not list(tmp_path.glob("*.done"))
