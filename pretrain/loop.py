"""The training loop of one rank, in the order in which things happen: set up, resume, update after
update, finish."""

import contextlib
import os
import socket
import time

import torch

from robustly import heartbeat, lease, stopping
from robustly.exit_codes import START_AGAIN
from robustly.files import write_atomic, write_json
from robustly.heartbeat import Phase
from robustly.launch import snapshot
from robustly.launch.checks import NO_CHECK
from robustly.manifest import Manifest, Stage
from robustly.pretrain.agreement import agree
from robustly.pretrain.attention import attention_for
from robustly.pretrain.bad_updates.policies import UpdatePolicies
from robustly.pretrain.batches import BatchesAhead
from robustly.pretrain.checkpoints.checkpoint import Progress
from robustly.pretrain.clock import Clock
from robustly.pretrain.engine import Engine
from robustly.pretrain.evaluations import Evaluations
from robustly.pretrain.inputs import Inputs, open_inputs
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.model_setup import set_up_model
from robustly.pretrain.phases import Phases
from robustly.pretrain.precision import set_matmul_precision, settled
from robustly.pretrain.process_group import start_ranks, stop_ranks
from robustly.pretrain.profiling import Profile
from robustly.pretrain.ranks import (
    bound_groups,
    gather_over_ranks,
    together,
)
from robustly.pretrain.reporting import (
    IntervalSums,
    TrainingLog,
    device_name,
)
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.start.check_hosts import check_hosts
from robustly.pretrain.start.initial_model import initial_model
from robustly.pretrain.start.question import question_of
from robustly.pretrain.targets import check_targets, share_with_targets
from robustly.pretrain.train_state import TrainState
from robustly.pretrain.updates import Updates
from robustly.provenance import code
from robustly.strict_yaml import dump_yaml


class Stopped(Exception):
    """The run was asked to stop by a signal; it wrote a checkpoint first."""

    def __init__(self, update: int, asked: list[int]):
        super().__init__(
            f"stopped after update {update}, with a checkpoint; the same command goes on"
        )
        self.code = stopping.code_of(asked[0]) if asked else START_AGAIN
        """Exit code."""


def pretrain(
    config: PretrainingConfig,
    rank: int,
    local_rank: int,
    ranks: int,
    profile: bool = False,
    stop_after: int | None = None,
    keep_code: bool = False,
) -> Manifest | None:
    """Train as one of the ranks, from the newest checkpoint if there is one. Rank 0 returns the
    manifest.

    `profile`: a few updates are traced, into the folder `profile` (`robustly.pretrain.profiling`).
    `stop_after`: stop after this update, as a signal would, or at once where it is past.
    `keep_code`: keep this code in the run's folder, if none is kept there, for later starts
    (`robustly.launch.snapshot`).

    Raises UserError for what the user can mend (FailedOnAnotherRank on the ranks that have nothing
    to say of it), Stopped after a signal that asks to stop (`robustly.stopping`)."""
    with contextlib.ExitStack() as exits:
        device = start_ranks(local_rank, config.run.start_timeout)
        config = config.model_copy(update={"run": settled(config.run, device)})
        try:
            manifest = _agree_and_train(
                config, rank, ranks, device, exits, profile, stop_after, keep_code
            )
        except Stopped:
            stop_ranks()
            raise

        stop_ranks()  # after a fault it might wait for a rank that is lost
        return manifest


def _agree_and_train(
    config: PretrainingConfig,
    rank: int,
    ranks: int,
    device: torch.device,
    exits: contextlib.ExitStack,
    profile: bool,
    stop_after: int | None,
    keep_code: bool,
) -> Manifest | None:
    """What `pretrain` does once the process group is up. `exits` keeps rank 0's lock on the run's
    folder, which that rank alone reads and writes."""
    agree({**config.resolved(), "stop_after": stop_after, "code": code()}, rank)
    if NO_CHECK not in os.environ:
        check_hosts(question_of(config), device)

    finished = None
    with together(device):
        stage = config.stage()
        if rank == 0:
            finished = stage.finished()

    agree({"inputs": stage.inputs, "recipe": stage.hash}, rank)
    if finished := gather_over_ranks(finished)[0]:
        return finished

    inputs = open_inputs(config, rank, device)
    agree({"files": inputs.files, "packed_index": inputs.packed_index}, rank)
    with together(device):
        if rank == 0:
            special = SpecialTokens.of(inputs.tokenizer)
            for phase in config.stretches():
                train = inputs.train[phase.block_length]
                found = share_with_targets(train, phase.masking, special, config.seed)
                check_targets(found, phase.masking)

            exits.enter_context(stage.begin(lease.hold))
            write_atomic(config.folder("train") / "config.yaml", dump_yaml(config.located()))
            if keep_code:
                snapshot.keep(config.folder("train").absolute())

    return Trainer(config, stage, inputs, rank, ranks, device).run(profile, stop_after)


class Trainer:
    """One rank of a training."""

    def __init__(
        self,
        config: PretrainingConfig,
        stage: Stage,
        inputs: Inputs,
        rank: int,
        ranks: int,
        device: torch.device,
    ):
        self.config, self.stage, self.device = config, stage, device
        self.rank, self.ranks = rank, ranks
        special = SpecialTokens.of(inputs.tokenizer)
        with together(device):
            self.attention = attention_for(config.run, config.model, device)
            in_rows, on_gpu = self.attention.in_rows, device.type == "cuda"
            fixed = config.run.compile or (on_gpu and in_rows)
            self.batches = Phases.of(
                config, inputs.train, special, rank, ranks, in_rows, fixed, pinned=on_gpu
            )

        layouts = [list(phase.batches.layout) for phase in self.batches]
        agree({"attention": self.attention.name, "layouts": layouts}, rank)

        pairs = inputs.validation.pairs
        self.model = initial_model(config, inputs.tokenizer, pairs, rank, device)
        set_matmul_precision(config.run, device)
        positions = self.batches.last.layout.positions(config.data.block_length)
        usual = positions, config.masking.probability
        set_up_model(self.model, config.run, self.attention, ranks, usual)
        self.engine = Engine(
            self.model, config.optim, config.run, self.batches.accumulation, device
        )
        policies = UpdatePolicies(config.optim, config.folder("train"), self.batches)
        self.state = TrainState(
            config, stage, self.engine, policies, inputs.packed_index, rank, device
        )
        self.clock = Clock(config.schedule, config.folder("train"), rank, device)
        self.updates = Updates(self.batches, self.clock, self.state)
        layout = self.batches.last.layout
        self.evaluations = Evaluations(inputs.validation, special, layout, ranks, self.state)
        self.log: TrainingLog | None = None
        """Of rank 0, which speaks for all."""

    def run(self, profile: bool = False, stop_after: int | None = None) -> Manifest | None:
        """Train from the newest checkpoint to the last update. Raises what `pretrain` does."""
        state, clock = self.state, self.clock
        state.resume()
        clock.begin(state.progress.seconds)
        update, begin = state.progress.update, self.config.schedule.begin
        if not clock.is_last(update):
            state.look_for_space()

        self._open_log()
        due = self.evaluations.due(clock.is_last(update))
        if due:
            self.evaluations.make(self.log)

        # it was stopped there, and the checkpoint gets its loss; or the run must have one: to go
        # back to, or to go on from without the run that it extends
        if (due and update) or (update == begin and (self.config.optim.rolls_back or begin)):
            state.save(IntervalSums(**state.progress.interval))
            state.wait()

        if stop_after is not None and not clock.is_last(update) and update >= stop_after:
            raise Stopped(update, [])

        self.model.train()
        tracing = Profile(state.folder / "profile", self.rank, update) if profile else None
        with (
            stopping.noted() as asked,
            contextlib.closing(self.batches.ahead(update + 1, clock.last)) as batches,
            contextlib.closing(state.saves),
        ):
            self._train(batches, asked, tracing, stop_after)

        return state.finish() if self.rank == 0 else None

    def _train(
        self,
        batches: BatchesAhead,
        asked: list[int],
        tracing: Profile | None,
        stop_after: int | None,
    ) -> None:
        """Make update after update, to the last. Raises Stopped where it is `asked` not to."""
        run, state, clock = self.config.run, self.state, self.clock
        session_start = time.monotonic() - state.progress.seconds
        interval = IntervalSums(**state.progress.interval)
        first = state.progress.update + 1

        while not clock.is_last(state.progress.update):
            before, waited = time.monotonic(), batches.waited
            heartbeat.mark(Phase.BATCH, state.progress.update + 1)
            batch = next(batches)
            clock.tick(batch.update, time.monotonic() - session_start)
            done = self.updates.make(batch, batches, asked)
            if done is None:
                interval = self._roll_back()
                batches.go_to(state.progress.update + 1)
                continue

            update, cut_short = batch.update, False
            ends = clock.is_last(update)
            stop = done.stop or (stop_after is not None and update >= stop_after)
            interval.add(done, batches.waited - waited, time.monotonic() - before)
            tokens = state.progress.tokens + done.tokens
            seconds = time.monotonic() - session_start
            state.progress = Progress(update, self.stage.hash, tokens, seconds)
            if update == first:
                heartbeat.allow(run.timeout)
                bound_groups(run.timeout)

            if tracing:
                with together(self.device):
                    tracing.after(update, stop or ends)

            if update % run.log_every == 0 or ends:
                if self.log:
                    scale = self.engine.loss_scale
                    self.log.interval(interval, state.progress, done.norm, scale, clock)

                interval = IntervalSums()

            if update % run.evaluate_every == 0 or ends:
                cut_short = self.evaluations.make(self.log, asked)
                stop |= cut_short

            if update % run.checkpoint_every == 0 or ends or stop:
                state.save(interval)

            if ends or stop:
                state.wait()

            if stop and (not ends or cut_short):
                raise Stopped(update, asked)

    def _roll_back(self) -> IntervalSums:
        """Go back to the last checkpoint, with all records; returns its interval so far."""
        self.state.wait()
        if self.log:
            self.log.metrics.close()

        self.state.resume()
        self._open_log()
        return IntervalSums(**self.state.progress.interval)

    def _open_log(self) -> None:
        places = gather_over_ranks((socket.gethostname(), device_name(self.device)))
        state = self.state
        with together(self.device):
            if self.rank == 0:
                write_json(state.folder / "deepspeed.json", self.engine.config)
                self.log = TrainingLog(
                    self.config,
                    self.stage.hash,
                    self.batches,
                    self.ranks,
                    self.device,
                    state.progress,
                )
                hosts = [host for host, _ in places]
                self.log.header(self.engine.tensors.count, hosts, self.attention)
                state.begin_session(self.attention.name, places, self.log.metrics)
