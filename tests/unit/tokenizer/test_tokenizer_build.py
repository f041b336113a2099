"""The stage: the same files whatever the circumstances, from exactly the documents of the
corpus."""

import gzip
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from unittest import mock

import pytest
from tokenizers import Tokenizer as Reference
from tokenizers import models, pre_tokenizers, trainers

from robustly import UserError, manifest
from robustly.corpus import partitions as partitioning
from robustly.corpus.config import Processing, SlurmConfig
from robustly.corpus.files import remembered_files
from robustly.files import WORK_LOCK, lock, sha256
from robustly.inspection.describe import describe_folder
from robustly.tokenizer import counting, merges
from robustly.tokenizer.build import TokenizerStage
from robustly.tokenizer.config import TokenizerConfig
from robustly.tokenizer.counts import read_counts
from robustly.tokenizer.reading import read_vocabulary
from robustly.tokenizer.special_tokens import CONTROL_TOKENS
from robustly.tokenizer.words import split_words
from stated import stated

NAMES = [
    "counts.tsv.zst",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
]

ONE = Processing(workers=1)

BUILD = """
import sys
from pathlib import Path
from robustly.corpus import partitions
from robustly.corpus.config import CorpusConfig, Processing
from robustly.tokenizer.build import TokenizerStage
from robustly.tokenizer.config import TokenizerConfig

if __name__ == "__main__":
    source, folder, workers = sys.argv[1:]
    corpus = CorpusConfig(sources=source, documents="blank_line", text_key="text", validation=0.1)
    partitions.PARTITION_BYTES = 10_000
    size = TokenizerConfig(vocab_size=600, min_frequency=2)
    TokenizerStage(corpus, size, Path(folder), Processing(int(workers))).make()
"""


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "build.py"
    path.write_text(BUILD)
    return path


def contents(folder):
    return {name: (folder / name).read_bytes() for name in NAMES}


def words_files(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("work/*/words-*.words")}


def test_a_finished_stage(trained, prose, prose_file):
    done = manifest.require(trained, "tokenizer")
    assert sorted(done.outputs) == NAMES
    left = sorted(path.name for path in trained.iterdir() if path.name not in (".lock", WORK_LOCK))
    assert left == sorted([*NAMES, "files.json", "manifest.json", "recipe.json"])
    words = [word for text in prose for word in split_words(text)]
    assert done.counts["documents"] == len(prose)
    assert done.counts["bytes"] == sum(len(text.encode()) for text in prose)
    assert done.counts["words"] == len(words)
    assert done.counts["distinct_words"] == len(set(words))
    assert (done.counts["entries"], done.counts["merges"], done.counts["bad_lines"]) == (
        1000,
        739,
        0,
    )
    assert done.counts["bytes_per_token"] == pytest.approx(
        done.counts["bytes"] / done.counts["tokens"], abs=1e-4
    )
    assert remembered_files(trained)[str(prose_file)]["sha256"] == sha256(prose_file)
    assert str(prose_file) not in json.dumps([done.recipe, done.inputs])


def test_ids_are_laid_out_as_in_roberta(trained):
    ids = read_vocabulary(trained).ids
    assert [ids[token] for token in ("<s>", "<pad>", "</s>", "<unk>", "!", "~", "¡", "Ā", "Ń", "<mask>")] == [
        0, 1, 2, 3, 4, 97, 98, 192, 259, 999,
    ]  # fmt: skip
    left, right = read_vocabulary(trained).merges[0]
    assert ids[left + right] == 260


def test_the_same_command_again_does_nothing(trained, prose_file, corpus_of):
    before = contents(trained)
    with mock.patch.object(counting, "process", side_effect=AssertionError("counted again")):
        done = TokenizerStage(
            corpus_of(prose_file), TokenizerConfig(vocab_size=1000, min_frequency=2), trained, ONE
        ).make()

    assert done == manifest.read(trained)
    assert not (trained / "work").exists()
    assert contents(trained) == before


def test_another_recipe_does_not_overwrite(trained, prose_file, corpus_of):
    before = contents(trained)
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size: 1000 there, 900 now"):
        TokenizerStage(
            corpus_of(prose_file), TokenizerConfig(vocab_size=900, min_frequency=2), trained, ONE
        ).make()
    assert contents(trained) == before


@pytest.mark.processes
def test_the_same_files_for_any_parts_workers_and_hash_seed(
    corpus_of, prose_file, program, tmp_path
):
    TokenizerStage(
        corpus_of(prose_file),
        TokenizerConfig(vocab_size=600, min_frequency=2),
        tmp_path / "one",
        ONE,
    ).make()
    command = [sys.executable, program, prose_file, tmp_path / "two", "2"]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "1"}, check=True)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert not (tmp_path / "two" / "work").exists()


@pytest.mark.processes
def test_after_a_kill_only_the_rest_is_counted(corpus_of, prose_file, program, tmp_path):
    folder = tmp_path / "tokenizer"
    with subprocess.Popen([sys.executable, program, prose_file, folder, "2"]) as run:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("work/*/tasks/completions/*"))) < 3:
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.001)

        # the main process alone: its workers must end by themselves, or the folder stays locked
        run.kill()

    assert manifest.read(folder) is None
    done = [int(path.name) for path in folder.glob("work/*/tasks/completions/*")]
    before = words_files(folder)

    with (
        mock.patch.object(partitioning, "PARTITION_BYTES", 10_000),
        mock.patch.object(manifest.shutil, "rmtree"),  # leaves the counts to look at
    ):
        TokenizerStage(
            corpus_of(prose_file), TokenizerConfig(vocab_size=600, min_frequency=2), folder, ONE
        ).make()

    after = words_files(folder)
    assert 3 <= len(done) < len(after)
    assert all(
        after[f"words-{number:05d}.words"] == before[f"words-{number:05d}.words"] for number in done
    )
    TokenizerStage(
        corpus_of(prose_file),
        TokenizerConfig(vocab_size=600, min_frequency=2),
        tmp_path / "straight",
        ONE,
    ).make()
    assert contents(folder) == contents(tmp_path / "straight")


def test_a_vocabulary_too_large_for_the_corpus(corpus_of, tmp_path):
    (tmp_path / "a.txt").write_text("abc abc abd")
    corpus, folder = corpus_of(tmp_path / "a.txt"), tmp_path / "tokenizer"
    with pytest.raises(
        UserError, match=r"vocab_size = 5000: the corpus gives no more than 263 entries.* lower"
    ):
        TokenizerStage(
            corpus, TokenizerConfig(vocab_size=5000, min_frequency=2), folder, ONE
        ).make()

    with mock.patch.object(counting, "documents", side_effect=AssertionError("counted again")):
        done = TokenizerStage(
            corpus, TokenizerConfig(vocab_size=263, min_frequency=2), folder, ONE
        ).make()

    assert (done.counts["merges"], done.counts["documents"]) == (2, 1)
    assert read_vocabulary(folder).merges == [("a", "b"), ("Ġ", "ab")]


def test_the_smallest_vocabulary_is_bytes_alone(corpus_of, tmp_path):
    (tmp_path / "a.txt").write_text("abc abc")
    done = TokenizerStage(
        corpus_of(tmp_path / "a.txt"),
        TokenizerConfig(vocab_size=261, min_frequency=2),
        tmp_path / "t",
        ONE,
    ).make()
    assert (done.counts["merges"], done.counts["tokens"], done.counts["bytes_per_token"]) == (
        0,
        7,
        1.0,
    )


@pytest.mark.parametrize("text", ["", "\n \n\n"])
def test_a_corpus_without_text_is_refused(corpus_of, tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=r"corpus\.sources: no text in .*a\.txt"):
        TokenizerStage(
            corpus_of(tmp_path / "a.txt"),
            TokenizerConfig(vocab_size=300, min_frequency=2),
            tmp_path / "t",
            ONE,
        ).make()


def test_a_mended_corpus_is_not_refused(corpus_of, tmp_path):
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_bytes(b"xyz xyz xyz xyz")  # counted before the fault is found
    second.write_bytes(b"abc \xff abc")
    arguments = (
        corpus_of(first, second, max_bad_lines=0),
        TokenizerConfig(vocab_size=262, min_frequency=2),
        tmp_path / "t",
        ONE,
    )
    with pytest.raises(UserError, match="not UTF-8"):
        TokenizerStage(*arguments).make()

    assert len(words_files(tmp_path / "t")) == 1
    first.write_bytes(b"abd")
    second.write_bytes(b"abc abc")
    assert TokenizerStage(*arguments).make().counts["bytes"] == 10
    assert read_vocabulary(tmp_path / "t").merges == [("a", "b")]


def test_bad_rows_are_held_against_the_whole_corpus(corpus_of, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "abc abc"}\nbroken\n')

    size = TokenizerConfig(vocab_size=262, min_frequency=2)
    with pytest.raises(UserError, match=r"b\.jsonl: line 2 .*\n2 broken rows"):
        TokenizerStage(
            corpus_of(str(tmp_path / "*.jsonl"), max_bad_lines=1), size, tmp_path / "one", ONE
        ).make()

    done = TokenizerStage(
        corpus_of(str(tmp_path / "*.jsonl"), max_bad_lines=2), size, tmp_path / "two", ONE
    ).make()
    assert (done.counts["bad_lines"], done.counts["documents"]) == (2, 2)


def test_engines_that_disagree_end_the_stage(corpus_of, prose_file, tmp_path):
    with (
        mock.patch.dict("robustly.tokenizer.tokenizer.PATTERNS", gpt2=r"\s+|\S+"),
        pytest.raises(
            UserError, match="tiktoken and tokenizers encode a text of the corpus differently"
        ),
    ):
        TokenizerStage(
            corpus_of(prose_file),
            TokenizerConfig(vocab_size=600, min_frequency=2),
            tmp_path / "t",
            ONE,
        ).make()

    assert manifest.read(tmp_path / "t") is None


# ----------------------------------------------------------------------------- what the config says


def settings(**keys):
    return TokenizerConfig.model_validate({"vocab_size": 600, "min_frequency": 2, **keys})


def words_of(folder):
    return dict(read_counts(folder / "counts.tsv.zst"))


def test_counts_stay_and_make_the_same_tokenizer(trained, prose, corpus_of, tmp_path):
    expected = Counter(word for text in prose for word in split_words(text))
    assert list(read_counts(trained / "counts.tsv.zst")) == sorted(expected.items())
    tsv = trained / "counts.tsv.zst"
    done = TokenizerStage(
        corpus_of(counts=str(tsv)),
        TokenizerConfig(vocab_size=1000, min_frequency=2),
        tmp_path / "t",
        ONE,
    ).make()
    assert contents(tmp_path / "t") == contents(trained)
    assert (done.counts["words"], done.counts["bytes"]) == (
        expected.total(),
        sum(len(text.encode()) for text in prose),
    )
    assert not {"documents", "bad_lines"} & done.counts.keys()


@pytest.mark.processes
def test_counts_from_another_engine(trained, corpus_of, tmp_path):
    """Unsorted, in several files, some words in both, escaped, compressed or not: the sums are what
    matters."""
    rows = list(read_counts(trained / "counts.tsv.zst"))
    random.Random(3).shuffle(rows)
    first = "".join(f"{number}\t{json.dumps(word)}\r\n" for word, number in rows[: len(rows) // 2])
    rest = [*rows[len(rows) // 2 :], ("zq", 3), ("zq", 4)]
    last = "".join(f"{number}\t{json.dumps(word, ensure_ascii=False)}\n" for word, number in rest)
    (tmp_path / "a.tsv").write_bytes(first.encode())
    with gzip.open(tmp_path / "b.tsv.gz", "wb") as file:
        file.write(last.encode())

    corpus = corpus_of(counts=[str(tmp_path / "*.tsv"), "b.tsv.gz"])
    TokenizerStage(
        stated(tmp_path, corpus),
        stated(tmp_path, TokenizerConfig(vocab_size=1000, min_frequency=2)),
        tmp_path / "t",
        Processing(2),
    ).make()
    expected = words_of(trained)
    expected["zq"] = expected.get("zq", 0) + 7
    assert words_of(tmp_path / "t") == expected
    assert read_vocabulary(tmp_path / "t").merges[:500] == read_vocabulary(trained).merges[:500]


@pytest.mark.parametrize("many", [2**31, 2**32, 2**40])
def test_counts_beyond_32_bits_in_a_file(corpus_of, tmp_path, many):
    """xy is rarer than the other pairs for whoever counts in 32 bits."""
    rows = {"xy": many // 2 + 5, "zxy": many // 2 + 5, "ab": many - 1, "cd": 7}
    for number in range(2):  # the sum of both is what is large
        lines = [f"{(count + number) // 2}\t{json.dumps(word)}\n" for word, count in rows.items()]
        (tmp_path / f"{number}.tsv").write_text("".join(lines))

    TokenizerStage(
        corpus_of(counts=str(tmp_path / "*.tsv")), settings(vocab_size=263), tmp_path / "t", ONE
    ).make()
    assert words_of(tmp_path / "t") == rows
    assert read_vocabulary(tmp_path / "t").merges == [("x", "y"), ("a", "b")]


def test_counts_stand_for_the_text_even_where_sources_are_given(
    trained, corpus_of, prose_file, tmp_path
):
    corpus = corpus_of(prose_file, counts=str(trained / "counts.tsv.zst"))
    TokenizerStage(
        corpus, TokenizerConfig(vocab_size=1000, min_frequency=2), tmp_path / "t", ONE
    ).make()
    assert contents(tmp_path / "t") == contents(trained)
    for name, number in (("a", 5), ("b", 6)):
        (tmp_path / f"{name}.tsv").write_text(f'{number}\t"abc"\n')

    first = corpus_of(prose_file, counts=str(tmp_path / "a.tsv"))
    TokenizerStage(first, settings(vocab_size=263), tmp_path / "u", ONE).make()

    with pytest.raises(UserError, match="counts"):
        TokenizerStage(
            corpus_of(prose_file, counts=str(tmp_path / "b.tsv")),
            settings(vocab_size=263),
            tmp_path / "u",
            ONE,
        ).make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('7\t"a"\n\n3 "b"\n', r"a\.tsv: line 3 \(byte 7 of the text\): expected a count, a tab"),
        ('7\t"a b"\n', r"a\.tsv: line 1 .*: 'a b' is 2 words for tokenizer.pattern gpt2: 'a\| b'"),
        ("", r"corpus\.counts: no words in .*a\.tsv"),
        ('0\t"a"\n', r"corpus\.counts: no words in .*a\.tsv"),
    ],
)
def test_broken_counts(corpus_of, tmp_path, text, message):
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(UserError, match=message):
        TokenizerStage(
            corpus_of(counts=str(tmp_path / "a.tsv")), settings(), tmp_path / "t", ONE
        ).make()


def test_counts_have_a_way_of_counting_already(corpus_of, tmp_path):
    (tmp_path / "a.tsv").write_text('7\t"a"\n3\t"e\u0301"\n0\t"b"\n', encoding="utf-8")
    corpus = corpus_of(counts=str(tmp_path / "a.tsv"))
    with pytest.raises(UserError, match=r"count_by = line: corpus\.counts are counted already"):
        TokenizerStage(corpus, settings(count_by="line"), tmp_path / "t", ONE).make()

    (tmp_path / "a.tsv").write_text('7\t"a"\n3\t"\u1100\u1161"\n', encoding="utf-8")

    with pytest.raises(
        UserError, match=r"a\.tsv: line 2 .* is not in NFC, as tokenizer\.normalization wants it"
    ):
        TokenizerStage(corpus, settings(normalization="nfc"), tmp_path / "t", ONE).make()


def test_words_that_never_occur_are_left_out(corpus_of, tmp_path):
    (tmp_path / "a.tsv").write_text('7\t"a"\n0\t"b"\n')
    done = TokenizerStage(
        corpus_of(counts=str(tmp_path / "a.tsv")), settings(vocab_size=261), tmp_path / "t", ONE
    ).make()
    assert (done.counts["distinct_words"], done.counts["words"]) == (1, 7)


def test_counts_that_are_not_there(corpus_of, tmp_path):
    with pytest.raises(
        UserError, match=r"corpus\.counts: x\.tsv: no file there.*expected word counts: \.tsv"
    ):
        TokenizerStage(
            stated(tmp_path, corpus_of(counts="x.tsv")),
            stated(tmp_path, settings()),
            tmp_path / "t",
            ONE,
        ).make()

    (tmp_path / "x.csv").write_text("")
    with pytest.raises(
        UserError, match=r"x\.csv: unknown kind of file: expected word counts: \.tsv"
    ):
        TokenizerStage(
            stated(tmp_path, corpus_of(counts="x.csv")),
            stated(tmp_path, settings()),
            tmp_path / "t",
            ONE,
        ).make()


def test_one_command_at_a_time_in_a_folder(corpus_of, prose_file, tmp_path, monkeypatch):
    """Whatever the other one counts: what is at work must not be deleted."""
    monkeypatch.setattr(manifest.lock.__wrapped__, "__defaults__", (".lock", 0.0))
    with (
        lock(tmp_path / "t", WORK_LOCK),
        pytest.raises(UserError, match="another process is at work here"),
    ):
        TokenizerStage(corpus_of(prose_file), settings(count_by="line"), tmp_path / "t", ONE).make()


def test_a_size_beyond_all_merges(corpus_of, tmp_path):
    (tmp_path / "a.txt").write_text("abc abc abd")
    size = settings(vocab_size=2**31, accept_fewer=True)
    with mock.patch("robustly.tokenizer.merges._train", wraps=merges._train) as training:
        assert (
            TokenizerStage(corpus_of(tmp_path / "a.txt"), size, tmp_path / "t", ONE)
            .make()
            .counts["entries"]
            == 263
        )

    assert training.call_args.args[3] == len("abc") + len(" abc") + len(
        " abd"
    )  # a merge takes a place at least


def test_counts_are_no_text(corpus_of, tmp_path):
    (tmp_path / "a.tsv").write_text('7\t"a"\n')
    with pytest.raises(
        UserError,
        match=r"a\.tsv: no column 'text' .*its columns, by the first row: 7, a; .*corpus.counts",
    ):
        TokenizerStage(corpus_of(tmp_path / "a.tsv"), settings(), tmp_path / "t", ONE).make()

    with pytest.raises(ValueError, match="no sources: expected at least one"):
        corpus_of()


def test_lines_may_be_counted_instead_of_documents(corpus_of, tmp_path):
    (tmp_path / "a.txt").write_text("one \u2028\n two\n\n three\n")
    for unit, words in (
        ("document", {"one": 1, " \u2028\n": 1, "\n\n": 1, "\n": 1, " two": 1, " three": 1}),
        ("line", {"one": 1, " \u2028\n": 1, "\n": 3, " two": 1, " three": 1}),
    ):
        TokenizerStage(
            corpus_of(tmp_path / "a.txt", documents="file"),
            settings(vocab_size=261, count_by=unit),
            tmp_path / unit,
            ONE,
        ).make()
        assert words_of(tmp_path / unit) == words


def test_lines_are_counted_as_tokenizers_reads_files(corpus_of, prose_file, tmp_path):
    size = TokenizerConfig(vocab_size=1500, min_frequency=2, count_by="line")
    TokenizerStage(corpus_of(prose_file, documents="file"), size, tmp_path / "t", ONE).make()
    fast = Reference(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1499,
        min_frequency=2,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train([str(prose_file)], trainer)
    model = json.loads(fast.to_str())["model"]
    assert read_vocabulary(tmp_path / "t").merges == [tuple(pair) for pair in model["merges"]]
    assert read_vocabulary(tmp_path / "t").ids == {**model["vocab"], "<mask>": 1499}


def test_nfc_before_words_are_counted(corpus_of, tmp_path):
    (tmp_path / "a.txt").write_text("cafe\u0301 cafe\u0301", encoding="utf-8")
    TokenizerStage(
        corpus_of(tmp_path / "a.txt"),
        settings(vocab_size=261, normalization="nfc"),
        tmp_path / "t",
        ONE,
    ).make()
    assert words_of(tmp_path / "t") == {"caf\u00e9": 1, " caf\u00e9": 1}
    assert read_vocabulary(tmp_path / "t").nfc
    TokenizerStage(
        corpus_of(tmp_path / "a.txt"), settings(vocab_size=261), tmp_path / "plain", ONE
    ).make()
    assert set(words_of(tmp_path / "plain")) == {*split_words("cafe\u0301 cafe\u0301")}


def test_further_special_tokens_count_towards_the_size(corpus_of, prose_file, tmp_path):
    done = TokenizerStage(
        corpus_of(prose_file), settings(special_tokens=["[ENT]", "<url>"]), tmp_path / "t", ONE
    ).make()
    ids = read_vocabulary(tmp_path / "t").ids
    assert (ids["[ENT]"], ids["<url>"], ids["<mask>"], done.counts["entries"]) == (
        597,
        598,
        599,
        600,
    )
    assert done.counts["merges"] == 337


@pytest.mark.parametrize("count_by", ["document", "line"])
@pytest.mark.parametrize("normalization", ["nfc", None])
def test_the_names_of_special_tokens_are_counted_and_teach_no_merge(
    corpus_of, tmp_path, capsys, count_by, normalization
):
    text = "She saw [ENT] and [ENT]'s cafe\u0301.\n<s>[ENT] <url>\n\nTo see.\n"
    (tmp_path / "a.txt").write_text(text * 20, encoding="utf-8")
    names = ["[ENT]", "<url>", "[NIL]"]
    done = TokenizerStage(
        corpus_of(tmp_path / "a.txt"),
        settings(
            vocab_size=266, special_tokens=names, count_by=count_by, normalization=normalization
        ),
        tmp_path / "t",
        ONE,
    ).make()
    assert done.counts["added_tokens"] == {"[ENT]": 60, "<url>": 20, "[NIL]": 0}
    words = words_of(tmp_path / "t")
    assert not [word for word in words if "ENT" in word or "url" in word]
    assert words["'s"] == words[" saw"] == words["<"] == 20  # of <s>, which is text
    assert "'[NIL]': of the tokenizer's added tokens, and nowhere" in capsys.readouterr().err
    listings = {
        each.title: each.rows for each in describe_folder(tmp_path / "t", "tokenizer").examples
    }
    shown = {row["token"]: row["in_the_text"] for row in listings["special tokens"]}
    assert shown == dict.fromkeys(CONTROL_TOKENS, "") | {"[ENT]": 60, "<url>": 20, "[NIL]": 0}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"special_tokens": ["<mask>"]}, "'<mask>' is there already"),
        ({"special_tokens": ["[A]", "[A]"]}, r"'\[A\]' is there already"),
        ({"special_tokens": ["word"]}, "'word' could be learned from the text"),
        ({"special_tokens": ["Ã©"]}, "'Ã©' stand for bytes"),  # those of é
        ({"special_tokens": ["Ã"]}, "'Ã' stand for bytes"),  # the first of them
        ({"special_tokens": ["[Ã©]"]}, r"'\[Ã©\]' stand for bytes"),  # of three words
        ({"special_tokens": ["[GRÖSSE]"]}, "decode it to these bytes: expected a name in ASCII"),
        ({"special_tokens": [" [A]"]}, "without white space around it"),
        ({"special_tokens": [""]}, "'': expected a name"),
        ({"special_tokens": ["[A\nB]"]}, "expected a name on one line"),
        (
            {"special_tokens": ["[A1]"], "vocab_size": 261},
            "expected at least 262, since special_tokens has 1",
        ),
        ({"vocab_size": 260}, "expected at least 261"),
        ({"max_token_length": 2}, "greater than or equal to 3"),
    ],
)
def test_settings_that_cannot_be(keys, message):
    with pytest.raises(ValueError, match=message):
        settings(**keys)


def test_keys_that_came_later_keep_old_hashes():
    assert settings().recipe() == {"vocab_size": 600, "min_frequency": 2}


def test_tokens_stay_short(corpus_of, prose_file, tmp_path):
    TokenizerStage(corpus_of(prose_file), settings(max_token_length=5), tmp_path / "t", ONE).make()
    assert max(len(left + right) for left, right in read_vocabulary(tmp_path / "t").merges) == 4


def test_fewer_entries_where_the_page_accepts_them(corpus_of, tmp_path):
    (tmp_path / "a.txt").write_text("abc abc abd")
    done = TokenizerStage(
        corpus_of(tmp_path / "a.txt"), settings(accept_fewer=True), tmp_path / "t", ONE
    ).make()
    assert (done.counts["entries"], done.counts["merges"]) == (263, 2)
    assert read_vocabulary(tmp_path / "t").ids["<mask>"] == 262


def test_rare_words_may_be_left_out(corpus_of, tmp_path):
    (tmp_path / "a.txt").write_text("ab ab ab xy xy")
    done = TokenizerStage(
        corpus_of(tmp_path / "a.txt"),
        settings(min_word_count=2, accept_fewer=True),
        tmp_path / "t",
        ONE,
    ).make()
    assert (done.counts["distinct_words"], done.counts["trained_on_words"]) == (3, 2)
    assert (
        read_vocabulary(tmp_path / "t").merges
        == [("a", "b"), ("x", "y"), ("Ġ", "ab"), ("Ġ", "xy")][: done.counts["merges"]]
    )
    assert words_of(tmp_path / "t") == {"ab": 1, " ab": 2, " xy": 2}


@pytest.mark.parametrize(("least", "kept"), [(1, 4), (2, 3), (999, 3), (1000, 2)])
def test_the_words_that_are_kept_are_known_before_training(
    corpus_of, tmp_path, capsys, least, kept
):
    rows = {"ab": 1, " ab": 999, "cd": 1000, " cd": 5000}
    (tmp_path / "a.tsv").write_text(
        "".join(f"{number}\t{json.dumps(word)}\n" for word, number in rows.items())
    )
    size = settings(vocab_size=261, min_word_count=least)
    done = TokenizerStage(
        corpus_of(counts=str(tmp_path / "a.tsv")), size, tmp_path / "t", ONE
    ).make()
    assert f"training on {kept} distinct words" in capsys.readouterr().err
    assert done.counts.get("trained_on_words", 4) == kept


def test_memory_is_said_and_held_against_what_there_is(
    corpus_of, prose_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("robustly.tokenizer.build.available_memory", lambda: 300_000)
    with pytest.raises(
        UserError, match=r"takes about 0\.0 GiB.*tokenizer\.min_word_count: (\d+) leaves"
    ) as fault:
        TokenizerStage(corpus_of(prose_file), settings(), tmp_path / "t", ONE).make()

    least = int(re.search(r"min_word_count: (\d+)", str(fault.value))[1])

    with mock.patch.object(counting, "documents", side_effect=AssertionError("counted again")):
        done = TokenizerStage(
            corpus_of(prose_file),
            settings(min_word_count=least, accept_fewer=True),
            tmp_path / "t",
            ONE,
        ).make()

    kept = [word for word, number in words_of(tmp_path / "t").items() if number >= least]
    assert done.counts["trained_on_words"] == len(kept)
    assert f"training on {len(kept):,} distinct words: at most" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- any order


@pytest.mark.processes
def test_the_same_files_whatever_the_memory_workers_and_order(corpus_of, prose, tmp_path):
    for number, text in enumerate(prose):
        (tmp_path / f"{number:03d}.txt").write_text(text, encoding="utf-8")

    order = list(range(len(prose)))
    random.Random(0).shuffle(order)
    plain = corpus_of(*(tmp_path / f"{number:03d}.txt" for number in range(len(prose))))
    shuffled = corpus_of(*(tmp_path / f"{number:03d}.txt" for number in order))
    TokenizerStage(plain, settings(), tmp_path / "one", ONE).make()
    TokenizerStage(shuffled, settings(), tmp_path / "three", Processing(workers=3)).make()

    with (
        mock.patch.object(Processing, "counting_bytes", 30_000),
        mock.patch("robustly.tokenizer.counts.BATCH", 100),
        mock.patch("robustly.tokenizer.counts.FAN_IN", 3),
    ):
        TokenizerStage(plain, settings(), tmp_path / "scarce", ONE).make()

    assert contents(tmp_path / "three") == contents(tmp_path / "one")
    assert read_vocabulary(tmp_path / "scarce") == read_vocabulary(tmp_path / "one")
    assert words_of(tmp_path / "scarce") == words_of(tmp_path / "one")


def test_memory_is_shared_among_the_workers():
    half, whole = Processing(workers=2, memory_gb=4), Processing(workers=1, memory_gb=4)
    assert whole.counting_bytes < 4 * 2**30
    assert 2 * half.counting_bytes < whole.counting_bytes

    with pytest.raises(
        UserError, match=r"run\.memory_gb = 1: too little for run\.workers = 64, which take 14\.2"
    ):
        assert Processing(workers=64, memory_gb=1).counting_bytes

    assert Processing(workers=64).counting_bytes == 2**29
    on_slurm = Processing(workers=64, memory_gb=1, executor="slurm", slurm=SlurmConfig(memory_gb=4))
    assert on_slurm.counting_bytes == whole.counting_bytes
