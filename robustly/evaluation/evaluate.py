"""`robustly evaluate`: a folder's model on text and on minimal pairs, its figures as tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robustly import UserError, log
from robustly.corpus.texts import corpus_from_options
from robustly.description import Listing, show_listing
from robustly.evaluation.minimal_pairs import evaluate_pairs, read_pairs
from robustly.evaluation.model import open_masked_lm
from robustly.evaluation.text import block_length, evaluate_text


def evaluate_folder(
    folder: Path,
    texts: Sequence[str],
    pair_files: Sequence[Path],
    wanted_length: int | None,
    rate: float,
    batch_size: int,
    documents: str = "blank_line",
    text_key: str = "text",
    max_bad_lines: int = 0,
) -> dict[str, Any]:
    """Evaluate the model in a folder on text, on minimal pairs, or on both; shows the figures and
    returns them.

    Raises UserError as `open_masked_lm`, `evaluate_text` and `read_pairs` do, or if an option is
    not what it should be."""
    corpus = corpus_from_options(texts, documents, text_key, max_bad_lines) if texts else None
    if not 0 < rate < 1:
        raise UserError(f"--mask-rate {rate}: expected a fraction between 0 and 1")

    pairs = [pair for path in dict.fromkeys(pair_files) for pair in read_pairs(path)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lm = open_masked_lm(folder, device)
    report: dict[str, Any] = {
        "folder": str(folder),
        "model": type(lm.model).__name__,
        "parameters": sum(parameter.numel() for parameter in lm.model.parameters()),
    }
    if corpus:
        length = block_length(lm, wanted_length)
        report["text"] = evaluate_text(lm, corpus, length, rate, batch_size)
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
        "loss in nats per masked token, ± its standard error over documents. Blocks of at most"
        f" {report['block_length']} tokens; {report['masking']['probability']:.0%} of the tokens"
        " are targets (80% <mask>, 10% random, 10% as they are), the same ones every time. Between"
        " models with different tokenizers, bits per byte compare roughly, and loss and perplexity"
        " not at all."
    )


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
