"""Files beside a token store that are made of it: when they are first asked for, and hashed before
they are used.

Beside each `<name>.npy` lies its manifest, `<name>.json`: what the file is made of, and its sha256.
A file without one, of other code, or with another hash is made anew, because it decides what is
trained on. Both may be deleted."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from robustly import UserError, log
from robustly.files import disk_full, remove_left_overs, sha256, write_json
from robustly.strict_json import parse_json, record, sealed

VIEWS = "views"
"""Folder of a token store's derived files."""
HOUR = 3600.0
"""Seconds without a change after which an unfinished file is one that nobody writes any more."""


@record
@dataclass(frozen=True)
class _Manifest:
    """What lies beside a derived file."""

    made_of: dict[str, Any]
    """All that the file is a function of."""
    sha256: str
    changed_ns: int
    """When the file had last changed as it was hashed."""
    facts: dict[str, Any]
    """What was found out of it as it was made, so that nobody reads all of it for that."""


class Derived(NamedTuple):
    """A derived file."""

    sha256: str
    facts: dict[str, Any]


class _Unfit(Exception):
    """A file that cannot be used; the argument says why."""


def derive(
    what: str, path: Path, made_of: dict[str, Any], make: Callable[[], dict[str, Any]]
) -> Derived:
    """The file at `path`, which `make` writes if it is not there or does not fit; it returns the
    facts of it.

    `what` it is, for people. Processes that ask for a file at the same time make the same. Raises
    UserError if it can be neither read nor made, and what `make` raises."""
    try:
        try:
            return _verify(path, made_of)
        except FileNotFoundError:
            return _make(path, made_of, make)
        except _Unfit as reason:
            log.say(f"{path}: {reason}; it is made anew")
            return _make(path, made_of, make)
    except OSError as error:
        if disk_full(error):  # the store is whole, and the same command goes on
            raise

        raise UserError(
            f"{path}: {what} can be neither read nor made: {error.strerror or error}"
        ) from None


def _verify(path: Path, made_of: dict[str, Any]) -> Derived:
    """A file that is what its manifest says. It is not read again until it changes.

    Raises FileNotFoundError if there is no file, _Unfit if it cannot be used."""
    changed = _changed_ns(path)
    try:
        manifest = parse_json(path.with_suffix(".json").read_bytes(), _Manifest, seal=True)
    except (FileNotFoundError, ValueError):
        raise _Unfit("its manifest is missing or not one") from None

    for key, value in made_of.items():
        if manifest.made_of.get(key) != value:
            raise _Unfit(f"made of {key} {manifest.made_of.get(key)}, expected {value}")

    if manifest.changed_ns == changed:
        return Derived(manifest.sha256, manifest.facts)

    digest = sha256(path)
    if digest != manifest.sha256:
        raise _Unfit(f"sha256 {digest[:12]}, expected {manifest.sha256[:12]}: damaged")

    with contextlib.suppress(OSError):  # a folder that is only read: it is hashed at every start
        _write_manifest(path, _Manifest(made_of, digest, changed, manifest.facts))

    return Derived(digest, manifest.facts)


def _make(path: Path, made_of: dict[str, Any], make: Callable[[], dict[str, Any]]) -> Derived:
    path.parent.mkdir(exist_ok=True)
    remove_left_overs(path.parent, untouched=HOUR)
    facts = make()
    changed = _changed_ns(path)
    digest = sha256(path)
    _write_manifest(path, _Manifest(made_of, digest, changed, facts))
    return Derived(digest, facts)


def _changed_ns(path: Path) -> int:
    """To be asked for before the file is read, so that a change meanwhile is seen next time."""
    return path.stat().st_ctime_ns


def _write_manifest(path: Path, manifest: _Manifest) -> None:
    write_json(path.with_suffix(".json"), sealed(asdict(manifest)))
