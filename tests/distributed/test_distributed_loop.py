"""The whole loop on several ranks: killed, stopped, resumed, moved to other ranks, and refused
where it must be."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_config import die_after, last_checkpoint
from torch.nn import functional

from ranks import run_distributed
from robustly import UserError, lease
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.sampler import EpochSampler
from robustly.metrics import read_metrics
from robustly.pretrain import deepspeed_config, engine
from robustly.pretrain.batches import Batches, blocks_per_update
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.loop import Stopped, pretrain
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.objective import (
    MaskedLanguageModel,
    NextSentenceHead,
    new_model,
    roberta_config,
)
from robustly.pretrain.schedule import UpdateSizes
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.updates import Updates
from robustly.rng import Purpose, seed64
from robustly.tokenizer import load_tokenizer

pytestmark = pytest.mark.distributed
NO_DROPOUT = ("model.dropout=0.0", "model.attention_dropout=0.0")
# the rest are timings
REPEATED = ("update", "epoch", "loss", "lr", "grad_norm", "masked_tokens", "tokens")
MakePretraining = Callable[..., PretrainingConfig]


def go(rank: int, ranks: int, config: PretrainingConfig, kill_after: int | None = None) -> None:
    torch.set_num_threads(1)
    if kill_after is not None:
        threading.Thread(target=kill_this_process, args=(config, kill_after), daemon=True).start()
    pretrain(config, rank, rank, ranks)


def kill_this_process(config: PretrainingConfig, updates: int) -> None:
    """SIGKILL at a random moment of the update or two after the given one: an update takes some 50
    ms here."""
    while len(read_metrics(config.folder("train") / "metrics.jsonl")) < updates:
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.1))
    os.kill(os.getpid(), signal.SIGKILL)


def train(config: PretrainingConfig, ranks: int) -> None:
    run_distributed(ranks, go, config)


def metrics(config: PretrainingConfig) -> list[dict[str, Any]]:
    return [
        {key: line[key] for key in REPEATED}
        for line in read_metrics(config.folder("train") / "metrics.jsonl")
    ]


def evaluations(config: PretrainingConfig) -> list[dict[str, Any]]:
    return read_metrics(config.folder("train") / "evaluations.jsonl")


def assert_same_run(one: PretrainingConfig, other: PretrainingConfig) -> None:
    """To the bit: every logged figure, evaluation and final weight and moment."""
    assert metrics(one) == metrics(other)
    assert evaluations(one) == evaluations(other)
    first, second = (last_checkpoint(config.folder("train")) for config in (one, other))
    for name in ("weights.safetensors", "moments.safetensors"):
        assert first.files[name] == second.files[name], name


@pytest.fixture(scope="module")
def straight(make_pretraining: MakePretraining) -> PretrainingConfig:
    """A run of two ranks that nothing disturbed."""
    config = make_pretraining("straight")
    train(config, 2)
    return config


@pytest.fixture(scope="module")
def straight_without_dropout(make_pretraining: MakePretraining) -> PretrainingConfig:
    config = make_pretraining("straight_without_dropout", *NO_DROPOUT)
    train(config, 2)
    return config


def test_metrics_manifest_and_checkpoints_of_a_run(straight: PretrainingConfig) -> None:
    config = straight
    lines = read_metrics(config.folder("train") / "metrics.jsonl")
    assert [line["update"] for line in lines] == list(range(1, 13))
    wanted = {
        "update",
        "epoch",
        "loss",
        "lr",
        "grad_norm",
        "masked_tokens",
        "tokens",
        "tokens_per_second",
        "seconds",
    }
    assert wanted <= lines[0].keys()
    assert lines[2]["lr"] == config.optim.peak_lr and lines[-1]["lr"] == 0
    assert [line["update"] for line in evaluations(config)] == [0, 6, 12]
    assert evaluations(config)[-1]["validation_loss"] < evaluations(config)[0]["validation_loss"]
    kept = ["best.json", "update-00000010", "update-00000012"]
    assert sorted(p.name for p in (config.folder("train") / "checkpoints").iterdir()) == kept
    assert list((config.folder("train") / "tensorboard").iterdir())
    manifest = config.stage().finished()
    assert manifest is not None
    assert manifest.counts["updates"] == 12
    assert manifest.counts["validation_loss"] == evaluations(config)[-1]["validation_loss"]
    before = (config.folder("train") / "metrics.jsonl").stat()
    train(config, 2)  # does nothing
    assert (config.folder("train") / "metrics.jsonl").stat() == before


@pytest.mark.parametrize("format", ["full_sentences", "segment_pair"])
def test_the_first_gradient_is_that_of_the_mean_over_the_whole_update(
    pretraining: MakePretraining, format: str
) -> None:
    """By plain torch, in one batch: the mean over all masked tokens, and beside it that over all
    pairs. Adam divides a constant factor out again, so that the weights would not show it."""
    config = pretraining(
        format, *NO_DROPOUT, f"data.format={format}", "schedule.updates=1", "schedule.warmup=1"
    )
    train(config, 2)

    def norm(rank: int, ranks: int) -> tuple[float, float]:
        torch.set_num_threads(1)
        vocabulary = SpecialTokens.of(load_tokenizer(config.folder("tokenizer")))
        length = config.data.block_length
        order = EpochSampler(
            Blocks(config.folder("data"), "train", length, config.data.format),
            config.seed,
            config.corpus.repeats,
        )
        count = blocks_per_update(config.optim, length, order.mean_length, config.data.format)
        (batch,) = (
            Batches(order, UpdateSizes(count), config.masking, vocabulary, 0, 1, count)
            .batch(1)
            .micro_batches
        )
        sizes = roberta_config(config.model, vocabulary)
        roberta = new_model(sizes, seed64(config.seed, Purpose.INIT, 0, 0))
        head = (
            NextSentenceHead(sizes, seed64(config.seed, Purpose.INIT, 0, 1))
            if batch.follows is not None
            else None
        )
        model = MaskedLanguageModel(roberta, head)
        hidden = model.encode(batch.inputs, batch.attention)
        scores = model.scores(hidden, batch.positions).computed()
        loss = masked_loss = functional.cross_entropy(scores, batch.labels)
        if head is not None:
            loss = loss + functional.cross_entropy(
                head(hidden[:, 0]), batch.follows.long(), ignore_index=-1
            )

        loss.backward()

        return masked_loss.item(), float(
            torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        )

    ((loss, gradient_norm),) = run_distributed(1, norm)
    (line,) = metrics(config)
    assert line["loss"] == pytest.approx(loss, rel=1e-5)
    assert line["grad_norm"] == pytest.approx(gradient_norm, rel=1e-4)


def test_loss_is_logged_over_the_interval(
    pretraining: MakePretraining, straight: PretrainingConfig
) -> None:
    """Also the interval during which the run was killed and resumed: updates 6 to 10, with a
    checkpoint at 8."""
    fifth = pretraining("fifth", "run.log_every=5")
    run_distributed(2, die_after, fifth, 8)
    train(fifth, 2)
    single = metrics(straight)

    for line in metrics(fifth):  # updates 5, 10 and the last, 12
        window = [
            one
            for one in single
            if line["update"] - (5 if line["update"] < 12 else 2) < one["update"] <= line["update"]
        ]
        total = sum(one["loss"] * one["masked_tokens"] for one in window)
        assert line["masked_tokens"] == sum(one["masked_tokens"] for one in window)
        assert line["loss"] == pytest.approx(total / line["masked_tokens"])


def test_killed_at_random_moments_and_started_again_it_is_the_same_run(
    pretraining: MakePretraining, straight: PretrainingConfig
) -> None:
    killed = pretraining("killed")
    for updates in (3, 5, 7):
        with pytest.raises(
            AssertionError, match="died without a word"
        ):  # SIGKILL, not an error of ours
            run_distributed(2, go, killed, updates)

        found = checkpoint.newest(killed.folder("train") / "checkpoints")
        update = found.progress.update if found else 0
        # the one of the last interval may just have been written, while training went on
        assert updates - 4 <= update < 12

    train(killed, 2)
    assert_same_run(straight, killed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop_it_writes_a_checkpoint_and_goes_on(
    pretraining: MakePretraining, number: signal.Signals
) -> None:
    straight, stopped = pretraining("straight"), pretraining("stopped", "run.checkpoint_every=100")
    train(straight, 2)

    def stop_after_5(rank: int, ranks: int) -> str:
        torch.set_num_threads(1)
        original = Updates.make

        def update(self: Updates, share: Any, *rest: Any) -> Any:
            if share.update == 5 and rank == 1:  # one rank alone is told; all must stop together
                os.kill(os.getpid(), number)
            return original(self, share, *rest)

        Updates.make = update  # type: ignore[method-assign]

        try:
            pretrain(stopped, rank, rank, ranks)
        except Stopped as stop:
            return str(stop)

        return ""

    assert (
        run_distributed(2, stop_after_5)
        == ["stopped after update 5, with a checkpoint; the same command goes on"] * 2
    )
    found = checkpoint.newest(stopped.folder("train") / "checkpoints")
    assert found is not None and found.progress.update == 5
    assert len(metrics(stopped)) == 5
    train(stopped, 2)
    assert_same_run(straight, stopped)


def test_told_where_to_stop_it_goes_no_further(pretraining: MakePretraining) -> None:
    """However often it starts."""
    config = pretraining()

    def stop_after(rank: int, ranks: int, update: int) -> str:
        with pytest.raises(Stopped) as stopped:
            pretrain(config, rank, rank, ranks, stop_after=update)
        return str(stopped.value)

    for update, at in ((3, 3), (2, 3)):
        assert f"stopped after update {at}," in run_distributed(1, stop_after, update)[0]
        assert len(metrics(config)) == at


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (3, 2), (2, 3)])
def test_resumed_on_other_ranks_and_stage_it_sees_the_same_batches(
    pretraining: MakePretraining,
    straight_without_dropout: PretrainingConfig,
    ranks: int,
    stage: int,
) -> None:
    moved = pretraining("moved", *NO_DROPOUT)

    run_distributed(2, die_after, moved, 6)
    elsewhere = pretraining("moved", *NO_DROPOUT, f"run.zero_stage={stage}", "run.micro_batch=5")
    train(elsewhere, ranks)
    last, other_last = (evaluations(config)[-1] for config in (straight_without_dropout, elsewhere))
    assert last["validation_loss"] == pytest.approx(other_last["validation_loss"], rel=1e-4)

    for one, other in zip(metrics(straight_without_dropout), metrics(elsewhere), strict=True):
        assert {k: one[k] for k in ("update", "lr", "masked_tokens", "tokens")} == {
            k: other[k] for k in ("update", "lr", "masked_tokens", "tokens")
        }
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_fp16_that_overflows_makes_every_update_of_fp32(
    pretraining: MakePretraining, straight_without_dropout: PretrainingConfig
) -> None:
    """At a loss scale of 2**30 the first gradients overflow; no update may be lost to that, nor its
    batch or rate."""
    half = pretraining("half", *NO_DROPOUT, "run.precision=fp16", "run.zero_stage=1")

    def in_half(rank: int, ranks: int) -> None:
        # CPUs can, slowly, which DeepSpeed does not know
        engine.get_accelerator().is_fp16_supported = lambda: True
        deepspeed_config.LOSS_SCALE_POWER = 30
        go(rank, ranks, half)

    run_distributed(2, in_half)
    lines = read_metrics(half.folder("train") / "metrics.jsonl")
    assert 1 <= lines[0]["loss_scale"] < 2**30

    for one, other in zip(metrics(straight_without_dropout), metrics(half), strict=True):
        assert {k: one[k] for k in ("update", "lr", "masked_tokens", "tokens")} == {
            k: other[k] for k in ("update", "lr", "masked_tokens", "tokens")
        }
        assert one["loss"] == pytest.approx(other["loss"], rel=3e-3)


def test_evaluation_is_the_same_on_any_layout(pretraining: MakePretraining) -> None:
    results = []
    for ranks, micro_batch in ((1, 16), (2, 3), (3, 4)):
        config = pretraining(
            f"on{ranks}",
            "schedule.updates=1",
            "schedule.warmup=1",
            f"run.micro_batch={micro_batch}",
        )
        train(config, ranks)
        results.append(evaluations(config)[0])

    for result in results[1:]:
        assert result["validation_masked_tokens"] == results[0]["validation_masked_tokens"]
        assert result["validation_accuracy"] == results[0]["validation_accuracy"]
        assert result["validation_loss"] == pytest.approx(results[0]["validation_loss"], rel=1e-6)


def test_dropout_repeats_itself_on_the_same_layout(
    pretraining: MakePretraining,
    straight: PretrainingConfig,
    straight_without_dropout: PretrainingConfig,
) -> None:
    again = pretraining("again")
    train(again, 2)
    assert_same_run(straight, again)
    assert metrics(straight)[0]["loss"] != metrics(straight_without_dropout)[0]["loss"]


def test_another_recipe_is_refused_and_nothing_is_lost(
    make_pretraining: MakePretraining, straight: PretrainingConfig
) -> None:
    config = straight
    files = {
        path: path.read_bytes() for path in config.folder("train").rglob("*") if path.is_file()
    }
    with pytest.raises(UserError) as refused:
        make_pretraining("straight", "optim.peak_lr=1e-2", "masking.mask=0.7").stage().finished()

    message = str(refused.value)
    assert (
        "optim.peak_lr: 0.002 there, 0.01 now" in message
        and "masking.mask: 0.8 there, 0.7 now" in message
    )
    assert "--new-run" in message
    assert {
        path: path.read_bytes() for path in config.folder("train").rglob("*") if path.is_file()
    } == files
    # `run` is no recipe
    assert make_pretraining("straight", "run.micro_batch=3", "run.log_every=7").stage().finished()


def test_divergence_stops_before_a_checkpoint_is_spoilt(pretraining: MakePretraining) -> None:
    config = pretraining(
        "wild", "optim.peak_lr=1e30", "schedule.warmup=0", "run.checkpoint_every=1"
    )
    with pytest.raises(
        AssertionError, match=r"UserError: update \d+: the (loss|gradient norm) is (nan|inf)"
    ):
        train(config, 1)

    found = checkpoint.newest(config.folder("train") / "checkpoints")
    assert found is None or all(bool(torch.isfinite(w).all()) for w in found.weights().values())


def test_a_spoilt_evaluation_stops_before_the_weights_are_saved(
    pretraining: MakePretraining,
) -> None:
    wild = (
        "optim.peak_lr=1e30",
        "schedule.warmup=0",
        "run.checkpoint_every=1",
        "run.evaluate_every=1",
    )
    config = pretraining("wild", *wild)
    with pytest.raises(
        AssertionError, match=r"UserError: update 1: the validation loss is (nan|inf)"
    ):
        train(config, 1)

    assert checkpoint.newest(config.folder("train") / "checkpoints") is None


def test_two_runs_at_once_do_not_mix(
    pretraining: MakePretraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pretraining()
    monkeypatch.setattr(lease, "RENEWAL", 0.1)
    monkeypatch.setattr(lease, "PATIENCE", 0.5)
    with (
        config.stage().begin(lease.hold),
        pytest.raises(AssertionError, match=rf"another process is at work here: pid {os.getpid()}"),
    ):
        run_distributed(1, go, config)


def test_inputs_that_are_not_there_are_refused(
    pretraining: MakePretraining, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="robustly prepare"):
        pretraining("train", f"paths.data={tmp_path / 'nowhere'}").stage()
