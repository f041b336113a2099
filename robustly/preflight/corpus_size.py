"""How many tokens the corpus has: counted where a stage has read it, else estimated from the bytes
that the clean stage keeps, else from the files' bytes and what the rules keep of a sample."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robustly import UserError, manifest
from robustly.corpus.config import CorpusConfig
from robustly.corpus.files import corpus_files, corpus_sizes, remembered_files
from robustly.corpus.partitions import EXPANSION
from robustly.data_prep.cleaning.config import CleaningConfig, EvaluationFiles, clean_recipe
from robustly.data_prep.cleaning.language import model_file
from robustly.data_prep.config import PAIRS, store_recipe
from robustly.data_prep.merging import SHARD_BYTES
from robustly.data_prep.store import SPLITS, Store
from robustly.manifest import Manifest
from robustly.preflight.kept_share import KeptShare, kept_share
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
    shards: int | None = None
    """Of the token store."""
    index: float | None = None
    """Bytes of its packed index."""
    cleaning: float | None = None
    """Bytes that cleaning needs until it is done; None where there is none to come."""
    cleaning_seconds: float | None = None
    """Processor seconds that the rules will take, if they take as long as on a sample."""
    packed: bool = False
    """Whether the store is there, packed as the config asks."""


def corpus_size(config: PretrainingConfig) -> CorpusSize:
    """The tokens to train on: counted where the data stage has finished, else from the tokenizer's
    counts, else from the bytes that cleaning keeps, else from the files' bytes and a sample of what
    cleaning keeps of them, else not known. Folders of another recipe or other files do not count,
    nor do those of text that is not cleaned where the config cleans it."""
    corpus, tokenizer = config.corpus, config.tokenizer
    try:
        found, trained_on = corpus_sizes(corpus), corpus_sizes(corpus.training)
    except UserError:
        found = trained_on = {}

    cleaned = _cleaned(config, found)
    as_cleaned = cleaned.hash if cleaned else "" if config.cleaning.on else None

    # a tokenizer that was trained on the corpus, or on counts, or was imported
    made = manifest.read(config.folder("tokenizer"))
    data_recipe = store_recipe(corpus, config.data)
    if made and made.recipe.get("tokenizer") == tokenizer.recipe():
        prepared = _finished(config.folder("data"), "data", data_recipe, found)
        if (
            prepared
            and prepared.inputs["tokenizer"] == made.hash
            and prepared.inputs.get("clean") == as_cleaned
            and list(Store(config.folder("data"), "train").sources) == corpus.names
        ):
            return _prepared(config, prepared)

    tokenizer_recipe = {"tokenizer": tokenizer.recipe(), "corpus": corpus.reading()}
    folder = config.folder("tokenizer")
    trained = _finished(folder, "tokenizer", tokenizer_recipe, trained_on)
    if trained and trained.inputs.get("clean") == as_cleaned:
        return _counted(config, trained, cleaned, there=bool(trained_on))

    if not corpus.sources:
        why = "corpus.sources names none, and corpus.counts do not tell the store's size"
        return CorpusSize(None, f"unknown: {why}")

    if cleaned:
        kept, of = cleaned.counts["kept_bytes"], cleaned.counts["bytes"]
        what = f"{kept:,} bytes that cleaning keeps of {of:,} ({config.folder('clean')})"
        return estimated(config, _kept_bytes(corpus, cleaned), what)

    if not found:
        labels = ", ".join(source.label for source in corpus.sources)
        return CorpusSize(None, f"unknown: corpus not found ({labels})")

    if hub := ", ".join(source.label for source in corpus.sources if source.hub is not None):
        stage = "clean" if config.cleaning.on else "tokenizer"
        return CorpusSize(None, f"unknown until the {stage} stage has read the dataset ({hub})")

    sizes = {name: size for name, size in found.items() if size is not None}
    packed = sorted(
        {suffix for name in sizes if (suffix := Path(name).suffix.lower()) in EXPANSION}
    )
    ratios = "".join(
        f", {EXPANSION[suffix]:g} bytes of text for one of {suffix}" for suffix in packed
    )
    what = f"{sum(sizes.values()):,} bytes in {len(sizes):,} files"
    share = kept_share(config) if config.cleaning.on else KeptShare({}, "")
    not_yet = share.source and f"; {share.source}"
    size = estimated(config, _file_bytes(corpus, share.of_source), what, ratios, not_yet)
    if not config.cleaning.on:
        return size

    text, _ = _file_bytes(corpus)
    documents = text / BYTES_PER_TOKEN / TOKENS_PER_DOCUMENT
    return replace(
        size,
        cleaning=documents * cleaning_bytes(config.cleaning),
        cleaning_seconds=None if share.seconds is None else share.seconds * text,
    )


def _cleaned(config: PretrainingConfig, found: Mapping[str, int | None]) -> Manifest | None:
    """The manifest of the clean stage, where the config asks for one and it has finished."""
    corpus, cleaning = config.corpus, config.cleaning
    if not cleaning.on:
        return None

    try:
        sizes = {**found, **_further_sizes(cleaning)} if found else {}
    except UserError:
        return None

    recipe = clean_recipe(corpus, cleaning, config.data.language)
    made = _finished(config.folder("clean"), "clean", recipe, sizes)
    names = dict.fromkeys(row["source"] for row in made.counts["sources"]) if made else {}
    return made if list(names) == corpus.names else None


def _further_sizes(cleaning: CleaningConfig) -> dict[str, int | None]:
    """The bytes of the files that the clean stage reads beside the corpus. Raises UserError if one
    is not there."""
    sizes: dict[str, int | None] = {}
    if cleaning.language:
        model = model_file(cleaning.language)
        sizes[str(model)] = model.stat().st_size
    if cleaning.contamination:
        sizes |= corpus_sizes(EvaluationFiles.of(cleaning.contamination.files))

    return sizes


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

    before = {name: facts.get("bytes") for name, facts in remembered_files(folder).items()}
    return made if not found or before == found else None


def _prepared(config: PretrainingConfig, prepared: Manifest) -> CorpusSize:
    """By the token store."""
    counts, data, folder = prepared.counts, config.data, config.folder("data")
    same_packing = (counts["format"], counts["block_length"]) == (data.format, data.block_length)
    stores = [Store(folder, split) for split in SPLITS]
    tokens = np.diff(stores[0].source_starts)  # of each source, with their </s>
    repeats = config.corpus.repeats or np.ones(len(tokens))

    index = index_bytes(config, sum(store.stream_tokens for store in stores))
    if same_packing:
        blocks = counts["train_blocks"] + counts["validation_blocks"]
        index = index_bytes(config, blocks * (data.block_length - 1))

    return CorpusSize(
        float(tokens @ repeats),
        f"counted in {folder}",
        padding=counts["padding"] if same_packing else 0.0,
        store=sum(facts["bytes"] for facts in prepared.outputs.values()),
        shards=sum(len(store.shards) for store in stores),
        index=index,
        packed=same_packing,
    )


def _counted(
    config: PretrainingConfig, trained: Manifest, cleaned: Manifest | None, there: bool
) -> CorpusSize:
    """By the tokenizer's counts. `there`: whether the corpus's files are."""
    corpus = config.corpus
    tokens, documents = trained.counts["tokens"], trained.counts["documents"]
    raw = config.data.unit == "raw"
    units = documents if raw else tokens / TOKENS_PER_UNIT
    each = "document" if raw else f"{TOKENS_PER_UNIT} assumed"
    times, repeated = 1.0, ""
    if corpus.repeats and (cleaned or there):
        training = corpus.training
        text, epoch = _kept_bytes(training, cleaned) if cleaned else _file_bytes(training)
        times, repeated = epoch / text, ", repeated in proportion to their bytes"

    return CorpusSize(
        (tokens + units + documents) * (1 - corpus.validation) * times,
        f"{tokens:,} tokens counted in {config.folder('tokenizer')}{repeated}, a </s> for every"
        f" {each}",
        **_laid_out(config, tokens + units + documents, units, documents),
    )


def estimated(
    config: PretrainingConfig,
    text_bytes: tuple[float, float],
    what: str,
    ratios: str = "",
    not_yet: str = "",
) -> CorpusSize:
    """By the bytes of the text, and of an epoch."""
    text, epoch = text_bytes
    tokens = text / BYTES_PER_TOKEN
    documents = tokens / TOKENS_PER_DOCUMENT
    units = documents if config.data.unit == "raw" else tokens / TOKENS_PER_UNIT

    return CorpusSize(
        epoch / BYTES_PER_TOKEN * (1 - config.corpus.validation),
        f"estimated from {what}: {BYTES_PER_TOKEN} bytes for a token{ratios} assumed{not_yet}",
        **_laid_out(config, tokens, units, documents),
    )


def _laid_out(
    config: PretrainingConfig, tokens: float, units: float, documents: float
) -> dict[str, Any]:
    """What a token store of so many tokens takes, </s> included, as the data stage writes it."""
    vocab_size = config.tokenizer.vocab_size
    token_bytes = token_size(vocab_size) * tokens
    return {
        "store": store_bytes(tokens, units, documents, vocab_size),
        "shards": math.ceil(token_bytes / SHARD_BYTES) + (config.corpus.validation > 0),
        "index": index_bytes(config, tokens),
    }


def index_bytes(config: PretrainingConfig, tokens: float) -> float:
    """The packed index of full blocks: 12 bytes each, 32 in the pair formats."""
    return (32 if config.data.format in PAIRS else 12) * tokens / (config.data.block_length - 1)


def token_size(vocab_size: int) -> int:
    """Bytes of a token: 4 above 65,536 entries."""
    return 2 if vocab_size <= 2**16 else 4


def store_bytes(tokens: float, units: float, documents: float, vocab_size: int) -> float:
    """The token store: ids in 2 bytes, 4 above 65,536 entries; 4 for the end of a unit, 4 and about
    1 for the white space before it, 12 for a document."""
    return token_size(vocab_size) * tokens + 9 * units + 12 * documents


def cleaning_bytes(cleaning: CleaningConfig) -> int:
    """Of a document, in the clean stage's work folder: the rules' decision and the text's size; for
    exact duplicates its hash and place; for near ones its signature, and where that is from, in
    each bucket."""
    near = cleaning.near_duplicates
    signature = near.num_buckets * (8 * near.hashes_per_bucket + 4) if near else 0
    return 9 + (20 if cleaning.exact_duplicates else 0) + signature


def _file_bytes(
    corpus: CorpusConfig, kept: Mapping[str, float] | None = None
) -> tuple[float, float]:
    """Bytes of text in the files, those of datasets not counted; and those of an epoch, with each
    source as often as it is repeated. `kept`: the share of each source that is kept."""
    sizes = [0.0] * len(corpus.sources)
    for number, path in corpus_files(corpus):
        sizes[number] += path.stat().st_size * EXPANSION.get(path.suffix.lower(), 1.0)

    shares = [(kept or {}).get(name, 1.0) for name in corpus.names]
    return _with_epoch(corpus, [size * share for size, share in zip(sizes, shares, strict=True)])


def _kept_bytes(corpus: CorpusConfig, cleaned: Manifest) -> tuple[float, float]:
    """The same of the text that cleaning keeps."""
    kept = {row["source"]: row["bytes"] for row in cleaned.counts["sources"] if not row["reason"]}
    return _with_epoch(corpus, [kept[name] for name in corpus.names])


def _with_epoch(corpus: CorpusConfig, sizes: Sequence[float]) -> tuple[float, float]:
    """Of bytes of text by source: all, and those of an epoch."""
    times = [0 if source.held_out else source.repeat for source in corpus.sources]
    return sum(sizes), sum(size * each for size, each in zip(sizes, times, strict=True))
