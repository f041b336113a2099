"""The figures of a run over time: JSON lines, TensorBoard and Weights & Biases."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from robustly import UserError
from robustly.files import may_write, write_atomic
from robustly.log import warn
from robustly.strict_json import parse_json, record

Figure = int | float | str | None | dict[str, dict[str, float]]
"""What a line holds under a name: a number, a word, or scores of each source."""

SOURCES = "validation_sources"
"""What an evaluation's line holds scores of each source under."""

FILES = ("metrics", "evaluations")
"""What lines are written to, `<name>.jsonl`."""


@dataclass(frozen=True)
class WandbRun:
    """A run at Weights & Biases."""

    project: str
    entity: str | None
    """User or team; None: the one that is logged in."""
    name: str
    recipe_hash: str
    config: Mapping[str, Any]
    """What is shown as the run's configuration."""

    def start(self, folder: Path) -> Any:
        """The run there, begun or gone on with: the same name and recipe are the same run. It keeps
        its files below `folder`. Raises UserError if the package is missing or Weights & Biases
        refuses."""
        try:
            import wandb
        except ImportError:
            raise UserError(
                "run.wandb: the package wandb is not installed; `pip install 'robustly[wandb]'`, or"
                " leave run.wandb out"
            ) from None

        identity = hashlib.sha256(f"{self.name}\n{self.recipe_hash}".encode()).hexdigest()[:16]

        try:
            return wandb.init(
                project=self.project,
                entity=self.entity,
                name=self.name,
                id=identity,
                resume="allow",
                config=dict(self.config),
                dir=str(folder),
            )
        except wandb.Error as error:
            raise UserError(
                f"run.wandb: {error}. Log in (`wandb login`), or set WANDB_MODE=offline and send"
                " the figures later"
            ) from None


@record
@dataclass(frozen=True)
class Extent:
    """How far a file of lines had been written at some time."""

    lines: int
    size: int
    """In bytes."""
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> Self:
        return cls(content.count(b"\n"), len(content), hashlib.sha256(content).hexdigest())

    def __str__(self) -> str:
        return f"{self.lines:,} lines, {self.size:,} bytes, sha256 {self.sha256[:12]}"


class Metrics:
    """A run's figures over time: `metrics.jsonl` and `evaluations.jsonl`, a line per object; the
    same in TensorBoard and, if asked, at Weights & Biases."""

    def __init__(
        self,
        folder: Path,
        resume_at: int,
        wandb: WandbRun | None = None,
        expected: Mapping[str, Extent] | None = None,
        accept_lost: bool = False,
    ):
        """Cuts both files back to what they held at update `resume_at`; begins them anew at 0, but
        where something is expected.

        `expected`: by file, how far it had been written then. Raises UserError if one does not hold
        that; with `accept_lost` its whole lines of updates up to there are kept, and `lost` names
        it.

        Weights & Biases keeps what it was sent before and takes no earlier update twice: what is
        made again after a kill is the same."""
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.jsonl" for name in FILES]
        self.lost: tuple[str, ...] = ()
        """Files that are not what was expected."""
        kept = {path: b"" for path in paths}

        for path in paths if expected or resume_at else []:
            content = path.read_bytes() if path.exists() else b""
            extent = (expected or {}).get(path.name)
            if extent and Extent.of(content[: extent.size]) == extent:
                kept[path] = content[: extent.size]
                continue

            if extent and not accept_lost:
                raise UserError(
                    f"{path}: begins with {Extent.of(content[: extent.size])}; expected {extent},"
                    f" as the checkpoint of update {resume_at} says. Restore the file, or go on"
                    " without what it lost: run.accept_lost_metrics=true"
                )

            self.lost += (path.name,) if extent else ()
            lines = [line for line in read_metrics(path) if line["update"] <= resume_at]
            kept[path] = "".join(json.dumps(line) + "\n" for line in lines).encode()

        self._wandb = wandb.start(folder) if wandb else None
        self._files = {}
        for path in paths:
            write_atomic(path, kept[path])
            self._files[path.stem] = path.open("a", encoding="utf-8")

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_at + 1)

    def write(self, name: str, line: Mapping[str, Any]) -> None:
        """Add a line to `<name>.jsonl`; it has left this process when this returns."""
        file = self._files[name]
        may_write(Path(file.name))
        file.write(json.dumps(line, allow_nan=False) + "\n")
        file.flush()
        scalars = {
            key: value
            for key, value in line.items()
            if key != "update" and isinstance(value, int | float)
        }
        for key, value in scalars.items():
            self._board.add_scalar(key, value, line["update"])

        if self._wandb:
            self._wandb.log(scalars, step=line["update"])

    def sync(self) -> dict[str, Extent]:
        """Make all lines durable, before a checkpoint says that they are there. Returns how far
        each file has been written, by its name."""
        for file in self._files.values():
            os.fsync(file.fileno())

        paths = [Path(file.name) for file in self._files.values()]
        return {path.name: Extent.of(path.read_bytes()) for path in paths}

    def close(self) -> None:
        self.sync()
        for file in self._files.values():
            file.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file. Broken ones are left out, with a warning unless it is the last,
    which a kill may have cut off."""
    if not path.exists():
        return []

    lines = []
    *earlier, last = path.read_bytes().split(b"\n")

    for number, text in enumerate([*earlier, last], start=1):
        try:
            line = parse_json(text, dict[str, Figure])
            if type(line.get("update")) is not int or not isinstance(line.get(SOURCES, {}), dict):
                raise ValueError("no update, or no scores by source")
            lines.append(line)
        except ValueError:
            if number <= len(earlier):
                warn(f"{path}, line {number}: not a line of metrics; left out")

    return lines
