"""Training on one CPU core in fp32 and in bf16, with torch's fused attention and with plain matrix
products: tokens a second, and how far losses are apart.

    python benchmarks/cpu_precision.py

Forward and backward of one micro-batch of full blocks, as a training passes it through the model:
`tiny`'s model on blocks of 32, and RoBERTa-base's on 8 blocks of 128 with dropout 0.1. All ways take
turns in one process; what counts is its own time on the processor. The table is printed and written
to benchmarks/results/cpu_precision-<date>.md. `precision: auto` takes bf16 where the processor has
AMX, else fp32."""

import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.append(
    sys.path.pop(0)
)  # this folder last: pretrain.py has the name of one of our packages

import torch
from random_text import RandomBlocks, vocabulary_of

from robustly.data_prep.sampler import EpochSampler
from robustly.experiment import load_experiment
from robustly.pretrain.attention import Attention
from robustly.pretrain.batches import Batches
from robustly.pretrain.micro_batch import MicroBatch
from robustly.pretrain.model_setup import set_up_model
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.schedule import UpdateSizes

RESULTS = Path(__file__).parent / "results"
ROUNDS = 2
SHAPES = {
    "tiny": ("tiny", []),
    "base at 128": ("roberta_base", ["data.block_length=128", "run.micro_batch=8"]),
}
WAYS = [
    ("fp32", torch.float32, "sdpa"),
    ("fp32", torch.float32, "eager"),
    ("bf16", torch.bfloat16, "sdpa"),
    ("bf16", torch.bfloat16, "eager"),
]
ABLE = ("avx512_f", "avx512_bf16", "amx_bf16")


def seconds(objective: MaskedLanguageModel, one: MicroBatch) -> tuple[float, float]:
    """Of a forward and a backward pass; and the loss."""
    torch.manual_seed(1)
    begin = time.process_time()
    loss = objective(*one.arguments).sum() / len(one.labels)
    loss.backward()
    taken = time.process_time() - begin
    objective.zero_grad()
    return taken, float(loss.detach())


def rows(shape: str) -> list[str]:
    name, changes = SHAPES[shape]
    page = load_experiment(name, changes)
    vocabulary = vocabulary_of(page.tokenizer.vocab_size)
    blocks: Any = RandomBlocks(vocabulary, page.data.block_length, padded=False)
    count = page.run.micro_batch
    made = Batches(
        EpochSampler(blocks, 1), UpdateSizes(count), page.masking, vocabulary, 0, 1, count
    )
    (one,) = made.batch(1).micro_batches

    objectives = []
    for _, dtype, attention in WAYS:
        model = new_model(roberta_config(page.model, vocabulary), 0)
        objectives.append(MaskedLanguageModel(model).to(dtype).train())
        set_up_model(objectives[-1], page.run, Attention(attention, "as it is measured"))

    found = [[seconds(each, one) for each in objectives] for _ in range(ROUNDS + 1)]
    best = [min(column)[0] for column in zip(*found[1:], strict=True)]
    losses = [loss for _, loss in found[0]]
    return [
        f"| {shape} | {precision} | {attention} | {one.tokens / best[number]:,.0f} |"
        f" {best[0] / best[number]:.2f} | {losses[number] - losses[0]:+.4f} |"
        for number, (precision, _, attention) in enumerate(WAYS)
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    able = torch.cpu.get_capabilities()
    has = ", ".join(f"{name}: {'yes' if able.get(name) else 'no'}" for name in ABLE)
    table = "\n".join(line for shape in SHAPES for line in rows(shape))
    text = f"""# Precision on a CPU

{time.strftime("%Y-%m-%d")}, one core, {platform.machine()} ({has}), Python {platform.python_version()},
torch {torch.__version__}, transformers {version("transformers")}. Least of {ROUNDS} rounds of all ways in turn.

| model | precision | attention | tokens/s | to fp32, sdpa | loss less that of fp32, sdpa |
| --- | --- | --- | --- | --- | --- |
{table}
"""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"cpu_precision-{time.strftime('%Y-%m-%d')}.md").write_text(text)
    print(text)
