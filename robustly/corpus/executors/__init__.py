"""Executors: run the work on a corpus on this machine, as a Slurm job, or in a Ray cluster.

An executor is one file with a function `run` (see `Executor`) and one line of `EXECUTORS`."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from robustly.corpus.config import Processing
from robustly.corpus.executors import local, ray, slurm
from robustly.corpus.executors.step import Step
from robustly.corpus.feed import Feed
from robustly.log import progress

Executor = Callable[[Step, Iterator[int], Processing, Callable[[int], None]], None]
"""`run(step, waiting, processing, advance)` works on the parts of `step` with the numbers that
`waiting` gives, each when it can be begun (it makes ready what that reads), marks each that is
done, calls `advance(n)` when n more are, and returns when all are. Raises what the work raises
(from another machine: a UserError, with its message and the log), and UserError if a worker is lost
or the executor is not there."""

EXECUTORS: dict[str, Executor] = {"local": local.run, "slurm": slurm.run, "ray": ray.run}
"""By their names in the config (`run.executor`)."""


def _known(name: str) -> str:
    if name not in EXECUTORS:
        *others, last = map(repr, EXECUTORS)
        raise ValueError(f"expected {', '.join(others)} or {last}")
    return name


ExecutorName = Annotated[str, AfterValidator(_known)]
"""Type of the config's `run.executor`."""


def process(
    work: Callable[[int, Any], None],
    parts: Sequence[Any],
    folder: Path,
    processing: Processing,
    what: str,
) -> None:
    """Call `work(number, part)` for every part, where and how `processing` says; `what` names the
    work in messages and on a progress bar.

    `folder` remembers the parts that are done: after a kill, the same call does the rest, by
    whichever executor. `work` can be pickled, and has renamed its output into place when it
    returns. The first exception that it raises ends the step.

    Raises what an `Executor` raises, and UserError if a Slurm job of an earlier run may be at work
    in `folder` and cannot be cancelled."""
    feed = Feed(parts, folder.absolute() / "texts")
    step = Step(work, feed.parts, folder.absolute(), what)
    slurm.end_earlier_job(step.folder)
    waiting = step.undone()

    with progress(what, len(parts), "parts") as advance:
        advance(len(parts) - len(waiting))
        if waiting:
            with feed:
                ready = feed.ready(waiting, step.done)
                EXECUTORS[processing.executor](step, ready, processing, advance)
