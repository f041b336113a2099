"""Text that the benchmarks of the trainer make up: blocks of random ids, and a vocabulary of any
size for the peers."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustly.pretrain.masking import SpecialTokens
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary


class RandomBlocks:
    """Full blocks of random ids, <s> first and </s> last: what robustly.data_prep.blocks.Blocks
    gives, without padding."""

    def __init__(self, vocabulary: SpecialTokens, length: int, count: int = 4096):
        self.ids = np.random.default_rng(0).integers(
            4, vocabulary.size - 1, (count, length), np.int32
        )
        self.ids[:, 0], self.ids[:, -1] = vocabulary.bos, vocabulary.eos
        self.pairs = False
        self.source_starts = np.array([0, count])

    def __len__(self) -> int:
        return len(self.ids)

    def gather(
        self, blocks: NDArray[np.int64], seconds: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        rows = self.ids[blocks]
        return rows, np.full(len(rows), rows.shape[1], np.int32)


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
