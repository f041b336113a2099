"""Too little memory is no damage: no reader takes it for that, and a command says what to do."""

import errno
import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow
import pytest
import torch
import typer

from robustly import UserError, npy
from robustly.cli.common import user_errors
from robustly.corpus.executors.step import told
from robustly.corpus.reading import file_text
from robustly.exit_codes import START_AGAIN
from robustly.pretrain.start import tensor_files
from robustly.pretrain.start.tensor_files import read_pickle, read_tensors
from robustly.resources import out_of_memory
from robustly.strict_json import read_json

TOO_LITTLE = [
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((2**40,), np.dtype("u1")),  # type: ignore[attr-defined]
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    pyarrow.ArrowMemoryError("malloc of size 64 failed"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
]


@pytest.mark.parametrize("error", TOO_LITTLE, ids=repr)
def test_it_is_known_whoever_says_it(error: Exception) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), ValueError("memory"), KeyError("a")]
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not out_of_memory(error)


READS: dict[str, tuple[Any, str, Callable[[Path], Any]]] = {
    "array": (npy.np, "memmap", lambda folder: npy.read(folder / "a.npy", np.uint8)),
    "pickle": (torch, "load", lambda folder: read_pickle(folder / "a.bin")),
    "safetensors": (
        tensor_files,
        "load_file",
        lambda folder: read_tensors(folder / "a.safetensors"),
    ),
    "text": (Path, "open", lambda folder: file_text(str(folder / "a.txt.gz"))),
    "json": (Path, "read_bytes", lambda folder: read_json(folder / "a.json", Any, "")),
}


@pytest.mark.parametrize("error", TOO_LITTLE, ids=repr)
@pytest.mark.parametrize("reads", READS)
def test_a_reader_passes_it_on(reads: str, error: Exception, tmp_path: Path) -> None:
    import gzip

    npy.write(tmp_path / "a.npy", np.zeros(9, np.uint8))
    torch.save({"a": torch.ones(3)}, tmp_path / "a.bin")
    (tmp_path / "a.safetensors").touch()
    owner, name, read = READS[reads]
    if reads == "text":
        owner, name = gzip._GzipReader, "read"
        (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text"))

    with mock.patch.object(owner, name, side_effect=error), pytest.raises(Exception) as found:
        read(tmp_path)

    assert out_of_memory(found.value) and not isinstance(found.value, UserError)


def test_a_command_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as left, user_errors():
        raise MemoryError("views/train.npy: Cannot allocate memory")

    assert left.value.exit_code == START_AGAIN
    said = capsys.readouterr().err
    assert (
        said.startswith("error: not enough memory (views/train.npy") and "run.micro_batch" in said
    )
    assert "anew" not in said and "delete" not in said


def _read_with_little_memory(path: Path, answers: Any) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
    try:
        npy.read(path, np.uint8)
    except Exception as error:
        answers.send((type(error).__name__, str(error)))


def test_an_array_that_the_address_space_has_no_room_for(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        file.write(npy._header(np.dtype(np.uint8), 2**30))
        file.truncate(file.tell() + 2**30)  # without blocks on the disk

    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(
        target=_read_with_little_memory, args=(path, there)
    )
    child.start()
    assert here.poll(60)
    kind, message = here.recv()
    child.join()
    assert kind == "MemoryError" and str(path) in message


@pytest.mark.parametrize("error", TOO_LITTLE, ids=repr)
def test_a_part_of_a_stage_says_it_wherever_it_is_worked_on(error: Exception) -> None:
    assert told(error).startswith("not enough memory: ")
    assert told(UserError("a.txt: no text")) == "a.txt: no text"
    assert told(ValueError("memory")) == "ValueError: memory"
