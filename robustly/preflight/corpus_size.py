"""How many tokens the corpus has: counted where a stage has read it, else estimated from the files'
bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustly import UserError, manifest
from robustly.corpus.config import CorpusConfig
from robustly.corpus.files import corpus_files, corpus_sizes
from robustly.corpus.partitions import EXPANSION
from robustly.data_prep.config import store_recipe
from robustly.data_prep.store import Store
from robustly.manifest import Manifest
from robustly.pretrain.stage import PretrainingConfig

BYTES_PER_TOKEN = 4.4
"""UTF-8 bytes of English for a token, 50,000 entries: an assumption. Other languages and smaller
vocabularies have less; 3.8 with 4,096 entries."""
TOKENS_PER_UNIT, TOKENS_PER_DOCUMENT = 25, 800
"""For the size of a token store that is not made yet: assumptions for English sentences and
articles."""


@dataclass(frozen=True)
class CorpusSize:
    """Tokens of an epoch, `</s>` included, and the share of positions that padding takes."""

    tokens: float | None
    source: str
    padding: float = 0.0
    store: float | None = None
    """Bytes of the token store."""


def corpus_size(config: PretrainingConfig) -> CorpusSize:
    """The tokens to train on: counted where the data stage has finished, else from the tokenizer's
    counts, else from the files' bytes, else not known. Folders of another recipe or other files do
    not count."""
    corpus, tokenizer = config.corpus, config.tokenizer
    try:
        found, trained_on = corpus_sizes(corpus), corpus_sizes(corpus.training)
    except UserError:
        found = trained_on = {}

    # a tokenizer that was trained on the corpus, or on counts, or was imported
    made = manifest.read(config.folder("tokenizer"))
    data_recipe = store_recipe(corpus, config.data)
    if made and made.recipe.get("tokenizer") == tokenizer.recipe():
        prepared = _finished(config.folder("data"), "data", data_recipe, found)
        if prepared and prepared.inputs["tokenizer"] == made.hash:
            return _prepared(config, prepared)

    tokenizer_recipe = {"tokenizer": tokenizer.recipe(), "corpus": corpus.reading()}
    folder = config.folder("tokenizer")
    if trained := _finished(folder, "tokenizer", tokenizer_recipe, trained_on):
        return _counted(config, trained, there=bool(trained_on))

    if not corpus.sources:
        why = "corpus.sources names none, and corpus.counts do not tell the store's size"
        return CorpusSize(None, f"unknown: {why}")

    if not found:
        labels = ", ".join(source.label for source in corpus.sources)
        return CorpusSize(None, f"unknown: corpus not found ({labels})")

    if hub := ", ".join(source.label for source in corpus.sources if source.hub is not None):
        return CorpusSize(None, f"unknown until the tokenizer stage has read the dataset ({hub})")

    return _estimated(config, {name: size for name, size in found.items() if size is not None})


def _finished(
    folder: Path, stage: str, recipe: Mapping[str, Any], found: Mapping[str, int | None]
) -> Manifest | None:
    """The manifest of a stage that has finished by this recipe, and from these files unless none is
    there.

    Of a dataset on the Hub it may be another commit: nobody is asked.
    """
    made = manifest.read(folder)
    if made is None or made.stage != stage or made.recipe != recipe:
        return None

    before = {name: facts.get("bytes") for name, facts in made.notes["files"].items()}
    return made if not found or before == found else None


def _prepared(config: PretrainingConfig, prepared: Manifest) -> CorpusSize:
    """By the token store."""
    counts, data, folder = prepared.counts, config.data, config.folder("data")
    same_packing = (counts["format"], counts["block_length"]) == (data.format, data.block_length)
    tokens = np.diff(Store(folder, "train").source_starts)  # of each source, with their </s>
    repeats = config.corpus.repeats or np.ones(len(tokens))

    return CorpusSize(
        float(tokens @ repeats),
        f"counted in {folder}",
        padding=counts["padding"] if same_packing else 0.0,
        store=sum(facts["bytes"] for facts in prepared.outputs.values()),
    )


def _counted(config: PretrainingConfig, trained: Manifest, there: bool) -> CorpusSize:
    """By the tokenizer's counts. `there`: whether the corpus's files are."""
    corpus, vocab_size = config.corpus, config.tokenizer.vocab_size
    tokens, documents = trained.counts["tokens"], trained.counts["documents"]
    raw = config.data.unit == "raw"
    units = documents if raw else tokens / TOKENS_PER_UNIT
    each = "document" if raw else f"{TOKENS_PER_UNIT} assumed"
    times, repeated = 1.0, ""
    if corpus.repeats and there:
        text, epoch = _text_bytes(corpus.training)
        times, repeated = epoch / text, ", repeated in proportion to their bytes"

    return CorpusSize(
        (tokens + units + documents) * (1 - corpus.validation) * times,
        f"{tokens:,} tokens counted in {config.folder('tokenizer')}{repeated}, a </s> for every"
        f" {each}",
        store=store_bytes(tokens + units + documents, units, documents, vocab_size),
    )


def _estimated(config: PretrainingConfig, found: Mapping[str, int]) -> CorpusSize:
    """By the bytes of the files."""
    corpus, vocab_size = config.corpus, config.tokenizer.vocab_size
    text, epoch = _text_bytes(corpus)
    tokens = text / BYTES_PER_TOKEN
    packed = sorted({suffix for name in found if (suffix := Path(name).suffix) in EXPANSION})
    ratios = "".join(
        f", {EXPANSION[suffix]:g} bytes of text for one of {suffix}" for suffix in packed
    )
    documents = tokens / TOKENS_PER_DOCUMENT
    units = documents if config.data.unit == "raw" else tokens / TOKENS_PER_UNIT

    return CorpusSize(
        epoch / BYTES_PER_TOKEN * (1 - corpus.validation),
        f"estimated from {sum(found.values()):,} bytes in {len(found):,} files: {BYTES_PER_TOKEN}"
        f" bytes for a token{ratios} assumed",
        store=store_bytes(tokens, units, documents, vocab_size),
    )


def store_bytes(tokens: float, units: float, documents: float, vocab_size: int) -> float:
    """The token store: ids in 2 bytes, 4 above 65,536 entries; 4 for the end of a unit, 4 and about
    1 for the white space before it, 12 for a document."""
    return (2 if vocab_size <= 2**16 else 4) * tokens + 9 * units + 12 * documents


def _text_bytes(corpus: CorpusConfig) -> tuple[float, float]:
    """Bytes of text in the files, those of datasets not counted; and those of an epoch, with each
    source as often as it is repeated."""
    text = epoch = 0.0
    for number, path in corpus_files(corpus):
        source = corpus.sources[number]
        size = path.stat().st_size * EXPANSION.get(path.suffix, 1.0)
        text, epoch = text + size, epoch + size * (0 if source.held_out else source.repeat)

    return text, epoch
