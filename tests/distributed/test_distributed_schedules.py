"""Schedules beside the learning rate's, through whole runs: resumed, traced and replayed they are the
same to the last bit."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_config import die_after, last_checkpoint
from torch.optim.swa_utils import get_ema_avg_fn
from transformers import RobertaForMaskedLM

from ranks import run_distributed
from robustly import UserError, manifest
from robustly.cli import main
from robustly.experiment import Experiment, load_experiment
from robustly.metrics import read_metrics
from robustly.pretrain import loop, replay
from robustly.pretrain.bad_updates.update_records import SKIPPED
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.checkpoint import AVERAGE
from robustly.pretrain.clock import CLOCK, recorded
from robustly.pretrain.objective import roberta_config
from robustly.pretrain.replay import Replayed
from robustly.pretrain.schedule import average_decay, learning_rate
from robustly.publish.config import PublishConfig
from robustly.publish.publish import _held_out, publish
from robustly.tokenizer import load_tokenizer

pytestmark = pytest.mark.distributed
MakePretraining = Callable[..., Experiment]
OF_THE_MOMENT = set(replay.OF_THE_MOMENT)


def go(rank: int, ranks: int, config: Experiment, end: int | None = None) -> None:
    """Train up to an update; without one, to the end."""
    torch.set_num_threads(1)
    try:
        loop.pretrain(config, rank, rank, ranks, stop_after=end)
    except loop.Stopped:
        assert end is not None


def lines(config: Experiment, name: str = "metrics") -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in OF_THE_MOMENT}
        for line in read_metrics(config.folder("train") / f"{name}.jsonl")
    ]


def assert_same_run(one: Experiment, other: Experiment) -> None:
    """To the bit: every figure, weight and moment."""
    assert lines(one) == lines(other)
    assert lines(one, "evaluations") == lines(other, "evaluations")
    first, second = (last_checkpoint(config.folder("train")) for config in (one, other))
    assert first.files == second.files


def assert_resumed_and_replayed_it_is_the_same(
    make: MakePretraining, into: Path, *changes: str, end: int = 6, ranks: int = 2
) -> Experiment:
    """With dropout: a run that nothing disturbed, one that died after an update and
    went on, and the updates after it again. Returns the first."""
    changes = (*changes, "run.keep_checkpoints=9")
    straight, killed = (make(name, *changes) for name in ("straight", "killed"))
    run_distributed(ranks, go, straight)
    run_distributed(ranks, die_after, killed, end)
    run_distributed(ranks, go, killed)
    assert_same_run(straight, killed)

    path, *overrides = straight._arguments
    chosen, again = Replayed(end, straight.schedule.updates), into / "again"
    replaying = load_experiment(path, [*overrides, *replay.changes(again)])
    replay.lay_out(straight.folder("train"), replaying.folder("train"), chosen)
    run_distributed(ranks, go, replaying, chosen.end)
    found = replay.compare(straight.folder("train"), replaying, chosen)
    assert found.same and not found.tolerance and found.tensors and found.lines
    return straight


@pytest.mark.full
def test_a_masking_rate_that_falls(
    pretraining: MakePretraining, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = assert_resumed_and_replayed_it_is_the_same(
        pretraining,
        tmp_path,
        "masking.initial_probability=0.4",
        "masking.probability=0.1",
    )
    first, *_, last = found = lines(config)
    assert (first["masking_probability"], last["masking_probability"]) == (0.4, 0.1)
    assert (
        sum(len(block["masked"]) for block in traced(config, 7, capfd)) == found[6]["masked_tokens"]
    )


def test_phases_of_other_blocks_and_mixtures(
    pretraining: MakePretraining, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It dies after update 6, in the second phase; the replay goes through the third. An average of
    the weights is kept, and goes on as well."""
    second = "{until: 9, block_length: 64, masking_probability: 0.2, repeat: {corpus.txt: 0.5}}"
    config = assert_resumed_and_replayed_it_is_the_same(
        pretraining,
        tmp_path,
        f"phases=[{{until: 4, block_length: 16, masking_probability: 0.4}}, {second}]",
        "data.block_length=32",
        "optim.average=0.9",
        ranks=1,
    )
    found = lines(config)
    rates = [line["masking_probability"] for line in found]
    assert rates == [0.4] * 4 + [0.2] * 5 + [0.3] * 3
    epochs = [line["epoch"] for line in found]
    assert epochs == sorted(epochs)
    for update, length, batch in ((4, 16, 48), (5, 64, 12), (12, 32, 24)):
        blocks = traced(config, update, capfd)
        assert len(blocks) == batch and max(block["tokens"] for block in blocks) <= length
        masked = sum(len(block["masked"]) for block in blocks)
        assert masked == found[update - 1]["masked_tokens"]

    blocks = traced(config, 4, capfd)
    document = blocks[0]["pieces"][0]["document"]
    seen = occurrences(config, document, capfd)
    assert blocks[0]["position"] in [line["position"] for line in seen if line["update"] == 4]
    for line in seen:
        inside = traced(config, line["update"], capfd)
        shown = {
            block["position"]
            for block in inside
            for piece in block["pieces"]
            if piece["document"] == document
        }
        assert line["position"] in shown

    manifest = config.stage().finished()
    assert manifest and manifest.recipe["phases"][1]["repeats"] == [0.5]
    assert manifest.notes["packed_index"].keys() == {"train", "train 16", "train 64", "validation"}
    assert any(name.endswith(AVERAGE) for name in manifest.outputs)
    assert all("validation_average_loss" in line for line in lines(config, "evaluations"))


@pytest.mark.full
@pytest.mark.parametrize(
    ("ranks", "stage", "precision"),
    [(1, 0, "fp32"), (2, 1, "fp32"), (2, 2, "bf16"), (2, 3, "fp32")],
)
def test_the_average_that_is_kept_is_that_of_the_weights(
    pretraining: MakePretraining, ranks: int, stage: int, precision: str
) -> None:
    """By torch's own function, over the weights of all updates; one of them is skipped, and between
    two others the run is moved to other ranks."""
    layout = [f"run.zero_stage={stage}", f"run.precision={precision}"]
    all_kept = ("run.checkpoint_every=1", "run.keep_checkpoints=9", "schedule.updates=5")
    config = pretraining("kept", "optim.average=0.7", *all_kept, *layout)
    config.folder("train").mkdir(parents=True)
    (config.folder("train") / SKIPPED).write_text('{"update": 3}\n')
    run_distributed(ranks, go, config, 4)
    run_distributed(3 - ranks, go, config)

    average = None
    for update in range(1, 6):
        place = checkpoint.folder_of(config.folder("train") / "checkpoints", update)
        found = checkpoint.read(place)
        weights = found.weights()
        if average is not None and update != 3:
            step = get_ema_avg_fn(average_decay(update, 0.7))
            average = {name: step(average[name], each, 0) for name, each in weights.items()}
            for name, each in found.weights(AVERAGE).items():
                assert torch.allclose(each, average[name], rtol=1e-5, atol=1e-7), name

        average = found.weights(AVERAGE)
        assert any(not torch.equal(each, weights[name]) for name, each in average.items())

    assert_its_loss_is_that_of_the_published(config, 1e-6 if precision == "fp32" else 2e-3)


def assert_its_loss_is_that_of_the_published(config: Experiment, close: float) -> None:
    """The average's loss while training, and that of plain transformers with these weights."""
    places = [config.folder(name) for name in ("train", "data", "tokenizer")]
    folder = config.folder("train").parent / "averaged"
    made = publish(PublishConfig(average="exponential"), "averaged", *places, folder)
    last = lines(config, "evaluations")[-1]
    assert last["validation_average_loss"] != last["validation_loss"]
    assert last["validation_average_loss"] == pytest.approx(made.counts["validation_loss"], close)
    right = made.counts["validation_accuracy"]
    assert last["validation_average_accuracy"] == pytest.approx(right, abs=0.01)


@pytest.mark.full
@pytest.mark.parametrize(
    ("ranks", "stage", "precision"),
    [(1, 0, "fp32"), (2, 1, "bf16"), (2, 2, "fp32"), (2, 3, "bf16")],
)
def test_training_knows_nothing_of_an_average(
    pretraining: MakePretraining, ranks: int, stage: int, precision: str
) -> None:
    """Nor of the evaluations by it, whether its ranks hold whole weights or parts."""
    layout = (f"run.zero_stage={stage}", f"run.precision={precision}", "run.evaluate_every=3")
    kept, without = pretraining("kept", "optim.average=0.9", *layout), pretraining("no", *layout)
    for config in (kept, without):
        run_distributed(ranks, go, config)

    assert lines(kept) == lines(without)
    for one, other in zip(lines(kept, "evaluations"), lines(without, "evaluations"), strict=True):
        more = {"validation_average_loss", "validation_average_accuracy"}
        assert one.keys() - other.keys() == more
        assert {name: one[name] for name in other} == other

    first, second = (last_checkpoint(config.folder("train")) for config in (kept, without))
    assert {name: first.files[name] for name in second.files} == second.files


def on_a_clock(
    rank: int,
    ranks: int,
    config: Experiment,
    seed: int,
    dies: int | None = None,
    end: int | None = None,
) -> None:
    """Train, or die after an update, where time passes by no machine's speed; ranks' clocks differ."""
    draw, now = random.Random(seed * 10 + rank), [1000.0 * rank]

    def monotonic() -> float:
        now[0] += draw.uniform(0.02, 0.2)
        return now[0]

    loop.time = SimpleNamespace(monotonic=monotonic)  # type: ignore[assignment]
    if dies is None:
        go(rank, ranks, config, end)
    else:
        die_after(rank, ranks, config, dies)


def test_a_schedule_in_hours(pretraining: MakePretraining, tmp_path: Path) -> None:
    """A run that dies and goes on is, to the last bit, the one that a replay makes by its recorded
    times, whatever the speed. It has more updates than are stated."""
    stated = ("schedule.hours=0.0015", "schedule.updates=5", "schedule.warmup=2")
    hours = (*stated, "run.keep_checkpoints=9")
    config = pretraining("hours", *hours)
    run_distributed(2, on_a_clock, config, 1, 4)
    begun = (config.folder("train") / CLOCK).read_text()
    run_distributed(2, on_a_clock, config, 2)
    record = (config.folder("train") / CLOCK).read_text()
    assert record.startswith(begun) and begun.count("\n") > 4

    times = recorded(config.folder("train") / CLOCK)
    made = max(times)
    assert list(times) == list(range(made + 1)) and made > 5
    assert list(times.values()) == sorted(times.values())
    assert times[made - 1] < 5.4 <= times[made]
    for line in lines(config):
        place = 5 * min(1.0, times[line["update"]] / 5.4)
        assert line["lr"] == learning_rate(place, config.optim, config.schedule)

    assert [line["update"] for line in lines(config)] == list(range(1, made + 1))
    assert lines(config)[-1]["lr"] == 0 and lines(config, "evaluations")[-1]["update"] == made
    finished = config.stage().finished()
    assert finished and finished.counts["updates"] == made and CLOCK in finished.outputs

    path, *overrides = config._arguments
    replaying = load_experiment(path, [*overrides, *replay.changes(tmp_path / "replay")])
    replay.lay_out(config.folder("train"), replaying.folder("train"), Replayed(4, made))
    run_distributed(2, on_a_clock, replaying, 3, None, made)
    found = replay.compare(config.folder("train"), replaying, Replayed(4, made))
    assert found.same and not found.tolerance and found.tensors


CONSTANT = ("schedule.decay=constant", "run.keep_checkpoints=9", "model.dropout=0.1")


def extending(config: Experiment, update: int, *more: str) -> list[str]:
    run = config.folder("train")
    return [f"schedule.extend_from={{run: {run}, update: {update}}}", "schedule.warmup=0", *more]


@pytest.fixture(scope="module")
def stable(make_pretraining: MakePretraining) -> Experiment:
    """Twelve updates at a constant rate, of which one was skipped."""
    config = make_pretraining("stable", *CONSTANT)
    config.folder("train").mkdir(parents=True)
    (config.folder("train") / SKIPPED).write_text('{"update": 5}\n{"update": 9}\n')
    run_distributed(1, go, config)
    return config


def test_a_run_that_is_extended_at_its_rate_is_the_longer_run(
    pretraining: MakePretraining, stable: Experiment, tmp_path: Path
) -> None:
    """From an earlier checkpoint, with its moments and Adam's count of steps, also where it died, and
    the other run is gone by then. Update 9, which that skipped later, is made unless its own record
    says so."""
    extended = pretraining("extended", *CONSTANT, *extending(stable, 6))
    run_distributed(1, die_after, extended, 8)
    with (extended.folder("train") / SKIPPED).open("a") as record:
        record.write('{"update": 9}\n')

    train = stable.folder("train")
    train.rename(train.with_name("gone"))
    try:
        run_distributed(1, go, extended)
        assert extended.stage().finished()
        path, *overrides = extended._arguments
        again = load_experiment(path, [*overrides, *replay.changes(tmp_path / "again")])
        replay.lay_out(extended.folder("train"), again.folder("train"), Replayed(8, 12))
        assert again.stage().hash == extended.stage().hash
    finally:
        train.with_name("gone").rename(train)

    assert lines(extended) == lines(stable)[6:]
    first, second = (last_checkpoint(config.folder("train")) for config in (stable, extended))
    assert first.files == second.files
    assert first.progress.skipped == second.progress.skipped == [5, 9]
    assert first.progress.tokens == second.progress.tokens

    before, *later = lines(extended, "evaluations")
    assert (before["update"], later) == (6, lines(stable, "evaluations")[2:])
    assert before["validation_loss"] == lines(stable, "evaluations")[1]["validation_loss"]
    made = extended.stage().finished()
    assert made and made.inputs.keys() == {"data", "tokenizer", "extend_from"}
    assert [session.to_update for session in second.progress.sessions] == [6, 8, 12]


@pytest.mark.full
def test_a_branch_that_decays(
    pretraining: MakePretraining, stable: Experiment, tmp_path: Path
) -> None:
    """On other ranks and another ZeRO stage than the stable run, which it leaves as it was."""
    train = stable.folder("train")
    files = {path: path.read_bytes() for path in train.rglob("*") if path.is_file()}
    decay = ("schedule.decay=wsd", "schedule.decay_updates=4", "schedule.updates=16")
    branch = assert_resumed_and_replayed_it_is_the_same(
        pretraining, tmp_path, *extending(stable, 12, *decay, "run.zero_stage=2"), end=14
    )
    rates = [line["lr"] for line in lines(branch)]
    assert rates[0] < 2e-3 and rates == sorted(rates, reverse=True) and rates[-1] == 0
    assert lines(branch, "evaluations")[0]["update"] == 12
    assert files == {path: path.read_bytes() for path in train.rglob("*") if path.is_file()}


def test_what_cannot_be_extended_is_refused(
    pretraining: MakePretraining, stable: Experiment, tmp_path: Path
) -> None:
    for changes, said in (
        (extending(stable, 7, "schedule.updates=20"), "update: 7: no such checkpoint"),
        (extending(stable, 12, "schedule.updates=20", "model.hidden=64"), "model.hidden: 32 there"),
        ([f"schedule.extend_from={{run: {tmp_path}, update: 2}}"], "no checkpoints here"),
        (["schedule.extend_from={run: nowhere, update: 2}"], "nowhere: not there"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            pretraining("refused", *changes).stage()

    with pytest.raises(UserError, match=r"model.init_from with schedule.extend_from"):
        pretraining("refused", *extending(stable, 12, "schedule.updates=20", "model.init_from=x"))


def traced(
    config: Experiment, update: int, capfd: pytest.CaptureFixture[str]
) -> list[dict[str, Any]]:
    """The blocks of an update."""
    return told(config, capfd, "blocks", "--update", str(update))


def occurrences(
    config: Experiment, document: int, capfd: pytest.CaptureFixture[str]
) -> list[dict[str, Any]]:
    """The updates that see a document."""
    return told(config, capfd, "seen", "--document", str(document))


def told(
    config: Experiment, capfd: pytest.CaptureFixture[str], key: str, *asked: str
) -> list[dict[str, Any]]:
    """What `robustly trace` tells of a finished run's folder."""
    data = [f"paths.{name}={config.folder(name)}" for name in ("data", "tokenizer")]
    capfd.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(["trace", str(config.folder("train")), *data, *asked, "--json"])

    found: list[dict[str, Any]] = json.loads(capfd.readouterr().out)[key]
    return found


@pytest.mark.full
def test_the_mean_of_the_last_checkpoints_is_published(stable: Experiment, tmp_path: Path) -> None:
    """By plain transformers it has the mean of their weights, and its card the mean's loss; that of
    one checkpoint, found in the same way, is the run's own."""
    train = stable.folder("train")
    places = train, stable.folder("data"), stable.folder("tokenizer"), tmp_path / "published"
    made = publish(PublishConfig(average=3), "mean", *places)
    kept = [checkpoint.folder_of(train / "checkpoints", update) for update in (8, 10, 12)]
    weights = [checkpoint.read(place).weights() for place in kept]
    model = RobertaForMaskedLM.from_pretrained(places[-1])
    for name, parameter in model.named_parameters():
        mean = torch.stack([each[name].double() for each in weights]).mean(0)
        assert torch.allclose(parameter.double(), mean, rtol=1e-6, atol=1e-9), name

    last = lines(stable, "evaluations")[-1]["validation_loss"]
    assert made.counts["checkpoint_loss"] == last != made.counts["validation_loss"]
    assert made.counts["validation_loss"] == pytest.approx(last, abs=0.2)
    card = (places[-1] / "README.md").read_text()
    assert "Its weights are the mean of those after 3 updates: 8, 10, 12." in card
    assert "the last checkpoint alone" in card

    alone = checkpoint.read(kept[-1])
    held_out = _held_out(manifest.require(train, "train"), places[1], load_tokenizer(places[2]))
    assert held_out
    special = held_out.special
    one = RobertaForMaskedLM(roberta_config(stable.model, special))
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            parameter.copy_(alone.weights()[name])

    assert held_out.score(one, 4)["validation_loss"] == pytest.approx(last, rel=1e-6)
    assert not one.training
