"""Words that a prompt starts as: a text by its ids, and the examples of a task as texts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from robustly.delta.tasks.examples import Example
from robustly.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Wording:
    """What a method asks for where its start is words."""

    ids: Callable[[str], list[int]]
    """Of a text, without special tokens."""
    examples: Callable[[], Sequence[Example]] | None = None
    """Those of the training; None where there is no task."""


def by_tokenizer(
    tokenizer: "Tokenizer | PreTrainedTokenizerBase",
    examples: Callable[[], Sequence[Example]] | None = None,
) -> Wording:
    """Texts by a tokenizer of ours or of transformers."""
    if isinstance(tokenizer, Tokenizer):
        return Wording(lambda text: tokenizer.encode_documents([text])[0].tolist(), examples)
    return Wording(lambda text: tokenizer.encode(text, add_special_tokens=False), examples)


def verbalized(examples: Sequence[Example]) -> Iterator[str]:
    """Examples with their answers as lines, `text: label`: one of each label, then another of each,
    in their order."""
    by_label: dict[Any, list[Example]] = {}
    for example in examples:
        by_label.setdefault(example.label, []).append(example)

    for one_of_each in zip_longest(*by_label.values()):
        yield from (_line(example) for example in one_of_each if example)


def _line(example: Example) -> str:
    return f"{' '.join(example.texts)}: {_answer(example)}\n"


def _answer(example: Example) -> str:
    if example.choices:
        return example.choices[example.label]
    if isinstance(example.label, tuple):  # labels, tags, or texts of the context with their places
        return " ".join(one if isinstance(one, str) else one[0] for one in example.label)
    return str(example.label)
