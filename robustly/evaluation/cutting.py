"""How text is cut and masked for an evaluation: as the model was trained, or as options say."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator

from robustly import UserError, manifest
from robustly.config import Config, load
from robustly.data_prep.config import PAIRS, DataConfig
from robustly.evaluation.model import LONGEST, MaskedLM
from robustly.pretrain.config import MaskingConfig, RunConfig, recorded_masking
from robustly.strict_yaml import parse_yaml

RATE = 0.15  # of the tokens are targets, where nothing else is said
CONFIG = "config.yaml"
"""The resolved config of its run, in a published folder."""


@dataclass(frozen=True)
class TextOptions:
    """What the command's options say; None: as the model was trained."""

    unit: str | None = None
    language: str | None = None
    format: str | None = None
    block_length: int | None = None
    masking: str = "bert"
    """bert: BERT's rule and masks of our own; run: rate, rule, masks and number of blocks of the
    run's own evaluation."""
    mask_rate: float | None = None


class Recorded(Config):
    """What a published folder's config says of how its model was trained and evaluated."""

    model_config = ConfigDict(extra="ignore")

    schema_version: Annotated[int, Field(alias="schema")]
    data: DataConfig
    masking: MaskingConfig
    run: RunConfig = RunConfig()

    @field_validator("masking", mode="before")
    @classmethod
    def _as_it_was(cls, value: Any) -> Any:
        return recorded_masking(value) if isinstance(value, dict) else value


class Cutting(NamedTuple):
    """How text is cut and masked."""

    data: DataConfig
    as_trained: bool | None
    """Whether it is all that the folder says of its run, and no option's; None: it says nothing."""
    masking: MaskingConfig
    as_the_run: bool
    """Whether blocks have the masks of the run's own evaluation; otherwise those of their place in
    their source."""
    limit: int | None = None
    """How many blocks are evaluated, a fixed choice of them; None: all."""
    list_sha256: str | None = None
    """Of the list of words that the masks need, if they do."""


def cutting(folder: Path, lm: MaskedLM, options: TextOptions) -> Cutting:
    """How text is cut and masked for the model of a folder.

    A published folder of ours says how its model was trained (CONFIG); for any other, lines are
    kept whole and a block ends with its document. Raises UserError for an option that is not what
    it should be, or does not fit the model."""
    by_line, stated = _by_line(lm, options)
    recorded = _recorded(folder, stated)
    data = recorded.data if recorded else by_line
    _check_fits(folder, lm, data, recorded, stated)
    as_trained = None if recorded is None else not stated
    if options.masking == "run":
        if recorded is None:
            raise UserError(
                f"--masking run: {folder} does not say how its model was trained; expected a"
                " published folder of ours. Without the option, masks are BERT's, and --mask-rate"
                " says of how many tokens"
            )
        if options.mask_rate is not None:
            raise UserError(
                "--mask-rate with --masking run, whose rate is the run's: give one of them"
            )

        if lm.tokenizer is None:
            raise UserError(
                f"--masking run: {folder}: transformers reads its tokenizer otherwise than it was"
                " trained; evaluate without the option, or with the transformers of its publishing"
            )

        finished = manifest.read(folder)
        words = finished.notes.get("words") if finished else None
        limit = recorded.run.evaluate_blocks
        return Cutting(data, as_trained, recorded.masking, True, limit, words)

    if options.masking != "bert":
        raise UserError(f"--masking {options.masking}: expected bert or run")

    rate = RATE if options.mask_rate is None else options.mask_rate
    if not 0 < rate < 1:
        raise UserError(f"--mask-rate {rate}: expected a fraction between 0 and 1")

    rule = MaskingConfig(probability=rate, mask=0.8, random=0.1, style="bert")
    return Cutting(data, as_trained, rule, False)


def _by_line(lm: MaskedLM, options: TextOptions) -> tuple[DataConfig, dict[str, Any]]:
    """How text is cut for a model of which nothing is known, and those keys of it that options
    state."""
    start = {
        "unit": "line",
        "language": "en",
        "format": "doc_sentences",
        "block_length": min(lm.longest, LONGEST),
    }
    stated = {key: value for key in start if (value := getattr(options, key)) is not None}
    try:
        return DataConfig.model_validate({**start, **stated}), stated
    except ValidationError as error:
        raise UserError("\n".join(map(_option_fault, error.errors()))) from None


def _option_fault(fault: Any) -> str:
    message = fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if not fault["loc"]:  # between keys, which the message names
        return message
    return f"--{str(fault['loc'][0]).replace('_', '-')} {fault['input']}: {message}"


def _recorded(folder: Path, stated: dict[str, Any]) -> Recorded | None:
    """What a folder of ours, published or kept apart unproven, says of its run, but for what is
    stated; None for any other folder. Raises UserError if it was damaged since."""
    if finished := manifest.read(folder):
        manifest.check_whole(folder, finished, [CONFIG])
    if not _is_ours(folder / CONFIG):
        return None

    overrides = [f"data.{key}={value}" for key, value in stated.items()]
    return load(folder / CONFIG, overrides, Recorded)


def _is_ours(path: Path) -> bool:
    """Whether there is a run's config; other programs have files of that name, too."""
    try:
        found = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(found, dict) and {"schema", "data", "masking"} <= found.keys()


def _check_fits(
    folder: Path, lm: MaskedLM, data: DataConfig, recorded: Recorded | None, stated: dict[str, Any]
) -> None:
    if data.block_length > lm.longest:
        raise UserError(
            f"--block-length {data.block_length}: the model's longest input is {lm.longest}"
        )

    if recorded:
        return

    if data.unit == "sentence" and "language" not in stated:
        raise UserError(
            f"--unit sentence: {folder} does not say of which language; expected --language CODE,"
            " whose rules say where a sentence ends"
        )

    if data.format in PAIRS and (getattr(lm.model.config, "type_vocab_size", None) or 0) > 1:
        raise UserError(
            f"--format {data.format}: {type(lm.model).__name__} tells the segments of a pair apart"
            " by token types, which it is not given here; expected full_sentences,"
            " doc_sentences or none"
        )
