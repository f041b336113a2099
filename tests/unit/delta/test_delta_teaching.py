"""A task is distilled: the loss of every kind of task against scipy's, what a student learns, who
may not teach."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from scipy.special import rel_entr, softmax
from torch import Tensor
from torch.nn import functional

from robustly import UserError
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.stage import make_delta, recipe
from robustly.delta.storage.saving import load
from robustly.delta.tasks.config import Task
from robustly.delta.tasks.data import TaskData, read
from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads import EncodedExample, TaskHead, task_head
from robustly.delta.tuning.trainer import DeltaTrainer

MakeConfig = Callable[..., DeltaExperiment]
LABELS = ("early", "late", "middle")
TEMPERATURE = 3.0


def head(base: Base, kind: str, labels: tuple[str, ...] = LABELS, **keys: Any) -> TaskHead:
    config = {"kind": kind, "train": "a.jsonl", "test": "b.jsonl", **keys}
    task = TypeAdapter(Task).validate_python(config)
    return task_head(task, labels, base.tokenizer, 30, base.tokenizer.vocab_size)


def divergence(ours: Tensor, theirs: Tensor) -> float:
    """By scipy, of the softmax of the last dimension, summed."""
    softened: list[NDArray[np.float64]] = [
        softmax(each.double().numpy() / TEMPERATURE, -1) for each in (ours, theirs)
    ]
    return float(rel_entr(softened[1], softened[0]).sum() * TEMPERATURE**2)


def soft_losses(of: TaskHead, rows: list[EncodedExample], ours: Tensor, theirs: Tensor) -> Tensor:
    words = of.decisions(theirs, rows)
    taught = [replace(row, taught=word) for row, word in zip(rows, words, strict=True)]
    return of.soft_losses(ours, taught, TEMPERATURE)


def logits(*shape: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)


def test_of_labels(base: Base) -> None:
    of = head(base, "classification")
    ours, theirs = logits(2, 3)
    found = soft_losses(of, of.encode([Example(("abc",)), Example(("wxyz",))]), ours, theirs)
    expected = [divergence(*pair) for pair in zip(ours, theirs, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_of_several_labels(base: Base) -> None:
    """A yes or no to each."""
    of = head(base, "multi_label")
    ours, theirs = logits(2, 3)
    found = soft_losses(of, of.encode([Example(("abc",)), Example(("wxyz",))]), ours, theirs)
    yes = [torch.stack([each, torch.zeros_like(each)], -1) for each in (ours, theirs)]
    expected = [divergence(*pair) for pair in zip(*yes, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_of_tags(base: Base) -> None:
    """Of the words that are there and not cut off."""
    of = head(base, "tokens")
    rows = of.encode([Example(("ab", "cd", "x" * 40, "y")), Example(("ab",))])
    ours, theirs = logits(2, 4, 3)
    kept = [[bool(first) for first in row.firsts] for row in rows]
    assert kept == [[True, True, True, False], [True]]
    found = soft_losses(of, rows, ours, theirs)
    expected = [divergence(ours[0, :3], theirs[0, :3]), divergence(ours[1, :1], theirs[1, :1])]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_of_choices(base: Base) -> None:
    of = head(base, "multiple_choice", ())
    rows = of.encode(
        [Example(("ab",), choices=("a", "b", "c")), Example(("ab",), choices=("a", "b"))]
    )
    ours, theirs = logits(2, 3)
    found = soft_losses(of, rows, ours, theirs)
    expected = [divergence(ours[0], theirs[0]), divergence(ours[1, :2], theirs[1, :2])]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_of_spans(base: Base) -> None:
    """Of beginnings and of ends among a window's tokens, in the mean."""
    of = head(base, "span_qa", (), stride=4)
    rows = of.encode([Example(("why?", "abcd " * 8)), Example(("why?", "ab"))])
    most = max(len(row.ids) for row in rows)
    longest = max(map(of.length, rows))
    ours, theirs = logits(2, most, longest, 2)
    assert most > 1 and len({len(ids) for row in rows for ids in row.ids}) > 1
    found = soft_losses(of, rows, ours, theirs)
    for number, row in enumerate(rows):
        expected = sum(
            divergence(*(each[number, window, : len(ids), end] for each in (ours, theirs)))
            for window, ids in enumerate(row.ids)
            for end in (0, 1)
        )
        assert found[number].item() == pytest.approx(expected / 2, rel=1e-4)


def test_of_numbers(base: Base) -> None:
    of = head(base, "regression", ())
    ours, theirs = logits(2, 1)
    found = soft_losses(of, of.encode([Example(("abc",)), Example(("wxyz",))]), ours, theirs)
    torch.testing.assert_close(found, (ours - theirs).square().squeeze(1))


def test_a_teacher_that_read_another_part_is_refused(base: Base) -> None:
    of = head(base, "tokens")
    (row,) = of.encode([Example(("ab", "cd"))])
    with pytest.raises(UserError, match=r"decides \(1, 3\) about an example, its student \(2, 3\)"):
        of.soft_losses(torch.zeros(1, 2, 3), [replace(row, taught=torch.zeros(1, 3))], 2.0)


# ------------------------------------------------------------------------------------- the training


@pytest.fixture
def teacher(make_config: MakeConfig) -> Path:
    """A delta that has learnt the task."""
    config = make_config("name=teacher", "delta.seeds=1", "optim.epochs=12")
    make_delta(config)
    return config.folder("delta")


def student(make_config: MakeConfig, place: Path, teacher: Path, *keys: str) -> DeltaExperiment:
    """On another base."""
    own = ("name=student", f"delta.base={place / 'other'}", "delta.seeds=1", "delta.methods=full")
    return make_config(*own, "optim.peak_lr=3e-3", f"delta.teacher.delta={teacher}", *keys)


def test_the_loss_is_that_of_labels_and_teacher(
    make_config: MakeConfig, place: Path, teacher: Path, data: TaskData
) -> None:
    given = ("delta.teacher.temperature=3", "delta.teacher.hard=0.25", "delta.teacher.soft=2")
    config = student(make_config, place, teacher, *given)
    other = Base.load(place / "other")
    trainer = DeltaTrainer(other, config, data, seed=3)
    _, batch = next(trainer.batches())
    number = {id(row): place for place, row in enumerate(trainer.rows)}
    examples = [trainer.examples[number[id(row)]] for row in batch]
    texts = [example.texts[0] for example in examples]
    ours = torch.stack(trainer.predictor.logits(texts))
    theirs = torch.stack(load(place / "base", teacher).logits(texts))
    targets = torch.tensor([data.labels.index(example.label) for example in examples])
    expected = 0.25 * functional.cross_entropy(ours, targets).item()
    expected += 2 * divergence(ours, theirs) / len(texts)
    assert trainer._backward(batch) == pytest.approx(expected, rel=1e-4)


def test_a_student_learns_from_its_teacher_alone(
    make_config: MakeConfig, place: Path, teacher: Path, tmp_path: Path
) -> None:
    """Where the labels are drawn at random, and count for nothing."""
    draw = random.Random(1)
    lines = [json.loads(line) for line in (place / "train.jsonl").read_text().splitlines()]
    rows = [{**line, "label": draw.choice(LABELS)} for line in lines]
    (tmp_path / "random.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = (
        f"delta.task.train={tmp_path / 'random.jsonl'}",
        "delta.teacher.hard=0",
        "delta.teacher.soft=1",
    )
    config = student(make_config, place, teacher, *keys, "optim.epochs=12")
    made = make_delta(config)
    texts = [example.texts[0] for example in read(config.delta.task).test]
    theirs = load(place / "base", teacher).predict(texts)
    ours = load(place / "other", config.folder("delta")).predict(texts)
    alike = np.mean([one == other for one, other in zip(ours, theirs, strict=True)])
    assert alike > 0.8 and made.counts["accuracy"] > 0.7  # by chance 0.33, by the labels no more
    assert "| teacher: temperature | 2.0 |" in (config.folder("delta") / "README.md").read_text()


def test_the_teacher_is_a_part_of_the_recipe(
    make_config: MakeConfig, place: Path, teacher: Path, data: TaskData
) -> None:
    found = recipe(student(make_config, place, teacher), data)["teacher"]
    hash = json.loads((teacher / "manifest.json").read_text())["hash"]
    assert found == {"temperature": 2.0, "soft": 0.5, "hard": 0.5, "delta": hash}
    assert "teacher" not in recipe(make_config(), data)


def test_who_may_not_teach(
    make_config: MakeConfig, place: Path, teacher: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (place / "train.jsonl").read_text().splitlines()]
    renamed = [{**row, "label": row["label"].replace("late", "last")} for row in rows]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    both = [f"delta.task.{part}={tmp_path / 'two.jsonl'}" for part in ("train", "test")]
    both[1] = "delta.task.test=0.2"
    with pytest.raises(
        UserError, match=r"not those of the training file; they differ in last, late"
    ):
        make_delta(student(make_config, place, teacher, *both))
    with pytest.raises(UserError, match=r"of the kind classification, the config's is regression"):
        numbers = [{**row, "label": float(len(row["text"]))} for row in rows]
        (tmp_path / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbers))
        keys = [f"delta.task.train={tmp_path / 'numbers.jsonl'}", "delta.task.test=0.2"]
        make_delta(student(make_config, place, teacher, *keys, "delta.task.kind=regression"))
    with pytest.raises(UserError, match=r"delta\.teacher\.delta: nowhere"):
        make_delta(student(make_config, place, Path("nowhere")))
    with pytest.raises(UserError, match="soft is 0"):
        student(make_config, place, teacher, "delta.teacher.soft=0")
