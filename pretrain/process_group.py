"""The process group of a training's ranks, by which they find each other: joined, and left."""

import os
import socket

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.rendezvous import rendezvous

from robustly import StartAgain, UserError
from robustly.heartbeat import START_TIMEOUT
from robustly.launch.checks.names import first_host
from robustly.lease import ATTEMPT
from robustly.pretrain import peers
from robustly.pretrain.allocator import keep_freed_memory
from robustly.pretrain.rank_gpu import own_gpu, refuse_shared
from robustly.pretrain.ranks import collective_timeout


def start_ranks(local_rank: int, bound: float = START_TIMEOUT) -> torch.device:
    """Join the process group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR,
    MASTER_PORT). `bound`: seconds that a rank may take to come.

    Only those of one attempt meet: where two launchers chose the same port at the same moment, a
    rank may come to the other's.

    Returns the device of this rank. Raises UserError if this machine does not know the one where
    ranks meet, or has GPUs, but not one for each of its ranks, and StartAgain if another program
    listens where the ranks were to meet.
    """
    for fault in first_host(os.environ["MASTER_ADDR"]):  # for which torch would wait
        raise UserError(f"this machine {fault.found}; {fault.do}")

    if torch.cuda.is_available():
        device = torch.device("cuda", own_gpu(local_rank, torch.cuda.device_count()))
        torch.cuda.set_device(device)
        os.environ["LOCAL_RANK"] = str(device.index)  # by which DeepSpeed sets it again
    else:
        device = torch.device("cpu")
        keep_freed_memory()

    on_gpu = device.type == "cuda"
    # a group that knows its GPU is split for further ones; a rank alone has nobody to split it with
    own = device if on_gpu and os.environ["WORLD_SIZE"] != "1" else None
    timeout = collective_timeout(bound)
    try:
        store, rank, ranks = next(rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=dist.PrefixStore(f"robustly/{os.environ.get(ATTEMPT, '')}", store),
            rank=rank,
            world_size=ranks,
            timeout=timeout,
            device_id=own,
        )
    except dist.DistNetworkError as fault:
        if "EADDRINUSE" not in str(fault):
            raise
        raise StartAgain(
            f"port {os.environ['MASTER_PORT']} of {socket.gethostname()}, where the ranks were to"
            " meet, is in use by another program, or by what is left of another run; start again,"
            " with another --master-port where you gave one"
        ) from None

    if on_gpu:
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        refuse_shared(uuid, dist.get_rank(), dist.get_world_size(), _get_default_store())

    peers.begin()
    return device


def stop_ranks() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        peers.end()
        dist.destroy_process_group()
