"""Heartbeats: what a process is at, in memory that whoever watches it reads as well.

A rank marks what it begins: a few numbers in a memory map, no system call. Beside them a thread
counts on once a second, which it cannot while the process is stopped. Its launcher reads both
(`robustly.launch.supervise`); where none of ours started it (torchrun, srun) the thread itself ends
a process that makes no progress. What a rank has to say when it fails lies there too.

    memory.py   what a heartbeat holds
    watch.py    who hangs, by how long each has stood still

Here is this process's own."""

import faulthandler
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from robustly.exit_codes import START_AGAIN
from robustly.heartbeat.memory import SIZE as SIZE
from robustly.heartbeat.memory import Fault as Fault
from robustly.heartbeat.memory import Heartbeat as Heartbeat
from robustly.heartbeat.memory import Kind as Kind
from robustly.heartbeat.memory import Odd as Odd
from robustly.heartbeat.memory import Phase as Phase
from robustly.heartbeat.memory import Record as Record
from robustly.heartbeat.memory import file as file
from robustly.heartbeat.memory import stack as stack
from robustly.heartbeat.watch import BEAT as BEAT
from robustly.heartbeat.watch import Seen as Seen
from robustly.heartbeat.watch import Watch as Watch
from robustly.heartbeat.watch import heard_by_network as heard_by_network
from robustly.heartbeat.watch import to_blame as to_blame

VARIABLE = "ROBUSTLY_HEARTBEAT"
"""Environment variable by which a launcher passes the number of an open file to a rank."""
START_TIMEOUT = 300.0
"""Seconds until a process must have begun to tell of itself."""
ANSWER = 10.0
"""Seconds that the other ranks get to say what they are at."""
SHOW_STACK = signal.SIGUSR2
"""At this signal a process that beats prints where its threads stand."""
KEEPING = 5.0
"""Seconds that a process which ends waits for its last message to be kept."""


class _Own:
    heartbeat = Heartbeat(mmap.mmap(-1, SIZE))
    watched = False
    beating = False
    background = 0
    others: Callable[[float], list[Seen]] | None = None
    keep: Callable[[Kind, int, str, Odd | None], None] | None = None
    kept: threading.Event | None = None
    leaving = threading.RLock()


def ask(others: Callable[[float], list[Seen]]) -> None:
    """Whom to ask, before this process accuses itself: what is seen of the other ranks, given for
    how long this one has stood still."""
    _Own.others = others


def mark(phase: Phase, update: int | None = None, micro_batch: int = 0) -> None:
    """Mark this process's progress, by its main thread. It takes less than a microsecond."""
    _Own.heartbeat.mark(phase, update, micro_batch)


def go_on() -> None:
    """Mark progress in what was begun."""
    _Own.heartbeat.mark(_Own.heartbeat.phase)


def go_on_in_background() -> None:
    """Mark progress of a thread beside the main one, which nobody sees until that waits for it."""
    _Own.background += 1


def join(thread: threading.Thread, phase: Phase) -> None:
    """Wait for a thread, whose progress is this process's meanwhile."""
    mark(phase)
    while thread.is_alive():
        before = _Own.background
        thread.join(BEAT)
        if _Own.background != before:
            mark(phase)


def allow(seconds: float) -> None:
    """State how long this process may be without a mark from here on."""
    _Own.heartbeat.allow(seconds)


def leave(kind: Kind, code: int, text: str, odd: Odd | None = None) -> bool:
    """Leave this process's last message to its launcher. False where none of ours watches, and the
    process has to say it itself. `odd`: the rank to blame, where it is known and another one."""
    with _Own.leaving:
        if _Own.heartbeat.leave(kind, code, text) and _Own.keep:
            kept = _Own.kept = threading.Event()
            keep = _Own.keep

            def work() -> None:
                keep(kind, code, text, odd)
                kept.set()

            # a thread, because a file system that does not answer must not keep the process alive
            threading.Thread(target=work, daemon=True).start()

    wait_until_kept()
    return _Own.watched


def keep_last_message(keep: Callable[[Kind, int, str, Odd | None], None]) -> None:
    """Have this process's last message kept elsewhere as well, once it leaves one."""
    _Own.keep = keep


def wait_until_kept() -> None:
    """Before a process ends that has left its last message."""
    with _Own.leaving:  # which another thread may be at
        kept = _Own.kept
    if kept:
        kept.wait(KEEPING)


def own() -> Heartbeat:
    return _Own.heartbeat


def watched() -> bool:
    """Whether a launcher of ours reads this process's heartbeat."""
    return _Own.watched


def watches_itself() -> bool:
    """Whether this process beats, and no launcher of ours looks."""
    return _Own.beating and not _Own.watched


def begin(name: str) -> None:
    """Begin to beat, in the file that the launcher passed. Without one this process watches itself,
    as `name`."""
    if _Own.beating:
        return

    passed = os.environ.pop(VARIABLE, None)  # not for the processes that this one starts
    if passed is not None:
        file = int(passed)
        _Own.heartbeat = Heartbeat(mmap.mmap(file, SIZE))
        _Own.watched = True
        os.lseek(file, SIZE, os.SEEK_SET)  # behind the heartbeat, for `stack`
        faulthandler.register(SHOW_STACK, file, all_threads=True)
    else:
        _Own.heartbeat = Heartbeat(mmap.mmap(-1, SIZE))  # the one before is a parent's as well
        _Own.heartbeat.allow(START_TIMEOUT)

    _Own.beating = True
    _Own.heartbeat.beat()
    _Own.heartbeat.mark(Phase.START)
    threading.Thread(target=_beat, args=(name,), name="heartbeat", daemon=True).start()


def _beat(name: str) -> None:
    watch, watcher = Watch(), Watch()
    while True:
        time.sleep(BEAT)
        _Own.heartbeat.beat()
        if _Own.watched:
            looks, patience = _Own.heartbeat.watcher()
            watcher.look({"": Record(looks, 0, 0, 0, Phase.START, patience)})
            if looks and watcher.seen()[0].silent > patience:
                _end_with_watcher()
            continue

        watch.look({name: _Own.heartbeat.record()})
        if me := watch.hung():
            if _Own.others:  # who may not answer
                threading.Timer(ANSWER, end_hung, [me]).start()
                me = to_blame([me, *_Own.others(me.idle)]) or me
            end_hung(me)


def end_hung(hung: Seen, tell: Callable[[], object] = lambda: None) -> None:
    """End this process, whose main thread may never return: where it stands, one line, exit
    code. `tell`: what else is to be told."""
    faulthandler.dump_traceback(all_threads=True)
    sys.stderr.write(f"error: {hung.message()}\n")
    sys.stderr.flush()
    leave(Kind.ERROR, START_AGAIN, hung.message(), hung.odd)
    tell()
    os._exit(START_AGAIN)


def _end_with_watcher() -> None:
    """End the agent that started this process, for it is stopped, and so nobody could end this
    one; the kernel then ends all ranks that it started."""
    os.kill(os.getppid(), signal.SIGKILL)
    os._exit(START_AGAIN)
