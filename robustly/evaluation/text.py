"""Masked-LM loss, perplexity and bits per byte of a model on text files, with standard errors.

Documents are cut into blocks, <s> first and </s> last, never across documents, and nothing is
dropped. 15% of each block's tokens are targets (BERT's rule: <s> and </s> never are; 80% are shown
as <mask>, 10% as a random token, 10% as they are). The mask of a block depends on its place in its
own file alone, so that two models with one tokenizer meet the same targets. Loss per token depends
on the vocabulary: it compares models that share one. Bits per byte of the masked text compare
others, roughly: what is masked together, and what is left to guess it from, still differ."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustly import UserError, log
from robustly.corpus.config import CorpusConfig
from robustly.corpus.texts import BAD_LINES, OPTIONS, read_texts
from robustly.evaluation.model import LONGEST, Encoded, MaskedLM
from robustly.evaluation.scoring import cut_blocks, score_blocks, standard_error
from robustly.pretrain.config import MaskingConfig

ENCODED_TOGETHER = 256  # documents


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
    rule = MaskingConfig(probability=rate, mask=0.8, random=0.1, style="bert")
    texts = _read_blocks(lm, corpus, length)
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

    # a row of sums for each document: loss, right, masked tokens, their bytes; tokens, bytes
    document = np.array(texts.document, np.int64)
    sums = [np.bincount(document, values, minlength=len(texts.file)) for values in scores]
    table = np.stack([*sums, texts.tokens, texts.bytes], axis=1).astype(np.float64)
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
class _TextBlocks:
    """The documents of all files, and the blocks that they are cut into."""

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


def _read_blocks(lm: MaskedLM, corpus: CorpusConfig, length: int) -> _TextBlocks:
    texts = _TextBlocks()
    documents = read_texts(corpus, "encoding", {**OPTIONS, **BAD_LINES})
    for path, of_file in itertools.groupby(documents, key=lambda document: document[0]):
        places = itertools.count()
        for text, encoded in _encoded(lm, (text for _, text in of_file)):
            blocks = cut_blocks(encoded.ids, length, lm.special.bos, lm.special.eos)
            texts.blocks += blocks
            texts.sizes += cut_blocks(encoded.bytes, length, 0, 0)  # <s> and </s> stand for no byte
            texts.index += itertools.islice(places, len(blocks))
            texts.document += [len(texts.file)] * len(blocks)
            texts.file.append(len(texts.paths))
            texts.tokens.append(len(encoded.ids))
            texts.bytes.append(len(text.encode()))

        texts.paths.append(path)

    return texts


def _encoded(lm: MaskedLM, texts: Iterator[str]) -> Iterator[tuple[str, Encoded]]:
    """Each text with its tokens; many are encoded at a time."""
    while together := list(itertools.islice(texts, ENCODED_TOGETHER)):
        yield from zip(together, lm.encode(together), strict=True)


def _figures(table: NDArray[np.float64]) -> dict[str, Any]:
    """What is reported of n documents; `table`: (n, 6), as `evaluate_text` makes it."""
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
