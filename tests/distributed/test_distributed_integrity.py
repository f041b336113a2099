"""A damaged input is named before the first update; each copy of the inputs is hashed once, and not
again."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_config import SMALL

from ranks import run_distributed
from robustly import UserError, manifest
from robustly.experiment import data_work, load_experiment
from robustly.files import sha256
from robustly.pretrain.integrity import verify
from robustly.pretrain.loop import pretrain
from robustly.pretrain.process_group import start_ranks, stop_ranks
from robustly.pretrain.ranks import FailedOnAnotherRank
from robustly.pretrain.stage import PretrainingConfig

pytestmark = pytest.mark.distributed


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared data that a test may damage."""
    return shutil.copytree(prepared / "data", tmp_path / "data")


def flip(path: Path) -> None:
    """Change a byte in the middle, and leave size and time of modification as they were."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def end_of_training(rank: int, ranks: int, config: PretrainingConfig) -> list[str]:
    try:
        pretrain(config, rank, rank, ranks)
    except (UserError, FailedOnAnotherRank) as fault:
        return [type(fault).__name__, str(fault)]
    return ["trained", ""]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_shard_is_named_before_the_first_update(
    pretraining: Callable[..., PretrainingConfig],
    data: Path,
    ranks: int,
    damage: Callable[[Path], None],
) -> None:
    shard = next(data.glob("train-*.tokens.npy"))
    damage(shard)
    config = pretraining("train", f"paths.data={data}")
    ends = run_distributed(ranks, end_of_training, config)
    named = [message for kind, message in ends if kind == "UserError"]
    assert {kind for kind, _ in ends} <= {"UserError", "FailedOnAnotherRank"}
    assert named and all(
        str(shard) in message and "restore it, or delete" in message for message in named
    )
    if damage is flip:
        assert len(named) == 1 and named[0].count("\n") == 0
        found, expected = sha256(shard), manifest.read(data).outputs[shard.name]["sha256"]  # type: ignore[union-attr]
        assert f"sha256 {found[:12]}, expected {expected[:12]}" in named[0]

    assert not (config.folder("train") / "metrics.jsonl").exists()


def hashed(rank: int, ranks: int, copies: list[Path]) -> dict[str, Any]:
    """Verify the copy of this rank; returns the names that it hashed and what it was told."""
    names = []
    original = manifest.sha256

    def counted(path: Path) -> str:
        names.append(path.name)
        return original(path)

    manifest.sha256 = counted
    start_ranks(rank)
    message = ""

    try:
        verify([copies[rank % len(copies)]], rank)
    except UserError as fault:
        message = str(fault)

    stop_ranks()
    return {"names": names, "message": message}


def outputs(folder: Path) -> list[str]:
    finished = manifest.read(folder)
    assert finished
    return sorted(finished.outputs)


def test_ranks_share_the_work_and_remember_it(data: Path) -> None:
    first = [result["names"] for result in run_distributed(3, hashed, [data])]
    assert sorted(name for names in first for name in names) == outputs(data)
    assert all(first)
    assert [result["names"] for result in run_distributed(2, hashed, [data])] == [[], []]
    touched = data / outputs(data)[0]
    touched.touch()
    again = [result["names"] for result in run_distributed(2, hashed, [data])]
    assert [name for names in again for name in names] == [touched.name]


def test_the_data_is_known_where_it_was_prepared(prepared: Path, tmp_path: Path) -> None:
    places = [
        f"corpus.sources={prepared / 'corpus.txt'}",
        f"paths.root={prepared}",
        f"paths.data={tmp_path / 'new'}",
    ]
    data_work(load_experiment("configs/tiny.yaml", [*SMALL, *places])).make()
    assert run_distributed(1, hashed, [tmp_path / "new"])[0]["names"] == []
    assert run_distributed(1, hashed, [prepared / "tokenizer"])[0]["names"] == []


def test_every_copy_is_checked(data: Path, tmp_path: Path) -> None:
    other = shutil.copytree(data, tmp_path / "other")
    damaged = other / outputs(other)[-1]
    flip(damaged)
    results = run_distributed(3, hashed, [data, other])  # ranks 0 and 2 see one, rank 1 the other
    assert sorted(results[0]["names"] + results[2]["names"]) == outputs(data)
    assert results[0]["names"] and results[2]["names"]
    assert sorted(results[1]["names"]) == outputs(other)
    assert [str(damaged) in result["message"] for result in results] == [False, True, False]
    # what was whole is remembered all the same
    assert [result["names"] for result in run_distributed(2, hashed, [data, other])] == [
        [],
        [damaged.name],
    ]


def test_a_folder_that_cannot_be_written_is_no_fault(
    data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, value: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(manifest, "write_json", refuse)
    for _ in range(2):
        results = run_distributed(2, hashed, [data])
        assert sorted(name for result in results for name in result["names"]) == outputs(data)
        assert not any(result["message"] for result in results)
        assert capfd.readouterr().err.count("cannot be written (Read-only file system)") == 1
