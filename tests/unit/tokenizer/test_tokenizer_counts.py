"""Counts: the same whatever the memory, the format of the files, and sums of many of them."""

import json
import random
import tracemalloc
from collections import Counter
from unittest import mock

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tokenizer_words import MARKED

from robustly import UserError
from robustly.tokenizer import counts, keys, word_counts
from robustly.tokenizer.counts import (
    MAX_COUNT,
    WordCounter,
    few_files,
    merged,
    parse_count,
    read_counts,
    read_words,
    write_counts,
    write_sum,
    write_words,
)
from robustly.tokenizer.word_counts import CountTable, words_of
from robustly.tokenizer.words import PATTERNS, split_words


def counted(folder, texts, memory, pattern="gpt2", by_line=False):
    counter = WordCounter(folder / "a.words", memory, pattern, by_line)
    for text in texts:
        counter.add_text(text)
    counter.finish()
    return counter, (folder / "a.words").read_bytes()


def rows_of(path):
    return [row for block in read_words(path) for row in block.spelled()]


def expected_of(texts, pattern="gpt2"):
    return Counter(word for text in texts for word in split_words(text, pattern))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("by_line", [False, True])
def test_words_are_counted(tmp_path, prose, pattern, by_line):
    counter, _ = counted(tmp_path, prose, 2**30, pattern, by_line)
    pieces = [line for text in prose for line in text.splitlines(True)] if by_line else prose
    expected = expected_of(pieces, pattern)
    assert rows_of(tmp_path / "a.words") == sorted(expected.items())
    assert counter.words == expected.total()


@given(st.lists(MARKED, max_size=8))
def test_words_of_any_texts_are_counted(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("counts")
    for pattern in PATTERNS:
        counted(folder, texts, 2**20, pattern)
        assert rows_of(folder / "a.words") == sorted(expected_of(texts, pattern).items())


@given(st.lists(st.text("ab\0é中😀", min_size=1, max_size=40), max_size=60))
def test_words_come_in_the_order_of_their_code_points(words):
    """Of any length: the first 15 bytes are compared as numbers, what is behind them as it is."""
    table = CountTable(2**30)
    expected = Counter(word + end for word in words for end in ("", "x" * 20, "x" * 300))
    spelled = [word.encode() for word in expected]
    assert not list(table.add_words(words_of(spelled, np.array([*expected.values()], np.int64))))
    assert list(table.take().spelled()) == sorted(expected.items())
    assert len(table) == 0 and not list(table.take().spelled())


def test_the_same_bytes_whatever_the_memory(tmp_path, prose, monkeypatch):
    monkeypatch.setattr(word_counts, "SMALLEST", 64)
    with mock.patch.object(counts, "WAITING", 500):
        plenty, expected = counted(tmp_path, prose, 2**30)
        with mock.patch.object(counts, "write_words", wraps=write_words) as writing:
            scarce, found = counted(tmp_path, prose, 120_000)

    runs = [call.args[0].name for call in writing.call_args_list if ".run-" in call.args[0].name]
    assert len(runs) > 10 and len(set(runs)) == len(runs)
    assert rows_of(tmp_path / "a.words") == sorted(expected_of(prose).items())
    assert scarce.words == plenty.words and len(found) >= len(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["a.words"]


@pytest.mark.parametrize("letter", ["a", "\u4e00", "\U0001f600" * 5])
def test_memory_is_bounded(tmp_path, letter):
    """What Python allocates for 200,000 distinct words stays below what the counter may take, and
    the texts that are counted at once."""
    limit = 8 * 2**20
    firsts = range(0, 200_000, 1000)
    texts = (
        " ".join(f"{letter}{number}x" for number in range(first, first + 1000)) for first in firsts
    )
    counted(tmp_path, ["compiled"], limit)
    tracemalloc.start()

    try:
        before = tracemalloc.get_traced_memory()[0]
        counted(tmp_path, texts, limit)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()

    assert peak < limit + 8 * counts.WAITING
    assert len(rows_of(tmp_path / "a.words")) > 200_000


def test_a_word_larger_than_the_memory(tmp_path):
    texts = ["a" * 3_000_000, " " * 2_000_000 + "b"]
    counted(tmp_path, texts, 2**20)
    assert rows_of(tmp_path / "a.words") == sorted(
        {"a" * 3_000_000: 1, " " * 1_999_999: 1, " b": 1}.items()
    )


def test_words_of_the_same_hash_are_told_apart(monkeypatch):
    """Of more than 15 bytes; shorter ones are their own hash."""
    table = CountTable(2**20)
    for text in (b" extraordinarily", b" uncharacteristic"):
        assert not list(table.add_texts(text, np.array([len(text)]), "gpt2"))

    slots = table._table.slots
    first, second = np.flatnonzero(slots[:, keys.HIGH])
    slots[second, : keys.HIGH + 1] = slots[first, : keys.HIGH + 1]  # as if both had it
    slots[(keys.home(slots, *slots[first, : keys.HIGH + 1]) + 1) % len(slots)] = slots[second]
    assert sorted(table.take().spelled())[0] == (" extraordinarily", 1)


def test_counts_from_elsewhere_are_added(tmp_path):
    counter = WordCounter(tmp_path / "a.words", 2**20)
    counter.add_counts([("b", 2**40), ("a", 1), ("b", 1)])
    counter.finish()
    assert rows_of(tmp_path / "a.words") == [("a", 1), ("b", 2**40 + 1)]
    assert counter.words == 2**40 + 2


def test_counts_beyond_63_bits_are_refused(tmp_path):
    counter = WordCounter(tmp_path / "a.words", 2**20)
    with pytest.raises(UserError, match="more than 9,223,372,036,854,775,807 bytes of text"):
        counter.add_counts([("b", MAX_COUNT), ("a", 1)])


HARD = {
    'a\t"\n': 1,
    "\u2028é\U0001f600": 2**40,
    " the": 3,
    "\r": 4,
    "\\": 5,
    "\\n": 6,
    "\x85": 7,
    '"': MAX_COUNT,
}


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.zst"])
def test_counts_come_back_from_a_file(tmp_path, name):
    rows = sorted(HARD.items())
    write_counts(tmp_path / name, rows)
    assert list(read_counts(tmp_path / name)) == rows
    raw = (tmp_path / name).read_bytes()
    text = (
        pyarrow.CompressedInputStream(pyarrow.py_buffer(raw), "zstd").read()
        if name.endswith("zst")
        else raw
    )
    lines = text.decode().rstrip("\n").split("\n")
    assert [
        (json.loads(word), int(number)) for number, word in (line.split("\t") for line in lines)
    ] == rows


def test_a_compressed_file_of_many_frames(tmp_path):
    rows = [(f"w{number:06d}", number + 1) for number in range(2000)]
    with mock.patch.object(counts, "BATCH", 300):
        write_counts(tmp_path / "a.tsv.zst", rows)
    assert list(read_counts(tmp_path / "a.tsv.zst")) == rows


@given(
    st.text(min_size=1).filter(lambda text: len(split_words(text)) == 1),
    st.integers(0, MAX_COUNT),
    st.booleans(),
)
def test_a_line_from_elsewhere(word, number, ascii_only):
    try:
        word.encode()
    except UnicodeEncodeError:
        return
    assert parse_count(f"{number}\t{json.dumps(word, ensure_ascii=ascii_only)}\n", "gpt2") == (
        word,
        number,
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("12 word", "there is no tab"),
        ('x\t"a"', "expected a count before the tab, found 'x'"),
        ('-1\t"a"', "expected a count before the tab"),
        ('1.5\t"a"', "expected a count before the tab"),
        (f'{2**63}\t"a"', f"a count of at most {2**63 - 1}"),
        ("3\tword", "expected the word as a JSON string"),
        ("3\t7", "expected the word as a JSON string"),
        ('3\t"\\ud800"', "half of a surrogate pair"),
        ('3\t"two words"', "is 2 words for tokenizer.pattern gpt2"),
        ('3\t""', "is 0 words"),
    ],
)
def test_lines_that_are_no_counts(line, message):
    with pytest.raises(ValueError, match="^.*" + message.replace("(", r"\(")):
        parse_count(line, "gpt2")


def of_words(path, rows):
    rows = sorted(rows.items())
    spelled, numbers = [word.encode() for word, _ in rows], [number for _, number in rows]
    write_words(path, [words_of(spelled, np.array(numbers, np.int64))])
    return path


@pytest.mark.parametrize("block", [2, 7, 2**14])
def test_counts_of_many_files_add_up(tmp_path, block, monkeypatch):
    monkeypatch.setattr(counts, "BLOCK", block)
    draw = random.Random(1)
    total, paths = Counter(), []
    for number in range(30):
        some = Counter(
            draw.choices([f"w{i}" for i in range(50)] + ["\ue000", "\U00010000", '"', "\n"], k=20)
        )
        total += some
        paths.append(of_words(tmp_path / f"{number}.words", some))

    paths.append(of_words(tmp_path / "none.words", {}))

    for fan_in in (2, 7, 64):
        widest = []

        def add(additions, level, widest=widest):
            for addition in additions:
                widest.append(len(addition.files))
                write_sum(0, addition)

        with mock.patch.object(counts, "FAN_IN", fan_in):
            few = few_files(paths, add)
            assert len(few) <= fan_in and max(widest, default=0) <= fan_in
            found = [row for words in merged(few) for row in words.spelled()]
            assert found == sorted(total.items())


def test_progress_is_shown_in_words(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(counts, "BLOCK", 10)
    rows = {f"w{number:02d}": 1 for number in range(25)}
    paths = [of_words(tmp_path / f"{name}.words", rows) for name in ("a", "b")]
    with mock.patch("robustly.log.PLAIN_EVERY", 0):
        found = [row for words in merged(paths, "adding up") for row in words.spelled()]

    assert found == [(f"w{number:02d}", 2) for number in range(25)]
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].split(" words")[0] == "adding up: 50 of 50"
