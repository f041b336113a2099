"""Counts: the same whatever the memory, the format of the files, and sums of many of them."""

import json
import random
import sys
import tracemalloc
from collections import Counter
from unittest import mock

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustly.tokenizer import counts
from robustly.tokenizer.counts import (
    MAX_COUNT,
    WordCounter,
    few_files,
    parse_count,
    read_counts,
    sum_sorted,
    write_counts,
    write_sum,
)
from robustly.tokenizer.words import split_words


def counted(folder, texts, memory):
    counter = WordCounter(folder / "words.tsv", memory)
    for text in texts:
        counter.add_text(text)
    counter.finish()
    return counter, (folder / "words.tsv").read_bytes()


def test_words_are_counted(tmp_path, prose):
    counter, _ = counted(tmp_path, prose, 2**30)
    expected = Counter(word for text in prose for word in split_words(text))
    assert list(read_counts(tmp_path / "words.tsv")) == sorted(expected.items())
    assert counter.words == expected.total()


def test_the_same_bytes_whatever_the_memory(tmp_path, prose):
    with mock.patch.object(counts, "BATCH", 500):
        plenty, expected = counted(tmp_path, prose, 2**30)
        with mock.patch.object(counts, "write_counts", wraps=write_counts) as writing:
            scarce, found = counted(tmp_path, prose, 100_000)

    runs = [call.args[0].name for call in writing.call_args_list if ".run-" in call.args[0].name]
    assert len(runs) > 10 and len(set(runs)) == len(runs)
    assert found == expected and scarce.words == plenty.words
    assert [path.name for path in tmp_path.iterdir()] == ["words.tsv"]


@pytest.mark.parametrize("letter", ["a", "\u4e00", "\U0001f600"])
def test_memory_is_bounded(tmp_path, letter):
    """What Python allocates for 200,000 distinct words stays below what the counter may take, and a
    batch."""
    limit = 8 * 2**20
    firsts = range(0, 200_000, 1000)
    texts = (
        " ".join(f"{letter}{number}x" for number in range(first, first + 1000)) for first in firsts
    )
    tracemalloc.start()

    try:
        before = tracemalloc.get_traced_memory()[0]
        counted(tmp_path, texts, limit)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()

    batch = counts.BATCH * (sys.getsizeof(f" {letter}123456x") + 8)
    assert peak < limit + 2 * batch
    assert sum(1 for _ in read_counts(tmp_path / "words.tsv")) > 200_000


def test_counts_from_elsewhere_are_added(tmp_path):
    counter = WordCounter(tmp_path / "words.tsv", 2**20)
    counter.add_counts([("b", 2**40), ("a", 1), ("b", 1)])
    counter.finish()
    assert list(read_counts(tmp_path / "words.tsv")) == [("a", 1), ("b", 2**40 + 1)]
    assert counter.words == 2**40 + 2


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


def test_counts_of_many_files_add_up(tmp_path):
    draw = random.Random(1)
    total, paths = Counter(), []
    for number in range(30):
        some = Counter(
            draw.choices([f"w{i}" for i in range(50)] + ["\ue000", "\U00010000", '"', "\n"], k=20)
        )
        total += some
        paths.append(tmp_path / f"{number}.tsv")
        write_counts(paths[-1], sorted(some.items()))

    for fan_in in (2, 7, 64):
        widest = []

        def add(additions, level, widest=widest):
            for addition in additions:
                widest.append(len(addition.files))
                write_sum(0, addition)

        with mock.patch.object(counts, "FAN_IN", fan_in):
            few = few_files(paths, add)
            assert len(few) <= fan_in and max(widest, default=0) <= fan_in
            assert list(sum_sorted(few)) == sorted(total.items())


def test_progress_is_shown_in_rows(tmp_path, capsys):
    for name in ("a", "b"):
        write_counts(tmp_path / f"{name}.tsv", [(f"w{number:02d}", 1) for number in range(25)])

    paths = [tmp_path / "a.tsv", tmp_path / "b.tsv"]
    with mock.patch.object(counts, "BATCH", 20), mock.patch("robustly.log.PLAIN_EVERY", 0):
        shown = list(sum_sorted(paths, "adding up"))

    assert shown == list(sum_sorted(paths)) == [(f"w{number:02d}", 2) for number in range(25)]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" words")[0] for line in lines] == [
        f"adding up: {done} of 50" for done in (20, 40, 50)
    ]
