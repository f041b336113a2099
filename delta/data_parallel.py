"""Data parallelism: ranks, processes that train one delta together, each with its share of every
batch."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's rank among those that train a delta. Every rank has the whole delta, the base
    and all examples; only gradients and answers are exchanged."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's share of some items: every `size`-th, so that shares of what is sorted by
        length are of like length."""
        return items[self.rank :: self.size]

    def gathered(self, share: list[T]) -> list[T]:
        """All items in their order, gathered from the ranks' shares."""
        if self.size == 1:
            return share
        shares: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(shares, share)
        return [
            shares[place % self.size][place // self.size] for place in range(sum(map(len, shares)))
        ]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, in one exchange."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)

        for tensor, summed in zip(
            tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(summed.view_as(tensor))


ALONE = Ranks()


@contextmanager
def joined(meeting: Path, rank: int, size: int) -> Iterator[Ranks]:
    """Join the other ranks, which are on this machine. `meeting`: a file that does not exist
    yet."""
    if size == 1:
        yield ALONE
        return

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # whatever the host's own name resolves to
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, init_method=meeting.absolute().as_uri(), rank=rank, world_size=size
    )

    try:
        yield Ranks(rank, size)
    finally:
        dist.destroy_process_group()
