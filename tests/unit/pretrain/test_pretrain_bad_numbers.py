"""Where a number that is not finite begins, and what is said of it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from robustly.pretrain.bad_updates.bad_numbers import (
    Attempt,
    Examination,
    FaultyMicroBatch,
    NumberHooks,
    RankReport,
    write_dump,
)
from robustly.pretrain.batches import Batches
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.schedule import UpdateSizes
from synthetic import VOCABULARY, masking, model, order

NAN = math.nan


def watched(fault: str) -> Any:
    """What is seen of two micro-batches; a parameter is not finite in the second."""
    objective = MaskedLanguageModel(new_model(roberta_config(model(), VOCABULARY), 7))
    batches = Batches(order(), UpdateSizes(16), masking(), VOCABULARY, 0, 1, 8)
    with NumberHooks(objective) as watch:
        for number, one in enumerate(batches.batch(1).micro_batches):
            if number:
                objective.get_parameter(fault).data.view(-1)[0] = NAN

            objective(one.inputs, one.attention, one.positions, one.labels).sum().backward()

    hooks = [module._forward_hooks for module in objective.modules()]
    assert not any(hooks) and not objective._forward_pre_hooks
    return watch.found


@pytest.mark.parametrize(
    ("fault", "first"),
    [
        (
            "model.roberta.embeddings.word_embeddings.weight",  # of <s>
            "model.roberta.embeddings.word_embeddings",
        ),
        (
            "model.roberta.encoder.layer.1.intermediate.dense.bias",
            "model.roberta.encoder.layer.1.intermediate.dense",
        ),
        ("model.lm_head.dense.weight", "model.lm_head.dense"),
    ],
)
def test_the_first_activation_that_is_not_finite_is_named(fault: str, first: str) -> None:
    fine, faulty = watched(fault)
    assert fine.activation is None and fine.gradients == []
    assert faulty.activation == first and fault in faulty.gradients


def attempt(loss: float, norm: float = 1.0) -> Attempt:
    return Attempt([loss], {}, loss, norm)


def rank(number: int, losses: list[float], repeated: list[float], faulty: Any = ()) -> RankReport:
    return RankReport(number, f"gpu{number:02}", losses, repeated, list(faulty))


FAULTY = FaultyMicroBatch(3, 5, "model.lm_head.dense", [], [], {"inputs": torch.arange(3)})


@pytest.mark.parametrize(
    ("first", "again", "weights", "ranks", "said", "suspect"),
    [
        (
            attempt(NAN), attempt(7.31), [], [rank(0, [3.0], [3.0]), rank(3, [NAN], [3.1])],
            "the loss is nan, repeated: 7.31: the device of rank 3 on gpu03 is suspect", True,
        ),
        (
            attempt(NAN), attempt(NAN), [], [rank(0, [3.0], [3.0]), rank(1, [NAN], [NAN], [FAULTY])],
            "the loss is nan, repeated: nan: the batch or the weights (micro-batch 3 of rank 1,"
            " first in model.lm_head.dense)", False,
        ),
        (
            attempt(3.0, math.inf), attempt(3.0, 1.5), [], [rank(0, [3.0], [3.0])],
            "the gradient norm is inf, repeated: 1.5: the device of one of the ranks (on gpu00) is"
            " suspect", True,
        ),
        (
            attempt(3.0, math.inf), attempt(3.0, math.inf), [], [rank(0, [3.0], [3.0])],
            "the gradient norm is inf, repeated: inf: the batch or the weights; each rank's part"
            " alone is finite", False,
        ),
        (
            attempt(NAN), attempt(7.0), ["a", "b", "c", "d", "e"], [rank(0, [NAN], [7.0])],
            "the loss is nan, repeated: 7: weights were not finite before it: a, b, c and 2 more",
            False,
        ),
    ],
)  # fmt: skip
def test_what_is_said(
    first: Attempt, again: Attempt, weights: list[str], ranks: list[RankReport], said: str,
    suspect: bool, tmp_path: Path,
) -> None:  # fmt: skip
    found = Examination.of(812, first, again, weights, ranks)
    assert str(found) == said and found.device_is_suspect == suspect
    dump = write_dump(tmp_path, found, {"recipe": "r"})
    assert dump.name == "update-00000812"
    read = json.loads((dump / "dump.json").read_text(encoding="utf-8"))
    assert read["message"] == said and read["recipe"] == "r" and read["update"] == 812
    for one in read["ranks"]:
        for each in one["faulty"]:
            assert load_file(dump / each["inputs"])["inputs"].tolist() == [0, 1, 2]
