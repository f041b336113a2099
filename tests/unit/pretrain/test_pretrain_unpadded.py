"""Without padding the encoder computes what it does with it, and attention stays within blocks."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustly.pretrain import unpadded
from robustly.pretrain.attention import VARLEN
from robustly.pretrain.layout import InRows, MaskedBlocks
from robustly.pretrain.masking import MaskedInputs
from robustly.pretrain.micro_batch import MicroBatch, Row
from robustly.pretrain.objective import (
    MaskedLanguageModel,
    NextSentenceHead,
    new_model,
    roberta_config,
)
from robustly.pretrain.unpadded import attend_by_length, encode_row
from synthetic import VOCABULARY, model

LONGEST = 24
lengths_of_blocks = st.lists(st.integers(1, LONGEST), min_size=1, max_size=9)


def objective(attention: str, **changes: Any) -> MaskedLanguageModel:
    config = roberta_config(model(**changes), VOCABULARY)
    config.initializer_range = 0.1  # so that attention is far from even
    made = MaskedLanguageModel(new_model(config, 7), NextSentenceHead(config, 8)).train()
    made.model.set_attn_implementation(attention)
    return made


def blocks(lengths: list[int], width: int = LONGEST) -> tuple[Tensor, Tensor]:
    """Ids and attention of random blocks, padded to `width`."""
    ids = torch.from_numpy(
        np.random.default_rng(sum(lengths)).integers(4, VOCABULARY.size, (len(lengths), width))
    )
    attention = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return torch.where(attention.bool(), ids, VOCABULARY.pad), attention


def in_a_row(ids: Tensor, attention: Tensor, tokens: int = 0) -> MicroBatch:
    """The same blocks in a row, of so many tokens if it is to be padded. Every third token is to be
    restored, every other block has a next sentence."""
    targets = torch.zeros_like(ids)
    targets.flatten()[attention.flatten().nonzero()[::3, 0]] = 1
    masked = MaskedInputs(ids.numpy(), targets.bool().numpy())
    labels = ((ids + 7) % VOCABULARY.size).numpy().astype(np.int32)
    follows = np.arange(len(ids)) % 2
    found = MaskedBlocks(VOCABULARY, labels, attention.sum(1).numpy(), masked, follows)
    layout = InRows(tokens, LONGEST, len(ids), 1, bool(tokens))
    return layout.make(found, np.arange(len(ids)), 0)


def passed(made: MaskedLanguageModel, ids: Tensor, attention: Tensor | None) -> list[Tensor]:
    """Both losses, and all gradients, of padded blocks."""
    real = torch.ones_like(ids) if attention is None else attention
    positions = real.flatten().nonzero()[::3, 0]
    follows = torch.arange(len(ids)) % 2
    labels = (ids.flatten()[positions] + 7) % VOCABULARY.size
    return losses_and_gradients(made, ids, attention, positions, labels, follows)


def passed_in_a_row(made: MaskedLanguageModel, one: MicroBatch) -> list[Tensor]:
    return losses_and_gradients(
        made, one.inputs, one.attention, one.positions, one.labels, one.follows
    )


def losses_and_gradients(made: MaskedLanguageModel, *given: Any) -> list[Tensor]:
    made.zero_grad()
    losses = made(*given)
    losses.sum().backward()
    gradients = [parameter.grad for parameter in made.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(made.parameters()))
    return [losses.detach(), *gradients]


def assert_same(ones: list[Tensor], others: list[Tensor]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert float((one - other).norm()) <= 1e-5 * max(1.0, float(other.norm()))


PADDED, UNPADDED = objective("sdpa"), objective(VARLEN)


@settings(max_examples=30, deadline=None)
@given(lengths_of_blocks, st.integers(0, 2 * LONGEST + 3))
def test_losses_and_gradients_are_those_of_padded_blocks(lengths: list[int], more: int) -> None:
    batch = blocks(lengths)
    expected = passed(PADDED, *batch)
    assert_same(passed_in_a_row(UNPADDED, in_a_row(*batch)), expected)
    assert_same(passed_in_a_row(UNPADDED, in_a_row(*batch, sum(lengths) + more)), expected)


@settings(max_examples=20, deadline=None)
@given(lengths_of_blocks)
def test_hidden_states_are_those_of_each_block_alone_by_transformers_own_attention(
    lengths: list[int],
) -> None:
    ids, attention = blocks(lengths)
    reference = objective("eager").model.roberta
    with torch.no_grad():
        hidden = encoded(UNPADDED, ids, attention)
        for row, length in enumerate(lengths):
            alone = reference(ids[row : row + 1, :length]).last_hidden_state[0]
            torch.testing.assert_close(hidden[row], alone, rtol=1e-5, atol=1e-5)


def encoded(made: MaskedLanguageModel, ids: Tensor, attention: Tensor) -> list[Tensor]:
    """The hidden states of each block."""
    one = in_a_row(ids, attention, int(attention.sum()) + 9)
    assert isinstance(one.attention, Row)
    hidden = encode_row(made.model.roberta, one.inputs, one.attention)[0]
    return list(hidden[: one.attention.tokens].split(attention.sum(1).tolist()))


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
        before, after = (encoded(UNPADDED, x, attention) for x in (ids, others))

    same = [bool((one == other).all()) for one, other in zip(before, after, strict=True)]
    assert same == [row != changed for row in range(len(lengths))]


def test_neighbours_of_one_length_are_one_call_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def noted(query: Tensor, *rest: Tensor, **named: Any) -> Tensor:
        shapes.append(tuple(query.shape))
        return kernel(query, *rest, **named)

    monkeypatch.setattr(unpadded, "scaled_dot_product_attention", noted)
    one = in_a_row(*blocks([9, 9, 9, 4, 2, 2]))
    assert isinstance(one.attention, Row)
    encode_row(objective(VARLEN, layers=1).model.roberta, one.inputs, one.attention)
    assert shapes == [(3, 2, 9, 32), (1, 2, 4, 32), (2, 2, 2, 32)]


def test_a_mask_is_not_passed_over_in_silence() -> None:
    ids, attention = blocks([5, 3])
    with pytest.raises(AssertionError):
        UNPADDED.model.roberta(ids, attention_mask=attention)


def test_dropout_drops_single_probabilities_and_keeps_their_mean() -> None:
    """The values are unit vectors, so that what comes out are the probabilities themselves."""
    ends, rate = torch.tensor([0, 32, 64, 64]), 0.1
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(64, 4, 32, generator=draw) for _ in range(2))
    value = torch.eye(32).repeat(2, 1)[:, None].expand(64, 4, 32)
    torch.manual_seed(1)
    expected = attend_by_length(query, key, value, ends, 0.2)
    dropped = torch.stack([attend_by_length(query, key, value, ends, 0.2, rate) for _ in range(50)])
    torch.testing.assert_close(expected.sum(-1), torch.ones(64, 4))
    kept = dropped != 0
    # of 50 x 8,192, the deviation of the share is 0.0005
    assert float(kept.float().mean()) == pytest.approx(1 - rate, abs=0.002)
    torch.testing.assert_close(dropped[kept] * (1 - rate), expected.expand_as(dropped)[kept])


def test_attention_dropout_is_the_models_own_in_training_and_none_in_evaluation() -> None:
    made, one = objective(VARLEN, attention_dropout=0.1), in_a_row(*blocks([20, 7, 7]))
    plain = passed_in_a_row(UNPADDED, one)[0]
    first, second = (passed_in_a_row(made, one)[0] for _ in range(2))
    assert not torch.equal(first, second) and not torch.equal(first, plain)
    torch.testing.assert_close(first, plain, rtol=0.2, atol=0)
    assert torch.equal(passed_in_a_row(made.eval(), one)[0], plain)


def test_compiled_encoder_head_and_loss_are_one_graph_each_for_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a kernel that, as that of GPUs, does the same for any lengths; and the loss is the same
    sum as of padded blocks, however many tokens are masked."""
    monkeypatch.setattr(unpadded, "attend_by_length", attend_by_mask)
    torch._dynamo.reset()
    made, graphs = objective(VARLEN, layers=1), []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    made.model.roberta.compile(fullgraph=True, dynamic=False, backend=backend)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    made.compile_head((64, 0.15))
    assert made.rows == 16
    plain = objective("sdpa", layers=1)
    for lengths in ([20, 9, 4], [17, 17, 11, 8, 2], [24, 3], [12, 12, 12, 12, 5, 4]):
        batch = blocks(lengths)
        one = in_a_row(*batch, 64)
        ends = torch.nn.functional.pad(
            one.attention.ends, (0, 12 - len(one.attention.ends)), value=64
        )  # type: ignore[union-attr]
        row = one.attention._replace(ends=ends)  # type: ignore[union-attr]
        follows = torch.nn.functional.pad(one.follows, (0, 11 - len(one.follows)), value=-1)
        found = passed_in_a_row(made, one._replace(attention=row, follows=follows))
        expected = passed(plain, *batch)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
        assert_same(found, expected)

    assert len(graphs) == 3


def attend_by_mask(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, scaling: float, dropout: float = 0.0
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
            torch.nn.Identity(), query, key, value, None, 0.0, 0.125, None, ends, 512
        )[0]

    for one, other in zip(passed_through(by_torch), passed_through(by_length), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)
