"""Write the ready scripts in launch/, which people copy: `python -m robustly.preflight.ready`.

Each is what a launcher renders for a published config, below lines with the plan's figures and with
what to change. To be run again whenever a launcher, a config or an estimate changes."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from robustly.config import SHIPPED_CONFIGS, load
from robustly.launch import LAUNCHERS, Job, LaunchOptions
from robustly.launch.kubernetes import KubernetesOptions
from robustly.launch.slurm import SlurmOptions
from robustly.launch.torchrun import TorchrunOptions
from robustly.log import duration, gigabytes
from robustly.manifest import MANIFEST
from robustly.preflight.corpus_size import estimated
from robustly.preflight.machine import Machine
from robustly.preflight.plan import plan
from robustly.preflight.speed import UTILISATION, Speed, speed_at
from robustly.pretrain.checkpoints.disk_space import checkpoint_bytes
from robustly.pretrain.flops import flops_per_token, parameters
from robustly.pretrain.mfu import PEAK_TFLOPS
from robustly.pretrain.stage import PretrainingConfig

FOLDER = Path(__file__).resolve().parents[1] / "launch"
GPUS = ("A100 (80 GB)", "H100 SXM (80 GB)")
GPU_MEMORY = 80_000_000_000
TEXT = 160_000_000_000
"""Bytes of the corpus of Liu et al. 2019, section 3.2."""
NOWHERE = Path("/nowhere")
"""In place of folders, so that no run or corpus of this machine changes a figure."""


@dataclass(frozen=True)
class Ready:
    """One ready script."""

    name: str
    launcher: str
    config: str
    options: LaunchOptions
    nodes: int
    change: str
    """What its user has to change."""
    start: str
    """How it is started, and goes on."""


RANKS = 8  # of each node
SBATCH = ("account=ACCOUNT", "gpus-per-node=8", "cpus-per-task=12")
HERE = "in the folder that holds configs/ and runs/"


def _slurm(config: str, nodes: int) -> Ready:
    name = f"slurm_{config.removeprefix('roberta_')}_{nodes}x{RANKS}.sh"
    return Ready(
        name,
        "slurm",
        config,
        SlurmOptions(
            nodes=nodes, ranks_per_node=RANKS, partition="gpu", time="1-00:00:00", sbatch=SBATCH
        ),
        nodes,
        "partition, account, cores of a rank, and the time limit, after which it goes on by itself",
        f"sbatch {name}, {HERE}; again to go on",
    )


READY = (
    _slurm("roberta_base", 1),
    _slurm("roberta_large", 4),
    _slurm("roberta_large", 16),
    Ready(
        "torchrun_2x8.sh",
        "torchrun",
        "roberta_base",
        TorchrunOptions(nodes="2", ranks_per_node=RANKS, master="gpu01"),
        2,
        "gpu01, the first machine by a name that the other one knows",
        f"bash torchrun_2x8.sh, on both machines, {HERE}; again to go on",
    ),
    Ready(
        "k8s_base_1x8.yaml",
        "kubernetes",
        "roberta_base",
        KubernetesOptions(
            image="registry.example/robustly:latest",
            volume=("work:/work",),
            nodes=1,
            ranks_per_node=RANKS,
            cpu="96",
            memory="900Gi",
            toleration=("nvidia.com/gpu:NoSchedule",),
        ),
        1,
        "image (made from the Containerfile), claimName (of a volume that all pods can write and"
        " that holds configs/), cpu, memory",
        "kubectl apply -f k8s_base_1x8.yaml; to go on after a failure, kubectl delete -f first",
    ),
)


def text(ready: Ready) -> str:
    """The script: the launcher's text, with lines of ours on top of it, below `#!`."""
    path = f"configs/{ready.config}.yaml"
    config = _config(ready)
    job = Job(
        command=("robustly", "pretrain", path),
        python=("python",),
        checkpoint_bytes=checkpoint_bytes(parameters(config.model, config.tokenizer.vocab_size)),
        folder=Path(),
        finished=Path("runs", ready.config, "train", MANIFEST),
        name=ready.config,
        ranks=RANKS,
    )
    rendered = LAUNCHERS[ready.launcher].render(job, ready.options)
    # its reader's folder and programs
    for ours in ("#SBATCH --chdir=.\n", "cd . && ", f"{Path(sys.executable).parent}{os.sep}"):
        rendered = rendered.replace(ours, "")

    comments = "".join(f"# {line}\n" for line in _figures(ready, path, config))
    found = re.match("#!.*\n", rendered)
    interpreter = found[0] if found else ""
    return interpreter + comments + rendered.removeprefix(interpreter)


def _config(ready: Ready) -> PretrainingConfig:
    return load(
        SHIPPED_CONFIGS / f"{ready.config}.yaml",
        [f"paths.root={NOWHERE}", f"corpus.sources=[{{name: english, path: {NOWHERE}}}]"],
        PretrainingConfig,
    )


def _figures(ready: Ready, path: str, config: PretrainingConfig) -> list[str]:
    """The lines on top, by the plan of each GPU type."""
    ranks = ready.nodes * RANKS
    machine = Machine("cuda", GPU_MEMORY, "a GPU's")
    plans = {gpu: plan(config, ranks, machine, _speed(config, ranks, gpu)) for gpu in GPUS}
    one = plans[GPUS[0]]
    times = [f"{duration(each.time[0]['seconds'])} on {gpu}" for gpu, each in plans.items()]
    store = estimated(config, (TEXT, TEXT), "").store
    assert store

    return [
        f"{path} on {ready.nodes} x {RANKS} GPUs; estimates, as of `robustly plan`:",
        f"update: {config.optim.batch_size:,} blocks of {config.data.block_length} tokens ="
        f" {ranks} ranks x {one.work['micro_batches']} (accumulation) x {config.run.micro_batch}"
        " (micro-batch)",
        f"time: {' or '.join(times)}, at {UTILISATION:.0%} of the peak",
        f"memory: {gigabytes(one.memory['peak'])} of a GPU; run.micro_batch up to"
        f" {one.memory['largest_micro_batch']} fits {GPU_MEMORY / 1e9:.0f} GB",
        f"disk: {gigabytes(store)} for {TEXT / 1e9:.0f} GB of text,"
        f" {gigabytes(one.disk['checkpoints'])} for checkpoints,"
        f" {gigabytes(one.disk['published'])} for the model",
        f"change: {ready.change}",
        f"before: robustly tokenizer {path} && robustly prepare {path}",
        f"start: {ready.start}",
    ]


def _speed(config: PretrainingConfig, ranks: int, gpu: str) -> Speed:
    per_position = flops_per_token(
        config.model,
        config.tokenizer.vocab_size,
        config.data.block_length,
        config.masking.mean_probability,
    )
    return speed_at(PEAK_TFLOPS[gpu][config.run.precision] * UTILISATION, ranks, per_position, gpu)


def main() -> None:
    for ready in READY:
        (FOLDER / ready.name).write_text(text(ready), encoding="utf-8")


if __name__ == "__main__":
    main()
