"""The store gives back every document to the byte, and says what is wrong with a broken one."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import small_stores
from hypothesis import given
from hypothesis import strategies as st
from numbered_store import EOS, NumberedStore, numbered_tokenizer

from robustly import UserError, npy
from robustly.data_prep import store
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.packed_index import PackedIndex
from robustly.data_prep.packing import BLOCK
from robustly.data_prep.sentences import units
from robustly.data_prep.store import ShardWriter, Store, check_tokenizer, split_of, write_store
from robustly.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[3]
DOCUMENTS = st.lists(
    st.text(st.sampled_from("the in. \n\t\u00a0é😀!"), min_size=1, max_size=80).filter(str.strip),
    max_size=8,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(
        small_stores.train_tokenizer(tmp_path_factory.mktemp("stage") / "tokenizer")
    )


def write(folder, tokenizer, shards, unit="sentence"):
    """A store of the texts in `shards`, one list for each."""
    written = []
    for number, texts in enumerate(shards):
        with ShardWriter(
            folder, f"train-{number:05d}", 0, tokenizer.eos_id, tokenizer.dtype
        ) as writer:
            for text in texts:
                spans = units(text, unit, "en")
                ends = [0, *(end for _, end in spans)]
                starts = [*(start for start, _ in spans), len(text)]
                writer.append(
                    *tokenizer.encode_lines([text[start:end] for start, end in spans]),
                    [text[end:start] for end, start in zip(ends, starts, strict=True)],
                )

        if writer.shard:
            written.append(writer.shard)

    return write_store(
        folder, folder, "hash", tokenizer, ["a"], {"train": written, "validation": []}
    )


@given(
    shards=st.lists(DOCUMENTS, max_size=3),
    unit=st.sampled_from(["line", "sentence"]),
    waiting=st.integers(0, 30),
)
def test_documents_come_back_to_the_byte(tmp_path_factory, tokenizer, shards, unit, waiting):
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "WAITING", waiting)
        write(folder, tokenizer, shards, unit)

    texts = [text for shard in shards for text in shard]
    read = Store(folder, "train")
    assert list(read.texts(tokenizer)) == texts
    assert read.documents == len(texts)
    assert read.units == sum(len(units(text, unit, "en")) for text in texts)
    bodies = [text[start:end] for text in texts for start, end in units(text, unit, "en")]
    assert read.text_tokens == sum(ids.size for ids in tokenizer.encode_documents(bodies))


def test_the_stream_holds_an_eos_after_each_unit_and_one_more_after_each_document(
    tmp_path, tokenizer
):
    files = write(tmp_path, tokenizer, [["the. in.\nthe", " er\n"], []])
    the, stop, in_, er = (
        tokenizer.encode_documents([text])[0].tolist() for text in ("the", ".", "in", "er")
    )
    assert all(len(ids) == 1 for ids in (the, stop, in_, er))
    tokens = np.load(tmp_path / "train-00000.tokens.npy")
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == [*the, *stop, EOS, *in_, *stop, EOS, *the, EOS, EOS, *er, EOS, EOS]
    assert np.load(tmp_path / "train-00000.units.npy").tolist() == [3, 6, 8, 11]
    assert np.load(tmp_path / "train-00000.documents.npy").tolist() == [3, 4]
    assert bytes(np.load(tmp_path / "train-00000.gaps.npy")) == b" \n \n"
    assert np.load(tmp_path / "train-00000.gap_ends.npy").tolist() == [0, 1, 2, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files)
    assert len(files) == 6  # nothing for the shard without documents
    found = list(Store(tmp_path, "train").lines(Store(tmp_path, "train").shards[0]))
    assert [sizes.tolist() for sizes in found] == [[3, 3, 2, 1, 2, 1]]


def test_the_lines_of_the_documentation_read_a_store(tmp_path, tokenizer):
    texts = ["the in. er the.\nin", "er", "  the the\n"]
    write(tmp_path, tokenizer, [texts[:2], texts[2:]])
    code = re.search(
        r"```python\n(.*?)```", (ROOT / "docs/data_format.md").read_text(encoding="utf-8"), re.S
    )[1]
    names = {}
    exec(code.replace("runs/tiny/data", str(tmp_path)), names)
    assert [[tokenizer.decode(unit) for unit in document] for document in names["documents"]] == [
        ["the in.", "er the.", "in"],
        ["er"],
        ["the the"],
    ]


def test_large_vocabularies_take_32_bits(tmp_path):
    with ShardWriter(tmp_path, "train-00000", 0, EOS, np.dtype(np.uint32)) as writer:
        writer.append(np.array([65_536, 2**31 - 1, EOS], np.uint32), np.array([3]), ["", ""])

    write_store(
        tmp_path,
        tmp_path,
        "hash",
        numbered_tokenizer(),
        ["a"],
        {"train": [writer.shard], "validation": []},
    )
    read = Store(tmp_path, "train")
    assert read.tokens(read.shards[0]).tolist() == [65_536, 2**31 - 1, EOS, EOS]


def test_offsets_beyond_2_to_the_32(tmp_path, monkeypatch):
    """Two shards of 3 * 10^9 tokens, all holes in their files but a few; a block lies on either
    side of the border."""
    size = 3 * 10**9
    shards = []

    for number in range(2):
        with ShardWriter(tmp_path, f"train-{number:05d}", 0, EOS, np.dtype(np.uint16)) as writer:
            writer.append(np.array([5, EOS], np.uint16), np.array([2]), ["", ""])

        with (tmp_path / f"train-{number:05d}.tokens.npy").open("r+b") as file:
            header = {"descr": "<u2", "fortran_order": False, "shape": (size,)}
            np.lib.format.write_array_header_1_0(file, header)
            begin = file.tell()
            file.truncate(begin + 2 * size)
            for at, token in ((0, 7), (size - 2, 8), (size - 1, 9)):
                file.seek(begin + 2 * at)
                file.write(int(token + 10 * number).to_bytes(2, "little"))

        shards.append(store.Shard(f"train-{number:05d}", 0, 1, 1, size))

    tokenizer = numbered_tokenizer(dtype=np.dtype(np.uint16))
    write_store(tmp_path, tmp_path, "f" * 64, tokenizer, ["a"], {"train": shards, "validation": []})
    blocks = [(0, 3), (size - 2, 4), (2 * size - 2, 3)]
    assert 2 * size - 2 > 2**32
    npy.write(tmp_path / "index.npy", np.array(blocks, BLOCK))
    index = PackedIndex(npy.read(tmp_path / "index.npy", BLOCK), "", [10], 0, 0.0)
    monkeypatch.setattr("robustly.data_prep.blocks.open_index", lambda *asked: index)
    ids, lengths = Blocks(tmp_path, "train", 8, "full_sentences").gather(np.array([2, 0, 1]))
    assert lengths.tolist() == [3, 3, 4]
    assert ids.tolist() == [
        [0, 18, 19, 1, 1, 1, 1, 1],
        [0, 7, 2, 1, 1, 1, 1, 1],
        [0, 8, 9, 17, 1, 1, 1, 1],
    ]


def test_a_shard_has_room_for_32_bit_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "LIMIT", 100)
    units_ = np.arange(48 * 3, dtype=np.uint16)
    with ShardWriter(tmp_path, "train-00000", 0, EOS, np.dtype(np.uint16)) as writer:
        writer.append(units_[:48], np.array([48]), ["", ""])
        writer.append(units_[:48], np.array([48]), ["", " " * 100])

    assert writer.shard.tokens == 98

    for count, gap in ((3, ""), (1, " " * 101)):
        with (
            pytest.raises(UserError, match="train-00001: more than 100 tokens"),
            ShardWriter(tmp_path, "train-00001", 0, EOS, np.dtype(np.uint16)) as writer,
        ):
            writer.append(
                units_[: 48 * count], np.arange(48, 48 * count + 1, 48), [""] * count + [gap]
            )

    assert not [path.name for path in tmp_path.iterdir() if "train-00000" not in path.name]


# ------------------------------------------------------------------------------------------- splits


def test_the_share_that_is_held_out():
    documents = [f"document {number}" for number in range(20_000)]
    for share in (0.0, 0.005, 0.05, 0.5):
        held_out = sum(split_of(text, share) == "validation" for text in documents)
        deviation = (share * (1 - share) * len(documents)) ** 0.5
        assert abs(held_out - share * len(documents)) <= 4.5 * deviation  # 1 in 10^5


def test_a_split_never_changes():
    """The first 8 bytes of the sha256 of "robustly" are 0.82027 of 2**64: a promise about stores to
    come."""
    assert split_of("robustly", 0.8202) == "train"
    assert split_of("robustly", 0.8203) == "validation"
    assert split_of("Ünïcode\n", 0.4985) == "train"
    assert split_of("Ünïcode\n", 0.4986) == "validation"


@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(0, 0.999), st.floats(0, 0.999))
def test_a_larger_share_holds_out_what_a_smaller_one_does(text, one, other):
    small, large = sorted((one, other))
    assert split_of(text, small) == "train" or split_of(text, large) == "validation"


# ------------------------------------------------------------------------------------------- faults


def test_another_tokenizer_is_refused(tmp_path, tokenizer):
    write(tmp_path, tokenizer, [["the in"]])
    check_tokenizer(tmp_path, tokenizer)
    with pytest.raises(UserError, match=r"another tokenizer \(267 entries"):
        check_tokenizer(tmp_path, numbered_tokenizer())
    with pytest.raises(UserError, match="another tokenizer"):
        next(Store(tmp_path, "train").texts(numbered_tokenizer()))


@pytest.mark.parametrize("kind", store.ARRAYS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: np.save(path, np.zeros(3, np.float64)),
    ],
    ids=["missing", "empty", "cut off", "another type"],
)
def test_a_damaged_shard_is_named(tmp_path, tokenizer, kind, damage):
    write(tmp_path, tokenizer, [["the in"], ["er. er. er."]])
    damage(tmp_path / f"train-00001.{kind}.npy")
    with pytest.raises(UserError, match=rf"train-00001\.{kind}\.npy: .*make its folder anew"):
        list(Store(tmp_path, "train").texts(tokenizer))


def test_a_shard_of_another_length_is_named(tmp_path, tokenizer):
    write(tmp_path, tokenizer, [["the in"]])
    np.save(tmp_path / "train-00000.tokens.npy", np.zeros(99, np.uint16))
    with pytest.raises(UserError, match=r"train-00000\.tokens\.npy: 99 of uint16, expected 5:"):
        list(Store(tmp_path, "train").texts(tokenizer))


def test_folders_that_hold_no_store(tmp_path):
    with pytest.raises(UserError, match=r"no token store here.*robustly prepare"):
        Store(tmp_path, "train")

    (tmp_path / "store.json").write_text("{")
    with pytest.raises(UserError, match=r"store\.json: Invalid JSON"):
        Store(tmp_path, "train")

    (tmp_path / "store.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(UserError, match="format 2, expected 1"):
        Store(tmp_path, "train")


def test_nothing_is_left_of_a_shard_that_failed(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        ShardWriter(tmp_path, "train-00000", 0, EOS, np.dtype(np.uint16)) as writer,
    ):
        writer.append(np.zeros(5, np.uint16), np.array([5]), ["", ""])
        raise ZeroDivisionError

    assert not list(tmp_path.iterdir())


def test_moving_shards_goes_on_after_a_kill(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    NumberedStore(work, [[[3, 4]]])
    shard = Store(work, "train").shards[0]
    (work / "train-00000.tokens.npy").rename(tmp_path / "train-00000.tokens.npy")
    files = write_store(
        tmp_path, work, "hash", numbered_tokenizer(), ["a"], {"train": [shard], "validation": []}
    )
    assert all(file.parent == tmp_path and file.is_file() for file in files)
    assert Store(tmp_path, "train").stream_tokens == 10
