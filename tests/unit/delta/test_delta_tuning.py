"""Training: real learning, the same bits for the same seed, and a base that nothing changes."""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from robustly import UserError
from robustly.delta.attachment import trained
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.data_parallel import Ranks
from robustly.delta.predictor import Judgement, Predictor
from robustly.delta.tasks.data import Example, TaskData
from robustly.delta.trainer import batches
from robustly.delta.tuning import attached, mean_and_deviation, score, tune

MakeConfig = Callable[..., DeltaExperiment]
SHORT = ("optim.epochs=0.67", "optim.warmup=0.2")  # 5 updates


def test_it_learns(base: Base, data: TaskData, make_config: MakeConfig) -> None:
    before = base.fingerprint
    tuned = tune(base, make_config(), data, seed=3)
    assert tuned.score.scores["accuracy"] > 0.7  # chance is 1/3, with 90 texts 0.05 of deviation
    losses = [line["loss"] for line in tuned.lines]
    assert len(losses) == 60
    assert statistics.fmean(losses[:3]) > 0.9 > 0.6 > statistics.fmean(losses[-3:])
    guesses = tuned.predictor.predict([example.texts[0] for example in data.test])
    right = sum(guess == example.label for guess, example in zip(guesses, data.test, strict=True))
    assert tuned.score.scores["accuracy"] == pytest.approx(right / 90)
    del base.__dict__["fingerprint"]  # computed anew
    assert base.fingerprint == before
    inside = dict(tuned.predictor.model.named_parameters())

    for name, parameter in base.model.roberta.named_parameters():
        *path, leaf = name.split(".")
        wrapped = "base_layer." if path[-1] in ("query", "value") else ""
        assert torch.equal(inside[f"roberta.{'.'.join(path)}.{wrapped}{leaf}"], parameter)


def test_the_same_seed_repeats_to_the_bit_and_another_differs(
    base: Base, data: TaskData, make_config: MakeConfig
) -> None:
    config = make_config(*SHORT)
    texts = [example.texts[0] for example in data.test[:10]]
    torch.manual_seed(5)
    one = tune(base, config, data, seed=1)
    torch.manual_seed(6)  # nobody else's random state matters
    before = torch.get_rng_state()
    again = tune(base, config, data, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    other = tune(base, config, data, seed=2)
    assert one.lines == again.lines
    assert torch.equal(
        torch.stack(one.predictor.logits(texts)), torch.stack(again.predictor.logits(texts))
    )
    assert one.lines != other.lines


def test_scores_are_of_each_seed(base: Base, data: TaskData, make_config: MakeConfig) -> None:
    config = make_config(*SHORT)
    scores = score(base, config, data)
    assert [one.seed for one in scores] == [3, 4]
    again = tune(base, config, data, seed=4)
    assert scores[1].confusion == again.score.confusion
    guesses = again.predictor.predict([example.texts[0] for example in data.test])
    pairs = Counter(
        (example.label, guess) for example, guess in zip(data.test, guesses, strict=True)
    )
    assert again.score.confusion == [
        [pairs[truth, guess] for guess in data.labels] for truth in data.labels
    ]
    assert again.score.confusion != [
        list(column) for column in zip(*again.score.confusion, strict=True)
    ]
    assert mean_and_deviation([0.5, 0.7]) == pytest.approx((0.6, 0.2 / 2**0.5))
    assert mean_and_deviation([0.5]) == (0.5, None)


def test_a_rate_that_blows_up(base: Base, data: TaskData, make_config: MakeConfig) -> None:
    config = make_config("optim.peak_lr=1e30", "optim.clip_norm=0")
    with pytest.raises(UserError, match=r"the loss of update .* is nan; lower optim.peak_lr"):
        tune(base, config, data, seed=1)


def test_epochs_see_every_example_once_in_another_order_and_batches_are_of_like_length() -> None:
    lengths = [5 + 7 * place % 41 for place in range(48)]
    # Windows of 8 batches are epochs here.
    made = list(batches(lengths, size=6, updates=24, seed=1))
    epochs = [
        [place for batch in made[first : first + 8] for place in batch] for first in (0, 8, 16)
    ]
    assert all(sorted(epoch) == list(range(48)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    spans = [max(lengths[p] for p in batch) - min(lengths[p] for p in batch) for batch in made]
    assert max(spans) < 12  # of 40
    means = [sum(lengths[p] for p in batch) for batch in made[:8]]
    assert means != sorted(means) and means != sorted(means, reverse=True)
    assert [len(batch) for batch in batches(lengths, 6, 11, 1)] == [6] * 11


def test_scores_do_not_depend_on_who_shares_the_batch(
    base: Base, data: TaskData, make_config: MakeConfig
) -> None:
    predictor = attached(base, make_config(), data, seed=1)
    texts = [
        "a",
        "a much longer text than the others",
        "some words",
        *(example.texts[0] for example in data.test),
    ]
    together = torch.stack(predictor.logits(texts))
    alone = torch.stack([predictor.logits([text])[0] for text in texts])
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.std(0).min() > 1e-3  # texts differ, so the order is tested


def test_texts_are_cut_to_what_the_base_and_the_prompt_leave(
    base: Base, data: TaskData, make_config: MakeConfig
) -> None:
    for methods, longest in (("[{name: lora}]", 40), ("[{name: prompt, tokens: 7}]", 33)):
        config = make_config("delta.task.max_length=1000", f"delta.methods={methods}")
        predictor = attached(base, config, data, seed=1)
        (row,) = predictor.head.encode([Example(("x" * 100,))])
        assert predictor.head.length(row) == longest
        assert predictor.logits(["x" * 100])[0].shape == (3,)


@pytest.mark.parametrize("method", ["lora", "adalora", "prefix", "p_tuning"])
def test_the_delta_of_the_best_epoch_is_kept(
    base: Base,
    data: TaskData,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """Epochs get scores as planned; what is kept gives the logits that the best one gave, to the
    bit."""
    planned, by_epoch = iter([0.2, 0.9, 0.3, 0.9]), []
    dev = dataclasses.replace(data, dev=data.test[:9])
    judge = Predictor.judge

    def planned_judge(self: Predictor, examples: Sequence[Example], ranks: Ranks) -> Judgement:
        if examples is not dev.dev:
            return judge(self, examples, ranks)
        by_epoch.append(torch.stack(self.logits_of(examples)))
        return Judgement({"accuracy": next(planned)}, [])

    monkeypatch.setattr(Predictor, "judge", planned_judge)
    size = "" if method in ("lora", "adalora") else ", tokens: 4"
    tuned = tune(
        base,
        make_config(f"delta.methods=[{{name: {method}{size}}}]", "optim.epochs=4"),
        dev,
        seed=3,
    )
    assert len(by_epoch) == 4 and not torch.equal(by_epoch[1], by_epoch[3])
    assert torch.equal(torch.stack(tuned.predictor.logits_of(dev.dev)), by_epoch[1])
    assert (tuned.score.dev, tuned.score.epoch) == (0.9, pytest.approx(2, abs=0.1))


def test_patience_ends_a_seed(base: Base, data: TaskData, make_config: MakeConfig) -> None:
    dev = dataclasses.replace(data, dev=data.test)
    tuned = tune(
        base, make_config("optim.peak_lr=1e-9", "optim.epochs=20", "optim.patience=2"), dev, seed=3
    )
    assert len([line for line in tuned.lines if "dev_accuracy" in line]) == 3


def test_methods_have_rates_of_their_own(
    base: Base, data: TaskData, make_config: MakeConfig
) -> None:
    config = make_config("delta.methods=[{name: lora}, {name: bitfit, lr: 1e-30}]", *SHORT)
    tuned = tune(base, config, data, seed=3)
    names = trained(tuned.predictor.model)
    start = trained(attached(base, config, data, seed=3).model)
    moved = {name for name in names if (names[name] - start[name]).abs().max() > 1e-12}
    assert moved and not any(
        tuned.predictor.model.delta.method_of.get(name) == "bitfit" for name in moved
    )
    assert {tuned.predictor.model.delta.method_of.get(name, "head") for name in moved} == {
        "lora",
        "head",
    }


def test_several_deltas_on_one_base_share_it(
    place: Path, base: Base, data: TaskData, make_config: MakeConfig
) -> None:
    """Switching is using the other one: the weights of the base are there once, and nobody changes
    them."""
    config = make_config(*SHORT, "delta.methods=[{name: bitfit}]")
    one, other = (tune(base, config, data, seed).predictor for seed in (1, 2))
    texts = [example.texts[0] for example in data.test[:5]]
    before = torch.stack(one.logits(texts))
    assert not torch.equal(torch.stack(other.logits(texts)), before)
    assert torch.equal(torch.stack(one.logits(texts)), before)
    weights = [
        p.model.roberta.encoder.layer[0].attention.self.query.weight.data_ptr()
        for p in (one, other)
    ]
    assert (
        weights == [base.model.roberta.encoder.layer[0].attention.self.query.weight.data_ptr()] * 2
    )
