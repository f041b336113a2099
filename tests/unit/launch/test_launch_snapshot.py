"""The code that a run keeps: kept once, whole, checked, and what ranks run."""

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import robustly
from robustly import UserError, manifest, provenance
from robustly.files import remove_left_overs
from robustly.launch import snapshot
from robustly.launch.snapshot import CODE, keep, read
from robustly.provenance import versions


def kept_code(train: Path) -> snapshot.Snapshot:
    found = keep(train)
    assert found
    return found


@pytest.fixture
def fresh() -> Iterator[None]:
    """What this process's code is, is found out anew."""
    snapshot._hashes.cache_clear()
    manifest.commit.cache_clear()
    yield
    snapshot._hashes.cache_clear()
    manifest.commit.cache_clear()


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *words],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_the_package_is_kept_as_it_is(tmp_path: Path) -> None:
    train = tmp_path / "train"
    found = kept_code(train)
    code = train / CODE
    assert found.folder == code and found.commit == manifest.commit() and not found.differs()
    assert found.versions == versions() and not found.is_own()
    assert not any(path.is_symlink() for path in code.rglob("*"))
    for module in ("robustly.launch.snapshot", "robustly.pretrain.masking", "robustly.cli.rank"):
        file = Path(importlib.import_module(module).__file__ or "")
        kept = code.joinpath(*module.split(".")).with_suffix(".py")
        assert kept.read_bytes() == file.read_bytes()
        assert kept.stat().st_mtime_ns == file.stat().st_mtime_ns  # for numba's cache

    assert (code / "robustly/configs/tiny.yaml").exists()
    assert sum(path.stat().st_size for path in code.rglob("*.py")) < 3e6
    assert not list(code.rglob("*.txt")) and not list(code.rglob("*.jsonl"))
    assert list(train.iterdir()) == [code]


def test_it_is_kept_once(tmp_path: Path) -> None:
    first = kept_code(tmp_path)
    before = {path: path.stat().st_ctime_ns for path in tmp_path.rglob("*")}
    assert kept_code(tmp_path) == first == read(tmp_path)
    assert {path: path.stat().st_ctime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_that_keeps_none(tmp_path: Path) -> None:
    assert read(tmp_path) is None and read(tmp_path / "nothing") is None


@pytest.mark.processes
def test_the_changes_of_a_checkout_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    """Of its package alone, whose folders may be links."""
    checkout = write(
        tmp_path / "checkout",
        {
            "robustly/__init__.py": "",
            "robustly/a.py": "a = 1\n",
            "launch/__init__.py": "",
            "launch/b.py": "b = 1\n",
            "launch/gone.py": "",
            "configs/a.yaml": "name: a\n",
            "docs/c.md": "c\n",
        },
    )
    for name in ("launch", "configs"):
        (checkout / "robustly" / name).symlink_to(f"../{name}")
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "x")
    monkeypatch.setattr(snapshot, "PACKAGE", checkout / "robustly")
    clean = kept_code(tmp_path / "clean")
    assert not (clean.folder / snapshot.DIFF).exists()

    # what an editor leaves, a config and a run of the user's are no other code
    (checkout / "launch" / ".#b.py").symlink_to("me@here.4711:1")
    write(checkout, {"configs/mine.yaml": "", "launch/b copy.py": "", "launch/old/b.py": ""})
    keep(checkout / "configs/runs/mine/train")
    snapshot._hashes.cache_clear()
    assert not clean.differs()
    again = kept_code(checkout / "configs/runs/other/train")
    assert again.files.keys() == {*clean.files, "robustly/configs/mine.yaml"}

    git(checkout, "config", "color.ui", "always")
    write(checkout, {"launch/b.py": "b = 2\n", "docs/c.md": "d\n", "robustly/new.py": "n = 1\n"})
    (checkout / "launch/gone.py").unlink()
    snapshot._hashes.cache_clear()
    assert clean.differs()
    dirty = kept_code(tmp_path / "dirty")
    changes = (dirty.folder / snapshot.DIFF).read_text()
    assert "\n+b = 2\n" in changes and "docs" not in changes and "a/launch/gone.py" in changes
    assert not (dirty.folder / "robustly/launch/gone.py").exists()
    assert (dirty.folder / "robustly/launch/b.py").read_text() == "b = 2\n"
    assert (dirty.folder / "robustly/new.py").read_text() == "n = 1\n"


@pytest.mark.parametrize(
    ("commit", "shown"),
    [
        ("0123456789abcdef", "commit 0123456789ab"),
        ("0123456789abcdef-dirty", "commit 0123456789ab-dirty"),
        ("", "robustly 9.9"),
    ],
)
def test_what_it_is_called(tmp_path: Path, commit: str, shown: str) -> None:
    assert str(snapshot.Snapshot(tmp_path, commit, {"robustly": "9.9"}, {})) == shown


# -------------------------------------------------------------------------------- checked before use


def edit(code: Path) -> None:
    with (code / "robustly/files.py").open("a") as file:
        file.write("\n")


def add(code: Path) -> None:
    (code / "robustly/pretrain/mine.py").write_text("")


def remove(code: Path) -> None:
    (code / "robustly/launch/job.py").unlink()


def edit_note(code: Path) -> None:
    note = code / manifest.SNAPSHOT
    note.write_text(note.read_text().replace('"commit": "', '"commit": "1'))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (edit, r"changed are robustly/files.py"),
        (add, r"changed are robustly/pretrain/mine.py"),
        (remove, r"changed are robustly/launch/job.py"),
        (edit_note, r"its seal is another"),
        (lambda code: (code / manifest.SNAPSHOT).unlink(), r"has no robustly-code.json"),
        (lambda code: (code / manifest.SNAPSHOT).write_text("{"), r"robustly-code.json: Invalid JSON"),
    ],
)  # fmt: skip
def test_code_that_was_changed_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], found: str
) -> None:
    """With what to do; it is never taken, nor replaced in silence."""
    damage(kept_code(tmp_path).folder)
    for use in (read, keep, lambda train: snapshot.enter(train, [], speaks=True)):
        with pytest.raises(UserError, match=rf"{found}.*--live-code, or delete the folder") as said:
            use(tmp_path)
        assert f"rm -r {tmp_path / CODE}" in str(said.value)


def test_what_python_writes_beside_it_is_no_change(tmp_path: Path) -> None:
    cache = kept_code(tmp_path).folder / "robustly" / "__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "files.cpython-311.pyc").write_bytes(b"x")
    (cache / "masking._mask-1.py311.nbi").write_bytes(b"x")
    assert read(tmp_path)


# -------------------------------------------------------------------------------------- whole or not


@pytest.mark.processes
def test_launchers_that_keep_it_at_once(tmp_path: Path) -> None:
    children = []
    for _ in range(4):
        if (child := os.fork()) == 0:
            try:
                os._exit(0 if kept_code(tmp_path) else 1)
            finally:
                os._exit(2)
        children.append(child)

    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert [path.name for path in tmp_path.iterdir()] == [CODE] and read(tmp_path)


@pytest.mark.processes
def test_a_kill_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Path] = []

    def copy(each: Any, to: Path) -> str:
        if len(copied) == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        copied.append(to)
        return real(each, to)

    real = snapshot._copy
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "_copy", copy)
        if (child := os.fork()) == 0:
            keep(tmp_path)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    (left,) = tmp_path.iterdir()
    assert left.name != CODE and read(tmp_path) is None
    assert kept_code(tmp_path) == read(tmp_path)
    remove_left_overs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CODE]


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(snapshot, "_copy", full)
    with pytest.raises(UserError, match=r"the disk is full .* nothing was started. Make room"):
        keep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_path_that_pythonpath_cannot_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keep(tmp_path / "a:b") is None and not list(tmp_path.iterdir())
    snapshot.say_live(tmp_path / "a:b")
    assert "a path with : in it" in capsys.readouterr().err.replace("\n", " ")


# ----------------------------------------------------------------------------------- running from it


def test_another_code_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None, capsys: Any
) -> None:
    kept = kept_code(tmp_path)
    snapshot.say_whose(kept)
    snapshot.say_other(tmp_path)
    snapshot.say_other(tmp_path / "keeps-none")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(snapshot, "PACKAGE", write(tmp_path / "edited", {"robustly/a.py": ""}))
    snapshot._hashes.cache_clear()
    snapshot.say_whose(kept)
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"code of the run's first start ({kept}); --live-code takes" in said
    snapshot.say_other(tmp_path)
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"not the code of the run's first start ({kept}), but this checkout's" in said


def test_other_versions_are_warned_of(tmp_path: Path, capsys: Any) -> None:
    kept = kept_code(tmp_path)
    kept.warn_of_versions()
    assert capsys.readouterr().err == ""
    kept._replace(versions={**kept.versions, "torch": "1.0"}).warn_of_versions()
    said = capsys.readouterr().err
    assert "warning" in said and f"torch 1.0 then, {kept.versions['torch']} now" in said


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`first/train` keeps version 1.first; `second` is a checkout that has gone on to 2.second."""
    here = tmp_path_factory.mktemp("two")
    original = Path(robustly.__file__).parent
    for name, version in (("first", "1.first"), ("second", "2.second")):
        for path, file in provenance.modules(original):
            write(here / name, {path: file.read_text(encoding="utf-8")})
        for data in ("configs/tiny.yaml",):
            write(here / name, {f"robustly/{data}": (original / data).read_text()})
        init = here / name / "robustly" / "__init__.py"
        init.write_text(init.read_text().replace(robustly.__version__, version))

    run_python(here / "first", "from robustly.launch import snapshot as s; from pathlib import Path;"
               f"assert s.keep(Path({str(here / 'train')!r}))")  # fmt: skip
    return here


def run_python(
    checkout: Path, *words: str, code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Python in a checkout, which is what it imports."""
    command = [sys.executable, *(words if words[0].startswith("-") else ("-c", *words))]
    done = subprocess.run(
        command, cwd=checkout, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


ENTER = """
import sys
from pathlib import Path
from robustly.launch import snapshot
kept = snapshot.enter(Path(sys.argv[1]), ["--version"], speaks=True)
raise SystemExit("not begun anew")
"""


@pytest.mark.processes
@pytest.mark.parametrize("safe", ["", "1"])
def test_a_process_begins_anew_from_the_kept_code(two: Path, safe: str) -> None:
    """Though the folder that it is started in has another, as has PYTHONPATH behind."""
    done = run_python(two / "second", "-c", ENTER, str(two / "train"), PYTHONSAFEPATH=safe)
    assert done.stdout == "robustly 1.first\n"
    assert "code of the run's first start (robustly 1.first)" in done.stderr.replace("\n", " ")
    assert "--live-code takes this checkout's (robustly 2.second)" in done.stderr.replace("\n", " ")


FINDER = """
import importlib.machinery, importlib.util, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "robustly":
            file = {file!r}
            return importlib.util.spec_from_file_location(
                name, file, submodule_search_locations=[file.rpartition("/")[0]])
sys.meta_path.{where}(Finder)
"""


@pytest.mark.processes
@pytest.mark.parametrize("where", ["append", "insert(0, Finder) or id"])
def test_an_editable_installation_by_a_finder(two: Path, tmp_path: Path, where: str) -> None:
    """Those of build tools stand last, and PYTHONPATH comes before; one that stands first is
    found out, and told."""
    first = where != "append"
    file = str(two / "second" / "robustly" / "__init__.py")
    (tmp_path / "sitecustomize.py").write_text(FINDER.format(file=file, where=where))
    done = run_python(two / "second", "-c", ENTER, str(two / "train"), PYTHONPATH=str(tmp_path))
    assert done.stdout == f"robustly {'2.second' if first else '1.first'}\n"
    if first:  # as a rank it would now ask again
        done = run_python(
            two / "second", "-P", "-c", ENTER, str(two / "train"), code=1,
            PYTHONPATH=f"{two / 'train' / CODE}:{tmp_path}",
        )  # fmt: skip
        assert "something in this Python's site-packages comes before it" in done.stderr


@pytest.mark.processes
def test_processes_that_it_starts_run_it_too(two: Path) -> None:
    """Spawned ones, forked ones and programs."""
    script = (
        "import multiprocessing as m, robustly, subprocess, sys\n"
        "if __name__ == '__main__':\n"
        "    for how in ('spawn', 'fork'):\n"
        "        with m.get_context(how).Pool(1) as pool:\n"
        "            print(pool.apply(eval, (\"__import__('robustly').__version__\",)))\n"
        "    subprocess.run([sys.executable, '-P', '-m', 'robustly.cli', '--version'])\n"
        "    print(robustly.__version__, flush=True)\n"
    )
    (two / "second" / "script.py").write_text(script)
    first = str(two / "train" / CODE)
    done = run_python(two / "second", "-P", "script.py", PYTHONPATH=f"{first}:{two / 'second'}")
    assert sorted(done.stdout.split("\n")) == sorted(
        ["", "1.first", "1.first", "robustly 1.first", "1.first"]
    )


@pytest.mark.processes
def test_code_within_a_zip_is_kept(two: Path, tmp_path: Path) -> None:
    import shutil

    shutil.make_archive(str(tmp_path / "code"), "zip", two / "second")
    keep_it = (
        "from robustly.launch import snapshot as s; from pathlib import Path;"
        f"assert '.zip' in s.__file__ and s.keep(Path({str(tmp_path / 'train')!r}))"
    )
    run_python(tmp_path, keep_it, PYTHONPATH=str(tmp_path / "code.zip"))
    found = read(tmp_path / "train")
    assert found and found.versions["robustly"] == "2.second"
    first = read(two / "train")
    assert first and found.files.keys() == first.files.keys()
    assert json.loads((found.folder / manifest.SNAPSHOT).read_text())["commit"] == ""
