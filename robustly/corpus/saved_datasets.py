"""Folders that the `save_to_disk` of `datasets` wrote: which of their files hold the rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.strict_json import read_json

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_ANEW = "copy the folder anew, or write it again with save_to_disk"


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a Dataset or a DatasetDict."""
    return (folder / SPLITS).is_file() or ((folder / STATE).is_file() and (folder / INFO).is_file())


def files(folder: Path) -> Iterator[Path]:
    """The files that hold the rows of a Dataset, or of the only split of a DatasetDict; others that
    lie there are caches.

    Raises UserError for several splits, rows that were selected but not written, or a file that is
    missing."""
    if (folder / SPLITS).is_file():
        folder /= _only_split(folder)

    state = _read(folder / STATE)
    if state.get("_indices_data_files"):
        raise UserError(
            f"{folder}: a dataset of which a selection of rows was saved by their numbers; write it"
            " anew: load_from_disk(...).flatten_indices().save_to_disk(...)"
        )

    for file in _listed(state, "_data_files", folder / STATE):
        name = file.get("filename") if isinstance(file, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{folder / STATE}: expected a file's name, found {name!r}; {_ANEW}")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: not there, though {STATE} names it; {_ANEW}")
        yield folder / name


def _only_split(folder: Path) -> str:
    splits = [str(split) for split in _listed(_read(folder / SPLITS), "splits", folder / SPLITS)]
    if len(splits) == 1 and Path(splits[0]).name == splits[0]:
        return splits[0]

    raise UserError(
        f"{folder}: saved by `save_to_disk`, with {len(splits)} splits: {', '.join(splits[:9])};"
        f" expected one: give the path of a split, such as {folder}/train"
    )


def _listed(values: dict[str, Any], key: str, path: Path) -> list[Any]:
    if not isinstance(found := values.get(key), list):
        raise UserError(f"{path}: {key}: expected a list; {_ANEW}")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, dict[str, Any], _ANEW)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: not there; {_ANEW}") from None
