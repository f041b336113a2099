"""Byte-level BPE tokenizer: train it, save and load it, import one, encode text fast.

`words` says what words are, `segmenters` where no spaces do; `cutting`, with `characters`, cuts
them and `keys` finds them again, compiled; `word_counts`, `counts` and `counting` count them,
`merges` trains; `vocabulary` is the layout and its files, `importing` reads those of others;
`tokenizer` turns text into ids, `word_table` makes that fast; `build` is the stage; `quality` and
`fit` measure how well a tokenizer fits a text."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustly.tokenizer.tokenizer import Tokenizer


def load_tokenizer(folder: Path | str) -> "Tokenizer":
    """The tokenizer of a finished tokenizer stage, a published folder, or RoBERTa's `vocab.json`
    and `merges.txt`.

    Raises UserError if the files are missing or are not a byte-level vocabulary in RoBERTa's
    layout."""
    from robustly.tokenizer.reading import read_vocabulary
    from robustly.tokenizer.tokenizer import Tokenizer

    return Tokenizer(read_vocabulary(Path(folder)))


@functools.lru_cache(maxsize=1)
def trained_tokenizer(folder: Path, trained: str) -> "Tokenizer":
    """As `load_tokenizer`, once a process: a large one takes half a second. `trained`, the hash of
    its stage, tells it from an earlier one in the folder."""
    return load_tokenizer(folder)
