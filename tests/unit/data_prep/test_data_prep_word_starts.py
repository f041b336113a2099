"""Where words begin by the text: as a slow walk through it finds them, in blocks of every format,
from a file that is made anew if it does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_stores import VIEW, corpus, train_tokenizer, write_rows

from robustly import UserError
from robustly.config import InputPath
from robustly.corpus.config import Processing
from robustly.data_prep import word_starts as module
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.prepare import DataStage
from robustly.data_prep.store import Store
from robustly.data_prep.word_starts import WordMarker, open_word_starts
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.segmenters import segmenter
from stated import stated

TEXTS = [
    "今天天气很好。我们去公园玩吧！\n他说：“明天也去。”",
    "hello, world  x\n  more words",
    "ภาษาไทยง่ายมาก",
    "ACGT" * 30,
    *(f"第{n}天我们学习中文和 English words {n}." for n in range(40)),
]
MERGES = ("t h", "Ġ w", "o r", "A C", "G T", "AC GT", "ä »")  # the last: bytes of 今


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of two shards, with tokens that lie across words and amid characters."""
    folder = tmp_path_factory.mktemp("words")
    files = [
        str(write_rows(folder / "one.jsonl", TEXTS[:20])),
        str(write_rows(folder / "two.jsonl", TEXTS[20:])),
    ]
    trained = train_tokenizer(folder / "tokenizer", MERGES)
    config = stated(folder, corpus(*files))
    DataStage(config, VIEW, folder / "data", trained, Processing(1)).make()
    return folder


def list_of(folder, *words):
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return InputPath("words.txt", folder)


def slow(store, tokenizer, cut):
    """Of each shard's units: where words begin, token by token."""
    found = []
    for shard in store.shards:
        tokens, begin = store.tokens(shard), 0
        for end in store.unit_ends(shard).tolist():
            if tokens[begin] == store.eos_id:
                begin += 1  # the lone </s>

            ids = tokens[begin : end - 1]
            pieces, borders = cut(tokenizer.decode(ids)), set()
            for place in range(len(pieces)):
                borders.add(len("".join(pieces[:place]).encode()))

            places = [len(tokenizer.decode_bytes(ids[:place])) for place in range(len(ids))]
            found.append((shard, begin, [place in borders for place in places]))
            begin = end

    return found


@pytest.mark.parametrize("kind", ["icu", "list"])
def test_the_bits_are_those_of_a_slow_walk(made, kind):
    tokenizer, store = load_tokenizer(made / "tokenizer"), Store(made / "data", "train")
    words = "icu" if kind == "icu" else list_of(made, "今天", "天气", "我们", "world", "CGTA")
    starts = open_word_starts(store, words, tokenizer)
    units = slow(store, tokenizer, segmenter(words, "words"))
    assert len(units) == store.units and len(store.shards) == 2
    for shard, begin, expected in units:
        number = store.shards.index(shard)
        assert starts.read(number, begin, begin + len(expected)).tolist() == expected

    flat = np.concatenate([expected for _, _, expected in units])
    assert 0.05 < flat.mean() < 0.95


def test_a_token_in_two_words_makes_one_of_them(made):
    tokenizer = load_tokenizer(made / "tokenizer")
    (ids,) = tokenizer.encode_documents(["xACGTACGTx"])
    assert [tokenizer.decode([token]) for token in ids] == ["x", "ACGT", "ACGT", "x"]
    marker = WordMarker(list_of(made, "CGTA", "CGTx", "x"), tokenizer)
    assert marker.starts(ids).tolist() == [True, True, False, False]


def test_bytes_of_a_character_are_never_parted(made):
    tokenizer = load_tokenizer(made / "tokenizer")
    (ids,) = tokenizer.encode_documents(["天天"])
    assert len(ids) == 6
    starts = WordMarker(list_of(made, "天"), tokenizer).starts(ids)
    assert starts.tolist() == [True, False, False] * 2


@pytest.mark.parametrize(
    "format", ["full_sentences", "doc_sentences", "segment_pair", "sentence_pair", "none"]
)
def test_blocks_hold_the_starts_of_their_tokens(made, format):
    """Beside the ids, position by position; across shards, and for exchanged second segments."""
    tokenizer = load_tokenizer(made / "tokenizer")
    blocks = Blocks(made / "data", "train", 24, format)
    blocks.mark_words("icu", tokenizer)
    stream = np.concatenate([blocks.store.tokens(shard) for shard in blocks.store.shards])
    bits = np.concatenate(
        [
            blocks.word_starts.read(number, 0, shard.tokens)
            for number, shard in enumerate(blocks.store.shards)
        ]
    )
    every = np.arange(len(blocks))
    seconds = np.roll(every, 1)
    ids, lengths = blocks.gather(every, seconds)
    starts = blocks.gather_word_starts(every, seconds)
    for number in range(len(blocks)):
        for at, begin, tokens in blocks.slices(number, int(seconds[number])):
            assert (ids[number, at : at + tokens] == stream[begin : begin + tokens]).all()
            assert (starts[number, at : at + tokens] == bits[begin : begin + tokens]).all()
    assert not starts[np.arange(24) >= lengths[:, None]].any()


@pytest.mark.processes
def test_workers_make_the_same_file(made, monkeypatch):
    tokenizer, store = load_tokenizer(made / "tokenizer"), Store(made / "data", "train")
    alone = open_word_starts(store, "icu", tokenizer).sha256
    for path in (made / "data" / "views").glob("words-train-icu-*"):
        path.unlink()

    monkeypatch.setattr(module, "WORTH_WORKERS", 0)
    assert open_word_starts(store, "icu", tokenizer, workers=2).sha256 == alone


def views(folder: Path, name: str) -> Path:
    (path,) = (folder / "data" / "views").glob(f"words-train-{name}-*.npy")
    return path


@pytest.mark.parametrize("damage", ["bit", "version", "manifest", "deleted"])
def test_what_does_not_fit_is_made_anew(made, damage, capfd):
    tokenizer, store = load_tokenizer(made / "tokenizer"), Store(made / "data", "train")
    right = open_word_starts(store, "icu", tokenizer).sha256
    path = views(made, "icu")
    content, beside = path.read_bytes(), path.with_suffix(".json")
    manifest = json.loads(beside.read_text())
    assert manifest["made_of"]["words"] == "icu" and manifest["sha256"] == right
    if damage == "bit":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 128]))
    elif damage == "version":
        manifest["made_of"]["word_starts"] -= 1
        beside.write_text(json.dumps(manifest))
    elif damage == "manifest":
        beside.unlink()
    else:
        path.unlink()

    assert open_word_starts(store, "icu", tokenizer).sha256 == right
    assert path.read_bytes() == content
    assert ("made anew" in capfd.readouterr().err) == (damage != "deleted")


def test_another_list_is_another_file(made):
    tokenizer, store = load_tokenizer(made / "tokenizer"), Store(made / "data", "train")
    one = open_word_starts(store, list_of(made, "今天"), tokenizer)
    other = open_word_starts(store, list_of(made, "天气"), tokenizer)
    assert one.sha256 != other.sha256


def test_a_known_list_need_not_be_there(made):
    """As where a run is published long after it was trained."""
    tokenizer, store = load_tokenizer(made / "tokenizer"), Store(made / "data", "train")
    words = list_of(made, "我们", "学习")
    right = open_word_starts(store, words, tokenizer)
    digest = module._list_hash(words)
    (made / "words.txt").unlink()
    again = open_word_starts(store, words, tokenizer, list_sha256=digest)
    assert again.sha256 == right.sha256

    views(made, digest[:16]).unlink()
    with pytest.raises(UserError, match=r"masking\.words: words\.txt: no file there"):
        open_word_starts(store, words, tokenizer, list_sha256=digest)

    list_of(made, "others")
    with pytest.raises(UserError, match="not the list of words that the run was given"):
        open_word_starts(store, words, tokenizer, list_sha256=digest)


def test_a_segmenter_that_is_not_installed_is_asked_for_where_the_file_is_missing(
    made, monkeypatch
):
    tokenizer, store = load_tokenizer(made / "tokenizer"), Store(made / "data", "validation")
    open_word_starts(Store(made / "data", "train"), "icu", tokenizer)
    monkeypatch.setitem(__import__("sys").modules, "icu4py.breakers", None)
    open_word_starts(Store(made / "data", "train"), "icu", tokenizer)
    with pytest.raises(UserError, match=r"masking.words = icu: .*not installed; pip install"):
        open_word_starts(store, "icu", tokenizer)


def test_tokens_that_are_no_text_are_no_traceback(made, tmp_path):
    import shutil

    tokenizer = load_tokenizer(made / "tokenizer")
    shutil.copytree(made / "data", tmp_path / "data", ignore=shutil.ignore_patterns("views"))
    store = Store(tmp_path / "data", "train")
    path = tmp_path / "data" / f"{store.shards[0].name}.tokens.npy"
    tokens = np.load(path)
    (middle,) = tokenizer.encode_documents(["天"])
    tokens[0] = middle[1]
    np.save(path, tokens)
    with pytest.raises(UserError, match="its tokens are no text"):
        open_word_starts(store, "icu", tokenizer)
