"""What every delta method states: its keys in a config, how it attaches, and what is known of it.

A config is read without torch, so files of methods import torch, peft and layers where they use
them."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from robustly.config import Section

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner
    from torch import nn
    from transformers import PreTrainedModel, RobertaConfig

Rate = Annotated[float, Field(gt=0)]
WIDTH = 768
"""Hidden units of RoBERTa-base, for which default learning rates are stated."""
HIGHEST_RATE = 0.1


class Method(Section):
    """A delta method. A subclass adds `name: Literal["..."]` and its sizes, each with a default
    that works."""

    if TYPE_CHECKING:
        name: str  # each method's own; stored after `lr`, where subclasses declare it

    lr: Rate | None = None
    """Peak learning rate of its parameters; default: `optim.peak_lr`."""

    default_lr: ClassVar[float] = 1e-3
    """Peak learning rate on RoBERTa-base; without a source: ours, a place to begin."""
    why_not_merged: ClassVar[str | None] = None
    """Why no weight of a RoBERTa can do what it does; None where it can be merged into the base."""
    by_row: ClassVar[bool] = False
    """Whether rows of several deltas go through one run of the encoder, each with its own of this
    (`robustly.delta.layers.by_row`); otherwise a delta with it has runs to itself."""
    peft_note: ClassVar[str] = ""
    """What to do differently where plain peft loads it, for the card."""
    conformance_tested: ClassVar[bool] = True
    """Whether the conformance test covers it by its name alone."""

    @abstractmethod
    def attach(self, model: "PreTrainedModel") -> None:
        """Add its modules to a model in place and make their parameters trainable.

        Its start is drawn from torch's global generator. What training and saving must know is
        noted on `model.delta` (`robustly.delta.attachment.Attachment`). Raises UserError if it does
        not fit the model."""

    def scaled_lr(self, width: int) -> float:
        """`default_lr` for a base of so many hidden units."""
        return scaled_to_width(self.default_lr, width)

    def grown(self, share: float) -> "Method | None":
        """The method with up to so many times more of its own parameters, which at first change
        nothing when the present ones are carried over; None where it has no such size."""
        return None

    def peft_config(self, config: "RobertaConfig") -> "PeftConfig | None":
        """What peft loads its stored form by; None where peft has no such form."""
        return None

    def recipe_by_content(self) -> dict[str, Any]:
        """Its recipe, in which files count by what they hold and not by where they lie."""
        return self.recipe()


@dataclass(frozen=True)
class Network:
    """A network that training alone needs: what it makes is stored in its place."""

    parent: "nn.Module"
    name: str
    """Of the network, within its parent."""
    table: "Callable[[], nn.Module]"
    """Makes the module that takes its place: a table of what it makes now. Draws no random
    number."""


class PeftLayers(Method):
    """A method by peft, whose layers take the place of linear maps of the encoder."""

    def attach(self, model: "PreTrainedModel") -> None:
        self.inject(model)

    def inject(self, model: "PreTrainedModel") -> "BaseTuner":
        """As `attach`; returns peft's object for the layers.

        A pooler, which is a head's, is left out. peft leaves a record of its methods on the
        encoder. It is taken away: for its sake peft warns of the next method, or refuses it
        (AdaLoRA)."""
        from peft import PEFT_TYPE_TO_TUNER_MAPPING

        encoder, config = model.base_model, self.peft_config(model.config)
        if encoder.pooler is not None:
            config.exclude_modules = r"pooler\..*"

        tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
        injected = tuner(encoder, config, adapter_name=self.name)
        del encoder.peft_config
        return injected

    @abstractmethod
    def peft_config(self, config: "RobertaConfig") -> "PeftConfig":
        """What peft makes the layers by, and loads their stored form by."""


def scaled_to_width(rate: float, width: int) -> float:
    """A learning rate for RoBERTa-base, on a base of so many hidden units: a narrow base wants a
    higher one, by about as much as it is narrower (docs/log.md: 3e-3 for LoRA at 128)."""
    return min(HIGHEST_RATE, float(f"{rate * WIDTH / width:.2g}"))


def listed(value: Any) -> Any:
    """Methods in a short form as a list of sections: a name stands for a method with its defaults,
    one method for a list of it."""
    several = value if isinstance(value, list | tuple) else [value]
    return [{"name": each} if isinstance(each, str) else each for each in several]
