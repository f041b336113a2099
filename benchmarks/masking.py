"""Dynamic masking beside transformers' DataCollatorForLanguageModeling, tokens a second on one
core.

    python benchmarks/masking.py

Both mask the same blocks of 512 random ids of RoBERTa's vocabulary, 64 at a time, as they come in a
training: 15%, of which 80% are <mask> and 10% random. The table is printed and written to
benchmarks/results/masking-<date>.md."""

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

sys.path.append(
    sys.path.pop(0)
)  # this folder last: pretrain.py has the name of one of our packages

import numpy as np
import torch
from random_text import save_tokenizer
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

from robustly.pretrain.config import MaskingConfig
from robustly.pretrain.masking import SpecialTokens, mask_blocks

RESULTS = Path(__file__).parent / "results"
BLOCKS, LENGTH, SIZE, ROUNDS = 64, 512, 50_265, 5
MASKING = {"probability": 0.15, "mask": 0.8, "random": 0.1}


def rate(once: Callable[[], Any]) -> float:
    """Tokens a second, the best of some rounds of half a second."""
    once()
    best = 0.0

    for _ in range(ROUNDS):
        start, count = time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < 0.5:
            once()
            count += 1

        best = max(best, count * BLOCKS * LENGTH / seconds)

    return best


def measure(scratch: Path) -> str:
    save_tokenizer(SIZE, scratch)
    collator = DataCollatorForLanguageModeling(
        AutoTokenizer.from_pretrained(scratch), mlm_probability=0.15
    )
    size = len(collator.tokenizer)
    ids = np.random.default_rng(0).integers(4, size - 1, (BLOCKS, LENGTH)).astype(np.int32)
    ids[:, 0], ids[:, -1] = 0, 2
    examples = [{"input_ids": row.tolist()} for row in ids]
    vocabulary = SpecialTokens(size, 0, 1, 2, size - 1, np.random.default_rng(1).random(size) < 0.7)
    lengths, epoch, index = np.full(BLOCKS, LENGTH), np.zeros(BLOCKS, np.int64), np.arange(BLOCKS)

    def ours(**changes: Any) -> Callable[[], Any]:
        masking = MaskingConfig(**{**MASKING, "style": "fairseq", **changes})
        return lambda: mask_blocks(ids, lengths, epoch, index, masking, vocabulary, 1)

    rates = {
        "DataCollatorForLanguageModeling": rate(lambda: collator(examples)),
        "robustly, fairseq's rule": rate(ours()),
        "robustly, BERT's rule": rate(ours(style="bert")),
        "robustly, whole words": rate(ours(whole_words=True)),
    }
    first = next(iter(rates.values()))
    table = "\n".join(
        f"| {name} | {found / 1e6:,.1f} | {found / first:.1f} |" for name, found in rates.items()
    )

    return f"""# Masking

{time.strftime("%Y-%m-%d")}, one core, {platform.machine()}, Python {platform.python_version()}, numpy {np.__version__},
torch {torch.__version__}, transformers {version("transformers")}, numba {version("numba")}.
{BLOCKS} blocks of {LENGTH} ids out of {size:,} at a time; the collator takes lists of ids and pads them, as in run_mlm.

| | million tokens a second | ratio |
| --- | --- | --- |
{table}
"""


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        text = measure(Path(folder))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"masking-{time.strftime('%Y-%m-%d')}.md").write_text(text)
    print(text)
