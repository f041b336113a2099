"""Updates and evaluations without a target never pass in silence."""

import re
from collections.abc import Callable

import pytest
import torch

from ranks import run_distributed
from robustly import UserError
from robustly.metrics import read_metrics
from robustly.pretrain import loop
from robustly.pretrain.loop import pretrain
from robustly.pretrain.stage import PretrainingConfig

pytestmark = pytest.mark.distributed


def go(rank: int, ranks: int, config: PretrainingConfig, checked: bool = True) -> str:
    """What is said where it ends by a mistake of the user. Not `checked`: whatever the share of
    training blocks with a target."""
    torch.set_num_threads(1)
    if not checked:
        loop.check_targets = lambda *_: None  # type: ignore[assignment]

    try:
        pretrain(config, rank, rank, ranks)
    except UserError as error:
        return str(error)
    return ""


def test_an_update_without_targets_is_told(
    make_pretraining: Callable[..., PretrainingConfig], capfd: pytest.CaptureFixture[str]
) -> None:
    """A third of the blocks has none, and each update has one block."""
    config = make_pretraining(
        "untargeted", "masking.probability=0.012", "optim.batch_size=1", "run.evaluate_blocks=200"
    )
    assert run_distributed(1, go, config) == [""]
    said = " ".join(capfd.readouterr().err.split())
    assert re.search(r"warning: masking: \d\d% of 1,024 training blocks have a target", said)
    lines = read_metrics(config.folder("train") / "metrics.jsonl")
    empty = [line for line in lines if not line["masked_tokens"]]
    assert 0 < len(empty) < 10 and all("loss" not in line for line in empty)
    assert all(line.get("without_targets") == (line in empty or None) for line in lines)
    assert said.count("1 of these 1 updates had no masked token to learn from") == len(empty)
    assert said.count("no targets") == len(empty) and "loss 0.0000" not in said


def test_held_out_blocks_without_targets_are_refused(
    make_pretraining: Callable[..., PretrainingConfig],
) -> None:
    config = make_pretraining("held_out", "masking.probability=1e-4", "run.evaluate_blocks=1")
    (said,) = run_distributed(1, go, config, False)
    assert "no token of the held-out blocks is a target" in said
    assert not read_metrics(config.folder("train") / "evaluations.jsonl")


def test_too_few_blocks_with_targets_are_refused_before_the_first_update(
    make_pretraining: Callable[..., PretrainingConfig],
) -> None:
    config = make_pretraining("few", "masking.probability=0.004")
    (said,) = run_distributed(1, go, config)
    assert said.startswith("masking: 2") and "have a target" in said
    assert not (config.folder("train") / "metrics.jsonl").exists()
