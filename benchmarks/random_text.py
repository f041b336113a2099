"""Text that the benchmarks of the trainer make up: blocks of random ids, and a vocabulary of any
size for the peers."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustly.data_prep.packing import pack
from robustly.pretrain.masking import SpecialTokens
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary

SENTENCE = 26, 0.7
"""Tokens of a sentence: the mean of a log-normal distribution, and the standard deviation of its
logarithm. Blocks of 512 are then 4% padding, as those of Wikipedia."""


class RandomBlocks:
    """Blocks of random ids, <s> first and </s> last: what robustly.data_prep.blocks.Blocks gives.
    Full ones, or `padded` as blocks of whole sentences are."""

    def __init__(
        self, vocabulary: SpecialTokens, length: int, count: int = 4096, padded: bool = False
    ):
        draw = np.random.default_rng(0)
        self.ids = draw.integers(4, vocabulary.size - 1, (count, length), np.int32)
        self.lengths = lengths_of_blocks(draw, length, count) if padded else np.full(count, length)
        self.ids[:, 0] = vocabulary.bos
        self.ids[np.arange(count), self.lengths - 1] = vocabulary.eos
        self.ids[np.arange(length) >= self.lengths[:, None]] = vocabulary.pad
        self.pairs, self.block_length = False, length
        self.source_starts = np.array([0, count])

    def __len__(self) -> int:
        return len(self.ids)

    def lengths_of(
        self, blocks: NDArray[np.int64], seconds: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        return self.lengths[blocks]

    def gather(
        self, blocks: NDArray[np.int64], seconds: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return self.ids[blocks], self.lengths[blocks].astype(np.int32)


def lengths_of_blocks(draw: np.random.Generator, length: int, count: int) -> NDArray[np.int64]:
    """Tokens of so many blocks of whole sentences, of at most `length`."""
    mean, spread = SENTENCE
    many = 2 * count * length // mean + count
    drawn = draw.lognormal(np.log(mean) - spread**2 / 2, spread, many)
    sentences = np.clip(np.rint(drawn), 2, None).astype(np.int64)
    blocks = np.concatenate([*pack([sentences], length, "full_sentences")])
    return blocks["length"][:count].astype(np.int64)


def vocabulary_of(size: int) -> SpecialTokens:
    return SpecialTokens(size, 0, 1, 2, size - 1)


def save_tokenizer(size: int, folder: Path) -> None:
    """A tokenizer of `size` entries, of words of letters that nobody needs, as transformers opens
    it."""
    letters = [chr(97 + n) for n in range(26)]
    words, merges = letters, []
    while len(merges) < size - 261:
        merges += [(word, letter) for word in words for letter in letters]
        words = [word + letter for word in words for letter in letters]

    folder.mkdir(exist_ok=True)
    save_vocabulary(lay_out(merges[: size - 261]), folder)
