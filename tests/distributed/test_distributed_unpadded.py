"""A whole run on short blocks, with and without their padding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ranks import run_distributed
from robustly import UserError
from robustly.metrics import read_metrics
from robustly.pretrain.loop import pretrain
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


def test_attention_dropout_is_refused_before_the_first_update(
    pretraining: Callable[..., PretrainingConfig],
) -> None:
    config = pretraining("refused", "run.attention=varlen")

    def refused(rank: int, ranks: int) -> str:
        with pytest.raises(UserError) as found:
            go(rank, ranks, config)
        return str(found.value)

    (message,) = run_distributed(1, refused)
    assert "run.attention = varlen has no dropout" in message
