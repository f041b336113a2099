"""Describe a data folder: documents and tokens by split and source, their lengths, what was
dropped, the packed blocks, and some of them as text."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from robustly import UserError
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.config import Format
from robustly.data_prep.derived import VIEWS
from robustly.data_prep.store import SPLITS, Shard, Split, Store, check_tokenizer
from robustly.description import Description, Listing
from robustly.inspection.folders import disk_bytes, provenance, rows_without_text
from robustly.inspection.histogram import Tally, octaves, tally, tenths
from robustly.manifest import Manifest
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.tokenizer import Tokenizer

QUANTILES = (0.05, 0.5, 0.95)
DROPPED = {"empty_documents": "nothing but white space", "bad_lines": "a row that gave no text"}
"""Counts of the manifest -> why these are not in the store."""
FOLLOWS = {1: "yes", 0: "no", -1: "there is none"}
"""Whether the second segment of a pair follows the first in its document, as the block is
planned."""
CHUNK = 2**20  # lengths of blocks that are read at a time: 8 MB
_INDEX = re.compile(rf"({'|'.join(SPLITS)})-({'|'.join(get_args(Format))})-(\d+)-([0-9a-f]{{16}})")


def find_tokenizer(folder: Path, given: Path | None) -> Tokenizer:
    """The tokenizer of a data folder: the one that was given, else the one beside the folder.

    Raises UserError if there is none, or if it is another than the store's.
    """
    place = given or folder.absolute().parent / "tokenizer"
    try:
        tokenizer = load_tokenizer(place)
        check_tokenizer(folder, tokenizer)
    except UserError as fault:
        remedy = "" if given else "; --tokenizer FOLDER takes it from elsewhere"
        raise UserError(f"text needs the tokenizer in {place}: {fault}{remedy}") from None

    return tokenizer


def describe(
    folder: Path, finished: Manifest, blocks: int = 1, tokenizer: Tokenizer | None = None
) -> Description:
    """Describe a data folder. So many blocks of each packed index are shown as text, by `tokenizer`
    or the one beside the folder, if there is one."""
    stores = {split: Store(folder, split) for split in SPLITS}
    indexes = [index for split in SPLITS for index in _indexes(folder, stores[split])]
    texts, notes = [], []

    try:
        texts = _as_text(indexes, blocks, tokenizer or find_tokenizer(folder, None))
    except UserError as fault:
        notes.append(f"blocks are not shown: {fault}")

    documents = sum(store.documents for store in stores.values())
    tokens = sum(store.text_tokens for store in stores.values())
    unit = finished.recipe.get("data", {}).get("unit", "unit")
    cut = "each a unit as it is" if unit == "raw" else f"in {unit}s"
    figures = {
        "documents": documents,
        "units": sum(store.units for store in stores.values()),
        "tokens": tokens,
    }
    if "bytes" in finished.counts:
        figures["bytes"] = finished.counts["bytes"]

    return Description(
        folder,
        "data",
        f"A token store of {documents:,} documents and {tokens:,} tokens, {cut}.",
        {
            **figures,
            "bytes_per_token_on_disk": stores["train"].dtype.itemsize,
            "bytes_on_disk": disk_bytes(folder),
            **provenance(finished),
        },
        [
            Listing(
                "splits and sources", [row for split in SPLITS for row in _sources(stores[split])]
            ),
            Listing("dropped", _dropped(finished)),
            *_added(finished),
            *rows_without_text(folder, finished),
            *_lengths(stores),
            Listing("blocks", [_fill(format, index) for format, index in indexes]),
            *_fills(indexes),
            Listing("blocks as text", texts),
        ],
        notes,
    )


def _dropped(finished: Manifest) -> list[dict[str, Any]]:
    """What cleaning left out, by reason, and what held no text."""
    rows = [
        {"what": "documents", "reason": reason.removeprefix("dropped by "), "count": count}
        for reason, count in finished.notes.get("cleaned", {}).items()
    ]
    for what, reason in DROPPED.items():
        if what in finished.counts:
            rows.append({"what": what, "reason": reason, "count": finished.counts[what]})

    return rows


def _added(finished: Manifest) -> list[Listing]:
    """How often each added token of the tokenizer stands in the text, the most frequent first; no
    listing where it has none."""
    counts = Counter(finished.counts.get("added_tokens", {}))
    rows = [{"token": name, "count": number} for name, number in counts.most_common()]
    return [Listing("added tokens in the text", rows)] if rows else []


def _lengths(stores: Mapping[Split, Store]) -> Iterator[Listing]:
    """How long documents and units are, in tokens."""
    tallies = {
        kind: {
            split: tally(piece for shard in store.shards for piece in lengths(store, shard))
            for split, store in stores.items()
        }
        for kind, lengths in (("documents", document_lengths), ("units", unit_lengths))
    }
    quantiles = [_quantiles(*found) for found in tallies["documents"].items() if found[1].total]
    yield Listing("tokens per document", quantiles)

    for kind, of_splits in tallies.items():
        bins = [
            {"split": split, **row}
            for split, lengths in of_splits.items()
            for row in octaves(lengths, kind)
        ]
        yield Listing(f"{kind} by tokens", bins, bars=("split", kind))


def _sources(store: Store) -> Iterator[dict[str, Any]]:
    for number, name in enumerate(store.sources):
        shards = store.shards_of(number)
        documents, units = (
            sum(getattr(shard, kind) for shard in shards) for kind in ("documents", "units")
        )
        yield {
            "split": store.split,
            "source": name,
            "documents": documents,
            "units": units,
            "tokens": sum(shard.tokens for shard in shards) - units - documents,  # without </s>
        }


def document_lengths(store: Store, shard: Shard) -> Iterator[NDArray[np.int64]]:
    """Tokens of the text of each of a shard's documents, many at a time."""
    for lines in store.lines(shard):
        closed = np.flatnonzero(lines == 1)  # the lone </s> after a document
        tokens = np.cumsum(lines)[closed] - closed - 1  # less every </s> up to there
        yield np.diff(tokens, prepend=0)


def unit_lengths(store: Store, shard: Shard) -> Iterator[NDArray[np.int64]]:
    """Tokens of each of a shard's units, many at a time."""
    for lines in store.lines(shard):
        yield lines[lines > 1] - 1  # a unit has a token or more; a line of 1 is the lone </s>


def _quantiles(split: Split, lengths: Tally) -> dict[str, Any]:
    quantiles = lengths.quantiles(QUANTILES)
    return {
        "split": split,
        "mean": round(lengths.mean, 1),
        **{f"{share:.0%}": int(value) for share, value in zip(QUANTILES, quantiles, strict=True)},
        "longest": int(lengths.lengths[-1]),
    }


def _fills(indexes: list[tuple[Format, Blocks]]) -> Iterator[Listing]:
    """How full the blocks of each packed index are, as shares of their length."""
    rows: dict[tuple[Format, int], list[dict[str, Any]]] = {}
    for format, index in indexes:
        pieces = (index.lengths[begin : begin + CHUNK] for begin in range(0, len(index), CHUNK))
        bins = tenths(tally(pieces), index.block_length, "blocks")
        rows.setdefault((format, index.block_length), []).extend(
            {"split": index.store.split, **row} for row in bins
        )

    for (format, length), found in rows.items():
        yield Listing(f"blocks by fill, {format} {length}", found, bars=("split", "blocks"))


def _indexes(folder: Path, store: Store) -> Iterator[tuple[Format, Blocks]]:
    """The packed indexes of a split, made of this very store, each with its input format."""
    for path in sorted((folder / VIEWS).glob("*.npy")):
        named = _INDEX.fullmatch(path.stem)
        if named and named[1] == store.split and store.hash.startswith(named[4]):
            format = cast(Format, named[2])
            yield format, Blocks(folder, store.split, int(named[3]), format)


def _fill(format: Format, blocks: Blocks) -> dict[str, Any]:
    return {
        "split": blocks.store.split,
        "format": format,
        "length": blocks.block_length,
        "blocks": len(blocks),
        "mean": round(blocks.mean_length, 1),
        "padding": round(1 - blocks.mean_length / blocks.block_length, 4) if len(blocks) else None,
    }


def _as_text(
    indexes: list[tuple[Format, Blocks]], wanted: int, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """Blocks of each packed index as text, with <s> and </s> by name: from the middles of `wanted`
    equal parts of it."""
    rows = []
    for format, index in indexes:
        parts = min(wanted, len(index))
        for number in ((2 * part + 1) * len(index) // (2 * parts) for part in range(parts)):
            ids, lengths = index.gather(np.array([number]))
            row: dict[str, Any] = {
                "split": index.store.split,
                "format": format,
                "length": index.block_length,
                "block": number,
                "tokens": int(lengths[0]),
            }
            if index.pairs:
                row["follows"] = FOLLOWS[int(index.follows(np.array([number]))[0])]

            rows.append({**row, "text": tokenizer.decode(ids[0, : lengths[0]])})

    return rows
