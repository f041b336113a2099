"""The local executor: works on the parts in this process, or in worker processes beside it."""

from collections.abc import Callable, Sequence

from robustly.corpus.config import Processing
from robustly.corpus.executors.step import Step
from robustly.workers import run_on_workers


def run(
    step: Step, waiting: Sequence[int], processing: Processing, advance: Callable[[int], None]
) -> None:
    """See `Executor`."""
    workers = min(processing.workers, len(step.parts))
    if workers == 1:
        for number in waiting:
            step.do(number)
            advance(1)

        return

    for _ in run_on_workers(step.work, step.parts, waiting, workers, step.mark, step.what):
        advance(1)
