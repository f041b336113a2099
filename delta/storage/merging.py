"""Merge a delta into its base: a plain model of transformers with the same logits."""

import copy

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from robustly import UserError


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """A plain model of transformers with the delta in its weights and the same head: the same
    logits but for rounding, and no module of ours or of peft's. Evaluating. The given model stays
    as it is.

    For lora, dora, ia3, adalora, bitfit, full and head, alone or together. Raises UserError for
    other methods, whose work no weight of a RoBERTa can do, and for a model without a delta."""
    if not hasattr(model, "delta"):
        raise UserError(
            f"{type(model).__name__} has no delta: expected a model after `attach` or `load_into`"
        )

    for method in model.delta.methods:
        if method.why_not_merged:
            raise UserError(
                f"{method.name}: cannot be merged: {method.why_not_merged}; keep the base and load"
                " the delta onto it"
            )

    changed = copy.deepcopy(model)  # merging writes into weights, which the base may share
    outermost = [
        name for name, layer in changed.named_modules() if isinstance(layer, BaseTunerLayer)
    ]

    for name in outermost:
        if not any(name.startswith(f"{other}.") for other in outermost):
            parent, _, last = name.rpartition(".")
            setattr(changed.get_submodule(parent), last, _merged(changed.get_submodule(name)))

    del changed.delta
    return changed.requires_grad_(True).eval()


def _merged(layer: BaseTunerLayer) -> nn.Module:
    """The map that a layer of peft's computes; layers may stand within one another."""
    if isinstance(layer.base_layer, BaseTunerLayer):
        layer.base_layer = _merged(layer.base_layer)
    layer.merge()
    return layer.base_layer
