"""`robustly evaluate`: a masked language model on any text, and on minimal pairs, with standard
errors.

Text. Documents are cut into blocks, <s> first and </s> last, never across documents, and nothing is
dropped. 15% of each block's tokens are targets (BERT's rule: <s> and </s> never are; 80% are shown
as <mask>, 10% as a random token, 10% as they are). The mask of a block depends on its place in its
own file alone, so that two models with one tokenizer meet the same targets. Loss per token depends
on the vocabulary: it compares models that share one. Bits per byte of the masked text compare
others, roughly: what is masked together, and what is left to guess it from, still differ.

Minimal pairs. The sentence with the higher pseudo-log-likelihood (Salazar et al. 2020, section 2)
wins; a pair counts 1 if that is the good one, and 1/2 if both score the same."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from robustly import UserError, log
from robustly.corpus.config import CorpusConfig
from robustly.corpus.formats.json_lines import json_object
from robustly.corpus.texts import BAD_LINES, OPTIONS, given, read
from robustly.description import Listing, show_listing
from robustly.evaluation.model import LONGEST, MaskedLM, open_masked_lm
from robustly.evaluation.scoring import cut_blocks, enclose, pseudo_log_likelihoods, score_blocks
from robustly.pretrain.config import MaskingConfig

ENCODED_TOGETHER = 256  # documents
GROUPS = ("linguistics_term", "UID")  # BLiMP's keys of what a pair tests


# --------------------------------------------------------------------------------------------- text


def masking(rate: float) -> MaskingConfig:
    """BERT's rule at a rate."""
    return MaskingConfig(probability=rate, mask=0.8, random=0.1, style="bert")


def block_length(lm: MaskedLM, wanted: int | None) -> int:
    """The length of blocks: `wanted`, by default the model's longest input, 512 at most.

    Raises UserError if the model does not take so many.
    """
    length = min(lm.longest, LONGEST) if wanted is None else wanted
    if not 3 <= length <= lm.longest:
        raise UserError(
            f"--block-length {length}: expected 3 (<s>, a token, </s>) to {lm.longest}, the model's"
            " longest input"
        )

    return length


def evaluate_text(
    lm: MaskedLM, corpus: CorpusConfig, length: int, rate: float, batch_size: int
) -> dict[str, Any]:
    """Masked-LM loss on the files of `corpus.sources`, per file and in total, in blocks of `length`
    tokens.

    Raises UserError if a source matches no file, a file cannot be read or holds no text, or no
    token was masked."""
    rule = masking(rate)
    texts = _read(lm, corpus, length)

    with log.progress("evaluating", len(texts.blocks), "blocks") as advance:
        scores = score_blocks(
            lm.model,
            texts.blocks,
            texts.sizes,
            texts.index,
            rule,
            lm.special,
            batch_size,
            advance,
        )

    document = np.array(texts.document, np.int64)
    sums = [
        np.bincount(document, values, minlength=len(texts.file)) for values in scores
    ]  # of each document
    table = np.stack([*sums, np.array(texts.tokens), np.array(texts.bytes)], axis=1).astype(
        np.float64
    )
    if not table[:, 2].any():
        raise UserError(
            f"{', '.join(texts.paths[:3])}: too little text: no token of it was masked; give more"
        )

    file = np.array(texts.file)

    return {
        "block_length": length,
        "masking": rule.model_dump(),
        "files": {path: _figures(table[file == number]) for number, path in enumerate(texts.paths)},
        "total": _figures(table),
    }


@dataclass
class _Texts:
    """All files as blocks."""

    paths: list[str] = field(default_factory=list)
    # of each document
    file: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    # of each block
    blocks: list[NDArray[np.int64]] = field(default_factory=list)
    sizes: list[NDArray[np.int64]] = field(default_factory=list)
    """UTF-8 bytes of each of its tokens."""
    document: list[int] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    """Place in its file: the masks depend on it, and so not on the other files."""


def _read(lm: MaskedLM, corpus: CorpusConfig, length: int) -> _Texts:
    texts = _Texts()
    everything = read(corpus, "encoding", {**OPTIONS, **BAD_LINES})
    for path, of_file in itertools.groupby(everything, key=lambda document: document[0]):
        index = itertools.count()
        for together in _batched(text for _, text in of_file):
            _append(texts, len(texts.paths), together, lm, length, index)

        texts.paths.append(path)

    return texts


def _append(
    texts: _Texts,
    file: int,
    contents: Sequence[str],
    lm: MaskedLM,
    length: int,
    index: Iterator[int],
) -> None:
    for text, encoded in zip(contents, lm.encode(contents), strict=True):
        blocks = cut_blocks(encoded.ids, length, lm.special.bos, lm.special.eos)
        texts.blocks += blocks
        texts.sizes += cut_blocks(encoded.bytes, length, 0, 0)  # <s> and </s> stand for no byte
        texts.index += itertools.islice(index, len(blocks))
        texts.document += [len(texts.file)] * len(blocks)
        texts.file.append(file)
        texts.tokens.append(len(encoded.ids))
        texts.bytes.append(len(text.encode()))


def _batched(items: Iterator[str]) -> Iterator[list[str]]:
    while together := list(itertools.islice(items, ENCODED_TOGETHER)):
        yield together


def _figures(table: NDArray[np.float64]) -> dict[str, Any]:
    """The figures of n documents, each a row (loss, right, masked tokens, their bytes, tokens,
    bytes)."""
    loss_sum, right, masked, masked_bytes, tokens, text_bytes = table.sum(0).tolist()
    counts = {
        "documents": len(table),
        "tokens": int(tokens),
        "bytes": int(text_bytes),
        "masked_tokens": int(masked),
    }
    if not masked:
        names = ("loss", "loss_standard_error", "bits", "perplexity", "accuracy", "bits_per_byte")
        return {**counts, **dict.fromkeys(names)}

    loss = loss_sum / masked

    return {
        **counts,
        "loss": loss,
        "loss_standard_error": standard_error(table[:, 0], table[:, 2]),
        "bits": loss / math.log(2),
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": right / masked,
        "bits_per_byte": loss_sum / math.log(2) / masked_bytes if masked_bytes else None,
    }


def standard_error(sums: NDArray[np.float64], weights: NDArray[np.float64]) -> float | None:
    """Standard error of sum(sums) / sum(weights) over n independent units, such as documents; None
    for fewer than 2.

    The ratio estimator's, by linearisation (Cochran 1977, section 6.4): tokens of one document hang
    together, and taking them as independent would make the error look smaller than it is."""
    count = len(sums)
    if count < 2:
        return None
    residuals = sums - sums.sum() / weights.sum() * weights
    return float(math.sqrt(count / (count - 1) * (residuals**2).sum()) / weights.sum())


# ------------------------------------------------------------------------------------ minimal pairs


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in what makes one of them ungrammatical."""

    file: str
    line: int
    sentence_good: str
    sentence_bad: str
    groups: dict[str, str]
    """Of GROUPS, those that the line has."""


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
    rows = [
        {**asdict(pair), "good": (good := scores[pair.sentence_good]), "bad": (bad := scores[pair.sentence_bad]),
         "point": 0.5 if good == bad else float(good > bad)}
        for pair in pairs
    ]  # fmt: skip
    groups: dict[str, dict[str, Any]] = {}

    for key in GROUPS:
        values = sorted({pair.groups[key] for pair in pairs if key in pair.groups})
        if values:
            groups[key] = {
                value: _accuracy([row for row in rows if row["groups"].get(key) == value])
                for value in values
            }

    return {**_accuracy(rows), "groups": groups, "scores": rows}


def _accuracy(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    points = np.array([row["point"] for row in rows])
    return {
        "pairs": len(points),
        "accuracy": float(points.mean()),
        "standard_error": standard_error(points, np.ones(len(points))),
    }


# -------------------------------------------------------------------------------------- the command


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
    corpus = given(texts, documents, text_key, max_bad_lines) if texts else None
    if not 0 < rate < 1:
        raise UserError(f"--mask-rate {rate}: expected a share between 0 and 1")

    pairs = [pair for path in dict.fromkeys(pair_files) for pair in read_pairs(path)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lm = open_masked_lm(folder, device)
    parameters = sum(parameter.numel() for parameter in lm.model.parameters())
    report: dict[str, Any] = {
        "folder": str(folder),
        "model": type(lm.model).__name__,
        "parameters": parameters,
    }
    if corpus:
        report["text"] = evaluate_text(
            lm, corpus, block_length(lm, wanted_length), rate, batch_size
        )
        _show_text(report["text"])

    if pairs:
        report["minimal_pairs"] = evaluate_pairs(lm, pairs, batch_size)
        _show_pairs(report["minimal_pairs"])

    return report


def _show_text(report: dict[str, Any]) -> None:
    if len(report["files"]) == 1:
        log.table("masked-LM loss", report["total"])
    else:
        named = [
            *((Path(path).name, figures) for path, figures in report["files"].items()),
            ("total", report["total"]),
        ]
        counted = ("documents", "tokens", "bytes", "masked_tokens")
        measured = (
            "loss",
            "loss_standard_error",
            "bits",
            "perplexity",
            "accuracy",
            "bits_per_byte",
        )

        for title, columns in (("text", counted), ("masked-LM loss", measured)):
            rows = [
                {
                    "file": name,
                    **{
                        column.replace("loss_standard_error", "±"): figures[column]
                        for column in columns
                    },
                }
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
