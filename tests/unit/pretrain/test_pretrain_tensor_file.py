"""Files of tensors are those of safetensors, byte by byte, and their hashes are told."""

import hashlib
import os
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from robustly.pretrain.checkpoints import tensor_file
from robustly.pretrain.checkpoints.tensor_file import DTYPES, write_tensors


def tensor(dtype: torch.dtype, shape: list[int]) -> Tensor:
    return (torch.arange(torch.Size(shape).numel()).reshape(shape) * 37 % 251).to(dtype)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=5).filter(
    lambda name: name != "__metadata__"
)
TENSORS = st.dictionaries(
    NAMES,
    st.builds(tensor, st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 4), max_size=3)),
    max_size=6,
)


@given(TENSORS, st.integers(1, 40))
def test_a_file_is_the_one_that_safetensors_writes(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor], chunk: int
) -> None:
    ours, theirs = (tmp_path_factory.getbasetemp() / name for name in ("ours", "theirs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_file, "CHUNK", chunk)
        patch.setattr(tensor_file, "FLUSHED", 3 * chunk)
        written = write_tensors(ours, tensors)

    save_file(tensors, theirs, metadata={"format": "pt"})
    assert ours.read_bytes() == theirs.read_bytes()
    assert written == (ours.stat().st_size, hashlib.sha256(ours.read_bytes()).hexdigest())
    loaded = load_file(ours)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_tensors_that_lie_in_another_order_are_written_row_by_row(tmp_path: Path) -> None:
    turned = tensor(torch.float32, [3, 4]).T
    write_tensors(tmp_path / "file", {"turned": turned, "part": turned[1:, ::2]})
    loaded = load_file(tmp_path / "file")
    assert torch.equal(loaded["turned"], turned) and torch.equal(loaded["part"], turned[1:, ::2])


@pytest.mark.parametrize("mask", [0o027, 0o002])
def test_a_file_has_the_mode_that_the_user_wants(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "file", {"a": tensor(torch.float32, [2])})
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask


def test_a_full_disk_is_said() -> None:
    with pytest.raises(OSError, match="No space left"):
        write_tensors(Path("/dev/full"), {"a": tensor(torch.float32, [10**6])})
