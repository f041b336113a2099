"""transformers' names of the parameters of RoBERTa that this folder treats apart, and older and
longer names of them."""

import re
from collections.abc import Mapping

from torch import Tensor

WORDS = "roberta.embeddings.word_embeddings.weight"
POSITIONS = "roberta.embeddings.position_embeddings.weight"
TOKEN_TYPES = "roberta.embeddings.token_type_embeddings.weight"
FIRST_FEED_FORWARD = "roberta.encoder.layer.0.intermediate.dense.weight"
OUTPUT = "lm_head.decoder.weight"  # in most models tied to WORDS
OUTPUT_BIAS = "lm_head.bias"
_SAME_BIAS = "lm_head.decoder.bias"

_COMPILED = "_orig_mod."  # torch.compile, at any place
# data parallelism; a module that has the model as its attribute `model`
_WRAPPERS = re.compile(r"^(?:module\.|model\.(?=(?:roberta|lm_head)\.))+")
_OLD_NORM = re.compile(r"(?i:(?<=layernorm)|(?<=layer_norm))\.(gamma|beta)$")


def today(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names that transformers would save them by today: without what wraps the
    model, and LayerNorm's as `weight` and `bias`. Names stay where two would become one."""
    renamed = {_name_today(name): tensor for name, tensor in weights.items()}
    return renamed if len(renamed) == len(weights) else dict(weights)


def with_output_bias(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head's bias by both of its names. transformers saved one of them until version 5, which
    asks for both where the output matrix has weights of its own, and computes with the second."""
    here = weights.keys()
    if OUTPUT_BIAS in here and _SAME_BIAS not in here:
        return {**weights, _SAME_BIAS: weights[OUTPUT_BIAS]}
    if _SAME_BIAS in here and OUTPUT_BIAS not in here:
        return {**weights, OUTPUT_BIAS: weights[_SAME_BIAS]}
    return dict(weights)


def _name_today(name: str) -> str:
    inner = _WRAPPERS.sub("", name.replace(_COMPILED, ""))
    return _OLD_NORM.sub(lambda old: ".weight" if old[1] == "gamma" else ".bias", inner)
