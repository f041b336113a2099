"""Blanks are real sentences of held-out documents with one word missing."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from robustly.data_prep.store import ShardWriter, Store, write_store
from robustly.publish.config import PublishConfig
from robustly.publish.examples import WORDS, held_out_blanks
from robustly.tokenizer import load_tokenizer


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_the_answer_in_the_blank_gives_a_sentence_of_a_held_out_document(prepared: Path) -> None:
    encoder = load_tokenizer(prepared / "tokenizer")
    validation, train = (
        squeezed(" ".join(Store(prepared / "data", split).texts(encoder)))
        for split in ("validation", "train")
    )
    # all that there are
    blanks = held_out_blanks(Store(prepared / "data", "validation"), encoder, 128, 10**6)
    assert len(blanks) > 100

    for text, answer in blanks:
        assert text.count("<mask>") == 1
        assert answer and " " not in answer and len(answer) >= 3
        sentence = text.replace("<mask>", answer)
        assert sentence in validation and sentence not in train
        assert len(sentence.split()) in WORDS
        ids = encoder.encode_documents([" " + answer])[0]
        assert len(ids) == 1, "a blank stands for one token"
        assert len(encoder.encode_documents([sentence])[0]) > 5


def test_the_blank_of_a_raw_document_is_in_one_of_its_lines(prepared: Path, tmp_path: Path) -> None:
    encoder = load_tokenizer(prepared / "tokenizer")
    lines = [f"    {n} went to the house and the garden with the other" for n in range(100)]
    (ids,) = encoder.encode_documents(["\n".join(lines)])
    ids = np.append(ids, encoder.dtype.type(encoder.eos_id))
    with ShardWriter(tmp_path, "validation-00000", 0, encoder.eos_id, encoder.dtype) as writer:
        writer.append(ids, np.array([len(ids)]), ["", ""])

    assert writer.shard
    splits: dict = {"train": [], "validation": [writer.shard]}
    write_store(tmp_path, tmp_path, "0" * 64, encoder, ["made up"], splits)
    ((text, answer),) = held_out_blanks(Store(tmp_path, "validation"), encoder, 128)
    assert text.replace("<mask>", str(answer)) in [line.strip() for line in lines[40:60]]


def test_the_first_sentence_of_a_document_begins_after_the_mark_that_ends_the_one_before(
    prepared: Path, tmp_path: Path
) -> None:
    encoder = load_tokenizer(prepared / "tokenizer")
    sentences = [
        f"The man {number} went to the house and the garden with the other." for number in range(30)
    ]
    with ShardWriter(tmp_path, "validation-00000", 0, encoder.eos_id, encoder.dtype) as writer:
        for sentence in sentences:
            writer.append(*encoder.encode_lines([sentence]), ["", ""])

    assert writer.shard
    write_store(
        tmp_path,
        tmp_path,
        "0" * 64,
        encoder,
        ["made up"],
        {"train": [], "validation": [writer.shard]},
    )
    blanks = held_out_blanks(Store(tmp_path, "validation"), encoder, 128, 100)
    assert sorted(text.replace("<mask>", str(answer)) for text, answer in blanks) == sorted(
        sentences
    )


def test_the_same_blanks_each_time_and_from_all_over(prepared: Path) -> None:
    encoder = load_tokenizer(prepared / "tokenizer")
    store = Store(prepared / "data", "validation")
    blanks = held_out_blanks(store, encoder, 128)
    assert blanks == held_out_blanks(store, encoder, 128) and len(blanks) == 5
    text = squeezed(" ".join(store.texts(encoder)))
    places = [text.index(blank.text.partition("<mask>")[0]) for blank in blanks]
    assert max(places) - min(places) > len(text) / 4


def test_blanks_fit_the_model(prepared: Path) -> None:
    encoder = load_tokenizer(prepared / "tokenizer")
    store = Store(prepared / "data", "validation")
    short, any_length = (
        held_out_blanks(store, encoder, 24, 40),
        held_out_blanks(store, encoder, 128, 40),
    )
    lengths = [
        [
            len(encoder.encode_documents([blank.text.replace("<mask>", "the")])[0]) + 2
            for blank in blanks
        ]
        for blanks in (short, any_length)
    ]
    assert short and max(lengths[0]) <= 24 < max(lengths[1])


def test_an_empty_split_has_none(prepared: Path, tmp_path: Path) -> None:
    import json
    import shutil

    shutil.copytree(prepared / "data", tmp_path / "data")
    facts = json.loads((tmp_path / "data" / "store.json").read_text())
    facts["splits"]["validation"] = []
    (tmp_path / "data" / "store.json").write_text(json.dumps(facts))
    assert (
        held_out_blanks(
            Store(tmp_path / "data", "validation"), load_tokenizer(prepared / "tokenizer"), 128
        )
        == []
    )


@pytest.mark.parametrize("text", ["no blank", "two <mask> of <mask> them"])
def test_own_examples_have_one_blank_each(text: str) -> None:
    with pytest.raises(ValidationError, match="expected <mask> once"):
        PublishConfig(examples=["The <mask> was here.", text])
