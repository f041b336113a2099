"""Damaged configs, overrides, manifests, metrics, hostfiles and launchers' variables."""

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from robustly import config, manifest
from robustly.config import SHIPPED_CONFIGS, read_config
from robustly.experiment import load_experiment
from robustly.launch import environment, hostfile
from robustly.launch.job import Job
from robustly.manifest import Stage
from robustly.metrics import read_metrics
from robustly.preflight.speed import speed_in
from tests.fuzz.reading import Reader, check

RECIPE = {
    "corpus": {"validation": 0.1, "sources": [{"path": "a"}]},
    "tokenizer": {"vocab_size": 500},
}
INPUTS = {"corpus": "a" * 64}
VARIABLES = {
    "torchrun": dict(RANK="1", LOCAL_RANK="1", WORLD_SIZE="4", LOCAL_WORLD_SIZE="2", MASTER_ADDR="a", MASTER_PORT="1"),
    "slurm": dict(
        SLURM_STEP_NUM_TASKS="4", SLURM_PROCID="1", SLURM_LOCALID="1", SLURM_STEP_TASKS_PER_NODE="2(x2)",
        SLURM_NODEID="0", SLURM_JOB_ID="7", SLURM_STEP_NODELIST="gpu[01-02]", SLURM_JOB_NODELIST="gpu[01-02]",
    ),
    "openmpi": dict(
        OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_LOCAL_RANK="1",
        OMPI_COMM_WORLD_LOCAL_SIZE="2", MASTER_ADDR="a", MASTER_PORT="1",
    ),
    "hydra": dict(
        PMI_SIZE="4", PMI_RANK="1", MPI_LOCALRANKID="1", MPI_LOCALNRANKS="2", MASTER_ADDR="a", MASTER_PORT="1",
    ),
}  # fmt: skip


def write_config(folder: Path) -> None:
    (folder / "config.yaml").write_text(json.dumps(read_config(SHIPPED_CONFIGS / "tiny.yaml")))


def write_override(folder: Path) -> None:
    (folder / "value.yaml").write_text('{"kind": "linear", "list": [1, "x"]}')


def read_override(folder: Path) -> Any:
    value = (folder / "value.yaml").read_bytes().decode(errors="surrogateescape")
    return config.override({}, f"value.yaml.b={value}", folder)


def write_stage(folder: Path) -> None:
    stage = Stage(folder, "tokenizer", RECIPE, INPUTS)
    with stage.begin():
        (folder / "vocab.json").write_text("{}")
        stage.finish([folder / "vocab.json"], {"tokens": 3, "bytes": 7}, {"file": [1, 2.5]})


def write_begun(folder: Path) -> None:
    with Stage(folder, "tokenizer", RECIPE, INPUTS).begin():
        pass


def verified(folder: Path) -> Any:
    found = manifest.require(folder, "tokenizer")
    for name in manifest.unverified(folder, found, found.outputs):
        manifest.verify(folder, found, name)
    return asdict(found)


def write_remembered(folder: Path) -> None:
    write_stage(folder)
    found = manifest.require(folder, "tokenizer")
    manifest.remember(folder, {"vocab.json": manifest.verify(folder, found, "vocab.json")})


def write_metrics(folder: Path) -> None:
    lines = [
        json.dumps({"update": update, "loss": 10 / update, "tokens_per_second": 50 + update})
        for update in range(1, 9)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def write_speed(folder: Path) -> None:
    write_metrics(folder)
    (folder / "config.yaml").write_text(json.dumps(load_experiment("tiny").resolved()))


def read_speed(folder: Path) -> Any:
    experiment = load_experiment("tiny")
    ranks = experiment.resolved()["run"]["ranks"]
    return speed_in(folder, experiment, ranks)


def write_hosts(folder: Path) -> None:
    (folder / "hosts").write_text("# cluster\nuser@gpu01 slots=8\ngpu02 slots=8\n\n")


def read_hosts(folder: Path) -> Any:
    job = Job(("robustly", "pretrain"), folder, {}, folder / "manifest.json", "run")
    return hostfile.render(job, hostfile.HostfileOptions(hostfile=folder / "hosts"))


def launched(kind: str) -> Reader:
    def read(folder: Path) -> Any:
        lines = (folder / "variables").read_bytes().decode(errors="replace").split("\n")
        pairs = [line.partition("=") for line in lines]
        with mock.patch.object(subprocess, "run", side_effect=FileNotFoundError("scontrol")):
            return environment.rank_from_environment({name: value for name, _, value in pairs})

    return Reader(
        f"variables of {kind}",
        lambda folder: (
            (folder / "variables").write_text(
                "".join(f"{name}={value}\n" for name, value in VARIABLES[kind].items())
            )
            and None
        ),
        read,
        (("variables", "bytes"),),
        named="RANK|SIZE|SLURM|MASTER",
    )


READERS = [
    Reader("config", write_config, lambda folder: load_experiment(folder / "config.yaml"), (("config.yaml", "yaml"),)),
    Reader("override", write_override, read_override, (("value.yaml", "yaml"),)),
    Reader("manifest", write_stage, verified, (("manifest.json", "json"), ("vocab.json", "bytes")), hashed=True),
    Reader("files found whole", write_remembered, verified, (("verified.json", "json"),), hashed=True),
    Reader(
        "recipe",
        write_begun,
        lambda folder: Stage(folder, "tokenizer", RECIPE, INPUTS).refuse_other_work(),
        (("recipe.json", "json"),),
        hashed=True,
    ),
    Reader("recipe, read", write_begun, manifest.begun, (("recipe.json", "json"),), hashed=True),
    Reader("metrics", write_metrics, lambda folder: read_metrics(folder / "metrics.jsonl"), (("metrics.jsonl", "jsonl"),)),
    Reader("speed of an earlier run", write_speed, read_speed, (("config.yaml", "yaml"), ("metrics.jsonl", "jsonl"))),
    Reader("hostfile", write_hosts, read_hosts, (("hosts", "bytes"),)),
    *map(launched, VARIABLES),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
@pytest.mark.parametrize("reader", READERS, ids=str)
def test_damage_is_told(reader: Reader, tmp_path: Path) -> None:
    check(reader, tmp_path)
