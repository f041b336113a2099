"""The updates of a training: each is computed by all ranks together, looked into where its numbers
are odd, and made, skipped or taken back."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robustly import heartbeat
from robustly.heartbeat import Phase
from robustly.pretrain.bad_updates.bad_numbers import (
    DUMPS,
    Attempt,
    Examination,
    NumberHooks,
    not_finite,
    report,
    write_dump,
)
from robustly.pretrain.bad_updates.policies import MOST_IN_A_ROW, Policy
from robustly.pretrain.bad_updates.update_records import SKIPPED
from robustly.pretrain.batches import BatchesAhead, RankBatch
from robustly.pretrain.clock import Clock
from robustly.pretrain.micro_batch import dropout_seed
from robustly.pretrain.objective import weighted
from robustly.pretrain.phases import Phases
from robustly.pretrain.ranks import gather_over_ranks, sum_over_ranks, together
from robustly.pretrain.reporting import UpdateResult
from robustly.pretrain.schedule import average_decay, learning_rate
from robustly.pretrain.train_state import TrainState


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


class Updates:
    """One rank's part in them."""

    def __init__(self, batches: Phases, clock: Clock, state: TrainState):
        self.batches, self.clock, self.state = batches, clock, state
        self.config, self.engine, self.policies = state.config, state.engine, state.policies
        self.device = state.device
        self.loss_terms = self.engine.model.loss_terms()
        self.counts: Counts | None = None
        """Those that are known: of the next update, once the one before is computed."""
        self.to_stop = False
        """Whether a rank was asked to stop, as all ranks know since they last counted."""

    def make(self, batch: RankBatch, ahead: BatchesAhead, asked: list[int]) -> UpdateResult | None:
        """One optimizer step, on this rank's part of the global batch; None if training is to go
        back to the last checkpoint. `ahead`: of the batches after it; `asked`: signals to stop.

        Raises UserError where training diverged, FailedOnAnotherRank on the ranks beside rank 0."""
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
            heartbeat.mark(Phase.BATCH, batch.update + 1)
            return [*Counts.of_rank(ahead.peek()), self._is_to_stop(asked)]

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
            return UpdateResult(
                masked,
                int(counts.pairs),
                int(counts.tokens),
                first.norm,
                self.to_stop,
                spikes=int(spike is not None),
                without_targets=int(not masked),
                **first.sums,
            )

        with together(self.device):
            few = self.policies.skip(batch.update, reason)

        if not few:
            reason += f"; {MOST_IN_A_ROW} updates before it were skipped, too"
            raise self.state.diverged(f"update {batch.update}: {reason}")

        return None if policy == "rollback" else UpdateResult.not_made(self.to_stop)

    def _is_to_stop(self, asked: list[int]) -> bool:
        """Whether this rank wants to stop."""
        return bool(asked) or self.state.saves.failed

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
        weights = not_finite(self.engine.tensors.full())
        with NumberHooks(self.engine.model) as watch:
            again = self._attempt(batch, divisors, lambda loss, norm: False)

        own = report(self.batches.at(batch.update), batch, first, again, watch.found)
        found = Examination.of(batch.update, first, again, weights, gather_over_ranks(own))
        reason = str(found)
        with together(self.device):
            if self.state.rank == 0:
                facts = {"recipe": self.state.stage.hash}
                dump = write_dump(self.state.folder / DUMPS, found, facts)
                reason += f"; see {dump}"

        policy = self.policies.on_bad_numbers(found)
        if policy == "stop":
            line = f'{{"update": {batch.update}}}'
            way_on = f" To go on without it, add {line} to {self.state.folder / SKIPPED}."
            raise self.state.diverged(
                f"update {batch.update}: {reason}",
                found.device_is_suspect,
                way_on if not weights else "",
            )

        return policy, reason
