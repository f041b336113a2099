"""The memory that a rank has on this machine, or on a GPU that is named."""

from dataclasses import dataclass

from robustly.gpus import gpus
from robustly.preflight.memory import Device
from robustly.pretrain.config import RunConfig
from robustly.resources import available_memory, cpu_flags


@dataclass(frozen=True)
class Machine:
    """What a rank runs on. `memory`: bytes for a rank, None if not known."""

    device: Device
    memory: int | None
    source: str
    """Where the memory is known from, or why it is not."""

    @property
    def computes_in_bf16(self) -> bool:
        """Whether it has units for that: a GPU is taken to have them."""
        return self.device == "cuda" or "amx_bf16" in cpu_flags()


def machine_for(run: RunConfig, ranks: int, gigabytes: float | None) -> Machine:
    """The GPU whose memory is given, else this machine's, else its CPU, unless `precision` states
    16 bits."""
    if gigabytes is not None:
        return Machine("cuda", round(gigabytes * 1e9), "--memory")

    if here := gpus():
        least = min(here, key=lambda gpu: gpu.memory)
        return Machine("cuda", least.memory, f"this machine's {least.name}")

    if run.precision in ("bf16", "fp16"):
        return Machine("cuda", None, "no GPU on this machine: say --memory GB")

    shared = f"this machine's free RAM / {ranks} {'rank' if ranks == 1 else 'ranks'}"
    return Machine("cpu", available_memory() // ranks, shared)
