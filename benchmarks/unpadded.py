"""Short blocks with their padding and without (`run.attention` sdpa and varlen), tokens a second.

    python benchmarks/unpadded.py

Documents of random lengths are cut into DOC-SENTENCES blocks, and an update's blocks pass forward
and backward as they do in a training: sorted, cut into micro-batches, masked. On a GPU the model
has the size of RoBERTa base, in bf16; on CPU it is small, in fp32. The table is printed and written
to benchmarks/results/unpadded-<device>-<date>.md.

How much padding is left in a training's updates, side by side and in rows, follows from the lengths
of blocks alone: a second table, of updates of RoBERTa's size on several numbers of ranks.

Predicted, before anything is measured, is what the work says if nothing else counts: a token of a
row of L positions costs 24 H^2 operations in matrices and 4 H L in attention, in each layer, and a
padded position costs as much."""

import math
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(
    sys.path.pop(0)
)  # this folder last: pretrain.py has the name of one of our packages

import numpy as np
import torch
from numpy.typing import NDArray
from random_text import lengths_of_blocks, vocabulary_of

from robustly.data_prep.sampler import EpochSampler
from robustly.pretrain.attention import attention_for
from robustly.pretrain.batches import Batches, layout_for
from robustly.pretrain.config import MaskingConfig, ModelConfig, RunConfig
from robustly.pretrain.layout import MULTIPLE, InRows, Lengths, SideBySide
from robustly.pretrain.micro_batch import MicroBatch
from robustly.pretrain.model_setup import set_up_model
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.schedule import UpdateSizes

RESULTS = Path(__file__).parent / "results"
ROUNDS = 3
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BLOCKS, MICRO_BATCHES, LENGTH, VOCABULARY, SIZES = (
    (256, (32, 256), 512, 50_265, {"layers": 12, "hidden": 768, "heads": 12, "feed_forward": 3072})
    if DEVICE.type == "cuda"
    else (16, (4, 16), 256, 2_000, {"layers": 2, "hidden": 128, "heads": 2, "feed_forward": 512})
)
"""Blocks of the update, of a micro-batch; tokens of a block; entries."""
UPDATE, FILLED, SAMPLED, TRIED = 8192, 490, 2**14, 10
"""Of the table of padding: blocks of an update, the mean length from which on it has no more of
them, blocks of the sample, updates."""
CORPORA = {"like Wikipedia": (7.8, 1.0), "abstracts": (5.3, 0.6)}
"""Mean and standard deviation of the logarithm of a document's tokens; Wikipedia's as measured on
English articles."""


def lengths_of_documents(
    mean: float, deviation: float, longest: int, count: int = 20_000
) -> NDArray[np.int64]:
    """Tokens of the DOC-SENTENCES blocks of so many documents."""
    documents = np.random.default_rng(0).lognormal(mean, deviation, count).astype(np.int64) + 2
    whole, rest = np.divmod(documents, longest - 1)  # <s> begins each block
    return np.array([longest] * int(whole.sum()) + [int(one) + 1 for one in rest if one])


class Documents:
    """DOC-SENTENCES blocks of random documents: what `Batches` asks of
    `robustly.data_prep.blocks.Blocks`."""

    pairs, block_length = False, LENGTH

    def __init__(self, mean: float, deviation: float):
        lengths = lengths_of_documents(mean, deviation, LENGTH)
        self.lengths = np.random.default_rng(1).permutation(lengths)
        self.source_starts = np.array([0, len(self.lengths)])
        self.source_lengths = np.array([self.lengths.mean()])

    def __len__(self) -> int:
        return len(self.lengths)

    def lengths_of(
        self, blocks: NDArray[np.int64], seconds: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        return self.lengths[blocks]

    def gather(
        self, blocks: NDArray[np.int64], seconds: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        lengths = self.lengths[blocks]
        ids = (
            np.random.default_rng(blocks[0])
            .integers(4, VOCABULARY - 1, (len(blocks), LENGTH))
            .astype(np.int32)
        )
        ids[:, 0] = 0
        return np.where(np.arange(LENGTH) < lengths[:, None], ids, 1), lengths


class Found(NamedTuple):
    positions: float
    """Padded, per token."""
    predicted: float
    padded: float
    """Tokens a second."""
    unpadded: float


def objective(attention: str) -> MaskedLanguageModel:
    settings = {"positions": LENGTH + 2, "token_types": 1, "dropout": 0.1, "attention_dropout": 0.0}
    model = ModelConfig(**SIZES, **settings, layer_norm_eps=1e-5, init_std=0.02)
    config = roberta_config(model, vocabulary_of(VOCABULARY))
    on_gpu = DEVICE.type == "cuda"
    made = (
        MaskedLanguageModel(new_model(config, 0))
        .to(DEVICE, torch.bfloat16 if on_gpu else torch.float32)
        .train()
    )
    run = RunConfig(attention=attention, precision="bf16" if on_gpu else "fp32")
    set_up_model(made, run, attention_for(run, model, DEVICE))
    return made


def now() -> float:
    """Seconds; on CPU those of this process alone, so that others on the machine do not count."""
    if DEVICE.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(made: MaskedLanguageModel, micro_batches: list[MicroBatch]) -> float:
    begin = now()
    for one in micro_batches:
        batch = one.to(DEVICE)
        made(batch.inputs, batch.attention, batch.positions, batch.labels).sum().backward()

    taken = now() - begin
    made.zero_grad()
    return taken


def work(rows: int, length: int) -> int:
    return rows * length * (6 * SIZES["hidden"] + length)


def measure(corpus: tuple[float, float], micro_batch: int) -> Found:
    blocks: Any = Documents(*corpus)
    masking = MaskingConfig(probability=0.15, mask=0.8, random=0.1, style="fairseq")
    ids = vocabulary_of(VOCABULARY)
    order = EpochSampler(blocks, 1)
    on_gpu = DEVICE.type == "cuda"
    layouts = {
        "sdpa": layout_for(order, BLOCKS, 1, micro_batch),
        "varlen": layout_for(order, BLOCKS, 1, micro_batch, in_rows=True, fixed=on_gpu),
    }
    shares = {
        name: Batches(order, UpdateSizes(BLOCKS), masking, ids, 0, 1, layout).batch(1)
        for name, layout in layouts.items()
    }
    micro_batches, tokens = shares["sdpa"].micro_batches, shares["sdpa"].tokens
    real = [int(length) for one in micro_batches for length in (one.inputs != ids.pad).sum(1)]
    padded_work = sum(work(*one.inputs.shape) for one in micro_batches)
    models = {attention: objective(attention) for attention in ("sdpa", "varlen")}
    best = {
        attention: seconds(made, shares[attention].micro_batches)
        for attention, made in models.items()
    }  # warms up
    for _ in range(ROUNDS):
        for attention, made in models.items():
            taken = seconds(made, shares[attention].micro_batches)
            best[attention] = min(best[attention], taken)

    return Found(
        sum(one.inputs.numel() for one in micro_batches) / tokens,
        padded_work / sum(work(1, length) for length in real),
        tokens / best["sdpa"],
        tokens / best["varlen"],
    )


class Left(NamedTuple):
    """Padding of an update's positions, as a share."""

    full: float
    """All blocks as long as a block may be: one shape for all micro-batches."""
    side_by_side: float
    """Sorted, each micro-batch as wide as its longest block."""
    in_rows: float
    tokens: int
    """Of a row."""


def padding_left(lengths: NDArray[np.int64], ranks: int) -> Left:
    """Of updates of 8,192 full blocks' worth of tokens of at most 512, micro-batches of 64."""
    longest, micro_batch = 512, 64
    draw = np.random.default_rng(0)
    batch = round(UPDATE * longest / lengths.mean()) if lengths.mean() < FILLED else UPDATE
    layout = InRows.of(draw.choice(lengths, SAMPLED), longest, batch, ranks, micro_batch, True)
    tokens = sides = rows = 0
    for _ in range(TRIED):
        drawn = draw.choice(lengths, batch)
        dealt = layout.deal(_parts_of(drawn), batch, 0, ranks)
        rows += len(dealt.rows) * ranks * layout.tokens
        tokens += int(drawn.sum())
        side = SideBySide(micro_batch)
        for rank in range(ranks):
            own = side.deal(_parts_of(drawn), batch, rank, ranks)
            for places in own.rows:
                wide = drawn[own.places[places]]
                sides += len(wide) * math.ceil(int(wide.max(initial=0)) / MULTIPLE) * MULTIPLE

    return Left(1 - lengths.mean() / longest, 1 - tokens / sides, 1 - tokens / rows, layout.tokens)


def _parts_of(lengths: NDArray[np.int64]) -> Lengths:
    return lambda begin, end: lengths[begin:end]


def padding_table() -> str:
    draw = np.random.default_rng(0)
    kinds = {
        "full_sentences": lengths_of_blocks(draw, 512, 40_000),
        "doc_sentences, like Wikipedia": lengths_of_documents(*CORPORA["like Wikipedia"], 512),
        "doc_sentences, abstracts": lengths_of_documents(*CORPORA["abstracts"], 512),
        "none": np.full(40_000, 512),
    }
    lines = []
    for name, lengths in kinds.items():
        for ranks in (1, 8, 64):
            found = padding_left(lengths, ranks)
            lines.append(
                f"| {name} | {ranks} | {found.full:.1%} | {found.side_by_side:.1%} |"
                f" {found.in_rows:.1%} | {found.tokens:,} |"
            )

    return "\n".join(lines)


def report() -> str:
    rows = []
    for name, corpus in CORPORA.items():
        mean = Documents(*corpus).lengths.mean()
        for micro_batch in MICRO_BATCHES:
            found = measure(corpus, micro_batch)
            rows.append(
                f"| {name}, {mean:.0f} | {BLOCKS // micro_batch} | {found.positions:.2f} |"
                f" {found.predicted:.2f} | {found.unpadded / found.padded:.2f} |"
                f" {found.padded:,.0f} | {found.unpadded:,.0f} |"
            )

    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "one CPU core"
    precision = "bf16" if DEVICE.type == "cuda" else "fp32"
    table = "\n".join(rows)

    return f"""# Short blocks without padding

{time.strftime("%Y-%m-%d")}, {device}, {platform.machine()}, torch {torch.__version__},
transformers {version("transformers")}. {SIZES["layers"]} layers of {SIZES["hidden"]}, {precision}, dropout 0.1;
an update of {BLOCKS} blocks of at most {LENGTH} tokens; best of {ROUNDS + 1}.

| documents, mean tokens of a block | micro-batches | padded positions per token | predicted ratio | ratio | tokens/s, \
sdpa | varlen |
| --- | --- | --- | --- | --- | --- | --- |
{table}

Micro-batches: of an update. Predicted is the work of padded rows by that of their tokens, in matrices and attention.

Padding that is left, as a share of positions, by arithmetic on drawn lengths: updates of {UPDATE:,} blocks of at most 512 (where
they are short, of as many tokens), `run.micro_batch` 64.

| blocks | ranks | all of one shape side by side | sorted side by side | in rows | tokens of a row |
| --- | --- | --- | --- | --- | --- |
{padding_table()}
"""


if __name__ == "__main__":
    torch.set_num_threads(1)
    text = report()
    (RESULTS / f"unpadded-{DEVICE.type}-{time.strftime('%Y-%m-%d')}.md").write_text(text)
    print(text)
