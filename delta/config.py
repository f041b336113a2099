"""The page of a delta: the task, the method, and how it is trained."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pretrain.config import Optim, Positive, Schedule
from robustly import config
from robustly.config import Page, Section

SCHEMA_VERSION = 1


class Task(Section):
    """A text classification in two files of JSON lines."""

    train: str
    """JSON lines to train on. A relative path is looked up beside the page, then in the working directory."""
    test: str
    """JSON lines to score on. A text that stands in here is never trained on."""
    text: str
    """Key of the text."""
    label: str
    """Key of its label, a string or an integer."""
    examples: Positive | None
    """Training examples in all, in equal parts of each label, drawn anew by each seed; null: every line."""
    max_length: Annotated[int, Field(ge=3)]
    """Tokens of an input, <s> and </s> included; what is longer is cut, and so is what the base has no position for."""


class Lora(Section):
    """Low-rank updates of linear maps: W x + (alpha / rank) B A x (Hu et al. 2021, section 4.1)."""

    name: Literal["lora"]
    rank: Positive
    alpha: Annotated[float, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Dropout on x, in the update alone."""
    targets: Annotated[list[str], Field(min_length=1)]
    """Names of linear modules of the encoder: the last part, or the last parts joined by dots."""

    @field_validator("targets")
    @classmethod
    def _sorted(cls, value: list[str]) -> list[str]:
        return sorted(set(value))  # peft keeps a set: the order has no meaning


class DeltaPage(Page):
    """A whole page."""

    schema_version: Annotated[int, Field(alias="schema", ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]
    """Version of the page format; this release reads version 1."""
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    """The draw of examples, the head, the delta's start, order and dropout are functions of it."""
    seeds: Positive
    """How many seeds are run, from `seed` upwards. Scores are over all of them; the first one's delta is saved."""
    task: Task
    method: Lora
    optim: Optim
    """AdamW over the delta and the head; `batch_size` counts examples."""
    schedule: Schedule

    def folder(self, stage: str) -> Path:
        """As of any page; the delta's own folder is `<root>/deltas/<name>` unless `paths.delta` names another."""
        if stage == "delta" and self.paths.delta is None:
            return self.root / "deltas" / self.name
        return super().folder(stage)

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)


def load_page(page: Path | str, overrides: list[str] | None = None) -> DeltaPage:
    """Read and check a page. Raises UserError with every fault."""
    return config.load(page, overrides or [], DeltaPage)
