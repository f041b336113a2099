"""Which GPU is a rank's."""

import socket
from collections.abc import Sequence
from typing import Protocol

from robustly import UserError


class Store(Protocol):
    """As much of torch's store as is used here."""

    def set(self, key: str, value: str) -> object: ...

    def get(self, key: str) -> bytes: ...


def own_gpu(local_rank: int, visible: int) -> int:
    """The number of a rank's GPU among those that it sees: its number on this machine; or 0, where
    its launcher shows each rank one alone, as Slurm does for --gpus-per-task=1.

    Raises UserError if the machine has too few."""
    if visible == 1:
        return 0
    if local_rank >= visible:
        raise UserError(
            f"more ranks on this machine than its {visible} GPUs: expected one each; lower"
            " run.ranks, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on CPU"
        )

    return local_rank


def refuse_shared(gpu: str, rank: int, ranks: int, store: Store) -> None:
    """Raises UserError on ranks that see the same GPU, by its UUID. Every rank has to call it."""
    store.set(f"robustly/gpu/{rank}", f"{socket.gethostname()} {gpu}")
    gpus = [store.get(f"robustly/gpu/{other}").decode() for other in range(ranks)]
    if len(sharing := ranks_on(gpus[rank], gpus)) > 1:
        raise UserError(
            f"ranks {', '.join(map(str, sharing))} on {socket.gethostname()} see one GPU together:"
            " expected one each; lower run.ranks, ask for more (Slurm: --gpus-per-node), or hide"
            " the GPUs (CUDA_VISIBLE_DEVICES=) to train on CPU"
        )


def ranks_on(gpu: str, gpus: Sequence[str]) -> list[int]:
    """The ranks whose GPU this is."""
    return [rank for rank, other in enumerate(gpus) if other == gpu]
