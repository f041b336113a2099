"""The optimizer: AdamW (the paper's section 3.1), with weight decay on all parameters, as in
fairseq, or on matrices alone, as in BERT."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from robustly.pretrain.config import OptimConfig
from robustly.pretrain.reduction import in_buckets

AVERAGE = "average"
"""The name of the average of a weight among Adam's moments."""


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Adam's parameter groups: one with decay; another without where `optim.decay` exempts biases
    and LayerNorms (1-d tensors)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if optim.decay == "all":
        return [{"params": parameters, "weight_decay": optim.weight_decay}]

    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that asks before it changes anything.

    DeepSpeed calls `step` last, when the gradient's norm is known and gradients are clipped, for
    each group of parameters on its own. Where the answer is no, weights, moments and the count of
    steps stay as they were, and DeepSpeed goes on as after any step."""

    allowed: Callable[[], bool] = staticmethod(lambda: True)
    average_decay: float | None = None
    """How much is left of the averages after the step; None: none are kept."""

    def step(self, closure: Any = None) -> Any:
        if not self.allowed():
            return None

        result = super().step(closure)
        if self.average_decay is not None:
            self._average(1.0 - self.average_decay)

        return result

    @torch.no_grad()
    def _average(self, share: float) -> None:
        """Move the averages, which lie beside the moments, towards the weights by a share of the
        way."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter][AVERAGE].lerp_(parameter, share)


def adamw(model: nn.Module, optim: OptimConfig, bucketed: bool = False) -> GuardedAdamW:
    """AdamW over what is trainable, in one kernel for all parameters ("fused"). The learning rate
    is set before every step. `bucketed`: in groups that are reduced one after the other
    (`robustly.pretrain.reduction`).

    Decay is decoupled, eps is added after the bias correction (Loshchilov and Hutter 2019; apex's
    FusedAdam likewise)."""
    groups = parameter_groups(model, optim)
    return GuardedAdamW(
        in_buckets(groups) if bucketed else groups,
        lr=0.0,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,
    )
