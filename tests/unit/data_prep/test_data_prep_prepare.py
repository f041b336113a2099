"""The stage: the same bytes for any number of workers and after any kill, and a word for every bad
input."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_stores import VIEW, corpus, files_of, train_tokenizer, write_rows
from transformers import AutoTokenizer

from robustly import UserError, manifest
from robustly.corpus import partitions as partitioning
from robustly.corpus.config import Processing
from robustly.corpus.documents import documents
from robustly.corpus.partitions import partitions
from robustly.data_prep import prepare as module
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.prepare import DataStage
from robustly.data_prep.sentences import units
from robustly.data_prep.store import SPLITS, Store
from robustly.inspection.describe import describe_folder
from robustly.tokenizer import load_tokenizer
from stated import stated

SPACES = ("", " ", "  ", "\n", "\u3000", " \u00a0", "\t ")
BUNDLED = Path(__file__).parents[3] / "data_prep/corpora/prose_cc0.txt"
PROSE = [
    f"This is story {n}. It has {n} words (or so). “Few!” said he.\nThe end of it.\n"
    for n in range(200)
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("stage") / "tokenizer")


def texts_of(folder, trained, split):
    return list(Store(folder, split).texts(load_tokenizer(trained)))


def test_the_bundled_corpus_comes_back_split_by_split(tmp_path, trained):
    config = corpus(str(BUNDLED), validation=0.1)
    made = DataStage(
        stated(tmp_path, config),
        VIEW.model_copy(update={"block_length": 128}),
        tmp_path / "data",
        trained,
        Processing(1),
    ).make()

    originals = [
        text
        for part in partitions(stated(tmp_path, config))
        for text in documents(part, config, [])
    ]
    train, validation = (texts_of(tmp_path / "data", trained, split) for split in SPLITS)
    held_out = set(validation)
    assert train == [text for text in originals if text not in held_out]
    assert validation == [text for text in originals if text in held_out]
    assert 10 < len(validation) < 60

    counts = made.counts
    assert counts["train_documents"] == len(train) and counts["validation_documents"] == len(
        validation
    )
    assert counts["bytes"] == sum(len(text.encode()) for text in originals)
    stores = [Store(tmp_path / "data", split) for split in SPLITS]
    assert (
        counts["train_units"] == stores[0].units
        and counts["validation_tokens"] == stores[1].text_tokens
    )
    assert counts["tokens_per_byte"] == pytest.approx(
        sum(store.text_tokens for store in stores) / counts["bytes"], abs=1e-4
    )
    train_blocks = Blocks(tmp_path / "data", "train", 128, "full_sentences")
    assert counts["train_blocks"] == len(train_blocks) > 1000
    ids, _ = train_blocks.gather(np.arange(len(train_blocks)))
    assert counts["padding"] == pytest.approx((ids == 1).mean(), abs=1e-4)
    assert counts["long_units"] > 0
    assert sorted(made.outputs) == sorted(files_of(tmp_path / "data"))
    assert {path.name for path in (tmp_path / "data").iterdir() if path.is_dir()} == {"views"}


@settings(max_examples=25)
@given(
    texts=st.lists(
        st.text(st.sampled_from("aé😀 .!?“”\n\t\u00a0"), max_size=30)
        | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
        | st.just("word " * 40),
        max_size=12,
    ),
    unit=st.sampled_from(["line", "sentence"]),
    validation=st.sampled_from([0.0, 0.5]),
)
def test_any_corpus_comes_back(tmp_path_factory, trained, texts, unit, validation):
    folder = tmp_path_factory.mktemp("any")
    texts = [*texts, PROSE[0], PROSE[2]]  # one for either split
    write_rows(folder / "a.jsonl", texts)
    data = VIEW.model_copy(update={"unit": unit})
    made = DataStage(
        stated(folder, corpus("a.jsonl", validation=validation)),
        data,
        folder / "data",
        trained,
        Processing(1),
    ).make()
    kept = [text for text in texts if text.strip()]
    assert made.counts["empty_documents"] == len(texts) - len(kept)
    back = [texts_of(folder / "data", trained, split) for split in SPLITS]
    assert sorted(kept) == sorted(back[0] + back[1])
    assert bool(back[1]) == bool(validation)


# -------------------------------------------------------------------------------- workers and kills


@pytest.fixture
def small_partitions(monkeypatch):
    """Each of `several_files` is a partition."""
    monkeypatch.setattr(partitioning, "PARTITION_BYTES", 6_000)


def several_files(folder):
    folder.mkdir()
    for number in range(4):
        write_rows(folder / f"{number}.jsonl", PROSE[number * 50 : number * 50 + 50])
    return corpus(str(folder), validation=0.1)


@pytest.mark.processes
def test_any_number_of_workers_writes_the_same_bytes(tmp_path, trained, small_partitions):
    config = several_files(tmp_path / "corpus")
    made = [
        DataStage(
            stated(tmp_path, config), VIEW, tmp_path / f"data{n}", trained, Processing(n)
        ).make()
        for n in (1, 2)
    ]
    assert len(Store(tmp_path / "data1", "train").shards) == 1
    assert files_of(tmp_path / "data1") == files_of(tmp_path / "data2")
    assert made[0].outputs == made[1].outputs and made[0].hash == made[1].hash
    views = [
        {p.name: p.read_bytes() for p in (tmp_path / f"data{n}" / "views").glob("*.npy")}
        for n in (1, 2)
    ]
    assert views[0] == views[1] and len(views[0]) == 2


DIES = """
import os, signal, sys
from pathlib import Path
from robustly.data_prep import prepare as module
from small_stores import VIEW, corpus
from robustly.corpus import partitions
from robustly.corpus.config import Processing

def documents(*arguments, documents=module.documents):
    for text in documents(*arguments):
        if text.startswith("This is story 120."):  # amid the third of four parts
            os.kill(os.getpid(), signal.SIGKILL)
        yield text

module.documents = documents
partitions.PARTITION_BYTES = 6_000
root, trained = map(Path, sys.argv[1:])
module.DataStage(corpus(str(root / "corpus"), validation=0.1), VIEW, root / "data", trained, Processing(1)).make()
"""


@pytest.mark.processes
def test_after_a_kill_only_the_rest_is_made(tmp_path, trained, small_partitions, monkeypatch):
    config = several_files(tmp_path / "corpus")
    whole = DataStage(
        stated(tmp_path, config), VIEW, tmp_path / "whole", trained, Processing(1)
    ).make()
    killed = subprocess.run(
        [sys.executable, "-c", DIES, tmp_path, trained],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    folder = tmp_path / "data"
    assert manifest.read(folder) is None
    with pytest.raises(UserError, match="no finished data stage"):
        manifest.require(folder, "data")

    finished = {path.name for path in folder.glob("work/*/parts/train-*.npy")}
    assert {name[:11] for name in finished} == {"train-00000", "train-00001"}

    read = []
    original = module.documents
    monkeypatch.setattr(
        module,
        "documents",
        lambda *arguments: (read.append(text) or text for text in original(*arguments)),
    )
    made = DataStage(stated(tmp_path, config), VIEW, folder, trained, Processing(1)).make()
    assert read == PROSE[100:]
    assert made.outputs == whole.outputs and made.counts == whole.counts
    assert not list(folder.rglob("*.tmp")) and not (folder / "work").exists()


# ------------------------------------------------------------------------------------- done already


def test_a_finished_store_serves_other_views(tmp_path, trained):
    write_rows(tmp_path / "a.jsonl", PROSE)
    config, folder = corpus("a.jsonl", validation=0.1), tmp_path / "data"
    made = DataStage(stated(tmp_path, config), VIEW, folder, trained, Processing(1)).make()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}
    assert DataStage(stated(tmp_path, config), VIEW, folder, trained, Processing(2)).make() == made
    assert not (folder / "work").exists()

    wider = VIEW.model_copy(update={"block_length": 64, "format": "doc_sentences"})
    again = DataStage(stated(tmp_path, config), wider, folder, trained, Processing(1)).make()
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()} == before
    assert again.outputs == made.outputs
    assert again.counts["train_blocks"] == len(Blocks(folder, "train", 64, "doc_sentences"))
    assert (
        again.counts
        == DataStage(stated(tmp_path, config), wider, tmp_path / "other", trained, Processing(1))
        .make()
        .counts
        != made.counts
    )

    shutil.rmtree(folder / "views")
    assert DataStage(stated(tmp_path, config), VIEW, folder, trained, Processing(1)).make() == made
    assert len(list((folder / "views").glob("*.npy"))) == 2

    huge = VIEW.model_copy(update={"block_length": 10**6})
    with pytest.raises(UserError, match=r"data.block_length = 1000000"):
        DataStage(stated(tmp_path, config), huge, folder, trained, Processing(1)).make()


def test_a_store_of_another_recipe_is_not_overwritten(tmp_path, trained):
    write_rows(tmp_path / "a.jsonl", PROSE)
    config, folder = corpus("a.jsonl"), tmp_path / "data"
    made = DataStage(stated(tmp_path, config), VIEW, folder, trained, Processing(1)).make()
    assert (
        DataStage(stated(tmp_path, config), VIEW, folder, trained, Processing(1)).stage().finished()
        == made
    )

    with pytest.raises(UserError, match=r"data.unit: sentence there, line now"):
        DataStage(
            stated(tmp_path, config),
            VIEW.model_copy(update={"unit": "line"}),
            folder,
            trained,
            Processing(1),
        ).make()

    with pytest.raises(UserError, match=r"corpus.validation: 0.0 there, 0.1 now"):
        DataStage(
            stated(tmp_path, corpus("a.jsonl", validation=0.1)),
            VIEW,
            folder,
            trained,
            Processing(1),
        ).make()

    other = train_tokenizer(tmp_path / "other", merges=["t h"])
    with pytest.raises(UserError, match=r"input\.tokenizer"):
        DataStage(stated(tmp_path, config), VIEW, folder, other, Processing(1)).make()

    write_rows(tmp_path / "a.jsonl", PROSE[:-1])
    with pytest.raises(UserError, match=r"input\.corpus"):
        DataStage(stated(tmp_path, config), VIEW, folder, trained, Processing(1)).make()


def test_a_document_keeps_its_split_when_the_corpus_grows(tmp_path, trained):
    write_rows(tmp_path / "a.jsonl", PROSE[50:150])
    write_rows(tmp_path / "b.jsonl", PROSE)
    for name in ("a", "b"):
        DataStage(
            stated(tmp_path, corpus(f"{name}.jsonl", validation=0.2)),
            VIEW,
            tmp_path / name,
            trained,
            Processing(1),
        ).make()

    for split in SPLITS:
        small, large = (set(texts_of(tmp_path / name, trained, split)) for name in ("a", "b"))
        assert small and small == large & set(PROSE[50:150])


# ------------------------------------------------------------------------------------------- faults


def refused(tmp_path, trained, texts, validation=0.0, **view):
    write_rows(tmp_path / "a.jsonl", texts)
    data = VIEW.model_copy(update=view)
    with pytest.raises(UserError) as refusal:
        DataStage(
            stated(tmp_path, corpus("a.jsonl", validation=validation)),
            data,
            tmp_path / "data",
            trained,
            Processing(1),
        ).make()

    return str(refusal.value)


def test_bad_input_is_refused_and_the_mended_page_is_taken(tmp_path, trained):
    assert "corpus.sources: no document in a.jsonl; expected text" in refused(tmp_path, trained, [])
    assert "2 documents of nothing but white space in a.jsonl" in refused(
        tmp_path, trained, [" \n", "\u00a0"]
    )
    assert "corpus.validation = 1e-09: none of the 200 documents is held out" in refused(
        tmp_path, trained, PROSE, validation=1e-9
    )
    assert "corpus.validation = 0.999999: all of the 3 documents are held out" in refused(
        tmp_path, trained, PROSE[:3], validation=0.999999
    )
    message = refused(tmp_path, trained, ["the in."], block_length=64)
    assert (
        "data.block_length = 64: the text to train on has 6 tokens with </s>, too few for one block"
        in message
    )

    write_rows(tmp_path / "a.jsonl", PROSE)
    made = DataStage(
        stated(tmp_path, corpus("a.jsonl", validation=0.1)),
        VIEW,
        tmp_path / "data",
        trained,
        Processing(1),
    ).make()
    assert made.counts["train_documents"] + made.counts["validation_documents"] == 200
    assert not (tmp_path / "data/work").exists()


def test_bad_lines_are_counted_over_all_parts(tmp_path, trained):
    for name in "ab":
        write_rows(tmp_path / f"{name}.jsonl", PROSE)
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write("{broken\n" * 3)

    config = corpus("*.jsonl").model_copy(update={"max_bad_lines": 5})
    with pytest.raises(UserError, match=r"6 broken rows, more than corpus.max_bad_lines = 5"):
        DataStage(stated(tmp_path, config), VIEW, tmp_path / "data", trained, Processing(1)).make()

    made = DataStage(
        stated(tmp_path, config.model_copy(update={"max_bad_lines": 6})),
        VIEW,
        tmp_path / "data",
        trained,
        Processing(1),
    ).make()
    assert made.counts["bad_lines"] == 6 and made.counts["train_documents"] == 400


def test_the_tokenizer_must_be_finished(tmp_path):
    write_rows(tmp_path / "a.jsonl", PROSE)
    with pytest.raises(UserError, match="run `robustly tokenizer CONFIG` first"):
        DataStage(
            stated(tmp_path, corpus("a.jsonl")),
            VIEW,
            tmp_path / "data",
            tmp_path / "tokenizer",
            Processing(1),
        ).make()


def test_a_truncated_shard_is_named_before_training(tmp_path, trained):
    write_rows(tmp_path / "a.jsonl", PROSE)
    made = DataStage(
        stated(tmp_path, corpus("a.jsonl")), VIEW, tmp_path / "data", trained, Processing(1)
    ).make()
    shard = tmp_path / "data/train-00000.tokens.npy"
    assert made.outputs[shard.name]["sha256"] == hashlib.sha256(shard.read_bytes()).hexdigest()
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train-00000\.tokens\.npy: .* cut off or changed"):
        manifest.require(tmp_path / "data", "data")


def test_a_document_of_many_megabytes_without_a_line_break(tmp_path, trained):
    text = "An endless “story, he said. And on it goes, the teller. " * 40_000  # 2.2 MB
    (tmp_path / "a.txt").write_text(text)
    DataStage(
        stated(tmp_path, corpus("a.txt", documents="file")),
        VIEW,
        tmp_path / "data",
        trained,
        Processing(1),
    ).make()
    assert texts_of(tmp_path / "data", trained, "train") == [text]


@pytest.mark.parametrize("unit", ["sentence", "line", "raw"])
def test_added_tokens_are_found_and_counted(tmp_path, capsys, unit):
    train_tokenizer(tmp_path / "tokenizer", special_tokens=["[ENT]", "[NIL]"])
    ids = load_tokenizer(tmp_path / "tokenizer").vocabulary.ids
    texts = [f"The [ENT] {n}[ENT]. <mask> it.\n[ENT] the end.\n" for n in range(40)]
    made = DataStage(
        stated(tmp_path, corpus(str(write_rows(tmp_path / "a.jsonl", texts)))),
        VIEW.model_copy(update={"unit": unit}),
        tmp_path / "data",
        tmp_path / "tokenizer",
        Processing(1),
    ).make()
    assert made.counts["added_tokens"] == {"[ENT]": 120, "[NIL]": 0}
    said = capsys.readouterr().err
    assert "added tokens in the text: '[ENT]' 120\n" in said
    assert "'[NIL]': of the tokenizer's added tokens" in said
    listings = {
        each.title: each.rows for each in describe_folder(tmp_path / "data", "data").examples
    }
    assert listings["added tokens in the text"] == [
        {"token": "[ENT]", "count": 120},
        {"token": "[NIL]", "count": 0},
    ]
    store = Store(tmp_path / "data", "train")
    tokens = np.concatenate([store.tokens(shard) for shard in store.shards])
    assert (tokens == ids["[ENT]"]).sum() == 120 and not (tokens == ids["<mask>"]).any()
    assert texts_of(tmp_path / "data", tmp_path / "tokenizer", "train") == texts


@pytest.mark.parametrize("unit", ["sentence", "line", "raw"])
def test_every_unit_gets_the_space_that_the_vocabulary_puts_before_it(tmp_path, unit):
    trained = train_tokenizer(tmp_path / "tokenizer", prefix_space=True)
    texts = [f"{space}the end {n}.\n  In the end. \n" for n, space in enumerate(SPACES)]
    DataStage(
        stated(tmp_path, corpus(str(write_rows(tmp_path / "a.jsonl", texts)))),
        VIEW.model_copy(update={"unit": unit}),
        tmp_path / "data",
        trained,
        Processing(1),
    ).make()
    assert texts_of(tmp_path / "data", trained, "train") == texts
    expected = []
    reference = AutoTokenizer.from_pretrained(trained)
    for text in texts:
        for start, end in units(text, unit, "en"):
            expected += [*reference(text[start:end], add_special_tokens=False)["input_ids"], 2]
        expected.append(2)

    store = Store(tmp_path / "data", "train")
    assert np.concatenate([store.tokens(shard) for shard in store.shards]).tolist() == expected
