"""Without padding the encoder computes what it does with it, and attention stays within blocks."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustly.pretrain import unpadded
from robustly.pretrain.objective import (
    MaskedLanguageModel,
    NextSentenceHead,
    new_model,
    roberta_config,
)
from robustly.pretrain.unpadded import VARLEN, attend_by_length, encode_unpadded
from synthetic import VOCABULARY, model

LONGEST = 24
lengths_of_blocks = st.lists(st.integers(1, LONGEST), min_size=1, max_size=9)


def objective(attention: str, **changes: Any) -> MaskedLanguageModel:
    config = roberta_config(model(**changes), VOCABULARY)
    config.initializer_range = 0.1  # so that attention is far from even
    made = MaskedLanguageModel(new_model(config, 7), NextSentenceHead(config, 8)).train()
    made.model.set_attn_implementation(attention)
    made.unpadded = attention == VARLEN
    return made


def blocks(lengths: list[int], width: int = LONGEST) -> tuple[Tensor, Tensor]:
    """Ids and attention of random blocks, padded to `width`."""
    ids = torch.from_numpy(
        np.random.default_rng(sum(lengths)).integers(4, VOCABULARY.size, (len(lengths), width))
    )
    attention = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return torch.where(attention.bool(), ids, VOCABULARY.pad), attention


def passed(made: MaskedLanguageModel, ids: Tensor, attention: Tensor | None) -> list[Tensor]:
    """Both losses, and all gradients: every third token is to be restored, every other block has a
    next sentence."""
    real = torch.ones_like(ids) if attention is None else attention
    positions = real.flatten().nonzero()[::3, 0]
    follows = torch.arange(len(ids)) % 2
    made.zero_grad()
    losses = made(
        ids, attention, positions, (ids.flatten()[positions] + 7) % VOCABULARY.size, follows
    )
    losses.sum().backward()
    gradients = [parameter.grad for parameter in made.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(made.parameters()))
    return [losses.detach(), *gradients]


def assert_same(ones: list[Tensor], others: list[Tensor]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert float((one - other).norm()) <= 1e-5 * max(1.0, float(other.norm()))


PADDED, UNPADDED = objective("sdpa"), objective(VARLEN)


@settings(max_examples=30, deadline=None)
@given(lengths_of_blocks, st.integers(0, 9))
def test_losses_and_gradients_are_those_of_padded_blocks(lengths: list[int], more: int) -> None:
    batch = blocks(lengths, max(lengths) + more)
    assert_same(passed(UNPADDED, *batch), passed(PADDED, *batch))


@settings(max_examples=20, deadline=None)
@given(lengths_of_blocks)
def test_hidden_states_are_those_of_each_block_alone_by_transformers_own_attention(
    lengths: list[int],
) -> None:
    ids, attention = blocks(lengths)
    reference = objective("eager").model.roberta
    with torch.no_grad():
        hidden = encode_unpadded(UNPADDED.model.roberta, ids, attention)
        for row, length in enumerate(lengths):
            alone = reference(ids[row : row + 1, :length]).last_hidden_state[0]
            torch.testing.assert_close(hidden[row, :length], alone, rtol=1e-5, atol=1e-5)
            assert not hidden[row, length:].any()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, LONGEST), min_size=2, max_size=9), st.data())
def test_other_tokens_in_one_block_change_no_other_block(
    lengths: list[int], data: st.DataObject
) -> None:
    ids, attention = blocks(lengths)
    changed = data.draw(st.integers(0, len(lengths) - 1))
    others = ids.clone()
    others[changed, : lengths[changed]] = (ids[changed, : lengths[changed]] - 4 + 100) % (
        VOCABULARY.size - 4
    ) + 4

    with torch.no_grad():
        before, after = (
            encode_unpadded(UNPADDED.model.roberta, x, attention) for x in (ids, others)
        )

    same = (before == after).flatten(1).all(1)
    assert same.tolist() == [row != changed for row in range(len(lengths))]


def test_the_encoder_gets_the_tokens_alone_with_positions_from_2_on_in_every_block_and_no_mask() -> (
    None
):
    made = objective(VARLEN).model.roberta
    seen: dict[str, Any] = {}
    made.embeddings.position_embeddings.register_forward_hook(
        lambda _, given, __: seen.update(positions=given[0])
    )
    made.encoder.register_forward_pre_hook(
        lambda _, given, named: seen.update(named, row=given[0]), with_kwargs=True
    )
    ids, attention = blocks([5, 3, 3, 1])
    encode_unpadded(made, ids, attention)
    assert seen["positions"].tolist() == [[2, 3, 4, 5, 6, 2, 3, 4, 2, 3, 4, 2]]
    assert seen["row"].shape == (1, 12, 64) and seen["attention_mask"] is None
    assert seen["ends"].tolist() == [0, 5, 8, 11, 12] and seen["ends"].dtype == torch.int32
    assert seen["longest"] >= 5


def test_neighbours_of_one_length_are_one_call_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def noted(query: Tensor, *rest: Tensor, **named: Any) -> Tensor:
        shapes.append(tuple(query.shape))
        return kernel(query, *rest, **named)

    monkeypatch.setattr(unpadded, "scaled_dot_product_attention", noted)
    encode_unpadded(objective(VARLEN, layers=1).model.roberta, *blocks([9, 9, 9, 4, 2, 2]))
    assert shapes == [(3, 2, 9, 32), (1, 2, 4, 32), (2, 2, 2, 32)]


def test_blocks_without_padding_stay_a_batch() -> None:
    rows = []
    made = objective(VARLEN)
    made.model.roberta.encoder.register_forward_pre_hook(
        lambda _, given: rows.append(given[0].shape)
    )
    ids, _ = blocks([LONGEST] * 3)
    assert_same(passed(made, ids, None), passed(PADDED, ids, None))
    assert rows == [(3, LONGEST, 64)]


def test_a_mask_is_not_passed_over_in_silence() -> None:
    ids, attention = blocks([5, 3])
    with pytest.raises(AssertionError):
        UNPADDED.model.roberta(ids, attention_mask=attention)


def test_a_compiled_encoder_is_one_graph_for_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a kernel that, as that of GPUs, does the same for any lengths. The second compilation is
    the general one."""
    monkeypatch.setattr(unpadded, "attend_by_length", attend_by_mask)
    torch._dynamo.reset()
    made, graphs = objective(VARLEN, layers=1), []
    made.model.roberta.compile(
        fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward
    )
    plain = objective("sdpa", layers=1)
    for lengths in ([20, 9, 4], [17, 17, 11, 8, 2], [24, 3], [12, 12, 12, 12, 5, 4]):
        batch = blocks(lengths)
        assert_same(passed(made, *batch), passed(plain, *batch))

    assert len(graphs) == 2


def attend_by_mask(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, scaling: float
) -> Tensor:
    """The plainest way: all scores, and those across blocks left out."""
    block = torch.bucketize(torch.arange(len(query), device=query.device), ends, right=True)
    scores = torch.einsum("ihd,jhd->hij", query, key) * scaling
    weights = scores.masked_fill(block[:, None] != block, -torch.inf).softmax(-1)
    return torch.einsum("hij,jhd->ihd", weights, value)


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NOT TESTED: attention without padding on a GPU needs one"
)
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_the_kernel_of_gpus_computes_the_same(precision: torch.dtype) -> None:
    ends = torch.tensor([0, 100, 164, 165, 512 + 165], dtype=torch.int32, device="cuda")
    draw = torch.Generator().manual_seed(0)
    states = [
        torch.randn(1, 12, int(ends[-1]), 64, generator=draw).to("cuda", precision)
        for _ in range(3)
    ]

    def passed_through(attend: Any) -> list[Tensor]:
        leaves = [one.clone().requires_grad_() for one in states]
        found = attend(*leaves)
        (
            found * torch.linspace(-1, 1, found.shape[1], device="cuda")[None, :, None, None]
        ).sum().backward()
        return [found.float(), *(leaf.grad.float() for leaf in leaves if leaf.grad is not None)]

    def by_length(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend_by_length(
            *(x[0].transpose(0, 1).float() for x in (query, key, value)), ends, 0.125
        )[None]

    def by_torch(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return unpadded._attend(
            torch.nn.Identity(), query, key, value, None, 0.0, 0.125, ends, 512
        )[0]

    for one, other in zip(passed_through(by_torch), passed_through(by_length), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)
