"""Ranks under mpirun, of Open MPI and of MPICH."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rank_program import notes, signals, wait_for

from robustly import UserError
from robustly.exit_codes import FAULT, MISTAKE, START_AGAIN
from robustly.launch import Job, MpiOptions, mpi
from robustly.launch.mpi import Dialect

JOB = Job(
    command=("/env/bin/robustly", "pretrain", "mine.yaml", "data.language=it's"),
    folder=Path("/home/me/my runs"),
    finished=Path("/data/runs/mine/train/manifest.json"),
    ranks=2,
    environment={"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "3"},
)


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    (tmp_path / "hosts").write_text("gpu01 slots=8\ngpu02 slots=8\ngpu03 slots=4\n")
    return tmp_path / "hosts"


@pytest.fixture
def somebody(monkeypatch):
    """Not root."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def line(**options) -> list[str]:
    text = mpi.render(JOB, MpiOptions(**options))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    return shlex.split(text)


def test_open_mpi_over_hosts(hostfile, somebody):
    assert line(hostfile=hostfile, dialect=Dialect.OPEN_MPI) == [
        "cd", "/home/me/my runs", "&&", "OMP_NUM_THREADS=3", "NCCL_DEBUG=INFO",
        "MASTER_ADDR=gpu01", "MASTER_PORT=29500", "I_MPI_PIN=0",
        "ROBUSTLY_TRAIN_FOLDER=/data/runs/mine/train",
        "mpirun", "-n", "20", "--host", ",".join(8 * ["gpu01"] + 8 * ["gpu02"] + 4 * ["gpu03"]),
        "--map-by", "seq", "--bind-to", "none",
        "--mca", "oob_tcp_keepalive_time", "10", "--mca", "oob_tcp_keepalive_intvl", "5",
        "--mca", "oob_tcp_keepalive_probes", "4",
        "-x", "OMP_NUM_THREADS", "-x", "NCCL_DEBUG", "-x", "MASTER_ADDR", "-x", "MASTER_PORT",
        "-x", "I_MPI_PIN", "-x", "ROBUSTLY_TRAIN_FOLDER", *JOB.command,
    ]  # fmt: skip


def test_mpich_over_hosts(hostfile):
    found = line(
        hostfile=hostfile, dialect=Dialect.MPICH, nodes=2, ranks_per_node=4, master_port=1234,
        mpirun="/opt/mpich/bin/mpirun", mpirun_option=("-iface eth1",),
    )  # fmt: skip
    assert found[3:9] == [
        "OMP_NUM_THREADS=3", "NCCL_DEBUG=INFO", "MASTER_ADDR=gpu01", "MASTER_PORT=1234",
        "I_MPI_PIN=0", "ROBUSTLY_TRAIN_FOLDER=/data/runs/mine/train",
    ]  # fmt: skip
    assert found[9:] == [
        "/opt/mpich/bin/mpirun", "-genvall", "-n", "8", "-hosts", "gpu01:4,gpu02:4", "-iface", "eth1", *JOB.command,
    ]  # fmt: skip


def test_intel_mpi_is_given_each_host_by_itself(hostfile):
    """It would put all ranks on the first of `-hosts gpu01:8,gpu02:8` that has the cores."""
    found = line(hostfile=hostfile, dialect=Dialect.INTEL, nodes=2, mpirun_option=("-iface eth1",))
    assert found[found.index("mpirun") :] == [
        "mpirun", "-genvall", "-iface", "eth1",
        "-n", "8", "-host", "gpu01", *JOB.command, ":", "-n", "8", "-host", "gpu02", *JOB.command,
    ]  # fmt: skip


def test_one_machine_needs_no_hostfile(somebody):
    found = line(dialect=Dialect.OPEN_MPI)
    assert "MASTER_ADDR=127.0.0.1" in found
    assert found[found.index("mpirun") :][:5] == [
        "mpirun",
        "-n",
        "2",
        "--host",
        "localhost,localhost",
    ]


def test_root_has_to_say_so_to_open_mpi(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "--allow-run-as-root" in line(dialect=Dialect.OPEN_MPI)
    assert "--allow-run-as-root" not in line(dialect=Dialect.MPICH)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("version", "dialect"),
    [
        ("mpirun (Open MPI) 4.1.4", Dialect.OPEN_MPI),
        ("mpirun.openmpi (OpenRTE) 4.1.4", Dialect.OPEN_MPI),
        ("mpirun (Open MPI) 5.0.6", Dialect.OPEN_MPI),
        ("HYDRA build details:\n    Version: 4.0.2", Dialect.MPICH),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.13", Dialect.INTEL),
    ],
)
def test_an_mpirun_is_asked_whose_it_is(tmp_path, version, dialect):
    program = tmp_path / "mpirun"
    program.write_text(f"#!/bin/bash\n[ $1 = --version ] && echo {shlex.quote(version)}\n")
    program.chmod(0o755)
    assert mpi.dialect_of(MpiOptions(mpirun=str(program))) == dialect


@pytest.mark.processes
def test_what_cannot_work_is_refused(tmp_path, hostfile):
    def refused(message: str, **options) -> None:
        with pytest.raises(UserError, match=message):
            mpi.render(JOB, MpiOptions(**options))

    refused("no-mpirun: not found; name yours with --mpirun", mpirun="no-mpirun")
    refused(
        "not of Open MPI, MPICH or Intel MPI, but 'another'", mpirun=_program(tmp_path, "another")
    )
    dialect = Dialect.OPEN_MPI
    refused("--nodes 2: give --hostfile", nodes=2, dialect=dialect)
    refused("--mpirun-option 'a: No closing", mpirun_option=("'a",), dialect=dialect)
    refused("--nodes 4: .* has 3 hosts", hostfile=hostfile, nodes=4, dialect=dialect)
    hostfile.write_text("gpu01 slots=8\nme@gpu02 slots=8\n")
    refused("me@gpu02: mpirun takes no user's name", hostfile=hostfile, dialect=dialect)
    hostfile.write_text("localhost slots=8\ngpu02 slots=8\n")
    refused("the first host is localhost", hostfile=hostfile, dialect=dialect)


def _program(folder: Path, says: str) -> str:
    program = folder / "mpirun"
    program.write_text(f"#!/bin/bash\necho {says}\n")
    program.chmod(0o755)
    return str(program)


REAL = [
    pytest.param(
        f"mpirun.{name}",
        marks=pytest.mark.skipif(
            not shutil.which(f"mpirun.{name}") and "CI" not in os.environ,
            reason=f"mpirun.{name} is not installed: see .ci/setup",
        ),
    )
    for name in ("openmpi", "mpich")
]


@pytest.mark.full
@pytest.mark.parametrize("mpirun", REAL)
class TestForReal:
    def start(self, launcher, folder: Path, mpirun: str, command: list[str]) -> subprocess.Popen:
        return launcher(f"""
import sys; from pathlib import Path; from robustly.launch import Job, MpiOptions, foreign, mpi
foreign.LAST_WORD = 0.1
folder = Path({str(folder)!r})
job = Job(tuple({command!r}), folder, folder / "manifest.json", ranks=2)
sys.exit(mpi.start(job, MpiOptions(mpirun={mpirun!r}, restarts=0)))
""")

    def test_ranks_know_who_they_are_and_use_every_core(self, mpirun, tmp_path, rank, launcher):
        program = tmp_path / "cores.py"
        program.write_text(f"""
import os, sys
open({str(tmp_path / "manifest.json")!r}, "w").close()
os.environ["CORES"] = str(len(os.sched_getaffinity(0)))
from robustly.launch.environment import rank_from_environment, variables
os.environ.update(variables(rank_from_environment()))
os.execv(sys.executable, {rank("end", "it's $HOME")!r})
""")
        process = self.start(launcher, tmp_path, mpirun, [sys.executable, str(program)])
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        found = notes(tmp_path)
        assert [each["RANK"] for each in found] == ["0", "1"]
        for each in found:
            assert each["arguments"] == ["it's $HOME"]
            assert each["folder"] == str(tmp_path)
            assert each["MASTER_ADDR"] == "127.0.0.1"
            assert each["CORES"] == str(len(os.sched_getaffinity(0)))

    def test_a_users_own_mpirun_needs_no_address(self, mpirun, tmp_path):
        """Two at once: the ranks of each meet at a port of their own."""
        program = tmp_path / "port.py"
        program.write_text(
            "import os; from robustly.launch.environment import rank_from_environment\n"
            "me = rank_from_environment()\n"
            "os.write(1, f'{me.rank}/{me.world_size} {me.master_addr}:{me.master_port}\\n'.encode())\n"
        )
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        both = [
            subprocess.Popen(
                [mpirun, "-np", "2", sys.executable, program],
                env={**os.environ, **root}, stdout=subprocess.PIPE, text=True,
            )
            for _ in range(2)
        ]  # fmt: skip
        places = []
        for process in both:
            lines = sorted(process.communicate(timeout=60)[0].split("\n")[:-1])
            assert [line.split()[0] for line in lines] == ["0/2", "1/2"]
            (place,) = {line.split()[1] for line in lines}
            places.append(place)

        assert places[0] != places[1]
        assert all(place.startswith("127.0.0.1:") for place in places)

    def test_a_signal_is_passed_on_and_gives_time(self, mpirun, tmp_path, rank, launcher):
        """Open MPI itself would kill the ranks two seconds after SIGTERM."""
        command = ranked(rank("resign"))
        process = self.start(launcher, tmp_path, mpirun, command)
        wait_for(lambda: len(notes(tmp_path)) == 2, 30)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert signals(tmp_path) == ["SIGUSR1\n"] * 2, errors
        assert process.returncode == START_AGAIN

    @pytest.mark.parametrize("code", [FAULT, MISTAKE])
    def test_a_rank_that_fails_gives_the_exit_code(self, mpirun, code, tmp_path, launcher):
        """MPICH returns the bits of all exit codes together."""
        program = tmp_path / "fails.py"
        program.write_text(f"""
import os, sys, time
from pathlib import Path
from robustly.heartbeat import Kind
from robustly.launch import ends
from robustly.launch.environment import rank_from_environment
me = rank_from_environment().rank
kind = Kind.ERROR if me == 1 else Kind.FOLLOWED
ends.write(Path(os.environ[ends.FOLDER]), ends.End(ends.attempt_name(os.environ), "here", me, kind, {code}, f"words of {{me}}", 1, time.time()))
sys.exit({code} if me == 1 else 138)
""")
        process = self.start(launcher, tmp_path, mpirun, [sys.executable, str(program)])
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code
        assert [line for line in errors.splitlines() if line.endswith("words of 1")]


def ranked(command: list[str]) -> list[str]:
    """A command with RANK in its environment, which mpirun calls otherwise."""
    names = "${OMPI_COMM_WORLD_RANK:-$PMI_RANK}"
    return ["bash", "-c", f'RANK={names} WORLD_SIZE=2 exec "$@"', "_", *command]
