"""Work over the partitions of a corpus: on this machine, as a Slurm job, or in a Ray cluster."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from robustly.corpus.config import Processing


def process(
    work: Callable[[int, Any], None],
    parts: Sequence[Any],
    folder: Path,
    processing: Processing,
    what: str,
) -> None:
    """Call `work(number, part)` for every part, where and how `processing` says, with a progress
    bar.

    `folder` remembers the parts that are done: after a kill, the same call does the rest, by
    whichever executor. `work` can be pickled, and has renamed its output into place when it
    returns. An exception that it raises ends the whole and comes out here (from another machine: a
    UserError, with its message and the log).

    Raises UserError, too, if a worker process was killed, or if Slurm or Ray is not there or gives
    up."""
    from robustly.corpus.executors.local import (
        Step,
        executor_for,
    )  # datatrove takes half a second to import

    executor_for(Step(work, parts), folder, processing, what).run()
