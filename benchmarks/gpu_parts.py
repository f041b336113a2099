"""The parts of `gpu.py`, each in a process of its own: `python gpu_parts.py PART SIZE RESULTS SCRATCH`.

A part tells rows as it finds them: lines of JSON that are appended to RESULTS. What is heavy is
imported where it is used, so that a part needs no more than it must."""

import contextlib
import gc
import hashlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from one_rank import Figures
    from torch import Tensor

    from robustly.experiment import Experiment

CORPUS = Path(__file__).resolve().parents[1] / "data_prep" / "corpora" / "prose_cc0.txt"
LIBRARIES = ("torch", "transformers", "deepspeed", "numpy")
NEEDED = (
    "deepspeed", "hjson", "pydantic", "regex", "numba", "scipy", "sentencex", "tiktoken", "psutil", "pyarrow",
    "typer", "rich", "yaml", "safetensors", "tensorboard", "accelerate",
)  # fmt: skip
"""Modules of the parts, of which some machines lack some."""

SHAPES = {
    "base-512": ("roberta_base", ["run.micro_batch=64", "optim.batch_size=512"]),
    "base-128": (
        "roberta_base",
        ["data.block_length=128", "run.micro_batch=256", "optim.batch_size=2048"],
    ),
    "large-512": ("roberta_large", ["run.micro_batch=32", "optim.batch_size=128"]),
    "large-128": (
        "roberta_large",
        ["data.block_length=128", "run.micro_batch=128", "optim.batch_size=512"],
    ),
    "tiny-32": ("tiny", ["tokenizer.vocab_size=600", "run.micro_batch=4", "optim.batch_size=8"]),
}
"""Published configs, with micro-batches for 141 GB and as many an update as keep the optimizer's
share small."""

BF16 = ["run.precision=bf16", "run.zero_stage=1"]
KEYS = {
    "padded": [*BF16, "run.attention=sdpa"],
    "defaults": BF16,
    "fast": [*BF16, "run.compile=true"],
    "fast, no attention dropout": [*BF16, "run.compile=true", "model.attention_dropout=0"],
}
"""What the rows of ours set; `fast` is what a run of the recipe should set on one such GPU. `padded`
is what the defaults were before rows."""


@dataclass(frozen=True)
class Size:
    """How much the parts do: all of it on a GPU, or a little of each on a CPU, whose figures mean
    nothing but that the script stands."""

    base: tuple[tuple[str, str], ...]
    """Shapes, and keys of ours, in their order: those that are not compiled take some ten seconds,
    the others a minute or more, and the part's limit cuts the last off."""
    large: tuple[tuple[str, str], ...]
    trainer: tuple[str, ...]
    """Shapes of the peer."""
    micro_batches: dict[str, tuple[int, ...]]
    seconds: float
    """Of a timed training, after the updates that warm it up."""
    warm_up: int
    blocks: int
    """Of the one micro-batch on which kernels are compared."""
    run: tuple[str, ...]
    """Keys of the trainings whose curves are compared."""
    loop: tuple[str, ...]
    """Keys of the training by the real loop."""
    matrix: int
    """Rows of the square matrices."""
    text: int
    """Bytes of the corpus that lies in the repository."""
    vocabulary: int


SIZES = {
    "full": Size(
        base=(
            ("base-512", "defaults"),
            ("base-512", "padded"),
            ("base-128", "defaults"),
            ("base-512", "fast"),
            ("base-512", "fast, no attention dropout"),
            ("base-128", "fast"),
        ),
        large=(("large-512", "defaults"), ("large-128", "defaults"), ("large-512", "fast")),
        trainer=("base-512", "large-512", "base-128", "large-128"),
        micro_batches={"base-512": (16, 32, 64, 128, 256), "large-512": (8, 16, 32, 64, 128)},
        seconds=6,
        warm_up=3,
        blocks=8,
        run=(
            "data.block_length=128", "model.positions=130", "model.hidden=256", "model.heads=4",
            "model.feed_forward=1024", "schedule.updates=300", "schedule.warmup=60", "run.micro_batch=64",
        ),
        loop=("run.micro_batch=64", "optim.batch_size=512", "schedule.updates=15"),
        matrix=8192,
        text=10**9,
        vocabulary=4096,
    ),
    "tiny": Size(
        base=(("tiny-32", "defaults"),),
        large=(("tiny-32", "fast"),),
        trainer=("tiny-32",),
        micro_batches={"tiny-32": (2, 4)},
        seconds=0.2,
        warm_up=1,
        blocks=4,
        run=(
            "model.layers=2", "model.hidden=32", "model.heads=2", "model.feed_forward=64",
            "schedule.updates=12", "schedule.warmup=4", "run.micro_batch=32",
        ),
        loop=(
            "model.layers=2", "model.hidden=32", "model.heads=2", "model.feed_forward=64",
            "run.micro_batch=4", "optim.batch_size=8", "schedule.updates=6",
        ),
        matrix=256,
        text=400_000,
        vocabulary=600,
    ),
}  # fmt: skip

CURVES = {
    "fp32": ["run.precision=fp32", "run.attention=eager"],
    "bf16": [*BF16, "run.attention=eager"],
    "bf16-fast": [*BF16, "run.attention=varlen", "run.compile=true"],
    "zero1": [
        "run.precision=fp32",
        "run.zero_stage=1",
        "run.attention=eager",
        "run.deepspeed={zero_optimization: {reduce_bucket_size: 50000000}}",
    ],
}
"""Trainings of one config by the real loop. Eager attention: its backward pass adds up in one order,
so that what differs is what is looked for. `zero1`: one rank in fp32 has ZeRO only where it is told
more of it."""
NATS = {"bf16": 0.03, "bf16-fast": 0.03, "zero1": 0.005}
"""How far the losses of an interval may lie from those in fp32."""


class Bench:
    """What a part is given: the size, a folder, and whom to tell."""

    def __init__(self, part: str, size: str, results: Path, scratch: Path):
        self.part, self.name, self.size = part, size, SIZES[size]
        self.results, self.scratch = results, scratch

    def tell(self, kind: str, **row: Any) -> None:
        """A line of the results, whole even where others write, too."""
        line = json.dumps({"part": self.part, "kind": kind, **row}) + "\n"
        with self.results.open("ab", buffering=0) as file:
            file.write(line.encode())

    def check(self, name: str, found: str, wanted: str, holds: bool) -> None:
        self.tell("check", name=name, found=found, wanted=wanted, holds=holds)

    def folder(self, run: str) -> Path:
        return self.scratch / "runs" / run


# ------------------------------------------------------------------------------------- the machine


def machine(bench: Bench) -> None:
    """What is there, and what it reaches on matrices and copies."""
    import torch

    found = {name: installed(name) for name in LIBRARIES}
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        card = torch.cuda.get_device_properties(0)
        name, memory = card.name, card.total_memory
        found |= {"cuda": torch.version.cuda, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    else:
        name, memory = f"{os.cpu_count()} CPU cores, {platform.machine()}", None

    bench.tell(
        "machine",
        name=name,
        memory=memory,
        python=platform.python_version(),
        libraries=found,
    )
    for module in NEEDED:
        if importlib.util.find_spec(module) is None:
            bench.tell(
                "refused", name=module, keys="", why="not installed: parts that need it fail"
            )

    rows = bench.size.matrix
    device = torch.device("cuda" if on_gpu else "cpu")
    square = torch.randn(rows, rows, device=device, dtype=torch.bfloat16)
    spent = seconds(lambda: square @ square, device)
    name = f"bf16 matrices of {rows:,}"
    bench.tell("fact", name=name, figure=2 * rows**3 / spent / 1e12, unit="TFLOP/s")

    target = torch.empty_like(square)
    moved = 2 * square.numel() * square.element_size()
    spent = seconds(lambda: target.copy_(square), device)
    bench.tell("fact", name="copies, read and written", figure=moved / spent / 1e9, unit="GB/s")

    # RoBERTa's output matrix on the masked tokens of 64 x 512, as it is and with rows of padding
    masked = round(0.15 * 64 * rows / 16)
    for entries in (50265, 50304) if on_gpu else (601, 640):
        states = torch.randn(masked, 768, device=device, dtype=torch.bfloat16)
        matrix = torch.randn(entries, 768, device=device, dtype=torch.bfloat16)
        spent = seconds(lambda states=states, matrix=matrix: states @ matrix.T, device)
        flops = 2 * states.numel() * entries
        bench.tell(
            "fact",
            name=f"scores of {entries:,} entries",
            figure=flops / spent / 1e12,
            unit="TFLOP/s",
        )


def seconds(work: Callable[[], object], device: "torch.device") -> float:
    """Of one call, of twenty after three."""
    import torch

    for _ in range(3):
        work()

    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        work()

    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / 20


def installed(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


# --------------------------------------------------------------------------------------- throughput


def base(bench: Bench) -> None:
    _ours(bench, bench.size.base)


def large(bench: Bench) -> None:
    _ours(bench, bench.size.large)


def _ours(bench: Bench, rows: tuple[tuple[str, str], ...]) -> None:
    from one_rank import Clock, Ours, alone

    with alone() as device:
        for shape, keys in rows:
            with _fresh_memory(), _refusals(bench, shape, keys):
                page = page_of(shape, KEYS[keys])
                clock = Clock(bench.size.warm_up, seconds=bench.size.seconds)
                figures = Ours(page, device).train(clock)
                _tell_speed(bench, shape, "robustly", keys, page, figures, graphs=graphs())


def trainer(bench: Bench) -> None:
    """The peer: as run_mlm.py is started, and at the end compiled and with processes that make its
    batches, which nobody gets without asking."""
    from one_rank import Clock, theirs

    plain = [(shape, "Trainer", False, 0) for shape in bench.size.trainer]
    tuned = [(bench.size.trainer[0], "Trainer, compiled, 4 workers", True, 4)]
    for shape, who, compiled, workers in [*plain, *(tuned if bench.name == "full" else [])]:
        with _fresh_memory(), _refusals(bench, shape, who):
            page = page_of(shape, BF16)
            clock = Clock(bench.size.warm_up, seconds=bench.size.seconds)
            figures = theirs(page, clock, compiled, workers)
            _tell_speed(bench, shape, who, "bf16", page, figures)


def page_of(shape: str, keys: list[str]) -> "Experiment":
    from robustly.experiment import load_experiment

    name, changes = SHAPES[shape]
    found = load_experiment(name, [*changes, *keys])
    return found if on_gpu() else without_compiling(found)


def without_compiling(page: "Experiment") -> "Experiment":
    """On a CPU, compiling takes most of a minute: one check does it."""
    return page.model_copy(update={"run": page.run.model_copy(update={"compile": False})})


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def graphs() -> int:
    """How many graphs torch has compiled for what ran last."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _tell_speed(
    bench: Bench,
    shape: str,
    who: str,
    keys: str,
    page: "Experiment",
    figures: "Figures",
    **rest: Any,
) -> None:
    import torch

    from robustly.preflight.memory import rank_memory
    from robustly.pretrain.flops import flops_per_token
    from robustly.pretrain.mfu import peak_tflops

    flops = flops_per_token(
        page.model, page.tokenizer.vocab_size, page.data.block_length, page.masking.probability
    )
    reached = flops * figures.tokens_per_second / 1e12
    peak = peak_tflops(page.run, torch.cuda.get_device_name() if on_gpu() else None)
    planned = rank_memory(page, 1, "cuda") if who == "robustly" else None
    bench.tell(
        "speed",
        shape=shape,
        who=who,
        keys=keys,
        micro_batch=page.run.micro_batch,
        blocks=page.optim.batch_size,
        tflops=reached,
        mfu=None if peak is None else reached / peak,
        planned=planned and planned.peak - planned.overhead,
        **figures._asdict(),
        **rest,
    )


@contextlib.contextmanager
def _fresh_memory() -> Iterator[None]:
    """What one row took is given back, and its graphs are forgotten, before the next one."""
    import torch

    yield
    gc.collect()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _refusals(bench: Bench, name: str, keys: str) -> Iterator[None]:
    """What a machine or a library cannot do is a row, and the rest goes on."""
    import torch

    from robustly import UserError

    try:
        yield
    except (UserError, torch.OutOfMemoryError, ImportError) as error:
        bench.tell("refused", name=name, keys=keys, why=str(error).partition("\n")[0][:300])


def micro_batch(bench: Bench) -> None:
    """Which micro-batch is the fastest: not compiled, which would take a minute for each."""
    from one_rank import Clock, Ours, alone

    from robustly.preflight.memory import largest_micro_batch

    with alone() as device:
        for shape, sizes in bench.size.micro_batches.items():
            if on_gpu():
                import torch

                limit = torch.cuda.get_device_properties(0).total_memory
                most = largest_micro_batch(page_of(shape, KEYS["fast"]), 1, "cuda", limit)
                bench.tell(
                    "fact", name=f"largest micro-batch by plan, {shape}", figure=most, unit=""
                )

            for blocks in sizes:
                with _fresh_memory(), _refusals(bench, shape, f"micro-batch {blocks}"):
                    sized = [f"run.micro_batch={blocks}", f"optim.batch_size={2 * blocks}"]
                    page = without_compiling(page_of(shape, [*KEYS["fast"], *sized]))
                    clock = Clock(1, seconds=bench.size.seconds / 3)
                    figures = Ours(page, device).train(clock)
                    _tell_speed(bench, shape, "robustly", "micro-batches", page, figures)


def profile(bench: Bench) -> None:
    """Where the time of two updates goes, and how often they wait for the device."""
    import torch
    from one_rank import Clock, Ours, alone

    from robustly.pretrain.profiling import expensive

    shape, keys = bench.size.base[0]
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu():
        activities.append(torch.profiler.ProfilerActivity.CUDA)

    with alone() as device:
        ours = Ours(page_of(shape, KEYS[keys]), device)
        ours.train(Clock(bench.size.warm_up, updates=1))
        with torch.profiler.profile(activities=activities) as found:
            figures = ours.train(Clock(0, updates=2))

    bench.tell("profiled", shape=shape, keys=keys, updates=2, seconds=figures.seconds * 2)
    for name, spent in expensive(found).items():
        bench.tell("operation", name=name, spent=" ".join(spent.split()))

    calls = {event.key: event.count for event in found.key_averages()}
    for name in WAITS:
        bench.tell("fact", name=f"{name} an update", figure=calls.get(name, 0) / 2, unit="")


WAITS = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpyAsync",
    "cudaLaunchKernel",
)
"""What makes the host wait, or keeps it busy."""


# ----------------------------------------------------------------------------------------- numerics


def kernels(bench: Bench) -> None:
    """One micro-batch's loss and gradient, two layers deep and without dropout: each kernel against
    fp32. In bf16 no way may be further off than torch's own attention on padded blocks is."""
    wide = [("sdpa", False), ("eager", False), ("varlen", False), ("sdpa", True)]
    narrow = [
        ("sdpa", False),
        ("eager", False),
        ("varlen", False),
        ("sdpa", True),
        ("varlen", True),
    ]
    compiled = ("sdpa", True)
    loss, gradient = _pass(bench, "fp32", "sdpa", False)
    usual = None
    for precision, ways in (("fp32", wide[1:]), ("bf16", narrow)):
        for attention, compiles in ways:
            if (
                compiles
                and not on_gpu()
                and (precision, attention, compiles) != ("fp32", *compiled)
            ):
                continue

            name = f"{precision}, {attention}{', compiled' if compiles else ''}"
            with _fresh_memory(), _refusals(bench, "kernel", name):
                found, changed = _pass(bench, precision, attention, compiles)
                off = float((changed - gradient).norm() / gradient.norm())
                loss_off = abs(found - loss) / abs(loss)
                usual = off if usual is None and precision == "bf16" else usual
                most = 1e-4 if precision == "fp32" else max(1e-4, 1.5 * (usual or off))
                most_loss = 1e-5 if precision == "fp32" else 2e-3
                bench.check(
                    f"one micro-batch, {name}, against fp32, sdpa",
                    f"gradient off by {off:.1e}, loss by {loss_off:.1e}",
                    f"{most:.1e}, {most_loss:.0e}",
                    off <= most and loss_off <= most_loss,
                )


def _pass(bench: Bench, precision: str, attention: str, compiles: bool) -> "tuple[float, Tensor]":
    """The loss of padded blocks and its gradient, all in one: (parameters,) fp32."""
    import torch
    from random_text import RandomBlocks, vocabulary_of

    from robustly.data_prep.sampler import EpochSampler
    from robustly.pretrain.attention import attention_for
    from robustly.pretrain.batches import Batches
    from robustly.pretrain.config import RunConfig
    from robustly.pretrain.layout import InRows, SideBySide
    from robustly.pretrain.model_setup import set_up_model
    from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
    from robustly.pretrain.schedule import UpdateSizes

    blocks = bench.size.blocks
    shallow = ["model.layers=2", "model.dropout=0", "model.attention_dropout=0"]
    page = page_of(bench.size.base[0][0], [*shallow, f"run.micro_batch={blocks}"])
    vocabulary = vocabulary_of(page.tokenizer.vocab_size)
    device = torch.device("cuda" if on_gpu() else "cpu")
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    run = RunConfig(
        precision=precision,  # type: ignore[arg-type]
        attention=attention,  # type: ignore[arg-type]
        compile=compiles,
        micro_batch=blocks,
    )
    model = new_model(roberta_config(page.model, vocabulary), page.seed)
    objective = MaskedLanguageModel(model).train().to(device, kind)
    chosen = attention_for(run, page.model, device)
    set_up_model(objective, run, chosen)
    texts: Any = RandomBlocks(vocabulary, page.data.block_length, 64, padded=True)
    order = EpochSampler(texts, page.seed)
    layout: Any = SideBySide(blocks, compiles)
    if chosen.in_rows:  # one row, as there is one micro-batch of blocks side by side
        length = page.data.block_length
        layout = InRows(blocks * length, length, blocks, 1, on_gpu())

    sizes = UpdateSizes(blocks)
    batches = Batches(order, sizes, page.masking, vocabulary, 0, 1, layout)
    share = batches.batch(1)
    one = share.micro_batches[0].to(device)
    loss = objective(one.inputs, one.attention, one.positions, one.labels).sum()
    loss = loss / share.masked_tokens
    loss.backward()
    gradients = [p.grad.float().flatten() for p in objective.parameters() if p.grad is not None]
    return float(loss), torch.cat(gradients)


def data(bench: Bench) -> None:
    """A tokenizer and a token store of the corpus that lies in the repository, for the trainings."""
    text = CORPUS.read_text(encoding="utf-8")[: bench.size.text]
    (bench.scratch / "corpus.txt").write_text(text[: text.rindex("\n\n")], encoding="utf-8")
    for command in ("tokenizer", "prepare"):
        _robustly(bench, command, "tiny", _shared(bench, "data"))


def fp32(bench: Bench) -> None:
    _curve(bench, "fp32")


def bf16(bench: Bench) -> None:
    _curve(bench, "bf16")


def bf16_fast(bench: Bench) -> None:
    _curve(bench, "bf16-fast")


def zero1(bench: Bench) -> None:
    _curve(bench, "zero1")


def resume(bench: Bench) -> None:
    """The training of `bf16`, stopped at half of its updates, and gone on with by a new process."""
    half = int(_value(bench.size.run, "schedule.updates")) // 2
    _curve(bench, "bf16", "resume", stop_after=half)
    _curve(bench, "bf16", "resume")


def _curve(bench: Bench, keys: str, run: str | None = None, stop_after: int | None = None) -> None:
    changed = [*_shared(bench, run or keys), *bench.size.run, *_possible(bench, CURVES[keys])]
    every = max(1, int(_value(changed, "schedule.updates")) // 12)
    intervals = [
        f"run.log_every={every}",
        "run.evaluate_every=100000",
        "run.checkpoint_every=100000",
    ]
    _robustly(bench, "pretrain", "tiny", [*changed, *intervals], stop_after)


def _possible(bench: Bench, keys: list[str]) -> list[str]:
    """Without compiling at the tiny size, as `without_compiling`. Torch is not asked: these parts
    have it in the process that trains, and importing it takes seconds."""
    return [key for key in keys if bench.name == "full" or key != "run.compile=true"]


def agreement(bench: Bench) -> None:
    """Whether the trainings agree, by what they wrote."""
    curves = {run: _losses(bench.folder(run)) for run in (*CURVES, "resume")}
    for run, found in curves.items():
        if found:
            bench.tell("curve", name=run, losses=found)

    reference = curves["fp32"]
    for run, most in NATS.items():
        if reference and (found := curves[run]) and len(found) == len(reference):
            off = [abs(a - b) for a, b in zip(found, reference, strict=True)]
            bench.check(
                f"loss over {len(found)} intervals, {run}, against fp32",
                f"{max(off):.5f} nats at most, {off[-1]:.5f} at the end",
                f"{most} at most",
                max(off) <= most,
            )

    if curves["bf16"] and curves["resume"]:
        same = _bits(bench.folder("bf16")) == _bits(bench.folder("resume"))
        bench.check(
            "stopped at half and gone on with, bf16: weights and moments",
            "the same bits" if same else "other bits",
            "the same bits",
            same,
        )
        same = curves["bf16"] == curves["resume"]
        found_losses = "the same numbers" if same else "other numbers"
        bench.check(
            "stopped at half and gone on with, bf16: losses", found_losses, "the same numbers", same
        )


def loop(bench: Bench) -> None:
    """RoBERTa-base at 512 by `robustly pretrain` itself, on the small corpus: with what its loop
    does between updates."""
    keys = _possible(bench, KEYS["fast"])
    length = ["data.block_length=512"] if bench.name == "full" else ["data.block_length=32"]
    changed = [
        *_shared(bench, "loop"), *length, *keys, *bench.size.loop, "schedule.warmup=2", "run.log_every=1",
        "run.evaluate_every=100000", "run.checkpoint_every=100000",
    ]  # fmt: skip
    _robustly(bench, "pretrain", "roberta_base", changed)
    lines = _lines(bench.folder("loop") / "train" / "metrics.jsonl")[bench.size.warm_up :]
    for figure, unit in (("tokens_per_second", "tokens/s"), ("mfu", ""), ("memory_gb", "GB")):
        values = [line[figure] for line in lines if line.get(figure) is not None]
        if values:
            name = f"robustly pretrain, base at 512: {figure}"
            bench.tell("fact", name=name, figure=statistics.median(values), unit=unit)


def _robustly(
    bench: Bench, command: str, config: str, keys: list[str], stop_after: int | None = None
) -> None:
    """A command in a process of its own, as the only rank. Raises RuntimeError with its last words
    where it fails."""
    from one_rank import variables

    options = ["--live-code"] if command == "pretrain" else []
    options += [] if stop_after is None else ["--stop-after", str(stop_after)]
    rank = {**variables(), "ROBUSTLY_NO_CHECK": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    done = subprocess.run(
        [sys.executable, "-m", "robustly.cli", command, *options, config, *keys],
        cwd=bench.scratch,
        env={**os.environ, **(rank if command == "pretrain" else {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode and not (stop_after and done.returncode == STOPPED):
        raise RuntimeError(f"robustly {command} {config}: {done.stderr.strip()[-1500:]}")


STOPPED = 75
"""Exit code of a rank that was told to stop after an update (robustly/exit_codes.py)."""


def _shared(bench: Bench, run: str) -> list[str]:
    """Of every training: its folder, and the corpus, tokenizer and token store that all have."""
    made = bench.folder("data")
    keys = [
        f"paths.root={bench.folder(run)}",
        f"corpus.sources={bench.scratch / 'corpus.txt'}",
        "corpus.validation=0.2",
        f"tokenizer.vocab_size={bench.size.vocabulary}",
    ]
    if run != "data":
        keys += [f"paths.tokenizer={made / 'tokenizer'}", f"paths.data={made / 'data'}"]

    return keys


def _value(keys: tuple[str, ...] | list[str], name: str) -> str:
    return next(key.partition("=")[2] for key in reversed(keys) if key.startswith(f"{name}="))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _losses(run: Path) -> list[float]:
    return [line["loss"] for line in _lines(run / "train" / "metrics.jsonl")]


def _bits(run: Path) -> dict[str, str]:
    """Hashes of the tensors of a run's checkpoints."""
    found = sorted((run / "train" / "checkpoints").glob("update-*/*.safetensors"))[-2:]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


PARTS: dict[str, Callable[[Bench], None]] = {
    "machine": machine,
    "base": base,
    "trainer": trainer,
    "large": large,
    "data": data,
    "kernels": kernels,
    "fp32": fp32,
    "bf16": bf16,
    "bf16-fast": bf16_fast,
    "zero1": zero1,
    "resume": resume,
    "agreement": agreement,
    "profile": profile,
    "micro-batch": micro_batch,
    "loop": loop,
}

if __name__ == "__main__":
    name, size, results, scratch = sys.argv[1:]
    PARTS[name](Bench(name, size, Path(results), Path(scratch)))
