"""Training: real learning, the same bits for the same seed, and a base that nothing changes."""

import statistics
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from delta.base import Base
from delta.config import DeltaPage
from delta.task import TaskData
from delta.tuning import Score, _batches, attached, mean_and_deviation, score, tune
from robustly import UserError

MakePage = Callable[..., DeltaPage]
SHORT = ("schedule.updates=5", "schedule.warmup=1")


def test_it_learns(base: Base, data: TaskData, make_page: MakePage) -> None:
    before = base.fingerprint
    tuned = tune(base, make_page(), data, seed=3)
    assert tuned.score.accuracy > 0.7  # chance is 1/3, with 90 texts 0.05 of deviation
    assert len(tuned.losses) == 60
    assert statistics.fmean(tuned.losses[:3]) > 0.9 > 0.6 > statistics.fmean(tuned.losses[-3:])
    texts = [example.text for example in data.test]
    guesses = tuned.classifier.predict(texts)
    right = sum(guess == example.label for guess, example in zip(guesses, data.test, strict=True))
    assert tuned.score.accuracy == right / 90
    del base.__dict__["fingerprint"]  # computed anew
    assert base.fingerprint == before
    inside = dict(tuned.classifier.model.named_parameters())
    for name, parameter in base.model.named_parameters():
        *path, leaf = name.split(".")
        wrapped = "base_layer." if path[-1] in ("query", "value") else ""
        assert torch.equal(inside[f"base_model.model.roberta.{'.'.join(path)}.{wrapped}{leaf}"], parameter)


def test_the_same_seed_repeats_to_the_bit_and_another_differs(base: Base, data: TaskData, make_page: MakePage) -> None:
    page = make_page(*SHORT)
    texts = [example.text for example in data.test[:10]]
    torch.manual_seed(5)
    one = tune(base, page, data, seed=1)
    torch.manual_seed(6)  # nobody else's random state matters
    before = torch.get_rng_state()
    again = tune(base, page, data, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    other = tune(base, page, data, seed=2)
    assert one.losses == again.losses
    assert torch.equal(one.classifier.logits(texts), again.classifier.logits(texts))
    assert one.losses != other.losses


def test_scores_are_of_each_seed(base: Base, data: TaskData, make_page: MakePage) -> None:
    page = make_page(*SHORT)
    scores = score(base, page, data)
    assert [one.seed for one in scores] == [3, 4]
    again = tune(base, page, data, seed=4)
    assert scores[1].confusion == again.score.confusion
    guesses = again.classifier.predict([example.text for example in data.test])
    pairs = Counter((example.label, guess) for example, guess in zip(data.test, guesses, strict=True))
    assert again.score.confusion == [[pairs[truth, guess] for guess in data.labels] for truth in data.labels]
    assert again.score.confusion != [list(column) for column in zip(*again.score.confusion, strict=True)]
    assert mean_and_deviation([_score(0.5), _score(0.7)]) == pytest.approx((0.6, 0.2 / 2**0.5))
    assert mean_and_deviation([_score(0.5)]) == (0.5, None)


def _score(accuracy: float) -> Score:
    return Score(0, accuracy, 0.0, [], 0.0)


def test_a_rate_that_blows_up(base: Base, data: TaskData, make_page: MakePage) -> None:
    page = make_page("optim.peak_lr=1e30", "optim.clip_norm=0")
    with pytest.raises(UserError, match=r"the loss of update .* is nan; lower optim.peak_lr"):
        tune(base, page, data, seed=1)


def test_every_epoch_sees_every_example_once_in_another_order(make_page: MakePage) -> None:
    page = make_page("schedule.updates=10", "optim.batch_size=6")
    places = [place for batch in _batches(20, page, seed=1) for place in batch]
    epochs = [places[start : start + 20] for start in range(0, 60, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_scores_do_not_depend_on_who_shares_the_batch(base: Base, data: TaskData, make_page: MakePage) -> None:
    classifier = attached(base, make_page(), data.labels, seed=1)
    texts = ["a", "a much longer text than the others", "some words", *(example.text for example in data.test)]
    together = classifier.logits(texts)
    alone = torch.cat([classifier.logits([text]) for text in texts])
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.std(0).min() > 1e-3  # texts differ, so the order is tested


def test_texts_are_cut_to_what_the_base_has_positions_for(base: Base, data: TaskData, make_page: MakePage) -> None:
    longest = attached(base, make_page("task.max_length=1000"), data.labels, seed=1)
    assert longest.max_length == 40
    (row,) = longest.encode(["x" * 100])
    assert (len(row), row[0], row[-1]) == (40, 0, 2)
    assert longest.logits(["x" * 100]).shape == (1, 3)
    assert attached(base, make_page("task.max_length=7"), data.labels, seed=1).encode(["x" * 100])[0][-1] == 2
    assert longest.encode(["ab"]) == [[0, *base.tokenizer.encode_documents(["ab"])[0].tolist(), 2]]
