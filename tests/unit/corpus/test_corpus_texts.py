"""Texts that options name: under their files' names, or under what their rows hold at a key."""

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from robustly import UserError
from robustly.corpus import texts
from robustly.corpus.texts import NamedTexts, by_file, by_key, corpus_from_options

ROWS = [
    {"lang": "fi", "source": "a", "text": "Oma tupa, oma lupa.", "year": 1},
    {"lang": "en", "source": "b", "text": "My home is my castle.", "year": 2},
    {"lang": "fi", "source": "b", "text": "Ei oppi ojaan kaada.", "year": None},
]
EXPECTED = [(row["lang"], row["text"]) for row in ROWS]


def lines(rows: Iterable[Any]) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


def files(*paths: Path | str, documents: str = "blank_line", text_key: str = "text") -> NamedTexts:
    return by_file(corpus_from_options([str(path) for path in paths], documents, text_key))


def keys(path: Path, key: str) -> NamedTexts:
    return by_key(corpus_from_options([str(path)], "blank_line", "text"), key)


def test_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.txt").write_text("One.\n\nTwo\nlines.\n")
    (tmp_path / "b.jsonl").write_text(lines(ROWS))
    monkeypatch.chdir(tmp_path)
    found = files("b.jsonl", "a", "b.jsonl")
    assert found.by == "file" and not found.by_name
    assert list(found.named) == [
        *(("b.jsonl", row["text"]) for row in ROWS), ("one.txt", "One."), ("one.txt", "Two\nlines."),
    ]  # fmt: skip
    assert [text for _, text in files("a", documents="line").named] == ["One.", "Two", "lines."]
    (tmp_path / "one.txt").write_text("Three.")
    assert dict(files("a", "one.txt").named).keys() == {
        str(tmp_path / "a" / "one.txt"),
        str(tmp_path / "one.txt"),
    }


def test_a_folder_may_hold_files_without_text(tmp_path: Path) -> None:
    for name, text in (("a.txt", ""), ("b.txt", " \n\n"), ("c.txt", "One.\n")):
        (tmp_path / name).write_text(text)

    assert list(files(tmp_path).named) == [("c.txt", "One.")]

    (tmp_path / "c.txt").unlink()
    assert refusal(lambda: files(tmp_path)) == f"{tmp_path}: no document in it; expected text"

    (tmp_path / "b.txt").unlink()
    assert refusal(lambda: files(tmp_path)) == f"{tmp_path}: empty; expected text"


def packed(folder: Path) -> Path:
    with gzip.open(folder / "rows.jsonl.gz", "wt") as out:
        out.write(lines(ROWS))
    return folder / "rows.jsonl.gz"


def table(folder: Path) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    return folder / "rows.parquet"


@pytest.mark.parametrize("make", [packed, table])
def test_by_key(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    found = keys(path, "lang")
    assert found.by == "lang" and found.by_name and list(found.named) == EXPECTED
    assert [name for name, _ in keys(path, "source").named] == ["a", "b", "b"]


def refusal(named: Callable[[], NamedTexts]) -> str:
    with pytest.raises(UserError) as fault:
        list(named().named)
    assert "corpus." not in str(fault.value) and "max-bad" not in str(
        fault.value
    )  # neither config nor option has them
    return str(fault.value)


def test_texts_at_fault(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    assert "no file there" in refusal(lambda: files(path))
    path.write_text("")
    assert refusal(lambda: files(path)) == f"{path}: empty; expected text"
    path.write_text(" \n\n")
    assert refusal(lambda: files(path)).startswith(f"{path}: no document in it")
    assert "--documents page: expected one of" in refusal(lambda: files(path, documents="page"))
    odd = tmp_path / "text.pdf"
    odd.write_text("x")
    assert "unknown kind of file" in refusal(lambda: files(odd))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(lines(ROWS) + '{"text": \n')
    message = refusal(lambda: files(rows))
    assert message.startswith(
        f"{rows}: line 4 (byte {len(lines(ROWS))} of the text): not JSON: Expecting value"
    )
    assert message.endswith("of the line; mend the row or leave it out")
    assert "no key 'body' (--text-key)" in refusal(lambda: files(rows, text_key="body"))


def test_keys_at_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.txt.jsonl"
    rows.write_text(lines(ROWS))
    message = refusal(lambda: keys(rows, "dialect"))
    assert (
        message.startswith(f"{rows}: line 1")
        and "no key 'dialect' (--by); the keys here: 'lang'" in message
    )
    assert "expected a string at 'year' (--by), found int" in refusal(lambda: keys(rows, "year"))
    monkeypatch.setattr(texts, "MAX_VALUES", 2)
    assert "more than 2 values" in refusal(lambda: keys(rows, "text"))
    assert list(keys(rows, "lang").named) == EXPECTED
    rows.write_text(lines([*ROWS, {"lang": "sv", "text": None}]))
    assert "expected a string at 'text' (--text-key), found null" in refusal(
        lambda: keys(rows, "lang")
    )

    for name in ("text.txt", "text.txt.gz"):
        (tmp_path / name).write_text("x")
        assert f"{tmp_path / name}: has no keys" in refusal(
            lambda name=name: keys(tmp_path / name, "lang")
        )  # type: ignore[misc]
