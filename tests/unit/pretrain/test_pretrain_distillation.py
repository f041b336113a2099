"""Distillation: which layers a student starts from, the three losses against their definitions, who
is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax
from torch import Tensor
from torch.nn import functional

from robustly import UserError
from robustly.config import InputPath
from robustly.data_prep.sampler import Samples
from robustly.experiment import load_experiment
from robustly.pretrain.attention import Attention
from robustly.pretrain.batches import fetch, make_micro_batch
from robustly.pretrain.config import DistillationConfig, ModelConfig
from robustly.pretrain.cross_entropy import (
    Compiled,
    Scores,
    cross_entropy_and_gradients,
    divergence_and_gradients,
    summed_divergence,
)
from robustly.pretrain.distillation import (
    Distillation,
    cosine_loss,
    layers_to_start_from,
    open_teacher,
    start_from_teacher,
)
from robustly.pretrain.layout import InRows
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.micro_batch import MicroBatch
from robustly.pretrain.model_setup import set_up_model
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.start.model_files import find_model
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary
from synthetic import VOCABULARY, masking, model, order, run
from tests import small_checkpoints

WORDS = lay_out([("t", "h"), ("th", "e")])
SETTINGS = DistillationConfig(teacher="there", temperature=3.0)


def samples(blocks: list[int]) -> Samples:
    numbers = np.array(blocks, np.int64)
    return Samples(np.zeros_like(numbers), numbers, numbers, numbers)


def batch(blocks: list[int]) -> MicroBatch:
    return make_micro_batch(order(seed=3), samples(blocks), masking(), VOCABULARY, 0)


def row(blocks: list[int]) -> MicroBatch:
    """The same blocks in a row that has room for more."""
    found = fetch(order(seed=3), samples(blocks), masking(), VOCABULARY)
    return InRows(200, 32, 6, 1).make(found, np.arange(len(blocks)), 0)


def distillation(
    student: int = 2, teacher: int = 4, attention: str = "sdpa", **changes: Any
) -> Distillation:
    """A student that is not yet like its teacher, whose layers are far from each other."""
    guide = MaskedLanguageModel(
        new_model(roberta_config(model(layers=teacher, init_std=0.2), VOCABULARY), 1)
    ).eval()
    pupil = new_model(roberta_config(model(layers=student, init_std=0.2), VOCABULARY), 2)
    made = Distillation(pupil, guide, SETTINGS.model_copy(update=changes))
    for objective in (made, guide):
        set_up_model(objective, run(), Attention(attention, "as it is tested"))

    return made


def sums(objective: Distillation, made: MicroBatch) -> Tensor:
    return objective(*made.arguments)


# ---------------------------------------------------------------------------------------- the start


@given(st.integers(1, 48), st.integers(0, 48))
def test_layers_are_evenly_spaced_from_the_first(student: int, more: int) -> None:
    teacher = student + more
    taken = layers_to_start_from(student, teacher)
    assert len(taken) == student and taken[0] == 0 and taken[-1] < teacher
    steps = {after - before for before, after in zip(taken, [*taken[1:], teacher], strict=True)}
    assert steps <= {teacher // student, -(-teacher // student)}
    assert layers_to_start_from(student, 2 * student) == list(range(0, 2 * student, 2))


def test_a_student_starts_from_its_teachers_parts() -> None:
    teacher = new_model(roberta_config(model(layers=5), VOCABULARY), 1)
    student = new_model(roberta_config(model(layers=2), VOCABULARY), 2)
    assert start_from_teacher(student, teacher) == [0, 2]
    theirs = teacher.state_dict()
    for name, ours in student.state_dict().items():
        assert torch.equal(ours, theirs[name.replace("encoder.layer.1.", "encoder.layer.2.")]), name

    assert student.lm_head.decoder.weight is student.get_input_embeddings().weight
    whole = new_model(roberta_config(model(layers=5), VOCABULARY), 3)
    start_from_teacher(whole, teacher)
    made = batch([0, 1])
    objectives = [MaskedLanguageModel(m.eval()) for m in (whole, teacher)]
    hidden = [each.encode(made.inputs, made.attention) for each in objectives]
    one, other = (
        each.scores(states, made.positions).computed()
        for each, states in zip(objectives, hidden, strict=True)
    )
    assert torch.equal(one, other)


def test_layers_can_be_chosen_as_in_the_authors_script() -> None:
    """DistilRoBERTa's of 12."""
    chosen = [0, 2, 4, 7, 9, 11]
    teacher = new_model(roberta_config(model(layers=12), VOCABULARY), 1)
    student = new_model(roberta_config(model(layers=6), VOCABULARY), 2)
    assert start_from_teacher(student, teacher, chosen) == chosen
    for ours, number in zip(student.roberta.encoder.layer, chosen, strict=True):
        theirs = teacher.roberta.encoder.layer[number].state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())


def test_a_layer_that_the_teacher_lacks_is_refused(folder: Path) -> None:
    there = find_model(InputPath(str(folder), folder), "distillation.teacher")
    with pytest.raises(UserError, match=r"distillation.layers: 4: .* has 4, from 0 to 3"):
        open_teacher(there, section(), Tokenizer(WORDS), [0, 1, 2, 4])


# --------------------------------------------------------------------------------------- the losses


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(("rows", "compiled"), [(1, False), (2, False), (None, False), (2, True)])
def test_the_soft_loss_is_the_divergence_of_softened_probabilities(
    temperature: float, rows: int | None, compiled: bool
) -> None:
    """By scipy's softmax and relative entropy; one row at a time, two, or all five; and as torch
    differentiates its own. What would be compiled, too."""
    losses = Compiled(cross_entropy_and_gradients, divergence_and_gradients) if compiled else None
    draw = torch.Generator().manual_seed(1)
    shapes = [(5, 4), (9, 4), (9,)] * 2
    every = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    ours, theirs = Scores(*(one.requires_grad_() for one in every[:3])), Scores(*every[3:])
    student, teacher = (scores.computed() for scores in (ours, theirs))

    found = summed_divergence(ours, theirs, temperature, rows, losses)
    softened = [softmax(each.detach().numpy() / temperature, 1) for each in (student, teacher)]
    expected = rel_entr(softened[1], softened[0]).sum() * temperature**2
    assert found.item() == pytest.approx(expected, rel=1e-12)

    of_torch = temperature**2 * functional.kl_div(
        torch.log_softmax(student / temperature, 1),
        torch.softmax(teacher / temperature, 1),
        reduction="sum",
    )
    for one, other in zip(
        torch.autograd.grad(3 * found, ours[:3]),
        torch.autograd.grad(3 * of_torch, ours[:3]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)

    assert summed_divergence(ours, Scores(*every[:3]), temperature, rows, losses).item() == 0
    empty = ours.of_rows(slice(0)), theirs.of_rows(slice(0))
    assert summed_divergence(*empty, temperature, rows, losses).item() == 0
    with torch.no_grad():
        assert summed_divergence(ours, theirs, temperature, rows, losses).item() == found.item()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_that_pad_the_vocabulary_have_no_part_in_the_soft_loss(
    dtype: torch.dtype, temperature: float
) -> None:
    draw = torch.Generator().manual_seed(1)
    shapes = [(5, 4), (9, 4), (9,)] * 2
    every = [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]
    ours, theirs = Scores(*(one.requires_grad_() for one in every[:3])), Scores(*every[3:])
    expected = summed_divergence(ours, theirs, temperature)

    def padded(scores: Scores) -> Scores:
        states, weight, bias, _ = scores
        more = torch.full((3, 4), 5.0, dtype=dtype), torch.full((3,), 9.0, dtype=dtype)
        tables = [torch.cat(pair) for pair in zip((weight, bias), more, strict=True)]
        return Scores(states, *(each.detach().requires_grad_() for each in tables), entries=9)

    wide = padded(ours)
    found = summed_divergence(wide, padded(theirs), temperature)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    _, of_weight, of_bias = torch.autograd.grad(found, wide[:3])
    assert of_weight[:9].any() and not of_weight[9:].any() and not of_bias[9:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_soft_loss_in_16_bits_is_as_near_to_the_truth_as_torch(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)
    shapes = [(40, 48), (700, 48), (700,)] * 2
    every = [(torch.randn(shape, generator=draw) * 0.3).to(dtype) for shape in shapes]

    def gradients(loss: Any, wide: torch.dtype) -> list[Tensor]:
        ours = Scores(*(one.to(wide).requires_grad_() for one in every[:3]))
        theirs = Scores(*(one.to(wide) for one in every[3:]))
        return list(torch.autograd.grad(8 * loss(ours, theirs, 2.0), ours[:3]))

    def by_torch(ours: Scores, theirs: Scores, temperature: float) -> Tensor:
        logs = [
            torch.log_softmax(scores.computed() / temperature, 1).double()
            for scores in (ours, theirs)
        ]
        divergence = functional.kl_div(*logs, reduction="sum", log_target=True)
        return temperature**2 * divergence

    truth = gradients(by_torch, torch.float64)
    for ours, theirs, expected in zip(
        gradients(summed_divergence, dtype), gradients(by_torch, dtype), truth, strict=True
    ):
        assert ours.dtype == dtype
        errors = [float((one.double() - expected).norm()) for one in (ours, theirs)]
        assert errors[0] <= 1.1 * errors[1]


def test_cosine_loss_is_of_the_counted_tokens() -> None:
    student = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    teacher = torch.tensor([[[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [-9.0, 1.0]]])
    assert cosine_loss(student, teacher, torch.tensor([[1, 1, 1, 0]])).item() == pytest.approx(
        0 + 1 + 2
    )


@pytest.mark.parametrize("soft_over", ["tokens", "masked_tokens"])
def test_the_sums_are_those_of_the_losses(soft_over: Any) -> None:
    objective = distillation(soft_over=soft_over)
    made = batch([0, 1, 2, 3])
    assert made.attention is not None  # some blocks are padded
    found = sums(objective, made)
    teacher = objective._teacher[0]
    states = [
        plain.roberta(made.inputs, attention_mask=made.attention).last_hidden_state
        for plain in (objective.model, teacher.model)
    ]
    scores = [
        plain.lm_head(hidden)
        for plain, hidden in zip((objective.model, teacher.model), states, strict=True)
    ]
    masked = [each.flatten(0, 1)[made.positions] for each in scores]
    soft = (
        masked if soft_over == "masked_tokens" else [each[made.attention == 1] for each in scores]
    )
    softened = [softmax(each.detach().double().numpy() / 3.0, 1) for each in soft]
    ours, theirs = (hidden[made.attention == 1] for hidden in states)
    expected = [
        functional.cross_entropy(masked[0], made.labels, reduction="sum"),
        torch.tensor(9.0 * rel_entr(softened[1], softened[0]).sum(), dtype=torch.float32),
        (1 - functional.cosine_similarity(ours, theirs)).sum(),
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert [(part.name, part.over, part.weight) for part in objective.loss_terms()] == [
        ("loss_sum", "masked_tokens", 2.0), ("soft_loss_sum", soft_over, 5.0), ("cosine_loss_sum", "tokens", 1.0),
    ]  # fmt: skip
    alone = MaskedLanguageModel(objective.model)(
        made.inputs, made.attention, made.positions, made.labels
    )
    assert found[0].item() == pytest.approx(alone.item(), rel=1e-5)


def test_the_sums_of_parts_of_a_batch_add_up_and_an_empty_part_adds_nothing() -> None:
    objective = distillation()
    whole, parts = batch([0, 1, 2, 3, 4]), [batch([0, 1]), batch([2, 3, 4])]
    torch.testing.assert_close(
        sums(objective, whole), sum(sums(objective, part) for part in parts), rtol=1e-4, atol=1e-4
    )
    empty = sums(objective, batch([]))
    assert empty.tolist() == [0, 0, 0]
    empty.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in objective.parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    objective = distillation(4)
    start_from_teacher(objective.model, objective._teacher[0].model)
    mlm, soft, cosine = sums(objective, batch([0, 1, 2]))
    assert (
        mlm > 1
        and soft.item() == pytest.approx(0, abs=1e-5)
        and cosine.item() == pytest.approx(0, abs=1e-4)
    )


def test_padding_can_be_left_out() -> None:
    made = [0, 1, 2, 3]
    in_rows = distillation(attention="varlen")
    torch.testing.assert_close(
        sums(in_rows, row(made)), sums(distillation(), batch(made)), rtol=1e-4, atol=1e-4
    )
    assert sums(in_rows, row([])).tolist() == [0, 0, 0]


def test_the_teacher_is_no_part_of_the_student() -> None:
    objective = distillation().train()
    teacher = objective._teacher[0]
    assert not teacher.training and objective.training
    names = {f"model.{name}" for name, _ in objective.model.named_parameters()}
    assert {name for name, _ in objective.named_parameters()} == names
    sums(objective, batch([0, 1])).sum().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(
        p.grad is not None and p.grad.any() for p in objective.model.roberta.encoder.parameters()
    )


# ----------------------------------------------------------------------------------- who is refused


def section(**changes: Any) -> ModelConfig:
    return model(hidden=16, feed_forward=24, positions=12, layers=4, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A teacher as a Hugging Face folder."""
    new_model(roberta_config(section(), SpecialTokens.of(Tokenizer(WORDS))), 1).save_pretrained(
        tmp_path / "teacher"
    )
    save_vocabulary(WORDS, tmp_path / "teacher")
    return tmp_path / "teacher"


def teacher_for(folder: Path, student: ModelConfig, encoder: Tokenizer | None = None) -> Any:
    return open_teacher(
        find_model(InputPath(str(folder), folder), "distillation.teacher"),
        student,
        encoder or Tokenizer(WORDS),
    )


def test_a_teacher_is_read_as_it_is_without_dropout(folder: Path) -> None:
    made = teacher_for(
        folder, section().model_copy(update={"layers": 2, "dropout": 0.1, "attention_dropout": 0.1})
    )
    expected = new_model(
        roberta_config(section(), SpecialTokens.of(Tokenizer(WORDS))), 1
    ).state_dict()
    assert made.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in made.state_dict().items())
    assert not made.training and not any(p.requires_grad for p in made.parameters())
    assert made.config.hidden_dropout_prob == made.config.attention_probs_dropout_prob == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 32}, "model.hidden: 16 there, 32 in the config"),
        ({"feed_forward": 48}, "model.feed_forward: 24 there, 48 in the config"),
        ({"heads": 4}, "model.heads: 2 there, 4 in the config"),
        ({"layers": 5}, "4 layers there; expected model.layers of as many at most, found 5"),
        ({"positions": 14}, "model.positions: 12 there, 14 in the config"),
        ({"positions": 10}, "model.positions: 12 there, 10 in the config"),
    ],
)
def test_a_teacher_of_another_shape_is_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as found:
        teacher_for(folder, section().model_copy(update=changes))
    assert message in str(found.value) and str(found.value).startswith("distillation.teacher: ")
    assert "layers: 4 there" not in str(found.value)


def test_a_teacher_of_another_vocabulary_is_refused(folder: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"263 tokens there, 262 in the data's vocabulary.*set tokenizer.import",
    ):
        teacher_for(folder, section(), Tokenizer(lay_out([("t", "h")])))


def test_a_teacher_with_pieces_of_text_is_told_the_way_round(tmp_path: Path) -> None:
    small_checkpoints.unigram(tmp_path)
    page = section().model_copy(update={"hidden": 32, "feed_forward": 64, "positions": 42})
    with pytest.raises(UserError, match=r"Unigram .*model\.init_from\), and let that run teach"):
        teacher_for(tmp_path, page)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_no_token_has_are_left_out_of_a_teacher(tmp_path: Path, tied: bool) -> None:
    size = len(WORDS.ids)
    page = section().model_copy(update={"tied_head": tied})
    vocabulary = SpecialTokens.of(Tokenizer(WORDS))._replace(size=320)
    source = new_model(roberta_config(page, vocabulary), 1).eval()
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    source.save_pretrained(tmp_path, state_dict=state)
    save_vocabulary(WORDS, tmp_path)

    made = teacher_for(tmp_path, page)
    ids = torch.tensor([[0, 30, 100, 2]])
    assert torch.equal(made(ids).logits, source(ids).logits[:, :, :size])
    student = new_model(roberta_config(page, SpecialTokens.of(Tokenizer(WORDS))), 2)
    start_from_teacher(student, made)
    assert torch.equal(student.lm_head.bias, made.lm_head.bias)


def test_a_teacher_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^distillation.teacher: nothing: not there"):
        find_model(InputPath("nothing", tmp_path), "distillation.teacher")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.init_from=elsewhere", "model.init_from with distillation.teacher"),
        ("data.format=segment_pair", "data.format = segment_pair with distillation"),
        ("distillation={teacher: t, soft: 0, mlm: 0, cosine: 0}", "soft, mlm and cosine are all 0"),
        ("distillation.temperature=0", "distillation.temperature = 0"),
        ("distillation.soft=-1", "distillation.soft = -1"),
        ("distillation.soft_over=all", "distillation.soft_over"),
        ("distillation.layers=[0]", "names 1, model.layers = 4: expected one of the teacher's for"),
    ],
)
def test_a_page_that_contradicts_itself_is_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_experiment("tiny", ["distillation.teacher=somewhere", override])


def test_the_place_of_the_teacher_is_no_part_of_the_recipe() -> None:
    assert (
        DistillationConfig(teacher="here").recipe() == DistillationConfig(teacher="there").recipe()
    )
    before = {"temperature": 2.0, "soft": 5.0, "mlm": 2.0, "cosine": 1.0}
    assert DistillationConfig(teacher="here").recipe() == {**before, "soft_over": "tokens"}
    masked = DistillationConfig(teacher="here", soft_over="masked_tokens")
    assert masked.recipe() == before  # a student that was begun when there was no other goes on
