"""Dynamic masking: which positions of a block are targets, and what the model sees there.

A block's mask is a pure function of (seed, epoch, its index in the epoch). So it is the same on any
number of ranks, with any micro-batch and after a resume, and another one in every epoch (the
paper's section 4.1) and for every copy of the block. The rules are fairseq's
(mask_tokens_dataset.py) or BERT's; see `MaskingConfig.style`."""

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from robustly.pretrain.config import MaskingConfig
from robustly.rng import Purpose, four_words
from robustly.tokenizer.tokenizer import Tokenizer

FIRST_ORDINARY_ID = 4  # <s> <pad> </s> <unk> come first

# Masks of held-out blocks are those of a seed and an epoch that no run has: all runs meet the same.
EVALUATION_SEED = 0
EVALUATION_EPOCH = 2**32 - 1


class SpecialTokens(NamedTuple):
    """What the model and its masks must know of a tokenizer."""

    size: int
    """Of the vocabulary."""
    bos: int
    pad: int
    eos: int
    mask: int
    begins_word: NDArray[np.bool_] = np.zeros(0, np.bool_)
    """(size,): whether the token begins with white space, and so begins a word wherever it stands.
    Only masks of whole words ask for it."""
    begins_character: NDArray[np.bool_] = np.zeros(0, np.bool_)
    """(size,): whether the token begins with a character, not amid the bytes of one. Only masks of
    whole characters ask for it."""
    added: NDArray[np.int64] = np.zeros(0, np.int64)
    """The ids of added tokens, which stand in text for their names: each is a word of its own."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "SpecialTokens":
        ids = tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.mask_id
        begins = tokenizer.begins_word, tokenizer.begins_character
        vocabulary = tokenizer.vocabulary
        added = np.array([vocabulary.ids[token.content] for token in vocabulary.added], np.int64)
        return cls(tokenizer.vocab_size, *ids, *begins, added)


class MaskedInputs(NamedTuple):
    """Blocks as the model sees them. N blocks of L positions."""

    inputs: NDArray[np.int64]
    """(N, L): ids, with targets replaced by <mask>, by a random token, or not at all."""
    targets: NDArray[np.bool_]
    """(N, L): where the loss is taken, whatever stands there in `inputs`."""


def mask_blocks(
    ids: NDArray[np.integer],
    lengths: NDArray[np.integer],
    epoch: NDArray[np.integer],
    index: NDArray[np.integer],
    masking: MaskingConfig,
    special: SpecialTokens,
    seed: int,
    word_starts: NDArray[np.bool_] | None = None,
) -> MaskedInputs:
    """Mask N padded blocks, (N, L), with `lengths`, (N,), at their (epoch, index), each (N,).
    `word_starts`, (N, L), say where words begin, if `masking` has a segmenter for them.

    A block of n candidates gets floor(p n + U) targets, U uniform in [0, 1): 76 or 77 of 512, 76.8
    in the mean, drawn without replacement. Each target is then shown as <mask>, as a random token
    or unchanged.

    With `whole_words` the same is done to words instead of tokens: all tokens of a word are
    targets, and shown alike (a random one for each). A word begins with a token that begins with
    white space, or after <s> or </s>, each of which is a word of its own (fairseq,
    get_whole_word_mask); or as `masking.words` says. A word longer than `masking.longest_word`, or
    than the targets that a block of so many tokens would have, is cut into several: so a block has
    a target wherever single tokens would always have one."""
    assert (masking.segmenter is None) == (word_starts is None)
    if masking.fixed_masks:
        epoch = epoch % masking.fixed_masks

    rule = _Rule(
        masking.probability,
        masking.mask,
        masking.mask + masking.random,
        masking.style == "bert",
        masking.whole_words,
        masking.longest_word or 0,
    )
    starts = np.zeros((len(ids), 0), np.bool_)
    if masking.whole_words:
        starts = _word_starts(ids, masking, special) if word_starts is None else word_starts
        if special.added.size:
            alone = np.isin(ids, special.added)
            starts = starts | alone | np.pad(alone, ((0, 0), (1, 0)))[:, :-1]

    wide = index.astype(np.uint64)
    keys = [np.full_like(wide, seed), wide & _LOW, wide >> _HALF, epoch.astype(np.uint64)]
    inputs, targets = ids.astype(np.int64), np.zeros(ids.shape, np.bool_)
    widths, by_row = lengths.astype(np.int64), np.stack(keys, axis=1)
    _mask_rows(inputs, targets, widths, by_row, starts, rule, special)
    return MaskedInputs(inputs, targets)


def _word_starts(
    ids: NDArray[np.integer], masking: MaskingConfig, special: SpecialTokens
) -> NDArray[np.bool_]:
    """Whether a word begins at each position, (N, L), where the ids alone tell."""
    characters = masking.words == "characters"
    begins = special.begins_character if characters else special.begins_word
    return begins[ids]


class _Rule(NamedTuple):
    """`MaskingConfig`, as compiled code takes it."""

    probability: float
    mask: float
    """A target whose draw, uniform in [0, 1), is below it is shown as <mask>;"""
    random: float
    """otherwise, below this one, as a random token."""
    bert: bool
    whole_words: bool
    longest_word: int
    """0: any length."""


_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_COUNT, _POSITION, _KIND = (
    np.uint64(p) for p in (Purpose.MASK_COUNT, Purpose.MASK_POSITION, Purpose.MASK_KIND)
)
_BUCKETS, _TOP = 512, np.uint64(64 - 9)


@numba.njit(cache=True, nogil=True)
def _mask_rows(
    inputs: NDArray[np.int64],
    targets: NDArray[np.bool_],
    lengths: NDArray[np.int64],
    keys: NDArray[np.uint64],
    word_starts: NDArray[np.bool_],
    rule: _Rule,
    special: SpecialTokens,
) -> None:
    """Mask each row in place. `keys`: (N, 4), what a row's random numbers depend on: the seed, its
    index (low and high half) and epoch. `word_starts`: (N, L), or (N, 0) where no whole words are
    masked."""
    length = inputs.shape[1]
    scores = np.empty(4 * ((length + 3) // 4), np.uint64)
    begins = np.empty(length, np.int64)

    for row in range(len(inputs)):
        ids, chosen = inputs[row, : lengths[row]], targets[row, : lengths[row]]
        _draw_scores(scores, len(ids), keys[row])
        _find_candidates(ids, chosen, begins, word_starts[row], rule, special)
        _choose(chosen, scores, keys[row], rule.probability)
        _show(ids, chosen, begins, keys[row], rule, special)


@numba.njit(cache=True, nogil=True)
def _draw(key: NDArray[np.uint64], purpose: Any, number: int) -> Any:
    """Four words of 32 random bits: draw `number` of a row for this purpose."""
    return four_words(key[0], purpose, np.uint64(number), key[1], key[2], key[3])


@numba.njit(cache=True, nogil=True)
def _draw_scores(scores: NDArray[np.uint64], size: int, key: NDArray[np.uint64]) -> None:
    """A random score for each position, which stands in its low bits: no two are alike."""
    for quad in range((size + 3) // 4):
        four = _draw(key, _POSITION, quad)
        for i in range(4):
            scores[4 * quad + i] = four[i] << _HALF | np.uint64(4 * quad + i)


@numba.njit(cache=True, nogil=True)
def _find_candidates(
    ids: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    begins: NDArray[np.int64],
    word_starts: NDArray[np.bool_],
    rule: _Rule,
    special: SpecialTokens,
) -> None:
    """Choose, for now, every position that may be a target; of a word, the first one.

    `begins`: where each position's word begins: itself, unless whole words are masked."""
    longest = len(ids)
    if rule.whole_words and rule.longest_word:
        ordinary = 0
        for token in ids:
            ordinary += not (token == special.bos or token == special.eos)

        # then there are 1 / probability words or more
        longest = min(rule.longest_word, max(1, int(rule.probability * ordinary)))

    after_special = True
    for position in range(len(ids)):
        token = ids[position]
        is_special = token == special.bos or token == special.eos
        begins[position] = position
        if rule.whole_words and not (is_special or after_special):
            begin = begins[position - 1]
            if not word_starts[position] and position - begin < longest:
                begins[position] = begin

        after_special = is_special
        chosen[position] = begins[position] == position and not (rule.bert and is_special)


@numba.njit(cache=True, nogil=True)
def _choose(
    chosen: NDArray[np.bool_],
    scores: NDArray[np.uint64],
    key: NDArray[np.uint64],
    probability: float,
) -> None:
    """Leave of the candidates those with the lowest scores: the fraction `probability` of them,
    rounded up or down at random."""
    candidates = 0
    size_of = np.zeros(_BUCKETS, np.int64)  # candidates by the top bits of their scores
    for position in range(len(chosen)):
        if chosen[position]:
            candidates += 1
            size_of[scores[position] >> _TOP] += 1

    rounding = _draw(key, _COUNT, 0)[0]
    wanted = int(np.floor(probability * candidates + rounding / 2.0**32))

    # whole buckets, and a part of one, which alone is sorted
    bucket = before = 0
    while before + size_of[bucket] < wanted:
        before += size_of[bucket]
        bucket += 1

    ranked = np.empty(size_of[bucket], np.uint64)
    count = 0
    for position in range(len(chosen)):
        if chosen[position] and scores[position] >> _TOP == bucket:
            ranked[count] = scores[position]
            count += 1

    highest = np.sort(ranked)[wanted - before - 1] if wanted else np.uint64(0)
    for position in range(len(chosen)):
        chosen[position] &= wanted > 0 and scores[position] <= highest


@numba.njit(cache=True, nogil=True)
def _show(
    ids: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    begins: NDArray[np.int64],
    key: NDArray[np.uint64],
    rule: _Rule,
    special: SpecialTokens,
) -> None:
    """Choose the rest of each chosen word, and replace what the model is not to see."""
    # fairseq may draw any id but the first four; <mask> is the last, which BERT's rule leaves out
    ordinary = np.uint64(special.size - FIRST_ORDINARY_ID - rule.bert)
    for position in range(len(ids)):
        begin = begins[position]
        chosen[position] = chosen[begin]
        if not chosen[position]:
            continue

        # a word is shown alike: its first position says how
        kind, token, _, _ = _draw(key, _KIND, position)
        if begin != position:
            kind = _draw(key, _KIND, begin)[0]

        draw = kind / 2.0**32
        if draw < rule.mask:
            ids[position] = special.mask
        elif draw < rule.random:
            ids[position] = FIRST_ORDINARY_ID + int(token * ordinary >> _HALF)
