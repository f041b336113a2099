"""Read tensors from safetensors files and pickles, without running any code that these hold."""

import mmap
import pickle
import pickletools
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robustly import UserError
from robustly.files import check_fetched
from robustly.resources import check_memory

_LEGACY_PICKLES = 4
"""Of a file before torch 1.6: a magic number, the protocol, the machine, the object; the storages
come after them."""
_FAULTS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    OSError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
"""What a file that is no checkpoint, or a damaged one, makes torch and pickle raise."""


class Placeholder:
    """Stands in for every class and function that a pickle names and torch does not know as safe:
    it does nothing, and keeps the state of what it stands for."""

    state: Any = None

    def __new__(cls, *arguments: Any) -> "Placeholder":
        return object.__new__(cls)

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, with `Placeholder` objects in the place of all but tensors and plain
    values.

    torch's restricted unpickler (`weights_only`) reads it. Raises UserError if it cannot, as where
    a pickle names a function of `os`, or is cut off."""
    try:
        check_fetched(path)
        placeholders: list[Any] = [(Placeholder, name) for name in sorted(_names(path))]
        with torch.serialization.safe_globals(placeholders):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _FAULTS as error:
        check_memory(error, path)
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise UserError(f"{path}: cannot be read as tensors and plain values: {reason}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a pickled state_dict. Raises UserError if it holds
    something else."""
    if path.suffix != ".safetensors":
        return state_dict(path, read_pickle(path))

    try:
        check_fetched(path)
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        check_memory(error, path)
        raise UserError(f"{path}: cannot be read: {error}") from None


def state_dict(path: Path, value: Any) -> dict[str, Tensor]:
    """`value` as tensors by name. Raises UserError if it is something else."""
    if not isinstance(value, dict) or not all(
        isinstance(tensor, Tensor) for tensor in value.values()
    ):
        found = type(value).__name__
        if isinstance(value, dict):
            others = [
                f"{str(name)[:60]} is {type(one).__name__}"
                for name, one in value.items()
                if not isinstance(one, Tensor)
            ]
            found = f"a dict where {', '.join(others[:3])}; save the weights on their own"

        raise UserError(f"{path}: expected tensors by name (a state_dict), found {found}")

    return dict(value)


def _names(path: Path) -> set[str]:
    """Every class and function that the file names, as `module.name`; nothing is loaded."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (data,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(data) as file:
                return _named(file)

    # mapped: a damaged length reads to the end of a map, and as much into memory from a file
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        return set().union(*(_named(cast(IO[bytes], stream)) for _ in range(_LEGACY_PICKLES)))


def _named(file: IO[bytes]) -> set[str]:
    operations = pickletools.genops(file)
    return {
        str(found).replace(" ", ".")
        for operation, found, _ in operations
        if operation.name == "GLOBAL"
    }
