"""Jobs of `robustly launch slurm` on a real Slurm of several nodes."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from robustly import manifest
from robustly.launch import slurm as launcher
from robustly.launch.job import Job
from robustly.launch.slurm import SlurmOptions
from robustly.pretrain.rank_gpu import own_gpu
from tests.lab import small
from tests.lab.hosts import LONG, ROOT, Hosts
from tests.lab.slurm import Slurm
from tests.lab.small import Small

pytestmark = pytest.mark.full

RANK = ROOT / "tests/lab/slurm_rank.py"
_numbers = count()


@dataclass
class Run:
    """A job of ranks that train nothing."""

    slurm: Slurm
    folder: Path
    number: int

    @property
    def said(self) -> str:
        """What has been printed, without Slurm's own lines."""
        file = self.slurm.hosts.shared / f"slurm-{self.number}.out"
        lines = file.read_text().splitlines() if file.exists() else []
        return "\n".join(line for line in lines if not line.startswith(("srun:", "slurmstepd")))

    def begun(self, attempt: int = 0) -> list[dict[str, Any]]:
        """What each rank found at the start of an attempt, by rank."""
        files = (self.folder / f"begun/{self.number}.{attempt}").glob("[0-9]*")
        return [json.loads(file.read_text()) for file in sorted(files)]

    def wait_begun(self, attempt: int = 0, ranks: int = 2) -> None:
        what = f"start {attempt} of job {self.number}"
        self.slurm.hosts.wait(lambda: len(self.begun(attempt)) == ranks, what, 60)

    def ended(self) -> tuple[str, str, int]:
        """State and exit code at its end, and how often it came back."""
        state = self.slurm.wait(self.number)
        facts = self.slurm.facts(self.number)
        return state, facts["ExitCode"], int(facts["Restarts"])

    def cancel(self, *how: str) -> None:
        self.slurm.run(["scancel", *how, str(self.number)])


def launch(slurm: Slurm, behaviour: str = "usual", ranks: int = 1, **options: Any) -> Run:
    """Launch ranks of a behaviour, on two nodes unless told otherwise."""
    folder = slurm.hosts.shared / f"runs/{next(_numbers)}/train"
    job = Job(
        command=(sys.executable, str(RANK), str(folder), behaviour),
        folder=slurm.hosts.shared,
        finished=folder / "manifest.json",
        ranks=ranks,
    )
    script = slurm.hosts.shared / "script"
    script.write_text(launcher.render(job, SlurmOptions(**{"nodes": 2, **options})))
    return Run(slurm, folder, slurm.sbatch(str(script)))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Two nodes with two GPUs each."""
    shared = tmp_path_factory.mktemp("slurm")
    with Hosts(["login", "nodea", "nodeb"], shared) as hosts, Slurm(hosts, gpus=2) as slurm:
        yield slurm


def test_how_jobs_end(cluster: Slurm) -> None:
    """Side by side, because most of it is waiting for Slurm."""
    diverges = launch(cluster, "diverges:9")
    killed = launch(cluster, "killed:2", restarts=0)
    stuck = launch(cluster, "killed-at-start:9", restarts=1)
    cancelled, interrupted = launch(cluster, "slow"), launch(cluster, "slow")
    stopped = launch(cluster, "slow", restarts=0)
    for run in (cancelled, interrupted, stopped):
        run.wait_begun()

    cancelled.cancel()
    interrupted.cancel("--batch", "--signal=INT")  # which reaches the tasks all the same
    stopped.cancel("--signal=USR1")

    # srun returns 143, because it ends the other rank
    assert diverges.ended() == ("FAILED", "2:0", 0)
    for line in ("rank 1 on nodeb", "the loss is nan", "last update  15", "logs/nodeb-1.log"):
        assert f"{line}\n" in diverges.said
    assert "the loss is nan" in (diverges.folder / "logs/nodeb-1.log").read_text()

    assert cancelled.ended()[::2] == ("CANCELLED", 0)
    assert interrupted.ended() == ("FAILED", "130:0", 0)

    # each start but the last was killed, after a checkpoint
    assert killed.ended() == ("COMPLETED", "0:0", 2), killed.said
    assert (
        "rank 1 on nodeb left no word" in killed.said
        and "from the newest checkpoint" in killed.said
    )

    assert stuck.ended() == ("FAILED", "75:0", 1)
    assert "starts in a row without progress: 2 (--restarts 1)" in stuck.said

    stopped.wait_begun(1)
    assert re.search(r"stopped after update \d+\nback into the queue", stopped.said)
    assert stopped.begun(1)[0]["MASTER_PORT"] != stopped.begun(0)[0]["MASTER_PORT"]
    stopped.cancel()


def test_a_signal_at_any_moment_of_a_start_breaks_no_job(cluster: Slurm) -> None:
    """While Slurm starts the step, Python starts, modules are imported, and later. Which of them a
    signal meets is up to the machine; that a job comes back is held above."""
    runs = [launch(cluster, nodes=1, ranks=2, restarts=1) for _ in range(6)]
    for tenths, run in enumerate(runs):
        cluster.hosts.wait(lambda n=run.number: cluster.state(n) == "RUNNING", "start", LONG)
        time.sleep(0.15 * tenths)
        cluster.run(["scancel", "--signal=USR1", str(run.number)], check=False)

    ends = [run.ended() for run in runs]
    assert [end[:2] for end in ends] == [("COMPLETED", "0:0")] * 6, [run.said for run in runs]


def test_preemption_brings_a_job_back_and_does_not_count(cluster: Slurm) -> None:
    run = launch(cluster, "idle", restarts=0, sbatch=("exclusive",))
    run.wait_begun()
    other = cluster.sbatch("--partition=high --nodes=2 --exclusive --wrap 'srun sleep 1'")
    assert cluster.wait(other) == "COMPLETED"
    run.wait_begun(1)
    assert run.said.endswith("preempted: back into the queue")

    # which was then: the job's own time is over now
    run.cancel("--signal=USR1")
    assert run.ended() == ("FAILED", "75:0", 1)
    assert "starts in a row without progress: 1" in run.said


GPUS = {
    "per-task": ("gpus-per-task=1",),
    "per-node": ("gpus-per-node=2",),
    "gres": ("gres=gpu:2",),
    "total": ("gpus=4",),
}


@pytest.fixture(scope="module")
def with_gpus(cluster: Slurm) -> dict[str, Run]:
    """Two ranks on each of two nodes, one after the other on the same GPUs."""
    return {name: launch(cluster, ranks=2, sbatch=asked) for name, asked in GPUS.items()}


@pytest.mark.parametrize("asked", GPUS)
def test_each_rank_gets_a_gpu_however_they_are_asked_for(
    with_gpus: dict[str, Run], asked: str
) -> None:
    run = with_gpus[asked]
    assert run.ended()[0] == "COMPLETED", run.said
    taken = []
    for rank in run.begun():
        seen = rank["CUDA_VISIBLE_DEVICES"].split(",")
        assert len(seen) == (1 if asked == "per-task" else 2)
        taken.append((rank["host"], seen[own_gpu(rank["me"]["local_rank"], len(seen))]))

    assert sorted(taken) == [(node, gpu) for node in ("nodea", "nodeb") for gpu in ("0", "1")]


def test_nodes_may_have_unlike_numbers_of_ranks(cluster: Slurm) -> None:
    """Five tasks on two nodes: --ntasks wins over --ntasks-per-node, and Slurm deals them out. And a
    script of one's own, without our variables."""
    runs = [
        launch(cluster, ranks=4, sbatch=("ntasks=5",)),
        launch(cluster, ranks=3, sbatch=("ntasks=5", "distribution=cyclic")),
    ]
    for run in runs:
        assert run.ended()[0] == "COMPLETED", run.said
        ranks = [rank["me"] for rank in run.begun()]
        assert [rank["rank"] for rank in ranks] == [*range(5)]
        hosts = [rank["host"] for rank in run.begun()]
        assert hosts[0] == run.begun()[0]["MASTER_ADDR"]
        for host in ("nodea", "nodeb"):
            here = [rank for rank, its in zip(ranks, hosts, strict=True) if its == host]
            assert sorted(rank["local_rank"] for rank in here) == [*range(len(here))]
            assert {rank["local_size"] for rank in here} == {len(here)}
        assert len({hosts.count("nodea"), hosts.count("nodeb")}) == 2


def submitted(cluster: Slurm, command: str) -> dict[str, int]:
    """The jobs that a command submits, by their stages."""
    said = cluster.run(command).stderr
    return {
        stage: int(number) for stage, number in re.findall(r"(?m)^(\w+): Slurm job (\d+)$", said)
    }


def test_all_stages_as_jobs_that_wait_for_each_other(cluster: Slurm) -> None:
    shared = cluster.hosts.shared
    text = small.CORPUS.read_text(encoding="utf-8")
    (shared / "corpus.txt").write_text(text[: text.index("\n\n", 150_000)], encoding="utf-8")
    (shared / "small.yaml").write_text(small.CONFIG, encoding="utf-8")
    settings = "paths.root=runs/chain run.executor=slurm optim.batch_size=8 schedule.updates=4"
    command = (
        f"robustly launch slurm small.yaml {settings} --nodes 2 --ranks-per-node 1 --stages"
        " tokenizer,prepare,pretrain --sbatch prepare:time=10 --sbatch pretrain:time=20"
    )
    # the environment of a login, and a config that is edited meanwhile, change nothing of it
    jobs = submitted(cluster, f"SBATCH_TIMELIMIT=30 SBATCH_NO_REQUEUE=1 {command}")
    (shared / "small.yaml").write_text("schema: 1\nname: another\n", encoding="utf-8")
    facts = [cluster.facts(job) for job in jobs.values()]
    assert [*jobs] == ["tokenizer", "prepare", "pretrain"]
    assert [each["NumNodes"][0] for each in facts] == ["1", "1", "2"]
    assert [each["TimeLimit"] for each in facts[1:]] == ["00:10:00", "00:20:00"]

    states = [cluster.wait(job) for job in jobs.values()]
    outputs = [(shared / f"slurm-{job}.out").read_text() for job in jobs.values()]
    assert states == ["COMPLETED"] * 3, "\n".join(outputs)
    # whose parts are jobs of an array
    assert "counting words: Slurm job" in outputs[0] and "preparing: Slurm job" in outputs[1]
    assert manifest.read(shared / "runs/chain/train")

    # what is finished is left out; what cannot be done any more is not waited for
    (shared / "small.yaml").write_text(small.CONFIG, encoding="utf-8")
    left = submitted(cluster, command.replace("tokenizer,prepare,pretrain", "all"))
    assert [*left][:1] == ["publish"]
    for job in left.values():
        cluster.run(f"scancel {job}")


def test_what_waits_for_a_stage_that_fails_is_cancelled(cluster: Slurm) -> None:
    shared = cluster.hosts.shared
    (shared / "corpus.txt").write_text("too little\n", encoding="utf-8")
    (shared / "small.yaml").write_text(small.CONFIG, encoding="utf-8")
    command = "robustly launch slurm small.yaml paths.root=runs/fails"
    jobs = submitted(cluster, f"{command} --stages tokenizer,prepare,pretrain")
    states = [cluster.wait(job) for job in jobs.values()]
    assert "FAILED" in states and states[-1] == "CANCELLED"


@pytest.mark.parametrize("slurm", [{"nodes": 3}], indirect=True)
def test_a_training_goes_through_signals_and_a_cut_node(slurm: Slurm, small: Small) -> None:
    """SIGUSR1 while ranks import torch, and while they train; then the first node, where rank 0 and
    the job itself run, is cut off, and the job goes on with the spare one. The result is that of an
    undisturbed run."""
    undisturbed = Small(shutil.copytree(small.folder, small.folder.with_name("undisturbed")))
    settings = ["schedule.updates=60", "run.checkpoint_every=10"]
    command = f"robustly launch slurm {small.config} {' '.join(settings)} --nodes 2 --restarts 1"
    said = slurm.run(f"{command} --ranks-per-node 1")
    job = int((said.stdout + said.stderr).split()[-1])

    slurm.hosts.wait(
        lambda: slurm.hosts.ranks("nodeb"), "rank 1", LONG
    )  # the job itself is no rank
    time.sleep(1)
    slurm.run(f"scancel --signal=USR1 {job}")
    slurm.hosts.wait(lambda: slurm.requeued(job) == 1, "the first return", LONG)
    slurm.hosts.wait(lambda: small.updates() > 5, "training", LONG)
    slurm.run(f"scancel --signal=USR1 {job}")
    slurm.hosts.wait(lambda: slurm.requeued(job) == 2, "the second return", LONG)

    at = small.updates()
    slurm.hosts.wait(lambda: small.updates() > at + 10, "training", LONG)
    slurm.hosts.cut("nodea")
    slurm.hosts.wait(lambda: slurm.requeued(job) == 3, "another node", LONG)
    assert slurm.wait(job) == "COMPLETED", (small.folder / f"slurm-{job}.out").read_text()
    assert slurm.facts(job)["NodeList"] == "nodeb,nodec"
    printed = (small.folder / f"slurm-{job}.out").read_text()
    assert "\n[nodeb:0] update " in printed  # each line is told apart once
    assert "update " in (small.train / "logs/nodeb-0.log").read_text()
    here = [sys.executable, "-m", "robustly.cli", "pretrain", str(undisturbed.config), *settings]
    subprocess.run(
        [*here, "run.ranks=2"],
        cwd=undisturbed.folder, check=True, capture_output=True, timeout=LONG,
    )  # fmt: skip
    assert small.outcome() == undisturbed.outcome()
