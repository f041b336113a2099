"""Stage folders: a kill at any moment leaves either nothing or a whole, and no work is
overwritten."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robustly import UserError, __version__, files, manifest
from robustly.files import lock, unfinished, write_atomic
from robustly.manifest import (
    MANIFEST,
    RECIPE,
    VERIFIED,
    Outcome,
    Stage,
    check_sizes,
    read,
    remember,
    require,
    unverified,
    verify,
)

RECIPE_A = {"optim": {"peak_lr": 1e-3, "betas": [0.9, 0.98]}, "seed": 1}


def finished_stage(folder: Path, recipe: dict | None = None) -> Stage:
    stage = Stage(folder, "data", recipe or RECIPE_A, {"tokenizer": "abc"})
    with stage.begin():
        (folder / "shards").mkdir()
        (folder / "shards" / "0.bin").write_bytes(b"x" * 1000)
        (folder / "ends.npy").write_bytes(b"y" * 10)
        stage.finish(
            [folder / "shards" / "0.bin", folder / "ends.npy"], {"tokens": 500}, {"took": "long"}
        )

    return stage


# ------------------------------------------------------------------------------------ atomic writes


def test_write_atomic(tmp_path):
    write_atomic(tmp_path / "file", "é\n")
    assert (tmp_path / "file").read_bytes() == b"\xc3\xa9\n"
    write_atomic(tmp_path / "file", b"\x00")
    assert (tmp_path / "file").read_bytes() == b"\x00"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, failing):
    write_atomic(tmp_path / "file", "old")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        *{"fsync": (files.os, "fsync", fail), "replace": (Path, "replace", fail)}[failing]
    )
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "file", "new")

    assert (tmp_path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_the_bytes_are_on_disk_before_the_name_is(tmp_path, monkeypatch):
    events: list[tuple[str, Path]] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor):
        events.append(("synced", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def renamed(path, to):
        events.append(("renamed", to))
        return replace(path, to)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_atomic(tmp_path / "file", "new")
    assert [event for event, _ in events] == ["synced", "renamed", "synced"]
    beside, file, folder = (path for _, path in events)
    assert beside.parent == tmp_path and beside != file
    assert (file, folder) == (tmp_path / "file", tmp_path)  # the rename itself is made durable


@pytest.mark.processes
def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path):
    write_atomic(tmp_path / "file", "old")
    program = f"""
import os, signal
from pathlib import Path
from robustly import files
files.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
files.write_atomic(Path({str(tmp_path / "file")!r}), "new" * 10_000)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    assert (tmp_path / "file").read_text() == "old"


# -------------------------------------------------------------------------------------- left-overs


def left_over(folder: Path) -> Path:
    """What a kill in the middle of an atomic write leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    if (child := os.fork()) == 0:
        with files.atomic(folder / "file") as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(child, 0)
    (path,) = (path for path in folder.iterdir() if path.name.startswith(".file."))
    return path


@pytest.mark.processes
def test_a_stage_that_begins_removes_what_killed_ones_have_left(tmp_path):
    folder = tmp_path / "stage"
    ours = [left_over(folder), left_over(folder / "checkpoints")]
    unfinished(folder / "checkpoints" / "update-00000005").mkdir()
    (unfinished(folder / "checkpoints" / "update-00000007") / "deep").mkdir(parents=True)
    kept = [
        folder / ".notes.tmp",
        folder / "file",
        left_over(tmp_path),
        left_over(folder / "other"),
    ]
    for path in kept[:2]:
        path.write_text("of the user")
    (folder / "other" / ".lock").touch()  # the folder of another stage, which may be at work

    with Stage(folder, "data", RECIPE_A, {}).begin():
        assert not any(path.exists() for path in ours)
        assert not list((folder / "checkpoints").iterdir())
        assert all(path.exists() for path in kept)


@pytest.mark.processes
def test_the_work_of_a_stage_is_cleared_of_them_before_it_goes_on(tmp_path):
    found = left_over(tmp_path / "work" / "key")
    (tmp_path / "work" / "key" / "part").write_text("done")

    def process(work: Path) -> None:
        assert [path.name for path in work.iterdir()] == ["part"]

    Stage(tmp_path, "data", RECIPE_A, {}).make("key", process, lambda *_: Outcome([], {}, {}))
    assert not found.exists()


def test_where_others_may_write_only_what_nobody_touches_is_removed(tmp_path):
    fresh, old = (unfinished(tmp_path / name) for name in ("fresh", "old"))
    for path in (fresh, old):
        path.touch()

    os.utime(old, (time.time() - 100,) * 2)
    files.remove_left_overs(tmp_path, untouched=60)
    assert fresh.exists() and not old.exists()


# ------------------------------------------------------------------------------------------- stages


@pytest.mark.processes
def test_a_stage_that_finished_says_what_it_left(tmp_path):
    stage = finished_stage(tmp_path / "data")
    found = stage.finished()
    assert found == read(tmp_path / "data")
    assert (found.stage, found.hash, found.recipe, found.inputs) == (
        "data",
        stage.hash,
        RECIPE_A,
        {"tokenizer": "abc"},
    )
    assert list(found.outputs) == ["ends.npy", "shards/0.bin"]
    shard = subprocess.run(
        ["sha256sum", tmp_path / "data/shards/0.bin"], capture_output=True, text=True
    ).stdout.split()
    assert found.outputs["shards/0.bin"] == {"bytes": 1000, "sha256": shard[0]}
    assert (found.counts, found.notes, found.version) == (
        {"tokens": 500},
        {"took": "long"},
        __version__,
    )
    assert 0 <= found.seconds < 10
    time.strptime(found.finished, "%Y-%m-%dT%H:%M:%S%z")


def test_the_manifest_comes_last(tmp_path):
    stage = Stage(tmp_path, "data", RECIPE_A, {})
    assert stage.finished() is None
    with stage.begin():
        assert json.loads((tmp_path / RECIPE).read_text())["recipe"] == RECIPE_A
        (tmp_path / "file").write_text("x")
        assert stage.finished() is None
        stage.finish([tmp_path / "file"], {})
        assert stage.finished() is not None


def test_the_hash_covers_recipe_and_inputs_and_ignores_the_order_of_keys(tmp_path):
    def stage(**changes):
        given = {
            "name": "data",
            "recipe": {"a": 1, "b": [1, 2]},
            "inputs": {"x": "1", "y": "2"},
            **changes,
        }
        return Stage(tmp_path, **given).hash

    assert stage(recipe={"b": [1, 2], "a": 1}, inputs={"y": "2", "x": "1"}) == stage()
    assert stage(recipe={"b": (1, 2), "a": 1}) == stage()  # as it reads back from JSON
    others = [
        stage(recipe={"a": 1, "b": [2, 1]}),
        stage(inputs={"x": "1", "y": "3"}),
        stage(name="train"),
    ]
    assert len({stage(), *others}) == 4


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "begun"])
def test_work_of_another_recipe_is_refused_with_what_differs(tmp_path, finished):
    finished_stage(tmp_path)
    if not finished:
        (tmp_path / MANIFEST).unlink()

    content = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = Stage(
        tmp_path, "data", {"optim": {"peak_lr": 2e-3, "betas": (0.9, 0.98)}}, {"tokenizer": "def"}
    )

    for attempt in (other.finished, other.begin().__enter__):
        with pytest.raises(UserError) as caught:
            attempt()

        assert str(caught.value).splitlines() == [
            f"{tmp_path}: holds the data stage of another recipe; nothing was changed",
            "  optim.peak_lr: 0.001 there, 0.002 now",
            "  seed: 1 there, absent now",
            "  input.tokenizer: abc there, def now",
            (
                "To begin a sibling experiment that reuses what still fits, give `--new-run NAME`"
                " (a new name, and no `paths` to this folder); or set the keys back, or delete the"
                " folder."
            ),
        ]

    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == content


def test_begun_work_of_the_same_recipe_goes_on(tmp_path):
    finished_stage(tmp_path)
    (tmp_path / MANIFEST).unlink()
    again = Stage(tmp_path, "data", RECIPE_A, {"tokenizer": "abc"})
    assert again.finished() is None
    with again.begin():
        assert (tmp_path / "ends.npy").exists()


def test_an_output_that_was_cut_off_or_removed_is_named(tmp_path):
    stage = finished_stage(tmp_path)
    shard = tmp_path / "shards" / "0.bin"
    shard.write_bytes(b"x" * 999)

    with pytest.raises(
        UserError, match=r"shards/0.bin: 999 bytes, expected 1,000: cut off or changed; restore it"
    ):
        stage.finished()

    shard.unlink()
    with pytest.raises(UserError, match=r"shards/0.bin: missing, though manifest.json lists it"):
        check_sizes(tmp_path, read(tmp_path))


def test_require(tmp_path):
    with pytest.raises(
        UserError, match=r"no finished data stage here .* run `robustly prepare CONFIG` first"
    ):
        require(tmp_path / "nowhere", "data")

    finished_stage(tmp_path)
    assert require(tmp_path, "data").counts == {"tokens": 500}
    with pytest.raises(UserError, match="holds the output of the data stage, expected tokenizer"):
        require(tmp_path, "tokenizer")

    (tmp_path / "ends.npy").unlink()
    with pytest.raises(UserError, match=r"ends.npy: missing"):
        require(tmp_path, "data")


@pytest.mark.parametrize("text", ["", '{"stage": "da', "[]", '{"colour": "red"}', "\x80"])
def test_a_manifest_that_is_none_of_ours(tmp_path, text):
    (tmp_path / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(
        UserError, match=r"manifest.json: .*; not what a stage wrote there: .* delete the folder"
    ):
        read(tmp_path)


def test_a_recipe_file_that_was_cut_off(tmp_path):
    (tmp_path / RECIPE).write_text('{"stage": "da')
    with pytest.raises(UserError, match=r"recipe.json: Invalid JSON.* to begin anew"):
        Stage(tmp_path, "data", RECIPE_A, {}).finished()


@pytest.mark.processes
def test_commit_is_this_checkouts():
    here = Path(manifest.__file__).parent
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True)
    expected = asked.stdout.strip() if asked.returncode == 0 else ""
    assert manifest.commit().removesuffix("-dirty") == expected


# ------------------------------------------------------------------------------------------- hashes


def spoil(path: Path) -> None:
    """Change a byte; size and time of modification stay."""
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of a file system may be coarse
        path.write_bytes(b"z" + path.read_bytes()[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_outputs_need_no_hashing_until_they_change(tmp_path):
    finished_stage(tmp_path)
    found = read(tmp_path)
    assert unverified(tmp_path, found, found.outputs) == []
    spoil(tmp_path / "ends.npy")
    assert unverified(tmp_path, found, found.outputs) == ["ends.npy"]
    assert unverified(tmp_path, found, ["shards/0.bin"]) == []
    (tmp_path / "shards/0.bin").unlink()
    assert unverified(tmp_path, found, found.outputs) == ["ends.npy", "shards/0.bin"]


@pytest.mark.processes
def test_a_copy_is_not_known_though_all_of_it_is_copied(tmp_path):
    finished_stage(tmp_path / "data")
    found = read(tmp_path / "data")
    (tmp_path / "data" / "ends.npy").touch()
    remember(tmp_path / "data", {"ends.npy": verify(tmp_path / "data", found, "ends.npy")})
    assert unverified(tmp_path / "data", found, found.outputs) == []
    subprocess.run(["cp", "-a", tmp_path / "data", tmp_path / "copy"], check=True)
    assert (tmp_path / "copy" / VERIFIED).exists()
    assert unverified(tmp_path / "copy", found, found.outputs) == list(found.outputs)


def test_what_was_verified_is_remembered(tmp_path):
    finished_stage(tmp_path)
    found = read(tmp_path)
    for memory in ("", "{", "\x80"):  # the last two are no memory at all
        for name in found.outputs:
            (tmp_path / name).touch()

        if memory:
            (tmp_path / VERIFIED).write_bytes(memory.encode("latin-1"))

        assert unverified(tmp_path, found, found.outputs) == list(found.outputs)
        for left, name in ((["shards/0.bin"], "ends.npy"), ([], "shards/0.bin")):
            remember(tmp_path, {name: verify(tmp_path, found, name)})
            assert unverified(tmp_path, found, found.outputs) == left


def test_a_manifest_without_its_seal_is_refused(tmp_path):
    finished_stage(tmp_path)
    facts = json.loads((tmp_path / MANIFEST).read_text())
    del facts["seal"]
    (tmp_path / MANIFEST).write_text(json.dumps(facts))
    with pytest.raises(UserError, match="has no seal: changed, or made by another version"):
        read(tmp_path)


def test_an_old_memory_does_not_speak_against_a_stage_that_was_made_anew(tmp_path):
    finished_stage(tmp_path)
    found = read(tmp_path)
    remember(tmp_path, {"ends.npy": {"bytes": 10, "changed_ns": 1, "sha256": "0" * 64}})
    assert unverified(tmp_path, found, found.outputs) == []


def test_a_hash_that_is_not_the_manifests_says_nothing(tmp_path):
    finished_stage(tmp_path)
    found = read(tmp_path)
    (tmp_path / "ends.npy").touch()
    facts = verify(tmp_path, found, "ends.npy")
    remember(tmp_path, {"ends.npy": {**facts, "sha256": "0" * 64}})
    assert unverified(tmp_path, found, found.outputs) == ["ends.npy"]


def test_a_damaged_output_is_named_with_both_hashes(tmp_path):
    finished_stage(tmp_path)
    found = read(tmp_path)
    spoil(tmp_path / "ends.npy")
    check_sizes(tmp_path, found)  # sees nothing
    before, now = (
        hashlib.sha256(content).hexdigest()[:12] for content in (b"y" * 10, b"z" + b"y" * 9)
    )

    with pytest.raises(
        UserError, match=rf"ends.npy: sha256 {now}, expected {before}: .*; restore it, or delete"
    ):
        verify(tmp_path, found, "ends.npy")

    (tmp_path / "ends.npy").unlink()
    with pytest.raises(UserError, match=r"ends.npy: missing, though .* lists it; restore it"):
        verify(tmp_path, found, "ends.npy")


# ----------------------------------------------------------------------------------------- the lock

HOLDER = """
import sys, time
from pathlib import Path
from robustly.files import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.processes
def test_two_processes_cannot_hold_a_folder(tmp_path, holder):
    with (
        pytest.raises(UserError, match="another process is at work here"),
        lock(tmp_path, patience=0.2),
    ):
        pass


@pytest.mark.processes
def test_a_killed_process_lets_go(tmp_path, holder):
    holder.kill()
    begun = time.monotonic()
    with lock(tmp_path, patience=5):
        assert time.monotonic() - begun < 2


@pytest.mark.processes
def test_the_lock_waits_for_a_process_that_is_about_to_end(tmp_path, holder):
    begun = time.monotonic()
    with (
        subprocess.Popen(["sh", "-c", f"sleep 0.5; kill {holder.pid}"]),
        lock(tmp_path, patience=5),
    ):
        assert 0.4 < time.monotonic() - begun < 4


def test_the_lock_makes_the_folder_or_says_why_not(tmp_path):
    with lock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()

    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"file/folder: cannot be written: .*; set paths.root"),
        lock(tmp_path / "file" / "folder"),
    ):
        pass


def test_a_manifest_is_sealed(tmp_path):
    finished_stage(tmp_path)
    text = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text.replace('"tokens": 500', '"tokens": 501'))
    with pytest.raises(UserError, match=r"manifest.json: changed since it was written"):
        read(tmp_path)


def test_a_recipe_is_that_of_its_hash(tmp_path):
    with Stage(tmp_path, "data", RECIPE_A, {}).begin():
        text = (tmp_path / RECIPE).read_text()

    (tmp_path / RECIPE).write_text(text.replace('"seed": 1', '"seed": 2'))
    with pytest.raises(UserError, match=r"recipe.json: its recipe or inputs were changed"):
        Stage(tmp_path, "data", RECIPE_A, {}).finished()


def test_files_are_hashed_where_they_have_changed(tmp_path, monkeypatch):
    finished_stage(tmp_path)
    hashed, sha256 = [], manifest.sha256
    monkeypatch.setattr(manifest, "sha256", lambda path: hashed.append(path.name) or sha256(path))
    manifest.require_whole(tmp_path, "data")
    assert not hashed

    (tmp_path / "ends.npy").touch()
    for _ in range(2):  # remembered
        manifest.require_whole(tmp_path, "data")
        assert hashed == ["ends.npy"]

    (tmp_path / "ends.npy").write_bytes(b"z" * 10)
    manifest.require_whole(tmp_path, "data", ["shards/0.bin"])
    with pytest.raises(UserError, match=r"ends\.npy: sha256 .* damaged since it was written"):
        manifest.require_whole(tmp_path, "data")
