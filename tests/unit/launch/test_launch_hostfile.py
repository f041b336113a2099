"""Ranks on the machines of a hostfile; a stand-in for ssh runs each machine's line here, as sshd
would."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rank_program import alive, notes, signals, wait_for

from robustly import StartAgain, UserError
from robustly.findings import Finding
from robustly.launch import HostfileOptions, Job, attempts, cores, hostfile, node
from robustly.launch.job import NodeRanks

pytestmark = pytest.mark.processes

# Joins the last argument with a shell whose environment is bare, in a session of its own, and
# passes standard input on until it ends. The host `off` cannot be reached. Each connection leaves
# its process id. Hosts are numbers where ranks are started, because they look up the first one's
# name.
SSH = """#!{python} -S
import os, subprocess, sys, threading
*options, host, line = sys.argv[1:]
if host == "off":
    print("ssh: connect to host off port 22: No route to host", file=sys.stderr)
    sys.exit(255)
open({folder!r} + "/ssh." + host, "w").write(str(os.getpid()))
open({folder!r} + "/ssh." + host + ".words", "w").write(repr(sys.argv))
bare = {{"PATH": "/usr/bin:/bin", "HOME": "/", "PYTHONPATH": {root!r}}}
there = subprocess.Popen(["bash", "-c", line], stdin=subprocess.PIPE, env=bare, start_new_session=True)
def pump():
    while data := os.read(0, 1000):
        os.write(there.stdin.fileno(), data)
    there.stdin.close()
threading.Thread(target=pump, daemon=True).start()
sys.exit(there.wait() % 256)
"""
ROOT = Path(__file__).resolve().parents[3]
SPECIAL = ("two words", "it's", '{"lr": 1e-3}', "$HOME", "*.py", "a;b && c", "two\nlines", "é", "")


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """Put the stand-in first on PATH."""
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(SSH.format(python=sys.executable, folder=str(tmp_path), root=str(ROOT)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


def options(tmp_path: Path, hosts: str, **more) -> HostfileOptions:
    (tmp_path / "hosts").write_text(hosts)
    return HostfileOptions(hostfile=tmp_path / "hosts", **{"restarts": 0, **more})


def job(tmp_path: Path, command: list[str], **environment: str) -> Job:
    return Job(tuple(command), tmp_path, tmp_path / "manifest.json", environment=environment)


def test_what_does_not_fit_the_hostfile_is_refused(tmp_path):
    some = job(tmp_path, ["true"])
    with pytest.raises(UserError, match="needs --hostfile FILE"):
        hostfile.render(some, HostfileOptions())

    with pytest.raises(UserError, match=r"missing: cannot be read"):
        hostfile.render(some, HostfileOptions(hostfile=tmp_path / "missing"))

    with pytest.raises(UserError, match=r"--nodes 3: .*hosts has 2 hosts"):
        hostfile.render(some, options(tmp_path, "nodea slots=1\nnodeb slots=1\n", nodes=3))

    two = "nodea slots=1\nnodeb slots=1\n"
    for given, message in (
        ({"spares": 2}, r"one host and --spares 2: .*hosts has 2 hosts"),
        ({"spares": 1, "nodes": 2}, r"--nodes 2 and --spares 1: .*hosts has 2 hosts"),
        ({"min_nodes": 3}, r"--min-nodes 3: only 2 are used"),
    ):
        with pytest.raises(UserError, match=message):
            hostfile.render(some, options(tmp_path, two, **given))

    for name in ("localhost", "127.0.0.1", "user@localhost"):
        with pytest.raises(UserError, match="which the other machines cannot reach"):
            hostfile.render(some, options(tmp_path, f"{name} slots=1\nnodeb slots=1\n"))


def test_render(tmp_path):
    some = job(
        tmp_path, ["robustly", "pretrain", "mine.yaml", "data.language=it's"], NCCL_DEBUG="INFO"
    )
    text = hostfile.render(some, options(tmp_path, "user@nodea slots=2\nnodeb slots=1\n"))
    ssh = (
        "ssh -T -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15 -o"
        " ServerAliveCountMax=4"
    )
    first, second = text.splitlines()
    assert shlex.split(first)[:-2] == shlex.split(ssh)
    assert shlex.split(first)[-2:] == [
        "user@nodea",
        f"cd {tmp_path} && exec env NCCL_DEBUG=INFO ROBUSTLY_ATTEMPT=1 {sys.executable} -m robustly.launch.node"
        " --first-rank 0 --ranks 2 "
        "--world-size 3 --master-addr nodea --master-port 29500 -- "
        """robustly pretrain mine.yaml 'data.language=it'"'"'s'""",
    ]
    assert shlex.split(second)[-2] == "nodeb"
    assert "--first-rank 2 --ranks 1 --world-size 3 --master-addr nodea" in second
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_nodes_and_ranks_per_node_overrule_the_hostfile(tmp_path):
    three = "a slots=8\nb slots=4\nc slots=2\n"
    text = hostfile.render(
        job(tmp_path, ["true"]), options(tmp_path, three, nodes=2, ranks_per_node=3, master_port=5)
    )
    assert re.findall(
        r"first-rank (\d) --ranks (\d) --world-size (\d) --master-addr a --master-port (\d)", text
    ) == [
        ("0", "3", "6", "5"),
        ("3", "3", "6", "5"),
    ]


def test_only_the_chosen_hosts_and_slots_get_ranks(tmp_path):
    three = "a slots=8\nme@b slots=2\nc slots=4\n"
    some = job(tmp_path, ["true"], CUDA_VISIBLE_DEVICES="7")
    text = hostfile.render(some, options(tmp_path, three, exclude="a@b:0"))
    assert re.findall(r" (\S+) 'cd .*DEVICES=(\S+) .*first-rank (\d) --ranks (\d)", text) == [
        ("me@b", "1", "0", "1"),
        ("c", "7", "1", "4"),
    ]
    assert hostfile.render(some, options(tmp_path, three, include="b:1@c")) == text
    with pytest.raises(UserError, match="give one of them"):
        hostfile.render(some, options(tmp_path, three, include="b", exclude="c"))


def test_the_users_options_of_ssh_come_first_because_ssh_takes_the_first(tmp_path):
    given = options(
        tmp_path, "a slots=1\n", ssh_port=2222, ssh_option=("ConnectTimeout=5", "User=me")
    )
    text = hostfile.render(job(tmp_path, ["true"]), given)
    assert text.startswith(
        "ssh -p 2222 -o ConnectTimeout=5 -o User=me -T -o BatchMode=yes -o ConnectTimeout=20"
    )


@pytest.mark.skipif(not shutil.which("ssh"), reason="ssh is not installed")
def test_an_option_that_ssh_does_not_take_is_a_mistake_and_no_host_that_is_down(tmp_path):
    given = options(tmp_path, "a slots=1\n", ssh_option=("ConnectTimeout=5", "Bandwith=9"))
    for use in (hostfile.render, hostfile.reached, hostfile.start):
        with pytest.raises(UserError, match=r"Bandwith=9: ssh says: .*option: bandwith"):
            use(job(tmp_path, ["true"]), given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("abcde", "", 5)),
        ({"nodes": 2}, ("ab", "", 2)),
        ({"spares": 2}, ("abc", "de", 3)),
        ({"nodes": 2, "spares": 1, "min_nodes": 1}, ("ab", "e", 1)),
        ({"exclude": "e", "spares": 1}, ("abc", "d", 3)),
    ],
)
def test_the_last_hosts_of_the_file_are_the_spares(tmp_path, given, expected):
    five = "".join(f"{name} slots=1\n" for name in "abcde")
    pool = hostfile.pool_of(options(tmp_path, five, **given))
    names = "".join(host.name for host in pool.hosts)
    assert (names[: pool.nodes], names[pool.nodes :], pool.least) == expected


def test_a_host_that_could_come_to_be_the_first_must_be_reachable_for_the_others(tmp_path):
    some, two = job(tmp_path, ["true"]), "nodea slots=1\nlocalhost slots=1\n"
    hostfile.render(some, options(tmp_path, two))
    with pytest.raises(UserError, match="the first host is localhost"):
        hostfile.render(some, options(tmp_path, two, min_nodes=1))


def test_a_host_that_cannot_be_reached_is_replaced_by_a_spare(
    tmp_path, rank, ssh, capfd, monkeypatch
):
    """Both ranks then meet at a host that was the second one, at another port than before."""
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.01)
    three = options(
        tmp_path, "off slots=1\n10.0.0.1 slots=1\n10.0.0.2 slots=2\n", spares=1, restarts=1
    )
    assert hostfile.start(job(tmp_path, rank("end")), three) == 0
    assert [(r["RANK"], r["WORLD_SIZE"], r["MASTER_ADDR"]) for r in notes(tmp_path)] == [
        ("0", "3", "10.0.0.1"),
        ("1", "3", "10.0.0.1"),
        ("2", "3", "10.0.0.1"),
    ]
    assert {r["MASTER_PORT"] for r in notes(tmp_path)} == {"29502"}
    assert all(r["ROBUSTLY_ATTEMPT"].endswith("-3") for r in notes(tmp_path))
    told = capfd.readouterr().err
    assert "off failed twice in a row and is left out, 10.0.0.2 takes its place" in told


def test_ranks_go_on_with_fewer_hosts_where_that_is_allowed(
    tmp_path, rank, ssh, capfd, monkeypatch
):
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.01)
    some = options(tmp_path, "10.0.0.1 slots=2\noff slots=2\n", min_nodes=1, restarts=1)
    assert hostfile.start(job(tmp_path, rank("end")), some) == 0
    assert [r["WORLD_SIZE"] for r in notes(tmp_path)] == ["2", "2"]
    assert "off failed twice in a row and is left out, 1 goes on" in capfd.readouterr().err


def test_variables_that_are_exported_by_name_stand_in_no_command_line(
    tmp_path, rank, ssh, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("LARGE", "x" * 100_000)  # more than a pipe takes at once
    some = job(tmp_path, rank("end"), NCCL_DEBUG="INFO")
    given = options(tmp_path, "10.0.0.1 slots=1\n", export=("HF_TOKEN", "LARGE"))
    assert hostfile.start(some, given) == 0
    (found,) = notes(tmp_path)
    assert (found["HF_TOKEN"], found["NCCL_DEBUG"]) == ("hf_secret", "INFO")
    assert found["LARGE"] == "x" * 100_000

    assert "hf_secret" not in (tmp_path / "ssh.10.0.0.1.words").read_text()
    text = hostfile.render(some, given)
    assert "secret" not in text
    assert text.startswith("# standard input begins with the values of HF_TOKEN, LARGE\nssh ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NO_SUCH", "--export NO_SUCH: there is no such variable"),
        ("HF_TOKEN=hf_secret", "--export HF_TOKEN=...: every user of this machine can read"),
    ],
)
def test_export_takes_the_name_of_a_variable_that_is_set(tmp_path, name, message):
    given = options(tmp_path, "10.0.0.1 slots=1\n", export=(name,))
    for do in (hostfile.start, hostfile.render):
        with pytest.raises(UserError, match=message) as refused:
            do(job(tmp_path, ["true"]), given)
        assert "hf_secret" not in str(refused.value)


def test_cores_are_bound_on_the_hosts(tmp_path, rank, ssh, capfd):
    """More ranks than cores are the user's mistake, and said as such."""
    program = f"""
import os
from pathlib import Path
Path({str(tmp_path)!r}, "bound." + os.environ["RANK"]).write_text(str(sorted(os.sched_getaffinity(0))))
"""
    if len(cores.cores_by_node(os.sched_getaffinity(0))[0]) > 1:
        two = options(tmp_path, "10.0.0.1 slots=2\n", bind_cores=True)
        assert hostfile.start(job(tmp_path, [sys.executable, "-S", "-c", program]), two) == 0
        for rank_of_it, share in enumerate(cores.shares(2)):
            bound = (tmp_path / f"bound.{rank_of_it}").read_text()
            assert bound == str(sorted(cores.numbers_of(share)))

    some = options(tmp_path, "10.0.0.1 slots=4000\n", bind_cores=True, restarts=3)
    assert hostfile.start(job(tmp_path, rank("end")), some) == 2
    assert "--bind-cores: 4000 ranks would share the" in capfd.readouterr().err


def test_every_rank_gets_its_place_environment_and_arguments(tmp_path, rank, ssh):
    some = job(tmp_path, rank("end", *SPECIAL), NCCL_DEBUG="INFO", GLOO_SOCKET_IFNAME="it's $HOME")
    assert (
        hostfile.start(
            some, options(tmp_path, "10.0.0.1 slots=1\n10.0.0.2 slots=2\n", master_port=20123)
        )
        == 0
    )
    ranks = notes(tmp_path)
    names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [tuple(r[name] for name in names) for r in ranks] == [
        ("0", "0", "1", "3", "10.0.0.1", "20123"),
        ("1", "0", "2", "3", "10.0.0.1", "20123"),
        ("2", "1", "2", "3", "10.0.0.1", "20123"),
    ]

    for r in ranks:
        assert r["arguments"] == list(SPECIAL)
        assert (r["NCCL_DEBUG"], r["GLOO_SOCKET_IFNAME"]) == ("INFO", "it's $HOME")
        assert r["folder"] == str(tmp_path)
        assert "VIRTUAL_ENV" not in r
        assert r["HOME"] == "/"  # the far end's own


def test_one_host_is_reached_over_ssh_too(tmp_path, rank, ssh):
    assert hostfile.start(job(tmp_path, rank("end")), options(tmp_path, "10.0.0.1 slots=1\n")) == 0
    assert (tmp_path / "ssh.10.0.0.1").exists()
    assert len(notes(tmp_path)) == 1


def test_a_failure_on_one_host_stops_the_others(tmp_path, rank, ssh, capfd):
    both = options(tmp_path, "10.0.0.1 slots=2\n10.0.0.2 slots=1\n")
    begun = time.monotonic()
    assert hostfile.start(job(tmp_path, rank("fail:7:2")), both) == 7
    assert time.monotonic() - begun < 10
    assert signals(tmp_path) == ["SIGTERM\n", "SIGTERM\n"]
    assert not any(alive(int(r["pid"])) for r in notes(tmp_path))
    assert "10.0.0.2 ended with exit code 7" in capfd.readouterr().err


def test_how_far_a_rank_got_is_told_however_soon_it_ends(tmp_path, ssh, capfd):
    """Agents tell once a second what their ranks are at, and once more as each of them ends."""
    program = tmp_path / "rank.py"
    program.write_text(
        "from robustly import heartbeat\n"
        "from robustly.heartbeat import Phase\n"
        "heartbeat.begin('rank 0')\n"
        "heartbeat.mark(Phase.FORWARD, update=7)\n"
        "raise SystemExit(1)\n"
    )
    one = options(tmp_path, "10.0.0.1 slots=1\n")
    assert hostfile.start(job(tmp_path, [sys.executable, str(program)]), one) == 1
    assert "last update  7" in capfd.readouterr().err


def test_a_host_that_cannot_be_reached_stops_the_run(tmp_path, rank, ssh):
    assert (
        hostfile.start(
            job(tmp_path, rank("leave")), options(tmp_path, "10.0.0.1 slots=1\noff slots=1\n")
        )
        == 75
    )
    assert not any(alive(int(r["pid"])) for r in notes(tmp_path))


def test_a_folder_that_a_host_lacks_stops_the_run(tmp_path, rank, ssh, capfd):
    some = Job(tuple(rank("end")), tmp_path / "absent", tmp_path / "manifest.json")
    assert hostfile.start(some, options(tmp_path, "10.0.0.1 slots=1\n")) != 0
    assert "absent" in capfd.readouterr().err


def launched(launcher, tmp_path, rank, behaviour):
    """A launcher of one rank on each of two hosts, in a process of its own, once both ranks are
    there."""
    program = f"""
import sys; from pathlib import Path; from robustly.launch import HostfileOptions, Job, hostfile
job = Job({tuple(rank(behaviour))!r}, Path({str(tmp_path)!r}), Path({str(tmp_path / "manifest.json")!r}))
sys.exit(hostfile.start(job, HostfileOptions(hostfile=Path({str(tmp_path / "hosts")!r}), restarts=0)))
"""
    options(tmp_path, "10.0.0.1 slots=1\n10.0.0.2 slots=1\n")
    process = launcher(program)
    wait_for(lambda: len(notes(tmp_path)) == 2 or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
    return process


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_signals_reach_the_ranks_of_all_hosts_once(tmp_path, rank, ssh, launcher, name):
    process = launched(launcher, tmp_path, rank, "leave")
    process.send_signal(signal.Signals[name])
    assert process.wait(10) == 0
    assert signals(tmp_path) == [f"{name}\n"] * 2


def test_a_second_ctrl_c_kills_on_all_hosts(tmp_path, rank, ssh, launcher):
    process = launched(launcher, tmp_path, rank, "deaf")
    pids = [int(r["pid"]) for r in notes(tmp_path)]
    process.send_signal(signal.SIGINT)
    wait_for(lambda: signals(tmp_path) == ["SIGINT\n"] * 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    wait_for(lambda: not any(map(alive, pids)))


def test_ranks_end_when_the_launcher_is_killed(tmp_path, rank, ssh, launcher):
    process = launched(launcher, tmp_path, rank, "leave")
    pids = [int(r["pid"]) for r in notes(tmp_path)]
    process.kill()
    wait_for(lambda: not any(map(alive, pids)))
    assert signals(tmp_path) == ["SIGTERM\n"] * 2


def test_a_lost_connection_stops_the_run_on_both_sides(tmp_path, rank, ssh, launcher):
    process = launched(launcher, tmp_path, rank, "leave")
    pids = [int(r["pid"]) for r in notes(tmp_path)]
    os.kill(int((tmp_path / "ssh.10.0.0.2").read_text()), signal.SIGKILL)
    assert process.wait(10) == 75
    wait_for(lambda: not any(map(alive, pids)))


@pytest.mark.parametrize(
    ("address", "interface", "warned"),
    [("127.0.1.1", None, True), ("127.0.1.1", "eth0", False), ("10.0.0.3", None, False)],
)
def test_a_host_that_knows_itself_by_a_loopback_address_is_told(
    monkeypatch, capsys, address, interface, warned
):
    monkeypatch.setattr(node.socket, "gethostbyname", lambda name: address)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    if interface:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", interface)

    node.check_way(NodeRanks(0, 1, 2, "localhost", 29500))
    assert ("export GLOO_SOCKET_IFNAME" in capsys.readouterr().err) == warned


def test_a_host_that_does_not_reach_the_first_one_is_worth_a_new_start(monkeypatch):
    """On another one of the spares, perhaps."""
    lost = Finding("network", "problem", "does not reach localhost, port 29501", "look at it")
    monkeypatch.setattr(node, "network", lambda address, port: [lost])
    with pytest.raises(StartAgain, match="does not reach localhost, port 29501; look at it"):
        node.check_way(NodeRanks(1, 1, 2, "localhost", 29501))
    node.check_way(NodeRanks(0, 1, 2, "localhost", 29501))


def test_a_first_host_that_the_others_do_not_know_stops_the_run(tmp_path, rank, ssh, capfd):
    """Ranks would wait for it, deaf to signals, until their time runs out."""
    assert (
        hostfile.start(
            job(tmp_path, rank("end")),
            options(tmp_path, "no.such.host.invalid slots=1\nb slots=1\n"),
        )
        == 2
    )
    assert "does not know the first host, no.such.host.invalid" in capfd.readouterr().err
    assert not notes(tmp_path)
