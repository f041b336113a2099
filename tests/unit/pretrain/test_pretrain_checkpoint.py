"""Checkpoints are complete or absent, whatever happens while they are written."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustly import UserError
from robustly.files import remove_left_overs
from robustly.metrics import Extent
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.checkpoint import DamagedCheckpoint, FullTensors, Progress
from robustly.pretrain.sessions import Session
from robustly.strict_json import sealed

NAMES = ["roberta.a", "lm_head.b"]


def tensors(value: float) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    for name in NAMES:
        yield (name, *(torch.full((3, 2), float(value + i)) for i in range(3)))  # type: ignore[misc]


def copies(value: float) -> FullTensors:
    found = checkpoint.copy_tensors(tensors(value), keep=True)
    assert found
    return found


def save(
    folder: Path,
    update: int,
    recipe: str = "r",
    keep: int = 2,
    loss: float | None = None,
    keep_every: int | None = None,
) -> None:
    interval = {"loss_sum": 1 / 3}
    progress = Progress(
        update,
        recipe,
        tokens=10 * update,
        seconds=0.1 * update,
        interval=interval,
        validation_loss=loss,
    )
    checkpoint.save(folder, progress, copies(update), keep, keep_every)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_to_the_bit(tmp_path: Path) -> None:
    save(tmp_path, 7)
    found = checkpoint.newest(tmp_path, "r")
    assert found is not None
    assert found.progress == Progress(
        7, "r", tokens=70, seconds=0.1 * 7, interval={"loss_sum": 1 / 3}
    )
    for weight, first, second in found.tensors(NAMES):
        assert (weight == 7).all() and (first == 8).all() and (second == 9).all()
        assert weight.dtype == torch.float32

    assert found.weights().keys() == set(NAMES)
    with pytest.raises(UserError, match=r"do not fit the model: roberta\.c"):
        list(found.tensors([*NAMES, "roberta.c"]))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for update in (5, 10, 100):
        save(tmp_path, update)
    assert names_in(tmp_path) == ["update-00000010", "update-00000100"]


def test_those_of_every_mth_update_are_kept_beside_the_newest_and_the_best(tmp_path: Path) -> None:
    for update in range(2, 23, 2):
        save(tmp_path, update, keep=1, keep_every=5, loss=0.0 if update == 6 else 1.0)

    kept = ["best.json", *(f"update-{update:08d}" for update in (6, 10, 20, 22))]
    assert names_in(tmp_path) == kept


def test_copies_stay_as_they_are_and_only_rank_0_makes_them() -> None:
    weight = torch.zeros(3)
    given = [("a", weight, weight + 1, weight + 2)]
    kept = checkpoint.copy_tensors(iter(given), keep=True)
    weight.fill_(9.0)  # the next update
    assert kept
    assert kept.weights["a"].tolist() == [0.0, 0.0, 0.0]
    assert sorted(kept.moments) == ["exp_avg.a", "exp_avg_sq.a"]

    gone_through = iter(given)  # gathering them is the work of all ranks
    assert checkpoint.copy_tensors(gone_through, keep=False) is None
    assert next(gone_through, None) is None


def test_the_best_is_marked_and_stays(tmp_path: Path) -> None:
    for update, loss in ((2, 5.0), (4, None), (6, 3.0), (8, 3.5), (10, 3.0), (12, None)):
        save(tmp_path, update, loss=loss)

    assert names_in(tmp_path) == [
        "best.json",
        "update-00000006",
        "update-00000010",
        "update-00000012",
    ]
    assert json.loads((tmp_path / "best.json").read_text()) == {"update": 6, "validation_loss": 3.0}
    save(tmp_path, 14, loss=2.5)
    assert names_in(tmp_path) == ["best.json", "update-00000012", "update-00000014"]
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "update": 14,
        "validation_loss": 2.5,
    }


def test_the_mark_follows_from_the_checkpoints_alone(tmp_path: Path) -> None:
    """A kill before it is written, a checkpoint that is gone, a state that is spoilt."""
    save(tmp_path, 2, loss=2.0)
    save(tmp_path, 4, loss=1.0)
    (tmp_path / "best.json").unlink()
    assert checkpoint.mark_best(tmp_path) == (4, 1.0)
    assert json.loads((tmp_path / "best.json").read_text())["update"] == 4
    (tmp_path / "update-00000004" / "state.json").write_text("[]")
    assert checkpoint.mark_best(tmp_path) == (2, 2.0)
    shutil.rmtree(tmp_path / "update-00000002")
    assert checkpoint.mark_best(tmp_path) is None
    assert not (tmp_path / "best.json").exists()


def test_a_newer_one_that_was_found_damaged_is_not_the_best(tmp_path: Path) -> None:
    save(tmp_path, 2, loss=2.0)
    save(tmp_path, 6, loss=1.0)
    (tmp_path / "update-00000006" / "weights.safetensors").write_bytes(b"spoilt")
    save(tmp_path, 4, loss=1.5)  # the run went on from 2
    assert names_in(tmp_path) == ["best.json", "update-00000002", "update-00000004"]
    assert checkpoint.mark_best(tmp_path) == (4, 1.5)


@pytest.mark.parametrize("damage", ["weights.safetensors", "moments.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["missing", "cut off", "changed"])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    tmp_path: Path, damage: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 5)
    save(tmp_path, 10)
    file = tmp_path / "update-00000010" / damage
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "cut off":
        file.write_bytes(content[:-9])
    else:
        file.write_bytes(content[:-9] + b"~" * 9)

    found = checkpoint.newest(tmp_path, "r")
    assert found is not None and found.progress.update == 5
    message = capsys.readouterr().err
    assert damage in message and "update-00000010" in message
    save(tmp_path, 10)  # the resumed run writes it again
    again = checkpoint.newest(tmp_path, "r")
    assert again is not None and again.progress.update == 10


def test_another_recipes_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 5)
    with pytest.raises(UserError, match="another recipe"):
        checkpoint.newest(tmp_path, "other")


def test_a_full_disk_leaves_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5)

    def full(path: Path, values: object) -> None:
        path.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(UserError, match="disk is full"):
        save(tmp_path, 10)

    assert names_in(tmp_path) == ["update-00000005"]


@pytest.mark.processes
@pytest.mark.parametrize("call", range(1, 8))
def test_killed_at_any_moment_of_saving(tmp_path: Path, call: int) -> None:
    """As it flushes, to disk: weights, moments, state, its folder; after the rename: the folder
    above, best.json, its folder."""
    save(tmp_path, 5, loss=2.0)
    original = os.fsync
    if (child := os.fork()) == 0:
        calls = []

        def killed(descriptor: int) -> None:
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            original(descriptor)

        os.fsync = killed

        try:
            save(tmp_path, 10, keep=1, loss=1.0)
        finally:
            os._exit(0)

    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    found = checkpoint.newest(tmp_path, "r")
    assert found is not None
    # the rename is the moment of truth; before it the old one counts, after it the new one
    assert found.progress.update == (10 if call > 4 else 5)
    remove_left_overs(tmp_path)  # as the stage does when it begins
    save(tmp_path, 15, keep=1, loss=0.5)
    assert names_in(tmp_path) == ["best.json", "update-00000015"]


def test_without_one_whole_checkpoint_nothing_begins_anew(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nowhere", "r") is None
    save(tmp_path, 5)
    (tmp_path / "update-00000005" / "state.json").unlink()
    with pytest.raises(UserError, match="none of its 1 checkpoints is whole"):
        checkpoint.newest(tmp_path, "r")


def test_an_unreadable_checkpoint_is_no_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 5)
    save(tmp_path, 10)

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint, "sha256", refuse)

    with pytest.raises(
        UserError, match="cannot be read"
    ):  # not: falling back, and losing five updates
        checkpoint.newest(tmp_path, "r")


def test_damaged_newer_checkpoints_do_not_push_out_whole_ones(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 10)
    (tmp_path / "update-00000010" / "weights.safetensors").write_bytes(b"")
    (
        tmp_path / "update-00000003.mine"
    ).mkdir()  # a user's copy, and a file that only looks like one
    (tmp_path / "update-00000001.tar").write_bytes(b"")
    found = checkpoint.newest(tmp_path, "r")
    assert found is not None and found.progress.update == 5
    save(tmp_path, 7, keep=1)
    assert names_in(tmp_path) == ["update-00000001.tar", "update-00000003.mine", "update-00000007"]


# ------------------------------------------------------------------------------------ state.json


def edit(path: Path, change: Callable[[dict[str, Any]], object], seal: bool) -> None:
    """Change a checkpoint's state, under its old seal or under a new one that fits."""
    state = json.loads((path / "state.json").read_text())
    if seal:
        del state["seal"]

    change(state)
    (path / "state.json").write_text(json.dumps(sealed(state) if seal else state))


@pytest.mark.parametrize("key", ["update", "tokens", "seconds", "recipe_hash", "validation_loss"])
def test_every_edit_of_a_state_is_found(tmp_path: Path, key: str) -> None:
    save(tmp_path, 10, loss=2.0)
    path = tmp_path / "update-00000010"
    edit(path, lambda state: state.update({key: type(state[key])(3)}), seal=False)
    with pytest.raises(DamagedCheckpoint, match=r"state\.json: changed since it was written"):
        checkpoint.read(path)

    assert checkpoint.mark_best(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.update(files={}), "files: expected weights.safetensors and moments"),
        (lambda state: state["files"].pop("moments.safetensors"), "files: expected"),
        (lambda state: state["files"].update(more={"bytes": 1, "sha256": ""}), "files: expected"),
        (lambda state: state["files"].update({"weights.safetensors": 5}), r"files\.weights"),
        (lambda state: state.update(update=7), "of update 7, which is not its folder's"),
        (lambda state: state.update(update="10"), "update: expected a valid integer"),
        (lambda state: state.update(update=True), "update: expected a valid integer"),
        (lambda state: state.update(tokens=1.5), "tokens: expected a valid integer"),
        (lambda state: state.update(interval=[]), "interval: "),
        (lambda state: state.update(sessions=[{}]), r"sessions\.0\."),
        (lambda state: state.update(metrics={"metrics.jsonl": {"lines": 1}}), r"metrics\."),
        (lambda state: state.update(unknown=1), "unknown: "),
        (lambda state: state.pop("recipe_hash"), "recipe_hash: "),
    ],
)
def test_a_state_of_another_shape_is_a_damaged_one(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    save(tmp_path, 5)
    save(tmp_path, 10)
    path = tmp_path / "update-00000010"
    edit(path, change, seal=True)
    with pytest.raises(DamagedCheckpoint, match=r"state\.json: " + reason):
        checkpoint.read(path)

    found = checkpoint.newest(tmp_path, "r")
    assert found is not None and found.progress.update == 5


@pytest.mark.parametrize(
    "content", ["", "5", "[]", "null", '"text"', "{}", '{"seal": 1}', "[" * 100_000, "\x00", "NaN"]
)
def test_what_is_no_state_is_a_damaged_one(tmp_path: Path, content: str) -> None:
    save(tmp_path, 10)
    (tmp_path / "update-00000010" / "state.json").write_text(content)
    with pytest.raises(DamagedCheckpoint, match=r"state\.json: "):
        checkpoint.read(tmp_path / "update-00000010")


def test_a_state_without_a_seal_is_a_damaged_one(tmp_path: Path) -> None:
    save(tmp_path, 10)
    path = tmp_path / "update-00000010"
    edit(path, lambda state: state.pop("seal"), seal=False)
    with pytest.raises(DamagedCheckpoint, match="has no seal"):
        checkpoint.read(path)


def test_a_checkpoint_under_another_name_is_a_damaged_one(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / "update-00000010").rename(tmp_path / "update-00000020")
    with pytest.raises(UserError, match="none of its 1 checkpoints is whole"):
        checkpoint.newest(tmp_path, "r")


def test_records_and_sessions_come_back(tmp_path: Path) -> None:
    session = Session(
        "2026-01-01T00:00:00+0000", ("a", "b"), {"CPU": 2}, 2, "fp32", 1, 8, "c", {"torch": "2"}, 0, 9
    )  # fmt: skip
    progress = Progress(
        9, "r", metrics={"metrics.jsonl": Extent(3, 99, "f" * 64)}, packed_index={"train": "0"},
        sessions=(session, replace(session, lost_metrics=("metrics.jsonl",))),
    )  # fmt: skip
    checkpoint.save(tmp_path, progress, copies(1), 1)
    assert checkpoint.read(tmp_path / "update-00000009").progress == progress
