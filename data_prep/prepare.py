"""The data stage: documents -> splits -> units -> tokens -> shards, and the blocks that the page
asks for."""

import functools
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustly import UserError, manifest, tokenizer
from robustly.corpus import decisions
from robustly.corpus.config import CorpusConfig, Processing
from robustly.corpus.documents import BadLine, documents, refuse_many
from robustly.corpus.executors import process
from robustly.corpus.files import Hashes, hashes
from robustly.corpus.partitions import Partition, partitions
from robustly.data_prep.config import DataConfig, store_recipe
from robustly.data_prep.sentences import units
from robustly.data_prep.store import SPLITS, Shard, ShardWriter, Split, Store, split_of, write_store
from robustly.files import WORK_LOCK, lock, write_json
from robustly.manifest import Manifest, Stage

if TYPE_CHECKING:
    from robustly.tokenizer.tokenizer import Tokenizer


def stage(
    corpus: CorpusConfig,
    data: DataConfig,
    folder: Path,
    tokenizer_folder: Path,
    beside: Path,
    cleaned: Path | None = None,
) -> Stage:
    """What the store in `folder` depends on. Raises UserError without a finished tokenizer or a
    readable corpus.

    `cleaned`: folder of the clean stage, for a page that has one.
    """
    return _stage(corpus, data, folder, tokenizer_folder, beside, cleaned)[0]


def _stage(
    corpus: CorpusConfig,
    data: DataConfig,
    folder: Path,
    tokenizer_folder: Path,
    beside: Path,
    cleaned: Path | None,
) -> tuple[Stage, Hashes]:
    if not corpus.sources:
        raise UserError(
            "corpus.sources: the page names none, only corpus.counts, from which a tokenizer can be"
            " trained; the data stage needs the text itself"
        )

    trained = manifest.require(tokenizer_folder, "tokenizer", "robustly tokenizer CONFIG")
    earlier = manifest.read(folder)
    contents = hashes(
        corpus, beside, {**trained.notes["files"], **(earlier.notes["files"] if earlier else {})}
    )
    inputs = {"corpus": contents.corpus, "tokenizer": trained.hash}
    if cleaned:
        inputs["clean"] = decisions.require(cleaned, contents.corpus).hash

    return Stage(folder, "data", store_recipe(corpus, data), inputs), contents


def prepare(
    corpus: CorpusConfig,
    data: DataConfig,
    folder: Path,
    tokenizer_folder: Path,
    beside: Path,
    processing: Processing,
    cleaned: Path | None = None,
) -> Manifest:
    """Make the token store of a page into `folder`, and the view of it that `data` asks for; what
    is there already is not made again. Returns the manifest.

    `beside` is the folder of the page, where relative paths start; `processing` changes no byte.
    `cleaned` is the folder of the clean stage, whose verdicts say which documents there are; None
    takes all of them. Shards lie in `folder/work` until all are done: after a kill, only the rest
    is made.

    Raises UserError if the corpus cannot be read or holds no text, if a split would be empty, if
    the text is too short for one block, or if the tokenizer or the clean stage is not finished."""
    made, contents = _stage(corpus, data, folder, tokenizer_folder, beside, cleaned)
    if finished := made.finished():
        return _with_view(finished, folder, data)

    # The stage begins when the shards are made and checked: a fault of the corpus or of the splits
    # must not leave a folder that refuses the mended page.
    work = folder / "work" / made.hash[:16]

    with lock(folder, WORK_LOCK):
        if finished := made.finished():  # by another process, while this one waited
            return _with_view(finished, folder, data)

        work.mkdir(parents=True, exist_ok=True)
        pieces = partitions(corpus, beside)
        pieces = decisions.attach(pieces, cleaned) if cleaned else pieces
        task = _Task(corpus, data, work, tokenizer_folder, made.inputs["tokenizer"])

        with ThreadPoolExecutor(1) as beside_the_workers:
            if processing.workers > 1:
                beside_the_workers.submit(_load_ahead, task)
            process(task, pieces, work / "tasks", processing, "preparing")

        done = [_read_facts(work, number) for number in range(len(pieces))]
        refuse_many([line for part in done for line in part.bad_lines], corpus)
        shards = {
            split: [shard for part in done if (shard := part.shards[split])] for split in SPLITS
        }
        _check(shards, sum(part.empty_documents for part in done), corpus, data)

        with made.begin():
            encoder = _encoder(tokenizer_folder, made.inputs["tokenizer"])
            sources = [source.title for source in corpus.sources]
            outputs = write_store(folder, work, made.hash, encoder, sources, shards)
            counts = {**_count(folder, done), **_view(folder, data)}
            counted = hashes(corpus.training, beside, contents.files).corpus
            notes = {
                "files": contents.files,
                "training_corpus": counted,
                "cleaned": _dropped_before(cleaned),
            }
            result = made.finish(outputs, counts, notes=notes)

        shutil.rmtree(folder / "work", ignore_errors=True)

    return result


def _load_ahead(task: "_Task") -> None:
    """Load what the end of the stage takes, a second or two of imports and reading, while others
    are at work."""
    import robustly.data_prep.blocks  # noqa: F401 (numba)

    _encoder(task.tokenizer_folder, task.trained)


def _dropped_before(cleaned: Path | None) -> dict[str, int]:
    """How many documents the clean stage left out, by reason."""
    made = manifest.read(cleaned) if cleaned else None
    return (
        {name: number for name, number in made.counts.items() if name.startswith("dropped by ")}
        if made
        else {}
    )


def _check(
    shards: dict[Split, list[Shard]], empty: int, corpus: CorpusConfig, data: DataConfig
) -> None:
    """Raises UserError unless there is text for every split, and enough to train on for a block."""
    found = sum(shard.documents for split in SPLITS for shard in shards[split])
    if not found:
        sources = ", ".join(source.label for source in corpus.sources)
        what = f"{empty:,} documents of nothing but white space" if empty else "no document"
        raise UserError(f"corpus.sources: {what} in {sources}; expected text")

    if not shards["train"]:
        raise UserError(
            f"corpus.validation = {corpus.validation}: all of the {found:,} documents are held out"
            " and none is left to train on; lower it, or give more documents"
        )

    seen = {shard.source for shard in shards["validation"]}

    for place, source in enumerate(corpus.sources):
        if source.held_out and place not in seen:
            raise UserError(
                f"corpus.sources: no document in {source.label}, which is held_out; expected text"
            )

    if corpus.validation and not shards["validation"]:
        raise UserError(
            f"corpus.validation = {corpus.validation}: none of the {found:,} documents is held out,"
            " so there would be nothing to evaluate on; raise it, give more documents"
            " (corpus.documents says where one ends), or set it to 0 to train without evaluation"
        )

    _check_room(sum(shard.tokens for shard in shards["train"]), data)


def _check_room(tokens: int, data: DataConfig) -> None:
    if tokens < data.block_length - 1:  # and <s>
        raise UserError(
            f"data.block_length = {data.block_length}: the text to train on has {tokens:,} tokens"
            " with </s>, too few for one block; give more text, or lower data.block_length"
        )


def _count(folder: Path, done: Sequence["_PartFacts"]) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    for split in SPLITS:
        store = Store(folder, split)
        counts[f"{split}_documents"] = store.documents
        counts[f"{split}_units"] = store.units
        counts[f"{split}_tokens"] = store.text_tokens

    text_bytes = sum(part.text_bytes for part in done)

    return {
        **counts,
        "bytes": text_bytes,
        "tokens_per_byte": round(
            sum(counts[f"{split}_tokens"] for split in SPLITS) / text_bytes, 4
        ),
        "empty_documents": sum(part.empty_documents for part in done),
        "bad_lines": sum(len(part.bad_lines) for part in done),
    }


def _view(folder: Path, data: DataConfig) -> dict[str, Any]:
    """Plan the blocks that the page asks for; returns their figures."""
    from robustly.data_prep.blocks import (
        Blocks,
        long_units,
    )  # here: a worker that makes shards need not import numba

    train, validation = (Blocks(folder, split, data.block_length, data.format) for split in SPLITS)

    return {
        "format": data.format,
        "block_length": data.block_length,
        "train_blocks": len(train),
        "validation_blocks": len(validation),
        "padding": round(1 - train.mean_length / data.block_length, 4),
        "long_units": sum(
            long_units(view.store, data.block_length, data.format) for view in (train, validation)
        ),
    }


def _with_view(finished: Manifest, folder: Path, data: DataConfig) -> Manifest:
    """The manifest of a store that was made before, with the figures of the view that is asked for
    now."""
    _check_room(Store(folder, "train").stream_tokens, data)
    if (finished.counts["format"], finished.counts["block_length"]) != (
        data.format,
        data.block_length,
    ):
        return replace(finished, counts={**finished.counts, **_view(folder, data)})

    from robustly.data_prep.blocks import Blocks

    for split in SPLITS:
        Blocks(folder, split, data.block_length, data.format)  # made again if it was deleted

    return finished


# -------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class _PartFacts:
    """What is known of a part once it is done."""

    shards: dict[Split, Shard | None]
    text_bytes: int
    empty_documents: int
    bad_lines: list[BadLine]


def _facts_file(work: Path, number: int) -> Path:
    return work / f"part-{number:05d}.json"


def _read_facts(work: Path, number: int) -> _PartFacts:
    facts = json.loads(_facts_file(work, number).read_text(encoding="utf-8"))
    return _PartFacts(
        {split: Shard(**shard) if shard else None for split, shard in facts["shards"].items()},
        facts["text_bytes"],
        facts["empty_documents"],
        [BadLine(**line) for line in facts["bad_lines"]],
    )


@functools.lru_cache(maxsize=1)
def _encoder(folder: Path, trained: str) -> "Tokenizer":
    """The encoder, loaded once a process; `trained`, the hash of its stage, tells it from an
    earlier one there."""
    return tokenizer.load(folder)


@dataclass(frozen=True)
class _Task:
    """Makes the shards of a part, in any process."""

    corpus: CorpusConfig
    data: DataConfig
    work: Path
    tokenizer_folder: Path
    trained: str

    def __call__(self, number: int, part: Partition) -> None:
        encoder = _encoder(self.tokenizer_folder, self.trained)
        bad_lines: list[BadLine] = []
        text_bytes = empty = 0

        with ExitStack() as open_shards:
            writers = {
                split: open_shards.enter_context(
                    ShardWriter(
                        self.work,
                        f"{split}-{number:05d}",
                        part.source,
                        encoder.eos_id,
                        encoder.dtype,
                    )
                )
                for split in SPLITS
            }
            for document in documents(part, self.corpus, bad_lines):
                text = document.text
                text_bytes += len(text.encode())
                spans = units(text, self.data.unit, self.data.language)
                if not spans:
                    empty += 1
                    continue

                gap_starts = [0, *(end for _, end in spans)]
                gap_ends = [*(start for start, _ in spans), len(text)]
                held_out = self.corpus.sources[part.source].held_out
                writers[
                    "validation" if held_out else split_of(text, self.corpus.validation)
                ].append(
                    *encoder.encode_lines([text[start:end] for start, end in spans]),
                    [text[start:end] for start, end in zip(gap_starts, gap_ends, strict=True)],
                )

        shards = {split: writer.shard for split, writer in writers.items()}
        write_json(
            _facts_file(self.work, number), asdict(_PartFacts(shards, text_bytes, empty, bad_lines))
        )
