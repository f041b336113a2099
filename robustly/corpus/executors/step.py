"""A step of a stage: one piece of work on many parts, and marks of the parts that are done."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.corpus.partitions import Partition
from robustly.resources import out_of_memory


@dataclass(frozen=True)
class Step:
    """What an executor works on; it can be pickled."""

    work: Callable[[int, Any], None]
    """Called with the number of a part and the part."""
    parts: Sequence[Any]
    """Partitions of a corpus, or buckets or groups of them."""
    folder: Path
    """Absolute; holds the marks, and what an executor needs."""
    what: str
    """Names the work in messages, such as `counting words`."""

    def undone(self, among: Iterable[int] | None = None) -> list[int]:
        """The numbers of the parts (default: of all) that are not marked as done, in order."""
        marks = self.folder / "completions"
        done = {path.name for path in marks.iterdir()} if marks.exists() else set()
        numbers = range(len(self.parts)) if among is None else among
        return [number for number in numbers if f"{number:05d}" not in done]

    def done(self, number: int) -> bool:
        """Whether a part is marked as done."""
        return (self.folder / "completions" / f"{number:05d}").exists()

    def do(self, number: int) -> None:
        """Work on a part and mark it as done."""
        self.work(number, self.parts[number])
        self.mark(number)

    def mark(self, number: int) -> None:
        """Mark a part as done, for good: an empty file named after its number."""
        marks = self.folder / "completions"
        marks.mkdir(parents=True, exist_ok=True)
        (marks / f"{number:05d}").touch()

    def name(self, number: int) -> str:
        """A part in messages: its number, and where it lies if it is a partition of a corpus."""
        part = self.parts[number]
        return f"part {number} ({part})" if isinstance(part, Partition) else f"part {number}"


def told(error: BaseException) -> str:
    """What a part raised, for people."""
    if isinstance(error, UserError):
        return str(error)
    what = "not enough memory: " if out_of_memory(error) else ""
    return f"{what}{type(error).__name__}: {error}"


def import_paths() -> list[str]:
    """Where this process imports from, for a process elsewhere that must find the same modules."""
    return [str(Path(path).absolute()) for path in sys.path]
