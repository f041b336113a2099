"""Worker processes: they end with the process that started them, and tell it that they live."""

import contextlib
import math
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from robustly import StartAgain
from robustly.heartbeat import BEAT, Phase, Record, Watch


class Beats:
    """Where worker processes tell that they live, as the one reads it that started them."""

    def __init__(self, bound: float):
        self._bound = bound
        self._reader, self.writer = multiprocessing.Pipe(duplex=False)
        self._heard: Counter[str] = Counter()
        self._watch = Watch()

    def look(self, workers: Iterable[BaseProcess]) -> None:
        """Read what the workers that run have told; to be called at least once a second.

        Raises StartAgain, and kills all, if one has told nothing for `bound` seconds: it is
        stopped, or stuck in code that lets no thread run."""
        while self._reader.poll():
            self._heard[self._reader.recv_bytes().decode()] += 1

        running = {worker.name: worker for worker in workers}
        self._watch.look(
            {name: Record(self._heard[name], 0, 0, 0, Phase.START, math.inf) for name in running}
        )
        for seen in self._watch.seen():
            if seen.silent <= self._bound:
                continue

            for worker in running.values():
                worker.kill()

            raise StartAgain(
                f"worker process {running[seen.name].pid} on {socket.gethostname()}: no sign of"
                f" life for {seen.silent:.0f} s; it is stopped or stuck, and all were ended. What"
                " is done is kept: the same command goes on"
            )


def follow_parent(beats: Connection | None = None) -> None:
    """In a worker process: leave Ctrl-C and a closed terminal to the parent, and end with it. An
    orphan would work on in a folder given up. `beats`: where to tell that it lives."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    threading.Thread(target=_end_with_parent, daemon=True).start()
    if beats:
        threading.Thread(target=_tell, args=(beats,), daemon=True).start()


def _tell(beats: Connection) -> None:
    name = multiprocessing.current_process().name.encode()
    with contextlib.suppress(OSError):  # the parent has gone
        while True:
            beats.send_bytes(name)
            time.sleep(BEAT)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
