"""Seconds from a fault to the end of all processes, who is named, and the exit code; and what the
heartbeat costs an update.

    python benchmarks/faults.py [FOLDER]        # prints the tables of docs/reliability.md

A run of two ranks on a small config; the faults come at its fourth update. The ranks and their
launcher are processes as `robustly pretrain` starts them; the program of a rank is this file, which
adds the fault."""

import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import psutil

from robustly import heartbeat
from robustly.heartbeat import Phase
from robustly.launch import local

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 10  # seconds, run.timeout here
UPDATE = 4
SMALL = (
    "tokenizer.vocab_size=500", "corpus.validation=0.1", "data.block_length=64", "model.layers=2",
    "model.hidden=32", "model.feed_forward=64", "model.positions=66", "optim.batch_size=24",
    "schedule.updates=100000", "run.micro_batch=4", "run.log_every=1", "run.evaluate_every=100000",
    "run.checkpoint_every=2", "run.workers=2", f"run.timeout={TIMEOUT}", "run.start_timeout=60",
)  # fmt: skip


def config(folder: Path) -> list[str]:
    return [str(ROOT / "configs/tiny.yaml"), f"paths.root={folder}", *SMALL]


# ------------------------------------------------------------------------------ a rank and its fault


def rank(fault: str, folder: Path, words: list[str]) -> None:
    """Be a rank, whose number 1 meets a fault."""
    from robustly.cli import main
    from robustly.pretrain import batches, peers
    from robustly.pretrain.updates import Updates

    (folder / f"pid.{os.environ['RANK']}").write_text(str(os.getpid()))
    updates, make = Updates.make, batches.Batches.batch

    def meet(update: int, what: str) -> None:
        if fault != what or update != UPDATE or os.environ["RANK"] != "1":
            return
        (folder / "began").write_text(str(time.time()))
        if what == "memory":
            raise MemoryError("Unable to allocate 1.00 TiB")
        raise RuntimeError("made up for the benchmark")

    def update(self: Updates, batch: batches.RankBatch, *others: object) -> object:
        meet(batch.update, "exception")
        meet(batch.update, "memory")
        if batch.update == UPDATE and fault == "cost":
            cost()
        if batch.update == UPDATE:
            (folder / f"there.{os.environ['RANK']}").touch()
            time.sleep(3 if fault == "outside" else 0)
        return updates(self, batch, *others)  # type: ignore[arg-type]

    def cost() -> None:
        peer = peers._peers
        assert peer
        seconds = timeit.timeit(
            lambda: (peer.tell(), peer.for_telling.check([peers.FAULT])), number=300
        )
        (folder / "told").write_text(str(seconds / 300))

    def batch(self: batches.Batches, number: int) -> batches.RankBatch:
        meet(number, "data thread")
        return make(self, number)

    Updates.make = update  # type: ignore[method-assign,assignment]
    batches.Batches.batch = batch  # type: ignore[method-assign]
    main(["pretrain", *words])


# ---------------------------------------------------------------------------------------- one case


def ended(pids: list[int]) -> bool:
    return not any(
        psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids
    )


def measure(
    command: list[str],
    folder: Path,
    ready: Callable[[psutil.Process], list[int]],
    strike: Callable[[int, list[int]], None],
) -> tuple[float, int, str]:
    """Start, wait until `ready` names the processes, `strike`, and wait for the end of all.
    Returns seconds, exit code and the last line on the console."""
    with tempfile.TemporaryFile("w+") as console:
        launcher = subprocess.Popen(command, stderr=console, stdout=console)
        parent = psutil.Process(launcher.pid)
        while not (pids := ready(parent)):
            time.sleep(0.05)
            assert launcher.poll() is None, console.seek(0) or console.read()

        struck = time.time()
        strike(launcher.pid, pids)
        while launcher.poll() is None or not ended(pids):
            time.sleep(0.02)

        over = time.time()
        began = folder / "began"
        struck = float(began.read_text()) if began.exists() else struck
        console.seek(0)
        lines = [line for line in console.read().splitlines() if line.strip()]
        return over - struck, launcher.returncode, lines[-1] if lines else ""


def training(fault: str, prepared: Path, strike: Callable[[int, list[int]], None]) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [*config(prepared), f"paths.train={folder / 'train'}"]
        program = [sys.executable, __file__, "launch", fault, str(folder), *words]
        inside = fault != "outside"

        def ready(launcher: psutil.Process) -> list[int]:
            there = [(folder / f"{'pid' if inside else 'there'}.{number}") for number in (0, 1)]
            if not all(path.exists() for path in there):
                return []
            return [int((folder / f"pid.{number}").read_text()) for number in (0, 1)]

        return row(*measure(program, folder, ready, strike))


def preparing(prepared: Path) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = (ROOT / "data_prep/corpora/prose_cc0.txt").read_text(encoding="utf-8")
        for number in range(4):
            (folder / f"{number}.txt").write_text(text * 10, encoding="utf-8")

        words = [
            *config(prepared),
            f"paths.data={folder / 'data'}",
            f"corpus.sources={folder}/*.txt",
        ]
        program = [sys.executable, "-m", "robustly.cli", "prepare", *words]

        def ready(parent: psutil.Process) -> list[int]:
            workers = [
                child.pid
                for child in parent.children()
                if "spawn_main" in " ".join(child.cmdline())
            ]
            if len(workers) < 2:
                return []
            time.sleep(2)
            return workers

        return row(
            *measure(program, folder, ready, lambda _, pids: os.kill(pids[1], signal.SIGSTOP))
        )


def row(seconds: float, code: int, last: str) -> str:
    return f"{seconds:.1f} s | {code} | {last[:160].replace('|', '/')} |"


def send(number: signal.Signals, whom: str) -> Callable[[int, list[int]], None]:
    def strike(launcher: int, ranks: list[int]) -> None:
        os.kill(launcher if whom == "launcher" else ranks[1], number)

    return strike


def stop_then_term(launcher: int, ranks: list[int]) -> None:
    os.kill(ranks[1], signal.SIGSTOP)
    os.kill(launcher, signal.SIGTERM)


def nothing(launcher: int, ranks: list[int]) -> None:
    pass


CASES: dict[str, tuple[str, Callable[[int, list[int]], None]]] = {
    "rank killed (SIGKILL, as by the kernel where memory runs out)": (
        "outside", send(signal.SIGKILL, "rank"),
    ),
    "rank stopped (SIGSTOP)": ("outside", send(signal.SIGSTOP, "rank")),
    "exception in a rank": ("exception", nothing),
    "exception in a rank's data thread": ("data thread", nothing),
    "out of memory (MemoryError)": ("memory", nothing),
    "launcher killed (SIGKILL)": ("outside", send(signal.SIGKILL, "launcher")),
    "launcher told to stop (SIGTERM)": ("outside", send(signal.SIGTERM, "launcher")),
    "launcher told to stop while a rank is stopped": ("outside", stop_then_term),
}  # fmt: skip


def main(prepared: Path) -> None:
    for stage in ("tokenizer", "prepare"):
        subprocess.run([sys.executable, "-m", "robustly.cli", stage, *config(prepared)], check=True)

    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()};", end=""
    )
    print(f" run.timeout={TIMEOUT}\n")
    print("| fault | to the end of all | exit code | last line |\n| --- | --- | --- | --- |")
    for name, (fault, strike) in CASES.items():
        print(f"| {name} | {training(fault, prepared, strike)}", flush=True)

    print(f"| worker of `prepare` stopped | {preparing(prepared)}", flush=True)
    print(f"\n{overhead(prepared.parent / 'tiny')}")


def overhead(prepared: Path) -> str:
    """What the heartbeat costs an update of the tiny config, on two ranks."""
    words = [str(ROOT / "configs/tiny.yaml"), f"paths.root={prepared}", "run.log_every=1"]
    for stage in ("tokenizer", "prepare"):
        subprocess.run([sys.executable, "-m", "robustly.cli", stage, *words], check=True)

    with tempfile.TemporaryDirectory() as name:
        short = ["schedule.updates=100", "schedule.warmup=10", f"paths.train={name}/train"]
        program = [sys.executable, __file__, "launch", "cost", name, *words, *short]
        subprocess.run(program, check=True)
        lines = (Path(name) / "train/metrics.jsonl").read_text().splitlines()
        seconds = [json.loads(line)["seconds"] for line in lines]
        update = statistics.median(b - a for a, b in itertools.pairwise(seconds[20:]))
        told = float((Path(name) / "told").read_text())

    number = 1_000_000
    mark = timeit.timeit(lambda: heartbeat.mark(Phase.FORWARD, 1000, 3), number=number) / number
    marks = 6  # of an update of one micro-batch: loop.py, updates.py
    share = (marks * mark + update * told / heartbeat.BEAT) / update
    return (
        f"An update of the tiny config takes {1e3 * update:.1f} ms (median of 79, two ranks); its"
        f" {marks} marks take {1e6 * mark:.2f} us each, and what a rank tells the others once a"
        f" second {1e3 * told:.2f} ms: {share:.3%} of the update."
    )


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["launch"]:
        os.chdir(ROOT)
        program = [sys.executable, __file__, "rank", *arguments[1:]]
        sys.exit(local.run(program, 2, os.environ))

    if arguments[:1] == ["rank"]:
        rank(arguments[1], Path(arguments[2]), arguments[3:])
    else:
        main(Path(arguments[0] if arguments else tempfile.mkdtemp()))
