"""Updates whose loss or gradient is not finite: they are never made, what is found is told and
dumped, and training stops, goes on without them, or goes back."""

import json
import re
import socket
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_config import last_checkpoint

from ranks import run_distributed
from robustly import StartAgain, UserError, manifest
from robustly.cli import main
from robustly.experiment import Experiment
from robustly.metrics import read_metrics
from robustly.pretrain.bad_updates.bad_numbers import DUMPS
from robustly.pretrain.bad_updates.update_records import SKIPPED, SPIKES
from robustly.pretrain.batches import RankBatch
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.loop import pretrain
from robustly.pretrain.objective import MaskedLanguageModel
from robustly.pretrain.ranks import FailedOnAnotherRank
from robustly.pretrain.start import initial_model
from robustly.pretrain.trace import batches_of, trace_update
from robustly.pretrain.updates import Updates

pytestmark = pytest.mark.distributed
MakePretraining = Callable[..., Experiment]
MICRO_BATCHES = 3  # of a rank: 24 blocks on 2 ranks, 4 at a time


class NanGradient(torch.autograd.Function):
    """The identity, whose gradient is not a number."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("nan")


def go(
    rank: int,
    ranks: int,
    config: Experiment,
    fault: str = "",
    updates: Collection[int] = (),
    once: bool = False,
    die_at: int = 0,
) -> str:
    """Train; returns the message of a user's error, if one stopped it. There is a fault in
    micro-batch 1 of rank 1 in some updates; `once`: not when it is repeated. `die_at`: leave without another word in this update."""
    torch.set_num_threads(1)
    now = {"update": 0, "forward": 0}
    update, forward = Updates.make, MaskedLanguageModel.forward

    def faulty_update(self: Updates, batch: RankBatch, *rest: Any) -> Any:
        if batch.update == die_at:
            raise KeyboardInterrupt
        if fault == "weight" and batch.update in updates and not (once and now["update"] > 90):
            now["update"] = 99 if once else 0
            weight = self.engine.model.model.lm_head.dense.bias
            weights = {name: value for name, value in self.engine.model.named_parameters()}
            assert weights["model.lm_head.dense.bias"] is weight
            self.engine.tensors.set_weight(weight, torch.full_like(weight, float("nan")))

        if fault != "weight":
            now.update(update=batch.update, forward=0)
        return update(self, batch, *rest)

    def faulty_forward(self: MaskedLanguageModel, *inputs: Any) -> torch.Tensor:
        found = forward(self, *inputs)
        number, now["forward"] = now["forward"], now["forward"] + 1
        here = rank == 1 and now["update"] in updates and number % MICRO_BATCHES == 1
        if not here or (once and number >= MICRO_BATCHES):
            return found
        if fault == "loss":
            return found * float("nan")
        if fault == "spike":
            return found * 50
        return NanGradient.apply(found) if fault == "gradient" else found

    if fault == "start":
        fresh = initial_model.new_model

        def spoilt(*arguments: Any) -> Any:
            made = fresh(*arguments)
            torch.nn.init.constant_(made.lm_head.dense.bias, float("nan"))
            return made

        initial_model.new_model = spoilt

    Updates.make = faulty_update  # type: ignore[method-assign]
    MaskedLanguageModel.forward = faulty_forward  # type: ignore[method-assign]
    try:
        pretrain(config, rank, rank, ranks)
    except KeyboardInterrupt:
        assert die_at
    except (UserError, FailedOnAnotherRank) as error:
        return ("again: " if isinstance(error, StartAgain) else "") + str(error)

    return ""


def train(config: Experiment, *arguments: Any, **options: Any) -> str:
    """Returns what rank 0 says where training stops by a fault."""

    def start(rank: int, ranks: int) -> str:
        return go(rank, ranks, config, *arguments, **options)

    return run_distributed(2, start)[0]


def dump_of(config: Experiment, update: int) -> tuple[Path, dict[str, Any]]:
    folder = config.folder("train") / DUMPS / f"update-{update:08d}"
    return folder, json.loads((folder / "dump.json").read_text(encoding="utf-8"))


def weights(config: Experiment) -> list[str]:
    files = last_checkpoint(config.folder("train")).files
    return [json.dumps(str(files[name])) for name in sorted(files)]


def lines(config: Experiment) -> list[dict[str, Any]]:
    path = config.folder("train") / SKIPPED
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def losses(config: Experiment) -> list[tuple[int, float | None, int]]:
    return [
        (line["update"], line.get("loss"), line["tokens"])
        for line in read_metrics(config.folder("train") / "metrics.jsonl")
    ]


# -------------------------------------------------------------------------------------------- stop


@pytest.mark.parametrize("stage", [0, 3])
def test_a_bad_batch_stops_before_the_step_with_a_dump_to_repeat_it(
    pretraining: MakePretraining, stage: int
) -> None:
    config = pretraining("train", f"run.zero_stage={stage}")
    said = train(config, "loss", (5,))
    assert "update 5: the loss is nan, repeated: nan: the batch or the weights" in said
    assert "(micro-batch 1 of rank 1, first in loss)" in said
    assert "The checkpoint of update 4 is whole" in said
    folder, dump = dump_of(config, 5)
    assert f"see {folder}:" in said
    assert (dump["update"], dump["what"], dump["value"], dump["repeated"]) == (
        5,
        "loss",
        *2 * ["NaN"],
    )
    assert dump["weights"] == [] and [rank["rank"] for rank in dump["ranks"]] == [0, 1]
    assert dump["ranks"][0]["faulty"] == [] and len(dump["ranks"][1]["losses"]) == MICRO_BATCHES

    (faulty,) = dump["ranks"][1]["faulty"]
    assert faulty["number"] == 1 and faulty["activation"] == "loss"
    batches = batches_of(config, 1, 2).at(5)
    made = batches.batch(5).micro_batches[1]
    traced = [block.json() for block in trace_update(batches, 5) if block.micro_batch == 1]
    assert faulty["blocks"] == json.loads(json.dumps(traced))
    inputs = load_file(folder / faulty["inputs"])
    assert torch.equal(inputs["inputs"], made.inputs)
    assert torch.equal(inputs["labels"], made.labels)


def test_a_run_that_stopped_goes_on_without_the_update_as_its_message_says(
    skipping: Experiment, pretraining: MakePretraining, capfd: pytest.CaptureFixture[str]
) -> None:
    config = pretraining()
    for update in (5, 6):
        said = train(config, "loss", (5, 6))
        line = f'{{"update": {update}}}'
        assert f"To go on without it, add {line} to {config.folder('train') / SKIPPED}" in said
        with (config.folder("train") / SKIPPED).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    assert not train(config, "loss", (5, 6))
    assert losses(config) == losses(skipping) and weights(config)[:2] == weights(skipping)[:2]

    capfd.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(["trace", *config._arguments, "--update", "5", "--json"])

    found = json.loads(capfd.readouterr().out)
    assert found["skipped"]
    document = found["blocks"][0]["pieces"][0]["document"]
    with pytest.raises(SystemExit, match="0"):
        main(["trace", *config._arguments, "--document", str(document), "--json"])

    seen = {line["update"] for line in json.loads(capfd.readouterr().out)["seen"]}
    assert not seen & {5, 6}


def test_a_number_that_is_finite_when_repeated_makes_the_device_suspect(
    pretraining: MakePretraining,
) -> None:
    config = pretraining()
    said = train(config, "loss", (5,), once=True)
    assert said.startswith("again: update 5: the loss is nan, repeated: 6.")
    assert f"the device of rank 1 on {socket.gethostname()} is suspect" in said
    _, dump = dump_of(config, 5)
    assert 4 < dump["repeated"] < 9 and not dump["met_again"]
    (faulty,) = dump["ranks"][1]["faulty"]
    assert faulty["number"] == 1 and faulty["activation"] is None and faulty["gradients"] == []


def test_a_gradient_that_is_not_finite_is_found_where_it_began(
    pretraining: MakePretraining,
) -> None:
    config = pretraining()
    said = train(config, "gradient", (5,))
    assert re.search("update 5: the gradient norm is (nan|inf), repeated: (nan|inf)", said)

    _, dump = dump_of(config, 5)
    assert dump["what"] == "gradient norm" and dump["ranks"][0]["faulty"] == []
    (faulty,) = dump["ranks"][1]["faulty"]
    assert faulty["activation"] is None
    assert "model.lm_head.layer_norm.weight" in faulty["gradients"]
    assert all(isinstance(loss, float) for loss in dump["ranks"][1]["losses"])


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_weights_that_are_not_finite_are_named_first(
    pretraining: MakePretraining, policy: str
) -> None:
    config = pretraining("train", f"optim.on_bad_numbers={policy}")
    said = train(config, "weight", (5,))
    assert "weights were not finite before it: model.lm_head.dense.bias" in said
    assert dump_of(config, 5)[1]["weights"] == ["model.lm_head.dense.bias"]
    kept = checkpoint.newest(config.folder("train") / "checkpoints")
    assert kept and kept.progress.update == 4


def test_weights_to_begin_with_that_are_not_finite_are_named(pretraining: MakePretraining) -> None:
    said = train(pretraining(), "start")
    assert (
        "update 0: the validation loss is nan, and weights are not finite: model.lm_head.dense.bias"
        in said
    )
    assert "expected a model to begin with that gives finite numbers" in said


# ------------------------------------------------------------------------------- skip and roll back


@pytest.fixture(scope="module")
def skipping(make_pretraining: MakePretraining) -> Experiment:
    """A run that left out updates 5 and 6, and that nothing else disturbed."""
    config = make_pretraining("skipping", "optim.on_bad_numbers=skip")
    assert not train(config, "loss", (5, 6))
    return config


def test_skipped_updates_are_recorded_with_their_blocks_and_training_goes_on(
    skipping: Experiment,
) -> None:
    found = lines(skipping)
    assert [line["update"] for line in found] == [5, 6]
    for line in found:
        traced = [
            block.block
            for rank in (0, 1)
            for block in trace_update(batches_of(skipping, rank, 2).last, line["update"])
        ]
        assert sorted(line["blocks"]) == sorted(traced) and "nan" in line["reason"]

    told = losses(skipping)
    assert [update for update, *_ in told] == list(range(1, 13))
    assert [loss is None for _, loss, _ in told] == [u in (5, 6) for u in range(1, 13)]
    assert told[3][2] == told[5][2] < told[6][2]  # tokens of updates that were made
    last = last_checkpoint(skipping.folder("train")).progress
    assert last.skipped == [5, 6] and len(last.recent["loss"]) == 10


def test_a_run_is_a_pure_function_of_config_and_record(
    skipping: Experiment, pretraining: MakePretraining
) -> None:
    """The same without the fault, where the record is there from the beginning; and where a kill
    comes between the fault and the next checkpoint."""
    recorded = pretraining("recorded", "optim.on_bad_numbers=skip")
    recorded.folder("train").mkdir()
    text = (skipping.folder("train") / SKIPPED).read_text(encoding="utf-8")
    (recorded.folder("train") / SKIPPED).write_text(text, encoding="utf-8")
    assert not train(recorded)

    killed = pretraining("killed", "optim.on_bad_numbers=skip", "run.checkpoint_every=4")
    assert not train(killed, "loss", (5, 6), die_at=7)
    assert [line["update"] for line in lines(killed)] == [5, 6]
    assert not train(killed)
    for other in (recorded, killed):
        assert losses(other) == losses(skipping)
        assert weights(other)[:2] == weights(skipping)[:2]


@pytest.mark.parametrize(
    "layout", [("run.zero_stage=3",), ("run.zero_stage=2", "run.precision=bf16")], ids=str
)
def test_a_skip_leaves_nothing_behind_at_other_zero_stages(
    pretraining: MakePretraining, layout: tuple[str, ...]
) -> None:
    changes = ("optim.on_bad_numbers=skip", "schedule.updates=8", *layout)
    met, recorded = pretraining("met", *changes), pretraining("recorded", *changes)
    assert not train(met, "gradient", (5,))
    recorded.folder("train").mkdir()
    text = (met.folder("train") / SKIPPED).read_text(encoding="utf-8")
    (recorded.folder("train") / SKIPPED).write_text(text, encoding="utf-8")
    assert not train(recorded)
    assert losses(met) == losses(recorded) and weights(met)[:2] == weights(recorded)[:2]


def test_a_record_that_was_changed_is_refused(pretraining: MakePretraining) -> None:
    config = pretraining("train", "optim.on_bad_numbers=skip")
    assert not train(config, "loss", (5,), die_at=8)
    record = config.folder("train") / SKIPPED
    whole = record.read_text(encoding="utf-8")
    for text, said in (
        ("", "lists no update, and the checkpoint of update 6 was trained without updates 5"),
        (whole + '{"update": 3}\n', "lists updates 3, 5, and the checkpoint"),
        ("{}\n", "skipped.jsonl, line 1: damaged"),
    ):
        record.write_text(text, encoding="utf-8")
        assert said in train(config)

    record.write_text(whole, encoding="utf-8")
    assert not train(config)


def test_too_many_skipped_in_a_row_stop(pretraining: MakePretraining) -> None:
    changes = ("schedule.updates=16", "optim.on_bad_numbers=skip", "run.checkpoint_every=16")
    config = pretraining("train", *changes)
    said = train(config, "loss", range(3, 17))
    assert re.search("update 13: the loss is nan.*10 updates before it were skipped, too", said)


def test_rolling_back_skips_the_update_and_mends_damaged_weights(
    skipping: Experiment, pretraining: MakePretraining
) -> None:
    back = pretraining("back", "optim.on_bad_numbers=rollback", "run.checkpoint_every=4")
    assert not train(back, "loss", (5, 6))
    assert [line["update"] for line in lines(back)] == [5, 6]
    assert losses(back) == losses(skipping)
    assert weights(back)[:2] == weights(skipping)[:2]

    damaged = pretraining("damaged", "optim.on_bad_numbers=rollback", "run.checkpoint_every=4")
    assert not train(damaged, "weight", (3,), once=True)  # before the first checkpoint of an update
    assert [line["update"] for line in lines(damaged)] == [3]
    assert [loss is None for _, loss, _ in losses(damaged)] == [u == 3 for u in range(1, 13)]


# ------------------------------------------------------------------------------------------- spikes

LONG = ("schedule.updates=40", "run.checkpoint_every=10", "run.evaluate_every=40")
SPIKE = 38


def spike_lines(config: Experiment) -> list[dict[str, Any]]:
    path = config.folder("train") / SPIKES
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_spike_is_made_and_noted_also_after_a_resume(pretraining: MakePretraining) -> None:
    config = pretraining("train", *LONG)
    assert not train(config, "spike", (SPIKE,), die_at=39)  # after the update, before a checkpoint
    assert not train(config, "spike", (SPIKE,))
    (line,) = spike_lines(config)
    assert line["update"] == SPIKE and line["policy"] == "log" and line["sigmas"] > 6
    assert line["value"] > 2 * line["usual"] and len(line["blocks"]) == 24
    assert manifest.require(config.folder("train"), "train").counts["spikes"] == 1
    told = read_metrics(config.folder("train") / "metrics.jsonl")
    assert [line["update"] for line in told if line.get("spikes")] == [SPIKE]
    assert not (config.folder("train") / SKIPPED).exists()


def test_a_skipped_spike_changes_nothing(pretraining: MakePretraining) -> None:
    """The step is refused when the norm is known: the run is the one without that update."""
    runs = []
    for name, policy in (("skip", "skip"), ("rollback", "rollback")):
        config = pretraining(name, *LONG, f"optim.on_spike={policy}")
        assert not train(config, "spike", (SPIKE,))
        assert [line["update"] for line in spike_lines(config)] == [SPIKE]
        assert [line["update"] for line in lines(config)] == [SPIKE]
        counts = manifest.require(config.folder("train"), "train").counts
        assert (counts["spikes"], counts["skipped_updates"]) == (1, 1)
        runs.append(config)

    recorded = pretraining("recorded", *LONG, "optim.on_spike=skip")
    recorded.folder("train").mkdir()
    text = (runs[0].folder("train") / SKIPPED).read_text(encoding="utf-8")
    (recorded.folder("train") / SKIPPED).write_text(text, encoding="utf-8")
    assert not train(recorded)
    for config in runs:
        assert losses(config) == losses(recorded)
        assert weights(config)[:2] == weights(recorded)[:2]
