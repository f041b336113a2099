"""Routing: which of several experts an input is for, by the features that the model without them
has of it, and what experts do in shares.

An encoder with a router runs twice. The first pass has no gradients, no dropout and neither prompts
nor experts; its last hidden states' mean is what the input is like. The router gives each expert a
share, by how like its key is to that (Wang et al. 2022), and the second pass has the experts in
these shares, so that what the model has learnt depends on the input (Wu et al. 2022).

Shapes: N inputs, E experts, hidden size H."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from robustly.delta.layers.prefix import KeysAndValues
from robustly.delta.layers.soft_tokens import INPUTS, longest_input
from robustly.tokenizer.special_tokens import SPECIAL_TOKENS

TEMPERATURE = 0.05
"""What cosines, which are within 1 of 0, are divided by before they become shares."""
_SHARES = "shares_of_experts"
"""Name under which the encoder hands shares down to its layers."""
_TRIED = (64, 16)
"""Inputs of random tokens, and their length, that the mean features are those of."""


class Present:
    """The input that an encoder is at."""

    shares: Tensor | None = None
    """(N, E), that the experts have in it; None where there is none, as in a first pass."""

    def __deepcopy__(self, memo: Any) -> "Present":
        """A copied model is at none: torch copies no tensor that hangs on a graph."""
        return Present()


class Router(nn.Module):
    """A key for each expert. Parameters: experts x hidden."""

    center: Tensor
    """(H,), taken off features first: hidden states of one encoder point much the same way
    (Ethayarajh 2019), so that without it all inputs are alike."""

    def __init__(self, keys: Tensor, center: Tensor, hard: bool = False):
        """`hard`: whether the best expert has the whole share."""
        super().__init__()
        self.keys = nn.Parameter(keys)
        self.register_buffer("center", center)
        self.hard = hard
        self.present = Present()

    def forward(self, features: Tensor) -> Tensor:
        """Shares, (N, E), of inputs with these features, (N, H); in fp32, under autocast too.

        `hard`: 1 for the best and 0 for the others, with the gradients of the soft ones."""
        with torch.autocast(features.device.type, enabled=False):
            states = functional.normalize(features.float() - self.center.float(), dim=1)
            cosines = states @ functional.normalize(self.keys.float(), dim=1).T
            soft = torch.softmax(cosines / TEMPERATURE, 1)
            if not self.hard:
                return soft

            best = functional.one_hot(soft.argmax(1), len(self.keys)).to(soft.dtype)
            return best + (soft - soft.detach())


def attach(model: PreTrainedModel, experts: int, hard: bool) -> Router:
    """Give the encoder a router of so many experts, in place; returns it. Its keys are drawn from
    torch's global generator."""
    encoder = model.base_model
    hidden = encoder.config.hidden_size
    keys = torch.randn(experts, hidden) / hidden**0.5
    center = torch.zeros(hidden, device=model.device)
    if not model.delta.is_vacant:
        center = features_of_random_tokens(encoder).mean(0)

    encoder.router = Router(keys.to(model.device), center, hard)
    # before other hooks, which put in prompts
    encoder.register_forward_pre_hook(_route, with_kwargs=True, prepend=True)
    for layer in encoder.encoder.layer:
        # what a layer runs first, within what is computed again for its gradients
        layer.attention.register_forward_pre_hook(partial(_receive, layer), with_kwargs=True)

    name = next(name for name, each in model.named_buffers() if each is encoder.router.center)
    model.delta.kept.append(name)
    return encoder.router


def first_pass(encoder: PreTrainedModel, **inputs: Any) -> Tensor:
    """Features of inputs, (N, H): the mean of the encoder's last hidden states over the tokens that
    are attended to, without gradients, dropout, prompts and experts. `inputs`: RobertaModel's, of
    which pseudo-tokens of a prompt are passed over.

    (Wang et al. 2022 take the state of one class token. RoBERTa's was trained for nothing.)"""
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is not None:
        pseudo = ids >= encoder.config.vocab_size
        inputs["input_ids"] = ids.masked_fill(pseudo, encoder.config.pad_token_id)
        mask = (torch.ones_like(ids) if mask is None else mask) * ~pseudo
    elif mask is None:
        mask = torch.ones(inputs["inputs_embeds"].shape[:2], device=encoder.device)

    inputs = {name: inputs[name] for name in INPUTS if inputs.get(name) is not None}
    with torch.no_grad(), _evaluating(encoder):
        # `forward` alone: the encoder's hooks put in prompts, and ask the router
        hidden = encoder.forward(**{**inputs, "attention_mask": mask}).last_hidden_state

    counted = mask[..., None].to(hidden.dtype)
    return (hidden * counted).sum(1) / counted.sum(1).clamp(min=1)


def features_of_random_tokens(encoder: PreTrainedModel) -> Tensor:
    """Features of some inputs of random tokens, drawn from torch's global generator."""
    number, length = _TRIED
    config = encoder.config
    shape = (number, min(length, longest_input(encoder)))
    ids = torch.randint(len(SPECIAL_TOKENS), config.vocab_size - 1, shape)
    ids[:, 0], ids[:, -1] = config.bos_token_id, config.eos_token_id
    return first_pass(encoder, input_ids=ids.to(encoder.device))


@contextmanager
def _evaluating(encoder: PreTrainedModel) -> Iterator[None]:
    training = [module for module in encoder.modules() if module.training]
    for module in training:
        module.training = False

    try:
        yield
    finally:
        for module in training:
            module.training = True


def _route(
    encoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[()], dict[str, Any]]:
    """The encoder's inputs, with the shares that its experts have in each of them."""
    inputs = {**dict(zip(INPUTS, args, strict=False)), **kwargs}
    router = encoder.router
    router.present.shares = None
    router.present.shares = router(first_pass(encoder, **inputs))
    return (), {**inputs, _SHARES: router.present.shares}


def _receive(
    layer: nn.Module, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Give the experts within a layer their shares; none in a first pass. They come as an argument,
    so that a layer that is computed again for its gradients has the same ones."""
    shares = kwargs.pop(_SHARES, None)
    for module in layer.modules():
        if isinstance(module, LowRankExperts):
            module.present.shares = shares

    return args, kwargs


# ------------------------------------------------------------------------------------------ experts


class PromptExperts(nn.Module):
    """Prompts of one length; an input has their mean in its shares. Parameters: experts x tokens x
    hidden."""

    def __init__(self, tables: Sequence[Tensor], router: Router):
        """`tables`: what they begin as, tokens x hidden each."""
        super().__init__()
        self.tables = nn.Parameter(torch.stack(list(tables)))
        self._router = (router,)  # in a tuple it is no submodule

    def forward(self) -> Tensor:
        """Embeddings of each input's prompt, N x tokens x hidden; without an input their mean,
        tokens x hidden."""
        (router,) = self._router
        if router.present.shares is None:
            return self.tables.mean(0)
        return torch.einsum("ne,eth->nth", router.present.shares, self.tables.float())


class PrefixExperts(nn.Module):
    """Prefixes of one length; an input has their mean in its shares."""

    def __init__(self, experts: Sequence[KeysAndValues], router: Router):
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.tokens = experts[0].tokens
        self._router = (router,)

    def forward(self) -> Tensor:
        """layers x (keys, values) x N x heads x tokens x (hidden / heads)."""
        (router,) = self._router
        every = torch.stack([expert() for expert in self.experts])
        return torch.einsum("ne,elkhtd->lknhtd", router.present.shares, every.float())


class LowRankExperts(nn.Module):
    """A linear map beside which low-rank updates stand: W x + sum over experts of share x scale x
    B A x, as one update whose ranks are gated. Parameters: the ranks' sum x (inputs + outputs)."""

    gates: Tensor
    """experts x ranks: an expert's scale at its ranks."""

    def __init__(
        self, base_layer: Any, ranks: Sequence[int], scales: Sequence[float], dropout: float
    ):
        """`base_layer`: a linear map, or peft's layer in the place of one. `ranks`, `scales`: of
        each expert. A is random and B is 0, as in LoRA."""
        super().__init__()
        self.base_layer = base_layer
        device = base_layer.weight.device
        total = sum(ranks)
        self.down = nn.Parameter(torch.empty(total, base_layer.in_features, device=device))
        self.up = nn.Parameter(torch.zeros(base_layer.out_features, total, device=device))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)  # as peft's
        self.dropout = nn.Dropout(dropout)
        self.present = Present()

        gates = torch.zeros(len(ranks), total)
        ends = itertools.accumulate(ranks)
        for expert, (rank, end, scale) in enumerate(zip(ranks, ends, scales, strict=True)):
            gates[expert, end - rank : end] = scale

        self.register_buffer("gates", gates.to(device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: N x tokens x inputs; returns N x tokens x outputs. Without shares, the map alone."""
        outputs: Tensor = self.base_layer(x)
        shares = self.present.shares
        if shares is None:
            return outputs

        own = self.down.dtype  # the base may have another
        gates = shares.to(own) @ self.gates.to(own)  # N x ranks
        low = functional.linear(self.dropout(x.to(own)), self.down) * gates[:, None]
        return outputs + functional.linear(low, self.up).to(outputs.dtype)
