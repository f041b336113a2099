"""All that only a GPU can tell, by one command, in 8 minutes on one H200:

    python benchmarks/gpu.py                          # without a GPU: a little of each, on the CPU
    python benchmarks/gpu.py --wheels wheels --results /somewhere
    python benchmarks/gpu.py --parts large trainer    # these alone, with their limits

Numerics (bf16 against fp32, attention without padding against padded, compiled against not, a
stopped and resumed run to the bit, ZeRO 1 on NCCL), throughput and MFU of RoBERTa-base and -large at
128 and 512 tokens beside transformers' Trainer as run_mlm.py uses it, the fastest micro-batch, where
the time goes, and memory beside what `robustly plan` said.

Each part is a process of its own with a limit of its own; the whole has one, too. What a part finds
is appended to gpu-<size>-<date>.jsonl at once, and gpu-<size>-<date>.md is written anew after every
part; parts that are run again on the same day replace what they found. A part that fails, is not possible here, or runs out of time is told, and the rest goes on.
docs/scale.md says what is expected.

A machine that can reach nothing needs a folder of wheels: all that robustly needs and that it has
not. For one that has torch, transformers and Python 3.12, make it elsewhere by

    python3.12 -m pip wheel --no-deps -w wheels deepspeed==0.19.8 hjson
    python3.12 -m pip download --no-deps --only-binary=:all: -d wheels -c constraints.txt \\
        pydantic pydantic-core annotated-types sentencex backports.zstd

DeepSpeed comes as source; its wheel is of Python alone (DS_BUILD_OPS is off by default), and what is
used of it here needs neither nvcc nor ninja: torch's fused AdamW is the optimizer. torch.compile
needs a C++ compiler."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
MINUTES = {"full": 8.0, "tiny": 60.0}
PATIENCE = {"full": 1, "tiny": 10}
"""What limits are multiplied by: a busy CPU is slow."""
LAST_WORDS = 10.0
"""Seconds that a part has to end, once it is asked to."""


class Part(NamedTuple):
    name: str
    limit: int
    """Seconds on a GPU."""
    about: str


GROUPS = (
    (Part("machine", 30, "the card and its libraries; matrices and copies"),),
    (Part("base", 110, "RoBERTa-base, ours: speed, memory"),),
    (Part("trainer", 80, "transformers' Trainer: base and large"),),
    (Part("large", 100, "RoBERTa-large, ours: speed, memory"),),
    (Part("data", 40, "a tokenizer and a token store of the small corpus"),),
    (
        Part("kernels", 80, "one micro-batch: each attention, precision, compiled"),
        Part("fp32", 80, "a training in fp32, to compare with"),
        Part("bf16", 80, "the same in bf16"),
        Part("bf16-fast", 80, "the same in bf16, without padding, compiled"),
        Part("zero1", 80, "the same in fp32 with ZeRO 1 on NCCL"),
        Part("resume", 80, "that in bf16, stopped at half and gone on with"),
    ),
    (Part("agreement", 10, "whether these trainings agree"),),
    (Part("profile", 30, "where the time of base at 512 goes"),),
    (Part("micro-batch", 40, "the fastest micro-batch"),),
    (Part("loop", 60, "base at 512 by `robustly pretrain` itself"),),
)
"""In this order, the most wanted first. Those of one group measure no time and run side by side. If
each took all of its limit, the last would not be begun; those that compile come to it, most need a
half."""
PARTS = {part.name: part for group in GROUPS for part in group}


@dataclass(frozen=True)
class Prediction:
    """What was computed before a GPU was at hand (docs/scale.md)."""

    shape: str
    keys: str
    tokens_per_second: float
    mfu: float


PREDICTIONS = (
    Prediction("base-512", "padded", 400_000, 0.24),
    Prediction("base-512", "fast", 667_000, 0.40),
    Prediction("base-512", "fast, no attention dropout", 757_000, 0.46),
)


class Goal(NamedTuple):
    name: str
    shape: str
    figure: str
    """`mfu`, or `ratio`: tokens a second to the Trainer's."""
    wanted: float


GOALS = (
    Goal("RoBERTa-base at 512: MFU of 989 TFLOP/s", "base-512", "mfu", 0.45),
    Goal("RoBERTa-large at 512: MFU of 989 TFLOP/s", "large-512", "mfu", 0.55),
    Goal("RoBERTa-base at 512: to the Trainer", "base-512", "ratio", 1.5),
    Goal("RoBERTa-large at 512: to the Trainer", "large-512", "ratio", 1.5),
)


# ------------------------------------------------------------------------------------------ running


class Run:
    """Parts that run one after the other, or side by side, until the time is over."""

    def __init__(self, size: str, results: Path, seconds: float, environment: dict[str, str]):
        self.size, self.results, self.environment = size, results, environment
        self.end = time.monotonic() + seconds

    def group(self, parts: list[Part], scratch: Path, at_once: int) -> None:
        with ThreadPoolExecutor(min(at_once, len(parts))) as pool:
            list(pool.map(lambda part: self.part(part, scratch), parts))

    def part(self, part: Part, scratch: Path) -> None:
        """Run a part to its end or its limit, and tell how it ended."""
        begin = time.monotonic()
        limit = min(part.limit * PATIENCE[self.size], self.end - begin)
        if limit <= 0:
            self.tell(part, "not begun", 0.0, "the time of all was over")
            return

        words = scratch / f"{part.name}.log"
        with words.open("w") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    HERE / "gpu_parts.py",
                    part.name,
                    self.size,
                    self.results,
                    scratch,
                ],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
                state, why = ("done", "") if code == 0 else ("failed", last_line(words))
            except subprocess.TimeoutExpired:
                state, why = "out of time", last_line(words)
            finally:
                if process.poll() is None:
                    end_session(process)

        self.tell(part, state, time.monotonic() - begin, why)

    def tell(self, part: Part, state: str, seconds: float, why: str) -> None:
        row = {"part": part.name, "kind": "end", "state": state, "seconds": seconds, "why": why}
        with self.results.open("ab", buffering=0) as file:
            file.write((json.dumps(row) + "\n").encode())

        print(f"{part.name}: {state}, {seconds:.0f} s{f': {why}' if why else ''}", file=sys.stderr)
        write_table(self.results)


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End a part and the processes that it has started: politely, then at once."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):  # then it is killed
            process.wait(LAST_WORDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    process.wait()


def last_line(words: Path) -> str:
    lines = [line.strip() for line in words.read_text(errors="replace").splitlines()]
    said = [line for line in lines if line]
    return said[-1][:300] if said else "it said nothing"


# ---------------------------------------------------------------------------------------- the table


def write_table(results: Path) -> None:
    """The table of a file of results, beside it."""
    lines = results.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    beside = results.with_suffix(".tmp")
    beside.write_text(table(rows), encoding="utf-8")
    beside.replace(results.with_suffix(".md"))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of rows as parts told them."""
    of: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        of.setdefault(row["kind"], []).append(row)

    begun = of["begun"][0]
    sections = [
        f"# {'One GPU' if begun['size'] == 'full' else 'One GPU: a trial of the script on a CPU'}",
        heading(begun, of.get("machine", [])),
        section("Goals", ("goal", "wanted", "found", ""), goals(of.get("speed", []))),
        section("Numerics", ("", "found", "wanted", "holds"), checks(of.get("check", []))),
        section("Throughput", SPEED, speeds(of.get("speed", []))),
        section("Memory, GB", MEMORY, memories(of.get("speed", []))),
        section("Fastest micro-batch, not compiled", MICRO, micro_batches(of.get("speed", []))),
        section("Where the time goes", ("operation", "of two updates"), operations(of)),
        section("Other figures", ("", "figure"), facts(of.get("fact", []))),
        section("Refused, or too large", ("", "", "why"), refusals(of.get("refused", []))),
        section("Parts", ("part", "what", "ended", "seconds", "why"), ends(of.get("end", []))),
    ]
    return "\n".join(part for part in sections if part)


SPEED = (
    "shape", "", "keys", "tokens/s", "predicted", "ms an update", "TFLOP/s", "MFU", "predicted", "to Trainer", "graphs",
)  # fmt: skip
MEMORY = ("shape", "", "keys", "micro-batch", "planned", "given out", "held", "given out / planned")
MICRO = ("shape", "micro-batch", "tokens/s", "MFU", "GB given out")


def section(title: str, names: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [f"## {title}", "", cells(names), cells(("---",) * len(names)), *map(cells, rows), ""]
    return "\n".join(lines)


def cells(values: tuple[str, ...]) -> str:
    return f"| {' | '.join(value.replace('|', '/') for value in values)} |"


def heading(begun: dict[str, Any], machines: list[dict[str, Any]]) -> str:
    """Date, hardware, versions, and whether the figures mean anything."""
    if not machines:
        where = "the part that looks at the machine has not ended"
    else:
        found = machines[0]
        memory = f" of {found['memory'] / 1e9:.0f} GB" if found["memory"] else ""
        libraries = ", ".join(
            f"{name} {it or 'missing'}" for name, it in found["libraries"].items()
        )
        where = f"{found['name']}{memory}, Python {found['python']}, {libraries}"

    trial = "" if begun["size"] == "full" else " **No figure of speed here means anything.**"
    return f"""
{begun["date"]}, {where}.
`python benchmarks/gpu.py`, limit {begun["minutes"]:g} minutes.{trial}
Tokens are without padding. MFU: the model's operations (docs/budget.md), the head on the masked tokens alone, of the data
sheet's peak; the Trainer makes more of them, for all tokens. "Predicted" is docs/scale.md's, computed before.
"""


def goals(speeds: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    for goal in GOALS:
        ours = [row for row in speeds if row["shape"] == goal.shape and ours_of(row)]
        values = [row["mfu"] if goal.figure == "mfu" else ratio(row, speeds) for row in ours]
        found = max((value for value in values if value is not None), default=None)
        show = (lambda v: f"{v:.1%}") if goal.figure == "mfu" else (lambda v: f"{v:.2f}")
        reached = "" if found is None else "reached" if found >= goal.wanted else "missed"
        rows.append(
            (
                goal.name,
                show(goal.wanted),
                "not measured" if found is None else show(found),
                reached,
            )
        )

    return rows


def ours_of(row: dict[str, Any]) -> bool:
    return row["who"] == "robustly" and row["keys"] != "micro-batches"


def ratio(row: dict[str, Any], speeds: list[dict[str, Any]]) -> float | None:
    """Tokens a second to those of the Trainer as it comes, for the same shape."""
    peers = [each for each in speeds if each["shape"] == row["shape"] and each["who"] == "Trainer"]
    return row["tokens_per_second"] / peers[0]["tokens_per_second"] if peers else None


def checks(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (row["name"], row["found"], row["wanted"], "yes" if row["holds"] else "**no**")
        for row in rows
    ]


def speeds(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    found = []
    for row in rows:
        if row["keys"] == "micro-batches":
            continue

        at = row["shape"], row["keys"]
        said = next((each for each in PREDICTIONS if (each.shape, each.keys) == at), None)
        if row["who"] != "robustly":
            said = None

        to_peer = ratio(row, rows)
        found.append((
            row["shape"], row["who"], row["keys"], f"{row['tokens_per_second']:,.0f}",
            f"{said.tokens_per_second:,.0f}" if said else "", f"{row['seconds'] * 1000:,.1f}",
            f"{row['tflops']:,.1f}", percent(row["mfu"]), percent(said.mfu if said else None),
            "" if to_peer is None else f"{to_peer:.2f}", str(row.get("graphs", "")),
        ))  # fmt: skip

    return found


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def gigabytes(count: float | None) -> str:
    return "" if count is None else f"{count / 1e9:.2f}"


def memories(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Only of a GPU: torch counts nothing on a CPU."""
    return [
        (
            row["shape"], row["who"], row["keys"], str(row["micro_batch"]),
            gigabytes(row["planned"] if row["who"] == "robustly" else None), gigabytes(row["allocated"]),
            gigabytes(row["reserved"]),
            f"{row['allocated'] / row['planned']:.2f}" if row["who"] == "robustly" else "",
        )
        for row in rows
        if row["allocated"] is not None
    ]  # fmt: skip


def micro_batches(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    tried = [row for row in rows if row["keys"] == "micro-batches"]
    best = {
        shape: max(row["tokens_per_second"] for row in tried if row["shape"] == shape)
        for shape in {row["shape"] for row in tried}
    }
    return [
        (
            row["shape"], str(row["micro_batch"]),
            f"{row['tokens_per_second']:,.0f}{' (fastest)' if row['tokens_per_second'] == best[row['shape']] else ''}",
            percent(row["mfu"]), gigabytes(row["allocated"]),
        )
        for row in tried
    ]  # fmt: skip


def operations(of: dict[str, list[dict[str, Any]]]) -> list[tuple[str, ...]]:
    whole = [("all of it", f"{row['seconds'] * 1000:,.1f} ms") for row in of.get("profiled", [])]
    return whole + [(f"`{row['name']}`", row["spent"]) for row in of.get("operation", [])]


def facts(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [(row["name"], f"{row['figure']:,.4g} {row['unit']}".strip()) for row in rows]


def refusals(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [(row["name"], row["keys"], row["why"]) for row in rows]


def ends(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (row["part"], PARTS[row["part"]].about, row["state"], f"{row['seconds']:.0f}", row["why"])
        for row in rows
    ]


# ------------------------------------------------------------------------------------- the beginning


def install(wheels: Path, target: Path) -> None:
    """Unpack a folder of wheels into a folder of its own; nothing else changes on this machine."""
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise SystemExit(
            f"--wheels {wheels}: expected wheels, found none; see --help for how to make them"
        )

    options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", target, *files], check=True
    )


def kept(results: Path, parts: list[str]) -> str:
    """What other parts found on the same day: a part that is run again replaces its own rows alone."""
    if not results.exists():
        return ""
    lines = results.read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if json.loads(line)["part"] not in ("", *parts))


def main() -> int:
    """Exit code 1 where a part failed, ran out of time or was not begun, or a check does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, help="for all parts together; default: 8")
    parser.add_argument("--size", choices=("full", "tiny"), help="default: full with a GPU")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("--wheels", type=Path, help="folder of what this machine has not")
    options = parser.parse_args()

    sys.path.append(str(HERE.parent))
    from robustly.gpus import gpus

    size = options.size or ("full" if gpus() else "tiny")
    options.results.mkdir(parents=True, exist_ok=True)
    results = options.results / f"gpu-{size}-{time.strftime('%Y-%m-%d')}.jsonl"
    minutes = options.minutes or MINUTES[size]
    begun = {"date": time.strftime("%Y-%m-%d"), "size": size, "minutes": minutes}
    first = json.dumps({"part": "", "kind": "begun", **begun})
    results.write_text(f"{first}\n{kept(results, options.parts)}", encoding="utf-8")

    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        scratch = Path(folder)
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        if options.wheels:
            install(options.wheels, scratch / "site")
            paths.insert(0, str(scratch / "site"))

        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONUNBUFFERED": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        if size == "tiny":
            environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

        run = Run(size, results, minutes * 60, environment)
        for group in GROUPS:
            if asked := [part for part in group if part.name in options.parts]:
                run.group(asked, scratch, at_once=2 if size == "tiny" else len(asked))

    print(results.with_suffix(".md").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    good = all(row.get("state", "done") == "done" and row.get("holds", True) for row in rows)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
