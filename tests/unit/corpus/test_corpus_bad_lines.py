"""Bad rows: kinds, places, and files of `--text`."""

import gzip
import json
import random
from pathlib import Path
from unittest import mock

import pytest

from robustly import UserError
from robustly.corpus import reading
from robustly.corpus.bad_lines import BadLine, listed, told
from robustly.corpus.documents import documents
from robustly.corpus.partitions import partitions
from robustly.corpus.texts import corpus_from_options, read_texts


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("not JSON: Expecting value, at character 1 of the line", "not JSON"),
        ("no key 'text' (corpus.text_key); the keys here: 'a'", "no key 'text'"),
        ("expected a JSON object, found list", "expected a JSON object"),
        ("nothing there", "nothing there"),
        ("no key 'dc:text' (corpus.text_key); the keys here: ", "no key 'dc:text'"),
    ],
)
def test_the_kind_of_a_reason_is_what_it_shares_with_others(reason: str, kind: str) -> None:
    assert BadLine("a.jsonl", 0, reason).kind == kind


def read(corpus) -> list[str]:
    return [text for part in partitions(corpus) for text in documents(part, corpus, [])]


def test_a_reason_is_not_as_long_as_its_row(corpus_of, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({f"key{n}": n for n in range(10_000)}))
    corpus, found = corpus_of(tmp_path / "a.jsonl"), []
    assert [list(documents(part, corpus, found)) for part in partitions(corpus)] == [[]]
    assert len(found[0].reason) == 303 and found[0].reason.endswith("...")


def test_a_file_is_read_once_for_all_its_places(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("x\n" * 1000)

    lines = [
        BadLine(str(tmp_path / f"{name}.jsonl"), 2 * number, "not JSON: x")
        for number in (0, 7, 999)
        for name in "ab"
    ]
    with mock.patch.object(reading, "opened", wraps=reading.opened) as opening:
        found = listed(lines)

    assert opening.call_count == 2
    assert [line.place for line in found[::2]] == [line.place for line in found[1::2]] == [
        "line 1 (byte 0 of the text)", "line 8 (byte 14 of the text)",
        "line 1000 (byte 1998 of the text)",
    ]  # fmt: skip
    assert told(found).startswith(". 6 rows gave no text, the first: ")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
@pytest.mark.parametrize("how", ["line", "blank_line", "file"])
def test_a_binary_file_is_an_error_as_a_whole(
    corpus_of, tmp_path: Path, name: str, how: str
) -> None:
    cyrillic = "Это история о словах.\n".encode("cp1251") * 100
    noise = random.Random(0).randbytes(20_000)
    for raw in (noise, cyrillic, b"\x89PNG\r\n\x1a\n" + noise):
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
        with pytest.raises(UserError, match="binary data, or text in another encoding than UTF-8"):
            read(corpus_of(tmp_path / name, documents=how))


def test_a_row_of_binary_data_is_a_bad_row(corpus_of, tmp_path: Path) -> None:
    good = b'{"text": "one"}\n'
    tail = b"\0" * 4096  # as a crash leaves it
    (tmp_path / "a.jsonl").write_bytes(good + b"\xff" * 5000 + b"\n" + good * 3 + tail)
    assert read(corpus_of(tmp_path / "a.jsonl")) == ["one"] * 4
    (tmp_path / "b.txt").write_bytes("Une forêt.\n".encode("latin-1") * 50)
    assert read(corpus_of(tmp_path / "b.txt")) == []


@pytest.mark.parametrize(
    "text", ["Это история о словах.\n", "これは言葉の話です。\n", "🙂" * 9 + "\n", "ก" * 70_000]
)
def test_utf8_of_any_script_is_no_binary_data(corpus_of, tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text * 100, encoding="utf-8")
    corpus = corpus_of(tmp_path / "a.txt", documents="file")
    assert read(corpus) == [text * 100]


def test_texts_of_options_skip_and_refuse_the_same_rows(tmp_path: Path) -> None:
    options = {
        "corpus.sources": "--text",
        "corpus.text_key": "--text-key",
        "corpus.max_bad_lines": "--max-bad-lines",
    }
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "one"}\n{"text": "na\xefve"}\n{"text": "\\ud800"}\n')

    def texts(max_bad_lines: int) -> list[str]:
        corpus = corpus_from_options([str(file)], "line", "text", max_bad_lines)
        return [one.text for one in read_texts(corpus, "reading", options)]

    assert texts(2) == ["one"]
    with pytest.raises(UserError, match="2 broken rows, more than --max-bad-lines = 1"):
        texts(1)
    with pytest.raises(UserError, match="1 broken row, more than --max-bad-lines = 0"):
        texts(0)

    file.write_bytes(b'{"content": "x"}\n')
    with pytest.raises(
        UserError, match=r"no document in it; .* 1 row gave no text, the first: .*'content'"
    ):
        texts(1)
