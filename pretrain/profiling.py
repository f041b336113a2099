"""Profile a few updates with torch's profiler (`--profile`): a trace for chrome://tracing or
Perfetto, and a table of where the time went."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from robustly import log

WARMS_UP = 2
"""Updates of this start before the trace: kernels are chosen, buffers are made."""
TRACED = 3
SHOWN = 10  # operations


class Profile:
    """Traces updates 3 to 5 of this start on one rank. Tracing takes time and changes no number."""

    def __init__(self, folder: Path, rank: int, update: int):
        """`folder`: where the trace will be. `update`: updates that were done before this start."""
        self._folder, self._rank = folder, rank
        self._first, self._last = update + WARMS_UP + 1, update + WARMS_UP + TRACED
        self._profile: profile | None = None

    def after(self, update: int, over: bool) -> None:
        """Call it after every update; `over`: no other one follows. Raises OSError if the trace
        cannot be written."""
        if update == self._first - 1 and not over:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)

            self._profile = profile(activities=activities)
            self._profile.start()
        elif self._profile and (update == self._last or over):
            self._profile.stop()
            self._write(self._profile, update)
            self._profile = None
        elif over and update < self._first and self._rank == 0:
            log.warn(
                f"--profile: nothing traced: this start had fewer than {WARMS_UP + 1} updates left"
            )

    def _write(self, found: profile, update: int) -> None:
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"rank{self._rank}-updates-{self._first}-{update}.json.gz"
        beside = path.with_name(f".{path.name}")  # ends in .gz, too, so that torch compresses it
        try:
            found.export_chrome_trace(str(beside))
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

        if self._rank == 0:
            log.table(
                f"most expensive operations, updates {self._first} to {update}: {path}",
                expensive(found),
            )


def expensive(found: profile) -> dict[str, str]:
    """The operations with the most time of their own, on the GPU where there is one: milliseconds,
    share of all, calls."""
    events = [event for event in found.key_averages() if not event.is_user_annotation]
    on_device = any(event.self_device_time_total for event in events)
    # (microseconds, calls) of each
    spent = {
        event.key: (
            event.self_device_time_total if on_device else event.self_cpu_time_total,
            event.count,
        )
        for event in events
    }
    total = sum(time for time, _ in spent.values())
    return {
        name: f"{time / 1e3:10,.1f} ms {time / max(1.0, total):6.1%} {calls:8,} calls"
        for name, (time, calls) in sorted(spent.items(), key=lambda item: -item[1][0])[:SHOWN]
    }
