"""The config of a task (`delta.task`): where its examples are, and what they hold."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from robustly.config import InputPath, Section
from robustly.delta.tasks import glue, template
from robustly.pretrain.config import Positive

SHORTEST = 8
"""Tokens of the shortest `max_length`: a pair's four special tokens, and something of each text."""
HUB = re.compile(r"hub:(?P<name>.+?)(:(?P<subset>[^:/]+))?/(?P<split>[^:/]+)")


def label_name(value: object) -> str:
    """A label as it stands in a file, as text: 1 and 1.0 are `1`, true is `true`. Raises ValueError
    for what is no string, number or truth value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, str | int):
        return str(value)

    found = "nothing" if value is None else type(value).__name__
    raise ValueError(f"expected a string, a number, true or false, found {found}")


def _by_name(value: Any) -> Any:
    return {label_name(k): v for k, v in value.items()} if isinstance(value, Mapping) else value


Label = Annotated[str, BeforeValidator(label_name)]
FileOrShare = Annotated[
    Annotated[float, Field(gt=0, lt=1), Tag("Share")] | Annotated[InputPath, Tag("File")],
    Discriminator(lambda value: "Share" if isinstance(value, int | float) else "File"),
]
"""A file, or a share of the training file."""
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ClassWeights = Annotated[dict[str, Weight], Field(min_length=1), BeforeValidator(_by_name)]


class _TaskFiles(Section):
    """Its files: of any kind that a corpus has but .txt, such as .jsonl, .csv or .tsv (with a line
    of column names) or .parquet; or a split of a dataset, `hub:NAME/SPLIT` or
    `hub:NAME:SUBSET/SPLIT`, whose name is a folder's or one on the Hugging Face Hub. Relative paths
    are looked up beside the config, then in the working directory."""

    train: InputPath
    """What is trained on."""
    dev: FileOrShare | None = None
    """What the best epoch is chosen by; inputs that stand in here are never trained on. Or a share
    of `train`, such as 0.1: an input belongs to it by its own hash, whatever else the file
    holds, and equal inputs stay together."""
    test: FileOrShare | None = None
    """What is scored; inputs that stand in here are never trained on, and are taken out of
    `dev`. Or a share of `train`, as for `dev`. Default: `dev` is scored, too, by which the epoch
    was chosen."""
    examples: Positive | None = None
    """Training examples in all, drawn anew by each seed; null: all of them."""
    max_length: Annotated[int, Field(ge=SHORTEST)] | None = None
    """Tokens of an input, special ones included. Default: as many as the base has positions for;
    more are refused. Prompts take theirs from it."""

    @field_validator("train", "dev", "test")
    @classmethod
    def _names_a_split(cls, value: InputPath | float | None) -> InputPath | float | None:
        if isinstance(value, InputPath) and value.startswith("hub:") and not HUB.fullmatch(value):
            raise ValueError(
                "expected hub:NAME/SPLIT or hub:NAME:SUBSET/SPLIT, such as"
                " hub:nyu-mll/glue:sst2/train"
            )
        return value

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.dev is None and self.test is None:
            raise ValueError(
                "neither dev nor test: expected a file that is scored, or a share of train, such as"
                " test: 0.2"
            )

        shares = [share for share in (self.dev, self.test) if isinstance(share, float)]
        if sum(shares) >= 1:
            raise ValueError(
                f"dev and test take {sum(shares):g} of train; expected less than all of it"
            )

        return self

    @property
    def files(self) -> dict[str, InputPath]:
        """The files by their keys."""
        values = {part: getattr(self, part) for part in ("train", "dev", "test")}
        return {part: value for part, value in values.items() if isinstance(value, InputPath)}


Long = Literal["cut", "head_tail", "windows"]
Pool = Literal["mean", "max"]


class _WindowedTask(_TaskFiles):
    max_windows: Positive = 16
    """With `long: windows`, the most inputs of an example, or of one of its choices; a text of more
    is shown in so many pieces at equal distances."""


class _TextTask(_WindowedTask):
    text: str = "text"
    """Key, or column, of the text."""
    text_pair: str | None = None
    """Key of the second text of a pair."""
    long: Long = "cut"
    """What becomes of texts of more than `max_length` tokens: `cut` drops their end, of a pair that
    of the longer text first; `head_tail` keeps the first quarter of the room and the rest from the
    end (Sun et al. 2019, section 5.3.1); `windows` reads everything, the longer text in several
    inputs, whose logits are pooled: in training, scoring and answering."""
    pool: Pool = "mean"
    """With `long: windows`, how the logits of an example's windows become one: their mean, or the
    largest of each."""


class WeightedTask(_TaskFiles):
    """How labels count in training; not in scores."""

    class_weights: Literal["balanced"] | ClassWeights | None = None
    """What an example's loss counts, by its label (for tokens, a word's by its tag; for several
    labels, that of having one, beside not having it); a label that is not named counts 1.
    `balanced`: by the inverse of the label's frequency among the training examples, 1 in the mean;
    for several labels as many times as the examples without one are more than those with it."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that the target spreads evenly over all labels (Szegedy et al. 2016, section
    7)."""


class LabelledTask(_TextTask, WeightedTask):
    """One of several labels for a text or a pair of texts."""

    label: str = "label"
    """Key of the label: a string, a number, true or false."""
    draw: Literal["balanced", "proportional"] = "balanced"
    """Of `examples`: as many of each label, or as many as the label's share of `train`."""
    metric: Literal["accuracy", "macro_f1", "micro_f1", "binary_f1", "mcc"] = "accuracy"
    """The main score: it chooses the best epoch, and what a search or `auto` finds."""
    positive: Label | None = None
    """The label whose F1 `binary_f1` is."""

    @model_validator(mode="after")
    def _knows_the_positive(self) -> Self:
        if self.metric == "binary_f1" and self.positive is None:
            raise ValueError("metric: binary_f1: expected the label that it is of in `positive`")
        return self


class ClassificationTask(LabelledTask):
    """One of several labels for a text or a pair of texts."""

    kind: Literal["classification"]
    glue: str | None = None
    """The task of GLUE that its files are of, in any of their forms; `delta.task: glue/NAME` sets
    it."""


class MultiLabelTask(_TextTask, WeightedTask):
    """Any number of labels for a text or a pair of texts."""

    kind: Literal["multi_label"]
    label: str = "label"
    """Key of the list of labels, which may be empty."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """What stands between the labels where they are one string, as in a cell of CSV; a string that
    is a JSON list needs none."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The probability from which on a label is answered."""
    metric: Literal["micro_f1", "macro_f1", "exact_match"] = "micro_f1"
    """The main score; `exact_match` is the share of examples all of whose labels are right."""


class RegressionTask(_TextTask):
    """A number for a text or a pair of texts. It is learnt as it is: bring it to a range of about
    10."""

    kind: Literal["regression"]
    label: str = "label"
    """Key of the number."""
    metric: Literal["pearson", "spearman", "mse"] = "pearson"
    """The main score; of mse the lowest is the best."""
    glue: str | None = None
    """The task of GLUE that its files are of, in any of their forms; `delta.task: glue/NAME` sets
    it."""


class TokensTask(_WindowedTask, WeightedTask):
    """A tag for each word: of entities, in BIO (B- at an entity's first word, I- within, O
    outside), IO, BIOES or BILOU, as `train` has them; or any other tags."""

    kind: Literal["tokens"]
    words: str = "words"
    """Key of the list of words."""
    tags: str = "tags"
    """Key of the list of their tags: strings, or integers."""
    names: Annotated[list[str], Field(min_length=2)] | None = None
    """What the tags 0, 1, ... are called, where files have them as integers."""
    metric: Literal["entity_f1", "accuracy", "macro_f1"] | None = None
    """The main score. Default: entity_f1 where there are entities, else accuracy."""
    long: Literal["cut", "windows"] = "cut"
    """What becomes of texts of more than `max_length` tokens: `cut` drops their end, whose words
    count as missed; `windows` reads everything in several inputs, each word in the one that shows
    most around it."""


class MultipleChoiceTask(_TextTask):
    """One of an example's own choices. With a pair of texts, the choice follows the second."""

    kind: Literal["multiple_choice"]
    choices: str = "choices"
    """Key of the list of choices."""
    answer: str = "answer"
    """Key of the right one: its place, from 0, or its text."""
    metric: Literal["accuracy"] = "accuracy"
    """The main score."""


class ClozeTask(LabelledTask):
    """A classification in which the language-modeling head fills a gap with the word of a label."""

    kind: Literal["cloze"]
    template: str
    """A text with `{text}`, `<mask>` for the gap, `{text_pair}` where there is one, and `{prompt}`
    anywhere for a pseudo-token of `p_tuning`, `{prompt:3}` for three. It is never cut; the texts
    are."""
    words: Annotated[dict[str, str], Field(min_length=2), BeforeValidator(_by_name)]
    """Label -> the word that stands for it, one token of the vocabulary with the space before
    it."""

    @field_validator("template")
    @classmethod
    def _can_be_filled(cls, value: str) -> str:
        template.parse(value)
        return value

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


class SpanTask(_TaskFiles):
    """A question about a text, whose answer is a span of it. Files are as SQuAD has them: its own
    JSON, or a question a row."""

    kind: Literal["span_qa"]
    question: str = "question"
    """Key of the question."""
    context: str = "context"
    """Key of the text that holds the answer."""
    answers: str = "answers"
    """Key of the right answers: `{"text": [...], "answer_start": [...]}`, or a list of `{"text":
    ..., "answer_start": ...}`; the first one is learnt, and the best match counts."""
    no_answer: bool = False
    """Whether there may be none, as in SQuAD 2.0; the answer is then an empty string."""
    stride: Positive = 128
    """Tokens that two windows of a long context share; half of a window at most."""
    longest_answer: Positive = 30
    """Tokens."""
    metric: Literal["f1", "exact_match"] = "f1"
    """The main score: SQuAD's F1 of the answers' words, or the share of answers that are right."""


Task = Annotated[
    Annotated[
        ClassificationTask
        | MultiLabelTask
        | RegressionTask
        | TokensTask
        | MultipleChoiceTask
        | SpanTask
        | ClozeTask,
        Field(discriminator="kind"),
    ],
    BeforeValidator(glue.expanded),
]
