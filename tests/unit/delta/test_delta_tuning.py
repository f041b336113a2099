"""Training: real learning, the same bits for the same seed, and a base that nothing changes."""

import dataclasses
import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sklearn.metrics import precision_recall_fscore_support
from transformers import Trainer

from robustly import UserError
from robustly.delta.attachment import trained
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment, load_delta
from robustly.delta.predictor import Judgement, Predictor
from robustly.delta.stage import make_delta
from robustly.delta.tasks.data import Example, TaskData, read
from robustly.delta.tasks.heads.texts import TextHead
from robustly.delta.tuning import trainer as delta_trainer
from robustly.delta.tuning.seeds import attached, mean_and_deviation, score, tune
from robustly.delta.tuning.trainer import adamw, batches, trains_in_bf16

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
    assert scores[1].by_label == again.score.by_label
    guesses = again.predictor.predict([example.texts[0] for example in data.test])
    truth = [example.label for example in data.test]
    precision, recall, _, tested = precision_recall_fscore_support(
        truth, guesses, labels=data.labels, zero_division=0
    )
    assert [each["label"] for each in again.score.by_label] == list(data.labels)
    for name, expected in (("tested", tested), ("recall", recall), ("precision", precision)):
        found = [each[name] or 0 for each in again.score.by_label]
        assert found == pytest.approx(list(expected))
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
        config = make_config("delta.task.max_length=null", f"delta.methods={methods}")
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

    def planned_judge(
        self: Predictor, examples: Sequence[Example], *rest: Any, **more: Any
    ) -> Judgement:
        if examples is not dev.dev:
            return judge(self, examples, *rest, **more)
        by_epoch.append(torch.stack(self.logits_of(examples)))
        return Judgement({"accuracy": next(planned), "loss": 1.0}, [], [], [])

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
    config = make_config(
        "optim.peak_lr=1e-9", "optim.epochs=20", "optim.patience=2", "delta.task.dev=dev.jsonl"
    )
    tuned = tune(base, config, dev, seed=3)
    assert len([line for line in tuned.lines if "dev_accuracy" in line]) == 3


def test_patience_without_dev_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(
        UserError, match=r"optim\.patience = 2: .*delta\.task\.dev, which is missing"
    ):
        make_config("optim.patience=2")


@pytest.mark.parametrize(
    "method", ["{name: lora, dropout: 0}", "{name: adalora}", "{name: bitfit}"]
)
@pytest.mark.parametrize("kind", ["classification", "tokens"])
def test_micro_batches_change_no_more_than_the_last_bits(
    place: Path, tmp_path: Path, method: str, kind: str
) -> None:
    """Without dropout: the loss of each update and the weights; the micro-batches have unequal
    numbers of targets."""
    still = tmp_path / "base"
    shutil.copytree(place / "base", still)
    settings = json.loads((still / "config.json").read_text())
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps({**settings, **dropout}))
    for name, lines in (("a", 28), ("c", 9)):
        write_tags(tmp_path / f"{name}.jsonl", name, lines)

    for name in ("train", "test"):
        shutil.copy(place / f"{name}.jsonl", tmp_path)

    raw = yaml.safe_load((place / "letters.yaml").read_text())
    tags = {"kind": "tokens", "train": "a.jsonl", "test": "c.jsonl", "max_length": 40}
    task = tags if kind == "tokens" else {**raw["delta"]["task"], "examples": 28}
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump({**raw, "delta": {**raw["delta"], "task": task}}))
    changes = [f"delta.methods=[{method}]", "optim.epochs=1", "optim.batch_size=7"]
    one, other = (
        tune(Base.load(still), config, read(config.delta.task), 3)
        for config in (
            load_delta(path, changes),
            load_delta(path, [*changes, "optim.micro_batch=3"]),
        )
    )
    assert len(one.lines) == 4
    assert [line["loss"] for line in other.lines] == pytest.approx(
        [line["loss"] for line in one.lines], rel=2e-4
    )
    # Without the keys' biases: their gradient is 0 but for rounding, which Adam makes large.
    weights, others = (
        {
            name: parameter.detach().double().sum().item()
            for name, parameter in trained(tuned.predictor.model).items()
            if not name.endswith("key.bias")
        }
        for tuned in (one, other)
    )
    assert others == pytest.approx(weights, rel=1e-3, abs=1e-3)


def write_tags(path: Path, name: str, lines: int) -> None:
    """Sentences of 1 to 9 words."""
    rows = []
    for number in range(lines):
        words = [
            f"{'xyz'[(number + place) % 3]}{place}{name}" for place in range(1 + number * 7 % 9)
        ]
        tags = ["B-P" if word[0] == "x" else "O" for word in words]
        rows.append(json.dumps({"words": words, "tags": tags}) + "\n")

    path.write_text("".join(rows))


def test_another_micro_batch_is_the_same_recipe(make_config: MakeConfig) -> None:
    config = make_config("optim.micro_batch=2")
    assert config.optim.recipe() == make_config().optim.recipe()


@pytest.mark.parametrize(
    "methods",
    ["[{name: lora}, {name: bitfit}]", "[{name: adapter}, {name: dora}]", "[{name: p_tuning}]"],
)
def test_weight_decay_spares_what_transformers_spares(
    base: Base, data: TaskData, make_config: MakeConfig, methods: str
) -> None:
    model = attached(base, make_config(f"delta.methods={methods}"), data, seed=1).model
    decayed = set(Trainer.get_decay_parameter_names(None, model)) & trained(model).keys()
    groups = adamw(model, make_config("optim.weight_decay=0.3").optim).param_groups
    by_decay = {
        decay: {
            id(p) for group in groups if group["weight_decay"] == decay for p in group["params"]
        }
        for decay in (0.3, 0.0)
    }
    for name, parameter in trained(model).items():
        assert id(parameter) in by_decay[0.3 if name in decayed else 0.0]
    assert decayed != trained(model).keys()


def test_bf16_trains_with_weights_in_fp32(
    base: Base, data: TaskData, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = dataclasses.replace(data, dev=data.test[:9])
    seen = []
    logits = type(attached(base, make_config(), data, 1).head).logits
    monkeypatch.setattr(
        "robustly.delta.tasks.heads.texts.TextHead.logits",
        lambda *given: seen.append((given[1].training, (out := logits(*given)).dtype)) or out,
    )
    plain = tune(base, make_config(*SHORT), dev, seed=3)
    assert {dtype for _, dtype in seen} == {torch.float32}
    seen.clear()
    tuned = tune(base, make_config(*SHORT, "optim.precision=bf16"), dev, seed=3)
    assert seen[0] == (True, torch.bfloat16) and (False, torch.bfloat16) in seen
    assert seen[-1] == (False, torch.float32)  # the test file, as the delta is used
    assert {p.dtype for p in tuned.predictor.model.parameters()} == {torch.float32}
    losses, others = ([line["loss"] for line in each.lines] for each in (plain, tuned))
    assert losses != others and others == pytest.approx(losses, rel=0.03)


def test_auto_precision(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    auto, cpu, gpu = make_config().optim, torch.device("cpu"), torch.device("cuda")
    for amx, width, expected in ((True, 768, True), (True, 128, False), (False, 768, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda amx=amx: {"amx_bf16": amx})
        assert trains_in_bf16(auto, cpu, width) == expected

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert trains_in_bf16(auto, gpu, 128)
    assert not trains_in_bf16(make_config("optim.precision=fp32").optim, gpu, 768)
    assert trains_in_bf16(make_config("optim.precision=bf16").optim, cpu, 8)


def test_the_loss_is_the_mean_of_each_examples(
    base: Base, data: TaskData, make_config: MakeConfig
) -> None:
    predictor = attached(base, make_config(), data, seed=1)
    judgement = predictor.judge(data.test)
    log_shares = torch.stack(predictor.logits_of(data.test)).log_softmax(1)
    losses = [
        -row[data.labels.index(example.label)].item()
        for row, example in zip(log_shares, data.test, strict=True)
    ]
    assert judgement.scores["loss"] == pytest.approx(statistics.fmean(losses), rel=1e-5)
    assert sorted(place for places, _ in judgement.batches for place in places) == list(range(90))


def test_a_seed_builds_one_model_draws_once_and_encodes_dev_once(
    base: Base, data: TaskData, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = dataclasses.replace(data, dev=data.test[:9])
    built, drawn, encoded = [], [], []
    with_head, encode, draw = Base.with_head, TextHead.encode, delta_trainer.draw
    monkeypatch.setattr(
        Base, "with_head", lambda *given, **more: built.append(1) or with_head(*given, **more)
    )
    monkeypatch.setattr(
        TextHead, "encode", lambda head, some: encoded.append(len(some)) or encode(head, some)
    )
    monkeypatch.setattr(delta_trainer, "draw", lambda *given: drawn.append(1) or draw(*given))
    tuned = tune(base, make_config("optim.epochs=3"), dev, seed=3)
    assert (built, drawn, encoded) == ([1], [1], [60, 9, 90])
    assert tuned.examples == 60


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


@pytest.mark.processes
@pytest.mark.usefixtures("warm_workers")
def test_seeds_side_by_side_are_those_one_after_the_other(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    make_delta(make_config("optim.epochs=1", "name=one"))
    make_delta(make_config("optim.epochs=1", "name=two", "delta.processes=2"))
    one, two = (tmp_path / "deltas" / name for name in ("one", "two"))
    assert (one / "metrics.jsonl").read_text() == (two / "metrics.jsonl").read_text()
    assert (one / "delta.safetensors").read_bytes() == (two / "delta.safetensors").read_bytes()
    assert len(json.loads((two / "scores.json").read_text())["seeds"]) == 2
