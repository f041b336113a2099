"""What a data folder says of itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_stores import NumberedStore, corpus, train_tokenizer, write_rows

import tokenizer
from data_prep.blocks import Blocks
from data_prep.config import Data
from data_prep.description import describe, document_lengths
from data_prep.prepare import prepare
from data_prep.store import Store
from robustly import UserError
from tokenizer.config import Processing

TEXTS = [f"The inner thing number {n}. There it is{' again' * (n % 7)}." for n in range(60)]
VIEW = Data(unit="sentence", language="en", block_length=32, format="full_sentences")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with tokenizer/ and data/ of two sources."""
    root = tmp_path_factory.mktemp("described")
    train_tokenizer(root / "tokenizer")
    for name, texts in (("first", TEXTS[:40]), ("second", TEXTS[40:])):
        write_rows(root / f"{name}.jsonl", texts)
    sources = corpus("first.jsonl", "second.jsonl", validation=0.3)
    prepare(sources, VIEW, root / "data", root / "tokenizer", root, Processing(1))
    return root


def rows(folder: Path) -> dict[str, Any]:
    return {listing.title: listing.rows for listing in describe(folder).examples}


def test_a_data_folder(root: Path) -> None:
    found = describe(root / "data")
    assert json.loads(json.dumps(found.json(), allow_nan=False))["kind"] == "data"
    encoder = tokenizer.load(root / "tokenizer")
    assert found.figures["documents"] == 60 and found.figures["units"] == 120
    listings = rows(root / "data")
    by_place = listings["splits and sources"]
    assert [(row["split"], row["source"]) for row in by_place] == [
        (split, f"{source}.jsonl") for split in ("train", "validation") for source in ("first", "second")
    ]
    assert sum(row["documents"] for row in by_place if row["source"] == "first.jsonl") == 40
    assert sum(row["tokens"] for row in by_place) == found.figures["tokens"]
    (train_blocks, validation_blocks) = listings["blocks"]
    view = Blocks(root / "data", "train", 32, "full_sentences")
    assert (train_blocks["blocks"], train_blocks["length"]) == (len(view), 32)
    assert train_blocks["padding"] == pytest.approx(1 - view.lengths.sum() / (32 * len(view)), abs=1e-4)
    assert validation_blocks["split"] == "validation"
    for row, split in zip(listings["a block of each split"], ("train", "validation"), strict=True):
        assert row["split"] == split
        text = row["text"]
        assert text.startswith("<s>") and text.endswith("</s>") and text.count("</s>") > 1
        ids, lengths = Blocks(root / "data", split, 32, "full_sentences").gather(np.array([row["block"]]))  # type: ignore[arg-type]
        assert text == encoder.decode(ids[0, : lengths[0]])


def test_lengths_of_documents_are_those_of_their_tokens(root: Path, tmp_path: Path) -> None:
    encoder = tokenizer.load(root / "tokenizer")
    sizes = []
    for text in Store(root / "data", "train").texts(encoder):
        first, second = text.split(". ")
        sizes.append(sum(len(ids) for ids in encoder.encode_documents([first + ".", second])))
    assert document_lengths(Store(root / "data", "train")).tolist() == sizes
    quantiles = rows(root / "data")["tokens per document"][0]
    assert quantiles["mean"] == pytest.approx(np.mean(sizes), abs=0.05) and quantiles["longest"] == max(sizes)
    assert quantiles["50%"] == int(np.median(sizes))
    NumberedStore(tmp_path, [[[3, 1], [7]], [[2, 2, 2]]])
    assert document_lengths(Store(tmp_path, "train")).tolist() == [4, 7, 6]
    assert document_lengths(Store(tmp_path, "validation")).size == 0


def test_without_its_tokenizer_no_block_is_shown_as_text(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "data", tmp_path / "data")
    found = describe(tmp_path / "data")
    assert "needs the tokenizer" in found.notes[0]
    assert not {listing.title: listing.rows for listing in found.examples}["a block of each split"]
    train_tokenizer(tmp_path / "tokenizer", ["a b"])
    assert "another tokenizer" in describe(tmp_path / "data").notes[0]


def test_a_damaged_folder(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "data", tmp_path / "data")
    (shard,) = (tmp_path / "data").glob("train-00000.tokens.npy")
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train-00000\.tokens\.npy: .* bytes, expected"):
        describe(tmp_path / "data")
    (tmp_path / "data" / "manifest.json").unlink()
    assert "not finished" in describe(tmp_path / "data").summary
