"""Accuracy of a model on minimal pairs, such as BLiMP's, by pseudo-log-likelihood, with standard
errors.

The sentence with the higher pseudo-log-likelihood (Salazar et al. 2020, section 2) wins; a pair
counts 1 if that is the good one, and 1/2 if both score the same."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustly import UserError, log
from robustly.corpus.formats.json_lines import json_object
from robustly.evaluation.model import MaskedLM
from robustly.evaluation.scoring import enclose, pseudo_log_likelihoods, standard_error

GROUPS = ("linguistics_term", "UID")  # BLiMP's keys of what a pair tests


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in what makes one of them ungrammatical."""

    file: str
    line: int
    sentence_good: str
    sentence_bad: str
    groups: dict[str, str]
    """The values of those GROUPS that the line has."""


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file of JSON lines with the keys `sentence_good` and `sentence_bad`; blank
    lines are skipped.

    Raises UserError with file and line if it is anything else.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); expected a file of JSON lines"
            " with the keys sentence_good and sentence_bad"
        ) from None

    pairs = []
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue

        try:
            pairs.append(_pair(path, number, raw))
        except ValueError as fault:
            raise UserError(f"{path}: line {number}: {fault}") from None

    if not pairs:
        raise UserError(
            f"{path}: no pair in it; expected JSON lines with the keys sentence_good and"
            " sentence_bad"
        )

    return pairs


def _pair(path: Path, number: int, raw: bytes) -> Pair:
    """Raises ValueError that says what is wrong with the line."""
    try:
        row = json_object(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte 0x{raw[error.start]:02x}); convert the file") from None

    for key in ("sentence_good", "sentence_bad"):
        if key not in row:
            raise ValueError(f"no key {key!r}; the keys here: {', '.join(map(repr, row))}")
        if not isinstance(row[key], str) or not row[key].strip():
            raise ValueError(f"{key!r}: expected a sentence, found {row[key]!r}")
        if any("\ud800" <= character <= "\udfff" for character in row[key]):
            raise ValueError(f"{key!r}: half of a surrogate pair, which stands for no character")

    groups = {key: str(row[key]) for key in GROUPS if key in row}
    return Pair(str(path), number, row["sentence_good"], row["sentence_bad"], groups)


def evaluate_pairs(lm: MaskedLM, pairs: Sequence[Pair], batch_size: int) -> dict[str, Any]:
    """Accuracy on minimal pairs by pseudo-log-likelihood, with standard errors, by group; and every
    pair's scores.

    Raises UserError with file and line if a sentence is longer than the model takes.
    """
    places = {text: pair for pair in pairs for text in (pair.sentence_good, pair.sentence_bad)}
    encoded = lm.encode(list(places))
    for pair, tokens in zip(places.values(), encoded, strict=True):
        if (found := len(tokens.ids) + 2) > lm.longest:
            raise UserError(
                f"{pair.file}: line {pair.line}: a sentence of {found:,} tokens, <s> and </s>"
                f" included; the model takes {lm.longest:,}; shorten or remove it"
            )

    sentences = [enclose(tokens.ids, lm.special.bos, lm.special.eos) for tokens in encoded]
    copies = sum(len(tokens.ids) for tokens in encoded)
    with log.progress("scoring pairs", copies, "masked copies") as advance:
        found_scores = pseudo_log_likelihoods(lm.model, sentences, lm.special, batch_size, advance)

    scores = dict(zip(places, found_scores.tolist(), strict=True))  # equal sentences tie to the bit
    rows = [_row(pair, scores[pair.sentence_good], scores[pair.sentence_bad]) for pair in pairs]
    groups: dict[str, dict[str, Any]] = {}
    for key in GROUPS:
        if values := sorted({pair.groups[key] for pair in pairs if key in pair.groups}):
            groups[key] = {
                value: _accuracy([row for row in rows if row["groups"].get(key) == value])
                for value in values
            }

    return {**_accuracy(rows), "groups": groups, "scores": rows}


def _row(pair: Pair, good: float, bad: float) -> dict[str, Any]:
    point = 0.5 if good == bad else float(good > bad)
    return {**asdict(pair), "good": good, "bad": bad, "point": point}


def _accuracy(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    points = np.array([row["point"] for row in rows])
    return {
        "pairs": len(points),
        "accuracy": float(points.mean()),
        "standard_error": standard_error(points, np.ones(len(points))),
    }
