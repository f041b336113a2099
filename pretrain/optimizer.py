"""AdamW as the page states it (the paper's section 3.1; fairseq's one group with decay, or BERT's
two)."""

from typing import Any

import torch
from torch import nn

from robustly.pretrain.config import OptimConfig


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """One group with decay, and one without where the recipe exempts biases and LayerNorms (1-d
    tensors)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if optim.decay == "all":
        return [{"params": parameters, "weight_decay": optim.weight_decay}]

    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Over what is trainable, in one kernel for all parameters ("fused"); the rate is set before
    every step.

    Decoupled decay, eps after bias correction (Loshchilov and Hutter 2019; apex's FusedAdam
    likewise)."""
    return torch.optim.AdamW(
        parameter_groups(model, optim), lr=0.0, betas=optim.betas, eps=optim.eps, fused=True
    )
