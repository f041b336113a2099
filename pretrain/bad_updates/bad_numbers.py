"""Look into an update whose loss or gradient is not finite: where it began, whether a repetition
meets it again, and a dump that holds all of it.

A repetition draws the same dropout from the same weights. Where it meets the fault again, that lies
in the batch or the weights; where not, the device is suspect (Megatron-LM's rerun state machine
tells them apart likewise)."""

import json
import math
import shutil
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import save
from torch import Tensor, nn

from robustly.files import write_atomic, write_json
from robustly.pretrain.batches import Batches, RankBatch
from robustly.pretrain.micro_batch import dropout_seed
from robustly.pretrain.trace import trace_update

DUMPS = "dumps"
MOST_MICRO_BATCHES = 4
"""Of a rank that a dump holds."""


class Attempt(NamedTuple):
    """An update as it was computed once."""

    losses: list[float]
    """Of this rank's micro-batches: their parts of the update's loss."""
    sums: dict[str, Any]
    """Of the loss terms over all ranks."""
    loss: float
    """Of the whole update, nats."""
    norm: float

    @property
    def fault(self) -> tuple[str, float] | None:
        """What is not finite, and its value."""
        if not math.isfinite(self.loss):
            return "loss", self.loss
        return None if math.isfinite(self.norm) else ("gradient norm", self.norm)


@dataclass
class NotFinite:
    """What is not finite in a micro-batch."""

    activation: str | None = None
    """The first module whose output is not."""
    gradients: list[str] = field(default_factory=list)
    """Parameters whose gradients are not, in the order of the backward pass."""


class NumberHooks:
    """While it is open, it looks at every activation and gradient of a model, which takes time."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.found: list[NotFinite] = []
        """Of each micro-batch that went through the model."""

    def __enter__(self) -> Self:
        self._hooks = [self.model.register_forward_pre_hook(self._begin)]
        for name, module in self.model.named_modules():
            self._hooks.append(module.register_forward_hook(self._activation(name)))

        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                self._hooks.append(parameter.register_hook(self._gradient(name)))

        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self.found.append(NotFinite())

    def _activation(self, name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            now = self.found[-1]
            if now.activation is None and not all(map(is_finite, _tensors(output))):
                now.activation = name or "loss"

        return look

    def _gradient(self, name: str) -> Any:
        def look(gradient: Tensor) -> None:
            if not is_finite(gradient):
                self.found[-1].gradients.append(name)

        return look


def is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _tensors(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a module returns."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, tuple | list):
        for each in output:
            yield from _tensors(each)
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))


def not_finite(full: Iterable[tuple[str, Tensor, Tensor, Tensor]]) -> list[str]:
    """Names of the parameters whose weights are not finite, of what `ShardedTensors.full` gives.
    Collective."""
    return [name for name, weight, *_ in full if not is_finite(weight)]


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@dataclass(frozen=True)
class FaultyMicroBatch:
    """A micro-batch that gave a number that is not finite, at first or when it was repeated."""

    number: int
    dropout_seed: int
    activation: str | None
    gradients: list[str]
    blocks: list[dict[str, Any]]
    """As `robustly trace --json` lists them."""
    inputs: dict[str, Tensor]
    """A `MicroBatch`'s."""


@dataclass(frozen=True)
class RankReport:
    """What a rank found."""

    rank: int
    host: str
    losses: list[float]
    repeated: list[float]
    faulty: list[FaultyMicroBatch]

    @property
    def suspect(self) -> bool:
        """Whether its device is: a loss was not finite, and is so when it is computed again."""
        return any(
            not math.isfinite(one) and math.isfinite(other)
            for one, other in zip(self.losses, self.repeated, strict=True)
        )


@dataclass(frozen=True)
class Examination:
    """What all ranks found."""

    update: int
    what: str
    value: float
    repeated: float
    met_again: bool
    weights: list[str]
    """Parameters that were not finite before the update."""
    ranks: list[RankReport]

    @classmethod
    def of(
        cls,
        update: int,
        first: Attempt,
        again: Attempt,
        weights: list[str],
        ranks: list[RankReport],
    ) -> Self:
        """Of an attempt with a fault, and its repetition."""
        assert first.fault
        what, value = first.fault
        repeated = again.loss if what == "loss" else again.norm
        return cls(update, what, value, repeated, again.fault is not None, weights, ranks)

    @property
    def device_is_suspect(self) -> bool:
        return not self.met_again and not self.weights

    def __str__(self) -> str:
        """In words: `the loss is nan, repeated: 7.31: the device of rank 3 on gpu02 is suspect`."""
        found = f"the {self.what} is {self.value}, repeated: {self.repeated:.6g}"
        if self.weights:
            return f"{found}: weights were not finite before it: {listed(self.weights)}"

        if self.device_is_suspect:
            named = [f"rank {one.rank} on {one.host}" for one in self.ranks if one.suspect]
            hosts = ", ".join(sorted({one.host for one in self.ranks}))
            of = " and ".join(named) or f"one of the ranks (on {hosts})"
            return f"{found}: the device of {of} is suspect"

        places = [(one, each) for one in self.ranks for each in one.faulty]
        if not places:
            return f"{found}: the batch or the weights; each rank's part alone is finite"

        rank, first = places[0]
        where = first.activation or next(iter(first.gradients), None)
        beginning = f", first in {where}" if where else ""
        return (
            f"{found}: the batch or the weights (micro-batch {first.number} of rank {rank.rank}"
            f"{beginning})"
        )


def report(
    batches: Batches,
    batch: RankBatch,
    first: Attempt,
    again: Attempt,
    watched: Sequence[NotFinite],
) -> RankReport:
    """This rank's part of an examination."""
    bad = [
        number
        for number, (one, other, seen) in enumerate(
            zip(first.losses, again.losses, watched, strict=True)
        )
        if not math.isfinite(one + other) or seen.activation or seen.gradients
    ]
    traced = trace_update(batches, batch.update) if bad else []
    faulty = [
        FaultyMicroBatch(
            number,
            dropout_seed(batches.sampler.seed, batch.update, batch.micro_batches[number]),
            watched[number].activation,
            watched[number].gradients,
            [block.json() for block in traced if block.micro_batch == number],
            # safetensors writes no two tensors of one buffer
            {name: t.clone() for name, t in batch.micro_batches[number].tensors().items()},
        )
        for number in bad[:MOST_MICRO_BATCHES]
    ]
    return RankReport(batches.rank, socket.gethostname(), first.losses, again.losses, faulty)


def write_dump(folder: Path, examination: Examination, facts: dict[str, Any]) -> Path:
    """Write an examination into a folder of its own below `folder`; returns it. `dump.json` comes
    last; beside it lie the inputs of each faulty micro-batch.

    `facts`: what else is to be noted, such as the recipe's hash."""
    made = folder / f"update-{examination.update:08d}"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    ranks = []
    for one in examination.ranks:
        faulty = []
        for each in one.faulty:
            name = f"rank-{one.rank:05d}-micro-batch-{each.number:05d}.safetensors"
            write_atomic(made / name, save(each.inputs))
            faulty.append({**asdict(each), "inputs": name})

        ranks.append({**asdict(one), "faulty": faulty})

    whole = {**facts, **asdict(examination), "message": str(examination), "ranks": ranks}
    write_json(made / "dump.json", json.loads(json.dumps(whole), parse_constant=str))
    return made
