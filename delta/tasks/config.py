"""The config of a task (`delta.task`): where its examples are, and what they hold."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from robustly.config import InputPath, Section
from robustly.delta.tasks import template
from robustly.pretrain.config import Positive

SHORTEST = 8
"""Tokens of the shortest `max_length`: a pair's four special tokens, and something of each text."""
HUB = re.compile(r"hub:(?P<name>.+?)(:(?P<subset>[^:/]+))?/(?P<split>[^:/]+)")


class _TaskFiles(Section):
    """Its files: of any kind that a corpus has but .txt, such as .jsonl, .csv or .tsv (with a line
    of column names) or .parquet; or a split of a dataset, `hub:NAME/SPLIT` or
    `hub:NAME:SUBSET/SPLIT`, whose name is a folder's or one on the Hugging Face Hub. Relative paths
    are looked up beside the config, then in the working directory."""

    train: InputPath
    """What is trained on."""
    dev: InputPath | None = None
    """What the best epoch is chosen by; inputs that stand in here are never trained on."""
    test: InputPath
    """What is scored; inputs that stand in here are never trained on, and are taken out of
    `dev`."""
    examples: Positive | None = None
    """Training examples in all, drawn anew by each seed, as many of each label where there are
    labels; null: all of them."""
    max_length: Annotated[int, Field(ge=SHORTEST)] = 512
    """Tokens of an input, special ones included; what is longer is cut at its end, of a pair the
    longer text first, and so is what the base has no position for."""

    @field_validator("train", "dev", "test")
    @classmethod
    def _names_a_split(cls, value: InputPath | None) -> InputPath | None:
        if value and value.startswith("hub:") and not HUB.fullmatch(value):
            raise ValueError(
                "expected hub:NAME/SPLIT or hub:NAME:SUBSET/SPLIT, such as"
                " hub:nyu-mll/glue:sst2/train"
            )
        return value


class _TextTask(_TaskFiles):
    text: str = "text"
    """Key, or column, of the text."""
    text_pair: str | None = None
    """Key of the second text of a pair."""


class ClassificationTask(_TextTask):
    """One of several labels for a text or a pair of texts."""

    kind: Literal["classification"]
    label: str = "label"
    """Key of the label, a string or an integer."""


class RegressionTask(_TextTask):
    """A number for a text or a pair of texts. It is learnt as it is: bring it to a range of about
    10."""

    kind: Literal["regression"]
    label: str = "label"
    """Key of the number."""


class TokensTask(_TaskFiles):
    """A tag for each word: entities in BIO, `B-` at an entity's first word, `I-` within, `O`
    outside."""

    kind: Literal["tokens"]
    words: str = "words"
    """Key of the list of words."""
    tags: str = "tags"
    """Key of the list of their tags."""


class MultipleChoiceTask(_TextTask):
    """One of an example's own choices. With a pair of texts, the choice follows the second."""

    kind: Literal["multiple_choice"]
    choices: str = "choices"
    """Key of the list of choices."""
    answer: str = "answer"
    """Key of the right one: its place, from 0, or its text."""


class ClozeTask(_TextTask):
    """A classification in which the language-modeling head fills a gap with the word of a label."""

    kind: Literal["cloze"]
    label: str = "label"
    """Key of the label, a string or an integer."""
    template: str
    """A text with `{text}`, `<mask>` for the gap, `{text_pair}` where there is one, and `{prompt}`
    anywhere for a pseudo-token of `p_tuning`, `{prompt:3}` for three. It is never cut; the texts
    are."""
    words: Annotated[dict[str, str], Field(min_length=2)]
    """Label -> the word that stands for it, one token of the vocabulary with the space before
    it."""

    @field_validator("template")
    @classmethod
    def _can_be_filled(cls, value: str) -> str:
        template.parse(value)
        return value

    @field_validator("words", mode="before")
    @classmethod
    def _integers_are_labels(cls, value: Any) -> Any:
        return (
            {str(k) if type(k) is int else k: v for k, v in value.items()}
            if isinstance(value, dict)
            else value
        )

    @field_validator("words")
    @classmethod
    def _one_word_each(cls, value: dict[str, str]) -> dict[str, str]:
        words = {label: word.strip() for label, word in value.items()}
        if blank := [label for label, word in words.items() if not word]:
            raise ValueError(f"the word of {blank[0]!r} is empty")
        if len(set(words.values())) < len(words):
            raise ValueError("expected another word for each label")
        return words

    @model_validator(mode="after")
    def _shows_the_pair(self) -> Self:
        shown = any(part.kind == "text_pair" for part in template.parse(self.template))
        if shown != (self.text_pair is not None):
            found = (
                "no {text_pair}, but text_pair is set"
                if not shown
                else "{text_pair}, but text_pair is not set"
            )
            raise ValueError(f"the template has {found}; expected both or neither")

        return self


Task = Annotated[
    ClassificationTask | RegressionTask | TokensTask | MultipleChoiceTask | ClozeTask,
    Field(discriminator="kind"),
]
