"""Attach methods to a RoBERTa model: freeze the base, add their modules, note what is trained and
stored."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import RobertaModel, RobertaPreTrainedModel

from robustly import UserError
from robustly.delta import methods as registry
from robustly.delta.checkpoint import Stateful
from robustly.delta.methods.method import Method
from robustly.rng import Purpose, seed64


@dataclass
class Attachment:
    """What `attach` notes on a model, as `model.delta`."""

    methods: list[Method]
    fingerprint: str
    """Of the encoder that it was attached to."""
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
    finishers: list[Callable[[], None]] = field(default_factory=list)
    """Called once, after training: each puts what its method stores in the place of what was
    trained."""
    finished: bool = False
    """Whether the methods have the form in which they are stored."""
    method_of: dict[str, str] = field(default_factory=dict)
    """The method that trains a parameter, by the parameter's name; heads are not in it."""
    positions: int = 0
    """Positions that prompts take from the text."""


def attach(
    model: RobertaPreTrainedModel,
    methods: Sequence[Any],
    seed: int = 0,
    base_fingerprint: str | None = None,
    finished: bool = False,
) -> RobertaPreTrainedModel:
    """Attach methods to a RoBERTa model of transformers with any head, in place; returns it.

    `methods`: as in a config, such as `[{"name": "lora", "rank": 8}]`. What they add is trained, or
    what they name of the base (bitfit, full), and the head; everything else is frozen. Each
    method's start is a function of `seed` alone, whatever other methods there are. The order of the
    list has no meaning. Weights of the base that are trained are copied first: models that share a
    base in memory do not see it. `base_fingerprint`: the encoder's, where it is known. `finished`:
    in the form that is stored, into which tensors are then loaded (see `finish`).

    Raises UserError if the model is no RoBERTa, has a delta already, or if a method does not fit
    it."""
    given = registry.parse(methods)
    _check(model, given)
    heads = {id(parameter) for name, parameter in model.named_parameters() if is_head(name)}
    of_base = {id(parameter) for parameter in model.parameters()} - heads
    model.delta = Attachment(
        given, base_fingerprint or fingerprint(model.roberta), frozenset(), finished=finished
    )
    model.requires_grad_(False)
    method_of = _attach_each(model, given, seed)

    for parameter in model.parameters():
        # peft freezes what is not its own
        parameter.requires_grad_(id(parameter) in method_of or id(parameter) in heads)
        if parameter.requires_grad and id(parameter) in of_base:
            parameter.data = parameter.data.clone()

    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    model.delta.head = frozenset(name_of[number] for number in heads)
    model.delta.method_of = {
        name_of[number]: method for number, method in method_of.items() if number not in heads
    }
    return model


def _check(model: RobertaPreTrainedModel, methods: Sequence[Method]) -> None:
    names = [method.name for method in methods]
    if len(set(names)) != len(names):
        raise UserError(f"methods: {', '.join(names)}: expected each of them once")
    if not isinstance(getattr(model, "roberta", None), RobertaModel):
        raise UserError(
            f"expected a RoBERTa model of transformers with a head, found {type(model).__name__}"
        )
    if hasattr(model, "delta"):
        raise UserError(
            "the model has a delta already: give all methods in one list, or load the base again"
        )


def _attach_each(
    model: RobertaPreTrainedModel, methods: Sequence[Method], seed: int
) -> dict[int, str]:
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


def finish(model: RobertaPreTrainedModel) -> None:
    """After training: replace networks that training alone needs by their output. The model
    computes the same as before, to the bit, and is trained no more."""
    for finisher in model.delta.finishers:
        finisher()
    model.delta.finishers.clear()
    model.delta.finished = True


def is_head(name: str) -> bool:
    """Whether a parameter belongs to a task's head: not to the encoder, nor to its
    language-modeling head."""
    return not name.startswith(("roberta.", "lm_head.")) or name.startswith("roberta.pooler.")


def fingerprint(encoder: RobertaModel) -> str:
    """sha256 over the encoder's tensors by name: name, type, shape, bytes. Independent of how files
    split them, and of heads and a pooler."""
    digest = hashlib.sha256()
    for name, parameter in sorted(encoder.named_parameters()):
        if not name.startswith("pooler."):
            tensor = parameter.detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)

    return digest.hexdigest()


def trained(model: RobertaPreTrainedModel) -> dict[str, Tensor]:
    """The parameters that are trained, by name."""
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def stored(model: RobertaPreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a delta's file, by name: what is trained, and what methods keep with it."""
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {**trained(model), **{name: everything[name] for name in model.delta.kept}}


def parameters(model: RobertaPreTrainedModel) -> dict[str, int]:
    """How many parameters are trained: `delta`, and `head`, which is fresh for every task."""
    counts = {"delta": 0, "head": 0}
    for name, parameter in trained(model).items():
        counts["head" if name in model.delta.head else "delta"] += parameter.numel()
    return counts
