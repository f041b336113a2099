"""Launchers of other projects: how their ranks ended is told by the ranks, not by an exit code."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from rank_program import alive, wait_for

from robustly.exit_codes import FAULT, MISTAKE, START_AGAIN
from robustly.heartbeat import Kind
from robustly.launch.ends import End
from robustly.launch.foreign import is_over, verdict, why_no_word

# A rank that notes its pid and, told by a file what to do, leaves word and an exit code.
RANK = """
import os, signal, sys, time
from pathlib import Path
from robustly.heartbeat import Kind
from robustly.launch import ends

signal.alarm(60)
folder, number = Path(os.environ[ends.FOLDER]), int(os.environ["RANK"])

def leave(kind, code, text):
    attempt = ends.attempt_name(os.environ)
    ends.write(folder, ends.End(attempt, "nodea", number, kind, code, text, 7, time.time()))
    sys.exit(code)

for each in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
    signal.signal(each, lambda number, frame: leave(Kind.STOPPED, 75, f"stopped by {number}"))
(folder / f"{number}.tmp").write_text(str(os.getpid()))
(folder / f"{number}.tmp").rename(folder / f"{number}.pid")
while True:
    time.sleep(0.01)
    told = folder / f"{number}.told"
    if told.exists():
        kind, code = told.read_text().split()
        if kind == "NONE":
            sys.exit(int(code))
        leave(Kind[kind], int(code), f"rank {number} says {kind}")
"""
# Starts ranks as torchrun does, and ends with 1 whatever they do.
LAUNCHER = f"""
import os, signal, subprocess, sys
signal.alarm(60)
names = {{"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "run", "MASTER_ADDR": "nodea", "MASTER_PORT": "29500"}}
started = [
    subprocess.Popen([sys.executable, "-c", {RANK!r}], env={{**os.environ, **names, "RANK": str(n)}}, start_new_session=True)
    for n in range(2)
]
sys.exit(1 if any([each.wait() for each in started]) else 0)
"""
PROGRAM = f"""
import os, sys
from pathlib import Path
from robustly.launch import foreign, torchrun
from robustly.launch.supervise import supervise

foreign.LOOK, foreign.LOOK_AT_ENDS, foreign.OVER, foreign.LAST_WORD = 0.1, 0.1, 0.5, 0.5
folder = Path(sys.argv[1])
child = lambda: torchrun.Torchrun("torchrun", [sys.executable, "-c", {LAUNCHER!r}], os.environ, folder, folder / 'manifest.json')
ended = supervise([child], 2.0)
print(ended.kind.name if ended.kind is not None else "", ended.host, ended.rank, ended.text, file=sys.stderr)
sys.exit(ended.code)
"""


def end(rank: int, kind: Kind, code: int = START_AGAIN, when: float = 0.0, text: str = "") -> End:
    return End("1", f"node{rank}", rank, kind, code, text, 7, when)


HOSTS = ["nodea", "nodeb", "nodec"]


def test_the_first_that_failed_is_to_blame():
    words = [
        end(0, Kind.FOLLOWED),
        end(1, Kind.ERROR, FAULT, 2.0, "later"),
        end(2, Kind.ERROR, MISTAKE, 1.0, "first"),
    ]
    found = verdict(words, HOSTS)
    assert (found.code, found.kind, found.host, found.rank, found.text) == (
        MISTAKE, Kind.ERROR, "node2", 2, "first",
    )  # fmt: skip


def test_all_that_were_asked_to_stop_stopped():
    found = verdict(
        [end(0, Kind.STOPPED, text="stopped"), end(1, Kind.STOPPED, when=1.0)], HOSTS[:2]
    )
    assert (found.code, found.kind, found.text) == (START_AGAIN, Kind.STOPPED, "stopped")


@pytest.mark.parametrize("kind", [Kind.STOPPED, Kind.FOLLOWED])
def test_a_rank_that_left_no_word_was_lost(kind):
    """Whoever was told to stop was told by the launcher, because of it."""
    found = verdict([end(0, kind), end(2, kind)], HOSTS)
    assert (found.code, found.kind, found.host, found.rank) == (
        START_AGAIN, Kind.ERROR, "nodeb", 1,
    )  # fmt: skip
    assert found.text.startswith("rank 1 on nodeb left no word: killed, perhaps because memory")
    assert found.update == 7

    found = verdict([], ["nodea"] * 12)
    assert (found.host, found.rank) == ("nodea", None)
    assert found.text.startswith("ranks 0, 1, 2, 3, 4, 5, 6, 7, ... on nodea left no word")

    found = verdict([end(0, kind)], HOSTS)
    assert (found.host, found.rank) == ("", None)
    assert found.text.startswith("ranks 1, 2 left no word")


def test_a_folder_that_takes_no_word_is_what_ranks_ended_for(tmp_path):
    """A full disk, as a rule; on the hosts of mpirun they have no other place for it."""
    assert why_no_word(tmp_path) == "" and not list(tmp_path.iterdir())
    assert why_no_word(Path("/dev/full")).startswith("/dev/full: Not a directory. Mend that")


def test_ranks_that_all_followed_lost_each_other():
    found = verdict([end(0, Kind.FOLLOWED), end(1, Kind.FOLLOWED)], HOSTS[:2])
    assert (found.code, found.kind) == (START_AGAIN, Kind.ERROR)
    assert "lost each other" in found.text


def test_whoever_found_it_the_odd_one_is_to_blame():
    found = verdict(
        [replace(end(0, Kind.ERROR, text="rank 1 hangs"), odd_rank=1, odd_host="b")], HOSTS[:2]
    )
    assert (found.code, found.host, found.rank, found.text) == (START_AGAIN, "b", 1, "rank 1 hangs")


def test_of_a_rank_without_a_disk_the_others_tell():
    told = replace(end(1, Kind.FOLLOWED, MISTAKE, text="no disk"), odd_rank=0, odd_host="node0")
    found = verdict([told], HOSTS[:2])
    assert (found.code, found.kind, found.host, found.rank, found.text) == (
        MISTAKE, Kind.ERROR, "node0", 0, "no disk",
    )  # fmt: skip


def test_all_that_were_asked_to_stop_may_begin_again_with_another_machine():
    assert not is_over([], 2)
    assert not is_over([end(0, Kind.STOPPED), end(1, Kind.STOPPED)], 2)
    assert is_over([end(0, Kind.STOPPED)], 2)
    assert is_over([end(0, Kind.STOPPED), end(1, Kind.FOLLOWED)], 2)


# --------------------------------------------------------------------------- as processes of its own


class Launched:
    def __init__(self, folder: Path, process: subprocess.Popen[str]):
        self.folder, self.process = folder, process
        wait_for(lambda: len(list(folder.glob("*.pid"))) == 2, 30)
        self.ranks = [int((folder / f"{n}.pid").read_text()) for n in range(2)]
        self.launcher = psutil.Process(self.ranks[0]).ppid()
        time.sleep(0.5)  # it has looked at its ranks

    def tell(self, rank: int, word: str) -> None:
        (self.folder / "new").write_text(word)
        (self.folder / "new").rename(self.folder / f"{rank}.told")

    def ended(self) -> tuple[int, str]:
        """Its exit code and last line; nothing is left of it."""
        _, errors = self.process.communicate(timeout=30)
        wait_for(lambda: not any(map(alive, [*self.ranks, self.launcher])))
        return self.process.returncode, errors.strip().splitlines()[-1]


@pytest.fixture
def launched(tmp_path: Path, launcher: Callable[..., subprocess.Popen[str]]) -> Iterator[Launched]:
    """Two ranks under a stand-in for torchrun."""
    program = PROGRAM.replace("sys.argv[1]", repr(str(tmp_path)))
    one = Launched(tmp_path, launcher(program))
    yield one
    for pid in one.ranks:
        if alive(pid):
            psutil.Process(pid).kill()


pytestmark = pytest.mark.processes


def test_a_mistake_of_a_rank_is_the_exit_code(launched):
    launched.tell(0, f"FOLLOWED {MISTAKE}")
    launched.tell(1, f"ERROR {MISTAKE}")
    assert launched.ended() == (MISTAKE, "ERROR nodea 1 rank 1 says ERROR")


def test_ranks_that_were_asked_to_stop_elsewhere_are_no_success(launched):
    launched.tell(0, "STOPPED 75")
    launched.tell(1, "STOPPED 75")
    code, line = launched.ended()
    assert (code, line.split()[0]) == (START_AGAIN, "STOPPED")


def test_a_signal_reaches_the_ranks(launched):
    launched.process.send_signal(signal.SIGINT)
    code, line = launched.ended()
    assert (code, line.split()[0]) == (START_AGAIN, "STOPPED")
    assert line.endswith("stopped by 2")


def test_a_rank_that_is_killed_is_worth_a_new_start(launched):
    psutil.Process(launched.ranks[1]).kill()
    launched.tell(0, "FOLLOWED 75")
    code, line = launched.ended()
    here = socket.gethostname()
    assert (code, line.split()[:2]) == (START_AGAIN, ["ERROR", here])
    assert f"rank 1 on {here} left no word" in line


def test_a_rank_that_is_stopped_ends_after_those_elsewhere_have_left(launched):
    """torchrun of a machine whose only rank is stopped sees nothing wrong."""
    psutil.Process(launched.ranks[1]).suspend()
    launched.tell(0, "ERROR 75")
    code, line = launched.ended()
    assert (code, line) == (START_AGAIN, "ERROR nodea 0 rank 0 says ERROR")


def test_what_a_launcher_leaves_behind_that_is_killed_ends(launched):
    psutil.Process(launched.launcher).kill()
    code, _ = launched.ended()
    assert code == START_AGAIN


def test_a_launcher_that_starts_no_ranks_says_so(tmp_path, launcher):
    program = PROGRAM.replace(repr(LAUNCHER), "'raise SystemExit(1)'")
    process = launcher(program.replace("sys.argv[1]", repr(str(tmp_path))))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == START_AGAIN
    assert "torchrun ended with exit code 1, and no rank had begun: see above" in errors
