"""What a tokenizer's folder says of itself."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from robustly import UserError
from robustly.manifest import Stage
from tokenizer.description import SAMPLES, describe
from tokenizer.vocabulary import lay_out, save


def test_a_trained_tokenizer(trained: Path) -> None:
    found = describe(trained)
    assert json.loads(json.dumps(found.json(), allow_nan=False))["kind"] == "tokenizer"
    figures = found.figures
    counts = json.loads((trained / "manifest.json").read_text())["counts"]
    assert (figures["entries"], figures["merges"]) == (1000, 739)
    assert figures["bytes_per_token"] == counts["bytes_per_token"] and figures["single_byte_share"] == 0.256
    listings = {listing.title: listing.rows for listing in found.examples}
    assert [(row["token"], row["id"]) for row in listings["special tokens"]] == [
        ("<s>", 0), ("<pad>", 1), ("</s>", 2), ("<unk>", 3), ("<mask>", 999),
    ]  # fmt: skip
    lines = (trained / "merges.txt").read_text().splitlines()[1:]
    assert [f"{row['left']} {row['right']}" for row in listings["first merges"]] == lines[:8]
    assert [f"{row['left']} {row['right']}" for row in listings["last merges"]] == lines[-8:]
    vocabulary = json.loads((trained / "vocab.json").read_text())
    # a symbol stands for a byte
    assert listings["longest tokens"][0]["bytes"] == max(len(token) for token in vocabulary if token[0] != "<")
    reference = Tokenizer.from_file(str(trained / "tokenizer.json"))
    for text, row in zip(SAMPLES, listings["how sentences are cut"], strict=True):
        ids = reference.encode(text, add_special_tokens=False).ids
        assert row["tokens"] == len(ids) == row["cut"].count("|") + 1
    assert listings["how sentences are cut"][0]["cut"].replace("|", "") == SAMPLES[0]


def test_a_vocabulary_without_merges(tmp_path: Path) -> None:
    Stage(tmp_path, "tokenizer", {}, {}).finish(save(lay_out([]), tmp_path), {})
    listings = {listing.title: listing.rows for listing in describe(tmp_path).examples}
    assert not listings["first merges"] and not listings["last merges"]
    assert all(row["single_bytes"] == 1 for row in listings["how sentences are cut"])


def test_begun_and_damaged_folders(tmp_path: Path) -> None:
    made = Stage(tmp_path, "tokenizer", {}, {})
    with made.begin():
        assert "not finished" in describe(tmp_path).summary
    made.finish(save(lay_out([]), tmp_path), {})
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(UserError, match=r"merges\.txt: 0 bytes, expected"):
        describe(tmp_path)
