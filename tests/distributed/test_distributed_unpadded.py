"""A whole run on short blocks, with and without their padding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ranks import run_distributed
from robustly.metrics import read_metrics
from robustly.pretrain.loop import Stopped, pretrain
from robustly.pretrain.stage import PretrainingConfig

pytestmark = pytest.mark.distributed
SHORT = ("data.format=doc_sentences", "model.dropout=0.0", "model.attention_dropout=0.0")
COUNTED = {"update", "masked_tokens", "tokens", "lr", "validation_masked_tokens"}
MEASURED = {"loss", "grad_norm", "validation_loss", "validation_accuracy"}


def go(rank: int, ranks: int, config: PretrainingConfig) -> None:
    torch.set_num_threads(1)
    pretrain(config, rank, rank, ranks)


def test_a_run_without_padding_is_the_run_with_it(
    pretraining: Callable[..., PretrainingConfig],
) -> None:
    """To rounding, and what is counted exactly, of the updates and of the evaluations, whose blocks
    are not sorted."""
    lines = []
    for attention in ("sdpa", "varlen"):
        config = pretraining(attention, *SHORT, f"run.attention={attention}")
        run_distributed(2, go, config)
        lines.append([*read(config, "metrics"), *read(config, "evaluations")])

    assert len(lines[0]) == 12 + 3

    for padded, unpadded in zip(*lines, strict=True):
        assert {key: unpadded[key] for key in COUNTED & unpadded.keys()} == {
            key: padded[key] for key in COUNTED & padded.keys()
        }
        found = {key: unpadded[key] for key in MEASURED & unpadded.keys()}
        assert found and found == pytest.approx({key: padded[key] for key in found}, rel=1e-4)


def read(config: PretrainingConfig, name: str) -> list[dict[str, Any]]:
    return read_metrics(config.folder("train") / f"{name}.jsonl")


def test_a_run_with_dropout_goes_on_in_rows_as_if_it_had_not_stopped(
    pretraining: Callable[..., PretrainingConfig],
) -> None:
    """Of blocks of two segments, too, and to the last bit."""
    settings = ("data.format=segment_pair", "run.attention=varlen", "run.evaluate_every=100")
    lines = []
    for name in ("whole", "stopped"):
        config = pretraining(name, *settings, "model.dropout=0.1", "model.attention_dropout=0.1")
        if name == "stopped":
            run_distributed(2, stop_after_5, config)

        run_distributed(2, go, config)
        found = [{key: line[key] for key in ("update", "loss")} for line in read(config, "metrics")]
        lines.append(found)

    assert lines[0] == lines[1] and len(lines[0]) == 12


def stop_after_5(rank: int, ranks: int, config: PretrainingConfig) -> None:
    torch.set_num_threads(1)
    with pytest.raises(Stopped):
        pretrain(config, rank, rank, ranks, stop_after=5)
