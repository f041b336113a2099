"""Encode the corpus into the token store: the data stage.

Documents -> splits -> units -> token ids -> shards of partitions -> large shards, and the packed
index that the config asks for."""

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustly import UserError, log, manifest, npy
from robustly.corpus import decisions
from robustly.corpus.bad_lines import (
    BadLine,
    ListedLine,
    count_bad_lines,
    list_bad_lines,
    listed_in,
    move_list,
    told,
)
from robustly.corpus.config import CorpusConfig, Processing
from robustly.corpus.documents import documents
from robustly.corpus.executors import process
from robustly.corpus.files import (
    Hashes,
    corpus_files,
    hash_corpus,
    remember_files,
    remembered_files,
)
from robustly.corpus.partitions import RULE, Partition, partitions, work_key
from robustly.corpus.reading import suffixes
from robustly.data_prep.config import DataConfig, store_recipe
from robustly.data_prep.encoding import encode
from robustly.data_prep.merging import SHARD_BYTES, Merge, Part, merge, merges
from robustly.data_prep.store import (
    SPLITS,
    Shard,
    ShardWriter,
    Split,
    Store,
    split_of,
    write_partitions,
    write_store,
)
from robustly.files import write_json
from robustly.manifest import Manifest, Outcome, Stage
from robustly.strict_json import read_json
from robustly.tokenizer import trained_tokenizer
from robustly.tokenizer.added_tokens import count_added

if TYPE_CHECKING:
    from robustly.tokenizer.tokenizer import Tokenizer


TOKENS_AT_ONCE = 2**22  # that are counted: 32 MB
PARTS, SHARDS = "parts", "shards"
"""Folders of the work: what each partition has become, and the shards that they are merged into."""


@dataclass(frozen=True)
class DataStage:
    """The data stage of a config."""

    corpus: CorpusConfig
    data: DataConfig
    folder: Path
    tokenizer_folder: Path
    processing: Processing
    """Changes no byte."""
    clean_folder: Path | None = None
    """Of the clean stage, whose decisions say which documents there are; None takes all of them."""

    def stage(self) -> Stage:
        """What the token store depends on. Raises UserError without a finished tokenizer or a
        readable corpus."""
        if not self.corpus.sources:
            raise UserError(
                "corpus.sources: the config names none, only corpus.counts, from which a tokenizer"
                " can be trained; the data stage needs the text itself"
            )

        inputs = {"corpus": self._contents.corpus, "tokenizer": self._trained.hash}
        if self.clean_folder:
            inputs["clean"] = decisions.require(self.clean_folder, self._contents.corpus).hash

        return Stage(self.folder, "data", store_recipe(self.corpus, self.data), inputs)

    @cached_property
    def _trained(self) -> Manifest:
        return manifest.require_whole(self.tokenizer_folder, "tokenizer")

    @property
    def _dtype(self) -> np.dtype[Any]:
        """Of tokens."""
        return trained_tokenizer(self.tokenizer_folder, self._trained.hash).dtype

    @cached_property
    def _contents(self) -> Hashes:
        earlier = remembered_files(self.tokenizer_folder), remembered_files(self.folder)
        return hash_corpus(self.corpus, {**earlier[0], **earlier[1]})

    def make(self) -> Manifest:
        """Make the token store, and the packed index that `data` asks for; what is there already is
        not made again. Returns the manifest.

        Raises UserError if the corpus cannot be read or holds no text, if a split would be empty,
        if the text is too short for one block, or if the tokenizer or the clean stage is not
        finished."""
        stage = self.stage()
        made = stage.make(work_key(stage.hash), self._process, self._collect)
        return _with_packed_index(made, self.folder, self.data)

    def _process(self, work: Path) -> "list[_PartitionFacts]":
        _look_at_raw(self.corpus, self.data)
        cut = partitions(self.corpus, self._contents.found)
        if self.clean_folder:
            cut = decisions.attach(cut, self.clean_folder)

        trained = self.tokenizer_folder, self._trained.hash
        parts = work / PARTS
        parts.mkdir(exist_ok=True)
        make = functools.partial(_make_parts, self.corpus, self.data, parts, *trained)
        with ThreadPoolExecutor(1) as beside_the_workers:
            if self.processing.workers > 1:
                beside_the_workers.submit(_load_ahead, *trained)
            process(make, cut, parts / "tasks", self.processing, "preparing")

        done = [_read_facts(parts, number) for number in range(len(cut))]
        bad_lines = list_bad_lines(
            [line for facts in done for line in facts.bad_lines], self.corpus, work
        )
        _check(done, bad_lines, self.corpus, self.data)
        self._merge(work, done)
        return done

    def _merge(self, work: Path, done: "list[_PartitionFacts]") -> None:
        """Make the store's shards of the partitions' parts."""
        planned = _merges(done, self._dtype)
        shards = work / SHARDS
        shards.mkdir(exist_ok=True)
        small = sum(each.shard.tokens for each in planned) * self._dtype.itemsize < SHARD_BYTES
        here = replace(self.processing, executor="local", workers=1)  # a second's work or two
        make = functools.partial(merge, shards, work / PARTS, self._dtype)
        process(make, planned, shards / "tasks", here if small else self.processing, "merging")

    def _collect(self, work: Path, done: "list[_PartitionFacts]") -> Outcome:
        tokenizer = trained_tokenizer(self.tokenizer_folder, self._trained.hash)
        sources = [source.title for source in self.corpus.sources]
        shards: dict[Split, list[Shard]] = {split: [] for split in SPLITS}
        for each in _merges(done, tokenizer.dtype):
            shards[each.split].append(each.shard)

        outputs = write_store(
            self.folder, work / SHARDS, self.stage().hash, tokenizer, sources, shards
        )
        for split in SPLITS:
            of_parts = [
                part.shard.documents if (part := facts.parts[split]) else 0 for facts in done
            ]
            outputs.append(write_partitions(self.folder, split, of_parts))
        for path in set(self.folder.glob("*.npy")) - set(outputs):
            path.unlink()  # of a store that is made anew, and was cut into other shards

        outputs += move_list(work, self.folder)
        counts = {**_count(self.folder, done), **_pack(self.folder, self.data)}
        if added := tokenizer.vocabulary.added:
            counts["added_tokens"] = count_added(added, (facts.added_tokens for facts in done))
        notes = {
            **remember_files(self.folder, self._contents.files),
            "cut": RULE,
            "training_corpus": self._contents.training,
            "cleaned": _cleaned(self.clean_folder, "dropped by "),
            "replaced": _cleaned(self.clean_folder, "replaced "),
        }
        return Outcome(outputs, counts, notes)


def _look_at_raw(corpus: CorpusConfig, data: DataConfig) -> None:
    """Warn where documents are cut out of a file whose line ends are to be learned."""
    if data.unit != "raw" or corpus.documents == "file":
        return

    for _, path in corpus_files(corpus):
        if suffixes(path)[0] == ".txt":
            log.warn(
                f"data.unit = raw: corpus.documents = {corpus.documents} cuts {path} into documents"
                " without the line ends between them; corpus.documents=file keeps them, and so does"
                " a text in JSON lines or Parquet"
            )
            return


def _parts(done: "Sequence[_PartitionFacts]", split: Split) -> list[Part]:
    return [part for facts in done if (part := facts.parts[split])]


def _merges(done: "Sequence[_PartitionFacts]", dtype: np.dtype[Any]) -> list[Merge]:
    return [each for split in SPLITS for each in merges(split, _parts(done, split), dtype.itemsize)]


def _load_ahead(tokenizer_folder: Path, trained: str) -> None:
    """Load what the end of the stage needs, a second or two of imports and reading, while the
    workers are at work."""
    import robustly.data_prep.blocks  # noqa: F401 (numba)

    trained_tokenizer(tokenizer_folder, trained)


def _cleaned(folder: Path | None, what: str) -> dict[str, int]:
    """The counts of the clean stage whose names begin so."""
    made = manifest.read(folder) if folder else None
    counts = made.counts if made else {}
    return {name: number for name, number in counts.items() if name.startswith(what)}


def _check(
    done: "Sequence[_PartitionFacts]",
    bad_lines: Sequence[ListedLine],
    corpus: CorpusConfig,
    data: DataConfig,
) -> None:
    """Raises UserError unless there is text for every split, and enough to train on for a block."""
    shards = {split: [part.shard for part in _parts(done, split)] for split in SPLITS}
    skipped = told(bad_lines)
    empty = sum(facts.empty_documents for facts in done)
    found = sum(shard.documents for split in SPLITS for shard in shards[split])
    if not found:
        sources = ", ".join(source.label for source in corpus.sources)
        what = f"{empty:,} documents of nothing but white space" if empty else "no document"
        raise UserError(f"corpus.sources: {what} in {sources}; expected text{skipped}")

    if not shards["train"]:
        raise UserError(
            f"corpus.validation = {corpus.validation}: all of the {found:,} documents are held out"
            f" and none is left to train on; lower it, or give more documents{skipped}"
        )

    seen = {shard.source for shard in shards["validation"]}

    for place, source in enumerate(corpus.sources):
        if source.held_out and place not in seen:
            raise UserError(
                f"corpus.sources: no document in {source.label}, which is held_out; expected"
                f" text{skipped}"
            )

    if corpus.validation and not shards["validation"]:
        raise UserError(
            f"corpus.validation = {corpus.validation}: none of the {found:,} documents is held out,"
            " so there would be nothing to evaluate on; raise it, give more documents"
            " (corpus.documents says where one ends), or set it to 0 to train without"
            f" evaluation{skipped}"
        )

    _check_room(sum(shard.tokens for shard in shards["train"]), data, bad_lines)


def _check_room(tokens: int, data: DataConfig, bad_lines: Sequence[ListedLine]) -> None:
    if tokens < data.block_length - 1:  # and <s>
        raise UserError(
            f"data.block_length = {data.block_length}: the text to train on has {tokens:,} tokens"
            " with </s>, too few for one block; give more text, or lower"
            f" data.block_length{told(bad_lines)}"
        )


def _count(folder: Path, done: Sequence["_PartitionFacts"]) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    for split in SPLITS:
        store = Store(folder, split)
        counts[f"{split}_documents"] = store.documents
        counts[f"{split}_units"] = store.units
        counts[f"{split}_tokens"] = store.text_tokens

    text_bytes = sum(facts.text_bytes for facts in done)
    tokens = sum(counts[f"{split}_tokens"] for split in SPLITS)

    return {
        **counts,
        "bytes": text_bytes,
        "tokens_per_byte": round(tokens / text_bytes, 4),
        "empty_documents": sum(facts.empty_documents for facts in done),
        **count_bad_lines([line for facts in done for line in facts.bad_lines]),
    }


def _pack(folder: Path, data: DataConfig) -> dict[str, Any]:
    """Make the packed index that the config asks for; returns its figures."""
    # here: a worker that makes shards need not import numba
    from robustly.data_prep.blocks import Blocks

    train, validation = (Blocks(folder, split, data.block_length, data.format) for split in SPLITS)

    return {
        "format": data.format,
        "block_length": data.block_length,
        "train_blocks": len(train),
        "validation_blocks": len(validation),
        "padding": round(1 - train.mean_length / data.block_length, 4),
        "long_units": train.long_units + validation.long_units,
    }


def _with_packed_index(finished: Manifest, folder: Path, data: DataConfig) -> Manifest:
    """The manifest of a finished store, with the figures of the packed index that is asked for
    now."""
    _check_room(Store(folder, "train").stream_tokens, data, listed_in(folder))
    packed = finished.counts["format"], finished.counts["block_length"]
    if packed != (data.format, data.block_length):
        return replace(finished, counts={**finished.counts, **_pack(folder, data)})

    from robustly.data_prep.blocks import Blocks

    for split in SPLITS:
        Blocks(folder, split, data.block_length, data.format)  # made again if it was deleted

    return finished


# --------------------------------------------------------------------------------------- partitions


@dataclass(frozen=True)
class _PartitionFacts:
    """What is known of a partition once its text is encoded."""

    parts: dict[Split, Part | None]
    text_bytes: int
    empty_documents: int
    bad_lines: list[BadLine]
    added_tokens: dict[str, int]
    """How often each of the tokenizer's added tokens stands in the text."""


def _facts_file(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.json"


def _read_facts(folder: Path, number: int) -> _PartitionFacts:
    return read_json(
        _facts_file(folder, number), _PartitionFacts, f"delete {folder.parent} to begin anew"
    )


def _make_parts(
    corpus: CorpusConfig,
    data: DataConfig,
    folder: Path,
    tokenizer_folder: Path,
    trained: str,
    number: int,
    partition: Partition,
) -> None:
    """Encode a partition, in any process: its part of each split."""
    tokenizer = trained_tokenizer(tokenizer_folder, trained)
    held_out = corpus.sources[partition.source].held_out
    bad_lines: list[BadLine] = []
    text_bytes = found = 0
    writers: dict[Split, ShardWriter] = {}

    with ExitStack() as open_shards:
        for split in SPLITS:
            name = f"{split}-{number:05d}"
            writer = ShardWriter(folder, name, partition.source, tokenizer.eos_id, tokenizer.dtype)
            writers[split] = open_shards.enter_context(writer)

        def read() -> Iterator[tuple[Split, str]]:
            nonlocal text_bytes, found
            for text in documents(partition, corpus, bad_lines):
                text_bytes += len(text) if text.isascii() else len(text.encode())
                found += 1
                yield "validation" if held_out else split_of(text, corpus.validation), text

        for split, some in encode(tokenizer, read(), data.unit, data.language):
            writers[split].extend(some)

    parts = {
        split: Part(shard, writer.gap_bytes) if (shard := writer.shard) else None
        for split, writer in writers.items()
    }
    shards = [part.shard for part in parts.values() if part]
    added = _count_added(folder, shards, tokenizer)
    empty = found - sum(shard.documents for shard in shards)
    facts = _PartitionFacts(parts, text_bytes, empty, bad_lines, added)
    write_json(_facts_file(folder, number), asdict(facts))


def _count_added(folder: Path, shards: Sequence[Shard], tokenizer: "Tokenizer") -> dict[str, int]:
    """How often each added token of the tokenizer stands in shards."""
    if not tokenizer.vocabulary.added:
        return {}

    times = np.zeros(tokenizer.vocab_size, np.int64)
    for shard in shards:
        tokens = npy.read(folder / f"{shard.name}.tokens.npy", tokenizer.dtype, shard.tokens)
        for start in range(0, tokens.size, TOKENS_AT_ONCE):
            some = tokens[start : start + TOKENS_AT_ONCE]
            times += np.bincount(some, minlength=times.size)

    names = [token.content for token in tokenizer.vocabulary.added]
    return {name: int(times[tokenizer.vocabulary.ids[name]]) for name in names}
