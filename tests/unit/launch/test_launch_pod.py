"""One pod's program, in the environment that JobSet and the Job give it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rank_program import notes, signals, wait_for

from robustly import StartAgain, UserError
from robustly.exit_codes import FAULT, FINISHED, MISTAKE, START_AGAIN
from robustly.heartbeat import Kind
from robustly.launch import ends, pod
from robustly.launch.ends import End
from robustly.launch.job import NodeRanks
from robustly.launch.kubernetes import FURTHER
from robustly.launch.local import free_port
from robustly.launch.supervise import Ended

JOBSET = {
    "JOB_COMPLETION_INDEX": "3",
    "MASTER_ADDR": "tiny-node-0-0.tiny",
    "MASTER_PORT": "29500",
}


def test_the_ranks_of_a_pod():
    assert pod.node_of_pod(4, 8, JOBSET) == NodeRanks(24, 8, 32, "tiny-node-0-0.tiny", 29500)


@pytest.mark.parametrize("name", JOBSET)
def test_no_pod_of_ours(name):
    with pytest.raises(UserError, match=name if name == "MASTER_ADDR" else "JOB_COMPLETION_INDEX"):
        pod.node_of_pod(4, 8, {key: value for key, value in JOBSET.items() if key != name})


def test_names_of_all_pods():
    assert pod.pod_names("tiny-0-node-0-0.tiny-0", 3) == [
        "tiny-0-node-0-0.tiny-0",
        "tiny-0-node-0-1.tiny-0",
        "tiny-0-node-0-2.tiny-0",
    ]


def left(code: int, attempt: str = "0-uid", kind: Kind = Kind.ERROR) -> End:
    return End(attempt, "tiny-node-0-1", 9, kind, code, "diverged", 40, 1.0)


@pytest.mark.parametrize(
    ("code", "blamed", "further", "expected"),
    [
        (FINISHED, None, True, FINISHED),
        (FAULT, None, True, FAULT),
        (MISTAKE, None, True, MISTAKE),
        (START_AGAIN, None, False, START_AGAIN),
        (START_AGAIN, None, True, FURTHER),
        (START_AGAIN, left(MISTAKE), True, MISTAKE),
        (START_AGAIN, left(FAULT), False, FAULT),
        (START_AGAIN, left(START_AGAIN), False, START_AGAIN),
        (130, None, True, FURTHER),
        (9, None, False, START_AGAIN),
    ],
)
def test_exit_code(code, blamed, further, expected):
    assert pod.exit_code(Ended(code), blamed, further) == expected


def test_the_word_of_another_pod_is_of_this_attempt(tmp_path, monkeypatch):
    monkeypatch.setenv(ends.ATTEMPT, "1-uid")
    ends.write(tmp_path, left(MISTAKE, "0-uid"))
    assert pod.blamed(tmp_path, patience=0) is None
    ends.write(tmp_path, left(START_AGAIN, "1-uid", Kind.FOLLOWED))
    assert pod.blamed(tmp_path, patience=0) is None
    ends.write(tmp_path, left(MISTAKE, "1-uid"))
    assert pod.blamed(tmp_path, patience=0) == left(MISTAKE, "1-uid")


def test_the_codes_of_pods_differ_from_all_others():
    assert FURTHER not in {FINISHED, FAULT, MISTAKE, START_AGAIN, 126, 127}
    assert FURTHER < 128


def test_it_waits_until_every_name_resolves(monkeypatch):
    asked: list[str] = []

    def look_up(name: str, port: None) -> None:
        asked.append(name)
        if len(asked) < 5:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(pod.time, "sleep", lambda seconds: None)
    pod.wait_for(["a", "b"])
    assert asked[-2:] == ["a", "b"] and len(asked) == 6


def test_it_does_not_wait_for_ever():
    with pytest.raises(StartAgain, match=r"1 of 2 pods have no address yet: nowhere\.invalid"):
        pod.wait_for(["localhost", "nowhere.invalid"], patience=0)


# -------------------------------------------------------------------------------------- processes


@pytest.fixture
def start(tmp_path, launcher, monkeypatch) -> Callable[..., subprocess.Popen[str]]:
    """A pod's program, as the container starts it."""
    monkeypatch.chdir(tmp_path)

    def run(
        *command: str, index: int = 0, nodes: int = 1, address: str = "localhost"
    ) -> subprocess.Popen[str]:
        arguments = ["--nodes", str(nodes), "--ranks", "2"]
        arguments += ["--finished", "runs/x/train/manifest.json", "--", *command]
        return launcher(
            f"import sys; from robustly.launch import pod; sys.argv[1:] = {arguments!r}; sys.exit(pod.main())",
            JOB_COMPLETION_INDEX=str(index),
            MASTER_ADDR=address,
            MASTER_PORT=str(free_port()),
        )

    return run


def checkpoint(folder: Path, update: int) -> None:
    (folder / f"runs/x/train/checkpoints/update-{update:08}").mkdir(parents=True)


@pytest.mark.processes
def test_ranks_by_the_index_of_the_pod(tmp_path, start, rank):
    assert start(*rank("end", "it's $HOME"), index=1).wait(60) == FINISHED
    first, second = notes(tmp_path)
    assert [each["RANK"] for each in (first, second)] == ["2", "3"]
    assert [each["LOCAL_RANK"] for each in (first, second)] == ["0", "1"]
    assert first["LOCAL_WORLD_SIZE"] == "2" and first["MASTER_ADDR"] == "localhost"
    assert first["arguments"] == ["it's $HOME"]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("behaviour", "further", "expected"),
    [
        ("fail:2:1", True, MISTAKE),
        ("fail:-9:1", False, START_AGAIN),
        ("fail:-9:1", True, FURTHER),
    ],
)
def test_the_exit_code_says_whether_it_got_further(
    tmp_path, start, rank, behaviour, further, expected
):
    checkpoint(tmp_path, 100)
    writes = [
        "sh",
        "-c",
        f'mkdir -p runs/x/train/checkpoints/update-00000{2 if further else 1}00; exec "$@"',
        "sh",
    ]
    assert start(*writes, *rank(behaviour)).wait(60) == expected


@pytest.mark.processes
def test_sigterm_reaches_the_ranks(tmp_path, start, rank):
    process = start(*rank("resign"))
    wait_for(lambda: len(notes(tmp_path)) == 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == START_AGAIN
    assert signals(tmp_path) == ["SIGTERM\n"] * 2


@pytest.mark.processes
def test_sigterm_while_it_waits_for_others(start):
    """As a container's first process it must handle the signal: the kernel drops it otherwise."""
    process = start("true", nodes=2, address="nowhere-0.invalid")
    wait_for(lambda: handles(process.pid, signal.SIGTERM))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == START_AGAIN


def handles(pid: int, number: int) -> bool:
    caught = next(
        line.split()[1]
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("SigCgt")
    )
    return bool(int(caught, 16) & 1 << (number - 1))


@pytest.mark.processes
def test_outside_a_job(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "robustly.launch.pod", "--nodes", "1", "--ranks", "1"),
            *("--finished", "manifest.json", "--", "true"),
        ],
        capture_output=True,
        text=True,
        env={
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JOB_", "MASTER_"))
        },
    )
    assert done.returncode == MISTAKE
    assert len(done.stderr.splitlines()) == 1
    assert "JOB_COMPLETION_INDEX" in done.stderr and "Traceback" not in done.stderr
