"""`robustly evaluate`: a folder's model on text and on minimal pairs, its figures as tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robustly import log
from robustly.corpus.texts import corpus_from_options
from robustly.data_prep.config import PAIRS
from robustly.description import Listing, show_listing
from robustly.evaluation.cutting import TextOptions, cutting
from robustly.evaluation.minimal_pairs import evaluate_pairs, read_pairs
from robustly.evaluation.model import open_masked_lm
from robustly.evaluation.text import evaluate_text


def evaluate_folder(
    folder: Path,
    texts: Sequence[str],
    pair_files: Sequence[Path],
    options: TextOptions = TextOptions(),  # noqa: B008 (frozen)
    batch_size: int = 32,
    documents: str = "blank_line",
    text_key: str = "text",
    max_bad_lines: int = 0,
) -> dict[str, Any]:
    """Evaluate the model in a folder on text, on minimal pairs, or on both; shows the figures and
    returns them.

    Raises UserError as `open_masked_lm`, `cutting`, `evaluate_text` and `read_pairs` do."""
    corpus = corpus_from_options(texts, documents, text_key, max_bad_lines) if texts else None
    pairs = [pair for path in dict.fromkeys(pair_files) for pair in read_pairs(path)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lm = open_masked_lm(folder, device)
    report: dict[str, Any] = {
        "folder": str(folder),
        "model": type(lm.model).__name__,
        "parameters": sum(parameter.numel() for parameter in lm.model.parameters()),
    }
    if corpus:
        cut = cutting(folder, lm, options)
        report["text"] = evaluate_text(lm, corpus, cut, batch_size)
        _show_text(report["text"])

    if pairs:
        report["minimal_pairs"] = evaluate_pairs(lm, pairs, batch_size)
        _show_pairs(report["minimal_pairs"])

    return report


_COUNTED = {name: name for name in ("documents", "tokens", "bytes", "masked_tokens")}
_MEASURED = {
    "loss": "loss",
    "±": "loss_standard_error",
    "bits": "bits",
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "bits_per_byte": "bits_per_byte",
}
"""Columns -> the figures that stand there."""


def _show_text(report: dict[str, Any]) -> None:
    if len(report["files"]) == 1:
        log.table("masked-LM loss", report["total"])
    else:
        named = [(Path(path).name, figures) for path, figures in report["files"].items()]
        named.append(("total", report["total"]))
        for title, columns in (("text", _COUNTED), ("masked-LM loss", _MEASURED)):
            rows = [
                {"file": name, **{column: figures[key] for column, key in columns.items()}}
                for name, figures in named
            ]
            show_listing(Listing(title, rows))

    log.say(
        "loss in nats per masked token, ± its standard error over documents. Between models with"
        " different tokenizers, bits per byte compare roughly, and loss and perplexity not at all."
    )
    log.say(f"{_how_cut(report['cut'])} {_how_masked(report)}")


_WHOSE = {
    True: "as the model was trained",
    False: "as options say",
    None: "since the folder does not say how its model was trained (--unit, --format do)",
}


def _how_cut(cut: dict[str, Any]) -> str:
    what = "whole documents" if cut["unit"] == "raw" else f"{cut['unit']}s"
    swapped = " Half of the second segments are another block's." if cut["format"] in PAIRS else ""
    return (
        f"Units are {what}, packed by {cut['format']} into blocks of at most"
        f" {cut['block_length']} tokens, {_WHOSE[cut['as_trained']]}.{swapped}"
    )


def _how_masked(report: dict[str, Any]) -> str:
    rule = report["masking"]
    rest = 1 - rule["mask"] - rule["random"]
    what = "words" if rule["whole_words"] else "tokens"
    targets = (
        f"{rule['probability']:.0%} of the {what} are targets ({rule['mask']:.0%} <mask>,"
        f" {rule['random']:.0%} random, {rest:.0%} as they are)"
    )
    if rule["masks"] == "run":
        evaluated, blocks = report["evaluated_blocks"], report["blocks"]
        whose = f"the run's own evaluation does it, on {evaluated:,} of {blocks:,} blocks"
        return f"{targets}, as {whose}."

    return f"{targets}, the same ones every time."


def _show_pairs(report: dict[str, Any]) -> None:
    for key, groups in report["groups"].items():
        show_listing(
            Listing(f"by {key}", [{key: value, **figures} for value, figures in groups.items()])
        )

    log.table(
        "minimal pairs", {name: report[name] for name in ("pairs", "accuracy", "standard_error")}
    )
    log.say(
        "accuracy: share of pairs whose good sentence has the higher pseudo-log-likelihood; a tie"
        " counts half."
    )
