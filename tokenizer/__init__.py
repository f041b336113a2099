"""Byte-level BPE: count words, train merges, save and load, import, encode fast.

`corpus` (with `hub`) reads the raw text, for this stage and the next, and `executor` spreads the
work on it; `words` says what a word is, `counts` and `counting` count; `merges` trains;
`vocabulary` is the layout and the files, `importing` those of others; `encoder` turns text into
ids; `build` is the stage; `texts` and `quality` tell how good a tokenizer is."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustly.tokenizer.tokenizer import Tokenizer


def load_tokenizer(folder: Path | str) -> "Tokenizer":
    """The encoder of a finished tokenizer stage, a published folder, or RoBERTa's `vocab.json` and
    `merges.txt`.

    Raises UserError if the files are missing or are not a byte-level vocabulary in RoBERTa's
    layout."""
    from robustly.tokenizer.tokenizer import Tokenizer
    from robustly.tokenizer.vocabulary import read_vocabulary

    return Tokenizer(read_vocabulary(Path(folder)))
