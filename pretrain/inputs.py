"""What a training reads: tokenizer and blocks, every file verified before."""

from typing import NamedTuple

import torch

from robustly import manifest
from robustly.config import fingerprint
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.store import check_tokenizer
from robustly.pretrain.integrity import group_of, verify
from robustly.pretrain.ranks import together
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.targets import open_blocks, open_training_blocks
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.tokenizer import Tokenizer


class Inputs(NamedTuple):
    """What a training reads."""

    tokenizer: Tokenizer
    train: dict[int, Blocks]
    """The blocks that are trained on, by their length."""
    validation: Blocks
    files: dict[str, str]
    """Stage -> hash of what its manifest says of all its files."""

    @property
    def packed_index(self) -> dict[str, str]:
        """Split -> sha256 of the index of its blocks; and of where words begin, if masks ask. Of
        phases with blocks of another length, theirs, too."""
        found: dict[str, str] = {}
        *others, last = self.train.items()
        named = {"train": last[1], "validation": self.validation}
        for name, blocks in {**named, **{f"train {n}": each for n, each in others}}.items():
            found[name] = blocks.index_hash
            if blocks.word_starts:
                found[f"{name} words"] = blocks.word_starts.sha256

        return found


def open_inputs(config: PretrainingConfig, rank: int, device: torch.device) -> Inputs:
    """Verify and open what a config trains on. Every rank calls it.

    Raises UserError where something is damaged or does not fit together, FailedOnAnotherRank on the
    other ranks."""
    folders = {stage: config.folder(stage) for stage in ("tokenizer", "data")}
    with together(device):
        verify(list(folders.values()), rank)

    with together(device):
        tokenizer = load_tokenizer(folders["tokenizer"])
        check_tokenizer(folders["data"], tokenizer)
        files = {
            stage: fingerprint(manifest.require_manifest(folder, stage).outputs)
            for stage, folder in folders.items()
        }

    train: dict[int, Blocks] = {}
    first = group_of(folders["data"], rank)[0]
    # an index that is not there is made by one rank for each copy, and found by the others
    for turn in (True, False):
        with together(device):
            if turn == (rank == first):
                workers = config.processing.workers
                train = open_training_blocks(config, tokenizer, workers)
                validation = open_blocks(config, "validation", tokenizer, workers)

    return Inputs(tokenizer, train, validation, files)
