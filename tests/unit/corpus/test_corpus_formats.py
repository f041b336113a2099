"""Files as other programs write them: each is read to the byte, however it is cut, or is told what it
is and what to do."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from robustly import UserError
from robustly.corpus import partitions as partitioning
from robustly.corpus.config import CorpusConfig
from robustly.corpus.documents import BadLine, documents
from robustly.corpus.files import corpus_files, hash_corpus
from robustly.corpus.formats import cells, json_values
from robustly.corpus.partitions import partitions
from stated import stated

Corpus = Callable[..., CorpusConfig]
TEXTS = ["one", 'two "quoted", with\nlines\r\nand\ttabs', "naïve 三 \U0001f600", "", "\u2028 last"]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def read(corpus: CorpusConfig, bad_lines: list[BadLine] | None = None) -> list[str]:
    bad = [] if bad_lines is None else bad_lines
    return [text for part in partitions(corpus) for text in documents(part, corpus, bad)]


def refusal(corpus: CorpusConfig) -> str:
    with pytest.raises(UserError) as fault:
        read(corpus)
    return str(fault.value)


def ranges_of(size: int) -> Any:
    return mock.patch.object(partitioning, "PARTITION_BYTES", size)


def table(*texts: str | None, **columns: Any) -> pyarrow.Table:
    return pyarrow.table({"text": list(texts), **columns})


# ------------------------------------------------------------------------------------- compression


def zst(text: bytes, window_log: int = 31) -> bytes:
    """As `zstd --long=31` writes from a pipe: the window in the frame, the size of the text not."""
    options = {zstd.CompressionParameter.window_log: window_log}
    squeezed = zstd.ZstdCompressor(options=options)
    return squeezed.compress(text) + squeezed.flush()


def test_frames_of_zstd_may_have_the_largest_window(corpus_of: Corpus, tmp_path: Path) -> None:
    file, skipped = tmp_path / "a.txt.zst", b"\x5a\x2a\x4d\x18\x04\0\0\0abcd"
    file.write_bytes(skipped + zst(b"one\n\nt") + skipped + zst(b"wo\n", 30) + zst(b"\nthree", 10))
    assert read(corpus_of(file)) == ["one", "two", "three"]


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_a_frame_that_is_cut_off_is_told(corpus_of: Corpus, tmp_path: Path, cut: int) -> None:
    file = tmp_path / "a.jsonl.zst"
    file.write_bytes(zst(b'{"text": "one"}\n') + zst(b'{"text": "two"}\n')[:-cut])
    assert "cannot be read: Compressed file ended before" in refusal(corpus_of(file))
    file.write_bytes(zst(b'{"text": "one"}\n') + b"not a frame")
    assert "cannot be read: " in refusal(corpus_of(file))


@pytest.mark.parametrize("name", ["A.TXT", "a.Txt.GZ", "a.txt.bz2", "a.txt.Zst"])
def test_suffixes_in_capitals_and_bzip2(corpus_of: Corpus, tmp_path: Path, name: str) -> None:
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zst}
    (tmp_path / name).write_bytes(pack.get(Path(name).suffix.lower(), bytes)(b"one\n\ntwo"))
    assert read(corpus_of(tmp_path)) == ["one", "two"]
    plain = tmp_path / "more"
    plain.mkdir()
    for same in ("x.jsonl", "x.JSONL"):
        (plain / same).write_text('{"text": "x"}')
    one, other = (hash_corpus(corpus_of({"path": str(plain / same), "name": "n"}), {}).corpus
                  for same in ("x.jsonl", "x.JSONL"))  # fmt: skip
    assert one == other


@pytest.mark.parametrize("suffix, pack", [(".bz2", bz2.compress), (".xz", lzma.compress)])
def test_streams_behind_others_are_read_or_told(
    corpus_of: Corpus, tmp_path: Path, suffix: str, pack: Any
) -> None:
    """The library's own readers end without a word where one is damaged or padded."""
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(pack(b"one\n\nt") + pack(b"") + b"\0" * 8 + pack(b"wo\n") + b"\0" * 4)
    assert read(corpus_of(file)) == ["one", "two"]
    long = b"\n\n".join(b"%d" % number for number in range(50_000))
    file.write_bytes(pack(long) + pack(b"0" * 2_000_000))
    texts = read(corpus_of(file))
    assert len(texts) == 50_000 and texts[-1] == "49999" + "0" * 2_000_000
    for end in (pack(b"wo\n")[:-3], b"junk" + pack(b"wo\n")):
        file.write_bytes(pack(b"one\n\nt") + end)
        assert "cannot be read: " in refusal(corpus_of(file))


# ------------------------------------------------------------------------------------------ text_key

ROWS: list[dict[str, Any]] = [
    {"title": "t", "data": {"text": "one", "more": {"text": "1"}}, "data.x": "own"},
    {"title": None, "data": {"text": "two", "more": {"text": "2"}}, "data.x": "name"},
]
PATHS: list[tuple[Any, list[str]]] = [
    ("data.text", ["one", "two"]),
    ("data.more.text", ["1", "2"]),
    ("data.x", ["own", "name"]),
    (["title", "data.text"], ["t\none", "two"]),
    (["data.text"], ["one", "two"]),
]


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    rows = [{**row, "data": {**row["data"], "x": "within"}} for row in ROWS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), tmp_path / "d.feather", "zstd")
    return tmp_path


@pytest.mark.parametrize("key, texts", PATHS)
def test_a_path_of_keys_and_a_list_of_them(
    corpus_of: Corpus, nested: Path, key: Any, texts: list[str]
) -> None:
    for name in ("a.jsonl", "b.json", "c.parquet", "d.feather"):
        assert read(corpus_of(nested / name, text_key=key)) == texts


@pytest.mark.parametrize("key", ["data.none", "none.text", "title.text", "data", ["title", "none"]])
def test_keys_that_hold_no_text(corpus_of: Corpus, nested: Path, key: Any) -> None:
    for name in ("a.jsonl", "b.json", "c.parquet", "d.feather"):
        message = refusal(corpus_of(nested / name, text_key=key, max_bad_lines=0))
        assert re.search("no key|no column|expected (an object|a string|strings)", message)
        assert name in message and "corpus.text_key" in message


def test_a_recipe_with_one_key_is_as_it_was(corpus_of: Corpus, tmp_path: Path) -> None:
    assert corpus_of(tmp_path).reading() == {"documents": "blank_line", "text_key": "text"}
    assert corpus_of(tmp_path, text_key=["a", "b"]).reading()["text_key"] == ["a", "b"]
    for odd in ([], 5, ["a", None], {"a": "b"}, None):
        with pytest.raises(
            ValidationError, match=r"1 validation error.*\ntext_key\n.*a list of keys"
        ):
            corpus_of(tmp_path, text_key=odd)


def test_nothing_at_all_keys_is_a_bad_row(corpus_of: Corpus, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": null, "b": null}\n{"a": null, "b": "x"}\n{"a": "y"}')
    bad: list[BadLine] = []
    assert read(corpus_of(tmp_path, text_key=["a", "b"]), bad) == ["x"]
    assert ["nothing at 'a', 'b'" in bad[0].reason, "no key 'b'" in bad[1].reason] == [True, True]


# ------------------------------------------------------------------------------ Parquet and Arrow

STRINGS = [
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.string_view(),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    pyarrow.dictionary(pyarrow.int8(), pyarrow.large_string()),
    pyarrow.binary(),
    pyarrow.large_binary(),
    pyarrow.binary_view(),
]


def column(kind: Any, texts: list[str | None]) -> Any:
    plain = pyarrow.array(texts, pyarrow.large_string())
    if pyarrow.types.is_dictionary(kind):
        return plain.cast(kind.value_type).dictionary_encode().cast(kind)
    if "binary" in str(kind):
        return pyarrow.array([text and text.encode() for text in texts], kind)
    return pyarrow.array(texts, kind)


def write_parquet(rows: Any, path: Path) -> None:
    pyarrow.parquet.write_table(rows, path, row_group_size=2)


def write_file(rows: Any, path: Path) -> None:
    with pyarrow.ipc.new_file(path, rows.schema) as out:
        out.write_table(rows, max_chunksize=2)


def write_squeezed(rows: Any, path: Path) -> None:
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with pyarrow.ipc.new_file(path, rows.schema, options=options) as out:
        out.write_table(rows, max_chunksize=2)


def write_stream(rows: Any, path: Path) -> None:
    with pyarrow.ipc.new_stream(path, rows.schema) as out:
        out.write_table(rows, max_chunksize=2)


WRITERS = {
    "a.parquet": write_parquet,
    "b.arrow": write_file,
    "c.arrow": write_squeezed,
    "d.feather": write_file,
    "e.arrow": write_stream,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", STRINGS, ids=str)
def test_columns_of_every_kind_of_string(
    corpus_of: Corpus, tmp_path: Path, kind: Any, name: str
) -> None:
    texts = [*TEXTS, None, "after", "long enough to be no inline view " * 9]
    rows = pyarrow.table({"n": [*range(len(texts))], "text": column(kind, texts)})
    WRITERS[name](rows, tmp_path / name)
    for size in (1, 2**24):
        bad: list[BadLine] = []
        with ranges_of(size):
            assert (len(partitions(corpus_of(tmp_path))) > 1) == (size == 1)
            assert read(corpus_of(tmp_path), bad) == [text for text in texts if text is not None]
        assert len(bad) == 1 and "found null" in bad[0].reason


@pytest.mark.parametrize("name", WRITERS)
def test_columns_that_hold_no_strings(corpus_of: Corpus, tmp_path: Path, name: str) -> None:
    columns = {"list": [["a"]], "n": [1], "s": [{"a": [1]}], "bytes": [b"\xff\xfe"], "null": [None]}
    WRITERS[name](pyarrow.table(columns), tmp_path / name)
    for key, message in (
        ("list", "column 'list' (corpus.text_key): expected strings, found list<"),
        ("s", "expected strings, found struct<"), ("s.a", "column 's.a' (corpus.text_key): expected"),
        ("s.b", "no column 'b' in 's' (corpus.text_key); its columns: a"), ("n", "found int64"),
        ("bytes", "not UTF-8 (byte 0xff)"), ("null", "expected a string at 'null' (corpus.text_key), found null"),
    ):  # fmt: skip
        found = refusal(corpus_of(tmp_path, text_key=key, max_bad_lines=0))
        assert message in found and name in found
        assert "cannot be read" not in found and "damaged" not in found
        assert ("such as s.a" in found) == (key == "s")


@pytest.mark.parametrize("name", ["b.arrow", "e.arrow"])
def test_dictionaries_of_views(corpus_of: Corpus, tmp_path: Path, name: str) -> None:
    """Categories of polars; pyarrow cannot cast them, nor write them to Parquet."""
    values = pyarrow.array(
        ["one", None, "naïve \U0001f600 and longer than a view"], pyarrow.string_view()
    )
    places = pyarrow.array([2, 0, None, 1, 0], pyarrow.uint32())
    texts = pyarrow.DictionaryArray.from_arrays(places, values)
    WRITERS[name](pyarrow.table({"text": texts}), tmp_path / name)
    bad: list[BadLine] = []
    assert read(corpus_of(tmp_path), bad) == [values[2].as_py(), "one", "one"] and len(bad) == 2


def test_two_columns_of_one_name(corpus_of: Corpus, tmp_path: Path) -> None:
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["text"] * 2)
    write_file(twice, tmp_path / "a.arrow")
    assert "2 columns 'text'" in refusal(corpus_of(tmp_path))


@pytest.mark.parametrize("name", ["b.arrow", "e.arrow"])
def test_arrow_that_is_cut_off_or_damaged(corpus_of: Corpus, tmp_path: Path, name: str) -> None:
    WRITERS[name](table(*TEXTS), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for raw in (whole[: len(whole) // 2], whole[:20], b"ARROW1", b"plain text of some length"):
        (tmp_path / name).write_bytes(raw)
        assert f"{name}: cannot be read: " in refusal(corpus_of(tmp_path))


def test_arrow_whose_offsets_point_elsewhere(corpus_of: Corpus, tmp_path: Path) -> None:
    rows = pyarrow.table({"text": pyarrow.array(["abc", "def"])})
    write_file(rows, tmp_path / "a.arrow")
    raw = (tmp_path / "a.arrow").read_bytes()
    offsets = (0).to_bytes(4, "little") + (3).to_bytes(4, "little") + (6).to_bytes(4, "little")
    assert raw.count(offsets) == 1
    (tmp_path / "a.arrow").write_bytes(raw.replace(offsets, offsets[:8] + b"\0\0\0\x70"))
    assert "a.arrow: cannot be read: " in refusal(corpus_of(tmp_path))


# ---------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize(
    "form",
    [
        lambda rows: "\n".join(map(json.dumps, rows)),
        lambda rows: "\r\n".join(map(json.dumps, rows)) + "\r\n",
        lambda rows: json.dumps(rows),
        lambda rows: json.dumps(rows, indent=2),
        lambda rows: "\n[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
        lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows),
        lambda rows: "".join(json.dumps(row, ensure_ascii=False) for row in rows),
    ],
)
def test_json_in_every_form(
    corpus_of: Corpus, tmp_path: Path, form: Any, name: str, mark: bytes
) -> None:
    rows = [{"meta": {"[": "]}"}, "text": text, "n": [1, {"a": "}"}]} for text in TEXTS]
    raw = mark + form(rows).encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    for size in (5, 200, 2**24):
        with ranges_of(size):
            assert read(corpus_of(tmp_path)) == TEXTS


@given(
    texts=st.lists(TEXT, max_size=12),
    indent=st.sampled_from([None, 1]),
    array=st.booleans(),
    size=st.integers(1, 120),
    chunk=st.integers(1, 40),
)
def test_values_come_once_however_they_are_read(
    corpus_of: Corpus, tmp_path_factory: Any, texts: list[str], indent: int | None, array: bool,
    size: int, chunk: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("json")
    rows = [{"a": [1, "\\"], "text": text} for text in texts]
    raw = json.dumps(rows, indent=indent) if array else "\n\n".join(
        json.dumps(row, indent=indent, ensure_ascii=False) for row in rows
    )  # fmt: skip
    (folder / "a.json").write_text(raw, encoding="utf-8")
    with ranges_of(size), mock.patch.object(json_values, "CHUNK", chunk):
        assert read(corpus_of(folder)) == texts


def test_values_without_text_are_bad_rows(corpus_of: Corpus, tmp_path: Path) -> None:
    bad: list[BadLine] = []
    raw = '[{"text": "one"}, 5, "x", ["y"], {"text": 7}, {"text": tru}, {"Text": ""}, {"text": "two"}]'
    (tmp_path / "a.json").write_text(raw)
    assert read(corpus_of(tmp_path), bad) == ["one", "two"]
    reasons = ["found int", "found str", "found list", "found int", "not JSON", "no key 'text'"]
    assert [reason in line.reason for reason, line in zip(reasons, bad, strict=True)] == [True] * 6
    assert [raw[line.place] for line in bad] == ["5", '"', "[", "{", "{", "{"]

    (tmp_path / "a.json").write_text('{"text": "br\n{"text": "one"}\n{"text": "two"}\n')
    bad.clear()
    assert read(corpus_of(tmp_path), bad) == ["one", "two"] and len(bad) == 1


@pytest.mark.parametrize("raw", ['[{"text": "a"}, {"text": "b"', '[{"text": "a"},', '[{"text": "a',
                                 '{\n"text": "a"\n}}', '{\n"text": "a"\n', '[{"text": "a"}]]'])  # fmt: skip
def test_json_that_is_cut_off(corpus_of: Corpus, tmp_path: Path, raw: str) -> None:
    (tmp_path / "a.json").write_text(raw)
    for size in (4, 2**24):
        with ranges_of(size):
            assert re.search(
                r"a\.json: line \d .*not JSON: .*cut off", refusal(corpus_of(tmp_path))
            )


def test_rows_within_an_object_are_told(corpus_of: Corpus, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"version": 1,\n "data": [{"text": "a"}]}')
    assert "`jq -c '.data[]' FILE > NEW.jsonl` takes them out" in refusal(
        corpus_of(tmp_path, max_bad_lines=0)
    )


def test_a_large_array_is_not_held_in_memory(corpus_of: Corpus, tmp_path: Path) -> None:
    from tracemalloc import get_traced_memory, start, stop

    row = json.dumps({"text": "All work and no play makes a long document. " * 500})
    (tmp_path / "a.json").write_text("[" + ",\n".join([row] * 2000) + "]")  # 44 MB
    start()
    try:
        corpus = corpus_of(tmp_path)
        assert len(cut := partitions(corpus)) == 3
        assert sum(1 for part in cut for _ in documents(part, corpus, [])) == 2000
        assert get_traced_memory()[1] < 12 * 2**20
    finally:
        stop()


def test_json_lines_that_are_an_array_are_told(corpus_of: Corpus, tmp_path: Path) -> None:
    for raw in ('[{"text": "a"},\n{"text": "b"}]', '{\n "text": "a"\n}\n'):
        (tmp_path / "a.jsonl").write_text(raw)
        assert "; name the file .json" in refusal(corpus_of(tmp_path, max_bad_lines=0))
    (tmp_path / "a.jsonl").write_text("[" + '{"text": "a"}, ' * 2**17 + "5]")
    assert "an array in one line; expected a JSON object a line; name the file .json" in refusal(
        corpus_of(tmp_path)
    )

    (tmp_path / "a.ndjson").write_text('{"text": "c"}\n')
    assert read(corpus_of(tmp_path / "a.ndjson")) == ["c"]


# --------------------------------------------------------------------------------------- CSV and TSV


def as_csv(texts: list[str], ends: str = "\r\n", quoting: Any = csv.QUOTE_MINIMAL) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=ends, quoting=quoting)
    writer.writerows([["n", "text"], *enumerate(texts)])
    return out.getvalue().encode()


@given(
    texts=st.lists(TEXT, max_size=12),
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    size=st.integers(1, 60),
)
def test_cells_come_once_however_the_file_is_cut(
    corpus_of: Corpus, tmp_path_factory: Any, texts: list[str], ends: str, quoting: Any,
    mark: bytes, size: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("csv")
    if any(set(text) & {"\r", "\n"} for text in texts):
        quoting = csv.QUOTE_ALL  # Python's writer quotes only those line ends that it writes itself
    raw = mark + as_csv(texts, ends, quoting)
    (folder / "a.csv").write_bytes(raw)
    (folder / "b.csv.gz").write_bytes(gzip.compress(raw))
    with ranges_of(size):
        assert read(corpus_of(folder / "a.csv")) == texts
        assert read(corpus_of(folder)) == texts * 2


def test_a_csv_of_many_lines_is_cut(corpus_of: Corpus, tmp_path: Path) -> None:
    texts = [f'line {n}\n\n"quoted", {"x" * (n % 50)}' for n in range(500)]
    (tmp_path / "a.csv").write_bytes(as_csv(texts))
    with ranges_of(1000):
        assert len(partitions(corpus_of(tmp_path))) > 15
        assert read(corpus_of(tmp_path)) == texts


def test_a_carriage_return_without_quotes_ends_no_row(corpus_of: Corpus, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(as_csv(["one", "tw\ro", "three"], "\n"))
    bad: list[BadLine] = []
    assert read(corpus_of(tmp_path), bad) == ["one", "three"]
    assert "new-line character seen in unquoted field" in bad[0].reason


def test_quotes_are_text_in_tsv(corpus_of: Corpus, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b'text\tn\r\n"He said\t1\r\n\r\nNo "end", he\t2\r\n')
    for size in (1, 2**24):
        with ranges_of(size):
            assert read(corpus_of(tmp_path)) == ['"He said', 'No "end", he']


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_quotes_hold_cells_of_tsv_together_where_all_of_them_can(
    corpus_of: Corpus, tmp_path: Path, quoting: Any
) -> None:
    """As pandas writes it; a file like GLUE's has quotes elsewhere."""
    texts = ['one "quoted"', "two\nlines\tand a tab", '"', "plain", "last"]
    out = io.StringIO()
    csv.writer(out, "excel-tab", quoting=quoting).writerows(
        [["text", "n"], *([t, 1] for t in texts)]
    )
    raw = out.getvalue().encode()
    (tmp_path / "a.tsv").write_bytes(raw)
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(raw))
    for size in (1, 2**24):
        with ranges_of(size):
            assert read(corpus_of(tmp_path)) == texts * 2

    (tmp_path / "a.tsv").write_bytes(raw + b'a "word" of text\t1\n')
    assert (
        read(corpus_of(tmp_path / "a.tsv", text_key=out.getvalue().split("\t")[0]))[-1]
        == 'a "word" of text'
    )


@pytest.mark.parametrize(
    "first", [b'"open\t1\n', b'a "word"\t1\n', b'"a" word\t1\n', b'"a"b"\t1\n']
)
def test_one_quote_elsewhere_makes_all_of_them_text(
    corpus_of: Corpus, tmp_path: Path, first: bytes
) -> None:
    (tmp_path / "a.tsv").write_bytes(b"text\tn\n" + first + b'"whole"\t2\n' * 9)
    texts = read(corpus_of(tmp_path))
    assert texts == [first.decode().split("\t")[0], *['"whole"'] * 9]
    (tmp_path / "a.tsv").write_bytes(b"text\tn\n" + b"x\t1\n" * 2**17 + b'"' + b"y\t2\n" * 2**17)
    assert len(read(corpus_of(tmp_path))) == 2**18


def test_a_cell_of_a_megabyte(corpus_of: Corpus, tmp_path: Path) -> None:
    texts = ["long, " * 200_000, "short"]
    (tmp_path / "a.csv").write_bytes(as_csv(texts))
    assert read(corpus_of(tmp_path)) == texts


def test_rows_of_csv_without_text_are_bad_rows(corpus_of: Corpus, tmp_path: Path) -> None:
    bad: list[BadLine] = []
    raw = b'text,n\none,1\ntwo\nthree,3,3\n"fo"ur,4\nfive,5\n"six,6\n'
    (tmp_path / "a.csv").write_bytes(raw)
    assert read(corpus_of(tmp_path), bad) == ["one", "five"]
    reasons = [
        "1 cells, but there are 2 columns: text, n",
        "3 cells",
        "a quote within quotes is doubled",
        "not CSV",
    ]
    assert [why in line.reason for why, line in zip(reasons, bad, strict=True)] == [True] * 4
    assert [line.place for line in bad] == [
        raw.index(b) for b in (b"two", b"three", b'"fo', b'"six')
    ]
    message = refusal(corpus_of(tmp_path, max_bad_lines=0))
    assert message.startswith(
        f"{tmp_path / 'a.csv'}: line 3 (byte 13 of the text): no row of the table: 1 cells"
    )


@pytest.mark.parametrize(
    ("raw", "message"),
    [(b"a,b\n1,2\n", "no column 'text' (corpus.text_key); its columns, by the first row: a, b"),
     (b"a;text\n1;2\n", "its cells seem to stand apart by ';'"), (b"text,text\n", "another name for each"),
     (b'7,"""a"""\n', "it goes to corpus.counts"), (b"", "^$"), (b"text\n\xff\n", "line 2 (byte 5 of the text): not UTF-8"), (b"text\n\0\n", "NUL")],
)  # fmt: skip
def test_tables_that_cannot_be_read(
    corpus_of: Corpus, tmp_path: Path, raw: bytes, message: str
) -> None:
    for name, content in (("a.csv", raw), ("a.csv.gz", gzip.compress(raw))):
        (tmp_path / name).write_bytes(content)
        if raw:
            assert message in refusal(corpus_of(tmp_path / name, max_bad_lines=0))
        else:
            assert read(corpus_of(tmp_path / name)) == []


def test_a_row_with_a_broken_byte_ends_where_it_ends(corpus_of: Corpus, tmp_path: Path) -> None:
    raw = as_csv(['one, "x"', 'two\nb\xe9d, ""\nlast, line', "three"]).replace(b"\xc3\xa9", b"\xff")
    bad: list[BadLine] = []
    (tmp_path / "a.csv").write_bytes(raw)
    for size in (1, 2**24):
        with ranges_of(size):
            bad.clear()
            assert read(corpus_of(tmp_path), bad) == ['one, "x"', "three"]
            assert [(line.place, line.reason) for line in bad] == [
                (raw.index(b"1,"), "not UTF-8 (byte 0xff)")
            ]


def test_a_quote_that_is_never_closed_costs_one_row(corpus_of: Corpus, tmp_path: Path) -> None:
    rows = [f"row {n},{n}" for n in range(99)]
    for name, last in (("a.csv", '"last, row",1'), ("b.csv.gz", "last,1")):
        pack = gzip.compress if name.endswith("gz") else bytes
        raw = "\n".join(["text,n", *rows, '"open,1', *rows, "caf\xe9,1", last, ""]).encode(
            "latin-1"
        )
        (tmp_path / name).write_bytes(pack(raw))
    for size in (1, 40, 2**24):
        with ranges_of(size):
            bad: list[BadLine] = []
            texts = [f"row {n}" for n in range(99)] * 2
            assert read(corpus_of(tmp_path), bad) == [*texts, "last, row", *texts, "last"]
            assert [line.reason.partition(" (")[0] for line in bad] == [
                "not CSV: a quote that is never closed, or not doubled within quotes", "not UTF-8",
            ] * 2  # fmt: skip


def test_a_quote_that_is_never_closed_is_bounded(corpus_of: Corpus, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text\n"one\n' + b"two\n" * 20)
    with mock.patch.object(cells, "LONGEST_CELL", 30):
        assert "field larger than field limit" in refusal(corpus_of(tmp_path, max_bad_lines=0))


# ----------------------------------------------------------------------------------- saved datasets


def test_a_dataset_that_save_to_disk_wrote(corpus_of: Corpus, tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"text": [*TEXTS, "x"] * 9, "n": list(range(54))})
    rows.save_to_disk(tmp_path / "one" / "set", num_shards=3)
    (tmp_path / "one" / "set" / "cache-0123.arrow").write_bytes(b"of a map")
    assert (
        read(corpus_of(tmp_path / "one")) == read(corpus_of(tmp_path / "one/set")) == rows["text"]
    )
    assert len(corpus_files(corpus_of(tmp_path / "one/set"))) == 3
    assert "`save_to_disk` wrote; give it as `path`" in refusal(
        corpus_of({"hub": str(tmp_path / "one/set")})
    )

    rows.select([5, 0]).save_to_disk(tmp_path / "few")
    assert read(corpus_of(tmp_path / "few")) == ["x", "one"]
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "dict")
    assert read(corpus_of(tmp_path / "dict")) == rows["text"]
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "two")
    message = refusal(corpus_of(tmp_path / "two"))
    assert "with 2 splits: train, test; expected one: give the path of a split" in message
    assert "it matches folders" in refusal(corpus_of(tmp_path / "two" / "*"))
    assert read(corpus_of(tmp_path / "two" / "test")) == rows["text"]

    (tmp_path / "one/set/data-00001-of-00003.arrow").unlink()
    assert "data-00001-of-00003.arrow: not there" in refusal(corpus_of(tmp_path / "one"))


def test_a_folder_of_the_hub_is_told(corpus_of: Corpus, tmp_path: Path) -> None:
    write_parquet(table("a"), tmp_path / "train.parquet")
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\nconfigs:\n- config_name: main\n---\n# A\n"
    )
    assert f"give it as `hub: {tmp_path}`" in refusal(corpus_of(tmp_path))
    assert read(corpus_of(str(tmp_path / "*.parquet"))) == ["a"]
    for card in ("# A folder\n\nconfigs: none\n", "---\ntitle: x\n---\nconfigs: none\n"):
        (tmp_path / "README.md").write_text(card)
        assert read(corpus_of(tmp_path)) == ["a"]


# -------------------------------------------------------------------------------------- other things


@pytest.mark.parametrize("folder", ["a [old]", "[ab]", "x[!y]z", "[", "*"])
def test_brackets_in_names(corpus_of: Corpus, tmp_path: Path, folder: str) -> None:
    below = tmp_path / folder / "[1]"
    below.mkdir(parents=True)
    (tmp_path / "a").mkdir()
    for place in (below / "x [2].txt", tmp_path / folder / "y.txt", tmp_path / "a" / "no.txt"):
        place.write_text(place.name)

    for path, names in (
        (tmp_path / folder, ["x [2].txt", "y.txt"]), (tmp_path / folder / "*.txt", ["y.txt"]),
        (tmp_path / folder / "**/*.txt", ["x [2].txt", "y.txt"]), (below / "x [2].txt", ["x [2].txt"]),
        (below / "x [2]*", ["x [2].txt"]), (tmp_path / folder / "*" / "x*", ["x [2].txt"]),
        (tmp_path / folder / "*" / "x [2].txt", ["x [2].txt"]),
    ):  # fmt: skip
        assert read(corpus_of(str(path))) == names
        beside = corpus_of(str(path.relative_to(tmp_path)))
        assert read(stated(tmp_path, beside)) == names

    assert "[[] stands for a bracket" in refusal(corpus_of(str(tmp_path / "[q].txt")))


@pytest.mark.parametrize(
    ("path", "hint"),
    [("https://example.org/a.txt", "an address is not fetched"), ("{a,b}.txt", "braces are not expanded"),
     ("fold*", "it matches folders: end it with /**"), ("empty", "(plain, .gz, .xz, .zst or .bz2) or .parquet or"
     " .arrow or .feather)")],
)  # fmt: skip
def test_what_may_be_wrong_with_a_path(
    corpus_of: Corpus, tmp_path: Path, path: str, hint: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    message = refusal(stated(tmp_path, corpus_of(path)))
    assert "no file there" in message and hint in message
    assert path != "empty" or message.endswith(hint)


def test_a_folder_that_cannot_be_listed(corpus_of: Corpus, tmp_path: Path) -> None:
    with mock.patch("os.scandir", side_effect=PermissionError(13, "Permission denied")):
        assert refusal(corpus_of(tmp_path)) == f"{tmp_path}: cannot be listed: Permission denied"


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.bz2", "a.parquet"])
def test_a_file_that_may_not_be_read(corpus_of: Corpus, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    denied = PermissionError(13, "Permission denied")
    with (
        mock.patch.object(Path, "open", side_effect=denied),
        mock.patch.object(gzip, "GzipFile", side_effect=denied),
    ):
        message = refusal(corpus_of(tmp_path))
    assert "Make it readable" in message and "damaged" not in message


def test_what_lies_beside_data_is_passed_over(corpus_of: Corpus, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "_b.txt").write_text("b")
    for name in ("README.md", "README", "_SUCCESS", "_metadata", "_committed_12", ".DS_Store", "LICENSE",
                 "SHA256SUMS", "dataset_info.json", "a.txt.md5", ".part-0.crc", "Thumbs.db"):  # fmt: skip
        (tmp_path / name).write_text("not text")
    assert read(corpus_of(tmp_path)) == read(corpus_of(str(tmp_path / "*"))) == ["b", "a"]
    assert "unknown kind of file" in refusal(corpus_of(tmp_path / "README.md"))


@pytest.mark.parametrize(
    ("name", "way"),
    [("a.zip", "unzip FILE"), ("a.tar.gz", "tar xf"), ("a.tgz", "tar xf"), ("a.7z", "7z x"), ("a.txt.lz4", "lz4 -d"),
     ("a.pdf", "pdftotext"), ("a.docx", "pandoc"), ("a.html", "trafilatura"), ("a.warc.gz", "trafilatura"),
     ("a.xml.bz2", "wikiextractor"), ("a.md", "name a copy .txt"), ("notes.md", ".txt"), ("a.xlsx", ".csv"),
     ("a.sqlite", ".jsonl"), ("a.bin", "holds tokens"), ("wiki_00", "name it .txt"), ("a.py", "name it .txt"),
     ("a.gz", "NAME.txt.gz"), ("a.jsonl.zstd", "Name it .zst"),
     ("a.jsonlines", "Name it .jsonl"), ("a.pq", "Name it .parquet"), ("a.parquet.zst", "Decompress it"), ("a.arrow.gz", "Decompress it")],
)  # fmt: skip
def test_other_kinds_have_a_way_round(
    corpus_of: Corpus, tmp_path: Path, name: str, way: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    message = refusal(corpus_of(tmp_path))
    assert message.startswith(f"{tmp_path / name}: unknown kind of file") and way in message
    assert "\n" not in message and "glob" in message


def tar() -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO(b""))
    return raw.getvalue()


def written(write: Any) -> bytes:
    raw = io.BytesIO()
    write(raw)
    return raw.getvalue()


PARQUET = written(lambda raw: pyarrow.parquet.write_table(table("a"), raw))
ARROW = written(lambda raw: write_file(table("a"), raw))


def packed(raw: bytes) -> bytes:
    """The same at any time: it is in the names of tests."""
    return gzip.compress(raw, mtime=0)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.jsonl", packed(b"x" * 99), "found gzip (.gz)"), ("a.txt", zst(b"x"), "found Zstandard"),
        ("a.txt", bz2.compress(b"x"), "bzip2"), ("a.json", PARQUET, "found Parquet (.parquet)"),
        ("a.csv", b"PK\3\4" + b"x" * 99, "ZIP"), ("a.csv", ARROW, "found Arrow"),
        ("a.txt.gz", packed(tar()), "found a tar archive"), ("a.txt", tar(), "found a tar archive"),
        ("a.txt.gz", packed(packed(b"x")), "found gzip"), ("a.txt", b"%PDF-1.7\n", "found PDF"),
        ("a.txt.gz", zst(b"text"), "It is Zstandard (.zst): name it what it is"),
        ("a.parquet", packed(b"x"), "It is gzip (.gz): name it"), ("a.arrow", PARQUET, "It is Parquet"),
        ("a.parquet", ARROW, "It is Arrow"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.txt.xz", b"plain text", "If it is cut off or damaged"),
        ("a.parquet", b"PARE" + b"x" * 99 + b"PARE", "encrypted Parquet: write it anew"),
        ("a.feather", b"FEA1\0" + b"x" * 99, "It is Feather of version 1: write it anew"),
    ],
)  # fmt: skip
def test_a_suffix_that_lies_is_told(
    corpus_of: Corpus, tmp_path: Path, name: str, raw: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(raw)
    found = refusal(corpus_of(tmp_path))
    assert found.startswith(str(tmp_path / name)) and message in found and "\n" not in found


def test_texts_that_begin_like_another_kind_are_text(corpus_of: Corpus, tmp_path: Path) -> None:
    texts = [
        "BZh",
        "PAR1 is a gene, and FEA1 another",
        "PK",
        "ARROW1",
        "Rar!",
        "7z",
        "\u2028",
        "{",
        "[",
    ]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    assert read(corpus_of(tmp_path)) == texts


def test_links(corpus_of: Corpus, tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "a.txt").write_text("a")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "linked").symlink_to(tmp_path / "real")
    (corpus / "b.txt").symlink_to(tmp_path / "real/deep/a.txt")
    (tmp_path / "real" / "deep" / "up").symlink_to(tmp_path / "real")
    assert read(corpus_of(corpus)) == ["a", "a"]
    (corpus / "c.txt").symlink_to(tmp_path / "nowhere")
    for path in (corpus, corpus / "*.txt", corpus / "c.txt"):
        told = f"c.txt: a link to {tmp_path}/nowhere, where nothing is"
        assert told in refusal(corpus_of(path))

    (corpus / "c.txt").unlink()
    (corpus / "c.txt").symlink_to("c.txt")
    assert "c.txt: a link to c.txt, where nothing is" in refusal(corpus_of(corpus))


# ------------------------------------------------------------------------------------------ encoding

PROSE = "Words and more words.\r\nA second line.\n\nA third, naïve.\n" * 9


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"), ("utf-32", "UTF-32"),
     ("utf-32-le", "UTF-32LE"), ("utf-32-be", "UTF-32BE")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv.gz", "a.txt.zst"])
@pytest.mark.parametrize("how", ["blank_line", "line", "file"])
def test_other_unicode_encodings_are_told(
    corpus_of: Corpus, tmp_path: Path, encoding: str, named: str, name: str, how: str
) -> None:
    pack = {".gz": gzip.compress, ".zst": zst}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(PROSE.encode(encoding)))
    with ranges_of(100):
        message = refusal(corpus_of(tmp_path, documents=how, max_bad_lines=0))
    assert f"{name}: text in {named}; expected UTF-8" in message
    assert f"`iconv -f {named} -t UTF-8 {name} > NEW`" in message and "\n" not in message


@pytest.mark.parametrize("order", ["LE", "BE"])
@pytest.mark.parametrize(
    "text",
    ["текст по-русски,\nбез знака", "ελληνικό κείμενο, σε\nγραμμές", "中文文本 有 空格 和\n行"],
)
def test_utf_16_of_other_scripts_without_a_mark(
    corpus_of: Corpus, tmp_path: Path, text: str, order: str
) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(f"utf-16-{order}"))
    assert f"text in UTF-16{order}" in refusal(corpus_of(tmp_path))
    for stray in (
        "some text a\0b\0c d\0 e, and more",
        "plain text with some\0 NULs\0 in it, by\0 chance",
        "на русском\0\0\0 тоже",
    ):
        (tmp_path / "a.txt").write_text(stray, encoding="utf-8")
        assert "UTF-16" not in refusal(corpus_of(tmp_path, max_bad_lines=0)).partition(": ")[2][:30]


@pytest.mark.parametrize("how", ["blank_line", "line", "file"])
@pytest.mark.parametrize("last", ["", "\r", "\n", "\r\r", "\r\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.ndjson"])
def test_carriage_returns_alone_are_told(
    corpus_of: Corpus, tmp_path: Path, how: str, last: str, name: str
) -> None:
    raw = ("\r\r".join(f'{{"text": "{n}"}}' for n in range(40)) + last).encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    with ranges_of(100):
        message = refusal(corpus_of(tmp_path, documents=how))
    assert f"{name}: lines that end with a carriage return alone" in message
    assert f"`tr '\\r' '\\n' < {name} > NEW`" in message


@pytest.mark.parametrize("name", ["a.json", "a.csv"])
def test_carriage_returns_alone_are_read_where_no_line_matters(
    corpus_of: Corpus, tmp_path: Path, name: str
) -> None:
    rows = (
        [f'{{"text": "{n}"}}' for n in range(40)]
        if name == "a.json"
        else ["text", *map(str, range(40))]
    )
    (tmp_path / name).write_bytes("\r".join(rows).encode())
    for size in (50, 2**24):
        with ranges_of(size):
            assert read(corpus_of(tmp_path)) == [str(n) for n in range(40)]


def test_mixed_line_ends_are_as_they_were(corpus_of: Corpus, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n\r\ntwo\n\nthr\ree\r\n\nfour\r")
    assert read(corpus_of(tmp_path)) == ["one\r", "two", "thr\ree\r", "four\r"]


def test_an_empty_file_of_every_kind_has_no_part(corpus_of: Corpus, tmp_path: Path) -> None:
    for suffix in (
        ".txt",
        ".jsonl",
        ".json",
        ".csv",
        ".tsv",
        ".parquet",
        ".arrow",
        ".json.gz",
        ".txt.bz2",
    ):
        (tmp_path / f"a{suffix}").touch()
    (tmp_path / "b.json").write_text(" \n")
    (tmp_path / "c.json").write_text("[]")
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b""))
    assert read(corpus_of(tmp_path)) == []
