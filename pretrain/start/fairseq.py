"""Read RoBERTa checkpoints of fairseq: its parameter names, old and new, become transformers'."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustly import UserError
from robustly.pretrain.start.parameter_names import (
    FIRST_FEED_FORWARD,
    OUTPUT,
    POSITIONS,
    TOKEN_TYPES,
    WORDS,
)
from robustly.pretrain.start.tensor_files import Placeholder, read_pickle, state_dict

# The encoder was called decoder before March 2020 (RobertaModel.upgrade_state_dict_named);
# `roberta.` where the model is a part of a larger one.
_PREFIX = re.compile(r"^(?:roberta\.)?(?:encoder|decoder)\.(?:sentence_encoder\.)?")
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")
_PACKED = re.compile(r"layers\.(\d+)\.self_attn\.in_proj_(weight|bias)")
# heads for other tasks, and the version of a module's format
_LEFT_OUT = re.compile(r"^(?:roberta\.)?classification_heads\.|(?:^|\.)version$")
# emb_layer_norm became layernorm_embedding with the encoder's change to TransformerEncoder
_OUTSIDE_LAYERS = {
    "embed_tokens.weight": WORDS,
    "embed_positions.weight": POSITIONS,
    **{
        f"{norm}.{kind}": f"roberta.embeddings.LayerNorm.{kind}"
        for norm in ("emb_layer_norm", "layernorm_embedding")
        for kind in ("weight", "bias")
    },
    "lm_head.weight": OUTPUT,
}
_IN_LAYERS = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a fairseq checkpoint by transformers' names, and its dimensions as
    `RobertaConfig` has them.

    The number of heads is among these where the file keeps its settings, as fairseq's own do.
    Raises UserError if the file cannot be read, or is of another model than RoBERTa."""
    stored = read_pickle(path)
    if not isinstance(stored, dict) or "model" not in stored:
        raise UserError(
            f"{path}: expected a checkpoint of fairseq's, a dictionary with the key model"
        )

    weights = renamed(state_dict(path, stored["model"]))
    settings = _settings(stored)
    _check_kind(path, settings)

    try:
        words = weights[WORDS]
        in_layers = (name for name in weights if name.startswith("roberta.encoder.layer."))
        dimensions = {
            "vocab_size": words.shape[0],
            "num_hidden_layers": len({name.split(".")[3] for name in in_layers}),
            "hidden_size": words.shape[1],
            "intermediate_size": weights[FIRST_FEED_FORWARD].shape[0],
            "max_position_embeddings": weights[POSITIONS].shape[0],
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,  # fairseq/modules/layer_norm.py
        }
    except KeyError as missing:
        raise UserError(
            f"{path}: not a RoBERTa of fairseq's: without {missing.args[0]} (transformers' name)"
        ) from None

    if "encoder_attention_heads" in settings:
        dimensions["num_attention_heads"] = settings["encoder_attention_heads"]

    # transformers adds a row for token types, which fairseq does not have
    return {**weights, TOKEN_TYPES: torch.zeros(1, words.shape[1])}, dimensions


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fairseq's parameters by transformers' names, with queries, keys and values unpacked. An
    unknown name stays."""
    return dict(
        pair
        for name, tensor in weights.items()
        if not _LEFT_OUT.search(name)
        for pair in _rename(name, tensor)
    )


def _rename(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    short = _PREFIX.sub("", name)
    if packed := _PACKED.fullmatch(short):
        for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            yield f"roberta.encoder.layer.{packed[1]}.attention.self.{part}.{packed[2]}", rows
    elif (found := _LAYER.fullmatch(short)) and found[2] in _IN_LAYERS:
        yield f"roberta.encoder.layer.{found[1]}.{_IN_LAYERS[found[2]]}.{found[3]}", tensor
    elif short.startswith("lm_head.") or short in _OUTSIDE_LAYERS:
        yield _OUTSIDE_LAYERS.get(short, short), tensor
    else:
        yield name, tensor


def _settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The model's settings: `args` until 2020, `cfg["model"]` since."""
    for found in (
        stored.get("args"),
        stored["cfg"].get("model") if isinstance(stored.get("cfg"), dict) else None,
    ):
        settings = found.state if isinstance(found, Placeholder) else found
        if isinstance(settings, dict):
            return settings

    return {}


def _check_kind(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises UserError if the settings are those of another kind of model."""
    for key, expected in (("activation_fn", "gelu"), ("encoder_normalize_before", False)):
        if settings.get(key, expected) != expected:
            raise UserError(f"{path}: {key} = {settings[key]!r}; expected RoBERTa's, {expected!r}")
