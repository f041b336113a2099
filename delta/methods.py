"""Every delta method by its name on the page; each has a file of its own."""

import contextlib
import warnings
from collections.abc import Callable, Iterator

from peft import PeftModel
from transformers import RobertaForSequenceClassification

from delta import lora
from delta.config import Lora

_ATTACH: dict[str, Callable[[RobertaForSequenceClassification, Lora, int], PeftModel]] = {"lora": lora.attach}


def attach(model: RobertaForSequenceClassification, method: Lora, seed: int) -> PeftModel:
    """The model with the method's modules attached; trainable are these and the head. Raises UserError."""
    with without_peft_warnings():
        return _ATTACH[method.name](model, method, seed)


@contextlib.contextmanager
def without_peft_warnings() -> Iterator[None]:
    """peft 0.21 asks transformers 5 for an attribute by its old name; nobody here can mend that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def parameters(model: PeftModel) -> dict[str, int]:
    """How many parameters are trained: `delta`, and `head`, which is fresh for every task."""
    counts = {"delta": 0, "head": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts["head" if ".classifier." in name else "delta"] += parameter.numel()
    return counts
