"""One rank's pretraining, in the order in which things happen: prepare, resume, update after
update, finish."""

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType

import torch
import yaml
from transformers import RobertaForMaskedLM

from robustly import UserError, log
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.sampler import EpochSampler
from robustly.data_prep.store import check_tokenizer
from robustly.files import write_atomic, write_json
from robustly.manifest import Manifest, Stage
from robustly.metrics import read_metrics
from robustly.pretrain import checkpoint
from robustly.pretrain.batches import Batches, RankBatch, blocks_per_update
from robustly.pretrain.checkpoint import Progress
from robustly.pretrain.distillation import Distillation, open_teacher, start_from_teacher
from robustly.pretrain.engine import (
    Engine,
    gather_over_ranks,
    start_ranks,
    stop_ranks,
    sum_over_ranks,
)
from robustly.pretrain.integrity import verify
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.model_setup import accelerate
from robustly.pretrain.objective import (
    MaskedLanguageModel,
    NextSentenceHead,
    new_model,
    roberta_config,
)
from robustly.pretrain.profiling import Profile
from robustly.pretrain.reporting import IntervalSums, TrainingLog, UpdateResult, mixture
from robustly.pretrain.schedule import UpdateSizes, learning_rate
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.start.fit_weights import start_from
from robustly.pretrain.start.model_files import ModelFiles
from robustly.pretrain.validation import evaluate
from robustly.rng import Purpose, seed64
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.tokenizer import Tokenizer

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """The run was asked to stop by a signal; it wrote a checkpoint first."""


class FailedOnAnotherRank(Exception):
    """Another rank met a fault and says so; this one leaves with it."""


def pretrain(
    config: PretrainingConfig, rank: int, local_rank: int, ranks: int, profile: bool = False
) -> Manifest | None:
    """Train this rank's part, from the newest checkpoint if there is one. Rank 0 returns the
    manifest.

    `profile`: a few updates are traced, into the folder `profile` (`robustly.pretrain.profiling`).

    Raises UserError for what the user can mend (FailedElsewhere on the ranks that have nothing to
    say of it), Stopped after SIGINT, SIGTERM or SIGUSR1."""
    stage = config.stage()
    if finished := stage.finished():
        return finished

    with contextlib.ExitStack() as exits:
        if rank == 0:
            exits.enter_context(stage.begin())
            write_atomic(
                config.folder("train") / "config.yaml",
                yaml.safe_dump(config.resolved(), sort_keys=False),
            )

        device = start_ranks(local_rank)
        exits.callback(stop_ranks)
        trainer = Trainer(config, stage, rank, ranks, device)
        return trainer.run(profile)


class Trainer:
    """The state of one rank while it trains."""

    def __init__(
        self, config: PretrainingConfig, stage: Stage, rank: int, ranks: int, device: torch.device
    ):
        self.config, self.stage, self.rank, self.ranks, self.device = (
            config,
            stage,
            rank,
            ranks,
            device,
        )
        with self._together():
            verify([config.folder("tokenizer"), config.folder("data")], rank)

        encoder = load_tokenizer(config.folder("tokenizer"))
        check_tokenizer(config.folder("data"), encoder)
        self.vocabulary = SpecialTokens.of(encoder)
        length, format = config.data.block_length, config.data.format
        validation = Blocks(config.folder("data"), "validation", length, format)
        self.validation_blocks = validation if len(validation) else None
        order = EpochSampler(
            Blocks(config.folder("data"), "train", length, format),
            config.seed,
            config.corpus.repeats,
        )
        full = blocks_per_update(config.optim, length, order.mean_length, format)
        self.sizes = UpdateSizes.of(full, config.optim, config.schedule)
        self.batches = Batches(
            order, self.sizes, config.masking, self.vocabulary, rank, ranks, config.run.micro_batch
        )
        model_config = roberta_config(config.model, self.vocabulary)
        head = (
            NextSentenceHead(model_config, seed64(config.seed, Purpose.INIT, 0, 1))
            if order.blocks.pairs
            else None
        )
        roberta = new_model(model_config, seed64(config.seed, Purpose.INIT, 0, 0))
        if initial := config.initial():
            with self._together():
                fitted = start_from(roberta, initial, config.model, encoder.vocabulary)

            self._check_same_start("init_from", initial)
            if rank == 0:
                log.say(fitted)

        self.model = (
            self._student(roberta, encoder)
            if config.distillation
            else MaskedLanguageModel(roberta, head)
        )
        self.parts = self.model.parts()
        self.parameters = sum(p.numel() for p in self.model.parameters())
        accelerate(self.model, config.run, device)
        self.engine = Engine(
            self.model, config.optim, config.run, self.batches.accumulation, device
        )
        self.checkpoints = config.folder("train") / "checkpoints"
        self.progress = Progress(0, stage.hash)
        self.report: TrainingLog | None = None
        """Of rank 0, which speaks for all."""

    def _student(self, roberta: RobertaForMaskedLM, encoder: Tokenizer) -> Distillation:
        """A new model with layers of the teacher, and the teacher beside it, on the device."""
        config, initial = self.config, self.config.teacher()
        assert config.distillation and initial
        with self._together():
            teacher = open_teacher(initial, config.model, encoder)

        self._check_same_start("teacher", initial)
        layers = start_from_teacher(roberta, teacher)
        if self.rank == 0:
            log.say(
                f"starting from {initial.folder}: its layers {', '.join(map(str, layers))}, counted"
                " from 0"
            )

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            config.run.precision
        ]
        guide = MaskedLanguageModel(teacher.to(self.device, dtype)).eval()
        accelerate(guide, config.run, self.device)
        return Distillation(roberta, guide, config.distillation)

    def _check_same_start(self, name: str, files: ModelFiles) -> None:
        """Raises UserError (FailedElsewhere beside rank 0) if ranks, on different machines, see
        different files there."""
        if len(set(gather_over_ranks(self.stage.inputs[name]))) == 1:
            return
        if self.rank:
            raise FailedOnAnotherRank
        raise UserError(
            f"{files.title}: ranks on different machines see different files there; expected the"
            " same ones"
        )

    # ------------------------------------------------------------------------------------ the run

    def run(self, profile: bool = False) -> Manifest | None:
        config, schedule = self.config, self.config.schedule
        self._resume()
        with self._together():
            if self.rank == 0:
                write_json(config.folder("train") / "deepspeed.json", self.engine.config)
                self.report = TrainingLog(
                    config,
                    self.stage.hash,
                    self.batches,
                    self.ranks,
                    self.device,
                    self.progress.update,
                )
                self.report.header(self.parameters)

        if self.progress.update == 0:
            self._evaluate(0)

        session_start = time.monotonic() - self.progress.seconds
        window = (
            IntervalSums(**self.progress.interval) if self.progress.interval else IntervalSums()
        )
        self.model.train()
        tracing = (
            Profile(config.folder("train") / "profile", self.rank, self.progress.update)
            if profile
            else None
        )
        ahead = self.batches.ahead(self.progress.update + 1, schedule.updates)

        with _signals() as asked, contextlib.closing(ahead) as shares:
            while self.progress.update < schedule.updates:
                before = time.monotonic()
                share = next(shares)
                waited = time.monotonic() - before

                done = self._update(share, asked)
                update, tokens, stop = share.update, done.tokens, done.stop
                window.add(done, waited, time.monotonic() - before)
                self.progress = Progress(
                    update,
                    self.stage.hash,
                    self.progress.tokens + tokens,
                    time.monotonic() - session_start,
                )
                if tracing:
                    with self._together():
                        tracing.after(update, stop or update == schedule.updates)

                if update % config.run.log_every == 0 or update == schedule.updates:
                    if self.report:
                        self.report.interval(
                            window, self.progress, done.norm, self.engine.loss_scale
                        )
                    window = IntervalSums()

                if update % config.run.evaluate_every == 0 or update == schedule.updates:
                    self._evaluate(update)

                if update % config.run.checkpoint_every == 0 or update == schedule.updates or stop:
                    self._save(window)

                if stop and update < schedule.updates:
                    raise Stopped(f"stopped after update {update}, with a checkpoint")

        return self._finish() if self.rank == 0 else None

    def _update(self, share: RankBatch, asked: list[int]) -> UpdateResult:
        # every rank must divide by the same counts, and stop after the same update if any was asked
        # to
        counts = [share.masked_tokens, share.pairs, share.tokens, bool(asked)]
        masked, pairs, tokens, stop = sum_over_ranks(counts, self.device)
        of_parts = {"masked_tokens": masked, "pairs": pairs, "tokens": tokens}
        divisors = torch.tensor(
            [max(1.0, of_parts[part.over]) for part in self.parts], device=self.device
        )
        rate = learning_rate(share.update, self.config.optim, self.config.schedule)
        norm = None
        while norm is None:  # again while the gradient overflows, in fp16
            sums = self._add_gradients(share, divisors)
            norm = self.engine.step(rate)

        if not math.isfinite(norm):
            raise self._diverged(share.update, "gradient norm", norm)

        return UpdateResult(int(masked), int(pairs), int(tokens), norm, stop > 0, **sums)

    def _add_gradients(self, share: RankBatch, divisors: torch.Tensor) -> dict[str, float]:
        """Forward and backward through a share; returns the sums over all ranks of the parts of the
        loss, by name."""
        weights = torch.tensor([part.weight for part in self.parts], device=self.device)
        sums = torch.zeros(
            len(divisors), dtype=torch.float64, device=self.device
        )  # reading it waits for the GPU

        for micro_batch in share.micro_batches:
            batch = micro_batch.to(self.device)
            # ranks draw different noise, and the same layout draws the same again
            torch.manual_seed(seed64(self.config.seed, Purpose.DROPOUT, share.update, batch.first))
            found = self.engine(
                batch.inputs, batch.attention, batch.positions, batch.labels, batch.follows
            )
            self.engine.backward((weights * found / divisors).sum())
            sums += found.detach()

        totals = sum_over_ranks(sums.tolist(), self.device)
        if not math.isfinite(sum(totals)):
            raise self._diverged(share.update, "loss", sum(totals))

        return {part.name: total for part, total in zip(self.parts, totals, strict=True)}

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Work that can fail on one rank alone, such as writing: all know how it ended before any
        goes on. Otherwise the others would die in their next collective, with a traceback that
        hides the reason."""
        fault: Exception | None = None
        try:
            yield
        except (UserError, OSError) as error:
            fault = error

        (failed,) = sum_over_ranks([fault is not None], self.device)
        if fault:
            raise fault
        if failed:
            raise FailedOnAnotherRank

    def _diverged(self, update: int, what: str, value: float) -> UserError | FailedOnAnotherRank:
        if self.rank:
            return FailedOnAnotherRank()
        kept = checkpoint.newest(self.checkpoints)
        rest = f"; the checkpoint of update {kept.progress.update} is whole" if kept else ""
        return UserError(
            f"update {update}: the {what} is {value}: training diverged{rest}. Lower optim.peak_lr"
            " or lengthen schedule.warmup and give it a new name (--new-run NAME)"
        )

    # --------------------------------------------------------------------------- around the updates

    def _resume(self) -> None:
        """Go on from the newest complete checkpoint: rank 0 chooses and reads it, and sends it to
        the others."""
        found = None
        with self._together():
            if self.rank == 0:
                found = checkpoint.newest(self.checkpoints, self.stage.hash)

        (update,) = sum_over_ranks([found.progress.update if found else 0], self.device)
        if not update:
            return

        if found:
            self.progress = found.progress
            log.say(f"going on from {found.folder}")

        names = self._names()
        self.engine.restore(found.tensors(names) if found else None, int(update))
        counted = self.progress
        tokens, seconds = sum_over_ranks([counted.tokens, counted.seconds], self.device)
        self.progress = Progress(
            int(update), self.stage.hash, int(tokens), seconds, counted.interval
        )

    def _names(self) -> list[str]:
        """Parameter names as transformers has them: a checkpoint knows nothing of our wrapper."""
        return [name.removeprefix("model.") for name, _ in self.model.named_parameters()]

    def _save(self, window: IntervalSums) -> None:
        if self.report:
            self.report.metrics.sync()

        self.progress = replace(self.progress, interval=vars(window).copy())
        tensors = (
            (name.removeprefix("model."), w, m, v) for name, w, m, v in self.engine.full_tensors()
        )

        with self._together():
            checkpoint.save(
                self.checkpoints,
                self.progress,
                tensors,
                self.rank == 0,
                self.config.run.keep_checkpoints,
            )

    def _evaluate(self, update: int) -> None:
        if self.validation_blocks is None:
            return

        config = self.config
        result = evaluate(
            self.model,
            self.validation_blocks,
            config.run.evaluate_blocks,
            config.masking,
            self.vocabulary,
            config.run.micro_batch,
            self.rank,
            self.ranks,
            self.device,
        )
        loss = result.total.loss
        if not math.isfinite(loss):
            raise self._diverged(update, "validation loss", loss)

        self.progress = replace(self.progress, validation_loss=loss)
        if self.report:
            self.report.evaluation(update, result)

    def _finish(self) -> Manifest:
        assert self.report
        self.report.metrics.close()
        last = checkpoint.newest(self.checkpoints, self.stage.hash)
        assert last and last.progress.update == self.config.schedule.updates
        evaluations = read_metrics(self.config.folder("train") / "evaluations.jsonl")
        best = checkpoint.mark_best(self.checkpoints)
        counts = {
            "updates": self.progress.update,
            "tokens": self.progress.tokens,
            "parameters": self.parameters,
            "blocks_per_update": self.sizes.full,
            "training_seconds": round(self.progress.seconds, 1),
            **(evaluations[-1] if evaluations else {}),
            **({f"best_{key}": value for key, value in best._asdict().items()} if best else {}),
        }
        counts.pop("update", None)
        records = ("config.yaml", "deepspeed.json", "metrics.jsonl", "evaluations.jsonl")
        kept = {
            last.folder,
            *([checkpoint.folder_of(self.checkpoints, best.update)] if best else []),
        }
        outputs = [
            *(path / name for path in sorted(kept) for name in checkpoint.FILES),
            *(self.config.folder("train") / name for name in records),
        ]
        notes = {"ranks": self.ranks, "run": self.config.run.model_dump(mode="json")}
        if self.config.corpus.repeats:
            notes["mixture"] = mixture(self.batches.order, self.config.corpus.repeats)

        return self.stage.finish(outputs, counts, notes)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that ask to stop (SIGUSR1: Slurm's word that the time is nearly over);
    the update under way is finished first."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}

    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
