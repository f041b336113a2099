"""Find evaluation texts in the corpus: documents that share a run of words with one of them.

As in GPT-3 (Brown et al. 2020, appendix C), which looked for runs of 13 words. The index is the
sorted hashes of all runs of the texts, 8 bytes each, mapped into the memory of every process once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.utils.text import simplify_text
from numpy.typing import NDArray

from robustly import UserError, log
from robustly.corpus.files import corpus_files
from robustly.corpus.formats import format_of, where
from robustly.corpus.formats.keys import value_at
from robustly.data_prep.cleaning.config import ContaminationConfig, EvaluationFiles
from robustly.data_prep.cleaning.shingles import ngram_hashes, words


@dataclass(frozen=True)
class EvaluationIndex:
    """The runs of words that are looked for."""

    hashes: NDArray[np.uint64]
    """Of the runs of words, sorted, each once."""
    texts: int
    short: int
    """Texts that have too few words for a run, and are not looked for."""


def build_index(contamination: ContaminationConfig) -> EvaluationIndex:
    """Read the evaluation texts of a config.

    Raises UserError if a file cannot be read, a row lacks a key, or no text is long enough.
    """
    found: list[NDArray[np.uint64]] = []
    texts = short = 0
    paths = [path for _, path in corpus_files(EvaluationFiles.of(contamination.files))]

    with log.progress("reading evaluation texts", len(paths), "files") as advance:
        for path in paths:
            for text in evaluation_texts(path, contamination.keys):
                runs = ngram_hashes(text, contamination.n_grams)
                texts += 1
                short += runs.size == 0
                found.append(runs)
            advance(1)

    if texts == short:
        raise UserError(
            f"cleaning.contamination.files: none of the {texts:,} texts in"
            f" {', '.join(map(str, paths))} has {contamination.n_grams} words"
            " (cleaning.contamination.n_grams); lower that, or give longer texts"
        )

    return EvaluationIndex(np.unique(np.concatenate(found)), texts, short)


def contaminated(text: str, index: NDArray[np.uint64], n: int) -> bool:
    """Whether a text shares a run of n words with those of the index."""
    return bool(np.any(_shared(text, index, n)))


def shared_run(text: str, index: NDArray[np.uint64], n: int) -> list[str]:
    """The first run of words that a contaminated text shares with those of the index,
    simplified."""
    first = int(np.argmax(_shared(text, index, n)))
    return words(simplify_text(text))[first : first + n]


def _shared(text: str, index: NDArray[np.uint64], n: int) -> NDArray[np.bool_]:
    """Which of a text's runs of n words are in the index: (runs,)."""
    runs = ngram_hashes(text, n)
    places = np.searchsorted(index, runs)
    places[places == index.size] = 0  # beyond the last: it differs from the first, too
    return index[places] == runs


def evaluation_texts(path: Path, keys: list[str] | None) -> Iterator[str]:
    """The texts of a file: lines of .txt; strings of other rows at `keys` (or paths of keys),
    however deep, or all of them.

    Raises UserError if it cannot be read or a row lacks a key.
    """
    for place, row in format_of(path).rows(str(path)):
        if isinstance(row, str):
            yield row
            continue

        try:
            if isinstance(row, ValueError):
                raise row
            values = [value_at(row, key) for key in keys or row]
        except ValueError as fault:
            reason = str(fault).replace("corpus.text_key", "cleaning.contamination.keys")
            raise UserError(
                f"{where(str(path), place)}: {reason}; mend the row or leave it out"
            ) from None

        yield from _strings(values)


def _strings(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        match value:
            case str():
                yield value
            case dict():
                yield from _strings(value.values())
            case list():
                yield from _strings(value)
