"""End worker processes with the process that started them."""

import multiprocessing
import os
import signal
import threading


def follow_parent() -> None:
    """In a worker process: leave Ctrl-C to the parent, and end with it. An orphan would work on in
    a folder given up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
