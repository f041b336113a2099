"""Pickles that would run code: none of it is run, whichever opcode, file layout or reader."""

import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from robustly import UserError, npy
from robustly.pretrain.start import fairseq
from robustly.pretrain.start.tensor_files import read_pickle
from tests.fuzz.reading import no_code

CALLS = (
    *("os system", "posix system", "os popen", "nt system", "subprocess Popen", "subprocess check_output"),
    *("builtins exec", "builtins eval", "builtins __import__", "builtins getattr", "builtins open"),
    *("pickle loads", "torch load", "torch.storage _load_from_bytes", "torch.hub load", "torch.serialization load"),
    *("runpy run_path", "importlib import_module", "numpy load", "shutil rmtree", "webbrowser open", "pty spawn"),
    *("robustly.files write_atomic", "torch.jit.unsupported_tensor_ops execWrapper", "torch.utils.cpp_extension load"),
)  # fmt: skip
"""What attacks on pickles call, by module and name."""


def pickles(call: str, canary: Path) -> Iterator[tuple[str, bytes]]:
    """The call with an argument that would leave a file, by each opcode that can make one."""
    module, name = call.encode().split(b" ")
    text = f"touch {canary}".encode()
    short = b"\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name
    yield "reduce", b"\x80\x02c" + module + b"\n" + name + b"\n(V" + text + b"\ntR."
    yield "inst", b"\x80\x02(V" + text + b"\ni" + module + b"\n" + name + b"\n."
    yield "obj", b"\x80\x02(c" + module + b"\n" + name + b"\nV" + text + b"\no."
    yield "newobj", b"\x80\x02c" + module + b"\n" + name + b"\n(V" + text + b"\nt\x81."
    yield "stack_global", b"\x80\x04" + short + b"\x93(V" + text + b"\ntR."
    yield "build", b"\x80\x02}(Va\nc" + module + b"\n" + name + b"\n(V" + text + b"\ntRu."


def in_zip(data: bytes) -> bytes:
    """As torch.save lays it out since 1.6."""
    out = io.BytesIO()
    torch.save({"a": torch.ones(2)}, out)
    changed = io.BytesIO()
    with zipfile.ZipFile(out) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, data if name.endswith("data.pkl") else old.read(name))

    return changed.getvalue()


def in_legacy(data: bytes) -> bytes:
    """As before: a magic number, the protocol, the machine, then the object."""
    machine = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    head = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, machine)]
    return b"".join(head) + data + pickle.dumps([], protocol=2)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("call", CALLS)
def test_a_pickle_runs_nothing(call: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "pytorch_model.bin"
    for opcode, data in pickles(call, canary):
        for content in (in_zip(data), in_legacy(data), data):
            path.write_bytes(content)
            for read in (read_pickle, fairseq.read_checkpoint):
                with no_code():
                    try:
                        found = read(path)
                    except UserError as fault:
                        assert str(path) in str(fault)
                    else:  # with placeholders in the places of calls
                        assert read is read_pickle and "Placeholder" in repr(found), opcode

                assert not canary.exists(), opcode


class Attack:
    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, ("touch canary",)


def test_an_array_of_objects_is_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "a.npy", np.array([Attack()] * 16, object), allow_pickle=True)
    for kind in (np.uint8, np.uint32):
        with no_code(), pytest.raises(UserError, match=r"a\.npy"):
            npy.read(tmp_path / "a.npy", kind)

    assert not (tmp_path / "canary").exists()
