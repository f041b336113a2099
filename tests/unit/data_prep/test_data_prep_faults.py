"""The data stage when something goes wrong: a file is damaged, a worker dies, the disk is full."""

import errno
import gzip
import json
import lzma
import os
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from small_stores import VIEW, corpus, files_of, train_tokenizer, write_rows

from robustly import UserError, manifest
from robustly.corpus import partitions as partitioning
from robustly.corpus.config import CorpusConfig, Processing
from robustly.data_prep import prepare as module
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.prepare import DataStage
from robustly.data_prep.store import SPLITS, ShardWriter, Store
from robustly.files import disk_full
from robustly.tokenizer import load_tokenizer
from stated import stated

PROSE = [
    f"This is story {n}. It has {n} words (or so). “Few!” said he.\nThe end of it.\n"
    for n in range(200)
]
ONE = Processing(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("stage") / "tokenizer")


def four_files(folder: Path) -> CorpusConfig:
    folder.mkdir()
    for number in range(4):
        write_rows(folder / f"{number}.jsonl", PROSE[number * 50 : number * 50 + 50])
    return corpus(str(folder), validation=0.1)


# ---------------------------------------------------------------------------------------- bad files

GOOD = "A story of the inn.\n\nAnd another of the weather."
ROWS = "".join(json.dumps({"text": text}) + "\n" for text in GOOD.split("\n\n"))


def parquet(path: Path) -> bytes:
    pyarrow.parquet.write_table(pyarrow.table({"text": GOOD.split("\n\n")}), path)
    return path.read_bytes()


BAD = {
    "b.txt.gz": (gzip.compress(GOOD.encode())[:-9], r"b\.txt\.gz: cannot be read"),
    "b.txt.xz": (lzma.compress(GOOD.encode())[:-9], r"b\.txt\.xz: cannot be read"),
    "b.txt.zst": (zstandard.compress(GOOD.encode())[:-9], r"b\.txt\.zst: cannot be read"),
    "b.jsonl.gz": (b"no gzip", r"b\.jsonl\.gz: cannot be read"),
    "b.parquet": (b"PAR1 no parquet", r"b\.parquet: cannot be read"),
    "b.txt": (GOOD.encode("utf-16"), r"b\.txt: text in UTF-16"),
    "c.txt": (GOOD.encode() + b"\n\nna\xefve", r"c\.txt: line 5 .*not UTF-8 \(byte 0xef\)"),
    "d.txt": (GOOD.encode() + b"\n\nnothing \0", r"d\.txt: line 5 .*NUL"),
    "b.jsonl": (ROWS.encode() + b'{"text": "cut o', r"b\.jsonl: line 3 .*not JSON"),
    "c.jsonl": (ROWS.encode() + b'{"text": "\\u0000"}\n', r"c\.jsonl: line 3 .*NUL"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_and_the_mended_one_is_taken(tmp_path, trained, name):
    content, message = BAD[name]
    write_rows(tmp_path / "a.jsonl", PROSE[:20])
    (tmp_path / name).write_bytes(content)
    config = corpus("a.jsonl", name).model_copy(update={"max_bad_lines": 0})
    with pytest.raises(UserError, match=message):
        DataStage(stated(tmp_path, config), VIEW, tmp_path / "data", trained, ONE).make()

    assert not (tmp_path / "data/recipe.json").exists() and not list(
        (tmp_path / "data").glob("*.npy")
    )

    compress = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}.get(
        Path(name).suffix, bytes
    )
    whole = (
        parquet(tmp_path / name)
        if "parquet" in name
        else compress((ROWS if "jsonl" in name else GOOD).encode())
    )
    (tmp_path / name).write_bytes(whole)
    assert (
        DataStage(stated(tmp_path, config), VIEW, tmp_path / "data", trained, ONE)
        .make()
        .counts["train_documents"]
        == 22
    )


# --------------------------------------------------------------------------------- killed, and full


MAKE = module._make_parts


def make_until_killed(*arguments: Any) -> None:
    """The work on a part; the process that works on the third dies with its shards half written."""
    *_, number, _ = arguments
    if number == 2:
        ShardWriter.__exit__ = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    MAKE(*arguments)


def make_and_list(*arguments: Any) -> None:
    """The work on a part, of which a file with its number tells."""
    folder, number = arguments[2], arguments[-2]
    made = folder.parents[3] / "made"
    made.mkdir(exist_ok=True)
    (made / f"{number:05d}").touch()
    MAKE(*arguments)


@pytest.mark.processes
def test_after_a_worker_is_killed_only_the_rest_is_made(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(partitioning, "PARTITION_BYTES", 6_000)
    config, folder = four_files(tmp_path / "corpus"), tmp_path / "data"
    whole = DataStage(stated(tmp_path, config), VIEW, tmp_path / "whole", trained, ONE).make()
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"a worker process was killed.*is kept"),
    ):
        patch.setattr(module, "_make_parts", make_until_killed)
        DataStage(stated(tmp_path, config), VIEW, folder, trained, Processing(2)).make()

    assert manifest.read(folder) is None and not list(folder.glob("*.npy"))
    done = {path.name for path in folder.glob("work/*/parts/tasks/completions/*")}
    assert done and "00002" not in done
    kept = list(folder.glob("work/*/parts/[tv]*.npy"))
    # a name with a dot in front is of a file that was not finished
    assert len(kept) >= 5 * len(done)

    monkeypatch.setattr(module, "_make_parts", make_and_list)
    made = DataStage(stated(tmp_path, config), VIEW, folder, trained, Processing(2)).make()
    assert files_of(folder) == files_of(tmp_path / "whole") and made.counts == whole.counts
    again = {path.name for path in (tmp_path / "made").iterdir()}
    assert again == {f"{number:05d}" for number in range(4)} - done
    assert not list(folder.rglob("*.tmp")) and not (folder / "work").exists()


def test_a_full_disk_at_any_moment_leaves_nothing_half_written(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(partitioning, "PARTITION_BYTES", 6_000)
    config = four_files(tmp_path / "corpus")
    left = 0  # writes before the disk is full

    def flushed(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", flushed)
    DataStage(stated(tmp_path, config), VIEW, tmp_path / "whole", trained, ONE).make()
    writes, whole = -left, files_of(tmp_path / "whole")
    assert writes > 40

    for moment in [*range(1, writes, 7), *range(writes - 6, writes + 1)]:
        folder, left = tmp_path / f"{moment}", moment
        with pytest.raises(OSError, match="No space left") as full:
            DataStage(stated(tmp_path, config), VIEW, folder, trained, ONE).make()

        assert disk_full(full.value)
        assert not list(folder.rglob("*.tmp"))
        # whatever has its name is whole
        for path in [*folder.glob("*.npy"), *folder.glob("work/*/shards/*.npy")]:
            assert path.read_bytes() == whole[path.name], path.name

        finished = manifest.read(folder)
        assert (finished is not None) == (
            moment == writes
        )  # the last makes the manifest's name durable
        made = DataStage(stated(tmp_path, config), VIEW, folder, trained, ONE).make()
        assert files_of(folder) == whole and made == manifest.read(folder)
        assert finished or not (folder / "work").exists()
        shutil.rmtree(folder)


# -------------------------------------------------------------------------------------- long, large


def test_a_line_longer_than_a_block_is_trained_on_to_its_last_token(tmp_path, trained):
    text = "word " * 400
    write_rows(tmp_path / "a.jsonl", [text, PROSE[0]])
    made = DataStage(
        stated(tmp_path, corpus("a.jsonl")), VIEW, tmp_path / "data", trained, ONE
    ).make()
    assert made.counts["long_units"] >= 1
    blocks = Blocks(tmp_path / "data", "train", VIEW.block_length, VIEW.format)
    ids, lengths = blocks.gather(np.arange(len(blocks)))
    assert lengths.max() == VIEW.block_length
    found = [
        token
        for row, length in zip(ids, lengths, strict=True)
        for token in row[1:length].tolist()
        if token != 2
    ]
    store = Store(tmp_path / "data", "train")
    (shard,) = store.shards
    assert found == [token for token in store.tokens(shard).tolist() if token != 2]


@pytest.mark.slow
def test_a_document_of_a_hundred_megabytes(tmp_path, trained):
    sentence = "On it goes" + ", said the teller of the inn" * 40 + ". "
    text = (sentence * (100 * 2**20 // len(sentence))).strip()
    (tmp_path / "a.txt").write_text(text + "\n\nA short one.")
    DataStage(stated(tmp_path, corpus("a.txt")), VIEW, tmp_path / "data", trained, ONE).make()
    first, second = Store(tmp_path / "data", "train").texts(load_tokenizer(trained))
    assert first == text and second == "A short one."


# ----------------------------------------------------------------------------------------- it grows


@settings(max_examples=12)
@given(
    before=st.integers(0, 30),
    after=st.integers(0, 30),
    part_bytes=st.sampled_from([800, 1000, 10**6]),
    shares=st.sampled_from([(0.2, 0.2), (0.2, 0.5)]),
)
def test_documents_stay_held_out_when_the_corpus_grows(
    tmp_path_factory, trained, before, after, part_bytes, shares
):
    """Documents come before and after in the file, files come too, and parts are cut elsewhere."""
    folder = tmp_path_factory.mktemp("growing")
    texts = [text.strip() for text in PROSE[:100]]
    old, first, last = texts[30:70], texts[30 - before : 30], texts[70 : 70 + after]
    (folder / "m.txt").write_text("\n\n".join(old))
    DataStage(
        stated(folder, corpus("m.txt", validation=shares[0])), VIEW, folder / "small", trained, ONE
    ).make()
    (folder / "m.txt").write_text("\n\n".join([*first, *old]))
    (folder / "z.txt").write_text("\n\n".join(last))
    with mock.patch.object(partitioning, "PARTITION_BYTES", part_bytes):
        DataStage(
            stated(folder, corpus("*.txt", validation=shares[1])),
            VIEW,
            folder / "large",
            trained,
            ONE,
        ).make()

    tokenizer = load_tokenizer(trained)
    small, large = (
        {split: set(Store(folder / name, split).texts(tokenizer)) for split in SPLITS}
        for name in ("small", "large")
    )
    assert small["validation"] and small["validation"] | small["train"] == set(old)
    assert small["validation"] <= large["validation"]
    if shares[0] == shares[1]:
        assert small["train"] <= large["train"]

    assert large["validation"] | large["train"] == {*first, *old, *last}
