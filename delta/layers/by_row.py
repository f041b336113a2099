"""An encoder for rows of several deltas: each row meets what its own delta changes, and the maps of
the base run once over all rows.

What deltas change is stacked, deltas x its shape, filled up with zeros where they differ in size (a
rank, a bottleneck, a prefix), and every row takes its delta's slice (S-LoRA has it for LoRA: Sheng
et al. 2023, section 5)."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from peft.tuners import adalora, ia3, lora
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from robustly.delta.layers import prefix
from robustly.delta.layers.adapter import AdaptedOutput
from robustly.delta.layers.soft_tokens import PromptedEmbedding, PromptTable


class Rows:
    """Of the batch that the encoder sees at present."""

    of: Tensor
    """The place of each row's delta: rows."""


class EncoderByRow(nn.Module):
    """The base's encoder with several deltas in it. It shares the base's weights, and has copies of
    what deltas change."""

    prefixes: Tensor
    """deltas x layers x (keys, values) x heads x tokens x (hidden / heads)"""
    attended: Tensor
    """Which tokens of its prefix a delta has: deltas x tokens, 1 or 0."""

    def __init__(self, base: PreTrainedModel, encoders: Sequence[PreTrainedModel]):
        """`encoders`: of this base, each with the methods of a delta, all of which work by row
        (`Method.by_row`)."""
        super().__init__()
        # Other parameters on the same memory: to move this encoder does not move the base.
        shared = {
            id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
            for parameter in base.parameters()
        }
        self.encoder = copy.deepcopy(base, shared).eval()
        self.rows = Rows()

        with torch.no_grad():
            for path, module in [*self.encoder.named_modules()][1:]:
                own = [encoder.get_submodule(path) for encoder in encoders]
                self.encoder.set_submodule(path, _by_row(module, own, self.rows))

            found = [_prefix(encoder) for encoder in encoders]
            self.register_buffer("prefixes", _stacked(found))
            present = [each.new_ones(each.shape[3]) for each in found]
            self.register_buffer("attended", _stacked(present))
            if self.attended.shape[1]:
                prefix.listen(self.encoder)

        self.to(base.dtype)  # what deltas train may have another

    def forward(self, ids: Tensor, mask: Tensor, of: Tensor) -> Tensor:
        """`ids`, `mask`: rows x tokens; `of`: the place of each row's delta, rows. Returns hidden
        states, rows x tokens x hidden.

        Pseudo-tokens are numbered from the vocabulary's size on: those of the first delta, then
        those of the second, and so on."""
        self.rows.of = of
        beside = {}
        if self.attended.shape[1]:
            mask = torch.cat([self.attended[of].to(mask.dtype), mask], dim=1)
            beside = {prefix.PASSED: self.prefixes[of].permute(1, 2, 0, 3, 4, 5)}

        found = self.encoder(input_ids=ids, attention_mask=mask, **beside)
        hidden: Tensor = found.last_hidden_state
        return hidden


def _prefix(encoder: PreTrainedModel) -> Tensor:
    """layers x (keys, values) x heads x tokens x (hidden / heads); of no tokens where there is
    none."""
    if hasattr(encoder, "prefix"):
        numbers: Tensor = encoder.prefix()
        return numbers
    config = encoder.config
    heads = config.num_attention_heads
    sizes = (config.num_hidden_layers, 2, heads, 0, config.hidden_size // heads)
    return torch.zeros(sizes, device=encoder.device)


def _by_row(module: Any, own: Sequence[Any], rows: Rows) -> nn.Module:
    """What takes the place of a module of the base, given what each delta has there: the module
    itself where none changes it."""
    if isinstance(module, nn.Linear):
        base, maps = _RowMap.of(module), [_RowMap.of(each) for each in own]
        changed = any(not each.equals(base) for each in maps)
        return LinearByRow(module, maps, rows) if changed else module

    if isinstance(module, nn.LayerNorm):
        changed = any(
            not _equal(each.weight, module.weight) or not _equal(each.bias, module.bias)
            for each in own
        )
        return LayerNormByRow(module, own, rows) if changed else module

    if any(isinstance(each, AdaptedOutput) for each in own):
        return AdaptedOutputByRow(module, own, rows)

    tables = [each.rows() for each in own if isinstance(each, PromptedEmbedding)]
    if tables:
        return PromptedEmbedding(module, PromptTable(torch.cat(tables)), sum(map(len, tables)))

    return module


class _RowMap(NamedTuple):
    """What a delta makes of a linear map W of the base: outer * (W (inner * x)) + up (down x) +
    bias."""

    inner: Tensor
    """(inputs,): (IA)^3's, before the feed-forward's second map."""
    outer: Tensor
    """(outputs,): (IA)^3's and DoRA's."""
    down: Tensor
    """rank x inputs; the rank is 0 without a low-rank method."""
    up: Tensor
    """outputs x rank."""
    bias: Tensor
    """(outputs,)"""

    @classmethod
    def of(cls, layer: Any) -> "_RowMap":
        """Of a linear map, or of peft's layers around one."""
        if isinstance(layer, nn.Linear):
            outputs, inputs = layer.weight.shape
            new = partial(torch.zeros, device=layer.weight.device)
            return cls(
                new(inputs) + 1,
                new(outputs) + 1,
                new(0, inputs),
                new(outputs, 0),
                layer.bias.float(),
            )

        inside, (name,) = cls.of(layer.base_layer), layer.active_adapters
        if isinstance(layer, ia3.Linear):
            scale = layer.ia3_l[name].flatten()
            if layer.is_feedforward:
                return inside._replace(inner=inside.inner * scale, down=inside.down * scale)
            return inside._scaled(scale)._replace(bias=inside.bias * scale)

        if isinstance(layer, adalora.SVDLinear):
            scale = layer.scaling[name] / (layer.ranknum[name] + 1e-5)  # as peft divides
            down = layer.lora_A[name] * layer.lora_E[name]
            return inside._with_rank(down, layer.lora_B[name] * scale)

        assert isinstance(layer, lora.Linear), layer
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight * layer.scaling[name]
        low_rank = inside._with_rank(down, up)
        if name not in layer.lora_magnitude_vector:
            return low_rank
        lengths = torch.linalg.norm(layer.get_base_layer().weight + up @ down, dim=1)
        return low_rank._scaled(layer.lora_magnitude_vector[name].weight / lengths)

    def _with_rank(self, down: Tensor, up: Tensor) -> "_RowMap":
        return self._replace(down=torch.cat([self.down, down]), up=torch.cat([self.up, up], dim=1))

    def _scaled(self, scale: Tensor) -> "_RowMap":
        """All but the bias."""
        return self._replace(outer=self.outer * scale, up=self.up * scale[:, None])

    def equals(self, other: "_RowMap") -> bool:
        return all(_equal(one, another) for one, another in zip(self, other, strict=True))


class LinearByRow(nn.Module):
    """A linear map of the base, with what each row's delta makes of it."""

    inner: Tensor
    outer: Tensor
    down: Tensor
    up: Tensor
    bias: Tensor

    def __init__(self, base: nn.Linear, maps: Sequence[_RowMap], rows: Rows):
        super().__init__()
        self.weight, self.rows = base.weight, rows
        for name, tensors in zip(_RowMap._fields, zip(*maps, strict=True), strict=True):
            self.register_buffer(name, _stacked(tensors))

        self.scales_inputs = bool(self.inner.ne(1).any())
        self.scales_outputs = bool(self.outer.ne(1).any())

    def forward(self, x: Tensor) -> Tensor:
        """`x`: rows x tokens x inputs."""
        of = self.rows.of
        y = functional.linear(x * self.inner[of][:, None] if self.scales_inputs else x, self.weight)
        if self.scales_outputs:
            y = y * self.outer[of][:, None]
        if self.down.shape[1]:
            y = torch.baddbmm(y, torch.bmm(x, self.down[of].mT), self.up[of].mT)
        return y + self.bias[of][:, None]


class LayerNormByRow(nn.Module):
    """A LayerNorm with each row's own gains and biases."""

    weight: Tensor
    bias: Tensor

    def __init__(self, base: nn.LayerNorm, own: Sequence[Any], rows: Rows):
        super().__init__()
        self.shape, self.eps, self.rows = base.normalized_shape, base.eps, rows
        self.register_buffer("weight", _stacked([each.weight for each in own]))
        self.register_buffer("bias", _stacked([each.bias for each in own]))

    def forward(self, x: Tensor) -> Tensor:
        """`x`: rows x tokens x hidden."""
        of = self.rows.of
        normed = functional.layer_norm(x, self.shape, eps=self.eps)
        return torch.addcmul(self.bias[of][:, None], normed, self.weight[of][:, None])


class AdaptedOutputByRow(nn.Module):
    """The output of attention or of the feed-forward, with each row's own adapter before the sum
    and its LayerNorm; a row of a delta without one has zeros."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    parallel: Tensor

    def __init__(self, base: Any, own: Sequence[nn.Module], rows: Rows):
        super().__init__()
        self.dense: nn.Module = base.dense
        self.dropout: nn.Module = base.dropout
        self.LayerNorm: nn.Module = base.LayerNorm
        self.rows = rows
        names = ("down", "down_bias", "up", "up_bias", "parallel")
        for name, tensors in zip(names, zip(*map(_bottleneck, own), strict=True), strict=True):
            self.register_buffer(name, _stacked(tensors))

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """As `AdaptedOutput`'s."""
        of = self.rows.of
        hidden_states = self.dropout(self.dense(hidden_states))
        source = torch.where(self.parallel[of][:, None, None], input_tensor, hidden_states)
        inner = functional.gelu(torch.baddbmm(self.down_bias[of][:, None], source, self.down[of]))
        added = torch.baddbmm(self.up_bias[of][:, None], inner, self.up[of])
        normed: Tensor = self.LayerNorm(hidden_states + added + input_tensor)
        return normed


def _bottleneck(output: Any) -> tuple[Tensor, ...]:
    """An adapter's maps down and up, each with its bias, and whether it is parallel; of size 0
    where there is none."""
    if not isinstance(output, AdaptedOutput):
        gains = output.LayerNorm.weight
        new, hidden = gains.new_zeros, len(gains)
        return new(hidden, 0), new(0), new(0, hidden), new(hidden), torch.tensor(False)

    adapter = output.adapter
    return (
        adapter.down.weight.mT,
        adapter.down.bias,
        adapter.scale * adapter.up.weight.mT,
        adapter.scale * adapter.up.bias,
        torch.tensor(output.parallel),
    )


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """tensors x their largest sizes, filled up with zeros."""
    sizes = [max(each) for each in zip(*(tensor.shape for tensor in tensors), strict=True)]
    stacked = tensors[0].new_zeros(len(tensors), *sizes)
    for place, tensor in zip(stacked, tensors, strict=True):
        place[tuple(map(slice, tensor.shape))] = tensor

    return stacked


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
