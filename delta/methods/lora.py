"""LoRA: low-rank updates beside frozen linear maps (Hu et al. 2021); DoRA (Liu et al. 2024). By
peft."""

from peft import LoraConfig, LoraModel
from transformers import RobertaPreTrainedModel

from robustly.delta.methods.tuner import check_low_rank, inject
from robustly.delta.specs import Dora, Lora


def peft_config(spec: Lora | Dora) -> LoraConfig:
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=list(spec.targets),
        use_dora=spec.name == "dora",
    )


def attach(model: RobertaPreTrainedModel, spec: Lora | Dora) -> None:
    """Updates at `spec.targets`.

    A is random and B is 0 (section 4.1), so the model starts as it is without them. Parameters:
    rank x (in + out) for each map, and for DoRA out more. Raises UserError if a target names no
    linear map of the encoder, or beside another low-rank method."""
    check_low_rank(model, spec)
    inject(model.roberta, LoraModel, peft_config(spec), spec.name)
