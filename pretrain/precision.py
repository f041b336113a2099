"""What a run computes in, on the device that it finds: where the config leaves that open, and with
TF32."""

import torch

from robustly import UserError
from robustly.pretrain.config import RunConfig


def settled(run: RunConfig, device: torch.device) -> RunConfig:
    """The section with `precision: auto` decided for a device, by what it says of itself."""
    if device.type == "cuda":
        return run.settled("cuda", torch.cuda.is_bf16_supported(including_emulation=False))
    return run.settled("cpu", bool(torch.cpu.get_capabilities().get("amx_bf16")))


def set_matmul_precision(run: RunConfig, device: torch.device) -> None:
    """Have this process compute fp32 matrix products as the section says. Raises UserError if the
    device has no TF32."""
    if device.type == "cuda":
        if run.tf32 and (found := torch.cuda.get_device_capability(device)) < (8, 0):
            raise UserError(
                "run.tf32 = true needs a GPU of compute capability 8.0 (Ampere) or later, found"
                f" {found[0]}.{found[1]}; expected run.tf32 = false here"
            )
        torch.set_float32_matmul_precision("high" if run.tf32 else "highest")
    elif run.tf32:
        raise UserError("run.tf32 = true needs a GPU, found none; expected run.tf32 = false here")
