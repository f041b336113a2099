"""LoRA: low-rank updates beside frozen linear maps (Hu et al. 2021); DoRA (Liu et al. 2024). By
peft."""

from typing import TYPE_CHECKING, ClassVar, Literal

from robustly.delta.methods.low_rank import LowRank

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import RobertaConfig


class _Lora(LowRank):
    default_lr: ClassVar[float] = 5e-4  # Hu et al. 2021, Table 9: 4e-4 to 5e-4

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

    def parameter_count(self, config: "RobertaConfig") -> int:
        return sum(self.rank * (fan_in + fan_out) for fan_in, fan_out in self.target_sizes(config))


class Dora(_Lora):
    """LoRA on the directions of W's columns, and their lengths beside it (Liu et al. 2024, section
    4)."""

    name: Literal["dora"]

    def parameter_count(self, config: "RobertaConfig") -> int:
        return sum(
            self.rank * (fan_in + fan_out) + fan_out
            for fan_in, fan_out in self.target_sizes(config)
        )
