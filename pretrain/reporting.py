"""Report a training: a header, and a line for each logging interval and evaluation, on the
terminal, in metrics.jsonl and evaluations.jsonl, in TensorBoard and at Weights & Biases."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch

from robustly import log, manifest
from robustly.data_prep.sampler import EpochSampler
from robustly.metrics import Metrics, WandbRun
from robustly.pretrain.attention import Attention
from robustly.pretrain.checkpoints.checkpoint import Progress
from robustly.pretrain.clock import Clock
from robustly.pretrain.config import MaskingConfig
from robustly.pretrain.flops import flops_per_token
from robustly.pretrain.mfu import model_flops_utilization, peak_tflops
from robustly.pretrain.phases import Phases
from robustly.pretrain.schedule import learning_rate
from robustly.pretrain.stage import PretrainingConfig, Stretch
from robustly.pretrain.validation import ValidationResult
from robustly.provenance import versions
from robustly.resources import peak_memory


class UpdateResult(NamedTuple):
    """What an update (an optimizer step) was, over all ranks. Sums of losses in nats."""

    masked_tokens: int
    pairs: int
    tokens: int
    norm: float | None
    """Of the whole gradient, before clipping; None of an update that was not made."""
    stop: bool
    """Whether a rank was asked to stop."""
    loss_sum: float = 0.0
    pair_loss_sum: float = 0.0
    soft_loss_sum: float = 0.0
    cosine_loss_sum: float = 0.0
    spikes: int = 0
    """1 if its loss or norm was unusual."""
    skipped: int = 0
    """1 if it was not made: then it has no tokens and no losses."""
    without_targets: int = 0
    """1 if no token of it was a target: then its loss is no measure."""

    @classmethod
    def not_made(cls, stop: bool, spikes: int = 0) -> Self:
        return cls(0, 0, 0, None, stop, spikes=spikes, skipped=1)


@dataclass
class IntervalSums:
    """Sums over the updates of one logging interval."""

    loss_sum: float = 0.0
    masked_tokens: float = 0.0
    pair_loss_sum: float = 0.0
    pairs: float = 0.0
    tokens: float = 0.0
    waited: float = 0.0
    """Seconds of waiting for batches."""
    seconds: float = 0.0
    updates: float = 0.0
    soft_loss_sum: float = 0.0
    cosine_loss_sum: float = 0.0
    spikes: float = 0.0
    skipped: float = 0.0
    without_targets: float = 0.0

    def add(self, update: UpdateResult, waited: float, seconds: float) -> None:
        new = {**update._asdict(), "waited": waited, "seconds": seconds, "updates": 1}
        for name, so_far in vars(self).items():
            setattr(self, name, so_far + new[name])


class TrainingLog:
    """Where the figures of a training go."""

    def __init__(
        self,
        config: PretrainingConfig,
        recipe: str,
        batches: Phases,
        ranks: int,
        device: torch.device,
        progress: Progress,
    ):
        """`recipe`: hash of the stage. `progress`: the run goes on from there; later lines in the
        files are cut. Raises UserError as `Metrics` does."""
        self.config, self.recipe = config, recipe
        self.batches, self.ranks, self.device = batches, ranks, device
        wandb = None
        if asked := config.run.wandb:
            wandb = WandbRun(asked.project, asked.entity, config.name, recipe, config.resolved())

        self.metrics = Metrics(
            config.folder("train"),
            progress.update,
            wandb,
            progress.metrics,
            config.run.accept_lost_metrics,
        )
        self.peak = peak_tflops(config.run, _gpu(device))

    def header(self, parameters: int, hosts: Sequence[str], attention: Attention) -> None:
        """Say what is trained, on what, and in which batches. `hosts`: of each rank."""
        config, run, schedule = self.config, self.config.run, self.config.schedule
        batches, begin, last = self.batches.last, schedule.begin, schedule.updates
        sampler, sizes = batches.sampler, batches.sizes
        commit = manifest.commit()[:12] or "not from a checkout"
        libraries = [f"{name} {version}" for name, version in versions().items()]
        device = _gpu(self.device) or f"CPU ({torch.get_num_threads()} threads)"
        epochs = self.batches.epochs(begin, last)
        repeats, batch = config.corpus.repeats, f"{sizes.full:,} blocks"
        if warmup := schedule.batch_warmup:
            batch += (
                f", from {self.batches.at(1).sizes.blocks(1):,} over {warmup.updates:,} updates"
            )

        rows = {
            "recipe": f"{self.recipe[:12]}  (code {commit})",
            "versions": ", ".join(libraries),
            "hosts": hosts_of_ranks(hosts) if self.ranks > 1 else None,
            "devices": (
                f"{self.ranks} x {device}, {run.precision}, ZeRO stage"
                f" {run.zero_stage_for(self.ranks)}"
            ),
            "attention": attention,
            "parameters": parameters,
            "blocks": (
                f"{len(sampler.blocks):,} of {config.data.block_length} ({config.data.format})"
            ),
            "epoch": f"{sampler.size:,} blocks: {mixture(sampler, repeats)}" if repeats else None,
            "peak": f"{self.peak:g} TFLOP/s of each" if self.peak else None,
            "global batch": f"{batch}; {sizes.full * sampler.mean_length:,.0f} tokens",
            "gradient accumulation": (
                f"{self.batches.accumulation} micro-batches {batches.layout} on each of"
                f" {self.ranks} ranks"
            ),
            "updates": f"{f'{begin + 1:,} to ' if begin else ''}{last:,}, {epochs:,.2f} epochs",
            "hours": schedule.hours,
            "rate": f"{config.optim.peak_lr:g} after {schedule.warmup:,} updates",
            "masking": masking_rates(config.masking),
            "phases": phases(config.stretches()) if config.phases else None,
            "folder": config.folder("train"),
        }
        log.table(f"pretraining {config.name}", _stated(rows))
        if sizes.full > sampler.size:
            log.warn(
                f"an update ({sizes.full:,} blocks) is larger than an epoch ({sampler.size:,}): "
                "it meets blocks more than once, under other masks"
            )

    def interval(
        self,
        sums: IntervalSums,
        progress: Progress,
        norm: float | None,
        loss_scale: float,
        clock: Clock,
    ) -> None:
        """Report a logging interval. `norm`: of its last update; `loss_scale`: 1 but in fp16."""
        update, schedule = progress.update, self.config.schedule
        rate = sums.tokens / sums.seconds
        masked, pairs = max(1.0, sums.masked_tokens), sums.pairs
        tokens = max(1.0, sums.tokens)
        distills, fp16 = self.config.distillation, self.config.run.precision == "fp16"
        masking, masks_change = self.batches.masking_of(update), self.config.masks_change
        soft_over = tokens if distills and distills.soft_over == "tokens" else masked
        mfu = None
        if self.peak:
            operations = self._flops_per_token(update)
            mfu = model_flops_utilization(rate, operations, self.ranks, self.peak)

        line = _stated(
            {
                "update": update,
                "epoch": self.batches.epoch(update),
                "loss": sums.loss_sum / masked if sums.masked_tokens else None,
                "next_sentence_loss": sums.pair_loss_sum / pairs if pairs else None,
                "soft_loss": sums.soft_loss_sum / soft_over if distills else None,
                "cosine_loss": sums.cosine_loss_sum / tokens if distills else None,
                "lr": learning_rate(clock.place(update), self.config.optim, schedule),
                "masking_probability": masking.probability if masks_change else None,
                "grad_norm": norm,
                "loss_scale": loss_scale if fp16 else None,
                "spikes": int(sums.spikes) or None,
                "skipped": int(sums.skipped) or None,
                "without_targets": int(sums.without_targets) or None,
                "masked_tokens": int(sums.masked_tokens),
                "tokens": progress.tokens,
                "tokens_per_second": rate,
                "mfu": mfu,
                "data_wait": sums.waited / sums.seconds,
                "memory_gb": peak_memory(self.device) / 1e9,
                "seconds": progress.seconds,
            }
        )
        self.metrics.write("metrics", line)

        done = self.batches.positions(update - int(sums.updates), update)
        left = self.batches.positions(update, schedule.updates) * sums.seconds / done
        if schedule.hours:
            left = clock.left(update)

        empty = "no targets" if sums.without_targets else "skipped"
        log.say_fields(
            [
                f"update     {update:>7}{self._of_all}",
                f"loss {line['loss']:7.4f}" if sums.masked_tokens else empty,
                f"left {log.duration(left):>7}",
                f"{rate:>9,.0f} tokens/s",
                *([f"mfu {line['mfu']:6.1%}"] if self.peak else []),
                f"lr {line['lr']:.3e}",
                *([f"norm {norm:8.3f}"] if norm is not None else []),
                f"epoch {line['epoch']:7.3f}",
                f"wait {line['data_wait']:4.0%}",
                f"{line['memory_gb']:5.1f} GB",
            ]
        )
        if sums.without_targets:
            log.warn(
                f"{sums.without_targets:,.0f} of these {sums.updates:,.0f} updates had no masked"
                " token to learn from (masking.*, data.block_length, optim.batch_size)"
            )

    def _flops_per_token(self, update: int) -> float:
        """Of one token of an update that is no padding. Attention is counted over blocks of the
        mean length, so that the figure is never too high for formats whose blocks are short."""
        batches = self.batches.at(update)
        return flops_per_token(
            self.config.model,
            batches.special.size,
            round(batches.sampler.mean_length),
            batches.masking_of(update).probability,
        )

    @property
    def _of_all(self) -> str:
        """How many updates there are, where that is known."""
        return "" if self.config.schedule.hours else f"/{self.config.schedule.updates}"

    def evaluation(self, update: int, result: ValidationResult) -> None:
        """Report an evaluation on the held-out blocks."""
        line = result.line()
        self.metrics.write("evaluations", {"update": update, **line})
        log.say_fields(
            [
                f"validation {update:>7}{self._of_all}",
                f"loss {result.total.loss:7.4f} nats",
                f"{line['validation_bits']:.4f} bits",
                f"perplexity {line['validation_perplexity']:.2f}",
                f"accuracy {result.total.accuracy:.2%}",
                f"{result.total.masked_tokens:,} masked tokens",
                *([f"average {result.average.loss:7.4f} nats"] if result.average else []),
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


def _stated(figures: dict[str, Any]) -> dict[str, Any]:
    """Those of the figures that this training has."""
    return {name: value for name, value in figures.items() if value is not None}


def masking_rates(masking: MaskingConfig) -> str | None:
    """The masking rate of the first update and of the last, where they differ."""
    if masking.initial_probability is None:
        return None
    return f"from {masking.initial_probability:.4g} to {masking.probability:.4g} along a line"


def phases(stretches: Sequence[Stretch]) -> str:
    """Where each phase ends, and what may be otherwise in it."""
    return ", then ".join(
        f"blocks of {each.block_length}, {each.masking.probability:.4g} masked, to update"
        f" {each.last:,}"
        for each in stretches
    )


def mixture(sampler: EpochSampler, repeats: Sequence[float]) -> str:
    """The sources that are trained on, and how many times each comes in an epoch."""
    sources = zip(sampler.blocks.store.sources, repeats, sampler.mixture.sizes, strict=True)
    return ", ".join(f"{name} x {times:g}" for name, times, blocks in sources if blocks)


def hosts_of_ranks(hosts: Sequence[str]) -> str:
    """The hosts, with the numbers of their ranks: `gpu01 (0-7), gpu02 (8-15)`."""
    runs = []
    for host, ranks in itertools.groupby(range(len(hosts)), lambda rank: hosts[rank]):
        first, *more = ranks
        runs.append(f"{host} ({f'{first}-{more[-1]}' if more else first})")
    return ", ".join(runs)


def device_name(device: torch.device) -> str:
    """What a rank's device is called: its GPU, or CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _gpu(device: torch.device) -> str | None:
    return device_name(device) if device.type == "cuda" else None
