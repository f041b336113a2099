"""DeepSpeed's engine: ZeRO, gradient accumulation, optimizer step.

What DeepSpeed 0.19.8 does by itself and what is undone or settled, here, in `deepspeed_runtime` or
in `deepspeed_config`:

* `backward` divides the loss by the gradient accumulation steps, and gradients are averaged over
  the ranks. We want the plain sum of the parts of an update's loss, so each is multiplied by steps
  x ranks first.
* Gradient clipping is 1.0 unless set; gradients accumulate in the model's dtype (bf16) unless set.
* On CPU it compiles a shared-memory op that training never uses and that leaves 66 MB per rank
  behind in /dev/shm; we switch it off.
* Its learning-rate schedulers and checkpoints are not used (see schedule.py, checkpoint.py).
* fp16: a gradient that overflows skips the update. Here the update is not lost: the caller computes
  it again, at half the loss scale, so that neither the schedule nor the order of blocks knows of
  it.
* Offloading insists on DeepSpeedCPUAdam, compiled at the start, unless told not to: torch's fused
  AdamW does the same.
* Stage 0 copies the whole gradient into a flat buffer and back even where one rank adds up its own:
  switched off.
* Stage 1 in bf16 would reduce the whole gradient in fp32 when the backward pass is over:
  `robustly.pretrain.reduction` does it bucket by bucket, each rank's part alone.
* Its throughput timer waits for the GPU twice a micro-batch: switched off.
"""

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from robustly import UserError
from robustly.pretrain.config import OptimConfig, RunConfig
from robustly.pretrain.deepspeed_config import deepspeed_config
from robustly.pretrain.deepspeed_runtime import BF16_Optimizer, deepspeed, get_accelerator
from robustly.pretrain.objective import MaskedLanguageModel
from robustly.pretrain.optimizer import adamw
from robustly.pretrain.ranks import bound_groups, numbers_of_ranks
from robustly.pretrain.reduction import Bucket, OverlappedReduction
from robustly.pretrain.score_chunks import chunk_scores
from robustly.pretrain.sharded_tensors import ShardedTensors

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NORM_TOLERANCE = 1e-6
"""Relative, between ranks: unlike devices may add the same gradient up in another order."""


class Step(NamedTuple):
    """What became of an update, the same on every rank."""

    norm: float | None
    """Of the whole gradient, before clipping. None, in fp16: the gradient overflowed, and only the
    loss scale has changed; compute the same update again."""
    sums: list[float]
    """Over the ranks, of what each told."""


class Engine:
    """A model on this rank's device, trained together with the other ranks.

    An update is a forward pass and `backward` for each of its micro-batches on every rank (gradient
    accumulation), then one `step`.
    """

    def __init__(
        self,
        model: MaskedLanguageModel,
        optim: OptimConfig,
        run: RunConfig,
        accumulation: int,
        device: torch.device,
    ):
        self.ranks = dist.get_world_size()
        self.config = deepspeed_config(optim, run, accumulation, self.ranks)
        self.accumulation = accumulation
        self.device = device
        if run.precision == "fp16" and not get_accelerator().is_fp16_supported():
            raise UserError(
                f"run.precision = fp16: this {device.type} does not compute in it; expected bf16 or"
                " fp32"
            )

        model.to(device)
        weights = {name: p.detach().float().clone() for name, p in model.named_parameters()}
        model.pad_vocabulary(run.vocabulary_multiple(device.type))
        if device.type == "cuda":
            model.chunk = chunk_scores(torch.cuda.get_device_properties(device).total_memory)

        stage = run.zero_stage_for(self.ranks)
        adam = adamw(model, optim, bucketed=run.precision == "bf16" and stage == 1)

        # DeepSpeed prints its memory use and has no switch for that
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                self._deepspeed, *_ = deepspeed.initialize(
                    model=model, optimizer=adam, config=self.config
                )
            except Exception as error:
                if not run.deepspeed:
                    raise
                raise UserError(
                    f"run.deepspeed = {run.deepspeed}: DeepSpeed refuses it: {error}"
                ) from error

        bound_groups(run.start_timeout)
        self.tensors = ShardedTensors(
            model, adam, self._deepspeed, weights, optim.average is not None, device
        )
        self.model = model
        self._left = accumulation
        self._adam = adam
        self._clip_norm = optim.clip_norm
        self._norm_of_step = math.nan
        self._reduction: OverlappedReduction | None = None
        if isinstance(self._deepspeed.optimizer, BF16_Optimizer):
            self._reduction = self._own_reduction(DTYPES[run.reduce_dtype])
        if self._reduction or (self.ranks == 1 and not self.tensors.sharded):
            self._deepspeed.enable_backward_allreduce = False

    # ------------------------------------------------------------------------------------ an update

    def begin(self, micro_batches: int) -> None:
        """An update of so many micro-batches begins; without this it has `accumulation`."""
        self._left = micro_batches

    def backward(self, loss: Tensor) -> None:
        """Add one micro-batch's gradient. `loss`: its part of the update's loss, fp32; the parts of
        all micro-batches and ranks add up to it."""
        if self._reduction and self._left == 1:
            self._reduction.begin()

        times = 1 if self._reduction else self.ranks  # DeepSpeed's reduction divides by them
        self._deepspeed.backward(loss * (self.accumulation * times))
        self._left -= 1
        if self._left:
            self._deepspeed.step()  # counts the micro-batch; updates nothing

    @property
    def loss_scale(self) -> float:
        """What DeepSpeed multiplies losses by in fp16, so that small gradients are not lost; 1 in
        other precisions."""
        if not self._deepspeed.fp16_enabled():
            return 1.0
        return float(self._deepspeed.optimizer.loss_scale)

    def step(
        self,
        lr: float,
        accepts: Callable[[float, list[float]], bool] = lambda norm, sums: True,
        tells: Tensor | None = None,
        average_decay: float | None = None,
    ) -> Step:
        """The optimizer step, at rate `lr`. `average_decay`: how much is left of the average of the
        weights, where one is kept.

        `tells`: numbers, (n,) float64 on the device, that are added up over the ranks. They travel
        with the gradient's norm, in the one small collective of an update, and are read with it:
        the one wait for a GPU.

        Before anything changes, `accepts` is asked with norm and sums. Where it says no, and where
        the norm is not finite, no rank makes the step: weights and moments stay as they were, and
        the gradient is gone. Raises UserError, before the step, if the ranks found different
        norms."""
        assert not self._left
        self._left = self.accumulation
        if tells is None:
            tells = torch.empty(0, dtype=torch.float64, device=self.device)

        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = lr

        unsharded_norm = None if self.tensors.sharded else self._norm()
        found: list[tuple[Step, bool]] = []

        def allowed() -> bool:
            if not found:
                if self._reduction:
                    step = self._of_own_parts(self._reduction.finish(), tells)
                elif unsharded_norm is not None:
                    step = self._agreed(unsharded_norm, tells)
                else:
                    step = self._agreed(self._deepspeed.optimizer._global_grad_norm, tells)

                assert step.norm is not None
                self._norm_of_step = step.norm
                yes = math.isfinite(step.norm) and accepts(step.norm, step.sums)
                found.append((step, yes))

            return found[0][1]

        self._adam.allowed, self._adam.average_decay = allowed, average_decay
        self._deepspeed.step()
        if self._deepspeed.fp16_enabled() and self._deepspeed.optimizer.overflow:  # all ranks know
            sums = self._agreed(math.inf, tells).sums
            return Step(None if self.loss_scale > 1.0 else math.inf, sums)

        allowed()  # DeepSpeed itself leaves before Adam where the norm is not finite
        return found[0][0]

    def _agreed(self, norm: float | Tensor, tells: Tensor) -> Step:
        """The norm that all ranks found (rank 0's, where they differ by rounding) and the sums of
        what they tell. They hold the same weights only as long as they see the same gradient."""
        norms, sums = self._exchanged(norm, tells)
        for each in norms:
            if not math.isfinite(each):
                return Step(each, sums)

        if not math.isclose(min(norms), max(norms), rel_tol=NORM_TOLERANCE):
            low, high = (norms.index(value) for value in (min(norms), max(norms)))
            raise UserError(
                f"the ranks found different gradient norms: {norms[low]} on rank {low},"
                f" {norms[high]} on rank {high}; expected the same one. Their weights are no longer"
                " the same, or a device is faulty: go on from the last checkpoint with the same"
                " command, without the machine of the odd rank if it happens again"
            )

        return Step(norms[0], sums)

    def _of_own_parts(self, square: Tensor, tells: Tensor) -> Step:
        """The norm of a gradient of which each rank knows the square of its own part."""
        squares, sums = self._exchanged(square, tells)
        return Step(math.sqrt(total) if (total := sum(squares)) >= 0 else math.nan, sums)

    def _exchanged(self, number: float | Tensor, tells: Tensor) -> tuple[list[float], list[float]]:
        """Each rank's number, and the sums of what they tell."""
        own = torch.as_tensor(number, dtype=torch.float64, device=self.device).reshape(1)
        of_ranks = numbers_of_ranks(torch.cat([own, tells]))
        numbers, *told = (list(column) for column in zip(*of_ranks, strict=True))
        return numbers, [sum(column) for column in told]

    def __call__(self, *inputs: Any) -> Tensor:
        """The forward pass of a micro-batch."""
        self._deepspeed.set_gradient_accumulation_boundary(self._left == 1)
        return self._deepspeed(*inputs)

    def _own_reduction(self, dtype: torch.dtype) -> OverlappedReduction:
        """Of stage 1 in bf16, in place of BF16_Optimizer's reduction and step. The step makes this
        rank's part alone, and computes no norm: `step` knows it."""
        zero = self._deepspeed.optimizer
        buckets = zip(
            zero.bf16_groups,
            zero.fp32_groups_gradients_flat,
            zero.fp32_groups_gradient_flat_partition,
            strict=True,
        )
        reduction = OverlappedReduction([Bucket(*each) for each in buckets], dtype)

        def step() -> None:
            if not self._adam.allowed():
                return

            parts = [bucket.own for bucket in reduction.buckets]
            shrink = self._clip_norm / (self._norm_of_step + 1e-6)
            if self._clip_norm and shrink < 1.0:
                torch._foreach_mul_(parts, shrink)

            for weights, gradient in zip(zero.fp32_groups_flat_partition, parts, strict=True):
                weights.grad = gradient

            self._adam.step()
            zero.update_lp_params()

        zero.step = step
        return reduction

    def _norm(self) -> float:
        """ZeRO stage 0 in fp32 computes no norm; every rank holds the whole, averaged gradient."""
        grads = (p.grad for _, p in self.tensors.parameters() if p.grad is not None)
        squares = torch.stack([grad.square().sum(dtype=torch.float64) for grad in grads])
        return math.sqrt(sum(squares.tolist()))
