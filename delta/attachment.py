"""Attach methods to a RoBERTa model: freeze the base, add their modules, note what is trained and
stored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import (
    CamembertModel,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaModel,
    XLMRobertaModel,
)

from robustly import UserError
from robustly.delta import methods as registry
from robustly.delta.fingerprint import fingerprint, rounded
from robustly.delta.methods.method import Method, Network
from robustly.delta.tuning.checkpoint import Stateful
from robustly.delta.wording import Wording
from robustly.rng import Purpose, seed64

ENCODERS = (RobertaModel, XLMRobertaModel, CamembertModel)
"""transformers' models of one architecture and with the same names. That of a model under a head is
its `base_model`; an encoder without one is its own."""


@dataclass
class Attachment:
    """What `attach` notes on a model, as `model.delta`."""

    methods: list[Method]
    fingerprint: str
    """Of the encoder that it was attached to; empty where that has no weights (torch's meta
    device)."""
    rounded: dict[str, str]
    """Its fingerprints after a cast to half precision (`robustly.delta.fingerprint.rounded`), where
    they are known."""
    head: frozenset[str]
    """Names of the parameters of the task's head, all of which are trained."""
    kept: list[str] = field(default_factory=list)
    """Names of tensors that are stored though they are not trained."""
    penalties: list[Callable[[], Tensor]] = field(default_factory=list)
    """Added to the loss of every update."""
    after_update: list[Callable[[int, int], None]] = field(default_factory=list)
    """Called after an update, while its gradients are there, with its number, from 1, and that of
    all updates."""
    stateful: list[Stateful] = field(default_factory=list)
    """What a method remembers from update to update, besides its tensors."""
    networks: list[Network] = field(default_factory=list)
    """Replaced after training (`finish`)."""
    finished: bool = False
    """Whether the methods have the form in which they are stored."""
    wording: Wording | None = None
    """For methods that start as words."""
    method_of: dict[str, str] = field(default_factory=dict)
    """The method that trains a parameter, by the parameter's name; heads are not in it."""
    positions: int = 0
    """Positions that prompts take from the text."""

    @property
    def is_vacant(self) -> bool:
        """Whether no start matters: stored tensors will take its place, or there are none."""
        return self.finished or not self.fingerprint


def attach(
    model: PreTrainedModel,
    methods: object,
    seed: int = 0,
    base_fingerprint: str | None = None,
    finished: bool = False,
    wording: Wording | None = None,
) -> PreTrainedModel:
    """Attach methods to a RoBERTa, XLM-RoBERTa or CamemBERT model of transformers, with any head or
    none, in place; returns it.

    `methods`: as in a config, such as `[{"name": "lora", "rank": 8}]` or "lora". What they add is
    trained, or what they name of the base (bitfit, full), and the head; everything else is frozen.
    Each method's start is a function of `seed` alone, whatever other methods there are. The order
    of the list has no meaning. Weights of the base that are trained are copied first: models that
    share a base in memory do not see it. `base_fingerprint`: the encoder's, where it is known.
    `finished`: in the form that is stored, into which tensors are then loaded (see `finish`).
    `wording`: for a prompt that starts as words.

    Raises UserError if the model is none of these, has a delta already, or if a method does not fit
    it."""
    given = registry.parse(methods)
    _check(model)
    head = head_names(model)
    heads = {id(parameter) for name, parameter in model.named_parameters() if name in head}
    of_base = {id(parameter) for parameter in model.parameters()} - heads
    halves: dict[str, str] = {}
    if base_fingerprint is None:
        base_fingerprint, halves = fingerprint(model.base_model), rounded(model.base_model)

    model.delta = Attachment(
        given, base_fingerprint, halves, head, finished=finished, wording=wording
    )
    model.requires_grad_(False)
    method_of = _attach_each(model, given, seed)

    for parameter in model.parameters():
        # peft freezes what is not its own
        parameter.requires_grad_(id(parameter) in method_of or id(parameter) in heads)
        if parameter.requires_grad and id(parameter) in of_base:
            parameter.data = parameter.data.clone()

    model.delta.method_of = {
        name: method_of[id(parameter)]
        for name, parameter in model.named_parameters()
        if id(parameter) in method_of and name not in head
    }
    return model


def count(config: PreTrainedConfig, methods: object, finished: bool = False) -> int:
    """How many parameters methods train in an encoder of this shape, without a head; `finished`:
    how many they store.

    They are attached to a model without memory (torch's meta device): what two of them train counts
    once, and nothing large is made. `methods`: as for `attach`. Raises UserError if one does not
    fit such an encoder."""
    with torch.device("meta"):
        model = RobertaModel(config, add_pooling_layer=False)
        attach(model, methods, base_fingerprint="", finished=finished)

    return parameters(model)["delta"]


def _check(model: PreTrainedModel) -> None:
    if not isinstance(getattr(model, "base_model", None), ENCODERS):
        raise UserError(
            "expected a RoBERTa, XLM-RoBERTa or CamemBERT model of transformers, found"
            f" {type(model).__name__}"
        )
    if hasattr(model, "delta"):
        raise UserError(
            "the model has a delta already: give all methods in one list, or load the base again"
        )


def _attach_each(model: PreTrainedModel, methods: Sequence[Method], seed: int) -> dict[int, str]:
    """Attach methods in the registry's order. Returns which one trains a parameter, by the
    parameter's id."""
    method_of: dict[int, str] = {}
    places = {kind: place for place, kind in enumerate(registry.METHODS, start=1)}
    for method in sorted(methods, key=lambda method: places[type(method)]):
        with torch.random.fork_rng(devices=[]):
            # Place 0 is the head's.
            torch.manual_seed(seed64(seed, Purpose.INIT, 0, places[type(method)]))
            method.attach(model)

        for parameter in model.parameters():
            if parameter.requires_grad:
                method_of.setdefault(id(parameter), method.name)

    return method_of


def finish(model: PreTrainedModel) -> None:
    """After training: replace networks that training alone needs by what they make. The model
    computes the same as before, to the bit, and these networks are trained no more."""
    for network in model.delta.networks:
        setattr(network.parent, network.name, network.table())

    model.delta.networks.clear()
    model.delta.finished = True


def head_names(model: PreTrainedModel) -> frozenset[str]:
    """Names of the parameters of a task's head: those beside the encoder and its language-modeling
    head, and those of a pooler."""
    encoder = {
        id(parameter)
        for name, parameter in model.base_model.named_parameters()
        if not name.startswith("pooler.")
    }
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if id(parameter) not in encoder and not name.startswith("lm_head.")
    )


def trained(model: PreTrainedModel) -> dict[str, Tensor]:
    """The parameters that are trained, by name."""
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def stored(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors that a delta consists of, by name, in the form that the model has now: what is
    trained, and what methods keep with it."""
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {**trained(model), **{name: everything[name] for name in model.delta.kept}}


def finished(model: PreTrainedModel) -> dict[str, Tensor]:
    """The same in the form in which a delta's file holds them, which is that after `finish`. The
    model stays as it is, and its training can go on."""
    tensors = {name: tensor.detach() for name, tensor in stored(model).items()}
    path_of = {module: path for path, module in model.named_modules()}
    for network in model.delta.networks:
        path = f"{path_of[network.parent]}.{network.name}."
        tensors = {name: x for name, x in tensors.items() if not name.startswith(path)}
        table = network.table().named_parameters(prefix=path[:-1])
        tensors |= {name: parameter.detach() for name, parameter in table}

    return tensors


def parameters(model: PreTrainedModel) -> dict[str, int]:
    """How many parameters are trained: `delta`, and `head`, which is fresh for every task."""
    return _counted(model, trained(model))


def finished_parameters(model: PreTrainedModel) -> dict[str, int]:
    """How many of them are stored."""
    kept = set(model.delta.kept)
    return _counted(model, {name: x for name, x in finished(model).items() if name not in kept})


def _counted(model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, int]:
    counts = {"delta": 0, "head": 0}
    for name, tensor in tensors.items():
        counts["head" if name in model.delta.head else "delta"] += tensor.numel()

    return counts
