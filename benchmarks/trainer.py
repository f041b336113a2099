"""One rank's training beside transformers' Trainer: tokens/s, memory, and what bf16 and torch.compile change.

    python benchmarks/trainer.py                # a GPU: RoBERTa-base; a CPU: a small model; about ten minutes at most
    python benchmarks/trainer.py --page tiny optim.batch_size=16

Every case is a process of its own and trains on the same masked micro-batches of random tokens: ours through the engine
(DeepSpeed; NCCL on a GPU) with the head on the masked positions, the peer's through `Trainer` with its own loss. The
table is printed and written to benchmarks/results/trainer-<device>-<date>.md.
"""

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

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.order import Order
from pretrain.batches import Batches, MicroBatch
from pretrain.masking import TokenIds
from pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.experiment import Experiment, load_experiment

RESULTS = Path(__file__).parent / "results"
WARM_UP, MEASURED = 5, 40  # updates
CASES = ("robustly fp32", "robustly bf16", "robustly bf16 compiled", "Trainer fp32", "Trainer bf16")


class RandomBlocks:
    """Full blocks of random ids, <s> first and </s> last: what data_prep.blocks.Blocks gives, without padding."""

    def __init__(self, vocabulary: TokenIds, length: int, count: int = 4096):
        self._ids = np.random.default_rng(0).integers(4, vocabulary.size - 1, (count, length), np.int32)
        self._ids[:, 0], self._ids[:, -1] = vocabulary.bos, vocabulary.eos
        self.pairs = False
        self.source_starts = np.array([0, count])

    def __len__(self) -> int:
        return len(self._ids)

    def gather(
        self, blocks: NDArray[np.int64], seconds: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        rows = self._ids[blocks]
        return rows, np.full(len(rows), rows.shape[1], np.int32)


def micro_batches(page: Experiment, vocabulary: TokenIds) -> list[list[MicroBatch]]:
    """Those of every update: the same for every case."""
    blocks: Any = RandomBlocks(vocabulary, page.data.block_length)
    order = Order(blocks, page.seed)
    batches = Batches(order, page.optim.batch_size, page.masking, vocabulary, 0, 1, page.run.micro_batch)
    return [batches.share(update).micro_batches for update in range(1, WARM_UP + MEASURED + 1)]


def peak_memory(device: torch.device) -> float | None:
    """GB; a CPU's is that of the whole process and says little."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def measured(times: list[float], page: Experiment) -> float:
    """Tokens per second from the ends of the updates."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return MEASURED * page.optim.batch_size * page.data.block_length / (time.perf_counter() - times[WARM_UP - 1])


def ours(page: Experiment, precision: str, compiled: bool) -> dict[str, Any]:
    """Losses of the updates, tokens/s and memory of the project's engine on one rank."""
    from pretrain.engine import Engine, start_ranks, stop_ranks

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    vocabulary = vocabulary_of(page)
    device = start_ranks(0)
    objective = MaskedLanguageModel(new_model(roberta_config(page.model, vocabulary), page.seed)).train()
    run = page.run.model_copy(update={"precision": precision, "zero_stage": 1, "deepspeed": {}})
    updates = micro_batches(page, vocabulary)
    engine = Engine(objective, page.optim, run, len(updates[0]), device)
    if compiled:
        objective.model.roberta.compile()
    ends, losses = [], []
    for batches in updates:
        masked = sum(len(batch.labels) for batch in batches)
        total = torch.zeros((), device=device)
        for batch in (batch.to(device) for batch in batches):
            loss = engine(batch.inputs, batch.attention, batch.positions, batch.labels).sum()
            engine.backward(loss / masked)
            total += loss.detach().float()
        engine.step(page.optim.peak_lr)
        losses.append(total / masked)  # read at the end: reading waits for the GPU
        if len(ends) == WARM_UP - 1 and device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
    rate = measured(ends, page)
    memory = peak_memory(device)
    stop_ranks()
    return {"tokens_per_second": rate, "memory_gb": memory, "losses": [float(loss) for loss in losses]}


def theirs(page: Experiment, precision: str) -> dict[str, Any]:
    """tokens/s and memory of transformers' Trainer on the same micro-batches."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    vocabulary = vocabulary_of(page)
    model = new_model(roberta_config(page.model, vocabulary), page.seed)
    updates = micro_batches(page, vocabulary)
    rows = []
    for batch in (batch for batches in updates for batch in batches):
        labels = torch.full(batch.inputs.shape, -100).flatten()
        labels[batch.positions] = batch.labels
        rows += [
            {"input_ids": ids, "labels": row}
            for ids, row in zip(batch.inputs, labels.view_as(batch.inputs), strict=True)
        ]
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if len(ends) == WARM_UP - 1 and torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=len(updates), per_device_train_batch_size=page.run.micro_batch,
            gradient_accumulation_steps=len(updates[0]), learning_rate=page.optim.peak_lr, lr_scheduler_type="constant",
            adam_beta2=page.optim.betas[1], adam_epsilon=page.optim.eps, weight_decay=page.optim.weight_decay,
            max_grad_norm=0.0, bf16=precision == "bf16", use_cpu=not on_gpu, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=on_gpu,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=rows, callbacks=[Clock()]).train()
    return {"tokens_per_second": measured(ends, page), "memory_gb": peak_memory(next(model.parameters()).device)}


def vocabulary_of(page: Experiment) -> TokenIds:
    return TokenIds(page.tokenizer.vocab_size, 0, 1, 2, page.tokenizer.vocab_size - 1)


def case(name: str, page: Experiment) -> dict[str, Any]:
    who, precision, *compiled = name.split()
    return ours(page, precision, bool(compiled)) if who == "robustly" else theirs(page, precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", help="default: roberta_base on a GPU, tiny on a CPU")
    parser.add_argument("--case", choices=CASES, help="run one case in this process and print its figures as JSON")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    name = options.page or ("roberta_base" if on_gpu else "tiny")
    smaller = ["optim.batch_size=128"] if on_gpu and not options.page else []  # 4 micro-batches of 32
    overrides = [*smaller, *options.overrides]
    page = load_experiment(name, overrides)
    if options.case:
        print(json.dumps(case(options.case, page)))
        return
    found: dict[str, dict[str, Any] | str] = {}
    for each in CASES:
        command = [sys.executable, __file__, "--page", name, "--case", each, *overrides]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = done.stdout.strip().splitlines()
        found[each] = json.loads(lines[-1]) if done.returncode == 0 else done.stderr.strip().splitlines()[-1][:120]
        print(each, found[each] if isinstance(found[each], str) else "done", file=sys.stderr)
    text = report(name, overrides, page, found)
    device = torch.cuda.get_device_name().replace(" ", "-").lower() if on_gpu else "cpu"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"trainer-{device}-{time.strftime('%Y-%m-%d')}.md").write_text(text)
    print(text)


def report(name: str, overrides: list[str], page: Experiment, found: dict[str, dict[str, Any] | str]) -> str:
    """The table, as Markdown; ratios are to the Trainer in the same precision."""
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    versions = ", ".join(f"{library} {version(library)}" for library in ("torch", "transformers", "deepspeed"))
    lines = [
        f"# One rank of `{name}` {' '.join(overrides)}", "",
        f"{time.strftime('%Y-%m-%d')}, {hardware}, {platform.machine()}, Python {platform.python_version()}, "
        f"{versions}. Blocks of {page.data.block_length}, micro-batch {page.run.micro_batch}, "
        f"{page.optim.batch_size} blocks an update, {page.masking.probability:.0%} masked; {MEASURED} updates after "
        f"{WARM_UP}.", "",
        "| case | tokens/s | to Trainer | memory, GB |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for each, figures in found.items():
        if isinstance(figures, str):
            lines.append(f"| {each} | failed: {figures} | | |")
            continue
        peer = found[f"Trainer {each.split()[1]}"]
        ratio = "" if isinstance(peer, str) else f"{figures['tokens_per_second'] / peer['tokens_per_second']:.2f}"
        memory = "" if figures["memory_gb"] is None else f"{figures['memory_gb']:.2f}"
        lines.append(f"| {each} | {figures['tokens_per_second']:,.0f} | {ratio} | {memory} |")
    exact = found["robustly fp32"]
    for each in ("robustly bf16", "robustly bf16 compiled"):
        other = found[each]
        if not isinstance(exact, str) and not isinstance(other, str):
            gap = max(abs(a - b) for a, b in zip(exact["losses"], other["losses"], strict=True))
            lines += [
                "",
                f"{each}: losses of {len(exact['losses'])} updates differ from fp32's by {gap:.4f} nats at most.",
            ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
