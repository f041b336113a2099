"""peft's layers in place of linear maps of the encoder, several methods' side by side."""

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import RobertaModel, RobertaPreTrainedModel

from robustly import UserError
from robustly.delta.specs import AdaLora, Dora, Lora

LOW_RANK = ("lora", "dora", "adalora")


def inject(
    encoder: RobertaModel, tuner: type[BaseTuner], config: PeftConfig, name: str
) -> BaseTuner:
    """Replace the maps that the config names by peft's layers, in place; returns peft's object for
    them.

    peft leaves a record of its methods on the encoder. It is taken away: for its sake peft warns of
    the next method, or refuses it (AdaLoRA)."""
    made: BaseTuner = tuner(encoder, config, adapter_name=name)
    del encoder.peft_config
    return made


def check_low_rank(model: RobertaPreTrainedModel, spec: Lora | Dora | AdaLora) -> None:
    """What peft takes in silence: a target that matches nothing, as long as another matches; and a
    second low-rank method on the same maps, which puts the first one to sleep. Raises UserError."""
    beside = [other.name for other in model.delta.methods if other.name in LOW_RANK]
    if len(beside) > 1:
        raise UserError(f"methods: {', '.join(beside)}: give one of {', '.join(LOW_RANK)}")

    modules = model.roberta.named_modules()
    linear = {
        name.removesuffix(".base_layer")
        for name, module in modules
        if isinstance(module, nn.Linear)
    }

    for target in spec.targets:
        if not any(name == target or name.endswith("." + target) for name in linear):
            endings = sorted(
                {name.split(".", 3)[-1] for name in linear}
            )  # without encoder.layer.0.
            raise UserError(
                f"targets: {target!r} names no linear map of the encoder; it has"
                f" {', '.join(endings)}"
            )
