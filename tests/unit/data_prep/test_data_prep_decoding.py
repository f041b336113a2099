"""Documents of a store written back as JSON lines."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from small_stores import corpus, train_tokenizer, write_rows

from robustly import UserError
from robustly.corpus.config import Processing
from robustly.data_prep import decoding
from robustly.data_prep.config import DataConfig
from robustly.data_prep.decoding import decode_documents
from robustly.data_prep.prepare import DataStage
from robustly.data_prep.store import Store, split_of
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.tokenizer import Tokenizer
from stated import stated

SENTENCES = DataConfig(unit="sentence", language="en", block_length=16, format="full_sentences")
ODD = [
    "  two spaces before, a tab\tamid, \r\n a line feed after\n",
    "\n\n\u00a0No-break.\u2003Em space. \u3000 \n \x0b\x0c next\u2028line\u0085.",
    "Crêpes für 3,50 €: 日本語 🙂👩‍👩‍👧 e\u0301 \ufeff \ufffd.",
    "<s> the text says </s> and <mask> </s></s>",
    '"quoted" \\ back\\u0041slash {"text": "inner"}',
    "x",
    "x",  # twice
]
PLAIN = [f"The inner thing number {n}. There it is{' again' * (n % 7)}." for n in range(60)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with tokenizer/ and data/ of two sources."""
    root = tmp_path_factory.mktemp("decoded")
    train_tokenizer(root / "tokenizer")
    write_rows(root / "odd.jsonl", [*ODD, " \n\t "])  # the last is dropped
    write_rows(root / "plain.jsonl", [*PLAIN, ODD[0]])
    sources = corpus("odd.jsonl", "plain.jsonl", validation=0.3)
    DataStage(
        stated(root, sources), SENTENCES, root / "data", root / "tokenizer", Processing(1)
    ).make()
    return root


@pytest.fixture
def tokenizer(root: Path) -> Tokenizer:
    return load_tokenizer(root / "tokenizer")


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz"])
def test_every_document_to_the_byte(
    root: Path, tokenizer: Tokenizer, tmp_path: Path, name: str
) -> None:
    count = decode_documents(root / "data", tokenizer, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    text = gzip.decompress(data).decode() if name.endswith(".gz") else data.decode()
    assert text.endswith("\n")
    found = [json.loads(line) for line in text[:-1].split("\n")]
    assert all(list(row) == ["text", "source", "split"] for row in found)
    expected = Counter(
        (text, source, split_of(text, 0.3))
        for source, texts in (("odd.jsonl", ODD), ("plain.jsonl", [*PLAIN, ODD[0]]))
        for text in texts
    )
    assert Counter((row["text"], row["source"], row["split"]) for row in found) == expected
    assert {split for _, _, split in expected} == {"train", "validation"} and count == len(
        found
    ) == 68
    in_order = [
        text
        for split in ("train", "validation")
        for text in Store(root / "data", split).texts(tokenizer)
    ]  # type: ignore[arg-type]
    assert [row["text"] for row in found] == in_order
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_same_documents_give_the_same_bytes(
    root: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        decode_documents(root / "data", tokenizer, tmp_path / name)

    data = (tmp_path / "one.jsonl.gz").read_bytes()
    assert data == (tmp_path / "two.jsonl.gz").read_bytes()
    assert data[3:8] == bytes(5)  # gzip's header: no name (flags), no time


def test_what_was_written_is_never_lost(root: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    there = tmp_path / "there.jsonl"
    there.write_text("mine")
    for place, message in (
        (there, r"there\.jsonl: is there already"),
        (tmp_path / "texts.txt", r"ends in \.jsonl or \.jsonl\.gz"),
        (tmp_path / "nowhere" / "a.jsonl", "no folder .*nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            decode_documents(root / "data", tokenizer, place)

    assert there.read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == [
        "there.jsonl"
    ]


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz"])
def test_a_file_is_there_when_all_of_it_is(
    root: Path, tokenizer: Tokenizer, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(Store):
        def named_texts(self, tokenizer):
            yield "odd.jsonl", "the first"
            raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "Store", Cut)
    with pytest.raises(KeyboardInterrupt):
        decode_documents(root / "data", tokenizer, tmp_path / name)

    assert not list(tmp_path.iterdir())


def test_another_tokenizer_decodes_nothing(root: Path, tmp_path: Path) -> None:
    other = load_tokenizer(train_tokenizer(tmp_path / "tokenizer", ["a b"]))
    with pytest.raises(UserError, match="another tokenizer"):
        decode_documents(root / "data", other, tmp_path / "all.jsonl")
    assert not (tmp_path / "all.jsonl").exists()
