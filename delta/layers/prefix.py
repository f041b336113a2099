"""Prefixes: keys and values that attention sees before those of the text.

So the text keeps its own positions, heads read what they always read, and layers can be computed
twice (gradient checkpointing). peft passes them as a cache, which shifts RoBERTa's positions and
refuses checkpointing; its networks are used here, and its order of numbers, so that it reads what
is stored."""

import inspect
from dataclasses import replace
from typing import Any

import torch
from peft import PrefixEncoder, PrefixTuningConfig
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention

from robustly import UserError
from robustly.delta.layers.soft_tokens import INPUTS

PASSED = "prefix_of_layers"
"""Name under which the encoder hands keys and values down to its layers."""
_CACHE = (
    "cache"
    if "cache" in inspect.signature(RobertaSelfAttention.forward).parameters
    else "past_key_values"
)
"""transformers renamed it."""


def attach(model: PreTrainedModel, config: PrefixTuningConfig, network: bool) -> "KeysAndValues":
    """Give every layer of the model a prefix, in place: made by a network, or learned directly;
    returns it. Raises UserError if the model has one."""
    prefix = KeysAndValues(replace(config, prefix_projection=network)).to(model.device)
    place(model.base_model, prefix)
    return prefix


def place(encoder: PreTrainedModel, prefix: nn.Module) -> None:
    """Have the layers of an encoder attend to what `prefix()` makes: layers x (keys, values) x
    heads x tokens x (hidden / heads), or inputs before heads where each has its own. Raises
    UserError if it has a prefix."""
    if hasattr(encoder, "prefix"):
        raise UserError(
            "methods: prefix, p_tuning_v2: the one is the other without its network: give one of"
            " them"
        )

    encoder.prefix = prefix
    encoder.register_forward_pre_hook(_pass_down, with_kwargs=True)
    listen(encoder)


def listen(encoder: PreTrainedModel) -> None:
    """Have an encoder's layers attend to what it is passed as `PASSED` before its text: layers x
    (keys, values) x heads x tokens x (hidden / heads); each input's own, where inputs come before
    heads."""
    for layer in encoder.encoder.layer:
        layer.attention.self.register_forward_pre_hook(_receive, with_kwargs=True)


class KeysAndValues(nn.Module):
    """A prefix by peft's encoder: a table of its numbers, or during training the network that makes
    them."""

    def __init__(self, config: PrefixTuningConfig):
        super().__init__()
        self.config = config
        self.tokens = config.num_virtual_tokens
        self.encoder = PrefixEncoder(config)

    def numbers(self) -> Tensor:
        """As peft stores them: tokens x (layers, keys before values, hidden). Equal to the bit
        under autocast: scores during training are those of what is stored."""
        device = self.encoder.embedding.weight.device
        if torch.compiler.is_exporting():  # a program has no autocast
            return self.encoder(torch.arange(self.tokens, device=device))
        with torch.autocast(device.type, enabled=False):
            numbers: Tensor = self.encoder(torch.arange(self.tokens, device=device))
        return numbers

    def forward(self) -> Tensor:
        """layers x (keys, values) x heads x tokens x (hidden / heads)."""
        layers, heads = self.config.num_layers, self.config.num_attention_heads
        return self.numbers().view(self.tokens, layers, 2, heads, -1).permute(1, 2, 3, 0, 4)

    def table(self) -> PrefixEncoder:
        """A table of what the network makes."""
        with torch.device("meta"):  # its own numbers would be drawn for nothing
            table = PrefixEncoder(replace(self.config, prefix_projection=False))
        table.embedding.weight = nn.Parameter(self.numbers().detach())
        return table


class _Before:
    """Takes the place of the cache in which attention expects keys and values of earlier tokens. It
    keeps none."""

    def __init__(self, keys: Tensor, values: Tensor):
        """Of one layer: heads x tokens x (hidden / heads), or of each input such."""
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """`keys`, `values`: inputs x heads x tokens x (hidden / heads). Returns them with the
        prefix before them."""
        return _joined(self.keys, keys), _joined(self.values, values)


def _pass_down(
    encoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Inputs of the encoder with the prefix, to which all tokens attend: the mask is longer than
    the text.

    Attentions, where asked for, have the prefix's columns first. Raises UserError for a mask of
    another shape."""
    inputs = {**dict(zip(INPUTS, args, strict=False)), **kwargs}
    text = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    mask = inputs.get("attention_mask")
    if mask is None:
        mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device)

    if mask.dim() != 2:
        raise UserError(
            f"attention_mask: expected (inputs, tokens) beside a prefix, found {tuple(mask.shape)}"
        )

    inputs["attention_mask"] = torch.cat(
        [mask.new_ones(mask.shape[0], encoder.prefix.tokens), mask], dim=1
    )
    inputs[PASSED] = encoder.prefix()
    return (), inputs


def _receive(
    attention: RobertaSelfAttention, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Inputs of one layer's attention, with its part of the prefix. It comes as an argument and not
    by a memory of the encoder's, so that a layer that is computed again for its gradients has the
    same one; there is none where the encoder's hooks were passed by (`routing.first_pass`)."""
    if PASSED not in kwargs:
        return args, kwargs

    keys, values = kwargs.pop(PASSED)[attention.layer_idx]
    return args, {**kwargs, _CACHE: _Before(keys, values)}


def _joined(prefix: Tensor, text: Tensor) -> Tensor:
    return torch.cat([prefix.to(text.dtype).expand(text.shape[0], -1, -1, -1), text], dim=2)
