"""The data stage on a dataset: the store that its rows give in a file, finished once, and read as
the config says."""

from pathlib import Path

import pytest
from small_stores import VIEW, corpus, train_tokenizer, write_rows

from robustly import UserError, manifest
from robustly.corpus.config import CorpusConfig, Processing, SourceConfig
from robustly.data_prep.prepare import DataStage
from robustly.data_prep.store import SPLITS, Store
from robustly.tokenizer import load_tokenizer
from stated import stated

TEXTS = [f"This is story {n}. It has {n} words (or so). “Few!” said he." for n in range(40)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("stage") / "tokenizer")


def of_dataset(folder: str, **keys: str) -> CorpusConfig:
    return corpus("any.txt", validation=0.2).model_copy(
        update={"sources": [SourceConfig(hub=folder, **keys)]}
    )


@pytest.mark.processes
def test_a_dataset_gives_the_store_that_its_files_give(tmp_path: Path, trained: Path) -> None:
    (tmp_path / "rows").mkdir()
    for shard in range(4):
        write_rows(tmp_path / "rows" / f"train-{shard}.jsonl", TEXTS[shard * 10 : shard * 10 + 10])

    config = of_dataset("rows")
    stores = {
        "file": DataStage(
            stated(tmp_path, corpus("rows", validation=0.2)),
            VIEW,
            tmp_path / "file",
            trained,
            Processing(1),
        ).make(),
        "one": DataStage(
            stated(tmp_path, config), VIEW, tmp_path / "one", trained, Processing(1)
        ).make(),
        "two": DataStage(
            stated(tmp_path, config), VIEW, tmp_path / "two", trained, Processing(2)
        ).make(),
    }
    tokenizer = load_tokenizer(trained)
    for split in SPLITS:
        read = [list(Store(tmp_path / name, split).texts(tokenizer)) for name in stores]
        assert read[0] == read[1] == read[2] != []

    assert stores["one"].outputs == stores["two"].outputs
    assert stores["one"].counts == stores["file"].counts
    assert stores["one"].hash == stores["two"].hash != stores["file"].hash

    assert DataStage(
        stated(tmp_path, config), VIEW, tmp_path / "one", trained, Processing(1)
    ).make() == manifest.read(tmp_path / "one")
    write_rows(tmp_path / "rows" / "train-3.jsonl", ["Another text."])
    assert (
        DataStage(stated(tmp_path, config), VIEW, tmp_path / "other", trained, Processing(1))
        .stage()
        .hash
        != stores["one"].hash
    )
    with pytest.raises(UserError, match="corpus"):
        DataStage(stated(tmp_path, config), VIEW, tmp_path / "one", trained, Processing(1)).make()


def test_a_dataset_without_text_is_named(tmp_path: Path, trained: Path) -> None:
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows" / "train.jsonl", [" ", ""])
    with pytest.raises(
        UserError, match=r"corpus\.sources: 2 documents of nothing but white space in rows"
    ):
        DataStage(
            stated(tmp_path, of_dataset("rows")), VIEW, tmp_path / "data", trained, Processing(1)
        ).make()
