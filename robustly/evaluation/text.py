"""Masked-LM loss, perplexity and bits per byte of a model on text files, with standard errors.

Text is cut as for training, by the same code: documents into units, units into a token store, and
that into blocks (`robustly.data_prep`). What `--text` names each time is a source of its own, so
that no block holds tokens of two.

15% of each block's tokens are targets (BERT's rule: <s> and </s> never are; 80% are shown as
<mask>, 10% as a random token, 10% as they are). The mask of a block depends on its place in its own
source alone, so that two models with one tokenizer and one way of cutting meet the same targets.
Or blocks and masks are those of the run's own evaluation.

Loss per token depends on the vocabulary: it compares models that share one. Bits per byte compare
others, roughly: what is masked together, and what is left to guess it from, still differ. They are
of the masked tokens of the text: their loss, over the bytes that they stand for. The white space
between units stands in no block; neither its bytes count, nor the loss of <s> and </s> where these
are targets."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustly import UserError, log
from robustly.corpus.config import CorpusConfig
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.sampler import EpochSampler, Samples
from robustly.evaluation.cutting import Cutting
from robustly.evaluation.model import MaskedLM
from robustly.evaluation.scoring import by_length, score_targets, standard_error
from robustly.evaluation.text_store import SPLIT, Texts, places, write_texts
from robustly.pretrain.batches import fetch
from robustly.pretrain.masking import EVALUATION_EPOCH, EVALUATION_SEED

SUMS = ("loss", "right", "masked", "text_loss", "text_bytes")
"""Over the masked tokens of a document: nats, right guesses, how many; and the nats and bytes of
those that are text, neither <s> nor </s>."""


def evaluate_text(
    lm: MaskedLM, corpus: CorpusConfig, cut: Cutting, batch_size: int
) -> dict[str, Any]:
    """Masked-LM loss on the files of `corpus.sources`, per file and in total.

    Raises UserError if a source matches no file, a file cannot be read or holds no text, or no
    token was masked."""
    with tempfile.TemporaryDirectory() as folder:
        texts = write_texts(lm, corpus, cut.data, Path(folder))
        if not texts.file.size:
            raise UserError(
                f"{_some(corpus)}: no text in it that is more than white space to the tokenizer"
            )

        blocks = Blocks(Path(folder), SPLIT, cut.data.block_length, cut.data.format)
        if words := cut.masking.segmenter:
            assert lm.tokenizer
            blocks.mark_words(words, lm.tokenizer, list_sha256=cut.list_sha256)

        sampler = EpochSampler(blocks, EVALUATION_SEED)
        samples = _samples(sampler, cut)
        sums = _score(lm, texts, sampler, samples, cut, batch_size)

    sizes = np.stack([texts.tokens, texts.bytes, texts.bytes_between], axis=1)
    table = np.concatenate([sums, sizes], axis=1)
    if not table[:, SUMS.index("masked")].any():
        raise UserError(f"{_some(corpus)}: too little text: no token of it was masked; give more")

    return {
        "cut": {**cut.data.model_dump(), "as_trained": cut.as_trained},
        "blocks": len(blocks),
        "evaluated_blocks": len(samples.block),
        "masking": {"masks": "run" if cut.as_the_run else "bert", **cut.masking.model_dump()},
        "files": {
            path: _figures(table[texts.file == number]) for number, path in enumerate(texts.paths)
        },
        "total": _figures(table),
    }


def _some(corpus: CorpusConfig) -> str:
    return ", ".join(source.label for source in corpus.sources[:3])


def _samples(sampler: EpochSampler, cut: Cutting) -> Samples:
    """The blocks that are evaluated, in the order of the run's own evaluation, under its masks or
    those of their places in their source."""
    blocks = sampler.blocks
    positions = np.arange(min(len(blocks), cut.limit or len(blocks)))
    samples = sampler.samples(np.full_like(positions, EVALUATION_EPOCH), positions)
    if cut.as_the_run:
        return samples

    first = blocks.source_starts[blocks.sources_of(samples.block)]
    return samples._replace(entry=samples.block - first)


def _score(
    lm: MaskedLM,
    texts: Texts,
    sampler: EpochSampler,
    samples: Samples,
    cut: Cutting,
    batch_size: int,
) -> NDArray[np.float64]:
    """SUMS of each document: (documents, 5). A <s> counts with the token after it."""
    lm.model.eval()
    sums = np.zeros((len(texts.file), len(SUMS)))
    with log.progress("evaluating", len(samples.block), "blocks") as advance:
        for some in by_length(sampler.blocks.lengths[samples.block], batch_size):
            chosen = Samples(*(column[some] for column in samples))
            found = fetch(sampler, chosen, cut.masking, lm.special)
            width = int(found.lengths.max())
            ids, targets = found.ids[:, :width], found.masked.targets[:, :width]
            masked = found.masked._replace(inputs=found.masked.inputs[:, :width], targets=targets)
            scores = score_targets(lm.model, ids, found.lengths, masked)
            place = places(sampler.blocks, chosen, width)
            document = texts.documents_of(np.where(place < 0, place[:, 1:2], place)[targets])
            of_text = ~np.isin(ids[targets], (lm.special.bos, lm.special.eos))
            values = (
                scores.loss,
                scores.right,
                np.ones_like(of_text),
                scores.loss * of_text,
                texts.token_bytes[place[targets]] * of_text,
            )
            np.add.at(sums, document, np.stack(values, axis=1, dtype=np.float64))
            advance(len(some))

    return sums


def _figures(table: NDArray[np.float64]) -> dict[str, Any]:
    """What is reported of n documents; `table`: (n, 8), as `evaluate_text` makes it."""
    loss_sum, right, masked, text_loss, masked_bytes, tokens, text_bytes, between = table.sum(
        0
    ).tolist()
    counts = {
        "documents": len(table),
        "tokens": int(tokens),
        "bytes": int(text_bytes),
        "bytes_between_units": int(between),
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
        "bits_per_byte": text_loss / math.log(2) / masked_bytes if masked_bytes else None,
    }
