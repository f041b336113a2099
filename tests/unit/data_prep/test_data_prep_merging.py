"""Shards are merged at the end of the data stage: the same stream, texts and blocks however they
are cut, in bounded memory, and after any kill."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered_store import NumberedStore
from small_stores import VIEW, corpus, files_of, train_tokenizer, write_rows

from robustly import manifest, npy
from robustly.corpus import partitions as partitioning
from robustly.corpus.config import Processing
from robustly.corpus.partitions import partitions
from robustly.data_prep import merging
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.merging import Part, merge, merges
from robustly.data_prep.origins import Origins
from robustly.data_prep.prepare import DataStage
from robustly.data_prep.store import SPLITS, Shard, Store
from robustly.tokenizer import load_tokenizer
from stated import stated

ONE = Processing(1)
PROSE = [f"Story {n} begins.  It has {n} words.\n\tThe end of {n}.\n" for n in range(120)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("merging") / "tokenizer")


def made(
    folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, limit: int = 2**31
) -> manifest.Manifest:
    """A store of two sources with 30 partitions, whose shards have at most `limit` bytes."""
    for source in ("one", "two"):
        (folder / source).mkdir(parents=True, exist_ok=True)
        for number in range(15):
            first = number * 4 + 60 * (source == "two")
            write_rows(folder / source / f"{number:02d}.jsonl", PROSE[first : first + 4])

    monkeypatch.setattr(partitioning, "PARTITION_BYTES", 300)
    monkeypatch.setattr(merging, "SHARD_BYTES", limit)
    config = stated(folder, corpus(str(folder / "one"), str(folder / "two"), validation=0.2))
    assert len(partitions(config)) == 30
    return DataStage(config, VIEW, folder / "data", trained, ONE).make()


def stream_of(folder: Path, split: str) -> list[int]:
    store = Store(folder, split)  # type: ignore[arg-type]
    return [token for shard in store.shards for token in store.tokens(shard).tolist()]


def test_however_shards_are_cut_the_stream_and_the_blocks_are_the_same(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(trained)
    whole = made(tmp_path / "whole", trained, monkeypatch)
    pieces = made(tmp_path / "pieces", trained, monkeypatch, 1500)
    single = made(tmp_path / "single", trained, monkeypatch, 1)
    shards = [
        len(Store(tmp_path / name / "data", "train").shards)
        for name in ("whole", "pieces", "single")
    ]
    assert shards[0] == 2 and 2 < shards[1] < 30 and 20 < shards[2] <= 30
    assert whole.counts == pieces.counts == single.counts and whole.hash == pieces.hash

    for split in SPLITS:
        folders = [tmp_path / name / "data" for name in ("whole", "pieces", "single")]
        assert stream_of(folders[0], split) == stream_of(folders[1], split)
        assert stream_of(folders[0], split) == stream_of(folders[2], split)
        texts = [list(Store(folder, split).named_texts(tokenizer)) for folder in folders]
        assert texts[0] == texts[1] == texts[2]
        for format in ("full_sentences", "doc_sentences", "segment_pair", "sentence_pair"):
            blocks = [Blocks(folder, split, 24, format) for folder in folders]  # type: ignore[arg-type]
            assert len({each.index_hash for each in blocks}) == 1
            ids = [each.gather(np.arange(len(each)))[0].tolist() for each in blocks]
            assert ids[0] == ids[1] == ids[2]


def test_a_document_is_known_by_its_partition(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "merged", trained, monkeypatch, 1500)
    for split in SPLITS:
        blocks = Blocks(tmp_path / "merged/data", split, 24, "full_sentences")
        origins, tokenizer = Origins(blocks), load_tokenizer(trained)
        for number, text in enumerate(blocks.store.texts(tokenizer)):
            assert origins.document(number).partition == PROSE.index(text) // 4


def test_in_a_store_of_an_older_version_a_shard_tells_its_partition(tmp_path: Path) -> None:
    NumberedStore(tmp_path, [[[3], [2, 2]], [], [[4]]])
    origins = Origins(Blocks(tmp_path, "train", 8, "full_sentences"))
    assert [origins.document(number).partition for number in range(3)] == [0, 0, 2]


def test_a_merge_holds_a_few_numbers_at_a_time(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "whole", trained, monkeypatch)
    monkeypatch.setattr(merging, "AT_ONCE", 7)
    largest = []
    append = npy.GrowingArray.append

    def watched(self: npy.GrowingArray, values: np.ndarray) -> None:
        if self.path.parent.name == "shards":
            largest.append(values.size)
        append(self, values)

    monkeypatch.setattr(npy.GrowingArray, "append", watched)
    made(tmp_path / "slow", trained, monkeypatch)
    assert max(largest) == 7
    assert files_of(tmp_path / "slow/data") == files_of(tmp_path / "whole/data")


class Killed(BaseException):
    pass


def test_after_a_kill_at_any_moment_the_merge_is_finished(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any rename or removal of a file: whatever was merged is whole, and no part is lost that
    was not."""
    made(tmp_path / "whole", trained, monkeypatch, 3000)
    whole = files_of(tmp_path / "whole/data")
    moments = left = 0
    replace, unlink = Path.replace, Path.unlink

    def passed(path: Path) -> None:
        nonlocal left
        if "shards" in path.parts or "parts" in path.parts:
            left -= 1
            if left == 0:
                raise Killed

    def replaced(self: Path, target: Path) -> Path:
        passed(Path(target))
        return replace(self, target)

    def removed(self: Path, missing_ok: bool = False) -> None:
        if not self.name.startswith("."):
            passed(self)
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replaced)
        patch.setattr(Path, "unlink", removed)
        made(tmp_path / "counted", trained, monkeypatch, 3000)
        moments = -left
        assert moments > 400
        first = moments - 300  # parts are encoded before
        for moment in range(first, moments + 1, 53):
            folder, left = tmp_path / f"{moment}", moment
            with pytest.raises(Killed):
                made(folder, trained, monkeypatch, 3000)
            left = 0
            made(folder, trained, monkeypatch, 3000)
            assert files_of(folder / "data") == whole


def test_a_store_that_is_made_anew_leaves_no_shards_of_the_one_before(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, trained, monkeypatch, 1)
    (tmp_path / "data/manifest.json").unlink()
    again = made(tmp_path, trained, monkeypatch)
    assert sorted(files_of(tmp_path / "data")) == sorted(again.outputs)


# ------------------------------------------------------------------------------- which parts, and sums

COUNTS = st.builds(
    lambda source, tokens, gaps: (source, tokens, gaps),
    st.integers(0, 2),
    st.integers(1, 50),
    st.integers(0, 50),
)


@given(counts=st.lists(COUNTS, max_size=30), limit=st.integers(1, 120))
def test_parts_that_follow_each_other_become_a_shard(
    counts: list[tuple[int, int, int]], limit: int
) -> None:
    counts.sort(key=lambda each: each[0])  # sources are in order
    parts = [
        Part(Shard(f"train-{n:05d}", source, 1, 2, tokens), gaps)
        for n, (source, tokens, gaps) in enumerate(counts)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "SHARD_BYTES", limit)
        found = merges("train", parts, 2)

    assert [part for each in found for part in each.parts] == parts
    assert [each.shard.name for each in found] == [f"train-{n:05d}" for n in range(len(found))]
    for each in found:
        assert {part.shard.source for part in each.parts} == {each.shard.source}
        assert each.shard.tokens == sum(part.shard.tokens for part in each.parts)
        assert each.shard.documents == len(each.parts) and each.shard.units == 2 * len(each.parts)
        sizes = 2 * each.shard.tokens, sum(part.gap_bytes for part in each.parts)
        assert max(sizes) <= limit or len(each.parts) == 1

    for one, other in itertools.pairwise(found):  # as few as there can be
        if one.shard.source == other.shard.source:
            joined = [*one.parts, other.parts[0]]
            tokens = 2 * sum(part.shard.tokens for part in joined)
            assert max(tokens, sum(part.gap_bytes for part in joined)) > limit


def test_ends_beyond_31_bits_are_shifted_by_what_comes_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts' tokens are holes in files."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "shards").mkdir()
    parts = []
    for number in range(3):
        name, tokens = f"train-{number:05d}", 1_400_000_000
        ends = np.array([7, tokens - 1], np.uint32)
        arrays = {"units": ends, "documents": np.array([2], np.uint32)}
        arrays["gap_ends"] = np.array([0, 1, 1], np.uint32)
        arrays["gaps"] = np.array([32], np.uint8)
        for kind, values in arrays.items():
            npy.write(tmp_path / "parts" / f"{name}.{kind}.npy", values)
        npy.write(tmp_path / "parts" / f"{name}.tokens.npy", np.zeros(0, np.uint16))
        parts.append(Part(Shard(name, 0, 1, 2, tokens), 1))

    monkeypatch.setattr(merging, "SHARD_BYTES", 2**33)
    (one,) = merges("train", parts, 2)
    merge(tmp_path / "shards", tmp_path / "parts", np.dtype(np.uint16), 0, one)
    ends = npy.read(tmp_path / "shards/train-00000.units.npy", np.uint32).tolist()
    assert ends == [
        7, 1_399_999_999, 1_400_000_007, 2_799_999_999, 2_800_000_007, 4_199_999_999
    ]  # fmt: skip
    assert npy.read(tmp_path / "shards/train-00000.documents.npy", np.uint32).tolist() == [2, 4, 6]
    gap_ends = npy.read(tmp_path / "shards/train-00000.gap_ends.npy", np.uint32).tolist()
    assert gap_ends == [0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert not list((tmp_path / "parts").iterdir())
