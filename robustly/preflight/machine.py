"""The memory that a rank has on this machine, or on a GPU that is named."""

from dataclasses import dataclass

from robustly.gpus import gpus
from robustly.preflight.memory import Device
from robustly.pretrain.config import RunConfig
from robustly.resources import available_memory


@dataclass(frozen=True)
class Machine:
    """What a rank runs on. `memory`: bytes for a rank, None if not known."""

    device: Device
    memory: int | None
    source: str
    """Where the memory is known from, or why it is not."""


def machine_for(run: RunConfig, ranks: int, gigabytes: float | None) -> Machine:
    """The GPU whose memory is given, else this machine's, else, for fp32, its CPU."""
    if gigabytes is not None:
        return Machine("cuda", round(gigabytes * 1e9), "--memory")

    if here := gpus():
        least = min(here, key=lambda gpu: gpu.memory)
        return Machine("cuda", least.memory, f"this machine's {least.name}")

    if run.precision != "fp32":
        return Machine("cuda", None, "no GPU on this machine: say --memory GB")

    shared = f"this machine's free RAM / {ranks} {'rank' if ranks == 1 else 'ranks'}"
    return Machine("cpu", available_memory() // ranks, shared)
