"""Small files are gathered into partitions: the same blocks, fewer files, and nothing is mixed with
what an older version cut otherwise."""

import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from small_stores import VIEW, corpus, files_of, train_tokenizer, write_rows

from robustly import UserError, manifest
from robustly.corpus import partitions as partitioning
from robustly.corpus.config import Processing
from robustly.data_prep import prepare
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.cleaning import steps
from robustly.data_prep.cleaning.clean import CleanStage
from robustly.data_prep.cleaning.config import CleaningConfig
from robustly.data_prep.config import DataConfig
from robustly.data_prep.prepare import DataStage
from robustly.data_prep.store import SPLITS
from robustly.tokenizer import counting
from robustly.tokenizer.build import TokenizerStage
from robustly.tokenizer.config import TokenizerConfig
from stated import stated

PROSE = [
    f"This is story {n}. It has {n} words (or so). “Few!” said he.\nThe end of it.\n"
    for n in range(200)
]
ONE_FILE = 1_200
"""Bytes of a partition, so that each file of `many_files` is one."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("stage") / "tokenizer")


@pytest.fixture
def many_files(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    for number in range(20):
        write_rows(tmp_path / f"corpus/{number:02d}.jsonl", PROSE[number * 10 : number * 10 + 10])

    return tmp_path / "corpus"


def blocks_of(folder: Path, format: str) -> list[list[int]]:
    found = []
    for split in SPLITS:
        blocks = Blocks(folder, split, 16, format)  # type: ignore[arg-type]
        ids, lengths = blocks.gather(np.arange(len(blocks)))
        found += [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]

    return found


def test_gathered_files_give_the_same_blocks(
    tmp_path: Path, trained: Path, many_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stated(tmp_path, corpus(str(many_files), validation=0.1))

    def made(name: str) -> manifest.Manifest:
        return DataStage(config, VIEW, tmp_path / name, trained, Processing(1)).make()

    gathered = made("gathered")
    monkeypatch.setattr(partitioning, "PARTITION_BYTES", ONE_FILE)
    alone = made("alone")
    assert gathered.hash == alone.hash and gathered.counts == alone.counts
    assert len(gathered.outputs) == len(alone.outputs) == 13

    for format in ("full_sentences", "doc_sentences", "segment_pair", "sentence_pair", "none"):
        assert blocks_of(tmp_path / "gathered", format) == blocks_of(tmp_path / "alone", format)


@pytest.mark.processes
def test_gathered_files_are_the_same_bytes_for_any_number_of_workers(
    tmp_path: Path, trained: Path, many_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitioning, "PARTITION_BYTES", 3 * ONE_FILE)
    config = stated(tmp_path, corpus(str(many_files), validation=0.1))
    for workers in (1, 2):
        folder = tmp_path / f"data{workers}"
        DataStage(config, VIEW, folder, trained, Processing(workers)).make()

    assert files_of(tmp_path / "data1") == files_of(tmp_path / "data2")


STAGES = {"tokenizer": counting, "clean": steps, "data": prepare}
"""Each stage, and the module of it that reads documents."""


@pytest.mark.parametrize("name", STAGES)
def test_what_an_older_cut_left_unfinished_is_not_gone_on_with(
    tmp_path: Path, trained: Path, many_files: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = stated(tmp_path, corpus(str(many_files), validation=0.1))

    def make(folder: Path) -> manifest.Manifest:
        if name == "tokenizer":
            rules = TokenizerConfig(vocab_size=300, min_frequency=2)
            return TokenizerStage(config, rules, folder, Processing(1)).make()
        if name == "clean":
            rules = CleaningConfig(min_words=12)
            return CleanStage(config, rules, "en", folder, Processing(1)).make()
        return DataStage(
            config, DataConfig(**VIEW.model_dump()), folder, trained, Processing(1)
        ).make()

    whole = make(tmp_path / "whole")
    with monkeypatch.context() as older:
        read, calls = STAGES[name].documents, count()

        def fail_at_the_fourth(*arguments: object) -> object:
            if next(calls) == 3:
                raise UserError("the disk is gone")
            return read(*arguments)

        older.setattr(partitioning, "PARTITION_BYTES", ONE_FILE)
        older.setattr(partitioning, "RULE", 1)
        older.setattr(STAGES[name], "documents", fail_at_the_fourth)
        with pytest.raises(UserError, match="the disk is gone"):
            make(tmp_path / "again")

    assert len(list((tmp_path / "again/work").glob("**/tasks*/completions/*"))) == 3
    assert make(tmp_path / "again").outputs == whole.outputs
    assert not (tmp_path / "again/work").exists()


def test_decisions_on_another_cut_are_refused(
    tmp_path: Path, trained: Path, many_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, cleaned = stated(tmp_path, corpus(str(many_files))), tmp_path / "clean"
    with monkeypatch.context() as older:
        older.setattr(partitioning, "PARTITION_BYTES", ONE_FILE)
        CleanStage(config, CleaningConfig(min_words=12), "en", cleaned, Processing(1)).make()

    message = "on 20 partitions of a corpus that has 1 now; .*delete the folder"
    with pytest.raises(UserError, match=message):
        DataStage(config, VIEW, tmp_path / "data", trained, Processing(1), cleaned).make()

    from robustly.data_prep.cleaning.dropped import write_dropped

    with pytest.raises(UserError, match=message):
        write_dropped(config, cleaned, tmp_path / "dropped.jsonl")


def test_a_fault_names_its_file_and_line(tmp_path: Path, trained: Path, many_files: Path) -> None:
    with (many_files / "07.jsonl").open("a") as file:
        file.write(json.dumps({"content": "x"}) + "\n")

    config = stated(tmp_path, corpus(str(many_files)).model_copy(update={"max_bad_lines": 0}))
    with pytest.raises(UserError, match=r"07\.jsonl: line 11 \(byte \d+ of the text\): no key"):
        DataStage(config, VIEW, tmp_path / "data", trained, Processing(1)).make()
