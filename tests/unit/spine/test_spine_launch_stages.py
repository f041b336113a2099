"""What the jobs of the stages before and after the training ask of Slurm."""

from pathlib import Path

import pytest

from robustly import UserError
from robustly.cli.launch_stages import finished_stages, launch_stages, stage_job
from robustly.experiment import Experiment, load_experiment
from robustly.launch.job import StageJob
from robustly.launch.slurm import SlurmOptions
from robustly.stages import STAGES


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return load_experiment("tiny", [f"paths.root={tmp_path / 'runs/mine'}", "name=mine"])


def job(experiment: Experiment, stage: str, *sbatch: str, **run: object) -> StageJob:
    changed = experiment.run.model_copy(update=run)
    found = stage_job(
        experiment.model_copy(update={"run": changed}),
        STAGES[stage],
        SlurmOptions(stages="all", sbatch=sbatch),
    )
    assert isinstance(found, StageJob)
    return found


@pytest.mark.parametrize(
    ("stage", "sbatch", "run", "cores", "said"),
    [
        ("data", (), {"workers": None}, 8, "run.workers=8"),
        ("data", (), {"workers": 3}, 3, ""),
        ("data", ("prepare:cpus-per-task=32",), {"workers": None}, 32, "run.workers=32"),
        ("data", ("cpus-per-task=12",), {"workers": None}, 8, "run.workers=8"),  # of pretrain
        # its parts are jobs of their own
        ("data", (), {"workers": None, "executor": "slurm"}, 1, ""),
        ("published", (), {"workers": None, "executor": "slurm"}, 8, ""),
    ],
)
def test_a_stage_gets_the_cores_that_its_workers_use(
    experiment: Experiment, stage: str, sbatch: tuple[str, ...], run: dict[str, object],
    cores: int, said: str,
) -> None:  # fmt: skip
    found = job(experiment, stage, *sbatch, **run)
    assert found.cores == cores
    workers = [word for word in found.command if word.startswith("run.workers")]
    assert workers == ([said] if said else [])


def test_cores_that_are_no_number_are_refused(experiment: Experiment) -> None:
    with pytest.raises(UserError, match="--sbatch prepare:cpus-per-task=many: expected a number"):
        job(experiment, "data", "prepare:cpus-per-task=many")


def test_no_stage_is_no_traceback(experiment: Experiment) -> None:
    with pytest.raises(UserError, match="the config has no stage ''"):
        launch_stages(experiment, SlurmOptions(stages=""), False, False, False, True)


def test_a_stage_asks_for_what_the_config_says_of_the_cluster(experiment: Experiment) -> None:
    slurm = experiment.run.slurm.model_copy(update={"partition": "cpu", "account": "nlp"})
    found = job(experiment, "tokenizer", slurm=slurm, memory_gb=4.0)
    assert found.asked == {"partition": "cpu", "account": "nlp"} and found.memory_gb == 4.0
    assert found.name == "mine-tokenizer" and found.stage == "tokenizer"
    assert found.finished == experiment.folder("tokenizer").absolute() / "manifest.json"
    assert found.goes_on and not job(experiment, "published").goes_on

    # memory for the whole command, which only waits for the array
    assert job(experiment, "tokenizer", memory_gb=4.0, executor="slurm").memory_gb is None


def test_nothing_is_finished_of_a_new_run(experiment: Experiment) -> None:
    assert finished_stages(experiment) == []
