"""Raw documents: code keeps its line ends and indentation, in the stream and back."""

import numpy as np
import pytest
from small_stores import VIEW, corpus, describe, train_tokenizer, write_rows

from robustly import UserError
from robustly.corpus.config import Processing
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.origins import Origins
from robustly.data_prep.prepare import DataStage
from robustly.data_prep.store import Store
from robustly.tokenizer import load_tokenizer
from stated import stated

RAW = VIEW.model_copy(update={"unit": "raw"})
CODE = [
    "def f(x):\n    if x:\n\treturn  x\n\n\n",
    "\n\n  indented before all\r\n\twindows\r\n",
    "one line",
    "   ",
    "\ufeffpass # “Ends. Here.”\u2028\n\f\n",
    *(f"class A{n}:\n" + "".join(f"    a{n}_{i} = {i}\n" for i in range(n)) for n in range(12)),
]
KEPT = [text for text in CODE if text.strip()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    config = corpus(str(write_rows(folder / "code.jsonl", CODE)))
    trained = train_tokenizer(folder / "tokenizer")
    finished = DataStage(
        stated(folder, config), RAW, folder / "data", trained, Processing(1)
    ).make()
    return folder, finished


def test_a_document_is_one_unit_and_comes_back_to_the_byte(made):
    folder, finished = made
    tokenizer = load_tokenizer(folder / "tokenizer")
    store = Store(folder / "data", "train")
    assert list(store.texts(tokenizer)) == KEPT
    assert finished.counts["train_units"] == finished.counts["train_documents"] == len(KEPT)
    assert finished.counts["empty_documents"] == 1


def test_the_stream_holds_all_of_the_text(made):
    """As the reference encodes it: nothing is stripped."""
    from tokenizers import ByteLevelBPETokenizer

    folder, _ = made
    reference = ByteLevelBPETokenizer.from_file(
        str(folder / "tokenizer" / "vocab.json"), str(folder / "tokenizer" / "merges.txt")
    )
    store = Store(folder / "data", "train")
    (shard,) = store.shards
    expected = [
        token
        for text in KEPT
        for token in [*reference.encode(text).ids, store.eos_id, store.eos_id]
    ]
    assert store.tokens(shard).tolist() == expected


def test_blocks_and_origins_cover_every_line_end(made):
    folder, _ = made
    tokenizer = load_tokenizer(folder / "tokenizer")
    blocks = Blocks(folder / "data", "train", 16, "full_sentences")
    ids, lengths = blocks.gather(np.arange(len(blocks)))
    text = "".join(
        tokenizer.decode(row[1:length]) for row, length in zip(ids, lengths, strict=True)
    )
    assert text.replace("</s>", "") == "".join(KEPT)
    origins = Origins(blocks)
    assert {
        piece.document for block in range(len(blocks)) for piece in origins.pieces(block, block)
    } == set(range(len(KEPT)))


def test_a_description_says_so(made):
    folder, _ = made
    assert "each a unit as it is" in describe(folder / "data").summary


@pytest.mark.parametrize("format", ["segment_pair", "sentence_pair"])
def test_pairs_are_refused(format):
    with pytest.raises(ValueError, match=rf"unit = raw with data.format = {format}.*expected full"):
        type(RAW)(**{**RAW.model_dump(), "format": format})


@pytest.mark.parametrize(("documents", "told"), [("blank_line", True), ("file", False)])
def test_line_ends_that_are_lost_before_are_told(made, tmp_path, documents, told, capfd):
    folder, _ = made
    path = tmp_path / "code.txt"
    path.write_text("".join(text.replace("\ufeff", "") for text in KEPT))
    config = corpus(str(path), documents=documents)
    DataStage(config, RAW, tmp_path / "data", folder / "tokenizer", Processing(1)).make()
    said = " ".join(capfd.readouterr().err.split())
    assert ("cuts" in said and "corpus.documents=file keeps them" in said) is told


def test_a_store_of_lines_is_not_one_of_raw_documents(made, tmp_path):
    folder, _ = made
    config = corpus(str(folder / "code.jsonl"))
    lines = RAW.model_copy(update={"unit": "line"})
    with pytest.raises(UserError, match=r"data.unit: raw there, line now"):
        DataStage(
            stated(folder, config), lines, folder / "data", folder / "tokenizer", Processing(1)
        ).make()
