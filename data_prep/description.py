"""What a data folder holds: documents and tokens per split and source, the views of them, a block of each split."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

import tokenizer
from data_prep.blocks import VIEWS, Blocks, Format
from data_prep.store import SPLITS, STORE, Split, Store, check_tokenizer
from robustly import UserError, manifest
from robustly.description import Description, Listing, disk_bytes, provenance, unfinished

QUANTILES = (0.05, 0.5, 0.95)
_VIEW = re.compile(rf"({'|'.join(SPLITS)})-({'|'.join(get_args(Format))})-(\d+)-([0-9a-f]{{16}})")


def describe(folder: Path) -> Description:
    """Describe a data folder, finished or begun. Blocks are shown if their tokenizer lies beside the folder.

    Raises UserError if a file of a finished one is missing or was cut off.
    """
    if (finished := manifest.read(folder)) is None:
        return unfinished(folder, "data")
    manifest.check_sizes(folder, finished)
    stores = {split: Store(folder, split) for split in SPLITS}
    sources = json.loads((folder / STORE).read_text(encoding="utf-8"))["sources"]
    views = [view for split in SPLITS for view in _views(folder, stores[split])]
    shown, notes = _decoded(folder, [blocks for _, blocks in views])
    counts = finished.counts
    documents = sum(store.documents for store in stores.values())
    tokens = sum(store.text_tokens for store in stores.values())
    unit = finished.recipe.get("data", {}).get("unit", "unit")
    return Description(
        folder,
        "data",
        f"A token store of {documents:,} documents and {tokens:,} tokens, in {unit}s.",
        {
            "documents": documents,
            "units": sum(store.units for store in stores.values()),
            "tokens": tokens,
            **{name: counts[name] for name in ("bytes", "empty_documents", "bad_lines") if name in counts},
            "bytes_per_token_on_disk": stores["train"].dtype.itemsize,
            "bytes_on_disk": disk_bytes(folder),
            **provenance(finished),
        },
        [
            Listing("splits and sources", [row for split in SPLITS for row in _sources(stores[split], sources)]),
            Listing("tokens per document", [_lengths(store) for store in stores.values() if store.documents]),
            Listing("blocks", [_fill(format, blocks) for format, blocks in views]),
            Listing("a block of each split", shown),
        ],
        notes,
    )


def _sources(store: Store, sources: list[str]) -> Iterator[dict[str, Any]]:
    for number, name in enumerate(sources):
        shards = [shard for shard in store.shards if shard.source == number]
        documents, units = (sum(getattr(shard, kind) for shard in shards) for kind in ("documents", "units"))
        yield {
            "split": store.split,
            "source": name,
            "documents": documents,
            "units": units,
            "tokens": sum(shard.tokens for shard in shards) - units - documents,  # without </s>
        }


def document_lengths(store: Store) -> NDArray[np.int64]:
    """Tokens of each document's text, in the order of the store: (documents,)."""
    lengths = []
    for shard in store.shards:
        units = store.document_ends(shard).astype(np.int64)
        ends = store.unit_ends(shard)[units - 1] + np.int64(1)  # of the stream, with the lone </s> after a document
        lengths.append(np.diff(ends, prepend=0) - np.diff(units, prepend=0) - 1)
    return np.concatenate([np.empty(0, np.int64), *lengths])


def _lengths(store: Store) -> dict[str, Any]:
    lengths = document_lengths(store)
    quantiles = np.quantile(lengths, QUANTILES)
    return {
        "split": store.split,
        "mean": round(float(lengths.mean()), 1),
        **{f"{share:.0%}": int(value) for share, value in zip(QUANTILES, quantiles, strict=True)},
        "longest": int(lengths.max()),
    }


def _views(folder: Path, store: Store) -> Iterator[tuple[Format, Blocks]]:
    """The views of a split that have been made of this very store, each with its input format."""
    for path in sorted((folder / VIEWS).glob("*.npy")):
        named = _VIEW.fullmatch(path.stem)
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


def _decoded(folder: Path, views: list[Blocks]) -> tuple[list[dict[str, Any]], list[str]]:
    """The middle block of each split's first view as text, with <s> and </s> by name; or why there is none."""
    beside = folder.parent / "tokenizer"
    try:
        encoder = tokenizer.load(beside)
        check_tokenizer(folder, encoder)
    except UserError as fault:
        return [], [f"blocks are not shown as text, which needs the tokenizer in {beside}: {fault}"]
    shown = []
    first: dict[Split, Blocks] = {}
    for blocks in views:
        if len(blocks):
            first.setdefault(blocks.store.split, blocks)
    for split, blocks in first.items():
        number = len(blocks) // 2
        ids, lengths = blocks.gather(np.array([number]))
        text = encoder.decode(ids[0, : lengths[0]])
        shown.append({"split": split, "block": number, "tokens": int(lengths[0]), "text": text})
    return shown, []
