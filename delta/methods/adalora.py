"""AdaLoRA: low-rank updates P L Q, whose ranks are taken from where they matter least (Zhang et al.
2023). By peft."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from robustly.delta.methods.lora import LowRank
from robustly.pretrain.config import Positive

if TYPE_CHECKING:
    from peft import AdaLoraConfig, AdaLoraModel
    from torch import Tensor
    from transformers import PreTrainedModel, RobertaConfig


class AdaLora(LowRank):
    """LoRA as P L Q, whose ranks go where they matter (Zhang et al. 2023)."""

    name: Literal["adalora"]
    rank: Positive = 8
    """Mean rank of a map at the end."""
    initial_rank: Positive = 12
    """At the beginning: 1.5 times the final one, as in the paper's section 4."""
    orthogonal: Annotated[float, Field(ge=0)] = 0.1
    """Weight of what keeps P and Q orthogonal (the paper's gamma)."""

    @model_validator(mode="after")
    def _ranks_are_taken(self) -> Self:
        if self.initial_rank <= self.rank:
            raise ValueError(
                f"initial_rank is {self.initial_rank}: expected more than rank, {self.rank}"
            )
        return self

    def attach(self, model: "PreTrainedModel") -> None:
        """As other low-rank methods, and notes on `model.delta` what training does for the ranks.

        P and Q are random and L is 0 (section 3.1), so the model starts as it is without them.
        Entries of L that lose their rank are 0 from then on; all are stored."""
        ranks = _Ranks(self.inject(model), self)
        model.delta.penalties.append(ranks.orthogonality)
        model.delta.after_update.append(ranks.allocate)
        model.delta.stateful.append(ranks)

        for name, parameter in model.named_parameters():
            if ".ranknum." in name:
                # peft lets it be trained where it moved it to another device
                parameter.requires_grad_(False)
                model.delta.kept.append(name)

    def peft_config(self, config: "RobertaConfig") -> "AdaLoraConfig":
        from peft import AdaLoraConfig

        return AdaLoraConfig(
            init_r=self.initial_rank,
            target_r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            orth_reg_weight=self.orthogonal,
            target_modules=list(self.targets),
            total_step=1,  # peft wants one; training tells the true one
        )


_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""Of every entry, by peft's names: of one update, and the running means."""


@dataclass
class _Ranks:
    tuner: "AdaLoraModel"
    method: AdaLora

    def orthogonality(self) -> "Tensor":
        """The mean over all P and Q of the distance of P'P or QQ' from the identity (equation 4),
        times `orthogonal`. (peft adds it to a loss that the model itself computes; ours does
        not.)"""
        import torch

        distances = []
        for name, parameter in self.tuner.model.named_parameters():
            if name.endswith((".lora_A.adalora", ".lora_B.adalora")):
                rows = parameter if ".lora_A." in name else parameter.T
                identity = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
                distances.append(torch.linalg.matrix_norm(rows @ rows.T - identity))

        return self.method.orthogonal * torch.stack(distances).mean()

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
        known = {name: dict(getattr(allocator, name)) for name in _IMPORTANCE}
        return {**known, "rank_pattern": self.tuner.peft_config["adalora"].rank_pattern}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in _IMPORTANCE:
            setattr(self.tuner.rankallocator, name, dict(state_dict[name]))
        self.tuner.peft_config["adalora"].rank_pattern = state_dict["rank_pattern"]
