"""What a run says of itself: a header, a line for each interval and evaluation, and the same
figures in files."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

from robustly import log, manifest
from robustly.data_prep.sampler import EpochSampler
from robustly.metrics import Metrics, WandbRun
from robustly.pretrain.batches import Batches
from robustly.pretrain.checkpoint import Progress
from robustly.pretrain.flops import flops_per_token
from robustly.pretrain.mfu import model_flops_utilization, peak_tflops
from robustly.pretrain.schedule import learning_rate
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.validation import ValidationResult
from robustly.resources import peak_memory


class UpdateResult(NamedTuple):
    """What an update was, over all ranks. Sums of losses in nats."""

    masked_tokens: int
    pairs: int
    tokens: int
    norm: float
    """Of the whole gradient, before clipping."""
    stop: bool
    """Whether a rank was asked to stop."""
    loss_sum: float
    pair_loss_sum: float = 0.0
    soft_loss_sum: float = 0.0
    cosine_loss_sum: float = 0.0


@dataclass
class IntervalSums:
    """Sums over the updates of one logging interval."""

    loss_sum: float = 0.0
    masked_tokens: float = 0.0
    pair_loss_sum: float = 0.0
    pairs: float = 0.0
    tokens: float = 0.0
    waited: float = 0.0
    seconds: float = 0.0
    updates: float = 0.0
    soft_loss_sum: float = 0.0
    cosine_loss_sum: float = 0.0

    def add(self, update: UpdateResult, waited: float, seconds: float) -> None:
        self.loss_sum += update.loss_sum
        self.masked_tokens += update.masked_tokens
        self.pair_loss_sum += update.pair_loss_sum
        self.soft_loss_sum += update.soft_loss_sum
        self.cosine_loss_sum += update.cosine_loss_sum
        self.pairs += update.pairs
        self.tokens += update.tokens
        self.waited += waited
        self.seconds += seconds
        self.updates += 1


class TrainingLog:
    """Terminal, metrics.jsonl, evaluations.jsonl, TensorBoard, Weights & Biases."""

    def __init__(
        self,
        config: PretrainingConfig,
        recipe: str,
        batches: Batches,
        ranks: int,
        device: torch.device,
        update: int,
    ):
        """`recipe`: hash of the stage. `update`: the run goes on after this one; later lines in the
        files are cut."""
        self.config, self.recipe, self.batches, self.ranks, self.device = (
            config,
            recipe,
            batches,
            ranks,
            device,
        )
        asked = config.run.wandb
        wandb = (
            WandbRun(asked.project, asked.entity, config.name, recipe, config.resolved())
            if asked
            else None
        )
        self.metrics = Metrics(config.folder("train"), update, wandb)
        self.peak = peak_tflops(config.run, _gpu(device))
        # Of one token that is no padding; attention goes over blocks of the mean length, so that
        # the figure is never too high for formats whose blocks are short.
        self.flops_per_token = flops_per_token(
            config.model,
            batches.vocabulary.size,
            round(batches.order.mean_length),
            config.masking.probability,
        )

    def header(self, parameters: int) -> None:
        config, optim, order, sizes = (
            self.config,
            self.config.optim,
            self.batches.order,
            self.batches.sizes,
        )
        rising = config.schedule.batch_warmup
        log.table(
            f"pretraining {config.name}",
            {
                "recipe": (
                    f"{self.recipe[:12]}  (code {manifest.commit()[:12] or 'not from a checkout'})"
                ),
                "versions": (
                    ", ".join(
                        f"{name} {version(name)}" for name in ("torch", "transformers", "deepspeed")
                    )
                    + f", python {sys.version.split()[0]}"
                ),
                "devices": (
                    f"{self.ranks} x"
                    f" {_gpu(self.device) or f'CPU ({torch.get_num_threads()} threads)'},"
                    f" {config.run.precision}, ZeRO stage {config.run.zero_stage_for(self.ranks)}"
                ),
                "parameters": parameters,
                "blocks": (
                    f"{len(order.blocks):,} of {config.data.block_length} ({config.data.format})"
                ),
                **(
                    {"epoch": f"{order.size:,} blocks: {mixture(order, config.corpus.repeats)}"}
                    if config.corpus.repeats
                    else {}
                ),
                **({"peak": f"{self.peak:g} TFLOP/s of each"} if self.peak else {}),
                "update": (
                    f"{sizes.full:,} blocks, {sizes.full * order.mean_length:,.0f} tokens:"
                    f" {self.ranks} ranks x {config.run.micro_batch} x {self.batches.accumulation}"
                    + (
                        f"; from {sizes.blocks(1):,} blocks over {rising.updates:,} updates"
                        if rising
                        else ""
                    )
                ),
                "updates": (
                    f"{config.schedule.updates:,}, "
                    f"{sizes.before(config.schedule.updates + 1) / order.size:,.2f} epochs"
                ),
                "rate": f"{optim.peak_lr:g} after {config.schedule.warmup:,} updates",
                "folder": config.folder("train"),
            },
        )
        if sizes.full > order.size:
            log.warn(
                f"an update ({sizes.full:,} blocks) is larger than an epoch ({order.size:,}): "
                "it meets blocks more than once, under other masks"
            )

    def interval(
        self, window: IntervalSums, progress: Progress, norm: float, loss_scale: float
    ) -> None:
        """The updates of a window, of which the last had this norm; `loss_scale` is not 1 in fp16
        alone."""
        update, schedule, sizes = progress.update, self.config.schedule, self.batches.sizes
        rate = window.tokens / window.seconds
        done = sizes.before(update + 1)
        before = sizes.before(update + 1 - int(window.updates))
        left = (sizes.before(schedule.updates + 1) - done) * window.seconds / (done - before)
        line: dict[str, Any] = {
            "update": update,
            "epoch": done / self.batches.order.size,
            "loss": window.loss_sum / max(1.0, window.masked_tokens),
            **({"next_sentence_loss": window.pair_loss_sum / window.pairs} if window.pairs else {}),
            **(
                {
                    "soft_loss": window.soft_loss_sum / max(1.0, window.masked_tokens),
                    "cosine_loss": window.cosine_loss_sum / window.tokens,
                }
                if self.config.distillation
                else {}
            ),
            "lr": learning_rate(update, self.config.optim, schedule),
            "grad_norm": norm,
            **({"loss_scale": loss_scale} if self.config.run.precision == "fp16" else {}),
            "masked_tokens": int(window.masked_tokens),
            "tokens": progress.tokens,
            "tokens_per_second": rate,
            **(
                {"mfu": model_flops_utilization(rate, self.flops_per_token, self.ranks, self.peak)}
                if self.peak
                else {}
            ),
            "data_wait": window.waited / window.seconds,
            "memory_gb": peak_memory(self.device) / 1e9,
            "seconds": progress.seconds,
        }
        self.metrics.write("metrics", line)
        log.say_fields(
            [
                f"update     {update:>7}/{schedule.updates}",
                f"loss {line['loss']:7.4f}",
                f"left {log.duration(left):>7}",
                f"{rate:>9,.0f} tokens/s",
                *([f"mfu {line['mfu']:6.1%}"] if self.peak else []),
                f"lr {line['lr']:.3e}",
                f"norm {norm:8.3f}",
                f"epoch {line['epoch']:7.3f}",
                f"wait {line['data_wait']:4.0%}",
                f"{line['memory_gb']:5.1f} GB",
            ]
        )

    def evaluation(self, update: int, result: ValidationResult) -> None:
        line = result.line()
        self.metrics.write("evaluations", {"update": update, **line})
        log.say_fields(
            [
                f"validation {update:>7}/{self.config.schedule.updates}",
                f"loss {result.total.loss:7.4f} nats",
                f"{line['validation_bits']:.4f} bits",
                f"perplexity {line['validation_perplexity']:.2f}",
                f"accuracy {result.total.accuracy:.2%}",
                f"{result.total.masked_tokens:,} masked tokens",
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


def mixture(order: EpochSampler, repeats: Sequence[float]) -> str:
    """The sources that are trained on, and how many times each comes in an epoch."""
    sources = zip(order.blocks.store.sources, repeats, order.mixture.sizes, strict=True)
    return ", ".join(f"{name} x {times:g}" for name, times, blocks in sources if blocks)


def _gpu(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
