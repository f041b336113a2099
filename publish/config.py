"""Sections `publish` (what the model card says beyond the run's own records) and `report`."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from robustly.config import InputPath, Section
from robustly.tokenizer.special_tokens import MASK_TOKEN


class PublishConfig(Section):
    """Facts that only the author knows, and which checkpoint it is."""

    checkpoint: Literal["last", "best"] = "last"
    """best: the one of the lowest held-out loss among those that were evaluated."""

    average: Annotated[int, Field(ge=2)] | Literal["exponential"] | None = None
    """Publish the mean of the weights of so many checkpoints, of which `checkpoint` is the last
    (Kaddour 2022, https://arxiv.org/abs/2209.14981) and which must be kept
    (`run.keep_checkpoints`); or the exponential average that the run kept (`optim.average`).
    Default: the weights of one checkpoint."""

    accept_unproven: bool = False
    """Publish a model that fails its proof, too: its card and manifest name what is not as it
    should be. Default: it is kept apart, and the command fails."""

    title: str | None = None
    """Name of the model in its card; default: the config's name."""
    language: list[str] = Field(default_factory=list)
    """ISO 639-1 codes of the corpus."""
    license: str | None = None
    """Licence of the weights, as an SPDX identifier."""
    description: str | None = None
    """One paragraph on what the corpus is and what the model is for."""
    examples: list[str] = Field(default_factory=list)
    """Texts with one <mask> each, whose best guesses the card shows; default: sentences of the
    held-out documents."""

    @field_validator("examples")
    @classmethod
    def _one_blank_each(cls, value: list[str]) -> list[str]:
        for text in value:
            if text.count(MASK_TOKEN) != 1:
                raise ValueError(
                    f"expected {MASK_TOKEN} once in each text, found {text.count(MASK_TOKEN)} in"
                    f" {text!r}"
                )

        return value


class ReportConfig(Section):
    """A delta to compare at the end of a run."""

    delta: InputPath | None = None
    """Config of a delta that is tuned on the published model and on an untrained one, to compare;
    default: none. A relative path is looked up beside the config file, then in the working
    directory."""

    @property
    def on(self) -> bool:
        """Whether there is a delta to compare."""
        return self.delta is not None
