"""Intrinsic prompt tuning: a prompt out of few numbers, by a decoder that several tasks share (Qin
et al. 2021).

The decoder is a folder of its own, which `robustly.delta.subspace` makes; here it is read, and its
input is trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from robustly import UserError, manifest
from robustly.config import InputPath, locate
from robustly.delta.methods.method import Method
from robustly.delta.methods.prompt import WHY_NOT_MERGED
from robustly.strict_json import read_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

DECODER = "decoder.safetensors"
RECORD = "subspace.json"
COMMAND = "robustly delta subspace"


class IntrinsicPrompt(Method):
    """A prompt out of few numbers z, by a decoder found on several tasks and then frozen (Qin et
    al. 2021)."""

    name: Literal["intrinsic_prompt"]
    subspace: InputPath
    """Folder of the decoder, which `robustly delta subspace` makes; it says how many tokens and
    numbers. A delta that is saved has it relative to its own folder."""
    decoder: str | None = None
    """sha256 of its decoder. A delta that is saved has it, and attaches to no other; a config may
    leave it out."""

    why_not_merged: ClassVar[str | None] = WHY_NOT_MERGED
    by_row: ClassVar[bool] = True
    conformance_tested: ClassVar[bool] = False  # it needs a subspace that fits the base

    def attach(self, model: "PreTrainedModel") -> None:
        """A prompt after <s> out of the numbers that the folder's decoder takes; these alone are
        its parameters.

        The method that the model records has the decoder's sha256, so that a delta which is loaded
        refuses another decoder. Raises UserError if the folder is missing or damaged, or if it is
        of another base."""
        from robustly.delta.layers import soft_tokens

        folder = self._folder()
        subspace, decoder, found = read(folder)
        # The base of a stored delta has been compared, maybe in half precision.
        if not model.delta.is_vacant and subspace.base != model.delta.fingerprint:
            raise UserError(
                f"{folder}: found on prompts of a base with weights {subspace.base[:16]}, this"
                f" one's are {model.delta.fingerprint[:16]}: on other weights they would mean"
                f" nothing; make one for this base with `{COMMAND}`"
            )
        if self.decoder and self.decoder != found:
            raise UserError(
                f"{folder}: holds the decoder {found[:16]}, the delta was trained with"
                f" {self.decoder[:16]}: through another one its numbers would mean nothing; name"
                " the folder of that one"
            )

        stated = self.model_copy(update={"decoder": found})
        model.delta.methods = [
            stated if method is self else method for method in model.delta.methods
        ]
        code = soft_tokens.PromptCode(decoder, subspace.dimension, subspace.tokens, subspace.hidden)
        soft_tokens.attach(model, code, subspace.tokens)

    def _folder(self) -> Path:
        advice = f"A delta looks for it beside its own folder: copy it there; `{COMMAND}` makes one"
        return locate("subspace", self.subspace, advice=advice)

    def recipe_by_content(self) -> dict[str, Any]:
        decoder = read(self._folder())[2]
        return {**self.recipe(), "subspace": None, "decoder": decoder}


@dataclass(frozen=True)
class SourceTask:
    """A task whose trained prompt the decoder was found on."""

    name: str
    delta: str
    """Hash of its delta."""
    metric: str
    own: float
    """The score on the test file with its own prompt."""
    decoded: float
    """With the one that the decoder makes."""


@dataclass(frozen=True)
class Subspace:
    """subspace.json: what the decoder makes, for which base, and what it was found on."""

    dimension: int
    """Numbers that a prompt is made of."""
    tokens: int
    hidden: int
    width: int
    """Of the decoder's inner layer."""
    base: str
    """Fingerprint of the encoder that the prompts were trained on."""
    tasks: list[SourceTask]


def read(folder: Path) -> "tuple[Subspace, dict[str, Tensor], str]":
    """What a subspace's folder holds: its record, the decoder's tensors, and the sha256 of their
    file.

    Raises UserError if it is missing, unfinished or damaged.
    """
    from safetensors.torch import load_file

    finished = manifest.require_whole(folder, "subspace")
    subspace = read_json(folder / RECORD, Subspace, "delete the folder and make it anew")
    return subspace, load_file(folder / DECODER), finished.outputs[DECODER]["sha256"]
