"""Pretraining on a CPU, on one rank, beside transformers' Trainer as run_mlm uses it: tokens/s.

    python benchmarks/pretrain.py               # tiny, and base at 128
    python benchmarks/pretrain.py --shapes base-128 --updates 20 run.micro_batch=16

Every case is a process of its own and trains the same model on the same random blocks, as many at a
time (`one_rank.py`). The peer is there plain, with torch_compile, and plain with our setting of the
C library's allocator, which is a part of the difference. The table is printed and written to
benchmarks/results/pretrain-cpu-<date>.md. On a GPU: `gpu.py`."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from robustly.pretrain.flops import flops_per_token

sys.path.append(sys.path.pop(0))  # this folder last: this file has the name of one of our packages

from one_rank import Clock, Figures, Ours, alone, matmul_tflops, theirs

from robustly.experiment import Experiment, load_experiment
from robustly.pretrain.allocator import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
SHAPES = {
    "tiny": ("tiny", []),
    # 8: what run_mlm does unless told
    "base-128": (
        "roberta_base",
        ["data.block_length=128", "optim.batch_size=8", "run.micro_batch=8"],
    ),
}
CASES = ("robustly", "robustly compiled", "Trainer", "Trainer compiled", "Trainer keeping memory")


def page_of(shape: str, precision: str, compiled: bool, overrides: list[str]) -> Experiment:
    name, changes = SHAPES[shape]
    run = [f"run.precision={precision}", "run.zero_stage=1", f"run.compile={compiled}"]
    return load_experiment(name, [*changes, *run, *overrides])


def case(name: str, page: Experiment, clock: Clock) -> Figures:
    if name.startswith("robustly"):
        with alone() as device:
            return Ours(page, device, padded=False).train(clock)

    if name == "Trainer keeping memory":
        keep_freed_memory()

    return theirs(page, clock, page.run.compile)


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
        "| | tokens/s | to Trainer | of the matmul rate |",
        "| --- | --- | --- | --- |",
    ]  # fmt: skip

    for name, figures in found.items():
        if isinstance(figures, str):
            lines.append(f"| {name} | failed: {figures} | | |")
            continue

        speed = figures["tokens_per_second"]
        ratio = "" if isinstance(peer, str) else f"{speed / peer['tokens_per_second']:.2f}"
        lines.append(f"| {name} | {speed:,.0f} | {ratio} | {speed * flops / rate / 1e12:.1%} |")

    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--updates", type=int, default=8, help="of each case; a fifth warms up")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args()
    warm_up = max(1, options.updates // 5)
    if options.case:
        compiled = options.case.endswith("compiled")
        page = page_of(options.shapes[0], options.precision, compiled, overrides)
        print(
            json.dumps(
                case(options.case, page, Clock(warm_up, options.updates - warm_up))._asdict()
            )
        )
        return

    rate = matmul_tflops(options.precision, 1024)
    tables = []

    for shape in options.shapes:
        found: dict[str, dict[str, Any] | str] = {}
        for name in CASES:
            settings = ["--precision", options.precision, "--updates", str(options.updates)]
            what = ["--shapes", shape, "--case", name]
            done = subprocess.run(
                [sys.executable, __file__, *what, *settings, *overrides],
                capture_output=True,
                text=True,
            )
            lines = done.stdout.strip().splitlines()
            found[name] = (
                json.loads(lines[-1])
                if done.returncode == 0
                else done.stderr.strip().splitlines()[-1][:120]
            )
            print(shape, name, found[name], file=sys.stderr)

        page = page_of(shape, options.precision, False, overrides)
        tables.append(report(shape, page, options.precision, rate, found))

    versions = ", ".join(
        f"{library} {version(library)}" for library in ("torch", "transformers", "deepspeed")
    )
    text = f"""# Pretraining on one rank

{time.strftime("%Y-%m-%d")}, {os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}, {versions}.
{options.updates} updates, of which {warm_up} warm up. Square matrices reach {rate:.2f} TFLOP/s here. Operations are the
model's (docs/budget.md), the head on the masked tokens alone: the Trainer makes more of them, for all tokens.

{chr(10).join(tables)}"""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"pretrain-cpu-{time.strftime('%Y-%m-%d')}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
