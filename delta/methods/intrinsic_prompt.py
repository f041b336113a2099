"""Intrinsic prompt tuning: a prompt out of few numbers, by a decoder that several tasks share (Qin
et al. 2021).

The decoder is a folder of its own, which `robustly.delta.subspace` makes; here it is read, and its
input is trained."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import RobertaPreTrainedModel

from robustly import UserError, manifest
from robustly.delta.methods import soft_tokens
from robustly.delta.specs import IntrinsicPrompt

DECODER = "decoder.safetensors"
RECORD = "subspace.json"
COMMAND = "robustly delta subspace"


@dataclass(frozen=True)
class Found:
    """A task whose prompt is given back."""

    name: str
    delta: str
    """Hash of its delta."""
    metric: str
    own: float
    """The score on the test file with its own prompt."""
    decoded: float
    """With the one that the decoder makes."""


@dataclass(frozen=True)
class Record:
    """subspace.json: what the decoder makes, for which base, and what it was found on."""

    dimension: int
    """Numbers that a prompt is made of."""
    tokens: int
    hidden: int
    width: int
    """Of the decoder's inner layer."""
    base: str
    """Fingerprint of the encoder that the prompts were trained on."""
    tasks: list[Found]
    """What it was found on."""


def decode(decoder: Mapping[str, Tensor], code: Tensor) -> Tensor:
    """linear, tanh, linear. `code`: ... x dimension; returns ... x (tokens * hidden).

    `decoder`: `inner_weight` (width x dimension), `outer_weight` (tokens * hidden x width),
    `inner_bias`, `outer_bias`."""
    inner = torch.tanh(nn.functional.linear(code, decoder["inner_weight"], decoder["inner_bias"]))
    return nn.functional.linear(inner, decoder["outer_weight"], decoder["outer_bias"])


class Code(nn.Module):
    """The numbers that are trained, and the frozen decoder, which is no parameter and not stored
    with them."""

    def __init__(self, decoder: Mapping[str, Tensor], record: Record):
        super().__init__()
        self.code = nn.Parameter(
            torch.empty(record.dimension).normal_(std=0.02)
        )  # as in the authors' code
        self.shape = (record.tokens, record.hidden)
        for name, tensor in decoder.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self) -> Tensor:
        """Embeddings, tokens x hidden."""
        return decode(dict(self.named_buffers()), self.code).view(self.shape)


def attach(model: RobertaPreTrainedModel, spec: IntrinsicPrompt) -> None:
    """A prompt after <s> out of the numbers that the folder's decoder takes; these alone are its
    parameters.

    The method that the model records has the decoder's sha256 (`spec.decoder`), so that a delta
    which is loaded refuses another decoder. Raises UserError if the folder is missing or damaged,
    or if it is of another base."""
    folder = Path(spec.subspace)
    record, decoder, found = read(folder)
    if record.base != model.delta.fingerprint:
        raise UserError(
            f"{folder}: found on prompts of a base with weights {record.base[:16]}, this one's are"
            f" {model.delta.fingerprint[:16]}: on other weights they would mean nothing; make one"
            f" for this base with `{COMMAND}`"
        )
    if spec.decoder and spec.decoder != found:
        raise UserError(
            f"{folder}: holds the decoder {found[:16]}, the delta was trained with"
            f" {spec.decoder[:16]}: through another one its numbers would mean nothing; name the"
            " folder of that one"
        )

    known = spec.model_copy(update={"decoder": found})
    model.delta.methods = [known if method is spec else method for method in model.delta.methods]
    soft_tokens.attach(model, Code(decoder, record), record.tokens)


def read(folder: Path) -> tuple[Record, dict[str, Tensor], str]:
    """What a subspace's folder holds: its record, the decoder's tensors, and the sha256 of their
    file.

    Raises UserError if it is missing, unfinished or damaged.
    """
    finished = manifest.require(folder, "subspace")
    for name in finished.outputs:
        manifest.verify(folder, finished, name)

    raw = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    record = Record(**{**raw, "tasks": [Found(**task) for task in raw["tasks"]]})
    return record, load_file(folder / DECODER), finished.outputs[DECODER]["sha256"]
