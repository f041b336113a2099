"""Masks: pure functions of (seed, epoch, block), with the probabilities of the paper."""

import hashlib
import itertools
import math

import numpy as np
import pytest

from robustly.pretrain.masking import MaskedInputs, SpecialTokens, mask_blocks
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import lay_out
from synthetic import VOCABULARY, RandomBlocks, masking

FULL = 512


def full_blocks(count: int) -> tuple[np.ndarray, np.ndarray]:
    ids = (4 + np.arange(count * FULL) * 7919 % 295).reshape(count, FULL)
    ids[:, 0], ids[:, -1] = VOCABULARY.bos, VOCABULARY.eos
    return ids, np.full(count, FULL)


def draw(
    count: int = 2000, epoch: int = 0, seed: int = 1, **changes: object
) -> tuple[np.ndarray, MaskedInputs]:
    ids, lengths = full_blocks(count)
    index = np.arange(count)
    return ids, mask_blocks(
        ids, lengths, np.full(count, epoch), index, masking(**changes), VOCABULARY, seed
    )


def chi_square(observed: np.ndarray, expected: np.ndarray | float) -> float:
    """In standard deviations above its mean: a fair draw stays below 5 but once in 3 million."""
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = observed.size - 1
    return float((statistic - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize(
    ("style", "digest"),
    [("fairseq", "a70f3ac38f4514ce"), ("bert", "6918839b58b0a3df")],
)
def test_golden_masks(style: str, digest: str) -> None:
    """Whatever changes these changes every run that is under way."""
    _, masked = draw(64, epoch=3, seed=7, style=style)
    found = hashlib.sha256(
        masked.inputs.astype("<i8").tobytes() + np.packbits(masked.targets).tobytes()
    ).hexdigest()
    assert found[:16] == digest


def test_count_is_76_or_77_of_512_and_76_8_in_the_mean() -> None:
    _, masked = draw(10_000)
    counts = masked.targets.sum(1)
    assert set(counts.tolist()) == {76, 77}
    # standard deviation of the mean: 0.4 / sqrt(10,000) = 0.004
    assert abs(counts.mean() - 76.8) < 0.02


def test_every_position_is_a_target_equally_often() -> None:
    _, masked = draw(10_000)
    per_position = masked.targets.sum(0)
    # counts are drawn without replacement, so they vary a little less than a chi-square would
    assert chi_square(per_position, per_position.mean()) < 5
    assert per_position.min() > 0.8 * per_position.mean()


def test_shares_of_mask_random_and_unchanged() -> None:
    ids, masked = draw(5_000)
    shown, was = masked.inputs[masked.targets], ids[masked.targets]
    total = len(shown)
    # a random token equals the old one, or <mask>, once in 296 each
    chance = 1 / (VOCABULARY.size - 4)
    expected = np.array([0.8 + 0.1 * chance, 0.1 + 0.1 * chance, 0.1 * (1 - 2 * chance)]) * total
    observed = np.array(
        [(shown == 299).sum(), (shown == was).sum(), ((shown != 299) & (shown != was)).sum()]
    )
    assert chi_square(observed, expected) < 5
    assert (masked.inputs[~masked.targets] == ids[~masked.targets]).all()


def test_random_tokens_are_uniform_over_all_ids_but_the_first_four() -> None:
    _, masked = draw(5_000, mask=0.0, random=1.0)
    drawn = np.bincount(masked.inputs[masked.targets], minlength=VOCABULARY.size)
    assert not drawn[:4].any()
    assert drawn[VOCABULARY.mask] > 0  # fairseq's rule
    assert chi_square(drawn[4:], drawn[4:].mean()) < 5


def test_bert_style_spares_specials_and_never_draws_the_mask_token() -> None:
    ids, masked = draw(5_000, style="bert", mask=0.0, random=1.0)
    specials = (ids == VOCABULARY.bos) | (ids == VOCABULARY.eos)
    assert not masked.targets[specials].any()
    assert VOCABULARY.mask not in masked.inputs[masked.targets]
    assert abs(masked.targets.sum(1).mean() - 0.15 * 510) < 0.05


def test_fairseq_style_may_choose_specials() -> None:
    ids, masked = draw(2_000)
    share = masked.targets[ids == VOCABULARY.bos].mean()
    assert 0.12 < share < 0.18


def test_padding_is_never_a_target_and_short_blocks_keep_the_share() -> None:
    blocks = RandomBlocks(4000)
    ids, lengths = blocks.gather(np.arange(4000))
    masked = mask_blocks(
        ids, lengths, np.zeros(4000, int), np.arange(4000), masking(), VOCABULARY, 1
    )
    assert not masked.targets[ids == VOCABULARY.pad].any()
    assert abs(masked.targets.sum() / lengths.sum() - 0.15) < 0.002


def test_a_mask_depends_on_seed_epoch_and_block_alone() -> None:
    ids, lengths = full_blocks(50)
    epoch, index = np.full(50, 4), np.arange(50) + 2**40  # beyond 32 bits
    together = mask_blocks(ids, lengths, epoch, index, masking(), VOCABULARY, 9)

    for row in (0, 17, 49):
        alone = mask_blocks(
            ids[[row]], lengths[[row]], epoch[[row]], index[[row]], masking(), VOCABULARY, 9
        )
        assert (alone.inputs[0] == together.inputs[row]).all()
        assert (alone.targets[0] == together.targets[row]).all()

    for changed in (
        mask_blocks(ids, lengths, epoch + 1, index, masking(), VOCABULARY, 9),
        mask_blocks(ids, lengths, epoch, index + 1, masking(), VOCABULARY, 9),
        mask_blocks(ids, lengths, epoch, index, masking(), VOCABULARY, 10),
    ):
        agreement = (changed.targets & together.targets).sum() / together.targets.sum()
        assert abs(agreement - 0.15) < 0.03  # no more than chance


# -------------------------------------------------------------------------------------- whole words

BEGINS = np.arange(VOCABULARY.size) % 3 == 0  # a third of the ids begin a word wherever they stand
WORDY = VOCABULARY._replace(begins_word=BEGINS)


def words_of(row: np.ndarray, starts: np.ndarray | None = None, longest: int = 10) -> np.ndarray:
    """The number of each position's word, the slow way; `starts`: where words begin."""
    words: list[list[int]] = []
    after_special = True
    for position, token in enumerate(row.tolist()):
        special = token in (VOCABULARY.bos, VOCABULARY.eos)
        begins = BEGINS[token] if starts is None else starts[position]
        if special or after_special or begins or len(words[-1]) == longest:
            words.append([])

        words[-1].append(position)
        after_special = special

    return np.repeat(np.arange(len(words)), [len(word) for word in words])


def draw_words(
    count: int, vocabulary: SpecialTokens = WORDY, **changes: object
) -> tuple[np.ndarray, MaskedInputs]:
    ids, lengths = full_blocks(count)
    # a unit that begins amid the block, with no space in front
    ids[:, 100], ids[:, 101] = VOCABULARY.eos, 4
    index = np.arange(count)
    settings = masking(whole_words=True, **changes)
    return ids, mask_blocks(ids, lengths, np.zeros(count, int), index, settings, vocabulary, 1)


@pytest.mark.parametrize("style", ["fairseq", "bert"])
def test_words_are_targets_whole(style: str) -> None:
    ids, masked = draw_words(400, style=style)
    shares, per_word = [], []
    for row, targets in zip(ids, masked.targets, strict=True):
        words = words_of(row)
        chosen = np.bincount(words, targets) > 0
        assert (targets == chosen[words]).all()  # all of a word, or none of it
        special = np.isin(row, (VOCABULARY.bos, VOCABULARY.eos))
        ordinary = np.bincount(words, special) == 0
        candidates = ordinary.sum() if style == "bert" else len(chosen)
        assert chosen.sum() in (math.floor(0.15 * candidates), math.floor(0.15 * candidates) + 1)
        shares.append(chosen.sum() - 0.15 * candidates)
        per_word.append(chosen[ordinary][:150])
        if style == "bert":
            assert not chosen[~ordinary].any()

    assert abs(np.mean(shares)) < 4 * 0.5 / np.sqrt(400)  # stochastic rounding has no bias
    counts = np.sum(per_word, 0)
    assert chi_square(counts, counts.mean()) < 5


def test_a_word_is_shown_in_one_way() -> None:
    ids, masked = draw_words(2000)
    kinds, drawn = [], []
    for row, shown, targets in zip(ids, masked.inputs, masked.targets, strict=True):
        words = words_of(row)
        for word in np.unique(words[targets]):
            of_it = words == word
            is_mask = shown[of_it] == VOCABULARY.mask
            if is_mask.all():
                kinds.append("mask")
            elif (shown[of_it] == row[of_it]).all():
                kinds.append("same")
            else:
                kinds.append("random")
                drawn += shown[of_it].tolist()

    shares = [kinds.count(kind) / len(kinds) for kind in ("mask", "random", "same")]
    for share, wanted in zip(shares, (0.8, 0.1, 0.1), strict=True):
        assert abs(share - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / len(kinds)) + 0.001

    found = np.bincount(drawn, minlength=VOCABULARY.size)[4:]
    # each position draws a token of its own
    assert found.min() > 0 and chi_square(found, found.mean()) < 5


def assert_whole(words: np.ndarray, targets: np.ndarray) -> None:
    """All of a word is a target, or none of it."""
    assert (targets == (np.bincount(words, targets) > 0)[words]).all()


@pytest.mark.parametrize("longest", [1, 3, 10, 64, None])
def test_a_longer_word_is_cut(longest: int | None) -> None:
    """Text without white space: DNA, or Chinese."""
    nowhere = VOCABULARY._replace(begins_word=np.zeros(VOCABULARY.size, bool))
    ids, masked = draw_words(200, nowhere, longest_word=longest)
    for row, targets in zip(ids, masked.targets, strict=True):
        assert_whole(words_of(row, np.zeros(FULL, bool), longest or FULL), targets)

    counts = masked.targets.sum(1)
    if longest == 10:  # 55 words, and special tokens
        assert counts.min() > 0 and abs(counts.mean() / FULL - 0.15) < 0.01
    if longest is None:  # two words and four special tokens
        assert (counts == 0).mean() > 0.1


@pytest.mark.parametrize("style", ["fairseq", "bert"])
@pytest.mark.parametrize("probability", [0.15, 0.3, 0.4])
def test_a_block_has_a_target_wherever_single_tokens_would(style: str, probability: float) -> None:
    """Of one word without end, in blocks of all lengths."""
    assert masking().longest_word == 10
    nowhere = VOCABULARY._replace(begins_word=np.zeros(VOCABULARY.size, bool))
    lengths = np.arange(3, 131).repeat(20)
    ids = np.full((len(lengths), 130), 7)
    ids[:, 0] = VOCABULARY.bos
    ids[np.arange(len(lengths)), lengths - 1] = VOCABULARY.eos
    at = np.zeros(len(lengths), int), np.arange(len(lengths))
    one_by_one, words = (
        mask_blocks(
            ids,
            lengths,
            *at,
            masking(whole_words=whole, style=style, probability=probability),
            nowhere,
            1,
        )
        for whole in (False, True)
    )
    long_enough = probability * (lengths - 2) >= 1
    assert long_enough.mean() > 0.9
    assert words.targets[long_enough].any(1).all() and one_by_one.targets[long_enough].any(1).all()
    shares = [masked.targets[long_enough].sum() for masked in (one_by_one, words)]
    assert abs(shares[1] / shares[0] - 1) < 0.1


def fairseq_words(row: np.ndarray) -> list[list[int]]:
    """By fairseq's rule (get_whole_word_mask), of any length: a word begins with a token that begins
    with white space, and special tokens are words of their own."""
    special = np.isin(row, (VOCABULARY.bos, VOCABULARY.eos))
    begins = np.flatnonzero(special | BEGINS[row] | np.r_[True, special[:-1]])
    return np.split(np.arange(len(row)), begins[1:])


def test_words_up_to_the_longest_are_fairseqs() -> None:
    """Where no word is longer, the bound changes nothing, and words are those of fairseq's rule."""
    ids, unbounded = draw_words(300, longest_word=None)
    longest = max(len(word) for row in ids for word in fairseq_words(row))
    _, bounded = draw_words(300, longest_word=longest)
    assert longest > 2 and (unbounded.inputs == bounded.inputs).all()
    _, shorter = draw_words(300, longest_word=longest - 1)
    assert (unbounded.inputs != shorter.inputs).any()
    for row, targets in zip(ids, bounded.targets, strict=True):
        for word in fairseq_words(row):
            assert targets[word].all() or not targets[word].any()


def test_words_begin_where_the_text_says() -> None:
    ids, lengths = full_blocks(200)
    starts = np.random.default_rng(3).random(ids.shape) < 0.4
    at = np.zeros(200, int), np.arange(200)
    settings = masking(whole_words=True, words="icu")
    masked = mask_blocks(ids, lengths, *at, settings, WORDY, 1, starts)
    for row, began, targets in zip(ids, starts, masked.targets, strict=True):
        assert_whole(words_of(row, began), targets)

    # a pure function of each row
    rows = np.array([5, 60])
    alone = mask_blocks(
        ids[rows], lengths[rows], at[0][rows], at[1][rows], settings, WORDY, 1, starts[rows]
    )
    assert (alone.inputs == masked.inputs[rows]).all()


def test_a_character_is_a_word() -> None:
    encoder = Tokenizer(lay_out([("Ġ", "t"), ("a", "b"), ("ä", "½"), ("ł", "å"), ("å", "¥")]))
    special = SpecialTokens.of(encoder)
    begins = special.begins_character
    starting = {encoder.decode_bytes([number]) for number in np.flatnonzero(begins)}
    assert {b"a", b"ab", b" t", b" ", "你".encode()[:2], "好".encode()[:1]} <= starting
    assert not starting & {b"\xbd", b"\xa0\xe5", b"\xa5", b"\xbd\xa5"}

    (tokens,) = encoder.encode_documents(["你好ab c" * 9])
    ids = np.array([[encoder.bos_id, *tokens, encoder.eos_id]] * 300)
    lengths, at = np.full(300, ids.shape[1]), (np.zeros(300, int), np.arange(300))
    settings = masking(whole_words=True, words="characters")
    masked = mask_blocks(ids, lengths, *at, settings, special, 1)
    words = np.cumsum(begins[ids[0]]) - 1
    assert len(set(words.tolist())) < ids.shape[1]
    for targets in masked.targets:
        assert_whole(words, targets)


@pytest.mark.parametrize("words", ["whitespace", "characters", "icu"])
def test_an_added_token_is_a_word_of_its_own(words: str) -> None:
    """As `[ENT]` in `x[ENT]yz`, with no space around it."""
    nowhere = np.zeros(VOCABULARY.size, bool)
    special = VOCABULARY._replace(
        begins_word=nowhere, begins_character=nowhere, added=np.array([250, 251])
    )
    ids = np.full((300, 40), 7)
    ids[:, [10, 20, 21]] = 250, 251, 250
    starts = np.zeros_like(ids, bool) if words == "icu" else None
    at = np.full(300, 40), np.zeros(300, int), np.arange(300)
    settings = masking(whole_words=True, words=words, probability=0.3)
    masked = mask_blocks(ids, *at, settings, special, 1, starts)
    began = np.isin(np.arange(40), [0, 10, 11, 20, 21, 22])
    for targets in masked.targets:
        assert_whole(words_of(ids[0], began), targets)
    assert starts is None or not starts.any()


def test_words_and_their_bound_belong_to_whole_words() -> None:
    for key, value in (("words", "icu"), ("longest_word", 4)):
        with pytest.raises(ValueError, match=rf"masking.{key} without masking.whole_words: true"):
            masking(**{key: value})


def test_recipes_without_whole_words_are_as_they_were() -> None:
    assert masking().recipe() == {
        "probability": 0.15,
        "mask": 0.8,
        "random": 0.1,
        "style": "fairseq",
    }
    assert masking(whole_words=True).recipe() == {
        **masking().recipe(),
        "whole_words": True,
        "longest_word": 10,
    }
    # so that a run that was begun before there was a longest word can go on
    assert masking(whole_words=True, longest_word=None).recipe() == {
        **masking().recipe(),
        "whole_words": True,
    }
    assert masking(whole_words=True, words="icu").recipe()["words"] == "icu"


@pytest.mark.parametrize("style", ["fairseq", "bert"])
def test_words_of_one_token_are_masked_as_tokens_are(style: str) -> None:
    ids, words = draw_words(
        50, VOCABULARY._replace(begins_word=np.ones(VOCABULARY.size, bool)), style=style
    )
    lengths = np.full(50, FULL)
    tokens = mask_blocks(
        ids, lengths, np.zeros(50, int), np.arange(50), masking(style=style), VOCABULARY, 1
    )
    assert (words.inputs == tokens.inputs).all() and (words.targets == tokens.targets).all()


def test_a_token_that_begins_with_white_space_begins_a_word() -> None:
    encoder = Tokenizer(lay_out([("Ġ", "t"), ("Ġt", "h"), ("e", "r"), ("Ċ", "Ċ")]))
    begins = SpecialTokens.of(encoder).begins_word
    starting = {encoder.decode_bytes([number]) for number in np.flatnonzero(begins)}
    assert {b" ", b" t", b" th", b"\n", b"\n\n", b"\t"} <= starting
    assert not starting & {b"er", b"t", b"<s>", b"<mask>", b"\xc2"}


def test_fixed_masks_are_taken_in_turn() -> None:
    draws = [draw(20, epoch=epoch, fixed_masks=4)[1].inputs for epoch in range(9)]
    assert all((draws[epoch] == draws[epoch % 4]).all() for epoch in range(9))
    assert all((draws[a] != draws[b]).any(1).all() for a, b in itertools.combinations(range(4), 2))
    assert (draws[3] == draw(20, epoch=3)[1].inputs).all()
