"""Dynamic masking: which positions of a block are targets and what the model sees there.

A block's mask is a pure function of (seed, epoch, place in the epoch's virtual list), so it is the
same on any number of ranks, with any micro-batch and after a resume, and another in every epoch
(the paper's section 4.1) and for every copy of the block. The rules are fairseq's
(mask_tokens_dataset.py) or BERT's; see `MaskingConfig.style`."""

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from robustly.pretrain.config import MaskingConfig
from robustly.rng import Purpose, four_words
from robustly.tokenizer.tokenizer import Tokenizer

FIRST_ORDINARY_ID = 4  # <s> <pad> </s> <unk> come first

# Masks of held-out blocks: of a seed and epoch that are no run's, so that all runs meet the same
# ones.
EVALUATION_SEED = 0
EVALUATION_EPOCH = 2**32 - 1


class SpecialTokens(NamedTuple):
    """The ids of a vocabulary that the model and its masks must know."""

    size: int
    """Of the vocabulary."""
    bos: int
    pad: int
    eos: int
    mask: int
    begins_word: NDArray[np.bool_] = np.zeros(0, np.bool_)
    """Of each id: whether its token begins with white space, and so begins a word wherever it
    stands. For masks of whole words alone."""

    @classmethod
    def of(cls, encoder: Tokenizer) -> "SpecialTokens":
        special = encoder.bos_id, encoder.pad_id, encoder.eos_id, encoder.mask_id
        return cls(encoder.vocab_size, *special, encoder.begins_word)


class MaskedInputs(NamedTuple):
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
    masking: MaskingConfig,
    vocabulary: SpecialTokens,
    seed: int,
) -> MaskedInputs:
    """Mask N padded blocks of shape (N, L) with `lengths` (N,) at their (epoch, index), each (N,).

    A block of n candidates gets floor(p n + U) targets, U uniform in [0, 1): 76 or 77 of 512, 76.8
    in the mean, drawn without replacement. Each target is then shown as <mask>, as a random token
    or unchanged.

    With `whole_words` the same is done to words instead of tokens: all tokens of a word are
    targets, and shown alike (a random one for each). A word begins with a token that begins with
    white space, or after <s> or </s>, each of which is a word of its own (fairseq,
    get_whole_word_mask)."""
    if masking.fixed_masks:
        epoch = epoch % masking.fixed_masks

    inputs, targets = ids.astype(np.int64), np.zeros(ids.shape, np.bool_)
    _mask(
        lengths.astype(np.int64), epoch.astype(np.uint64), index.astype(np.uint64), np.uint64(seed),
        masking.probability, masking.mask, masking.mask + masking.random, masking.style == "bert",
        masking.whole_words, vocabulary, inputs, targets,
    )  # fmt: skip
    return MaskedInputs(inputs, targets)


_COUNT, _POSITION, _KIND = (
    np.uint64(p) for p in (Purpose.MASK_COUNT, Purpose.MASK_POSITION, Purpose.MASK_KIND)
)
_BUCKETS, _TOP = 512, np.uint64(64 - 9)


@numba.njit(cache=True, nogil=True)
def _mask(
    lengths: Any,
    epochs: Any,
    entries: Any,
    seed: Any,
    probability: float,
    mask: float,
    random: float,
    bert: bool,
    whole_words: bool,
    vocabulary: SpecialTokens,
    inputs: NDArray[np.int64],
    targets: NDArray[np.bool_],
) -> None:
    length = inputs.shape[1]
    zero, half, low = np.uint64(0), np.uint64(32), np.uint64(0xFFFFFFFF)
    # fairseq may draw any id but the first four; <mask> is the last, which BERT's rule leaves out
    ordinary = np.uint64(vocabulary.size - FIRST_ORDINARY_ID - bert)
    scores = np.empty(4 * ((length + 3) // 4), np.uint64)
    word = np.empty(
        length, np.int64
    )  # where each position's word begins; itself, unless whole words are masked
    ranked = np.empty(length, np.uint64)

    for row in range(len(inputs)):
        ids, chosen, size = inputs[row], targets[row], lengths[row]
        entry, high, epoch = entries[row] & low, entries[row] >> half, epochs[row]
        # a score for each position, the position in its low bits so that scores are distinct
        for quad in range((size + 3) // 4):
            four = four_words(seed, _POSITION, np.uint64(quad), entry, high, epoch)
            for i in range(4):
                scores[4 * quad + i] = four[i] << half | np.uint64(4 * quad + i)

        candidates = 0
        size_of = np.zeros(_BUCKETS, np.int64)
        after_special = True

        for position in range(size):
            special = ids[position] == vocabulary.bos or ids[position] == vocabulary.eos
            word[position] = position
            if whole_words and not (
                special or after_special or vocabulary.begins_word[ids[position]]
            ):
                word[position] = word[position - 1]

            after_special = special
            if word[position] == position and not (bert and special):
                chosen[position] = True
                candidates += 1
                size_of[scores[position] >> _TOP] += 1

        rounding = four_words(seed, _COUNT, zero, entry, high, epoch)[0]
        wanted = int(np.floor(probability * candidates + rounding / 2.0**32))

        # The `wanted` candidates with the lowest scores: whole buckets of them, and a part of one.
        bucket = before = count = 0
        while before + size_of[bucket] < wanted:
            before += size_of[bucket]
            bucket += 1

        for position in range(size):
            if chosen[position] and scores[position] >> _TOP == bucket:
                ranked[count] = scores[position]
                count += 1

        highest = np.sort(ranked[:count])[wanted - before - 1] if wanted else zero

        for position in range(size):
            begin = word[position]
            if begin == position:
                chosen[position] &= wanted > 0 and scores[position] <= highest
            else:
                chosen[position] = chosen[begin]

            if not chosen[position]:
                continue

            kind, token, _, _ = four_words(seed, _KIND, np.uint64(position), entry, high, epoch)
            if begin != position:
                kind = four_words(seed, _KIND, np.uint64(begin), entry, high, epoch)[0]

            share = kind / 2.0**32
            if share < mask:
                ids[position] = vocabulary.mask
            elif share < random:
                ids[position] = FIRST_ORDINARY_ID + int(token * ordinary >> half)
