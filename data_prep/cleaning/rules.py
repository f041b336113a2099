"""Filter rules that look at one document alone: length, language, quality, contamination.

A rule gives the reason why a text is dropped, or None. The first word of a reason is the key of the
config's section `cleaning` that asks for it, or the name of a set of quality rules; what follows a
colon are the set's own words, or the kind of personal data that comes first in the text."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustly import UserError
from robustly.data_prep.cleaning.config import INSTALL, QUALITY_FILTERS, CleaningConfig
from robustly.data_prep.cleaning.language import in_language
from robustly.data_prep.cleaning.personal_data import Finder, finder

Rule = Callable[[str], str | None]
LANGUAGE, PERSONAL_DATA, CONTAMINATION = "language", "personal_data", "contamination"
EXACT, NEAR = "exact_duplicates", "near_duplicates"
LENGTHS = ("min_characters", "max_characters", "min_words", "max_words")
ORDER = (*LENGTHS, LANGUAGE, PERSONAL_DATA, *QUALITY_FILTERS, CONTAMINATION, EXACT, NEAR)
"""First words of the reasons, in the order of the rules: of several reasons, a document has the
first."""
DOWNLOADS = ("StanzaTokenizer", "TibetanTokenizer")
"""Word splitters of datatrove that fetch a model when they are first used."""


def in_order(reasons: Iterable[str]) -> list[str]:
    """Reasons in the order of their rules, those of one set by name."""
    return sorted(set(reasons), key=lambda reason: (ORDER.index(reason.partition(":")[0]), reason))


def rules_of(
    cleaning: CleaningConfig,
    word_language: str,
    model: tuple[Path, str] | None,
    evaluation: NDArray[np.uint64] | None,
) -> list[Rule]:
    """The rules that a config asks for, in order.

    `model` is the language model's file and its sha256; `evaluation` the index of evaluation texts.
    """
    rules: list[Rule] = [functools.partial(_length, cleaning)]
    if cleaning.language:
        assert model
        rules.append(functools.partial(_language, in_language(cleaning.language, model)))

    if cleaning.personal_data and cleaning.personal_data.action == "drop":
        rules.append(functools.partial(_personal_data, finder(cleaning.personal_data)))

    rules += [
        _quality(name, cleaning.quality[name], word_language)
        for name in QUALITY_FILTERS
        if name in cleaning.quality
    ]
    if cleaning.contamination:
        assert evaluation is not None
        rules.append(functools.partial(_contamination, evaluation, cleaning.contamination.n_grams))

    return rules


def reason_to_drop(text: str, rules: Iterable[Rule]) -> str | None:
    """The first reason; None for a text of nothing but white space, which is no document to the
    data stage."""
    if not text.strip():
        return None
    return next(filter(None, (rule(text) for rule in rules)), None)


def _length(cleaning: CleaningConfig, text: str) -> str | None:
    characters = len(text)
    if characters < (cleaning.min_characters or 0):
        return "min_characters"
    if cleaning.max_characters and characters > cleaning.max_characters:
        return "max_characters"
    if not (cleaning.min_words or cleaning.max_words):
        return None

    words = len(text.split())
    if words < (cleaning.min_words or 0):
        return "min_words"

    return "max_words" if cleaning.max_words and words > cleaning.max_words else None


def _language(kept: Callable[[str], bool], text: str) -> str | None:
    return None if kept(text) else LANGUAGE


def _personal_data(find: Finder, text: str) -> str | None:
    found = find(text)
    return f"{PERSONAL_DATA}: {found[0].kind}" if found else None


def _contamination(evaluation: NDArray[np.uint64], n: int, text: str) -> str | None:
    from robustly.data_prep.cleaning.contamination import contaminated

    return CONTAMINATION if contaminated(text, evaluation, n) else None


# ------------------------------------------------------------------------------------------ quality


def check_words(language: str) -> None:
    """Raises UserError unless datatrove can split words of the language here, with nothing to
    download."""
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    _import_spacy()
    wanted = f"cleaning.quality splits words by the rules for data.language = {language}"

    try:
        splitter = load_word_tokenizer(language)
        if not (downloads := type(splitter).__name__ in DOWNLOADS):
            splitter.word_tokenize("a b")
    except ValueError:
        raise UserError(
            f"{wanted}, and datatrove has none; set data.language to the code (ISO 639) of a"
            " similar language, or leave cleaning.quality out"
        ) from None
    except ImportError as error:
        raise UserError(
            f"{wanted}: {error} ({INSTALL} brings spaCy, which serves most languages)"
        ) from None

    if downloads:
        raise UserError(
            f"{wanted}, and datatrove's splitter would download a model; leave cleaning.quality out"
        )


def _import_spacy() -> None:
    """Import spaCy, if it is installed, without torch: it would load it for models that are not
    used here, which takes 3 seconds and 180 MB in every process."""
    if "torch" in sys.modules:
        return
    sys.modules["torch"] = None  # type: ignore[assignment]

    try:
        with contextlib.suppress(ImportError):
            import spacy  # noqa: F401
    finally:
        del sys.modules["torch"]


def _quality(name: str, parameters: dict[str, Any], language: str) -> Rule:
    from datatrove.data import Document
    from datatrove.pipeline import filters

    _import_spacy()
    values = {
        key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()
    }
    quality_filter = getattr(filters, QUALITY_FILTERS[name])(language=language, **values)

    def rule(text: str) -> str | None:
        # a document of its own: c4_quality cuts lines out of it
        kept = quality_filter.filter(Document(text=text, id=""))
        if kept is True:
            return None
        _, reason = kept
        return f"{name}: {reason}"

    return rule
