"""A rank learns who it is from whatever started it, and only from that."""

import os
import pty
import subprocess
import sys

import pytest

from robustly import UserError
from robustly.launch import environment
from robustly.launch.environment import (
    Rank,
    export,
    first_host,
    numbered_port,
    rank_from_environment,
    tasks_per_node,
)

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "nodea",
    "MASTER_PORT": "29500",
}
# What srun (22.05) sets for task 5 of 8, on the second of two nodes.
SRUN = {
    "SLURM_JOB_ID": "12345",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_NODELIST": "gpu[03-06]",
    "SLURM_NTASKS": "8",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    monkeypatch.setattr(environment, "_has_terminal", lambda: False)


def test_nothing_says_that_a_launcher_started_this():
    assert rank_from_environment({}) is None
    assert (
        rank_from_environment({"MASTER_ADDR": "nodea", "MASTER_PORT": "1", "WORLD_SIZE": "8"})
        is None
    )


def test_torchrun_and_ours():
    assert rank_from_environment(TORCHRUN) == Rank(5, 1, 8, 4, "nodea", 29500)


def test_deepspeed_calls_the_local_size_otherwise():
    names = {**TORCHRUN, "LOCAL_SIZE": TORCHRUN["LOCAL_WORLD_SIZE"]}
    del names["LOCAL_WORLD_SIZE"]
    assert rank_from_environment(names) == Rank(5, 1, 8, 4, "nodea", 29500)


def test_one_rank_that_was_launched_is_a_rank():
    one = {**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    assert rank_from_environment(one) == Rank(0, 0, 1, 1, "nodea", 29500)


@pytest.mark.parametrize("name", sorted(TORCHRUN.keys() - {"RANK"}))
def test_a_missing_variable_is_named(name):
    with pytest.raises(UserError, match=rf"RANK=5.*did not set {name}; set them too"):
        rank_from_environment({key: value for key, value in TORCHRUN.items() if key != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", "8"),
        ("RANK", "-1"),
        ("LOCAL_RANK", "4"),
        ("LOCAL_RANK", "-1"),
        ("LOCAL_WORLD_SIZE", "9"),
        ("RANK", "x"),
    ],
)
def test_a_rank_that_cannot_be_is_refused(name, value):
    with pytest.raises(UserError, match=f"{name}={value}"):
        rank_from_environment({**TORCHRUN, name: value})


def test_srun():
    assert rank_from_environment(SRUN) == Rank(5, 1, 8, 4, "gpu03", numbered_port(12345))
    named = {**SRUN, "MASTER_ADDR": "10.0.0.3", "MASTER_PORT": "23456"}
    assert rank_from_environment(named) == Rank(5, 1, 8, 4, "10.0.0.3", 23456)


def test_a_batch_script_and_a_step_of_one_task_are_no_ranks():
    batch = {name: value for name, value in SRUN.items() if not name.startswith("SLURM_STEP")}
    assert rank_from_environment({**batch, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) is None
    assert rank_from_environment({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) is None


def test_a_launcher_inside_a_slurm_step_wins_over_srun():
    assert rank_from_environment({**SRUN, **TORCHRUN}) == Rank(5, 1, 8, 4, "nodea", 29500)


@pytest.mark.processes
def test_a_shell_on_a_terminal_inside_a_slurm_step_is_no_rank(tmp_path):
    """`srun --ntasks 8 --pty bash`: the variables of a task, but it is somebody's shell."""
    program = (
        "import sys; from robustly.launch.environment import rank_from_environment;"
        f"open({str(tmp_path / 'answer')!r}, 'w').write(repr(rank_from_environment()))"
    )
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM") and name != "RANK"
    }
    subprocess.run(
        [sys.executable, "-c", program],
        env={**variables, **SRUN},
        start_new_session=True,
        check=True,
    )
    assert (tmp_path / "answer").read_text().startswith("Rank(rank=5")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-c", program], {**variables, **SRUN})

    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert status == 0
    assert (tmp_path / "answer").read_text() == "None"


OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_NAMESPACE": "1317011457",
}
MPICH = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
MASTER = {"MASTER_ADDR": "nodea", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("variables", [OPEN_MPI, MPICH])
def test_mpirun_over_several_hosts(variables):
    assert rank_from_environment({**variables, **MASTER}) == Rank(5, 1, 8, 4, "nodea", 29500)
    with pytest.raises(
        UserError, match=r"did not set MASTER_ADDR, MASTER_PORT; set them too \(mpirun: -x"
    ):
        rank_from_environment(variables)


def test_an_mpirun_of_one_rank_is_no_launcher():
    assert rank_from_environment({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1"}) is None
    assert rank_from_environment({**MPICH, "PMI_SIZE": "1"}) is None


def test_mpirun_of_one_host_needs_no_address():
    """All ranks of one mpirun meet at the same port, those of another mpirun at another."""

    def open_mpi(rank: int, job: str) -> Rank | None:
        numbers = {"OMPI_COMM_WORLD_RANK": f"{rank}", "OMPI_COMM_WORLD_LOCAL_RANK": f"{rank}"}
        sizes = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
        return rank_from_environment({**numbers, **sizes, "PMIX_NAMESPACE": job})

    first, second, other = open_mpi(0, "1"), open_mpi(1, "1"), open_mpi(0, "prterun-vm-7@1")
    assert first and second and other
    assert first == Rank(0, 0, 2, 2, "127.0.0.1", first.master_port)
    assert second == Rank(1, 1, 2, 2, "127.0.0.1", first.master_port)
    assert other.master_port != first.master_port

    mpich = rank_from_environment({**MPICH, "PMI_SIZE": "4", "PMI_RANK": "1"})
    assert mpich == Rank(1, 1, 4, 4, "127.0.0.1", mpich.master_port)  # type: ignore[union-attr]
    named = {**MPICH, "PMI_SIZE": "4", "PMI_RANK": "1", "MASTER_PORT": "23456"}
    assert rank_from_environment(named) == Rank(1, 1, 4, 4, "127.0.0.1", 23456)


@pytest.mark.processes
def test_ranks_of_mpich_find_the_process_that_started_them_behind_shells_of_their_own(tmp_path):
    """Stands in for Hydra: a program of its name that starts two shells, and they Python."""
    hydra = tmp_path / "hydra_pmi_proxy"
    hydra.symlink_to("/bin/bash")
    program = tmp_path / "rank.py"
    program.write_text(
        "import os; from robustly.launch.environment import rank_from_environment\n"
        "os.write(1, b'%d\\n' % rank_from_environment().master_port)\n"
    )
    rank = f"bash -c '{sys.executable} {program}; true'"
    variables = {
        **{n: v for n, v in os.environ.items() if n != "RANK" and not n.startswith("SLURM")},
        **MPICH, "PMI_SIZE": "4", "PMI_RANK": "1",
    }  # fmt: skip

    def ports() -> set[str]:
        shells = subprocess.run(
            [hydra, "-c", f"{rank} & {rank} & wait"],
            env=variables, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = shells.stdout.split()
        assert len(found) == 2
        return set(found)

    first, second = ports(), ports()
    assert len(first) == len(second) == 1
    assert first != second


@pytest.mark.parametrize("variables", [OPEN_MPI, MPICH])
def test_mpirun_inside_a_slurm_job_wins_over_the_step_that_it_made(variables):
    step = {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    found = rank_from_environment({**step, **variables, **MASTER})
    assert found == Rank(5, 1, 8, 4, "nodea", 29500)


def test_a_task_of_srun_with_pmi_is_slurms():
    found = rank_from_environment({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "8"})
    assert found == Rank(5, 1, 8, 4, "gpu03", numbered_port(12345))


def test_export_is_what_is_read_back(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)

    rank = Rank(5, 1, 8, 4, "nodea", 29500)
    export(rank)

    try:
        assert {name: os.environ[name] for name in TORCHRUN} == TORCHRUN
        assert rank_from_environment() == rank
    finally:
        for name in TORCHRUN:
            os.environ.pop(name)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("nodea", "nodea"),
        ("nodea,nodeb", "nodea"),
        ("gpu[03-07,12],login", "gpu03"),
        ("gpu[7]", "gpu7"),
        ("a-1.cluster,b", "a-1.cluster"),
        ("gpu-b[001-128]", "gpu-b001"),
    ],
)
def test_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.processes
def test_a_node_list_of_another_form_is_slurms_to_read(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"first host of rack\[0-1\]n\[1-4\].*set MASTER_ADDR"):
        first_host("rack[0-1]n[1-4]")

    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/bash\n[ "$*" = "show hostnames rack[0-1]n[1-4]" ] && printf'
        ' "rack0n1\\nrack0n2\\n"\n'
    )
    scontrol.chmod(0o755)
    assert first_host("rack[0-1]n[1-4]") == "rack0n1"


def test_tasks_per_node():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("8") == [8]
    assert tasks_per_node("1,4(x2),3") == [1, 4, 4, 3]


def test_numbered_ports_stay_below_the_ports_that_linux_hands_out():
    ports = [numbered_port(number) for number in range(50000)]
    assert min(ports) >= 20000
    assert max(ports) < 32768
    assert len(set(ports)) == 12000
    assert ports[:2] == [20000, 20001]  # jobs that start together meet at different ones


@pytest.mark.parametrize("text", ["", "2(x3", "2;1", "two", "2(x99999999999)", "2(x3),"])
def test_tasks_per_node_in_another_form(text):
    with pytest.raises(UserError, match="expected Slurm's form of it, such as"):
        tasks_per_node(text)
