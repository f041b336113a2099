"""The training loop of one rank, in the order in which things happen: set up, resume, update after
update, finish."""

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustly import StartAgain, UserError, heartbeat, lease, log, stopping
from robustly.exit_codes import START_AGAIN
from robustly.files import write_atomic, write_json
from robustly.heartbeat import Phase
from robustly.launch import snapshot
from robustly.launch.checks import NO_CHECK
from robustly.manifest import Manifest, Stage
from robustly.metrics import read_metrics
from robustly.pretrain.agreement import agree, agree_on_weights
from robustly.pretrain.attention import attention_for
from robustly.pretrain.bad_updates.bad_numbers import (
    DUMPS,
    Attempt,
    Examination,
    NumberHooks,
    listed,
    not_finite,
    report,
    write_dump,
)
from robustly.pretrain.bad_updates.policies import MOST_IN_A_ROW, Policy, UpdatePolicies
from robustly.pretrain.bad_updates.update_records import SKIPPED
from robustly.pretrain.batches import BatchesAhead, RankBatch
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.background_saves import BackgroundSaves
from robustly.pretrain.checkpoints.checkpoint import Checkpoint, Progress
from robustly.pretrain.checkpoints.disk_space import (
    checkpoint_bytes,
    look_before_checkpoint,
    look_before_run,
)
from robustly.pretrain.clock import CLOCK, Clock
from robustly.pretrain.engine import Engine, start_ranks, stop_ranks
from robustly.pretrain.inputs import Inputs, open_inputs
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.micro_batch import dropout_seed
from robustly.pretrain.model_setup import set_up_model
from robustly.pretrain.objective import weighted
from robustly.pretrain.phases import Phases
from robustly.pretrain.precision import set_matmul_precision, settled
from robustly.pretrain.profiling import Profile
from robustly.pretrain.ranks import (
    FailedOnAnotherRank,
    bound_groups,
    gather_over_ranks,
    sum_over_ranks,
    together,
)
from robustly.pretrain.reporting import (
    IntervalSums,
    TrainingLog,
    UpdateResult,
    device_name,
    mixture,
)
from robustly.pretrain.schedule import average_decay, learning_rate
from robustly.pretrain.sessions import SESSIONS, Session, begin_session, write_sessions
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.start.check_hosts import check_hosts
from robustly.pretrain.start.initial_model import initial_model
from robustly.pretrain.start.question import question_of
from robustly.pretrain.targets import check_targets, share_with_targets
from robustly.pretrain.validation import evaluate
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
    `stop_after`: stop after this update, as a signal would. `keep_code`: keep this code in the
    run's folder, if none is kept there, for later starts (`robustly.launch.snapshot`).

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


class Counts(NamedTuple):
    """What the global batch of an update holds, over all ranks: each must divide by the same."""

    update: int
    masked_tokens: float
    pairs: float
    tokens: float

    @classmethod
    def of_rank(cls, batch: RankBatch | None) -> tuple[float, float, float]:
        """One rank's; none where there is no batch."""
        return (batch.masked_tokens, batch.pairs, batch.tokens) if batch else (0, 0, 0)


class Trainer:
    """The state of one rank while it trains."""

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
        self.folder = config.folder("train")
        self.packed_index = inputs.packed_index
        self.special = SpecialTokens.of(inputs.tokenizer)
        self.validation_blocks = inputs.validation if len(inputs.validation) else None
        with together(device):
            self.attention = attention_for(config.run, config.model, device)
            in_rows, on_gpu = self.attention.in_rows, device.type == "cuda"
            fixed = config.run.compile or (on_gpu and in_rows)
            self.batches = Phases.of(
                config, inputs.train, self.special, rank, ranks, in_rows, fixed, pinned=on_gpu
            )

        layouts = [list(phase.batches.layout) for phase in self.batches]
        agree({"attention": self.attention.name, "layouts": layouts}, rank)

        pairs = inputs.validation.pairs
        self.model = initial_model(config, inputs.tokenizer, pairs, rank, device)
        self.loss_terms = self.model.loss_terms()
        self.parameters = sum(p.numel() for p in self.model.parameters())
        set_matmul_precision(config.run, device)
        set_up_model(self.model, config.run, self.attention, ranks)
        positions = self.batches.last.layout.positions(config.data.block_length)
        self.model.usual = positions, config.masking.probability
        self.engine = Engine(
            self.model, config.optim, config.run, self.batches.accumulation, device
        )
        self.checkpoints = self.folder / "checkpoints"
        self.saves = BackgroundSaves(self.checkpoints, config.run)
        self.policies = UpdatePolicies(config.optim, self.folder, self.batches)
        self.progress = Progress(0, stage.hash)
        self.clock = Clock(config.schedule, self.folder, rank, device)
        self.ahead: BatchesAhead | None = None
        """The batches of the updates to come."""
        self.counts: Counts | None = None
        """Those that are known: of the next update, once the one before is computed."""
        self.to_stop = False
        """Whether a rank was asked to stop, as all ranks know since they last counted."""
        self.log: TrainingLog | None = None
        """Of rank 0, which speaks for all."""
        self.sessions: tuple[Session, ...] = ()
        """Those that led here, this one included; of rank 0, too."""

    # ------------------------------------------------------------------------------------ the run

    def run(self, profile: bool = False, stop_after: int | None = None) -> Manifest | None:
        """Train from the newest checkpoint to the last update. Raises what `pretrain` does."""
        config, clock = self.config, self.clock
        self._resume()
        clock.begin(self.progress.seconds)
        with together(self.device):
            if self.rank == 0 and not clock.is_last(self.progress.update):
                self.checkpoints.mkdir(exist_ok=True)
                size = checkpoint_bytes(self.parameters, config.optim.average)
                look_before_run(self.checkpoints, size, config.run, config.schedule)

        self._open_log()

        due = self._evaluation_is_due()
        if due:
            self._evaluate(self.progress.update)

        # it was stopped there, and the checkpoint gets its loss; or there must be one to go back to
        update, begin = self.progress.update, config.schedule.begin
        if (due and update) or (config.optim.rolls_back and update == begin):
            self._save(IntervalSums(**self.progress.interval))
            self._saved()

        session_start = time.monotonic() - self.progress.seconds
        interval = IntervalSums(**self.progress.interval)
        self.model.train()
        tracing = (
            Profile(self.folder / "profile", self.rank, self.progress.update) if profile else None
        )
        first = self.progress.update + 1
        self.ahead = self.batches.ahead(first, clock.last)
        with (
            stopping.noted() as asked,
            contextlib.closing(self.ahead) as batches,
            contextlib.closing(self.saves),
        ):
            while not clock.is_last(self.progress.update):
                before, waited = time.monotonic(), batches.waited
                heartbeat.mark(Phase.BATCH, self.progress.update + 1)
                batch = next(batches)
                clock.tick(batch.update, time.monotonic() - session_start)
                done = self._update(batch, asked)
                if done is None:
                    interval = self._roll_back()
                    batches.go_to(self.progress.update + 1)
                    continue

                update, cut_short = batch.update, False
                ends = clock.is_last(update)
                stop = done.stop or update == stop_after
                interval.add(done, batches.waited - waited, time.monotonic() - before)
                self.progress = Progress(
                    update,
                    self.stage.hash,
                    self.progress.tokens + done.tokens,
                    time.monotonic() - session_start,
                )
                if update == first:
                    heartbeat.allow(config.run.timeout)
                    bound_groups(config.run.timeout)

                if tracing:
                    with together(self.device):
                        tracing.after(update, stop or ends)

                if update % config.run.log_every == 0 or ends:
                    if self.log:
                        self.log.interval(
                            interval,
                            self.progress,
                            done.norm,
                            self.engine.loss_scale,
                            clock,
                        )
                    interval = IntervalSums()

                if update % config.run.evaluate_every == 0 or ends:
                    cut_short = self._evaluate(update, asked)
                    stop |= cut_short

                if update % config.run.checkpoint_every == 0 or ends or stop:
                    self._save(interval)

                if ends or stop:
                    self._saved()

                if stop and (not ends or cut_short):
                    raise Stopped(update, asked)

        return self._finish() if self.rank == 0 else None

    def _open_log(self) -> None:
        places = gather_over_ranks((socket.gethostname(), device_name(self.device)))
        with together(self.device):
            if self.rank == 0:
                write_json(self.folder / "deepspeed.json", self.engine.config)
                self.log = TrainingLog(
                    self.config,
                    self.stage.hash,
                    self.batches,
                    self.ranks,
                    self.device,
                    self.progress,
                )
                self.log.header(self.parameters, [host for host, _ in places], self.attention)
                if not self.sessions:  # else training has gone back within a session
                    update, lost = self.progress.update, self.log.metrics.lost
                    began = begin_session(
                        self.config.run, self.attention.name, places, update, lost
                    )
                    self.sessions = (*self.progress.sessions, began)

                write_sessions(self.folder, self.sessions)

    def _update(self, batch: RankBatch, asked: list[int]) -> UpdateResult | None:
        """One optimizer step, on this rank's part of the global batch; None if training is to go
        back to the last checkpoint. `asked`: signals to stop."""
        if self.counts is None or self.counts.update != batch.update:
            heartbeat.mark(Phase.AGREEMENT, batch.update)
            own = [*Counts.of_rank(batch), self._is_to_stop(asked)]
            self._know(batch.update, sum_over_ranks(own, self.device))

        counts = self.counts
        assert counts
        if batch.update in self.policies.skipped:
            return UpdateResult.not_made(self.to_stop)

        divisors = [max(1.0, getattr(counts, term.over)) for term in self.loss_terms]

        # every rank must stop after the same update; where it then saves, rank 0 says why a
        # checkpoint could not be written
        def next_counts() -> list[float]:
            assert self.ahead
            heartbeat.mark(Phase.BATCH, batch.update + 1)
            return [*Counts.of_rank(self.ahead.peek()), self._is_to_stop(asked)]

        first = self._attempt(batch, divisors, self.policies.accepts, next_counts)
        policy: Policy = "log"
        spike = None
        if first.fault:
            policy, reason = self._look_into(batch, divisors, first)
        elif spike := self.policies.usual.spike(first.loss, first.norm):
            reason = str(spike)
            with together(self.device):
                policy = self.policies.on_spike(batch.update, spike)

        if policy == "log":
            self.policies.usual.add(first.loss, first.norm)
            masked = int(counts.masked_tokens)
            made = UpdateResult(
                masked, int(counts.pairs), int(counts.tokens), first.norm, self.to_stop
            )
            made = made._replace(spikes=int(spike is not None), without_targets=int(not masked))
            return made._replace(**first.sums)

        with together(self.device):
            few = self.policies.skip(batch.update, reason)

        if not few:
            reason += f"; {MOST_IN_A_ROW} updates before it were skipped, too"
            raise self._diverged(f"update {batch.update}: {reason}")

        return None if policy == "rollback" else UpdateResult.not_made(self.to_stop)

    def _is_to_stop(self, asked: list[int]) -> bool:
        """Whether this rank wants to stop."""
        return bool(asked) or self.saves.failed

    def _know(self, update: int, sums: Sequence[float]) -> None:
        """What all ranks together found to be the counts of an update, and whether one of them is
        to stop."""
        *counts, stop = sums
        self.counts, self.to_stop = Counts(update, *counts), stop > 0

    def _attempt(
        self,
        batch: RankBatch,
        divisors: Sequence[float],
        accepts: Callable[[float, float], bool],
        next_counts: Callable[[], Sequence[float]] | None = None,
    ) -> Attempt:
        """Compute an update, and make it if its loss and norm are finite and `accepts` agrees to
        them. `divisors`, one for each loss term: what their means are over. `next_counts`: what the
        ranks tell each other of the next update, with the losses of this one: one collective does
        for both; default: nothing, and the losses of each micro-batch are read from the device."""
        optim = self.config.optim
        rate = learning_rate(self.clock.place(batch.update), optim, self.config.schedule)
        decay = average_decay(batch.update, optim.average) if optim.average else None
        terms = len(self.loss_terms)
        norm = None
        while norm is None:  # again while the gradient overflows, in fp16
            found = self._add_gradients(batch, divisors)
            own = torch.zeros(terms, dtype=torch.float64, device=self.device)
            for each in found:
                own += each

            of_next = next_counts() if next_counts else []
            tells = torch.cat([own, self._on_device(of_next, torch.float64)])
            heartbeat.mark(Phase.AGREEMENT, batch.update, len(found))

            def made(norm: float, sums: list[float]) -> bool:
                loss = weighted(sums[:terms], self.loss_terms, divisors)
                heartbeat.mark(Phase.STEP)
                return math.isfinite(loss) and accepts(loss, norm)

            norm, sums = self.engine.step(rate, made, tells, decay)
            loss = weighted(sums[:terms], self.loss_terms, divisors)
            if not math.isfinite(loss):
                break

        if next_counts:
            self._know(batch.update + 1, sums[terms:])

        named = {term.name: total for term, total in zip(self.loss_terms, sums, strict=False)}
        attempt = Attempt([], named, loss, math.nan if norm is None else norm)
        if attempt.fault or not next_counts:
            losses = [
                weighted(row, self.loss_terms, divisors) for row in torch.stack(found).tolist()
            ]
            return attempt._replace(losses=losses)

        return attempt

    def _add_gradients(self, batch: RankBatch, divisors: Sequence[float]) -> list[Tensor]:
        """Gradient accumulation: forward and backward through every micro-batch. Returns the sums
        of the loss terms of each of this rank's micro-batches, (terms,) float64. They stay on the
        device: reading them waits for it."""
        weights = self._on_device([term.weight for term in self.loss_terms])
        over = self._on_device(divisors)
        found = []
        self.engine.begin(len(batch.micro_batches))
        for number, on_cpu in enumerate(batch.micro_batches, 1):
            one = on_cpu.to(self.device)
            torch.manual_seed(dropout_seed(self.config.seed, batch.update, one))
            heartbeat.mark(Phase.FORWARD, batch.update, number)
            terms = self.engine(*one.arguments)
            heartbeat.mark(Phase.BACKWARD, batch.update, number)
            self.engine.backward((weights * terms / over).sum())
            found.append(terms.detach().double())

        return found

    def _on_device(self, numbers: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers on the device, without waiting for it."""
        found = torch.tensor(numbers, dtype=dtype)
        if self.device.type == "cuda":
            found = found.pin_memory()

        return found.to(self.device, non_blocking=True)

    def _look_into(
        self, batch: RankBatch, divisors: Sequence[float], first: Attempt
    ) -> tuple[Policy, str]:
        """Repeat an update that is not finite, and dump what is found; returns what becomes of it,
        and why. Raises UserError where that is to stop."""
        weights = not_finite(self.engine.full_tensors())
        with NumberHooks(self.model) as watch:
            again = self._attempt(batch, divisors, lambda loss, norm: False)

        own = report(self.batches.at(batch.update), batch, first, again, watch.found)
        found = Examination.of(batch.update, first, again, weights, gather_over_ranks(own))
        reason = str(found)
        with together(self.device):
            if self.rank == 0:
                dump = write_dump(self.folder / DUMPS, found, {"recipe": self.stage.hash})
                reason += f"; see {dump}"

        policy = self.policies.on_bad_numbers(found)
        if policy == "stop":
            line = f'{{"update": {batch.update}}}'
            way_on = f" To go on without it, add {line} to {self.folder / SKIPPED}."
            raise self._diverged(
                f"update {batch.update}: {reason}",
                found.device_is_suspect,
                way_on if not weights else "",
            )

        return policy, reason

    def _roll_back(self) -> IntervalSums:
        """Go back to the last checkpoint, with all records; returns its interval so far."""
        self._saved()
        if self.log:
            self.log.metrics.close()

        self._resume()
        self._open_log()
        return IntervalSums(**self.progress.interval)

    def _diverged(
        self, found: str, device_is_suspect: bool = False, way_on: str = ""
    ) -> UserError | FailedOnAnotherRank:
        """`way_on`: how the run can go on as it is, in a sentence; default: it cannot."""
        if self.rank:
            return FailedOnAnotherRank()

        self.saves.close()
        kept = checkpoint.newest(self.checkpoints)
        rest = f" The checkpoint of update {kept.progress.update} is whole." if kept else ""
        if device_is_suspect:
            return StartAgain(
                f"{found}.{rest} The same command goes on; leave that machine out if it happens"
                " again"
            )

        if not self.progress.update:
            return UserError(f"{found}: expected a model to begin with that gives finite numbers")

        lower = "Otherwise lower" if way_on else "Lower"
        return UserError(
            f"{found}: training diverged.{rest}{way_on} {lower} optim.peak_lr or lengthen"
            " schedule.warmup and give it a new name (--new-run NAME)"
        )

    # --------------------------------------------------------------------------- around the updates

    def _resume(self) -> None:
        """Go on from the newest complete checkpoint, the run's own or else the one that it extends:
        rank 0 chooses and reads it, and sends it to the others."""
        found = None
        with together(self.device):
            if self.rank == 0:
                if found := checkpoint.newest(self.checkpoints, self.stage.hash):
                    self._check_packed_index(found)
                elif extended := self.config.extended():
                    found = extended.take_over(self.stage, self.folder)

        progress = gather_over_ranks(found.progress if found else None)[0]
        skipped: list[int] = []
        with together(self.device):
            if self.rank == 0:
                skipped = self.policies.read_records(progress or self.progress)

        self.policies.resume(gather_over_ranks(skipped)[0], progress or self.progress)
        if progress is None:
            return

        if found:
            log.say(f"going on from {found.folder}")

        names = [_as_in_transformers(name) for name, _ in self.model.named_parameters()]
        steps = progress.update - len(progress.skipped)
        averages = self.config.optim.average is not None
        self.engine.restore(found.tensors(names, averages) if found else None, steps)
        self.progress = progress

    def _check_packed_index(self, found: Checkpoint) -> None:
        if found.progress.packed_index != self.packed_index:
            raise UserError(
                f"{found.folder}: its blocks were packed by other code than this, or their words"
                f" found; nothing was changed. Go on with the code in {self.folder / SESSIONS}, or"
                " begin anew (--new-run NAME)"
            )

    def _save(self, interval: IntervalSums) -> None:
        """Begin a checkpoint. Training waits until the one before is written and rank 0 has copied
        the tensors, which it writes while training goes on."""
        self._saved()
        heartbeat.mark(Phase.SAVE)
        agree_on_weights(self.engine.checksums(), self.rank, self.progress.update)
        self.progress = replace(
            self.progress,
            interval=vars(interval).copy(),
            packed_index=self.packed_index,
            **self.policies.state(self.progress.update),
        )
        with together(self.device):
            if self.log:
                update = self.progress.update
                size = checkpoint_bytes(self.parameters, self.config.optim.average)
                look_before_checkpoint(self.checkpoints, size, update)
                *earlier, current = self.sessions
                self.sessions = (*earlier, replace(current, to_update=update))
                self.progress = replace(
                    self.progress, metrics=self.log.metrics.sync(), sessions=self.sessions
                )

        full = self.engine.full_tensors()
        tensors = ((_as_in_transformers(name), *each) for name, *each in full)
        if copies := checkpoint.copy_tensors(tensors, self.rank == 0, self.engine.gathers):
            self.saves.begin(self.progress, copies)

    def _saved(self) -> None:
        """Wait until the checkpoint that was begun is written."""
        with together(self.device):
            self.saves.wait()
            if self.sessions:
                write_sessions(self.folder, self.sessions)

    def _evaluation_is_due(self) -> bool:
        """Whether a start begins with one: the first of all, or one that a signal cut short."""
        update = self.progress.update
        at = update % self.config.run.evaluate_every == 0 or update == self.config.schedule.begin
        at = at or self.clock.is_last(update)
        return at and self.validation_blocks is not None and self.progress.validation_loss is None

    def _evaluate(self, update: int, asked: Sequence[int] = ()) -> bool:
        """Evaluate on the held-out blocks. Returns True, without a result, if a rank was `asked` to
        stop meanwhile."""
        if self.validation_blocks is None:
            return False

        config = self.config
        result = evaluate(
            self.model,
            self.validation_blocks,
            config.run.evaluate_blocks,
            config.masking,
            self.special,
            self.batches.last.layout,
            self.rank,
            self.ranks,
            self.device,
            asked,
        )
        if result is None:
            return True

        with together(self.device):
            if self.rank == 0 and not result.total.masked_tokens:
                raise UserError(
                    "no token of the held-out blocks is a target, so that their loss says nothing;"
                    " hold out more text (corpus.validation, run.evaluate_blocks), or none"
                    " (corpus.validation: 0)"
                )

        loss = result.total.loss
        if not math.isfinite(loss):
            found = f"update {update}: the validation loss is {loss}"
            if weights := not_finite(self.engine.full_tensors()):
                found += f", and weights are not finite: {listed(weights)}"

            raise self._diverged(found)

        self.progress = replace(self.progress, validation_loss=loss)
        if self.log:
            self.log.evaluation(update, result)

        return False

    def _finish(self) -> Manifest:
        assert self.log
        self.log.metrics.close()
        last = checkpoint.newest(self.checkpoints, self.stage.hash)
        assert last and self.clock.is_last(last.progress.update)
        counts = {
            "updates": self.progress.update,
            "tokens": self.progress.tokens,
            "parameters": self.parameters,
            "blocks_per_update": self.batches.last.sizes.full,
            "training_seconds": round(self.progress.seconds, 1),
            **self.policies.counts(),
        }
        if evaluations := read_metrics(self.folder / "evaluations.jsonl"):
            counts |= evaluations[-1]
            counts.pop("update")

        kept = {last.folder}
        if best := checkpoint.mark_best(self.checkpoints):
            counts |= {f"best_{key}": value for key, value in best._asdict().items()}
            kept.add(checkpoint.folder_of(self.checkpoints, best.update))

        records = ("config.yaml", "deepspeed.json", SESSIONS, "metrics.jsonl", "evaluations.jsonl")
        files = [path / name for path in sorted(kept) for name in checkpoint.FILES]
        outputs = [path for path in files if path.exists()]
        outputs += [self.folder / name for name in (*records, *self.policies.records())]
        if self.config.schedule.hours:
            outputs.append(self.folder / CLOCK)

        notes: dict[str, Any] = {
            "config": self.config.resolved(),
            "packed_index": self.packed_index,
        }
        if repeats := self.config.corpus.repeats:
            notes["mixture"] = mixture(self.batches.last.sampler, repeats)

        return self.stage.finish(outputs, counts, notes)


def _as_in_transformers(name: str) -> str:
    """A parameter's name in transformers' model: a checkpoint knows nothing of our wrapper."""
    return name.removeprefix("model.")
