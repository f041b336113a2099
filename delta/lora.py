"""LoRA: low-rank updates beside frozen linear maps (Hu et al. 2021), by peft."""

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import RobertaForSequenceClassification

from delta.config import Lora
from robustly import UserError
from robustly.rng import Purpose, seed64


def attach(model: RobertaForSequenceClassification, method: Lora, seed: int) -> PeftModel:
    """The classifier with updates at `method.targets`; trainable are these and the head, nothing else.

    A is random by the seed and B is 0 (section 4.1), so the model starts as it is without them. Parameters:
    rank x (in + out) for each map. Raises UserError if a target names no linear map of the encoder.
    """
    _check_targets(model, method)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,  # without it the head would be neither trained nor saved
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=list(method.targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed64(seed, Purpose.INIT, 0, 1))  # index 0 is the head
        return get_peft_model(model, config)


def _check_targets(model: RobertaForSequenceClassification, method: Lora) -> None:
    """peft takes a target that matches nothing in silence, as long as another matches."""
    linear = {name for name, module in model.roberta.named_modules() if isinstance(module, nn.Linear)}
    for target in method.targets:
        if not any(name == target or name.endswith("." + target) for name in linear):
            endings = sorted({name.split(".", 3)[-1] for name in linear})  # without encoder.layer.0.
            raise UserError(
                f"method.targets: {target!r} names no linear map of the encoder; it has {', '.join(endings)}"
            )
