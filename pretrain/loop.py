"""One rank's pretraining, in the order in which things happen: prepare, resume, update after update, finish."""

import contextlib
import math
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from types import FrameType
from typing import Any, NamedTuple

import torch
import yaml

import tokenizer
from data_prep.blocks import Blocks
from data_prep.order import Order
from data_prep.store import check_tokenizer
from pretrain import budget, checkpoint
from pretrain.acceleration import accelerate
from pretrain.batches import Batches, Share, blocks_per_update
from pretrain.checkpoint import Progress
from pretrain.engine import Engine, gather_over_ranks, start_ranks, stop_ranks, sum_over_ranks
from pretrain.evaluation import evaluate
from pretrain.initial_weights import start_from
from pretrain.masking import TokenIds
from pretrain.objective import MaskedLanguageModel, NextSentenceHead, new_model, roberta_config
from pretrain.peak import peak_tflops, utilisation
from pretrain.profiling import Profile
from pretrain.schedule import UpdateSizes, learning_rate
from pretrain.stage import Pretraining
from pretrain.verification import verify
from robustly import UserError, log, manifest
from robustly.manifest import Manifest, Stage, write_json
from robustly.rng import Purpose, seed64

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """The run was asked to stop by a signal; it wrote a checkpoint first."""


class FailedElsewhere(Exception):
    """Another rank met a fault and says so; this one leaves with it."""


def pretrain(config: Pretraining, rank: int, local_rank: int, ranks: int, profile: bool = False) -> Manifest | None:
    """Train this rank's part, from the newest checkpoint if there is one. Rank 0 returns the manifest.

    `profile`: a few updates are traced, into the folder `profile` (`pretrain.profiling`).

    Raises UserError for what the user can mend (FailedElsewhere on the ranks that have nothing to say of it), Stopped
    after SIGINT, SIGTERM or SIGUSR1.
    """
    stage = config.stage()
    if finished := stage.finished():
        return finished
    with contextlib.ExitStack() as exits:
        if rank == 0:
            exits.enter_context(stage.begin())
            manifest.write_atomic(config.folder / "config.yaml", yaml.safe_dump(config.page, sort_keys=False))
        device = start_ranks(local_rank)
        exits.callback(stop_ranks)
        trainer = Trainer(config, stage, rank, ranks, device)
        return trainer.run(profile)


class Trainer:
    """The state of one rank while it trains."""

    def __init__(self, config: Pretraining, stage: Stage, rank: int, ranks: int, device: torch.device):
        self.config, self.stage, self.rank, self.ranks, self.device = config, stage, rank, ranks, device
        with self._together():
            verify([config.tokenizer_folder, config.data_folder], rank)
        encoder = tokenizer.load(config.tokenizer_folder)
        check_tokenizer(config.data_folder, encoder)
        self.vocabulary = TokenIds.of(encoder)
        length, format = config.data.block_length, config.data.format
        self.train_blocks = Blocks(config.data_folder, "train", length, format)
        validation = Blocks(config.data_folder, "validation", length, format)
        self.validation_blocks = validation if len(validation) else None
        order = Order(self.train_blocks, config.seed, config.repeats)
        full = blocks_per_update(config.optim, length, order.mean_length, format)
        self.sizes = UpdateSizes.of(full, config.optim, config.schedule)
        self.batches = Batches(order, self.sizes, config.masking, self.vocabulary, rank, ranks, config.run.micro_batch)
        model_config = roberta_config(config.model, self.vocabulary)
        head = NextSentenceHead(model_config, seed64(config.seed, Purpose.INIT, 0, 1)) if order.blocks.pairs else None
        roberta = new_model(model_config, seed64(config.seed, Purpose.INIT, 0, 0))
        if initial := config.initial():
            with self._together():
                fitted = start_from(roberta, initial, config.model, encoder.vocabulary)
            self._check_same_start(stage.inputs["init_from"])
            if rank == 0:
                log.say(fitted)
        self.model = MaskedLanguageModel(roberta, head)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        accelerate(self.model, config.run, device)
        self.engine = Engine(self.model, config.optim, config.run, self.batches.accumulation, device)
        self.checkpoints = config.folder / "checkpoints"
        self.progress = Progress(0, stage.hash)
        self.metrics: log.Metrics | None = None

    def _check_same_start(self, digest: str) -> None:
        """Raises UserError (FailedElsewhere beside rank 0) if ranks, on other machines, start from other files."""
        if len(set(gather_over_ranks(digest))) == 1:
            return
        if self.rank:
            raise FailedElsewhere
        raise UserError("model.init_from: the ranks' machines have different files there; expected the same ones")

    # ------------------------------------------------------------------------------------ the run

    def run(self, profile: bool = False) -> Manifest | None:
        config, schedule = self.config, self.config.schedule
        self._resume()
        with self._together():
            if self.rank == 0:
                write_json(config.folder / "deepspeed.json", self.engine.config)
                self.metrics = log.Metrics(config.folder, self.progress.update, self._wandb())
                self._header()
        if self.progress.update == 0:
            self._evaluate(0)
        session_start = time.monotonic() - self.progress.seconds
        window = Window(**self.progress.interval) if self.progress.interval else Window()
        self.model.train()
        tracing = Profile(config.folder / "profile", self.rank, self.progress.update) if profile else None
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
                    update, self.stage.hash, self.progress.tokens + tokens, time.monotonic() - session_start
                )
                if tracing:
                    with self._together():
                        tracing.after(update, stop or update == schedule.updates)
                if update % config.run.log_every == 0 or update == schedule.updates:
                    self._log(window, done.norm)
                    window = Window()
                if update % config.run.evaluate_every == 0 or update == schedule.updates:
                    self._evaluate(update)
                if update % config.run.checkpoint_every == 0 or update == schedule.updates or stop:
                    self._save(window)
                if stop and update < schedule.updates:
                    raise Stopped(f"stopped after update {update}, with a checkpoint")
        return self._finish() if self.rank == 0 else None

    def _update(self, share: Share, asked: list[int]) -> "Update":
        # every rank must divide by the same counts, and stop after the same update if any was asked to
        counts = [share.masked_tokens, share.pairs, share.tokens, bool(asked)]
        masked, pairs, tokens, stop = sum_over_ranks(counts, self.device)
        objectives = 2 if self.model.next_sentence else 1
        divisors = torch.tensor([masked, pairs][:objectives], device=self.device).clamp(min=1.0)
        sums = torch.zeros(objectives, dtype=torch.float64, device=self.device)  # read once: reading waits for the GPU
        for micro_batch in share.micro_batches:
            batch = micro_batch.to(self.device)
            # ranks draw different noise, and the same layout draws the same again
            torch.manual_seed(seed64(self.config.seed, Purpose.DROPOUT, share.update, batch.first))
            found = self.engine(batch.inputs, batch.attention, batch.positions, batch.labels, batch.follows)
            self.engine.backward((found / divisors).sum())
            sums += found.detach()
        loss_sum, pair_loss_sum = [*sum_over_ranks(sums.tolist(), self.device), 0.0][:2]
        if not math.isfinite(loss_sum + pair_loss_sum):
            raise self._diverged(share.update, "loss", loss_sum + pair_loss_sum)
        norm = self.engine.step(learning_rate(share.update, self.config.optim, self.config.schedule))
        if not math.isfinite(norm):
            raise self._diverged(share.update, "gradient norm", norm)
        return Update(loss_sum, int(masked), pair_loss_sum, int(pairs), int(tokens), norm, stop > 0)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Work that can fail on one rank alone, such as writing: all know how it ended before any goes on. Otherwise
        the others would die in their next collective, with a traceback that hides the reason."""
        fault: Exception | None = None
        try:
            yield
        except (UserError, OSError) as error:
            fault = error
        (failed,) = sum_over_ranks([fault is not None], self.device)
        if fault:
            raise fault
        if failed:
            raise FailedElsewhere

    def _diverged(self, update: int, what: str, value: float) -> UserError | FailedElsewhere:
        if self.rank:
            return FailedElsewhere()
        kept = checkpoint.newest(self.checkpoints)
        rest = f"; the checkpoint of update {kept.progress.update} is whole" if kept else ""
        return UserError(
            f"update {update}: the {what} is {value}: training diverged{rest}. Lower optim.peak_lr or lengthen "
            "schedule.warmup and give it a new name (--new-run NAME)"
        )

    # ------------------------------------------------------------------------------------ around the updates

    def _resume(self) -> None:
        """Go on from the newest complete checkpoint: rank 0 chooses and reads it, and sends it to the others."""
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
        self.progress = Progress(int(update), self.stage.hash, int(tokens), seconds, counted.interval)

    def _names(self) -> list[str]:
        """Parameter names as transformers has them: a checkpoint knows nothing of our wrapper."""
        return [name.removeprefix("model.") for name, _ in self.model.named_parameters()]

    def _save(self, window: "Window") -> None:
        if self.metrics:
            self.metrics.sync()
        self.progress = replace(self.progress, interval=vars(window).copy())
        tensors = ((name.removeprefix("model."), w, m, v) for name, w, m, v in self.engine.full_tensors())
        with self._together():
            checkpoint.save(self.checkpoints, self.progress, tensors, self.rank == 0, self.config.run.keep_checkpoints)

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
        total = result.total
        if not math.isfinite(total.loss):
            raise self._diverged(update, "validation loss", total.loss)
        self.progress = replace(self.progress, validation_loss=total.loss)
        if self.metrics:
            line = result.line()
            self.metrics.write("evaluations", {"update": update, **line})
            log.say_fields(
                [
                    f"validation {update:>7}/{config.schedule.updates}",
                    f"loss {total.loss:7.4f} nats",
                    f"{line['validation_bits']:.4f} bits",
                    f"perplexity {line['validation_perplexity']:.2f}",
                    f"accuracy {total.accuracy:.2%}",
                    f"{total.masked_tokens:,} masked tokens",
                ]
            )
            for name, score in result.sources.items() if len(result.sources) > 1 else ():
                log.say_fields(
                    [
                        f"  {name}",
                        f"loss {score.loss:7.4f} nats",
                        f"accuracy {score.accuracy:.2%}",
                        f"{score.masked_tokens:,} masked tokens",
                    ]
                )

    def _log(self, window: "Window", norm: float) -> None:
        if not self.metrics:
            return
        update, schedule = self.progress.update, self.config.schedule
        rate = window.tokens / window.seconds
        order, done = self.batches.order, self.sizes.before(update + 1)
        before = self.sizes.before(update + 1 - int(window.updates))
        left = (self.sizes.before(schedule.updates + 1) - done) * window.seconds / (done - before)
        peak = peak_tflops(self.config.run, _gpu(self.device))
        line: dict[str, Any] = {
            "update": update,
            "epoch": done / order.size,
            "loss": window.loss_sum / max(1.0, window.masked_tokens),
            **({"next_sentence_loss": window.pair_loss_sum / window.pairs} if window.pairs else {}),
            "lr": learning_rate(update, self.config.optim, schedule),
            "grad_norm": norm,
            "masked_tokens": int(window.masked_tokens),
            "tokens": self.progress.tokens,
            "tokens_per_second": rate,
            **({"mfu": utilisation(rate, self._flops_per_token(), self.ranks, peak)} if peak else {}),
            "data_wait": window.waited / window.seconds,
            "memory_gb": _memory(self.device) / 1e9,
            "seconds": self.progress.seconds,
        }
        self.metrics.write("metrics", line)
        log.say_fields(
            [
                f"update     {update:>7}/{schedule.updates}",
                f"loss {line['loss']:7.4f}",
                f"left {log.duration(left):>7}",
                f"{rate:>9,.0f} tokens/s",
                *([f"mfu {line['mfu']:6.1%}"] if peak else []),
                f"lr {line['lr']:.3e}",
                f"norm {norm:8.3f}",
                f"epoch {line['epoch']:7.3f}",
                f"wait {line['data_wait']:4.0%}",
                f"{line['memory_gb']:5.1f} GB",
            ]
        )

    def _header(self) -> None:
        config, optim = self.config, self.config.optim
        full, size = self.sizes.full, self.batches.order.size
        per_update = full * self.batches.order.mean_length
        rising = config.schedule.batch_warmup
        peak = peak_tflops(config.run, _gpu(self.device))
        log.table(
            f"pretraining {config.name}",
            {
                "recipe": f"{self.stage.hash[:12]}  (code {manifest.commit()[:12] or 'not from a checkout'})",
                "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "deepspeed"))
                + f", python {sys.version.split()[0]}",
                "devices": f"{self.ranks} x {_device_name(self.device)}, {config.run.precision}, "
                f"ZeRO stage {config.run.zero_stage}",
                "parameters": self.parameters,
                "blocks": f"{len(self.train_blocks):,} of {config.data.block_length} ({config.data.format})",
                **({"epoch": f"{self.batches.order.size:,} blocks: {self._mixture()}"} if config.repeats else {}),
                **({"peak": f"{peak:g} TFLOP/s of each"} if peak else {}),
                "update": f"{full:,} blocks, {per_update:,.0f} tokens: {self.ranks} ranks x "
                f"{config.run.micro_batch} x {self.batches.accumulation}"
                + (f"; from {self.sizes.blocks(1):,} blocks over {rising.updates:,} updates" if rising else ""),
                "updates": f"{config.schedule.updates:,}, "
                f"{self.sizes.before(config.schedule.updates + 1) / size:,.2f} epochs",
                "rate": f"{optim.peak_lr:g} after {config.schedule.warmup:,} updates",
                "folder": config.folder,
            },
        )
        if full > size:
            log.warn(
                f"an update ({full:,} blocks) is larger than an epoch ({size:,}): "
                "it meets blocks more than once, under other masks"
            )

    def _flops_per_token(self) -> float:
        """Of one token that is no padding; attention goes over blocks of the mean length, so that the figure is never
        too high for formats whose blocks are short."""
        length = round(self.batches.order.mean_length)
        return budget.flops_per_token(self.config.model, self.vocabulary.size, length, self.config.masking.probability)

    def _wandb(self) -> log.Wandb | None:
        asked = self.config.run.wandb
        if asked is None:
            return None
        return log.Wandb(asked.project, asked.entity, self.config.name, self.stage.hash, self.config.page)

    def _mixture(self) -> str:
        """The sources that are trained on, and how many times each comes in an epoch."""
        sources = zip(
            self.train_blocks.store.sources, self.config.repeats, self.batches.order.mixture.sizes, strict=True
        )
        return ", ".join(f"{name} x {times:g}" for name, times, blocks in sources if blocks)

    def _finish(self) -> Manifest:
        assert self.metrics
        self.metrics.close()
        last = checkpoint.newest(self.checkpoints, self.stage.hash)
        assert last and last.progress.update == self.config.schedule.updates
        evaluations = log.read_metrics(self.config.folder / "evaluations.jsonl")
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
        kept = {last.folder, *([checkpoint.folder_of(self.checkpoints, best.update)] if best else [])}
        outputs = [
            *(path / name for path in sorted(kept) for name in checkpoint.FILES),
            *(self.config.folder / name for name in records),
        ]
        notes = {"ranks": self.ranks, "run": self.config.run.model_dump(mode="json")}
        if self.config.repeats:
            notes["mixture"] = self._mixture()
        return self.stage.finish(outputs, counts, notes)


class Update(NamedTuple):
    """What an update was, over all ranks. Sums of losses in nats."""

    loss_sum: float
    masked_tokens: int
    pair_loss_sum: float
    pairs: int
    tokens: int
    norm: float
    """Of the whole gradient, before clipping."""
    stop: bool
    """Whether a rank was asked to stop."""


@dataclass
class Window:
    """Sums over the updates of one logging interval."""

    loss_sum: float = 0.0
    masked_tokens: float = 0.0
    pair_loss_sum: float = 0.0
    pairs: float = 0.0
    tokens: float = 0.0
    waited: float = 0.0
    seconds: float = 0.0
    updates: float = 0.0

    def add(self, update: Update, waited: float, seconds: float) -> None:
        self.loss_sum += update.loss_sum
        self.masked_tokens += update.masked_tokens
        self.pair_loss_sum += update.pair_loss_sum
        self.pairs += update.pairs
        self.tokens += update.tokens
        self.waited += waited
        self.seconds += seconds
        self.updates += 1


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that ask to stop (SIGUSR1: Slurm's word that the time is nearly over); the update under
    way is finished first."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _memory(device: torch.device) -> int:
    """Bytes at the peak: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _gpu(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def _device_name(device: torch.device) -> str:
    return _gpu(device) or f"CPU ({torch.get_num_threads()} threads)"
