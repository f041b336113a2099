"""peft's layers in place of linear maps of the encoder, several methods' side by side."""

from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from transformers import RobertaModel


def inject(encoder: RobertaModel, config: PeftConfig, name: str) -> BaseTuner:
    """Replace the maps that the config names by peft's layers, in place; returns peft's object for
    them.

    peft leaves a record of its methods on the encoder. It is taken away: for its sake peft warns of
    the next method, or refuses it (AdaLoRA)."""
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](encoder, config, adapter_name=name)
    del encoder.peft_config
    return tuner
