"""Small stand-ins for tests of the trainer: random blocks instead of a token store, and a small
recipe."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustly.data_prep.sampler import EpochSampler
from robustly.pretrain.config import (
    MaskingConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
)
from robustly.pretrain.masking import SpecialTokens

VOCABULARY = SpecialTokens(size=300, bos=0, pad=1, eos=2, mask=299)


class RandomBlocks:
    """Blocks of random ids and lengths, <s> first, padded with 1: what
    robustly.data_prep.blocks.Blocks gives."""

    def __init__(self, count: int = 100, length: int = 32, shortest: int = 10):
        draw = np.random.default_rng(0)
        self.ids = draw.integers(4, VOCABULARY.size - 1, (count, length))
        self.lengths = draw.integers(shortest, length + 1, count)
        self.ids[:, 0] = VOCABULARY.bos
        self.ids[np.arange(count), self.lengths - 1] = VOCABULARY.eos
        self.ids[np.arange(length) >= self.lengths[:, None]] = VOCABULARY.pad
        self.pairs = False
        self.source_starts = np.array([0, count])
        self.source_lengths = np.array([self.lengths.mean()])

    def __len__(self) -> int:
        return len(self.ids)

    def lengths_of(
        self, blocks: NDArray[np.int64], seconds: NDArray[np.int64] | None = None
    ) -> NDArray[np.integer]:
        return self.lengths[blocks]

    def gather(
        self, blocks: NDArray[np.int64], seconds: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        return self.ids[blocks], self.lengths[blocks]

    def sources_of(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.zeros_like(blocks)


def order(blocks: Any = None, seed: int = 5) -> EpochSampler:
    """The order of random blocks, or of others like them."""
    return EpochSampler(blocks or RandomBlocks(), seed)


def model(**changes: Any) -> ModelConfig:
    return ModelConfig(
        **{
            "layers": 2,
            "hidden": 64,
            "heads": 2,
            "feed_forward": 128,
            "positions": 40,
            "token_types": 1,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "layer_norm_eps": 1e-5,
            "init_std": 0.02,
            **changes,
        }
    )


def masking(**changes: Any) -> MaskingConfig:
    return MaskingConfig(
        **{"probability": 0.15, "mask": 0.8, "random": 0.1, "style": "fairseq", **changes}
    )


def optim(**changes: Any) -> OptimConfig:
    return OptimConfig(
        **{
            "batch_size": 32,
            "peak_lr": 1e-3,
            "betas": (0.9, 0.98),
            "eps": 1e-6,
            "weight_decay": 0.01,
            "decay": "all",
            "clip_norm": 0.0,
            **changes,
        }
    )


def schedule(**changes: Any) -> ScheduleConfig:
    return ScheduleConfig(**{"updates": 10, "warmup": 3, "decay": "linear", **changes})


def run(**changes: Any) -> RunConfig:
    return RunConfig(**{"micro_batch": 8, **changes})
