"""The blocks that a config masks, and how many of them have a target: the others cost time and
teach nothing. Imports no torch."""

from typing import NamedTuple

import numpy as np

from robustly import UserError, log, manifest
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.config import WORDS_BY_IDS, WORDS_KEY
from robustly.data_prep.store import Split
from robustly.pretrain.config import MaskingConfig
from robustly.pretrain.masking import SpecialTokens, mask_blocks
from robustly.pretrain.stage import PretrainingConfig
from robustly.rng import permute
from robustly.tokenizer import trained_tokenizer
from robustly.tokenizer.segmenters import segmenter, word_list
from robustly.tokenizer.tokenizer import Tokenizer

TRIED = 1024
"""Blocks of the sample: the share is known to 0.03 or better."""
ENOUGH, FEWEST = 0.9, 0.5
"""Below the first share of blocks with a target there is a warning; below the second, training is
refused."""


def open_blocks(
    config: PretrainingConfig,
    split: Split,
    tokenizer: Tokenizer,
    workers: int = 1,
    block_length: int | None = None,
) -> Blocks:
    """The blocks of a split that a config trains or is evaluated on, or those of another length,
    with where words begin, if its masks ask: so many workers find out, where it is not known.
    Raises UserError as `Blocks` does, and `open_word_starts`."""
    length, format = block_length or config.data.block_length, config.data.format
    blocks = Blocks(config.folder("data"), split, length, format)
    if words := config.masking.segmenter:
        blocks.mark_words(words, tokenizer, workers=workers)

    return blocks


def open_training_blocks(
    config: PretrainingConfig, tokenizer: Tokenizer, workers: int = 1
) -> dict[int, Blocks]:
    """The blocks that a config trains on, by their length: of its phases, and of its sections,
    which come last. Raises UserError as `open_blocks` does."""
    lengths = dict.fromkeys(stretch.block_length for stretch in config.stretches())
    return {length: open_blocks(config, "train", tokenizer, workers, length) for length in lengths}


def check_words(config: PretrainingConfig) -> None:
    """Raises UserError if what cuts the text into words is not there, before the data stage begins:
    later its work is asked for alone."""
    if (words := config.masking.segmenter) and manifest.read(config.folder("data")) is None:
        word_list(words, WORDS_KEY, WORDS_BY_IDS)
        segmenter(words, WORDS_KEY)


def prepare_masks(config: PretrainingConfig) -> "TargetShare":
    """Find out what the masks of a config ask of its finished data stage, and tell how many blocks
    have a target.

    Raises UserError as `open_blocks` and `check_targets` do."""
    tokenizer = _tokenizer(config)
    workers = config.processing.workers
    train = open_training_blocks(config, tokenizer, workers)[config.data.block_length]
    open_blocks(config, "validation", tokenizer, workers)
    found = share_with_targets(train, config.masking, SpecialTokens.of(tokenizer), config.seed)
    check_targets(found, config.masking)
    log.say(f"masking: {found.share:.1%} of {found.tried:,} training blocks have a target")
    return found


def prepared_share(config: PretrainingConfig) -> "TargetShare":
    """What the masks of a config find in its finished data stage; they ask the ids alone. Raises
    UserError as `open_blocks` does."""
    assert config.masking.segmenter is None
    tokenizer = _tokenizer(config)
    train = open_blocks(config, "train", tokenizer)
    return share_with_targets(train, config.masking, SpecialTokens.of(tokenizer), config.seed)


def _tokenizer(config: PretrainingConfig) -> Tokenizer:
    folder = config.folder("tokenizer")
    return trained_tokenizer(folder, manifest.require_manifest(folder, "tokenizer").hash)


class TargetShare(NamedTuple):
    """What a sample of blocks told."""

    tried: int
    share: float
    """Of these, how many have a target; 1 where there are none."""


def share_with_targets(
    blocks: Blocks, masking: MaskingConfig, special: SpecialTokens, seed: int
) -> TargetShare:
    """How many of a fixed pseudo-random sample of blocks have a target in their first epoch."""
    if not len(blocks):
        return TargetShare(0, 1.0)

    tried = permute(np.arange(min(len(blocks), TRIED)), len(blocks), 0, 0)
    ids, lengths = blocks.gather(tried)
    starts = None if masking.segmenter is None else blocks.gather_word_starts(tried)
    epoch = np.zeros_like(tried)
    masked = mask_blocks(ids, lengths, epoch, tried, masking, special, seed, starts)
    return TargetShare(tried.size, float(masked.targets.any(1).mean()))


def check_targets(found: TargetShare, masking: MaskingConfig) -> None:
    """Warn where fewer than ENOUGH of the blocks have a target. Raises UserError where fewer than
    FEWEST have."""
    if found.share < FEWEST:
        raise UserError(too_few(found, masking))
    if found.share < ENOUGH:
        log.warn(too_few(found, masking))


def too_few(found: TargetShare, masking: MaskingConfig) -> str:
    """That few blocks have a target, and what to do."""
    what = (
        f"masking: {found.share:.0%} of {found.tried:,} training blocks have a target with"
        f" masking.probability = {masking.probability:g}; the others would cost time and teach"
        " nothing. They hold too few"
    )
    if not masking.whole_words:
        return (
            f"{what} tokens: take data.format = full_sentences, which fills them, or raise"
            " masking.probability"
        )

    return (
        f"{what} words (masking.words = {masking.words}, masking.longest_word ="
        f" {masking.longest_word}): state what a word is in this text (masking.words: characters,"
        " icu, or a list), lower masking.longest_word, give up masking.whole_words, or raise"
        " data.block_length"
    )
