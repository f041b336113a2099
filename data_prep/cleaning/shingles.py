"""Word n-grams of a text and their hashes, for near duplicates and contamination.

A text is simplified as datatrove does it: lower case, numbers as 0, punctuation as space, no
diacritics. Words are what white space separates; of scripts written without spaces, each character
is a word."""

import numpy as np
import regex
from datatrove.utils.hashing import HashConfig, create_hash_func
from datatrove.utils.text import ngrams, simplify_text
from datatrove.utils.word_tokenizers import WhitespaceTokenizer
from numpy.typing import NDArray

# sha1 is of the standard library: the same in every version.
HASHING = HashConfig(precision=64, hash_fc="sha1")
_hash = create_hash_func(HASHING)
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")


def words(simplified: str) -> list[str]:
    """The words of a text that `simplify_text` has made simple."""
    return _UNSPACED.sub(r" \g<0> ", simplified).split()


def ngram_hashes(text: str, n: int) -> NDArray[np.uint64]:
    """Hashes of the runs of n words in a text, in order: (words - n + 1,), or (0,) where it is
    shorter."""
    runs = ngrams(words(simplify_text(text)), n)
    return np.fromiter((_hash(" ".join(run)) for run in runs), np.uint64)


class WordSplitter(WhitespaceTokenizer):
    """`words` in the form that datatrove takes."""

    def word_tokenize(self, text: str) -> list[str]:
        return words(text)


WORD_SPLITTER = WordSplitter()
