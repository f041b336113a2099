"""The tokenizer stage: count the words of the corpus, train the merges, save the files, try them on the text."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

from robustly import UserError, manifest
from robustly.config import fingerprint
from robustly.manifest import Manifest, Stage
from tokenizer import load
from tokenizer.config import MIN_VOCAB_SIZE, Corpus, Tokenizer
from tokenizer.corpus import BadLine, Hashes, Part, documents, hashes, parts, process, refuse_many
from tokenizer.encoder import Encoder
from tokenizer.merges import Training, train
from tokenizer.vocabulary import lay_out, save
from tokenizer.words import merge_counts, split, write_counts

SAMPLE_PARTS = 16
SAMPLE_DOCUMENTS = 16  # of each part
SAMPLE_CHARACTERS = 4096  # of each document


def stage(corpus: Corpus, tokenizer: Tokenizer, folder: Path, beside: Path) -> Stage:
    """What the tokenizer in `folder` depends on. Raises UserError if the corpus cannot be read."""
    return _stage(corpus, tokenizer, folder, beside)[0]


def _stage(corpus: Corpus, tokenizer: Tokenizer, folder: Path, beside: Path) -> tuple[Stage, Hashes]:
    earlier = manifest.read(folder)
    contents = hashes(corpus, beside, earlier.notes["files"] if earlier else {})
    recipe = {"tokenizer": tokenizer.recipe(), "corpus": corpus.reading()}
    return Stage(folder, "tokenizer", recipe, {"corpus": contents.corpus}), contents


def build(corpus: Corpus, tokenizer: Tokenizer, folder: Path, beside: Path, workers: int) -> Manifest:
    """Train the tokenizer of a page into `folder`; does nothing where that is done. Returns the manifest.

    `beside` is the folder of the page, where relative paths start; `workers` are processes and change no byte. The
    counts of words lie in `folder/work` until all is done, one file for each part of the corpus: after a kill, only
    the rest is counted, and another vocabulary size uses them again.

    Raises UserError if the corpus cannot be read, is empty or too small for `tokenizer.vocab_size`.
    """
    made, contents = _stage(corpus, tokenizer, folder, beside)
    if finished := made.finished():
        return finished

    # Counts depend on the text alone, and the stage begins when merges are found: a fault of the corpus or of the
    # vocabulary's size must not leave a folder that refuses the mended page.
    work = folder / "work" / fingerprint({"corpus": contents.corpus, "reading": corpus.reading()})[:16]
    with manifest.lock(work):
        if finished := made.finished():  # by another process, while this one waited
            return finished
        pieces = parts(corpus, beside)
        process(partial(_count_part, corpus, work), pieces, work / "tasks", workers, "counting words")
        tally = _add_up(work, len(pieces), corpus)
        training = _train(work, len(pieces), tokenizer)
        with made.begin():
            outputs = save(lay_out(training.merges), folder)
            _try_out(load(folder), folder / "tokenizer.json", _sample(pieces, corpus))
            counts = {
                **tally,
                "distinct_words": training.words,
                "entries": tokenizer.vocab_size,
                "merges": len(training.merges),
                "tokens": training.tokens,
                "bytes_per_token": round(tally["bytes"] / training.tokens, 4),
            }
            result = made.finish(outputs, counts, notes={"files": contents.files})
    shutil.rmtree(folder / "work", ignore_errors=True)  # another process may wait in there to see that all is done
    return result


def _count_part(corpus: Corpus, work: Path, number: int, part: Part) -> None:
    """Count one part into two files: its words, and what else is known of it."""
    words: Counter[str] = Counter()
    bad_lines: list[BadLine] = []
    seen = 0
    for document in documents(part, corpus, bad_lines):
        words.update(split(document.text))
        seen += 1
    write_counts(_words_file(work, number), sorted(words.items()))
    tally = {
        "documents": seen,
        "bytes": sum(len(word.encode()) * count for word, count in words.items()),
        "words": words.total(),
        "bad_lines": [asdict(line) for line in bad_lines],
    }
    manifest.write_json(_tally_file(work, number), tally)


def _words_file(work: Path, number: int) -> Path:
    return work / f"words-{number:05d}.tsv"


def _tally_file(work: Path, number: int) -> Path:
    return work / f"tally-{number:05d}.json"


def _add_up(work: Path, size: int, corpus: Corpus) -> dict[str, int]:
    """What all parts hold together. Raises UserError for too many bad lines, or for no text at all."""
    tallies = [json.loads(_tally_file(work, number).read_text(encoding="utf-8")) for number in range(size)]
    bad_lines = [BadLine(**line) for tally in tallies for line in tally["bad_lines"]]
    refuse_many(bad_lines, corpus)
    total = {name: sum(tally[name] for tally in tallies) for name in ("documents", "bytes", "words")}
    if not total["bytes"]:
        sources = ", ".join(source.path for source in corpus.sources)
        raise UserError(f"corpus.sources: no text in {sources} ({len(bad_lines)} broken rows); expected documents")
    return {**total, "bad_lines": len(bad_lines)}


def _train(work: Path, size: int, tokenizer: Tokenizer) -> Training:
    words = merge_counts([_words_file(work, number) for number in range(size)], work)
    wanted = tokenizer.vocab_size - MIN_VOCAB_SIZE
    training = train(words, wanted, tokenizer.min_frequency)
    if (found := len(training.merges)) < wanted:
        raise UserError(
            f"tokenizer.vocab_size = {tokenizer.vocab_size}: the corpus gives no more than {MIN_VOCAB_SIZE + found} "
            f"entries ({MIN_VOCAB_SIZE} for special tokens and bytes, {found} for pairs that occur at least "
            f"{tokenizer.min_frequency} times); lower tokenizer.vocab_size to that or less, or add text"
        )
    return training


def _sample(pieces: Sequence[Part], corpus: Corpus) -> Iterator[str]:
    """The beginnings of some documents from all over the corpus."""
    for part in pieces[:: -(-len(pieces) // SAMPLE_PARTS)]:
        for document in islice(documents(part, corpus, []), SAMPLE_DOCUMENTS):
            yield document.text[:SAMPLE_CHARACTERS]


def _try_out(encoder: Encoder, file: Path, texts: Iterable[str]) -> None:
    """Raises UserError unless our encoder and `tokenizers` give the same ids, which stand for the exact text."""
    from tokenizers import Tokenizer as Reference

    reference = Reference.from_file(str(file))
    reference.encode_special_tokens = True  # a special token's name in a text is text
    for text in texts:
        ids = encoder.encode_documents([text])[0]
        if ids.tolist() != reference.encode(text, add_special_tokens=False).ids or encoder.decode(ids) != text:
            raise UserError(
                f"tiktoken and tokenizers encode a text of the corpus differently: {text[:200]!r}; "
                "install the versions that pyproject.toml names and run the stage again"
            )
