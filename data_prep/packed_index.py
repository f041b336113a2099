"""The packed index of a split on disk: made when it is first asked for, hashed before it is used.

Beside each `<name>.npy` lies its manifest, `<name>.json`: what the index is made of, and its
sha256. An index without one, of other code, or with another hash is made anew, because it decides
what is trained on. Both may be deleted."""

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from robustly import UserError, heartbeat, log, npy
from robustly.data_prep.config import Format
from robustly.data_prep.packing import PACKING, index_dtype, pack
from robustly.data_prep.store import Store
from robustly.files import disk_full, remove_left_overs, sha256, write_json
from robustly.strict_json import parse_json, record

PACKED = "views"
"""Folder of a token store's packed indexes."""
HOUR = 3600.0
"""Seconds without a change after which an unfinished index is one that nobody writes any more."""


class PackedIndex(NamedTuple):
    """The blocks of a split."""

    rows: NDArray[Any]
    """(blocks,) of `packing.index_dtype`, mapped from disk."""
    sha256: str
    """Of the file."""


@record
@dataclass(frozen=True)
class _Manifest:
    """What lies beside an index."""

    made_of: dict[str, Any]
    """All that the index is a function of."""
    sha256: str
    changed_ns: int
    """When the file had last changed as it was hashed."""


class _Unfit(Exception):
    """An index that cannot be used; the argument says why."""


def open_index(store: Store, block_length: int, format: Format) -> PackedIndex:
    """The packed index of a store's split. Processes that ask for it at the same time make the
    same.

    Raises UserError if it can be neither read nor made, or if a shard is missing or cut off."""
    name = f"{store.split}-{format}-{block_length}-{store.hash[:16]}"
    path = store.folder / PACKED / f"{name}.npy"
    made_of = {
        "packing": PACKING,
        "store": store.hash,
        "split": store.split,
        "format": format,
        "block_length": block_length,
    }

    try:
        try:
            digest = _verify(path, made_of)
        except FileNotFoundError:
            digest = _make(path, made_of, store)
        except _Unfit as reason:
            log.say(f"{path}: {reason}; it is made anew")
            digest = _make(path, made_of, store)
    except OSError as error:
        if disk_full(error):  # the store is whole, and the same command goes on
            raise

        raise UserError(
            f"{path}: the packed index can be neither read nor made: {error.strerror or error}"
        ) from None

    return PackedIndex(npy.read(path, index_dtype(format)), digest)


def _verify(path: Path, made_of: dict[str, Any]) -> str:
    """The sha256 of an index that is what its manifest says. It is not read again until it changes.

    Raises FileNotFoundError if there is no index, _Unfit if it cannot be used."""
    changed = _changed_ns(path)
    try:
        manifest = parse_json(path.with_suffix(".json").read_bytes(), _Manifest)
    except (FileNotFoundError, ValueError):
        raise _Unfit("its manifest is missing or not one") from None

    for key, value in made_of.items():
        if manifest.made_of.get(key) != value:
            raise _Unfit(f"made of {key} {manifest.made_of.get(key)}, expected {value}")

    if manifest.changed_ns == changed:
        return manifest.sha256

    digest = sha256(path)
    if digest != manifest.sha256:
        raise _Unfit(f"sha256 {digest[:12]}, expected {manifest.sha256[:12]}: damaged")

    with contextlib.suppress(OSError):  # a folder that is only read: it is hashed at every start
        _write_manifest(path, _Manifest(made_of, digest, changed))

    return digest


def _make(path: Path, made_of: dict[str, Any], store: Store) -> str:
    """Pack the split, source by source, so that a block is of one source. Returns the sha256."""
    format, block_length = made_of["format"], made_of["block_length"]
    path.parent.mkdir(exist_ok=True)
    remove_left_overs(path.parent, untouched=HOUR)

    with npy.GrowingArray(path, index_dtype(format)) as index:
        for source in range(len(store.sources)):
            lines = (sizes for shard in store.shards_of(source) for sizes in store.lines(shard))
            start = int(store.source_starts[source])
            for blocks in pack(lines, block_length, format, start):
                index.append(blocks)
                heartbeat.go_on()

    changed = _changed_ns(path)
    digest = sha256(path)
    _write_manifest(path, _Manifest(made_of, digest, changed))
    return digest


def _changed_ns(path: Path) -> int:
    """To be asked for before the file is read, so that a change meanwhile is seen next time."""
    return path.stat().st_ctime_ns


def _write_manifest(path: Path, manifest: _Manifest) -> None:
    write_json(path.with_suffix(".json"), asdict(manifest))
