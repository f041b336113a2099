"""Pretraining on one rank beside transformers' Trainer as run_mlm uses it: tokens/s, MFU, memory.

    python benchmarks/pretrain.py               # a GPU: base and large at 128 and 512; a CPU: tiny,
    and base at 128 python benchmarks/pretrain.py --shapes base-512 --updates 20 run.micro_batch=64

Every case is a process of its own and trains the same model on the same random blocks, as many at a
time. Ours: masks made ahead, the engine (DeepSpeed; NCCL on a GPU), the head on the masked
positions. The peer: `Trainer` with DataCollatorForLanguageModeling, as in transformers' run_mlm.py,
plain and with torch_compile; on a CPU also plain with our setting of the C library's allocator,
which is a part of the difference. The table is printed and written to
benchmarks/results/pretrain-<device>-<date>.md."""

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from robustly.pretrain.flops import flops_per_token

sys.path.append(sys.path.pop(0))  # this folder last: this file has the name of one of our packages

import torch
from random_text import RandomBlocks, save_tokenizer, vocabulary_of

from robustly.data_prep.sampler import EpochSampler
from robustly.experiment import Experiment, load_experiment
from robustly.pretrain.allocator import keep_freed_memory
from robustly.pretrain.batches import Batches
from robustly.pretrain.mfu import PEAK_TFLOPS
from robustly.pretrain.model_setup import set_up_model
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.schedule import UpdateSizes

RESULTS = Path(__file__).parent / "results"
SHAPES = {
    "tiny": ("tiny", []),
    "base-128": ("roberta_base", ["data.block_length=128"]),
    "base-512": ("roberta_base", []),
    "large-128": ("roberta_large", ["data.block_length=128"]),
    "large-512": ("roberta_large", []),
}
# one micro-batch or a few an update: the optimizer's share is larger than in a real run, for both
ON_GPU = {
    "base-128": ["optim.batch_size=256", "run.micro_batch=128"],
    "base-512": ["optim.batch_size=64", "run.micro_batch=32"],
    "large-128": ["optim.batch_size=128", "run.micro_batch=64"],
    "large-512": ["optim.batch_size=32", "run.micro_batch=16"],
}
ON_CPU = {
    "tiny": [],
    "base-128": ["optim.batch_size=8", "run.micro_batch=8"],
}  # 8: what run_mlm does unless told
CASES = ("robustly", "robustly compiled", "Trainer", "Trainer compiled")
KEEPING = "Trainer keeping memory"
"""On CPU: with our setting of the C library's allocator, to tell that part of the gain."""


def page_of(shape: str, overrides: list[str]) -> Experiment:
    name, changes = SHAPES[shape]
    sizes = (ON_GPU if torch.cuda.is_available() else ON_CPU).get(shape, [])
    return load_experiment(name, [*changes, *sizes, *overrides])


class Clock:
    """Seconds of the updates after the first ones, which warm up."""

    def __init__(self, warm_up: int):
        self.updates, self.warm_up, self.start = 0, warm_up, 0.0

    def tick(self) -> None:
        """An update has ended."""
        self.updates += 1
        if self.updates == self.warm_up:
            self.start = self.now()

    @staticmethod
    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def figures(self, page: Experiment) -> dict[str, Any]:
        seconds = (self.now() - self.start) / (self.updates - self.warm_up)
        memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
        return {
            "tokens_per_second": page.optim.batch_size * page.data.block_length / seconds,
            "memory_gb": memory,
        }


# ---------------------------------------------------------------------------- cases, a process each


def ours(
    page: Experiment, precision: str, compiled: bool, updates: int, warm_up: int
) -> dict[str, Any]:
    from robustly.pretrain.engine import Engine, start_ranks, stop_ranks

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    vocabulary = vocabulary_of(page.tokenizer.vocab_size)
    device = start_ranks(0)
    objective = MaskedLanguageModel(
        new_model(roberta_config(page.model, vocabulary), page.seed)
    ).train()
    run = page.run.model_copy(
        update={"precision": precision, "zero_stage": 1, "deepspeed": {}, "compile": compiled}
    )
    set_up_model(objective, run, device)
    blocks: Any = RandomBlocks(vocabulary, page.data.block_length)
    order = EpochSampler(blocks, page.seed)
    batches = Batches(
        order,
        UpdateSizes(page.optim.batch_size),
        page.masking,
        vocabulary,
        0,
        1,
        page.run.micro_batch,
    )
    engine = Engine(objective, page.optim, run, batches.accumulation, device)
    clock = Clock(warm_up)

    for share in batches.ahead(1, updates):
        for batch in (batch.to(device) for batch in share.micro_batches):
            sums = engine(batch.inputs, batch.attention, batch.positions, batch.labels)
            engine.backward(sums.sum() / share.masked_tokens)

        engine.step(page.optim.peak_lr / 100)
        clock.tick()

    figures = clock.figures(page)
    stop_ranks()
    return figures


def keeping(*arguments: Any) -> dict[str, Any]:
    keep_freed_memory()
    return theirs(*arguments)


def theirs(
    page: Experiment, precision: str, compiled: bool, updates: int, warm_up: int
) -> dict[str, Any]:
    from transformers import (
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    vocabulary = vocabulary_of(page.tokenizer.vocab_size)
    model = new_model(roberta_config(page.model, vocabulary), page.seed)
    blocks = RandomBlocks(vocabulary, page.data.block_length)
    rows = [{"input_ids": row.tolist()} for row in blocks.ids]
    clock = Clock(warm_up)

    class Ticking(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    on_gpu = torch.cuda.is_available()

    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(vocabulary.size, Path(folder, "tokenizer"))
        tokenizer = AutoTokenizer.from_pretrained(Path(folder, "tokenizer"))
        arguments = TrainingArguments(
            folder, max_steps=updates, per_device_train_batch_size=page.run.micro_batch,
            gradient_accumulation_steps=page.optim.batch_size // page.run.micro_batch,
            learning_rate=page.optim.peak_lr / 100, lr_scheduler_type="constant",
            adam_beta2=page.optim.betas[1], adam_epsilon=page.optim.eps, weight_decay=page.optim.weight_decay,
            max_grad_norm=0.0, bf16=precision == "bf16", use_cpu=not on_gpu, report_to=[], torch_compile=compiled,
            save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=on_gpu,
        )  # fmt: skip
        collator = DataCollatorForLanguageModeling(
            tokenizer, mlm_probability=page.masking.probability
        )
        Trainer(model, arguments, collator, train_dataset=rows, callbacks=[Ticking()]).train()

    return clock.figures(page)


def matmul_tflops(precision: str) -> float:
    """What this device reaches on square matrices of 4,096 (a CPU: 1,024), 10^12 operations a
    second."""
    on_gpu = torch.cuda.is_available()
    size = 4096 if on_gpu else 1024
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left = torch.randn(size, size, dtype=kind, device="cuda" if on_gpu else "cpu")
    for _ in range(3):
        left @ left

    start, count = Clock.now(), 50 if on_gpu else 20
    for _ in range(count):
        left @ left

    return 2 * size**3 * count / (Clock.now() - start) / 1e12


# ---------------------------------------------------------------------------------------- measuring


def report(
    shape: str,
    page: Experiment,
    precision: str,
    rate: float,
    found: dict[str, dict[str, Any] | str],
) -> str:
    """A table as Markdown; ratios are to the plain Trainer."""
    flops = flops_per_token(
        page.model, page.tokenizer.vocab_size, page.data.block_length, page.masking.probability
    )
    peer = found["Trainer"]
    lines = [
        f"## {shape}, {precision}: blocks of {page.data.block_length}, micro-batch {page.run.micro_batch}, "
        f"{page.optim.batch_size} blocks an update", "",
        "| | tokens/s | to Trainer | of the matmul rate | of the data sheet | memory, GB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip

    for name, figures in found.items():
        if isinstance(figures, str):
            lines.append(f"| {name} | failed: {figures} | | | | |")
            continue

        speed = figures["tokens_per_second"]
        ratio = "" if isinstance(peer, str) else f"{speed / peer['tokens_per_second']:.2f}"
        sheet = (
            "" if (peak := peak_tflops(precision)) is None else f"{speed * flops / peak / 1e12:.1%}"
        )
        memory = "" if figures["memory_gb"] is None else f"{figures['memory_gb']:.2f}"
        lines.append(
            f"| {name} | {speed:,.0f} | {ratio} | {speed * flops / rate / 1e12:.1%} | {sheet} |"
            f" {memory} |"
        )

    return "\n".join(lines) + "\n"


def peak_tflops(precision: str) -> float | None:
    """The data sheet's figure of this GPU, where the planner knows it."""
    if not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_name()
    known = (peaks for name, peaks in PEAK_TFLOPS.items() if name.split(" ")[0] in device)
    return next((peaks[precision] for peaks in known), None)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, default=list(ON_GPU if on_gpu else ON_CPU)
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="bf16" if on_gpu else "fp32"
    )
    parser.add_argument(
        "--updates", type=int, default=25 if on_gpu else 8, help="of each case; a fifth warms up"
    )
    parser.add_argument("--case", choices=(*CASES, KEEPING), help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args()
    warm_up = max(1, options.updates // 5)
    if options.case:
        run = keeping if options.case == KEEPING else ours if "robustly" in options.case else theirs
        page = page_of(options.shapes[0], overrides)
        print(
            json.dumps(
                run(page, options.precision, "compiled" in options.case, options.updates, warm_up)
            )
        )
        return

    rate = matmul_tflops(options.precision)
    tables = []

    for shape in options.shapes:
        found: dict[str, dict[str, Any] | str] = {}
        for name in CASES if on_gpu else (*CASES, KEEPING):
            settings = ["--precision", options.precision, "--updates", str(options.updates)]
            command = [
                sys.executable,
                __file__,
                "--shapes",
                shape,
                "--case",
                name,
                *settings,
                *overrides,
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            lines = done.stdout.strip().splitlines()
            found[name] = (
                json.loads(lines[-1])
                if done.returncode == 0
                else done.stderr.strip().splitlines()[-1][:120]
            )
            print(shape, name, found[name], file=sys.stderr)

        tables.append(report(shape, page_of(shape, overrides), options.precision, rate, found))

    hardware = torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} CPU cores"
    versions = ", ".join(
        f"{library} {version(library)}" for library in ("torch", "transformers", "deepspeed")
    )
    text = f"""# Pretraining on one rank

{time.strftime("%Y-%m-%d")}, {hardware}, {platform.machine()}, Python {platform.python_version()}, {versions}.
{options.updates} updates, of which {warm_up} warm up. Square matrices reach {rate:.2f} TFLOP/s here. Operations are the
model's (docs/budget.md), the head on the masked tokens alone: the Trainer makes more of them, for all tokens.

{chr(10).join(tables)}"""
    device = torch.cuda.get_device_name().replace(" ", "-").lower() if on_gpu else "cpu"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"pretrain-{device}-{time.strftime('%Y-%m-%d')}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
