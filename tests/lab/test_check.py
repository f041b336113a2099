"""Hosts that would not train the same thing, or cannot train, are named before anything is written,
whoever starts the ranks."""

import json
import shutil
from pathlib import Path

import pytest

from robustly import experiment, manifest
from tests.lab.fixtures import Once
from tests.lab.hosts import LONG, ROOT, Hosts
from tests.lab.slurm import Slurm
from tests.lab.small import CORPUS, Small

pytestmark = pytest.mark.full
QUICK = "--ssh-option ConnectTimeout=3"
LEFT = {"ends", "logs"}
"""What may be in the run's folder after a refusal: how ranks ended, and what they had to say."""


def robustly(hosts: Hosts, words: str, host: str = "nodea", **more):
    return hosts.run(host, f"python -m robustly.cli {words}", check=False, **more)


def launch(hosts: Hosts, small: Small, words: str = "", command: str = "launch hostfile", **more):
    hosts.hostfile()
    return robustly(hosts, f"{command} {small.config} --hostfile hosts {QUICK} {words}", **more)


def check(hosts: Hosts, small: Small, words: str = "", **more):
    return launch(hosts, small, words, "launch check hostfile", **more)


def written(small: Small) -> set[str]:
    return {path.name for path in small.train.glob("*")}


def another_clone(hosts: Hosts) -> None:
    """Give nodeb a clone of its own, edited and committed."""
    hosts.run("nodeb", f"cd {ROOT} && echo '# edited' >> pretrain/masking.py")
    commit = "git -c user.name=x -c user.email=x commit --quiet --all --message other"
    hosts.run("nodeb", f"cd {ROOT} && {commit}", check=bool(manifest.commit()))


CODE = ("commit", "source") if manifest.commit() else ("source",)


@pytest.fixture
def other_data(hosts: Hosts, small: Small, once: Once) -> str:
    """Data at a path that each host has for itself, on nodeb of another text; what to add to a
    command."""
    return lay_out(hosts, once("lab-other-data", prepare_other), "/srv/data")


def lay_out(hosts: Hosts, prepared: Path, path: str) -> str:
    hosts.run("nodea", f"cp -r {hosts.shared}/runs/small/data {path}")
    shutil.copytree(prepared / "runs/small/data", hosts.shared / "other")
    hosts.run("nodeb", f"mv {hosts.shared}/other {path}")
    return f"paths.data={path}"


def prepare_other(folder: Path) -> None:
    """By the same tokenizer: data of the same recipe, of a longer text."""
    from tests.lab.small import prepare

    prepare(folder)
    made = folder / "runs/small"
    shutil.rmtree(made / "data")
    text = CORPUS.read_text(encoding="utf-8")
    other = folder / "other.txt"
    other.write_text(text[: text.index("\n\n", 170_000)])
    changes = [f"paths.root={made}", f"corpus.sources={other}", f"paths.tokenizer={made}/tokenizer"]
    experiment.data_work(experiment.load_experiment(folder / "small.yaml", changes)).make()


# ------------------------------------------------------------------------------------- launch check


def test_hosts_that_are_ready(hosts: Hosts, small: Small) -> None:
    done = check(hosts, small, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ready"] and found["faults"] == [] and [*found["hosts"]] == ["nodea", "nodeb"]
    assert found["all_reduce"]["ranks"] == found["all_reduce"]["hosts"] == 2
    assert "all-reduce over 2 ranks of 2 hosts: " in done.stderr and "ready" in done.stderr
    assert written(small) == set() and not list(hosts.shared.glob("**/.robustly-check-*"))


def test_all_that_is_wrong_is_said_at_once(hosts: Hosts, small: Small, other_data: str) -> None:
    another_clone(hosts)
    for name in hosts.names:
        hosts.run(name, "mkdir -p /srv/runs/small")
    hosts.run("nodeb", "echo 10.78.0.2 nodeb > /etc/hosts")  # it does not know nodea any more
    words = f"{other_data} paths.train=/srv/runs/small/train --live-code --json"
    done = check(hosts, small, words, environment={"GLOO_SOCKET_IFNAME": "eth7"})
    assert done.returncode == 2, done.stderr
    found = json.loads(done.stdout)
    said = {(fault["what"], *fault["hosts"]): fault["found"] for fault in found["faults"]}
    assert said.keys() == {
        ("GLOO_SOCKET_IFNAME", "nodea", "nodeb"), ("first host", "nodeb"), ("run's folder", "nodeb"), ("code", "nodeb"),
        ("data", "nodeb"),
    }  # fmt: skip
    assert "there is no eth7" in said["GLOO_SOCKET_IFNAME", "nodea", "nodeb"]
    assert "does not know the first host, nodea" in said["first host", "nodeb"]
    assert "/srv/runs/small is another one here" in said["run's folder", "nodeb"]
    assert not found["ready"] and found["all_reduce"] is None
    for key in CODE:
        assert f"nodeb: code.{key} = " in done.stderr
    assert "nodeb: data.recipe = " in done.stderr and ", nodea has " in done.stderr


def test_a_host_that_is_down_is_a_line_of_the_table(hosts: Hosts, small: Small) -> None:
    """And one that ssh reaches, over another network than the ranks would."""
    hosts.drop_data("nodeb")
    refused = launch(hosts, small)
    assert refused.returncode == 75 and written(small) == set(), refused.stderr
    assert "nodeb: network: does not reach nodea, port 29500" in refused.stderr

    hosts.cut("nodeb")
    done = check(hosts, small, "--json")
    assert done.returncode == 75
    found = json.loads(done.stdout)
    (fault,) = found["faults"]
    assert fault["hosts"] == ["nodeb"] and fault["what"] == "reach"
    assert found["hosts"]["nodea"]["facts"]["host"] == "nodea"
    assert found["hosts"]["nodeb"]["facts"] is None


NVIDIA_SMI = """\
#!/bin/sh
case $1 in
--query-gpu=*)
    echo "NVIDIA H100 80GB HBM3, 81559, 9.0, 550.54.15, 0, GPU-aa, 4, 0"
    echo "NVIDIA H100 80GB HBM3, 81559, 9.0, 550.54.15, 1, GPU-bb, 70000, 3" ;;
--query-compute-apps=*) echo "GPU-bb, 4711, python, 69000" ;;
esac
"""


def test_gpus_are_looked_at_where_they_are(hosts: Hosts, small: Small) -> None:
    """By an nvidia-smi that lists GPUs which are not there."""
    driver = hosts.shared / "nvidia-smi"
    driver.write_text(NVIDIA_SMI)
    driver.chmod(0o755)
    hosts.run("nodeb", f"cp {driver} /usr/local/bin/")
    done = check(hosts, small, "--json")
    said = {
        (fault["what"], fault["status"]): fault["found"]
        for fault in json.loads(done.stdout)["faults"]
        if fault["hosts"] == ["nodeb"]
    }
    assert said["gpus", "problem"] == "2 x NVIDIA H100 80GB HBM3, nodea has no GPU"
    assert "3 memory errors" in said["gpu 1", "problem"]
    assert "in use by python (process 4711)" in said["gpu 1", "note"]
    assert done.returncode == 2 and "2 x NVIDIA H100" in done.stderr


def test_ranks_look_where_the_launcher_cannot(slurm: Slurm, small: Small) -> None:
    """Under Slurm, from a host that has no rank; rank 0 brings what all say."""
    words = f"launch check slurm {small.config} --nodes 2 --ranks-per-node 1 --json"
    done = robustly(slurm.hosts, words, "login")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ready"] and sorted(found["hosts"]) == ["nodea", "nodeb"]
    assert found["all_reduce"]["ranks"] == found["all_reduce"]["hosts"] == 2

    another_clone(slurm.hosts)
    done = robustly(slurm.hosts, words, "login")
    assert done.returncode == 2 and "nodeb: code.source = " in done.stderr
    assert written(small) == set() and not list(slurm.hosts.shared.glob("**/.robustly-check-*"))


def test_each_machine_of_torchrun_has_its_own_command(hosts: Hosts, small: Small) -> None:
    command = f"python -m robustly.cli launch check torchrun {small.config}"
    command += " --nodes 2 --ranks-per-node 1 --master nodea --json"
    first, second = (
        hosts.popen(name, f"{command} {more}", stdout=-1, stderr=-1, environment={"GLOO_SOCKET_IFNAME": "eth1"})
        for name, more in (("nodea", ""), ("nodeb", "optim.peak_lr=3e-3"))
    )  # fmt: skip
    for each in (first, second):
        out, err = each.communicate(timeout=LONG)
        assert each.returncode == 2, err
        assert "nodeb: config.optim.peak_lr = 0.003, nodea has 0.002" in err
        assert json.loads(out)["all_reduce"]["hosts"] == 2


# ------------------------------------------------------------------------------- every start looks


def test_a_start_that_cannot_go_well_is_refused_before_anything_is_written(
    hosts: Hosts, small: Small, other_data: str
) -> None:
    another_clone(hosts)
    refused = launch(hosts, small, f"{other_data} --live-code")
    assert refused.returncode == 2 and written(small) == set()
    assert "the hosts are not ready; nothing was written" in refused.stderr
    assert "nodeb: data.recipe = " in refused.stderr and "nodeb: code.source" in refused.stderr

    # the ranks, too, where nobody has looked before
    by_ranks = launch(hosts, small, f"{other_data} --no-check")
    assert by_ranks.returncode == 2, by_ranks.stderr
    assert "rank 1 on nodeb: inputs.data = " in by_ranks.stderr
    assert not small.checkpoints() and not (small.train / "config.yaml").exists()


DIFFERENT = "optim.peak_lr=3e-3 seed=7 masking.probability=0.2"
TOLD = (
    "rank 1 on nodeb: optim.peak_lr = 0.003, rank 0 has 0.002",
    "rank 1 on nodeb: seed = 7, rank 0 has 1",
    "rank 1 on nodeb: masking.probability = 0.2, rank 0 has 0.3",
    *(f"rank 1 on nodeb: code.{key} = " for key in CODE),
)


def torchruns(hosts: Hosts, small: Small, words: dict[str, str]) -> dict[str, str]:
    """What two torchruns of a user's own say, each host's ranks with further words."""
    meet = "--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint nodea:29511"
    command = (
        f"torchrun {meet} --rdzv-id x --no-python python -m robustly.cli pretrain {small.config}"
    )
    running = {
        name: hosts.popen(name, f"{command} {more} 2>&1", stdout=-1, environment={"GLOO_SOCKET_IFNAME": "eth1"})
        for name, more in words.items()
    }  # fmt: skip
    said = {name: process.communicate(timeout=LONG)[0] for name, process in running.items()}
    assert all(process.returncode for process in running.values()), said
    return said


@pytest.mark.parametrize("hosts", [{"warm": True}], indirect=True)
def test_under_torchrun_each_difference_is_named(hosts: Hosts, small: Small) -> None:
    another_clone(hosts)
    said = torchruns(hosts, small, {"nodea": "", "nodeb": DIFFERENT})
    for line in TOLD:
        assert line in said["nodea"]
    assert written(small) <= LEFT


@pytest.mark.parametrize("hosts", [{"warm": True}], indirect=True)
def test_what_one_host_lacks_is_said_on_the_first_ones_console(hosts: Hosts, small: Small) -> None:
    words = {"nodea": "--no-check", "nodeb": "--no-check paths.data=/srv/data"}
    said = torchruns(hosts, small, words)["nodea"]
    assert "error: rank 1 on nodeb: /srv/data: no finished data stage here" in said
    assert written(small) <= LEFT


@pytest.mark.parametrize("slurm", [{"warm": True}], indirect=True)
def test_under_slurm_each_difference_is_named(slurm: Slurm, small: Small, once: Once) -> None:
    another_clone(slurm.hosts)
    own = f'$(test $(hostname) = nodeb && echo "{DIFFERENT}")'
    script = f"srun bash -c '\\''python -m robustly.cli pretrain {small.config} {own}'\\''"
    job = slurm.sbatch(f"--nodes=2 --ntasks-per-node=1 --no-requeue -o out --wrap '{script}'")
    slurm.wait(job)
    said = (slurm.hosts.shared / "out").read_text()
    for line in TOLD:
        assert line in said
    assert written(small) <= LEFT
