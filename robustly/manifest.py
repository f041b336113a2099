"""Manifests of stage folders, which begin with `recipe.json` and end with `manifest.json`, written
last and by rename.

A folder without a manifest is unfinished. A stage asks `Stage.finished()` before it works, so the
same command again does nothing; a folder of another recipe is refused with the keys that differ.
"""

import contextlib
import functools
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from typing_extensions import TypedDict

from robustly import UserError, __version__
from robustly.config import differences, fingerprint
from robustly.files import WORK_LOCK, hashed, lock, remove_left_overs, sha256, write_json
from robustly.log import progress
from robustly.resources import check_memory
from robustly.stages import KINDS
from robustly.strict_json import read_json, record, sealed

MANIFEST = "manifest.json"
RECIPE = "recipe.json"
VERIFIED = "verified.json"
"""Outputs that were hashed again and found whole: path within the folder -> bytes, changed_ns,
sha256 at that time."""


SNAPSHOT = "robustly-code.json"
"""File beside the package where that is the code that a run keeps (`robustly.launch.snapshot`)."""


@functools.cache
def commit() -> str:
    """The git commit of this code, `-dirty` where files differ from it, or "" outside a checkout.
    Code that a run keeps has that of the checkout that it is of."""
    here = Path(__file__).resolve().parent.parent
    with contextlib.suppress(OSError):
        taken: str = json.loads((here / SNAPSHOT).read_bytes())["commit"]
        return taken

    if not (here / ".git").exists():
        return ""

    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""

    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


@record
class FileFacts(TypedDict):
    """What is known of an output."""

    bytes: int
    sha256: str


@record
@dataclass(frozen=True)
class Recipe:
    """What a stage's output depends on, and nothing else."""

    stage: str
    hash: str
    """Fingerprint of the other three."""
    recipe: dict[str, Any]
    inputs: dict[str, str]
    """Name of each input -> its hash."""


@record
@dataclass(frozen=True)
class Manifest(Recipe):
    """What a finished stage left behind. Sizes in bytes; hashes are hex sha256."""

    outputs: dict[str, FileFacts]
    """By path within the folder."""
    counts: dict[str, Any]
    seconds: float
    version: str = __version__
    commit: str = ""
    finished: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    """What helps people and caches (such as file times) but changes nothing: never hashed."""
    changed_ns: dict[str, int] = field(default_factory=dict)
    """Path of each output -> when it had last changed as it was hashed; of no meaning for a
    copy."""


def read(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None where the stage has not finished. Raises UserError if it is
    not what was written."""
    path = folder / MANIFEST
    try:
        found = read_json(path, Manifest, _BEGIN_ANEW, seal=True)
    except (FileNotFoundError, NotADirectoryError):
        return None

    _check_hash(path, found)
    return found


def begun(folder: Path) -> Recipe | None:
    """What a stage's folder was begun with, finished or not; None where none was begun. Raises
    UserError if it is not what was written."""
    if finished := read(folder):
        return finished

    path = folder / RECIPE
    try:
        found = read_json(path, Recipe, _BEGIN_ANEW)
    except (FileNotFoundError, NotADirectoryError):
        return None

    _check_hash(path, found)
    return found


_BEGIN_ANEW = "not what a stage wrote there: restore it, or delete the folder to begin anew"


def _check_hash(path: Path, found: Recipe) -> None:
    try:
        whole = found.hash == _hash(found.stage, found.recipe, found.inputs)
    except ValueError:  # a number that is none
        whole = False

    if not whole:
        raise UserError(f"{path}: its recipe or inputs were changed; {_BEGIN_ANEW}")


def _hash(stage: str, recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    return fingerprint({"stage": stage, "recipe": recipe, "inputs": inputs})


def require(folder: Path, stage: str) -> Manifest:
    """The manifest of a stage that must have finished, its files all there at their sizes.

    Raises UserError that names what is missing and the command that makes it.
    """
    manifest = require_manifest(folder, stage)
    check_sizes(folder, manifest)
    return manifest


def require_manifest(folder: Path, stage: str) -> Manifest:
    """As `require`, for a process that leaves it to another to look at the files."""
    if (manifest := read(folder)) is None:
        raise UserError(
            f"{folder}: no finished {stage} stage here (no {MANIFEST}); run"
            f" `{KINDS[stage].command}` first"
        )
    if manifest.stage != stage:
        raise UserError(
            f"{folder}: holds the output of the {manifest.stage} stage, expected {stage}"
        )

    return manifest


def require_whole(folder: Path, stage: str, names: Iterable[str] | None = None) -> Manifest:
    """As `require`; raises UserError, too, as `check_whole` does."""
    finished = require(folder, stage)
    check_whole(folder, finished, names)
    return finished


def check_whole(folder: Path, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Raises UserError if an output (of `names`; default: any) is not what the stage wrote. Those
    that have not changed since they were written, or last hashed, are not read again."""
    listed = set(manifest.outputs if names is None else names) & manifest.outputs.keys()
    check_sizes(folder, manifest, listed)
    sizes = {
        name: manifest.outputs[name]["bytes"]
        for name in unverified(folder, manifest, sorted(listed))
    }
    if not sizes:
        return

    found = {}
    with progress(f"checking {folder}", sum(sizes.values()), "bytes") as advance:
        verified = hashed(
            [folder / name for name in sizes],
            lambda path: verify(folder, manifest, path.relative_to(folder).as_posix()),
        )
        for name, (_, facts) in zip(sizes, verified, strict=True):
            found[name] = facts
            advance(sizes[name])

    with contextlib.suppress(OSError):  # a folder that is only read: they are hashed each time
        remember(folder, found)


def check_sizes(folder: Path, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Raises UserError naming the first output (of `names`; default: any) that is missing or was
    cut off."""
    remedy = _remedy(folder)
    for name in manifest.outputs if names is None else names:
        path, facts = folder / name, manifest.outputs[name]
        if not path.is_file():
            raise UserError(f"{path}: missing, though {MANIFEST} lists it; {remedy}")
        if (size := path.stat().st_size) != facts["bytes"]:
            raise UserError(
                f"{path}: {size:,} bytes, expected {facts['bytes']:,}: cut off or changed; {remedy}"
            )


def _remedy(folder: Path) -> str:
    return (
        f"restore it, or delete {folder / MANIFEST} and give the stage's command again, which"
        " mends it"
    )


def unverified(folder: Path, manifest: Manifest, names: Iterable[str]) -> list[str]:
    """Those of the outputs `names` that have changed since they were last hashed and found
    whole."""
    again = _verified(folder)

    def known(name: str) -> bool:
        path, facts = folder / name, manifest.outputs[name]
        if not path.is_file():
            return False
        now = {**_state(path), "sha256": facts["sha256"]}
        return now in ({**facts, "changed_ns": manifest.changed_ns.get(name)}, again.get(name))

    return [name for name in names if not known(name)]


def _verified(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        return read_json(folder / VERIFIED, dict[str, dict[str, Any]], "")
    except (OSError, UserError):  # then they are hashed again
        return {}


def _hash_output(path: Path) -> dict[str, Any]:
    """What there is to know of an output. Its state is that before it is read, so that a change
    meanwhile is seen next time."""
    return {**_state(path), "sha256": sha256(path)}


def _state(path: Path) -> dict[str, int]:
    """What differs after any change of a file. Its time of change, unlike that of modification, is
    kept by no copy."""
    status = path.stat()
    return {"bytes": status.st_size, "changed_ns": status.st_ctime_ns}


def verify(folder: Path, manifest: Manifest, name: str) -> dict[str, Any]:
    """Hash an output; returns what to `remember` of it. Raises UserError if it is not what the
    manifest says, which its size may tell."""
    check_sizes(folder, manifest, [name])
    path, expected = folder / name, manifest.outputs[name]["sha256"]
    try:
        state = _state(path)  # before it is read, so that a change meanwhile is seen next time
        found = sha256(path)
    except OSError as error:
        check_memory(error, path)
        raise UserError(
            f"{path}: cannot be read: {error.strerror or error}; {_remedy(folder)}"
        ) from None

    if found != expected:
        raise UserError(
            f"{path}: sha256 {found[:12]}, expected {expected[:12]}: damaged since it was written;"
            f" {_remedy(folder)}"
        )

    return {**state, "sha256": found}


def remember(folder: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Add outputs that were found whole to those that need not be hashed again. Raises OSError if
    it cannot."""
    write_json(folder / VERIFIED, {**_verified(folder), **found})


class Outcome(NamedTuple):
    """What a stage has made."""

    outputs: list[Path]
    """Files below its folder."""
    counts: Mapping[str, Any]
    notes: Mapping[str, Any]


class Work(NamedTuple):
    """What a stage of an experiment does."""

    make: Callable[[], Manifest]
    """Does what is left to do."""
    stage: "Callable[[], Stage] | None" = None
    """What its folder depends on, for `--new-run`; None: a new run makes it anew. Raises UserError
    where an input is not finished."""


Result = TypeVar("Result")


class Stage:
    """One stage's folder from `begin` to `finish`.

    `recipe` is what the output depends on, as plain data; `inputs` the hashes of what it reads.
    """

    def __init__(
        self, folder: Path, name: str, recipe: Mapping[str, Any], inputs: Mapping[str, str]
    ):
        self.folder = folder
        self.name = name
        self.recipe = json.loads(
            json.dumps(dict(recipe))
        )  # as it reads back, so that comparison is exact
        self.inputs = dict(inputs)
        self.hash = _hash(name, self.recipe, self.inputs)
        self._started = time.monotonic()

    def finished(self) -> Manifest | None:
        """The manifest if this very work is already done and whole; None if it is still to do.

        Raises UserError if the folder holds work of another recipe, finished or begun.
        """
        self.refuse_other_work()
        if (manifest := read(self.folder)) is None:
            return None
        check_sizes(self.folder, manifest)
        return manifest

    def refuse_other_work(self) -> None:
        """Raises UserError, with the keys that differ, if the folder was begun by another
        recipe."""
        there = begun(self.folder)
        if there is None or there.hash == self.hash:
            return

        changed = [
            *differences(
                {"stage": there.stage, **there.recipe}, {"stage": self.name, **self.recipe}
            ),
            *differences(there.inputs, self.inputs, "input"),
        ]
        raise UserError(
            f"{self.folder}: holds the {there.stage} stage of another recipe; nothing was"
            " changed\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nTo begin a sibling experiment that reuses what still fits, give `--new-run NAME`"
            " (a new name, and no `paths` to this folder); or set the keys back, or delete the"
            " folder."
        )

    def make(
        self,
        key: str,
        process: Callable[[Path], Result],
        collect: Callable[[Path, Result], Outcome],
    ) -> Manifest:
        """Do the long work of a stage, unless it is finished; returns the manifest.

        `process` works in the folder `work/<key>` and checks what it made; `collect` then moves
        that to its place and says what the manifest records. The stage begins between the two, so
        that a fault of the input leaves no folder that refuses the mended config. After a kill,
        the same call finds in the work folder what is done already.
        """
        if finished := self.finished():
            return finished

        work = self.folder / "work" / key
        with lock(self.folder, WORK_LOCK):
            if finished := self.finished():  # by another process, while this one waited
                return finished

            work.mkdir(parents=True, exist_ok=True)
            remove_left_overs(work)
            processed = process(work)
            with self.begin():
                manifest = self.finish(*collect(work, processed))

            shutil.rmtree(self.folder / "work", ignore_errors=True)

        return manifest

    @contextlib.contextmanager
    def begin(
        self, hold: Callable[[Path], contextlib.AbstractContextManager[None]] = lock
    ) -> Iterator["Stage"]:
        """Hold the folder for this process alone while it works (by `hold`), without what killed
        ones have left unfinished, and write down what it works on."""
        with hold(self.folder):
            self.refuse_other_work()
            if read(self.folder):  # while this process waited for the lock
                raise UserError(
                    f"{self.folder}: another process has just finished this; give the command again"
                )

            remove_left_overs(self.folder)
            if not (self.folder / RECIPE).exists():
                work = Recipe(self.name, self.hash, self.recipe, self.inputs)
                write_json(self.folder / RECIPE, asdict(work))

            yield self

    def finish(
        self, outputs: list[Path], counts: Mapping[str, Any], notes: Mapping[str, Any] | None = None
    ) -> Manifest:
        """Write the manifest, last of all. `outputs` are files below the folder."""
        found: dict[str, dict[str, Any]] = {
            path.relative_to(self.folder).as_posix(): facts
            for path, facts in hashed(sorted(outputs), _hash_output)
        }
        manifest = Manifest(
            stage=self.name,
            hash=self.hash,
            recipe=self.recipe,
            inputs=self.inputs,
            outputs={
                name: {"bytes": facts["bytes"], "sha256": facts["sha256"]}
                for name, facts in found.items()
            },
            counts=dict(counts),
            seconds=round(time.monotonic() - self._started, 3),
            commit=commit(),
            finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            notes=dict(notes or {}),
            changed_ns={name: facts["changed_ns"] for name, facts in found.items()},
        )
        write_json(self.folder / MANIFEST, sealed(asdict(manifest)))
        return manifest
