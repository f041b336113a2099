"""A published folder is proven against what was trained, and what fails or is left out is said by
name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_checkpoints import model

from robustly.data_prep.store import ShardWriter, Store, write_store
from robustly.publish import proof as proving
from robustly.publish.proof import prove
from robustly.tokenizer.added_tokens import AddedToken
from robustly.tokenizer.merges import train_merges
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary
from robustly.tokenizer.words import split_words
from tests import warm

pytestmark = pytest.mark.processes
PACKING = {"block_length": 32, "format": "full_sentences"}
DOCUMENTS = [
    ["The [ENT] of one.", "Two<url>, [ENT][ENT] three!"],
    ["A line that holds <s> or <mask>."],
    ["cafe\u0301 of  two  spaces", "[ENT]", "'s [ENT]'s"],
    ["\u0301<url>\u0301 begins with a mark"],
    ["Short.", "x1" * 300],
    ["1x" * 300],
]


@pytest.fixture(autouse=True)
def started_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh processes are forked from one that has imported transformers."""
    monkeypatch.setattr("sys.executable", str(warm.commands() / "python"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with data/ and published/, its tokenizer and its model."""
    root = tmp_path_factory.mktemp("made")
    text = " ".join(unit for units in DOCUMENTS for unit in units) * 20
    merges = train_merges(((word, 1) for word in split_words(text)), 60, 1).merges
    vocabulary = lay_out(merges, ["[ENT]", "<url>"], nfc=True)
    tokenizer, published = Tokenizer(vocabulary), root / "published"
    network = model(tokenizer.vocab_size).eval()
    network.save_pretrained(published)
    save_vocabulary(vocabulary, published)

    (root / "data").mkdir()
    shards: dict[Any, Any] = {"train": [], "validation": []}
    for split, times in (("train", 4), ("validation", 1)):
        name = f"{split}-00000"
        with ShardWriter(root / "data", name, 0, tokenizer.eos_id, tokenizer.dtype) as writer:
            for units in DOCUMENTS * times:
                writer.append(*tokenizer.encode_lines(units), [""] * (len(units) + 1))

        shards[split] = [writer.shard]

    write_store(root / "data", root / "data", "0" * 64, tokenizer, ["text"], shards)
    return root, tokenizer, network


def test_the_units_of_a_document_are_in_the_store_by_its_place(made: Any) -> None:
    root, tokenizer, _ = made
    store = Store(root / "data", "train")
    for place in (0, 1, 7, store.documents - 1):
        found = [tokenizer.decode(unit) for unit in store.units_of(place)]
        units = DOCUMENTS[place % len(DOCUMENTS)]
        assert found == [tokenizer.added_tokens.exact(unit) for unit in units]


def test_every_id_of_the_store_is_proven_but_of_what_is_named(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "TOKENS", 200)
    root, tokenizer, network = made
    text = "The <mask> [ENT]."
    proof = prove(root / "published", network, tokenizer, root / "data", PACKING, [text])
    assert proof.faults == [] and len(proof.filled[text]) == 5
    assert proof.counts["documents_with_equal_ids"] == 4
    assert proof.counts["max_logit_difference"] <= 1e-5
    words, huge, named, long = proof.limits
    assert words.startswith("words given one by one: transformers does not heed add_prefix_space")
    assert huge.startswith("1 of 6 documents are left out: their first unit has more than 200")
    assert named.startswith("1 of 6 documents are left out: they hold the names of <s>")
    assert long == "of 1 of 6 documents, which are long, the first 200 tokens are compared"


def test_text_that_ids_do_not_tell_is_found_or_left_out() -> None:
    """White space that tokens take keeps names apart; one name's ids may hide another's letters."""
    added = (
        AddedToken("\u65e5", lstrip=True),
        AddedToken("x\u65e5", special=True),
        AddedToken("one", single_word=True),
        AddedToken("<\u1ed9>", special=True),
    )
    base = lay_out([])
    names = {token.content: len(base.ids) + place for place, token in enumerate(added)}
    tokenizer = Tokenizer(replace(base, ids={**base.ids, **names}, added=added, nfc=True))

    def found(text: str) -> str | None:
        return proving._text(tokenizer.encode_documents([text])[0].tolist(), tokenizer)

    assert found("two \u65e5, and <\u1ed9>") == "two\u65e5, and <\u1ed9>"
    assert found("x \t\u65e5") == "x \u65e5"  # without the space there is x\u65e5
    assert found("one \u65e5") == "one \u65e5"  # nor would there be a single word
    assert found("two \u65e5x \u65e5") == "two \u65e5x \u65e5"
    assert found("<o\u0323\u0302>") is None  # no name, and one once it is in NFC
    assert found("ones\u65e5 x \u65e5, one\u65e5") is None  # here with a space, and there without


def test_each_fault_is_named(made: Any, tmp_path: Path) -> None:
    """A tokenizer that reads one name less, of a model that does not load."""
    root, tokenizer, network = made
    folder = tmp_path / "published"
    folder.mkdir()
    for path in (root / "published").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())

    (folder / "model.safetensors").write_bytes(b"no weights")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        stored = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(stored.replace("[ENT]", "[TNE]"), encoding="utf-8")

    proof = prove(folder, network, tokenizer, root / "data", PACKING, ["A <mask>."])
    load, *probes, documents = proof.faults
    assert load.startswith("the model does not load or run: ")
    assert len(probes) == 2 and all(probe.startswith(("'one [ENT]", "'[ENT]")) for probe in probes)
    assert documents.startswith("the ids of 2 of 5 documents are not those that were trained on: ")
    assert "[ENT]" in documents and str(tokenizer.vocabulary.ids["[ENT]"]) in documents
    assert proof.limits[-1].startswith("no blanks are filled: ")
    json.dumps(proof.counts)


def test_a_process_that_dies_is_a_fault(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root, tokenizer, network = made
    monkeypatch.setattr(proving, "_RELOAD", "import os; os.kill(os.getpid(), 9)")
    proof = prove(root / "published", network, tokenizer, root / "data", PACKING)
    assert proof.faults == ["the fresh process ended with signal 9: it said nothing"]


def test_without_held_out_documents_those_of_the_training_are_compared(
    made: Any, tmp_path: Path
) -> None:
    root, tokenizer, _ = made
    store = json.loads((root / "data" / "store.json").read_text())
    without = tmp_path
    for path in (root / "data").glob("*.npy"):
        (without / path.name).write_bytes(path.read_bytes())

    store["splits"]["validation"] = []
    (without / "store.json").write_text(json.dumps(store))
    documents, limits = proving._documents(without, tokenizer)
    assert len(documents) == 20 and limits[0].startswith("no documents are held out")
    assert np.sum([len(document.ids) for document in documents]) == 4 * 9
