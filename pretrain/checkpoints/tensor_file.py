"""Write tensors in the format of safetensors, and hash them on the way: nothing is read again.

A file is the size of its header (8 bytes, little-endian), the header (JSON: each tensor's dtype,
shape, and first and last byte behind the header), and the tensors' bytes, row by row, little-endian
(https://huggingface.co/docs/safetensors, "Format"). Of the same tensors it is, byte by byte, the
file that safetensors' own `save_file` writes, which tells no hash and leaves files to their owner
alone, whatever the user's umask."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from robustly import heartbeat

DTYPES = {  # in the order in which tensors lie in a file: the widest first, so that all are aligned
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ORDER = list(DTYPES)
CHUNK = 2**23
"""Bytes that are hashed and written at a time."""
FLUSHED = 2**28
"""Bytes after which the disk is waited for: a slow one gets on in steps, unlike one that hangs."""


class Written(NamedTuple):
    """What was written."""

    bytes: int
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """Write tensors of this machine's memory into a new file, flushed to disk. Raises OSError, of a
    full disk as well."""
    assert sys.byteorder == "little", "the format's byte order"
    names = sorted(tensors, key=lambda name: (ORDER.index(tensors[name].dtype), name))
    digest = hashlib.sha256()
    flushed = 0

    with path.open("wb") as file:
        for part in (_header(names, tensors), *(_bytes(tensors[name]) for name in names)):
            for start in range(0, len(part), CHUNK):
                chunk = part[start : start + CHUNK]
                digest.update(chunk)
                file.write(chunk)
                if file.tell() - flushed >= FLUSHED:
                    _flush(file)
                    flushed = file.tell()

                heartbeat.go_on_in_background()

        _flush(file)
        return Written(file.tell(), digest.hexdigest())


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _header(names: list[str], tensors: Mapping[str, Tensor]) -> memoryview:
    """Size and JSON, whose length is made a multiple of 8 by spaces."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }

    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return memoryview(len(text).to_bytes(8, "little") + text)


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's own memory, unless it is not contiguous."""
    raw = tensor.detach().contiguous().flatten().view(torch.uint8)
    return raw.numpy().data
