"""Ranks as `robustly pretrain` starts them, their bodies forked: who is to blame, with which exit
code, and nothing that hangs."""

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launched_ranks import Body, launch
from small_config import die_after

from ranks import run_distributed
from robustly import UserError, heartbeat
from robustly.cli.rank import be_rank
from robustly.heartbeat import Phase, watch
from robustly.launch import ends, local
from robustly.metrics import read_metrics
from robustly.pretrain import batches, loop, reporting, validation
from robustly.pretrain.engine import Engine
from robustly.pretrain.process_group import start_ranks, stop_ranks
from robustly.pretrain.ranks import collective_timeout, gather_over_ranks, together
from robustly.pretrain.sharded_tensors import ShardedTensors
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.train_state import TrainState
from robustly.pretrain.updates import Updates

pytestmark = pytest.mark.distributed
MakePretraining = Callable[..., PretrainingConfig]


@pytest.fixture
def body(pretraining: MakePretraining) -> Callable[..., Body]:
    """The body of ranks that train as the small config says, after `meet(rank)`."""

    def make(meet: Callable[[int], object], *changes: str) -> Body:
        config = pretraining("train", *changes)

        def be(rank: int, ranks: int) -> None:
            meet(rank)
            path, *overrides = config._arguments  # type: ignore[attr-defined]
            # kept code is another program's: each resume would start one, and its imports
            be_rank(path, overrides, False, live_code=True)

        return be

    return make


def lines(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """What was printed, without the names of those who printed it."""
    said = (re.sub(r"^\[\S+:\d+\] ", "", line) for line in capfd.readouterr().err.splitlines())
    return [line for line in said if line.strip()]


def in_data_thread(rank: int) -> None:
    make = batches.Batches.batch

    def batch(self: batches.Batches, update: int) -> batches.RankBatch:
        if update == 4 and self.rank == 1:
            raise UserError("shard 3 is cut off")
        return make(self, update)

    batches.Batches.batch = batch  # type: ignore[method-assign]


def in_log(rank: int) -> None:
    def interval(*arguments: Any) -> None:
        raise UserError("shard 3 is cut off")

    reporting.TrainingLog.interval = interval  # type: ignore[method-assign]


def in_header(rank: int) -> None:
    def header(*arguments: Any) -> None:
        raise UserError("shard 3 is cut off")

    reporting.TrainingLog.header = header  # type: ignore[method-assign]


def in_evaluation(rank: int) -> None:
    if rank == 1:

        def scores(*arguments: Any) -> None:
            raise UserError("shard 3 is cut off")

        validation._columns = scores  # type: ignore[assignment]


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("where", [in_data_thread, in_log, in_header, in_evaluation])
def test_a_mistake_is_said_once_wherever_it_arises(
    body: Callable[..., Body],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    where: Callable[[int], None],
    watched: bool,
) -> None:
    """On rank 0 or another, by our launcher or another: one line, by ours the last one, and exit
    code 2."""
    assert launch(2, body(where), watched=watched) == 2
    (left,) = tmp_path.glob("**/train")
    first = ends.first(ends.read(left))
    assert first and (first.code, first.text) == (2, "shard 3 is cut off")

    said = lines(capfd)
    assert said.count("error: shard 3 is cut off") == 1
    assert said[-1] == "error: shard 3 is cut off" or not watched
    assert "gloo" not in "".join(said) and "Traceback" not in "".join(said)


def test_of_a_rank_whose_word_no_disk_takes_the_others_tell(
    body: Callable[..., Body], tmp_path: Path
) -> None:
    def meet(rank: int) -> None:
        def full(*arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        if rank == 0:
            ends.write = full
        in_log(rank)

    assert launch(2, body(meet), watched=False) == 2
    (left,) = tmp_path.glob("**/train")
    (told,) = ends.read(left)
    first = ends.first([told])
    assert told.rank == 1 and first
    assert (first.rank, first.code, first.text) == (0, 2, "shard 3 is cut off")


def test_a_port_that_is_in_use_is_named_and_another_start_may_take_another(
    body: Callable[..., Body], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other ranks get no answer there."""
    port = local.free_port()
    monkeypatch.setattr(local, "free_port", lambda: port)
    with socket.socket() as busy:
        busy.bind(("", port))
        busy.listen()
        assert launch(2, body(lambda rank: None), grace=0.5) == 75

    said = lines(capfd)
    assert said[-1].startswith(f"error: port {port} of {socket.gethostname()}, where the ranks")
    assert "Traceback" not in "".join(said)


def test_a_fault_of_the_software_is_shown_once(
    body: Callable[..., Body], capfd: pytest.CaptureFixture[str]
) -> None:
    def meet(rank: int) -> None:
        def update(self: Updates, batch: Any, *rest: Any) -> Any:
            raise RuntimeError(f"ours, on rank {rank}") if rank else time.sleep(60)

        Updates.make = update  # type: ignore[method-assign]

    assert launch(2, body(meet)) == 1
    said = lines(capfd)
    assert said[-1] == "RuntimeError: ours, on rank 1"
    assert sum("Traceback" in line for line in said) == 1


def test_out_of_memory_is_said_and_mended_by_a_new_start(
    body: Callable[..., Body], capfd: pytest.CaptureFixture[str]
) -> None:
    def meet(rank: int) -> None:
        def update(self: Updates, batch: Any, *rest: Any) -> Any:
            torch.empty(2**60, dtype=torch.uint8)

        if rank:
            Updates.make = update  # type: ignore[method-assign]

    assert launch(2, body(meet)) == 75
    assert lines(capfd)[-1].startswith("error: not enough memory")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_rank_that_is_killed_is_named(
    body: Callable[..., Body], capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def meet(rank: int) -> None:
        original = Updates.make

        def update(self: Updates, batch: Any, *rest: Any) -> Any:
            if batch.update == 3 and rank:
                os.kill(os.getpid(), number)
            return original(self, batch, *rest)

        Updates.make = update  # type: ignore[method-assign]

    assert launch(2, body(meet)) == 75
    said = lines(capfd)
    assert said[-1].startswith(f"error: rank 1 on here was killed ({number.name}): ")
    assert "gloo" not in "".join(said)


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("how", ["stopped", "hung"])
def test_a_rank_that_hangs_is_named(
    body: Callable[..., Body],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    how: str,
    watched: bool,
) -> None:
    """By the launcher; and where none of ours watches, by a rank that waits for it."""

    def meet(rank: int) -> None:
        original = Engine.backward

        def backward(self: Engine, loss: torch.Tensor) -> None:
            if heartbeat.own().update == 3 and rank:
                os.kill(os.getpid(), signal.SIGSTOP) if how == "stopped" else time.sleep(100)
            original(self, loss)

        Engine.backward = backward  # type: ignore[method-assign]

    begun = time.monotonic()
    assert launch(2, body(meet, "run.timeout=8"), grace=5.0, watched=watched) == 75
    assert time.monotonic() - begun < 90
    said = [line for line in lines(capfd) if line.startswith("error: ")]
    assert said and all(line.startswith("error: rank 1 on ") for line in said)
    if watched or how == "hung":  # of one that is stopped, others know what it told a second before
        assert "last in backward of update 3" in said[0]
    if not watched:
        (left,) = tmp_path.glob("**/train")
        first = ends.first(ends.read(left))
        assert first and (first.rank, first.host) == (1, socket.gethostname())


def test_every_group_is_bounded(pretraining: MakePretraining) -> None:
    """DeepSpeed's own groups too, at the start and while training."""

    def timeouts() -> list[Any]:
        return [
            group._get_backend(torch.device("cpu")).options._timeout
            for group in dist.distributed_c10d._world.pg_map
        ]

    def look(rank: int, ranks: int) -> list[list[float]]:
        found = []
        original, engine = TrainState.save, Engine.__init__

        def make(self: Engine, *arguments: Any) -> None:
            engine(self, *arguments)
            found.append([each.total_seconds() for each in timeouts()])

        def save(self: TrainState, interval: Any) -> None:
            original(self, interval)
            found.append([each.total_seconds() for each in timeouts()])

        Engine.__init__, TrainState.save = make, save  # type: ignore[method-assign]
        config = pretraining(
            "train", "run.timeout=40", "run.start_timeout=60", "schedule.updates=3"
        )
        loop.pretrain(config, rank, rank, ranks)
        return found

    start, *training = run_distributed(2, look)[0]
    assert len(start) > 1  # the world's and DeepSpeed's
    assert set(start) == {collective_timeout(60).total_seconds()}
    for each in training:
        assert set(each) == {collective_timeout(40).total_seconds()}


def test_others_wait_as_long_as_one_works(capfd: pytest.CaptureFixture[str]) -> None:
    """Longer than the bound of a collective and of the heartbeat; but not for one that does
    nothing."""

    def be(works: bool) -> Body:
        def body(rank: int, ranks: int) -> None:
            heartbeat.begin(f"rank {rank}")
            device = start_ranks(rank)
            heartbeat.allow(3.0)
            dist.distributed_c10d._set_pg_timeout(collective_timeout(3.0))
            with together(device):
                for _ in range(100 if rank == 0 else 0):
                    time.sleep(0.1)
                    if works:
                        heartbeat.mark(Phase.SAVE)

        return body

    assert launch(2, be(works=True)) == 0
    assert launch(2, be(works=False), grace=3.0) == 75
    assert "error: rank 0 on " in lines(capfd)[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_first_evaluation_is_left_at_once(
    body: Callable[..., Body], capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def meet(rank: int) -> None:
        original = validation.masked_batches

        def slowly(*arguments: Any) -> Any:
            for batch in original(*arguments):
                if rank == 0:
                    os.kill(os.getppid(), number)  # the launcher
                time.sleep(30)
                yield batch

        validation.masked_batches = slowly

    expected = 130 if number == signal.SIGINT else 75
    assert launch(2, body(meet)) == expected
    said = lines(capfd)
    assert said[-1].startswith(f"stopped by {number.name};")
    assert "Traceback" not in "".join(said)


def test_an_evaluation_that_was_left_is_made_up_for(
    pretraining: MakePretraining, body: Callable[..., Body], capfd: pytest.CaptureFixture[str]
) -> None:
    """One rank is told, in the middle of the evaluation after update 6."""

    def meet(rank: int) -> None:
        original = validation.masked_batches

        def told(*arguments: Any) -> Any:
            for number, batch in enumerate(original(*arguments)):
                if rank == 1 and number == 1 and heartbeat.own().update == 6:
                    os.kill(os.getpid(), signal.SIGHUP)
                yield batch

        validation.masked_batches = told

    assert launch(2, body(meet)) == 75
    assert "stopped after update 6, with a checkpoint" in lines(capfd)[-1]
    folder = pretraining("train").folder("train")
    evaluated = [line["update"] for line in read_metrics(folder / "evaluations.jsonl")]
    assert evaluated == [0]

    assert launch(2, body(lambda rank: None)) == 0
    straight = pretraining("straight")
    run_distributed(2, lambda rank, ranks: loop.pretrain(straight, rank, rank, ranks) and None)
    again, once = (
        read_metrics(path / "evaluations.jsonl") for path in (folder, straight.folder("train"))
    )
    assert again == once


def test_a_tensor_of_another_shape_is_refused(
    pretraining: MakePretraining, body: Callable[..., Body], capfd: pytest.CaptureFixture[str]
) -> None:
    run_distributed(2, die_after, pretraining("train"), 4)

    def meet(rank: int) -> None:
        original = ShardedTensors.restore

        def restore(self: ShardedTensors, tensors: Any, update: int) -> None:
            cut = tensors and ((a[:-1], b, c) for a, b, c in tensors)
            original(self, cut, update)

        ShardedTensors.restore = restore  # type: ignore[method-assign]

    assert launch(2, body(meet)) == 2
    said = lines(capfd)[-1]
    assert "the checkpoint of update 4" in said and "has the shape" in said


@pytest.mark.parametrize("watched", [True, False])
def test_a_stopped_rank_need_not_be_overdue(
    body: Callable[..., Body],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    watched: bool,
) -> None:
    """Whatever run.timeout is: by the launcher, or by rank 0 where none of ours watches."""
    monkeypatch.setattr(watch, "QUIET", 6.0)

    def meet(rank: int) -> None:
        original = Engine.backward

        def backward(self: Engine, loss: torch.Tensor) -> None:
            if heartbeat.own().update == 3 and rank:
                time.sleep(3)  # so that it tells what it is at
                os.kill(os.getpid(), signal.SIGSTOP)
            original(self, loss)

        Engine.backward = backward  # type: ignore[method-assign]

    begun = time.monotonic()
    assert launch(2, body(meet, "run.timeout=600"), grace=5.0, watched=watched) == 75
    assert time.monotonic() - begun < 90
    (said,) = (line for line in lines(capfd) if line.startswith("error: "))
    assert said.startswith("error: rank 1 on ") and "its process is stopped or stuck" in said


def test_ranks_of_two_launches_at_one_port_do_not_meet(tmp_path: Path) -> None:
    """Of two launchers that took the same port at the same moment: the other one's rank 1 comes to
    this one's rank 0 first."""
    come = tmp_path / "come"

    def body(number: int, ranks: int) -> None:
        attempt, rank = [("this", 0), ("other", 1), ("this", 1)][number]
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", ROBUSTLY_ATTEMPT=attempt)
        if number == 2:
            while not come.exists():
                time.sleep(0.05)
            time.sleep(1.0)
        elif number == 1:
            come.touch()
        try:
            start_ranks(rank, 20.0)
        except RuntimeError:  # nobody meets it
            assert attempt == "other"
            return
        assert gather_over_ranks(attempt) == ["this", "this"]
        stop_ranks()

    assert launch(3, body) == 0
