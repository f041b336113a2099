"""AdaLoRA: low-rank updates P L Q, whose ranks are taken from where they matter least (Zhang et al.
2023). By peft."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import AdaLoraConfig, AdaLoraModel
from torch import Tensor
from transformers import RobertaPreTrainedModel

from robustly.delta.methods.tuner import check_low_rank, inject
from robustly.delta.specs import AdaLora

IMPORTANCE = (
    "ipt",
    "exp_avg_ipt",
    "exp_avg_unc",
)  # of every entry, by peft's names: of an update, its means


def peft_config(spec: AdaLora) -> AdaLoraConfig:
    return AdaLoraConfig(
        init_r=spec.initial_rank,
        target_r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        orth_reg_weight=spec.orthogonal,
        target_modules=list(spec.targets),
        total_step=1,  # peft wants one; training tells the true one
    )


def attach(model: RobertaPreTrainedModel, spec: AdaLora) -> None:
    """Updates at `spec.targets`, and on `model.delta` what training does for them.

    P and Q are random and L is 0 (section 3.1), so the model starts as it is without them.
    Parameters: initial_rank x (in + out + 1) for each map. Entries of L that lose their rank are 0
    from then on; all are stored. Raises UserError if a target names no linear map of the encoder,
    or beside another low-rank method."""
    check_low_rank(model, spec)
    tuner = inject(model.roberta, AdaLoraModel, peft_config(spec), spec.name)
    ranks = _Ranks(tuner, spec)
    model.delta.penalties.append(ranks.orthogonality)
    model.delta.after_update.append(ranks.allocate)
    model.delta.stateful.append(ranks)

    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(
                False
            )  # peft lets it be trained where it moved it to another device
            model.delta.kept.append(name)


@dataclass
class _Ranks:
    tuner: AdaLoraModel
    spec: AdaLora

    def orthogonality(self) -> Tensor:
        """The mean over all P and Q of the distance of P'P or QQ' from the identity (equation 4;
        peft adds it to a loss that the model itself computes, which ours does not), times
        `orthogonal`."""
        distances = []
        for name, parameter in self.tuner.model.named_parameters():
            if name.endswith((".lora_A.adalora", ".lora_B.adalora")):
                rows = parameter if ".lora_A." in name else parameter.T
                identity = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
                distances.append(torch.linalg.matrix_norm(rows @ rows.T - identity))

        return self.spec.orthogonal * torch.stack(distances).mean()

    def allocate(self, update: int, updates: int) -> None:
        """Take ranks away, by the gradients of this update: none in the first tenth of all updates,
        then more and more until the mean rank is `rank`, none in the last half (section 3.3; shares
        as in the authors' scripts for GLUE)."""
        if updates == 1:
            return  # peft cannot tell what matters before the second
        config = self.tuner.peft_config["adalora"]
        config.total_step = updates
        config.tinit = updates // 10
        config.tfinal = min(updates // 2, updates - 2)
        self.tuner.update_and_allocate(update)

    def state_dict(self) -> dict[str, Any]:
        """What peft has found out about each entry so far, and the ranks that are left."""
        allocator = self.tuner.rankallocator
        known = {name: dict(getattr(allocator, name)) for name in IMPORTANCE}
        return {**known, "rank_pattern": self.tuner.peft_config["adalora"].rank_pattern}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in IMPORTANCE:
            setattr(self.tuner.rankallocator, name, dict(state_dict[name]))
        self.tuner.peft_config["adalora"].rank_pattern = state_dict["rank_pattern"]
