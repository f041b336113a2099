"""How far a training has come, on one rank: what a checkpoint holds beside the tensors, saved with
them and taken up again."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from robustly import StartAgain, UserError, heartbeat, log
from robustly.heartbeat import Phase
from robustly.manifest import Manifest, Stage
from robustly.metrics import Metrics, read_metrics
from robustly.pretrain.agreement import agree_on_weights
from robustly.pretrain.bad_updates.policies import UpdatePolicies
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.background_saves import BackgroundSaves
from robustly.pretrain.checkpoints.checkpoint import Checkpoint, Progress
from robustly.pretrain.checkpoints.disk_space import (
    checkpoint_bytes,
    look_before_checkpoint,
    look_before_run,
)
from robustly.pretrain.clock import CLOCK
from robustly.pretrain.engine import Engine
from robustly.pretrain.ranks import FailedOnAnotherRank, gather_over_ranks, together
from robustly.pretrain.reporting import IntervalSums, mixture
from robustly.pretrain.sessions import SESSIONS, Session, begin_session, write_sessions
from robustly.pretrain.stage import PretrainingConfig


class TrainState:
    """Progress, sessions and checkpoints of a run, the same on every rank; rank 0 alone reads and
    writes its folder."""

    def __init__(
        self,
        config: PretrainingConfig,
        stage: Stage,
        engine: Engine,
        policies: UpdatePolicies,
        packed_index: dict[str, str],
        rank: int,
        device: torch.device,
    ):
        self.config, self.stage, self.engine, self.policies = config, stage, engine, policies
        self.packed_index, self.rank, self.device = packed_index, rank, device
        self.folder = config.folder("train")
        self.checkpoints = self.folder / "checkpoints"
        self.bytes = checkpoint_bytes(engine.tensors.count, config.optim.average)
        """Of a checkpoint."""
        self.saves = BackgroundSaves(self.checkpoints, config.run)
        self.progress = Progress(0, stage.hash)
        self.sessions: tuple[Session, ...] = ()
        """Those that led here, this one included; of rank 0 alone, as its metrics are."""
        self.metrics: Metrics | None = None

    def resume(self) -> None:
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

        names = [_as_in_transformers(name) for name, _ in self.engine.tensors.parameters()]
        steps = progress.update - len(progress.skipped)
        average = self.config.optim.average is not None
        self.engine.tensors.restore(found.tensors(names, average) if found else None, steps)
        self.progress = progress

    def _check_packed_index(self, found: Checkpoint) -> None:
        if found.progress.packed_index != self.packed_index:
            raise UserError(
                f"{found.folder}: its blocks were packed by other code than this, or their words"
                f" found; nothing was changed. Go on with the code in {self.folder / SESSIONS}, or"
                " begin anew (--new-run NAME)"
            )

    def look_for_space(self) -> None:
        """Make room for checkpoints. Collective. Raises UserError if none fits on the disk."""
        with together(self.device):
            if self.rank == 0:
                self.checkpoints.mkdir(exist_ok=True)
                look_before_run(self.checkpoints, self.bytes, self.config.run, self.config.schedule)

    def begin_session(
        self, attention: str, places: Sequence[tuple[str, str]], metrics: Metrics
    ) -> None:
        """On rank 0: training goes on, its figures into these metrics. Notes where and with what
        (`sessions.begin_session`), unless it has gone back within a session."""
        self.metrics = metrics
        if not self.sessions:
            run, update = self.config.run, self.progress.update
            began = begin_session(run, attention, places, update, metrics.lost)
            self.sessions = (*self.progress.sessions, began)

        write_sessions(self.folder, self.sessions)

    def save(self, interval: IntervalSums) -> None:
        """Begin a checkpoint. Training waits until the one before is written and rank 0 has copied
        the tensors, which it writes while training goes on. Collective."""
        self.wait()
        heartbeat.mark(Phase.SAVE)
        tensors, update = self.engine.tensors, self.progress.update
        agree_on_weights(tensors.checksums(), self.rank, update)
        self.progress = replace(
            self.progress,
            interval=vars(interval).copy(),
            packed_index=self.packed_index,
            **self.policies.state(update),
        )
        with together(self.device):
            if self.metrics:
                look_before_checkpoint(self.checkpoints, self.bytes, update)
                *earlier, current = self.sessions
                self.sessions = (*earlier, replace(current, to_update=update))
                self.progress = replace(
                    self.progress, metrics=self.metrics.sync(), sessions=self.sessions
                )

        full = ((_as_in_transformers(name), *each) for name, *each in tensors.full())
        if copies := checkpoint.copy_tensors(full, self.rank == 0, tensors.sharded):
            self.saves.begin(self.progress, copies)

    def wait(self) -> None:
        """Wait until the checkpoint that was begun is written. Collective."""
        with together(self.device):
            self.saves.wait()
            if self.sessions:
                write_sessions(self.folder, self.sessions)

    def finish(self) -> Manifest:
        """On rank 0: the last update is saved; the run gets its manifest."""
        assert self.metrics
        self.metrics.close()
        last = checkpoint.newest(self.checkpoints, self.stage.hash)
        assert last and last.progress.update == self.progress.update
        counts = {
            "updates": self.progress.update,
            "tokens": self.progress.tokens,
            "parameters": self.engine.tensors.count,
            "blocks_per_update": self.policies.batches.last.sizes.full,
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
            notes["mixture"] = mixture(self.policies.batches.last.sampler, repeats)

        return self.stage.finish(outputs, counts, notes)

    def diverged(
        self, found: str, device_is_suspect: bool = False, way_on: str = ""
    ) -> UserError | FailedOnAnotherRank:
        """The fault with which a training ends whose numbers are not finite. `way_on`: how the run
        can go on as it is, in a sentence; default: it cannot."""
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


def _as_in_transformers(name: str) -> str:
    """A parameter's name in transformers' model: a checkpoint knows nothing of our wrapper."""
    return name.removeprefix("model.")
