"""peft's layers in place of linear maps of the encoder, several methods' side by side."""

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from transformers import RobertaModel


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
