"""Ranks under torch's own launcher."""

import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rank_program import notes
from torch.distributed import TCPStore

from robustly import StartAgain, UserError
from robustly.exit_codes import START_AGAIN
from robustly.heartbeat import Kind
from robustly.launch import Job, TorchrunOptions, torchrun
from robustly.launch.supervise import Ended

pytestmark = pytest.mark.processes

JOB = Job(
    command=("/env/bin/robustly", "pretrain", "mine.yaml", "data.language=it's"),
    folder=Path("/home/me/my runs"),
    finished=Path("manifest.json"),
    name="tiny",
    ranks=2,
    environment={"NCCL_DEBUG": "INFO"},
)
TORCHRUN = str(Path(sys.executable).with_name("torchrun"))


def words(**options) -> list[str]:
    """The rendered torchrun command, up to the ranks' own."""
    line, comment = torchrun.render(JOB, TorchrunOptions(**options)).splitlines()
    assert comment.startswith("# a torchrun that fails ends with 1")
    found = shlex.split(line)
    return found[found.index(TORCHRUN) : found.index("--no-python")]


def test_render_for_one_machine():
    text = torchrun.render(JOB, TorchrunOptions(restarts=1))
    assert text.splitlines()[0] == (
        "cd '/home/me/my runs' && NCCL_DEBUG=INFO TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "
        f"{TORCHRUN} --standalone --nproc-per-node 2 --max-restarts 0 --no-python "
        """/env/bin/robustly pretrain mine.yaml 'data.language=it'"'"'s'"""
    )
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_render_for_several_machines():
    assert words(nodes="4", ranks_per_node=8, master="nodea") == [
        TORCHRUN, "--nnodes", "4", "--rdzv-backend", "c10d", "--rdzv-id", "tiny", "--rdzv-endpoint", "nodea:29500",
        "--rdzv-conf", "join_timeout=600", "--nproc-per-node", "8", "--max-restarts", "0",
    ]  # fmt: skip


def test_options_pass_through():
    given = words(
        nodes="2:4", master="nodea", master_port=2379, rdzv_id="mine", rdzv_backend="etcd-v2",
        rdzv_conf="join_timeout=60,last_call_timeout=5", log_dir=Path("my logs"),
        torchrun=("local-addr=10.0.0.3", "--monitor-interval=1"),
    )  # fmt: skip
    assert given == [
        TORCHRUN, "--nnodes", "2:4", "--rdzv-backend", "etcd-v2", "--rdzv-id", "mine", "--rdzv-endpoint", "nodea:2379",
        "--rdzv-conf", "join_timeout=60,last_call_timeout=5", "--nproc-per-node", "2", "--max-restarts", "0",
        "--log-dir", "my logs", "--tee", "3", "--local-addr=10.0.0.3", "--monitor-interval=1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": "4"}, "--nodes 4: torchrun also needs --master HOST"),
        ({"nodes": "4:2", "master": "nodea"}, "--nodes 4:2: expected a number of machines"),
        ({"nodes": "0", "master": "nodea"}, "--nodes 0: expected"),
        ({"nodes": "two", "master": "nodea"}, "--nodes two: expected"),
        ({"nodes": "2", "master": "localhost"}, "--master localhost: the other machines cannot"),
        ({"master": "nodea"}, "--master: of no use to one machine"),
        ({"rdzv_id": "mine"}, "--rdzv-id: of no use to one machine"),
        ({"rdzv_conf": "join_timeout=1"}, "--rdzv-conf: of no use to one machine"),
        (
            {"nodes": "2", "master": "nodea", "rdzv_conf": "read_timeout=9,join_timeout=1h"},
            "--rdzv-conf read_timeout=9,join_timeout=1h: expected NAME=VALUE,... with whole seconds",
        ),
        (
            {"nodes": "2", "master": "nodea", "rdzv_conf": "timeout"},
            "--rdzv-conf timeout: expected",
        ),
        ({"master_port": 29501}, "--master-port: of no use to one machine"),
        ({"rdzv_backend": "etcd"}, "--rdzv-backend: of no use to one machine"),
        ({"nodes": "2", "master": "nodea:29500"}, "expected a host's name or address alone"),
        ({"nodes": "2", "master": "tcp://nodea"}, "expected a host's name or address alone"),
        ({"nodes": "2", "master": ""}, "expected a host's name or address alone"),
        ({"torchrun": ("",)}, "expected NAME=VALUE"),
        ({"torchrun": ("nnodes=7",)}, "--torchrun nnodes=7: give it as --nodes"),
        ({"torchrun": ("--max_restarts=5",)}, "give it as --restarts"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        torchrun.render(JOB, TorchrunOptions(**options))


def test_a_master_that_is_not_known_is_said_at_once(monkeypatch):
    def unknown(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises(UserError, match="--master gpu1: this machine does not know that name"):
        torchrun.start(JOB, TorchrunOptions(nodes="2", master="gpu1"))


def test_a_backend_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [])
    with pytest.raises(UserError, match="--rdzv-backend etcd-v2: torchrun needs python-etcd"):
        torchrun.start(JOB, TorchrunOptions(nodes="2", master="gpu1", rdzv_backend="etcd-v2"))


def test_machines_that_did_not_meet_are_told_of_each_other(monkeypatch):
    """torchrun itself says no more than RendezvousTimeoutError."""
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [])
    nothing_began = SimpleNamespace(ranks=None)
    monkeypatch.setattr(torchrun, "run", lambda _: (Ended(START_AGAIN, Kind.ERROR), nothing_began))
    options = TorchrunOptions(nodes="2:4", master="gpu1", rdzv_conf="join_timeout=9")
    with pytest.raises(StartAgain, match="2 machines did not meet at gpu1:29500 in 0 s"):
        torchrun.start(JOB, options)


def test_the_ranks_start_again_after_one_was_killed(tmp_path, rank, launcher):
    """For real: rank 1 is killed once, after which both ranks begin again and end."""
    program = tmp_path / "once.py"
    program.write_text(f"""
import os, signal, sys, time
if os.environ["RANK"] == "1" and not os.path.exists({str(tmp_path / "killed")!r}):
    open({str(tmp_path / "killed")!r}, "w").close()
    time.sleep(1)
    os.kill(os.getpid(), {signal.SIGKILL})
open({str(tmp_path / "manifest.json")!r}, "w").close()
os.execv(sys.executable, {rank("end", "it's $HOME")!r})
""")
    process = launcher(f"""
import sys; from pathlib import Path; from robustly.launch import TorchrunOptions, Job, attempts, foreign, torchrun
attempts.FIRST_PAUSE, foreign.LOOK, foreign.LAST_WORD = 0.1, 0.2, 0.1
command, folder = ({sys.executable!r}, {str(program)!r}), Path({str(tmp_path)!r})
sys.exit(torchrun.start(Job(command, folder, folder / "manifest.json", ranks=2), TorchrunOptions(restarts=1)))
""")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert "left no word: killed" in errors
    assert "attempt 2 begins" in errors
    ranks = notes(tmp_path)
    assert [(each["RANK"], each["LOCAL_WORLD_SIZE"]) for each in ranks] == [("0", "2"), ("1", "2")]
    assert {each["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] for each in ranks} == {"1"}
    assert ranks[0]["arguments"] == ["it's $HOME"]


def test_the_first_machine_keeps_the_meeting_place_by_any_name_of_it(monkeypatch):
    """torchrun knows its machine by the host's name and the addresses of that alone."""
    addresses = {"gpu1": {"10.0.0.1"}, "gpu1-ib": {"10.1.0.1"}, "gpu1.cluster": {"10.0.0.1"}}
    monkeypatch.setattr("socket.gethostname", lambda: "gpu1")
    monkeypatch.setattr(torchrun, "_addresses", lambda name: addresses.get(name, {name}))
    monkeypatch.setattr(torchrun, "_is_here", lambda host: host != "gpu2")

    def conf(master: str, **more) -> str | None:
        options = TorchrunOptions(nodes="2", master=master, **more)
        return torchrun.meeting_here(master, options).rdzv_conf

    assert conf("gpu1") is conf("gpu1.cluster") is conf("gpu2") is None
    assert conf("gpu1-ib") == "join_timeout=600,is_host=1"
    assert conf("fd00::1", rdzv_conf="read_timeout=9,") == "read_timeout=9,is_host=1"
    assert conf("gpu1-ib", rdzv_conf="is_host=0") == "is_host=0"
    assert conf("gpu1-ib", rdzv_backend="etcd-v2") is None


def test_a_machine_knows_its_own_addresses():
    assert torchrun._is_here("localhost") and torchrun._is_here("127.0.0.2")
    assert not torchrun._is_here("192.0.2.1")  # of no machine


def test_a_port_that_another_program_listens_on_is_refused():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on localhost.* in use by another"):
            torchrun.refuse_taken_port("localhost", port)

    torchrun.refuse_taken_port("localhost", port)


def test_a_port_that_only_its_own_machine_reaches_is_refused_there():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert torchrun._taken("127.0.0.2", port)
    assert not torchrun._taken("127.0.0.2", port)


def test_a_port_on_which_a_torchrun_waits_for_others_is_not_refused():
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    torchrun.refuse_taken_port("localhost", store.port)
