"""LoRA: low-rank updates beside frozen linear maps (Hu et al. 2021); DoRA (Liu et al. 2024). By
peft. AdaLoRA, which has a file of its own, is low-rank as well."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from robustly import UserError
from robustly.delta.methods.method import Method, PeftLayers
from robustly.pretrain.config import Positive

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import BaseTuner
    from transformers import PreTrainedModel, RobertaConfig


class LowRank(PeftLayers):
    """What low-rank methods share: rank, scale and target maps."""

    rank: Positive = 8
    """The LoRA paper's Table 9, RoBERTa-base."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """The authors' scripts for RoBERTa-base; the update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on x, in the update alone."""
    targets: Annotated[list[str], Field(min_length=1, default_factory=lambda: ["query", "value"])]
    """Names of linear maps of the encoder: the last part, or the last parts joined by dots."""

    by_row: ClassVar[bool] = True

    @field_validator("targets")
    @classmethod
    def _sorted(cls, value: list[str]) -> list[str]:
        return sorted(set(value))  # peft keeps a set: the order has no meaning

    def inject(self, model: "PreTrainedModel") -> "BaseTuner":
        """Updates of the maps that `targets` names. Raises UserError if one names no linear map of
        the encoder, or beside another low-rank method."""
        # What peft takes in silence: a second low-rank method on the same maps, which puts the
        # first one to sleep; and a target that matches nothing, as long as another matches.
        given = [other.name for other in model.delta.methods if isinstance(other, LowRank)]
        if len(given) > 1:
            raise UserError(f"methods: {', '.join(given)}: give one of lora, dora, adalora")

        self.targeted(model.base_model)
        return super().inject(model)

    def targeted(self, encoder: "PreTrainedModel") -> list[str]:
        """Names of the linear maps that `targets` names. Raises UserError if one names none."""
        from torch import nn

        linear = {
            name.removesuffix(".base_layer"): None
            for name, module in encoder.encoder.named_modules(prefix="encoder")
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

        return [name for name in linear if any(_names(target, name) for target in self.targets)]


def _names(target: str, linear_map: str) -> bool:
    return linear_map == target or linear_map.endswith(f".{target}")


class _Lora(LowRank):
    default_lr: ClassVar[float] = 5e-4  # Hu et al. 2021, Table 9: 4e-4 to 5e-4

    def grown(self, share: float) -> "Method | None":
        """More ranks, at the same alpha / rank."""
        rank = self.rank + int(self.rank * share)
        larger = {"rank": rank, "alpha": self.alpha * rank / self.rank}
        return self.model_copy(update=larger) if rank > self.rank else None

    def peft_config(self, config: "RobertaConfig") -> "LoraConfig":
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(self.targets),
            use_dora=self.name == "dora",
        )


class Lora(_Lora):
    """Low-rank updates of linear maps: W x + (alpha / rank) B A x (Hu et al. 2021, section 4.1).
    A is random and B is 0, so the model starts as it is without them."""

    name: Literal["lora"]


class Dora(_Lora):
    """LoRA on the directions of W's columns, and their lengths beside it (Liu et al. 2024, section
    4)."""

    name: Literal["dora"]
