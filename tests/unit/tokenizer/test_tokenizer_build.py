"""The stage: the same files whatever the circumstances, from exactly the documents of the corpus."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from robustly import UserError, manifest
from tokenizer import build as stage
from tokenizer import corpus as raw_text
from tokenizer.build import build
from tokenizer.config import Processing, Tokenizer
from tokenizer.vocabulary import read
from tokenizer.words import split

NAMES = ["counts.tsv.zst", "merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"]

ONE = Processing(workers=1)

BUILD = """
import sys
from pathlib import Path
from tokenizer import corpus
from tokenizer.build import build
from tokenizer.config import Corpus, Processing, Tokenizer

if __name__ == "__main__":
    source, folder, workers = sys.argv[1:]
    page = Corpus(sources=source, documents="blank_line", text_key="text", validation=0.1)
    corpus.PART_BYTES = 10_000
    build(page, Tokenizer(vocab_size=600, min_frequency=2), Path(folder), Path(), Processing(int(workers)))
"""


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "build.py"
    path.write_text(BUILD)
    return path


def contents(folder):
    return {name: (folder / name).read_bytes() for name in NAMES}


def words_files(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("work/*/words-*.tsv")}


def test_a_finished_stage(trained, prose, prose_file):
    done = manifest.require(trained, "tokenizer", "")
    assert sorted(done.outputs) == NAMES
    left = sorted(path.name for path in trained.iterdir() if path.name != ".lock")
    assert left == sorted([*NAMES, "manifest.json", "recipe.json"])
    words = [word for text in prose for word in split(text)]
    assert done.counts["documents"] == len(prose)
    assert done.counts["bytes"] == sum(len(text.encode()) for text in prose)
    assert done.counts["words"] == len(words)
    assert done.counts["distinct_words"] == len(set(words))
    assert (done.counts["entries"], done.counts["merges"], done.counts["bad_lines"]) == (1000, 739, 0)
    assert done.counts["bytes_per_token"] == pytest.approx(done.counts["bytes"] / done.counts["tokens"], abs=1e-4)
    assert done.notes["files"][str(prose_file)]["sha256"] == manifest.sha256(prose_file)
    assert str(prose_file) not in json.dumps([done.recipe, done.inputs])


def test_ids_are_laid_out_as_in_roberta(trained):
    ids = read(trained).ids
    assert [ids[token] for token in ("<s>", "<pad>", "</s>", "<unk>", "!", "~", "¡", "Ā", "Ń", "<mask>")] == [
        0, 1, 2, 3, 4, 97, 98, 192, 259, 999,
    ]  # fmt: skip
    left, right = read(trained).merges[0]
    assert ids[left + right] == 260


def test_the_same_command_again_does_nothing(trained, prose_file, page):
    before = contents(trained)
    with mock.patch.object(stage, "process", side_effect=AssertionError("counted again")):
        done = build(page(prose_file), Tokenizer(vocab_size=1000, min_frequency=2), trained, Path(), ONE)
    assert done == manifest.read(trained)
    assert not (trained / "work").exists()
    assert contents(trained) == before


def test_another_recipe_does_not_overwrite(trained, prose_file, page):
    before = contents(trained)
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size: 1000 there, 900 now"):
        build(page(prose_file), Tokenizer(vocab_size=900, min_frequency=2), trained, Path(), ONE)
    assert contents(trained) == before


def test_the_same_files_for_any_parts_workers_and_hash_seed(page, prose_file, program, tmp_path):
    build(page(prose_file), Tokenizer(vocab_size=600, min_frequency=2), tmp_path / "one", Path(), ONE)
    command = [sys.executable, program, prose_file, tmp_path / "two", "2"]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "1"}, check=True)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert not (tmp_path / "two" / "work").exists()


def test_after_a_kill_only_the_rest_is_counted(page, prose_file, program, tmp_path):
    folder = tmp_path / "tokenizer"
    with subprocess.Popen([sys.executable, program, prose_file, folder, "2"]) as run:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("work/*/tasks/completions/*"))) < 3:
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.001)
        run.kill()  # the main process alone: its workers must end by themselves, or the folder stays locked
    assert manifest.read(folder) is None
    done = [int(path.name) for path in folder.glob("work/*/tasks/completions/*")]
    before = words_files(folder)
    with (
        mock.patch.object(raw_text, "PART_BYTES", 10_000),
        mock.patch.object(stage.shutil, "rmtree"),  # leaves the counts to look at
    ):
        build(page(prose_file), Tokenizer(vocab_size=600, min_frequency=2), folder, Path(), ONE)
    after = words_files(folder)
    assert 3 <= len(done) < len(after)
    assert all(after[f"words-{number:05d}.tsv"] == before[f"words-{number:05d}.tsv"] for number in done)
    build(page(prose_file), Tokenizer(vocab_size=600, min_frequency=2), tmp_path / "straight", Path(), ONE)
    assert contents(folder) == contents(tmp_path / "straight")


def test_a_vocabulary_too_large_for_the_corpus(page, tmp_path):
    (tmp_path / "a.txt").write_text("abc abc abd")
    corpus, folder = page(tmp_path / "a.txt"), tmp_path / "tokenizer"
    with pytest.raises(UserError, match=r"vocab_size = 5000: the corpus gives no more than 263 entries.* lower"):
        build(corpus, Tokenizer(vocab_size=5000, min_frequency=2), folder, Path(), ONE)
    with mock.patch.object(stage, "documents", side_effect=AssertionError("counted again")) as reading:
        reading.side_effect = [iter(())]  # the sample at the end may read, the count may not
        done = build(corpus, Tokenizer(vocab_size=263, min_frequency=2), folder, Path(), ONE)
    assert (done.counts["merges"], done.counts["documents"]) == (2, 1)
    assert read(folder).merges == [("a", "b"), ("Ġ", "ab")]


def test_the_smallest_vocabulary_is_bytes_alone(page, tmp_path):
    (tmp_path / "a.txt").write_text("abc abc")
    done = build(page(tmp_path / "a.txt"), Tokenizer(vocab_size=261, min_frequency=2), tmp_path / "t", Path(), ONE)
    assert (done.counts["merges"], done.counts["tokens"], done.counts["bytes_per_token"]) == (0, 7, 1.0)


@pytest.mark.parametrize("text", ["", "\n \n\n"])
def test_a_corpus_without_text_is_refused(page, tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=r"corpus\.sources: no text in .*a\.txt"):
        build(page(tmp_path / "a.txt"), Tokenizer(vocab_size=300, min_frequency=2), tmp_path / "t", Path(), ONE)


def test_a_mended_corpus_is_not_refused(page, tmp_path):
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_bytes(b"xyz xyz xyz xyz")  # counted before the fault is found
    second.write_bytes(b"abc \xff abc")
    arguments = (page(first, second), Tokenizer(vocab_size=262, min_frequency=2), tmp_path / "t", Path(), ONE)
    with pytest.raises(UserError, match="not UTF-8"):
        build(*arguments)
    assert len(words_files(tmp_path / "t")) == 1
    first.write_bytes(b"abd")
    second.write_bytes(b"abc abc")
    assert build(*arguments).counts["bytes"] == 10
    assert read(tmp_path / "t").merges == [("a", "b")]


def test_bad_rows_are_held_against_the_whole_corpus(page, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "abc abc"}\nbroken\n')
    size = Tokenizer(vocab_size=262, min_frequency=2)
    with pytest.raises(UserError, match=r"b\.jsonl: line 2 .*\n2 broken rows"):
        build(page(str(tmp_path / "*.jsonl"), max_bad_lines=1), size, tmp_path / "one", Path(), ONE)
    done = build(page(str(tmp_path / "*.jsonl"), max_bad_lines=2), size, tmp_path / "two", Path(), ONE)
    assert (done.counts["bad_lines"], done.counts["documents"]) == (2, 2)


def test_engines_that_disagree_end_the_stage(page, prose_file, tmp_path):
    with (
        mock.patch("tokenizer.encoder.PATTERN", r"\s+|\S+"),
        pytest.raises(UserError, match="tiktoken and tokenizers encode a text of the corpus differently"),
    ):
        build(page(prose_file), Tokenizer(vocab_size=600, min_frequency=2), tmp_path / "t", Path(), ONE)
    assert manifest.read(tmp_path / "t") is None
