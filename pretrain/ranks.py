"""What the ranks of a training tell each other: sums, values, and whether work failed on one of
them."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from robustly import UserError, log
from robustly.pretrain import peers


class FailedOnAnotherRank(Exception):
    """Another rank met a fault and says so; this one leaves with it."""


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Add each value over all ranks, in float64 (counts up to 2**53 are exact). A process that is
    no rank is alone."""
    # NCCL adds float64 too; the vector is tiny
    total = torch.tensor(values, dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total.tolist()


def numbers_of_ranks(numbers: Tensor) -> list[list[float]]:
    """What each rank passes, (n,) on its device, in the order of the ranks: one collective, and one
    wait for a GPU. Whoever adds them up in that order finds the same sum on every rank."""
    ranks = dist.get_world_size()
    gathered = numbers.new_empty(ranks * len(numbers))
    dist.all_gather_into_tensor(gathered, numbers)
    return gathered.view(ranks, -1).tolist()


def collective_timeout(bound: float) -> timedelta:
    """How long a collective may take where a rank may go `bound` seconds without progress: longer,
    so that the rank that hangs is found and named before those that wait for it fail."""
    return timedelta(seconds=1.5 * bound)


def bound_groups(bound: float) -> None:
    """Bound the collectives of every process group. DeepSpeed's own groups would wait for half an
    hour (gloo) or ten minutes (NCCL), whatever the first group was given."""
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(collective_timeout(bound), group)


def gather_over_ranks(value: Any) -> list[Any]:
    """What each rank passes, in the order of the ranks; anything that can be pickled."""
    peers.meet()
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def together(device: torch.device) -> Iterator[None]:
    """For work that may fail on one rank alone, such as writing: all ranks learn how it ended
    before any goes on. Otherwise the others would die in their next collective, with a traceback
    that hides the reason.

    Raises UserError or OSError where the work did, FailedOnAnotherRank on the other ranks."""
    fault: Exception | None = None
    try:
        yield
    except (UserError, OSError) as error:
        fault = error

    peers.meet()
    (failed,) = sum_over_ranks([fault is not None], device)
    if fault:
        raise fault
    if failed:
        raise FailedOnAnotherRank


def progress(
    rank: int, what: str, total: int, unit: str
) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    """`log.progress` on rank 0, whose bar stands for all; the others, and one without work, show
    none."""
    if rank == 0 and total:
        return log.progress(what, total, unit)
    return contextlib.nullcontext(lambda n: None)
