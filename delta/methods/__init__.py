"""Every method by its name, in the order in which they are attached; each has a file of its own.

An `attach(model, spec)` adds its modules in place, makes their parameters trainable, draws its
start from torch's global generator, and notes on `model.delta`
(`robustly.delta.attachment.Attachment`) what training and storing must know. peft's come first:
they replace linear maps by name, and must not find those of the others. Prompts come before
prefixes: a prefix stands before all tokens, a prompt's too."""

from collections.abc import Callable
from typing import Any

from transformers import RobertaPreTrainedModel

from robustly.delta.methods import (
    adalora,
    adapter,
    bitfit,
    ia3,
    intrinsic_prompt,
    lora,
    p_tuning,
    prefix,
    prompt,
    whole,
)

ATTACH: dict[str, Callable[[RobertaPreTrainedModel, Any], None]] = {
    "lora": lora.attach,
    "dora": lora.attach,
    "ia3": ia3.attach,
    "adalora": adalora.attach,
    "adapter": adapter.attach,
    "prompt": prompt.attach,
    "p_tuning": p_tuning.attach,
    "intrinsic_prompt": intrinsic_prompt.attach,
    "prefix": prefix.attach,
    "p_tuning_v2": prefix.attach,
    "bitfit": bitfit.attach,
    "head": whole.head,
    "full": whole.full,
}
