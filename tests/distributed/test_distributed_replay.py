"""Replays: the same to the last bit where nothing changed, and of planted changes, all are found."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_config import SMALL

from ranks import run_distributed
from robustly import UserError
from robustly.cli import main
from robustly.data_prep.sampler import EpochSampler, Samples
from robustly.experiment import Experiment, load_experiment
from robustly.launch import local
from robustly.pretrain import batches, loop, replay, updates
from robustly.pretrain.batches import RankBatch
from robustly.pretrain.masking import MaskedInputs
from robustly.pretrain.replay import Comparison, Replayed

pytestmark = pytest.mark.distributed
MakePretraining = Callable[..., Experiment]
Fault = Callable[[random.Random], None]
UPDATES = 12
RUN = ("run.keep_checkpoints=9", "run.micro_batch=12", "run.evaluate_every=12")


def go(
    rank: int, ranks: int, config: Experiment, end: int | None, fault: Fault | None, seed: int
) -> str:
    """Train up to an update, with a fault in the code or the machine."""
    torch.set_num_threads(1)
    if fault:
        fault(random.Random(seed))

    try:
        loop.pretrain(config, rank, rank, ranks, stop_after=end)
    except loop.Stopped as stopped:
        assert end is not None and str(stopped).startswith(f"stopped after update {end}")
    except UserError as error:
        return str(error)

    return ""


def train(
    config: Experiment,
    ranks: int,
    end: int | None = None,
    fault: Fault | None = None,
    seed: int = 0,
) -> None:
    said = run_distributed(ranks, go, config, end, fault, seed)
    if any(said):
        raise UserError(next(filter(None, said)))


def replayed(
    config: Experiment,
    into: Path,
    chosen: Replayed,
    *changes: str,
    ranks: int = 1,
    fault: Fault | None = None,
    seed: int = 0,
) -> Comparison:
    """As `robustly replay` does, with forked ranks. Raises UserError as it does."""
    path, *overrides = config._arguments
    again = load_experiment(path, [*overrides, *changes, *replay.changes(into)])
    replay.lay_out(config.folder("train"), again.folder("train"), chosen)
    train(again, ranks, chosen.end, fault, seed)
    return replay.compare(config.folder("train"), again, chosen)


@pytest.fixture(scope="module")
def alone(make_pretraining: MakePretraining) -> Experiment:
    """A run of one rank that nothing disturbed."""
    config = make_pretraining("alone", *RUN)
    train(config, 1)
    return config


# ------------------------------------------------------------------------------------------ replays


@pytest.mark.parametrize("stage", [0, 1])
def test_a_replay_on_the_same_layout_is_the_same_to_the_last_bit(
    pretraining: MakePretraining, tmp_path: Path, stage: int
) -> None:
    config = pretraining("train", *RUN, f"run.zero_stage={stage}", "schedule.updates=6")
    train(config, 2)
    found = replayed(config, tmp_path / "again", Replayed(2, 6), ranks=2)
    assert found.same and found.tolerance == 0 and found.layout == []
    assert found.lines == 5 and found.tensors > 60
    assert found.differences == found.different_tensors == []


def test_a_replay_on_another_layout_says_so_and_compares_to_a_tolerance(
    alone: Experiment, tmp_path: Path
) -> None:
    found = replayed(alone, tmp_path / "again", Replayed(8, 12), ranks=2)
    assert "ranks: 1 there, 2 now" in found.layout
    assert found.same and 0 < found.largest < found.tolerance and found.different_tensors


def test_the_command_replays_and_compares(
    alone: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Ranks are forked here instead of started."""

    def run(command: list[str], ranks: int, environment: Any) -> int:
        arguments = command[command.index("pretrain") + 1 :]
        arguments.remove("--live-code")  # a replay keeps no code
        end = int(arguments[arguments.index("--stop-after") + 1])
        path, *overrides = arguments[: arguments.index("--stop-after")]
        run_distributed(ranks, go, load_experiment(path, overrides), end, None, 0)
        return 75

    monkeypatch.setattr(local, "run", run)
    for extra, wanted in (([], (10, 12)), (["--updates", "3", "--from", "4"], (4, 7))):
        capfd.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main(["replay", *alone._arguments, "run.ranks=1", *extra, "--json"])

        out, err = capfd.readouterr()
        found = json.loads(out)
        assert (
            leaving.value.code == 0 and found["same"] and (found["start"], found["end"]) == wanted
        )
        assert "the same to the last bit" in err
        assert (found["tensors"] > 0) == (wanted[1] == 12)


@pytest.mark.parametrize(
    ("updates", "start", "said"),
    [
        (13, None, "no checkpoint with 13 updates after it"),
        (2, 5, "--from 5: no such checkpoint; kept are 2, 4, 6, 8, 10, 12"),
        (None, 12, "--from 12: no checkpoint after it"),
        (2, 12, "updates 13 to 14: neither a line of metrics.jsonl nor a checkpoint"),
    ],
)
def test_what_cannot_be_replayed(
    alone: Experiment, updates: int | None, start: int | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        replay.choose(alone.folder("train"), updates, start)


# ---------------------------------------------------------------------------------- planted changes
#
# The last two updates of a run are replayed. What is changed before is put back afterwards.

WINDOW = Replayed(10, 12)


def flipped_mask(draw: random.Random) -> None:
    """One position more or less is masked, in one block of the window."""
    original, update = batches.mask_blocks, draw.choice((11, 12))
    place, count = draw.random(), {"calls": 10}

    def mask(ids: Any, lengths: Any, *rest: Any) -> MaskedInputs:
        found = original(ids, lengths, *rest)
        count["calls"] += 1
        if count["calls"] == update and len(ids) == 24:
            row = int(place * 24)
            at = int(place * 1000) % int(lengths[row])
            found.targets[row, at] ^= True

        return found

    batches.mask_blocks = mask


def other_block(draw: random.Random) -> None:
    """Another block stands at one place of the window."""
    original, position = EpochSampler.stream, draw.randrange(10 * 24, 12 * 24)

    def stream(self: EpochSampler, start: int, stop: int) -> Samples:
        found = original(self, start, stop)
        if start <= position < stop:
            found.block[position - start] = (found.block[position - start] + 1) % self.size
        return found

    EpochSampler.stream = stream  # type: ignore[method-assign]


def in_update(change: Callable[[updates.Updates, RankBatch, random.Random], None]) -> Fault:
    """A change of what an update of the window is computed from."""

    def plant(draw: random.Random) -> None:
        original, update = updates.Updates.make, draw.choice((11, 12))

        def faulty(self: updates.Updates, batch: RankBatch, *rest: Any) -> Any:
            if batch.update == update:
                change(self, batch, draw)
            return original(self, batch, *rest)

        updates.Updates.make = faulty  # type: ignore[method-assign]

    return plant


@in_update
def other_token(maker: updates.Updates, batch: RankBatch, draw: random.Random) -> None:
    inputs = draw.choice(batch.micro_batches).inputs
    inputs[draw.randrange(len(inputs)), 0] += 5


@in_update
def weight_bit(maker: updates.Updates, batch: RankBatch, draw: random.Random) -> None:
    """The lowest but eight bits of a weight."""
    parameter = draw.choice([p for p in maker.engine.model.parameters() if p.ndim == 1])
    with torch.no_grad():
        parameter.view(torch.int32)[draw.randrange(parameter.numel())] ^= 1 << 8


@in_update
def other_label(maker: updates.Updates, batch: RankBatch, draw: random.Random) -> None:
    labels = draw.choice(batch.micro_batches).labels
    labels[draw.randrange(len(labels))] ^= 1


def other_dropout(draw: random.Random) -> None:
    original, wrong = updates.dropout_seed, draw.choice((11, 12))
    updates.dropout_seed = lambda seed, update, one: original(seed, update, one) + (update == wrong)


IN_THE_RUN = (flipped_mask, other_block, other_token, weight_bit, other_label, other_dropout)
FILES = (
    *("data/train-00000.tokens.npy", "data/train-00000.units.npy"),
    *("data/train-00000.documents.npy", "data/store.json", "tokenizer/merges.txt"),
    *("train/checkpoints/update-00000010/weights.safetensors", "tokenizer/vocab.json"),
    *("train/checkpoints/update-00000010/moments.safetensors",),
    *("train/checkpoints/update-00000010/state.json",),
    *("train/checkpoints/update-00000012/weights.safetensors", "train/metrics.jsonl"),
)
CONFIGS = ("seed=5", "masking.probability=0.16", "optim.peak_lr=2.1e-3", "masking.style=bert")
PLANTED = 50


@pytest.fixture(scope="module")
def own(prepared: Path, alone: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The run with inputs of its own, which may be changed."""
    root = tmp_path_factory.mktemp("own")
    for name in ("data", "tokenizer"):
        shutil.copytree(prepared / name, root / name)

    shutil.copytree(alone.folder("train"), root / "train")
    places = [f"corpus.sources={prepared / 'corpus.txt'}", f"paths.root={root}"]
    return load_experiment("configs/tiny.yaml", [*SMALL, *RUN, *places])


def find(own: Experiment, into: Path, number: int) -> str:
    """Plant change `number` and look for it: what finds it, or nothing."""
    draw = random.Random(number)
    kind = (*IN_THE_RUN, *FILES, *CONFIGS)[number % (len(IN_THE_RUN) + len(FILES) + len(CONFIGS))]
    path, before = None, b""
    if isinstance(kind, str) and kind in FILES:
        path = own.root / kind
        before = path.read_bytes()
        after = bytearray(before)
        digits = [at for at, byte in enumerate(before) if chr(byte).isdigit()]
        at = draw.randrange(len(before))
        if kind.endswith("metrics.jsonl"):  # in the losses of the window
            line = before.rindex(b'"update": 11')
            at = next(at for at in digits if at > before.index(b'"loss"', line) + 11)
        after[at] ^= 1
        path.write_bytes(after)

    try:
        changes = [kind] if isinstance(kind, str) and kind in CONFIGS else []
        replay.choose(own.folder("train"), WINDOW.end - WINDOW.start, WINDOW.start)
        fault = kind if not isinstance(kind, str) else None
        found = replayed(own, into, WINDOW, *changes, fault=fault, seed=number)
        return "" if found.same else "replay"
    except UserError as error:
        return f"verification: {error}"
    finally:
        if path:
            path.write_bytes(before)


def test_without_a_change_nothing_is_found(own: Experiment, tmp_path: Path) -> None:
    found = replayed(own, tmp_path, WINDOW)
    assert found.same and found.tolerance == 0 and found.lines == 3 and found.tensors


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param([*range(0, 21, 2)], id="some"),
        pytest.param([*range(PLANTED)], id="all", marks=pytest.mark.full),
    ],
)
def test_planted_changes_are_all_found(own: Experiment, tmp_path: Path, numbers: list[int]) -> None:
    found = {number: find(own, tmp_path / str(number), number) for number in numbers}
    assert [number for number, by in found.items() if not by] == []
    print(sum(by == "replay" for by in found.values()), "of", len(found), "by the replay")
