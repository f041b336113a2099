"""In which buckets gradients are reduced."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.optimizer import adamw, parameter_groups
from robustly.pretrain.reduction import in_buckets
from synthetic import VOCABULARY, model, optim


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), most=st.integers(1, 100))
def test_buckets_are_full_and_in_the_order_of_a_backward_pass(sizes: list[int], most: int) -> None:
    parameters = [torch.empty(size) for size in sizes]
    buckets = in_buckets([{"params": parameters, "weight_decay": 0.1}], most)
    found = [parameter for bucket in buckets for parameter in bucket["params"]]
    assert [id(each) for each in found] == [id(each) for each in reversed(parameters)]

    held = [sum(p.numel() for p in bucket["params"]) for bucket in buckets]
    for bucket, size, following in zip(buckets, held, [*buckets[1:], None], strict=True):
        assert size <= most or len(bucket["params"]) == 1
        assert following is None or size + following["params"][0].numel() > most
        assert bucket["weight_decay"] == 0.1


@pytest.mark.parametrize("decay", ["all", "weights"])
def test_every_parameter_keeps_its_decay(decay: str) -> None:
    objective = MaskedLanguageModel(new_model(roberta_config(model(), VOCABULARY), 7))
    section = optim(decay=decay, weight_decay=0.1)
    plain, bucketed = (
        {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        for groups in (
            parameter_groups(objective, section),
            adamw(objective, section, True).param_groups,
        )
    )
    assert bucketed == plain
    first = adamw(objective, section, True).param_groups[0]["params"][0]
    names = {id(p): name for name, p in objective.named_parameters()}
    assert names[id(first)].startswith("model.lm_head")  # its gradient is ready first
