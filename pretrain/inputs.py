"""What a training reads: tokenizer and blocks, every file verified before."""

from typing import NamedTuple

import torch

from robustly import manifest
from robustly.config import fingerprint
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.store import SPLITS, Split, check_tokenizer
from robustly.pretrain.integrity import verify
from robustly.pretrain.ranks import together
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.targets import open_blocks
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.tokenizer import Tokenizer


class Inputs(NamedTuple):
    """What a training reads."""

    tokenizer: Tokenizer
    blocks: dict[Split, Blocks]
    files: dict[str, str]
    """Stage -> hash of what its manifest says of all its files."""

    @property
    def packed_index(self) -> dict[str, str]:
        """Split -> sha256 of the index of its blocks; and of where words begin, if masks ask."""
        found: dict[str, str] = {}
        for split, blocks in self.blocks.items():
            found[split] = blocks.index_hash
            if blocks.word_starts:
                found[f"{split} words"] = blocks.word_starts.sha256

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
            stage: fingerprint(manifest.require(folder, stage).outputs)
            for stage, folder in folders.items()
        }

    blocks: dict[Split, Blocks] = {}
    # an index that is not there is made by rank 0, and then found by the others
    for turn in (0, 1):
        with together(device):
            if turn == min(rank, 1):
                workers = config.processing.workers
                blocks = {split: open_blocks(config, split, tokenizer, workers) for split in SPLITS}

    return Inputs(tokenizer, blocks, files)
