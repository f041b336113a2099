"""What is seen of a run from outside: its best checkpoint, utilisation, a trace; and updates that
grow."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from small_config import die_after, last_checkpoint

from ranks import run_distributed
from robustly import UserError
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.sampler import EpochSampler
from robustly.metrics import read_metrics
from robustly.pretrain.checkpoints.checkpoint import best_update, of_finished
from robustly.pretrain.flops import flops_per_token
from robustly.pretrain.loop import pretrain
from robustly.pretrain.stage import PretrainingConfig
from robustly.publish.config import PublishConfig
from robustly.publish.publish import publish

pytestmark = pytest.mark.distributed
MakePretraining = Callable[..., PretrainingConfig]
TIMINGS = ("tokens_per_second", "data_wait", "memory_gb", "seconds", "mfu")
GROWING = (
    "schedule.batch_warmup={start: 3, updates: 8}",
    "run.evaluate_every=4",
    "run.checkpoint_every=2",
)
"""On 2 ranks: their first updates have 3, 5, 8 blocks, less than a micro-batch for each."""
RISING_LOSS = ("optim.peak_lr=0.2", "schedule.warmup=8", "schedule.updates=8")
"""It falls at first."""


def train(config: PretrainingConfig, ranks: int, profile: bool = False) -> None:
    def go(rank: int, ranks: int) -> None:
        torch.set_num_threads(1)
        pretrain(config, rank, rank, ranks, profile)

    run_distributed(ranks, go)


def metrics(config: PretrainingConfig) -> list[dict[str, Any]]:
    lines = read_metrics(config.folder("train") / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def order(config: PretrainingConfig) -> EpochSampler:
    return EpochSampler(Blocks(config.folder("data"), "train", 64, "full_sentences"), config.seed)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def growing(make_pretraining: MakePretraining) -> PretrainingConfig:
    config = make_pretraining("growing", *GROWING, "run.peak_tflops=0.001")
    train(config, 2)
    return config


def test_updates_grow_and_a_resume_amid_that_is_the_same_run(
    growing: PretrainingConfig, pretraining: MakePretraining
) -> None:
    blocks = [3 + 21 * k // 8 for k in range(8)] + [24] * 4
    for line in metrics(growing):
        assert line["epoch"] == sum(blocks[: line["update"]]) / order(growing).size

    assert metrics(growing)[0]["tokens"] <= 3 * 64 < metrics(growing)[-1]["tokens"]
    killed = pretraining("killed", *GROWING)
    run_distributed(2, die_after, killed, 4, False)
    train(killed, 2)
    assert metrics(killed) == metrics(growing)
    one, other = (
        last_checkpoint(config.folder("train")).files["weights.safetensors"]
        for config in (killed, growing)
    )
    assert one == other
    marks = [
        (config.folder("train") / "checkpoints" / "best.json").read_text()
        for config in (killed, growing)
    ]
    assert marks[0] == marks[1]


def test_utilisation_is_by_real_tokens_of_all_ranks(growing: PretrainingConfig) -> None:
    lines = read_metrics(growing.folder("train") / "metrics.jsonl")
    length = round(order(growing).mean_length)
    per_token = flops_per_token(growing.model, 500, length, growing.masking.probability)
    for line in lines:
        assert line["mfu"] == pytest.approx(line["tokens_per_second"] * per_token / (2 * 1e9))
    assert lines[0]["mfu"] > 0


def test_the_best_checkpoint_is_marked_kept_and_the_same_after_a_resume(
    pretraining: MakePretraining,
) -> None:
    keys = (*RISING_LOSS, "run.evaluate_every=2", "run.keep_checkpoints=1")
    straight, killed = pretraining("straight", *keys), pretraining("killed", *keys)
    train(straight, 1)
    losses = {
        line["update"]: line["validation_loss"]
        for line in read_metrics(straight.folder("train") / "evaluations.jsonl")
    }
    best = min((update for update in losses if update), key=lambda update: losses[update])
    assert best < 8  # else this config tests nothing
    run_distributed(1, die_after, killed, best, False)
    train(killed, 1)

    for config in (straight, killed):
        folder = config.folder("train") / "checkpoints"
        assert files(folder) == ["best.json", f"update-{best:08d}", "update-00000008"]
        assert json.loads((folder / "best.json").read_text()) == {
            "update": best,
            "validation_loss": losses[best],
        }
        finished = config.stage().finished()
        assert finished is not None and best_update(config.folder("train"), finished) == best
        assert finished.counts["best_validation_loss"] == losses[best]
        assert f"checkpoints/update-{best:08d}/weights.safetensors" in finished.outputs


def test_a_trace_changes_no_number(
    growing: PretrainingConfig, pretraining: MakePretraining, capfd: pytest.CaptureFixture[str]
) -> None:
    traced = pretraining("traced", *GROWING)
    train(traced, 2, profile=True)
    assert metrics(traced) == metrics(growing)
    names = [f"rank{rank}-updates-3-5.json.gz" for rank in (0, 1)]
    assert files(traced.folder("train") / "profile") == names
    with gzip.open(traced.folder("train") / "profile" / names[0], "rt") as trace:
        assert any(event.get("name") == "aten::addmm" for event in json.load(trace)["traceEvents"])

    said = capfd.readouterr().err
    assert "most expensive operations, updates 3 to 5" in said and "aten::" in said
    finished = traced.stage().finished()
    assert finished is not None
    assert not [name for name in finished.outputs if "profile" in name]


def test_the_best_checkpoint_can_be_published(pretraining: MakePretraining, tmp_path: Path) -> None:
    config = pretraining("train", *RISING_LOSS, "run.evaluate_every=2")
    train(config, 1)
    finished = config.stage().finished()
    assert finished is not None
    best, folder = best_update(config.folder("train"), finished), tmp_path / "published"
    assert best < finished.counts["updates"]
    choice = PublishConfig(checkpoint="best")
    made = publish(
        choice,
        "small",
        config.folder("train"),
        config.folder("data"),
        config.folder("tokenizer"),
        folder,
    )

    with safe_open(folder / "model.safetensors", "pt") as published:
        weights = of_finished(config.folder("train"), best).weights()
        names = list(published.keys())
        assert all(torch.equal(published.get_tensor(name), weights[name]) for name in names)

    assert (
        made.counts["validation_loss"]
        == finished.counts["best_validation_loss"]
        < finished.counts["validation_loss"]
    )
    assert f"| updates | {best} |" in (folder / "README.md").read_text()
    without = replace(finished, counts={})

    with pytest.raises(
        UserError, match=r"none of its checkpoints was evaluated.*publish\.checkpoint=last"
    ):
        best_update(config.folder("train"), without)
