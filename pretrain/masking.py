"""Dynamic masking: which positions of a block are targets and what the model sees there.

A block's mask is a pure function of (seed, epoch, place in the epoch's virtual list), so it is the same on any number
of ranks, with any micro-batch and after a resume, and another in every epoch (the paper's section 4.1) and for every
copy of the block. The rules are fairseq's (mask_tokens_dataset.py) or BERT's; see `Masking.style`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain.config import Masking
from robustly.rng import Purpose, words
from tokenizer.encoder import Encoder

FIRST_ORDINARY_ID = 4  # <s> <pad> </s> <unk> come first

# Masks of held-out blocks: of a seed and epoch that are no run's, so that all runs meet the same ones.
EVALUATION_SEED = 0
EVALUATION_EPOCH = 2**32 - 1


class TokenIds(NamedTuple):
    """The ids of a vocabulary that the model and its masks must know."""

    size: int
    """Of the vocabulary."""
    bos: int
    pad: int
    eos: int
    mask: int

    @classmethod
    def of(cls, encoder: Encoder) -> "TokenIds":
        return cls(encoder.vocab_size, encoder.bos_id, encoder.pad_id, encoder.eos_id, encoder.mask_id)


class Masked(NamedTuple):
    """Blocks as the model sees them. N blocks of L positions."""

    inputs: NDArray[np.int64]
    """(N, L): ids, with the targets replaced as drawn."""
    targets: NDArray[np.bool_]
    """(N, L): where the loss is taken; replaced by <mask>, replaced at random, or left as it is."""


def mask_blocks(
    ids: NDArray[np.integer],
    lengths: NDArray[np.integer],
    epoch: NDArray[np.integer],
    index: NDArray[np.integer],
    masking: Masking,
    vocabulary: TokenIds,
    seed: int,
) -> Masked:
    """Mask N padded blocks of shape (N, L) with `lengths` (N,) at their (epoch, index), each (N,).

    A block of n candidates gets floor(p n + U) targets, U uniform in [0, 1): 76 or 77 of 512, 76.8 in the
    mean, drawn without replacement. Each target is then shown as <mask>, as a random token or unchanged.
    """
    count, length = ids.shape
    positions = np.arange(length)
    candidates = positions < lengths[:, None]
    if masking.style == "bert":
        candidates &= (ids != vocabulary.bos) & (ids != vocabulary.eos)

    rounding, _, _, _ = words(seed, Purpose.MASK_COUNT, epoch, index, 0)
    wanted = np.floor(masking.probability * candidates.sum(1) + rounding / 2.0**32).astype(np.int64)

    # The `wanted` candidates with the lowest score; the position in the low bits makes scores distinct.
    quads = -(-length // 4)
    draws = words(seed, Purpose.MASK_POSITION, epoch[:, None], index[:, None], np.arange(quads))
    score = np.stack(draws, -1).reshape(count, quads * 4)[:, :length].astype(np.uint64)
    score = np.where(candidates, score << np.uint64(32) | positions.astype(np.uint64), np.uint64(2**64 - 1))
    ranked = np.sort(score, axis=1)
    highest = np.take_along_axis(ranked, np.maximum(wanted - 1, 0)[:, None], axis=1)
    targets = candidates & (score <= highest) & (wanted > 0)[:, None]

    row, position = np.nonzero(targets)
    kind, token, _, _ = words(seed, Purpose.MASK_KIND, epoch[row], index[row], position)
    share = kind / 2.0**32
    # fairseq may draw any id but the first four; <mask> is the last, which BERT's rule leaves out
    ordinary = vocabulary.size - FIRST_ORDINARY_ID - (masking.style == "bert")
    drawn = FIRST_ORDINARY_ID + (token.astype(np.uint64) * np.uint64(ordinary) >> np.uint64(32)).astype(np.int64)
    inputs = ids.astype(np.int64)
    inputs[row, position] = np.where(
        share < masking.mask,
        vocabulary.mask,
        np.where(share < masking.mask + masking.random, drawn, inputs[row, position]),
    )
    return Masked(inputs, targets)
