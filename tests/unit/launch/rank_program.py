"""A small program that plays a rank, and ways to watch it."""

import json
import time
from collections.abc import Callable
from pathlib import Path

# A rank: notes its environment and arguments, then each signal that it gets. `behaviour` says how
# it ends.
RANK = """
import json, os, signal, subprocess, sys, time
signal.alarm(60)  # a rank that a test failed to end ends then
folder, behaviour, *arguments = sys.argv[1:]
me = os.path.join(folder, os.environ["RANK"])
def note(number, frame):
    with open(me + ".signals", "a") as out:
        print(signal.Signals(number).name, file=out)
    if behaviour == "leave":
        sys.exit(0)
    if behaviour == "resign":
        sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, note)
with open(me + ".tmp", "w") as out:
    json.dump({"pid": os.getpid(), "folder": os.getcwd(), "arguments": arguments, **os.environ}, out)
os.rename(me + ".tmp", me + ".json")
if behaviour == "end":
    sys.exit(0)
if behaviour.startswith("fail"):  # fail:CODE:RANK, once all have begun
    code, rank = map(int, behaviour.split(":")[1:])
    while sum(name.endswith(".json") for name in os.listdir(folder)) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    if int(os.environ["RANK"]) == rank:
        if code < 0:
            os.kill(os.getpid(), -code)
        sys.exit(code)
    behaviour = "leave"
while True:
    time.sleep(0.01)
"""


def notes(folder: Path) -> list[dict[str, str]]:
    """What each rank that began with this folder noted, by rank: its environment, arguments, folder
    and pid."""
    return [json.loads(path.read_text()) for path in sorted((folder / "notes").glob("*.json"))]


def signals(folder: Path) -> list[str]:
    """The signals that each rank got, by rank, without those that got none."""
    return [path.read_text() for path in sorted((folder / "notes").glob("*.signals"))]


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds; fail the test if it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
