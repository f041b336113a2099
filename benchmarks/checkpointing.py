"""How long training waits for a checkpoint of RoBERTa-base, beside a save that writes at once.

    python benchmarks/checkpointing.py [--ranks 2] [--folder FOLDER]

"At once" is what the trainer did until November 2026: gather, `save_file`, flush to disk, read both
files again for their hashes. "In the background" is what it does: wait for the checkpoint before,
gather, copy; the copies are written and hashed while training goes on. Both save the same engine's
tensors to the same disk by turns, after an update each; the pause is rank 0's, from one update to
the next. An update has 2 blocks of 64 tokens a rank: the time of one beside a checkpoint that is
being written tells what writing takes from training.

On the GPU if there is one, in bf16. The table is printed and written to
benchmarks/results/checkpointing-<date>.md."""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.append(
    sys.path.pop(0)
)  # this folder last: a file in it has the name of one of our packages

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from robustly import heartbeat
from robustly.experiment import load_experiment
from robustly.files import flush, sha256
from robustly.launch import local
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.background_saves import BackgroundSaves
from robustly.pretrain.checkpoints.checkpoint import Progress
from robustly.pretrain.engine import Engine
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.process_group import start_ranks, stop_ranks

RESULTS = Path(__file__).parent / "results"
ROUNDS, BLOCKS, LENGTH = 3, 2, 64


class Bench:
    """One rank's engine and folder."""

    def __init__(self, folder: Path, rank: int, ranks: int):
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
        self.rank, self.ranks, self.folder, self.update = rank, ranks, folder, 0
        self.device = start_ranks(rank)
        precision = "bf16" if self.device.type == "cuda" else "fp32"
        config = load_experiment("roberta_base", [f"run.precision={precision}"])
        size = config.tokenizer.vocab_size
        special = SpecialTokens(size, 0, 1, 2, size - 1)
        model = MaskedLanguageModel(new_model(roberta_config(config.model, special), 1)).train()
        self.parameters = sum(p.numel() for p in model.parameters())
        self.stage = config.run.zero_stage_for(ranks)
        self.engine = Engine(model, config.optim, config.run, 1, self.device)
        self.saves = BackgroundSaves(folder / "background", config.run)
        draw = torch.Generator().manual_seed(rank)
        self.inputs = torch.randint(4, size - 1, (BLOCKS, LENGTH), generator=draw)
        self.masked = torch.randperm(self.inputs.numel(), generator=draw)[
            : self.inputs.numel() // 7
        ]

    def train(self) -> float:
        """An update; returns its seconds."""
        start = self._now()
        labels = self.inputs.flatten()[self.masked]
        batch = [one.to(self.device) for one in (self.inputs, self.masked, labels)]
        loss = self.engine(batch[0], None, batch[1], batch[2]).sum()
        self.engine.backward(loss / (len(labels) * self.ranks))
        self.engine.step(1e-4)
        self.update += 1
        return self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        dist.barrier()
        return time.perf_counter()

    def at_once(self) -> float:
        """Seconds of a save that all ranks wait for."""
        start = self._now()
        folder = self.folder / f".update-{self.update:08d}.tmp"
        weights, moments = {}, {}
        for name, weight, first, second in self.engine.tensors.full():
            if self.rank == 0:
                weights[name] = weight.cpu().contiguous()
                moments[f"exp_avg.{name}"] = first.cpu()
                moments[f"exp_avg_sq.{name}"] = second.cpu()

        if self.rank == 0:
            folder.mkdir(parents=True)
            for name, tensors in (("weights", weights), ("moments", moments)):
                path = folder / f"{name}.safetensors"
                save_file(tensors, path, metadata={"format": "pt"})
                flush(path)
                sha256(path)

            (folder / "state.json").write_text("{}")
            folder.rename(self.folder / "at_once")
            flush(self.folder)

        seconds = self._now() - start
        if self.rank == 0:
            shutil.rmtree(self.folder / "at_once")
        return seconds

    def in_background(self) -> float:
        """Seconds until training may go on."""
        start = self._now()
        self.saves.wait()
        tensors, gathers = self.engine.tensors.full(), self.engine.tensors.sharded
        if copies := checkpoint.copy_tensors(tensors, self.rank == 0, gathers):
            self.saves.begin(Progress(self.update, "benchmark"), copies)
        return self._now() - start

    def measure(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {
            key: [] for key in ("at once", "in the background", "written after", "alone", "beside")
        }
        self.train()  # the first updates and copies take fresh memory
        self.in_background()
        self.saves.wait()
        for _ in range(ROUNDS):
            found["alone"].append(self.train())
            found["at once"].append(self.at_once())
            self.train()
            begun = time.perf_counter()
            found["in the background"].append(self.in_background())
            found["beside"].append(self.train())
            self.saves.wait()
            found["written after"].append(time.perf_counter() - begun)
            dist.barrier()

        return found


def be_rank(folder: Path, rank: int, ranks: int) -> None:
    heartbeat.begin(f"rank {rank}")
    heartbeat.allow(3600)
    bench = Bench(folder, rank, ranks)
    found = bench.measure()
    if rank == 0:
        facts = {"parameters": bench.parameters, "device": bench.device.type, "stage": bench.stage}
        (folder / "found.json").write_text(json.dumps({**facts, "seconds": found}))
    stop_ranks()


def table(ranks: int, found: dict) -> str:
    seconds = {name: statistics.median(values) for name, values in found["seconds"].items()}
    rows = [
        ("pause, at once", "at once"),
        ("pause, in the background", "in the background"),
        ("until it is on disk, in the background", "written after"),
        ("an update, alone", "alone"),
        ("an update, beside a checkpoint that is being written", "beside"),
    ]
    lines = [
        f"## {ranks} rank{'s' * (ranks > 1)}, ZeRO stage {found['stage']}, {found['device']}",
        "",
        f"{found['parameters']:,} parameters, {12 * found['parameters'] / 1e9:.2f} GB a checkpoint.",
        "",
        "| what | seconds, median | each |",
        "| --- | --- | --- |",
        *(
            f"| {what} | {seconds[key]:.2f} | {', '.join(f'{s:.2f}' for s in found['seconds'][key])} |"
            for what, key in rows
        ),
        "",
        f"The pause is {seconds['at once'] / seconds['in the background']:.1f} times shorter.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    asked.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    options = asked.parse_args()
    if "RANK" in os.environ:
        be_rank(options.folder, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        return

    parts = [
        "# Pause of training for a checkpoint",
        "",
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {platform.machine()}, Python"
        f" {platform.python_version()}, torch {version('torch')}, DeepSpeed {version('deepspeed')},"
        f" safetensors {version('safetensors')}. `python benchmarks/checkpointing.py`, load before it"
        f" {os.getloadavg()[0]:.1f}.",
        "",
    ]
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory(dir=options.folder) as place:
            command = [sys.executable, __file__, "--folder", place]
            if code := local.run(command, ranks, os.environ):
                sys.exit(code)
            parts.append(table(ranks, json.loads((Path(place) / "found.json").read_text())))

    text = "\n".join(parts)
    print(text)
    (RESULTS / f"checkpointing-{time.strftime('%Y-%m-%d')}.md").write_text(text)


if __name__ == "__main__":
    main()
