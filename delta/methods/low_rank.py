"""What low-rank methods share: rank, scale and target maps (LoRA, DoRA, AdaLoRA)."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from robustly import UserError
from robustly.delta.methods.method import Method
from robustly.pretrain.config import Positive

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTuner
    from transformers import RobertaConfig, RobertaPreTrainedModel


class LowRank(Method):
    rank: Positive = 8
    """The LoRA paper's Table 9, RoBERTa-base."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """The authors' scripts for RoBERTa-base; the update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on x, in the update alone."""
    targets: Annotated[list[str], Field(min_length=1, default_factory=lambda: ["query", "value"])]
    """Names of linear maps of the encoder: the last part, or the last parts joined by dots."""

    @field_validator("targets")
    @classmethod
    def _sorted(cls, value: list[str]) -> list[str]:
        return sorted(set(value))  # peft keeps a set: the order has no meaning

    def attach(self, model: "RobertaPreTrainedModel") -> None:
        """Updates of the maps that `targets` names. Raises UserError if one names no linear map of
        the encoder, or beside another low-rank method."""
        self.inject(model)

    def inject(self, model: "RobertaPreTrainedModel") -> "BaseTuner":
        """As `attach`; returns peft's object for the updates."""
        from torch import nn

        from robustly.delta.layers.tuners import inject

        # What peft takes in silence: a second low-rank method on the same maps, which puts the
        # first one to sleep; and a target that matches nothing, as long as another matches.
        given = [other.name for other in model.delta.methods if isinstance(other, LowRank)]
        if len(given) > 1:
            raise UserError(f"methods: {', '.join(given)}: give one of lora, dora, adalora")

        linear = {
            name.removesuffix(".base_layer")
            for name, module in model.roberta.named_modules()
            if isinstance(module, nn.Linear)
        }
        for target in self.targets:
            if not any(_names(target, linear_map) for linear_map in linear):
                # Without encoder.layer.0.
                endings = sorted({name.split(".", 3)[-1] for name in linear})
                raise UserError(
                    f"targets: {target!r} names no linear map of the encoder; it has"
                    f" {', '.join(endings)}"
                )

        return inject(model.roberta, self.peft_config(model.config), self.name)

    def target_sizes(self, config: "RobertaConfig") -> list[tuple[int, int]]:
        """Inputs and outputs of every linear map that `targets` names, over all layers."""
        h, f = config.hidden_size, config.intermediate_size
        maps = {
            "attention.self.query": (h, h),
            "attention.self.key": (h, h),
            "attention.self.value": (h, h),
            "attention.output.dense": (h, h),
            "intermediate.dense": (h, f),
            "output.dense": (f, h),
        }
        return [
            sizes
            for layer in range(config.num_hidden_layers)
            for name, sizes in maps.items()
            if any(_names(target, f"encoder.layer.{layer}.{name}") for target in self.targets)
        ]


def _names(target: str, linear_map: str) -> bool:
    return linear_map == target or linear_map.endswith(f".{target}")
