"""DeepSpeed, imported here alone: process group, ZeRO, gradient accumulation, optimizer step, full
tensors for checkpoints.

What DeepSpeed 0.19.8 does by itself and what this module undoes or settles:

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
* ZeRO 3 sets whole tensors only where the ranks divide their sizes; we set each rank's part.
* Stage 1 in bf16 would reduce the whole gradient in fp32 when the backward pass is over:
  `robustly.pretrain.reduction` does it bucket by bucket, each rank's part alone.
* Its throughput timer waits for the GPU twice a micro-batch: switched off.
"""

import contextlib
import io
import logging
import math
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _get_default_store

from robustly import StartAgain, UserError, heartbeat
from robustly.heartbeat import START_TIMEOUT, Phase
from robustly.pretrain import peers
from robustly.pretrain.allocator import keep_freed_memory
from robustly.pretrain.config import OptimConfig, RunConfig
from robustly.pretrain.objective import MaskedLanguageModel
from robustly.pretrain.optimizer import AVERAGE, adamw
from robustly.pretrain.rank_gpu import own_gpu, refuse_shared
from robustly.pretrain.ranks import bound_groups, collective_timeout, numbers_of_ranks
from robustly.pretrain.reduction import Bucket, OverlappedReduction
from robustly.pretrain.score_chunks import chunk_scores

# without it DeepSpeed warns on CPU
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.utils import (
        safe_get_full_fp32_param,
        safe_get_full_optimizer_state,
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names of Adam's first and second moment
LOSS_SCALE_POWER = 16
"""fp16 begins with a loss scale of 2 to this power, as apex does (fairseq: 7), and finds the right
one by itself."""
NORM_TOLERANCE = 1e-6
"""Relative, between ranks: unlike devices may add the same gradient up in another order."""


def start_ranks(local_rank: int, bound: float = START_TIMEOUT) -> torch.device:
    """Join the process group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR,
    MASTER_PORT). `bound`: seconds that a rank may take to come.

    Returns the device of this rank. Raises UserError if this machine has GPUs, but not one for each
    of its ranks, and StartAgain if another program listens where the ranks were to meet.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls what torch will drop
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.cuda.is_available():
        device = torch.device("cuda", own_gpu(local_rank, torch.cuda.device_count()))
        torch.cuda.set_device(device)
        os.environ["LOCAL_RANK"] = str(device.index)  # by which DeepSpeed sets it again
    else:
        device = torch.device("cpu")
        keep_freed_memory()

    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        deepspeed.init_distributed(backend, verbose=False, timeout=collective_timeout(bound))
    except dist.DistNetworkError as fault:
        if "EADDRINUSE" not in str(fault):
            raise
        raise StartAgain(
            f"port {os.environ['MASTER_PORT']} of {socket.gethostname()}, where the ranks were to"
            " meet, is in use by another program, or by what is left of another run; start again,"
            " with another --master-port where you gave one"
        ) from None

    if device.type == "cuda":
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        refuse_shared(uuid, dist.get_rank(), dist.get_world_size(), _get_default_store())

    peers.begin()
    return device


def stop_ranks() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        peers.end()
        dist.destroy_process_group()


def deepspeed_config(
    optim: OptimConfig, run: RunConfig, accumulation: int, ranks: int
) -> dict[str, Any]:
    """DeepSpeed's JSON for a recipe: everything whose default would change the result is stated.

    `run.deepspeed` is laid over it, section by section.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": run.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optim.clip_norm,
        "zero_optimization": {"stage": run.zero_stage_for(ranks)},
        "zero_allow_untested_optimizer": True,  # torch's own AdamW
        "zero_force_ds_cpu_optimizer": False,  # likewise, if it is offloaded
        # immediate: in stage 1, gradients in bf16 live only until they are added up in fp32
        "bf16": {"enabled": run.precision == "bf16", "immediate_grad_update": True},
        "fp16": {
            "enabled": run.precision == "fp16",
            "initial_scale_power": LOSS_SCALE_POWER,
            "loss_scale_window": 1000,
            # the update is tried again at once, and would overflow again at the same scale
            "hysteresis": 1,
        },
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": run.reduce_dtype,
        "steps_per_print": 10**12,
        "timers": {"throughput": {"enabled": False}},
    }
    for key, value in run.deepspeed.items():
        old = config.get(key)
        config[key] = (
            {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        )

    return config


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
        self.rank = dist.get_rank()
        self.device = device
        if run.precision == "fp16" and not get_accelerator().is_fp16_supported():
            raise UserError(
                f"run.precision = fp16: this {device.type} does not compute in it; expected bf16 or"
                " fp32"
            )

        model.to(device)
        self.kept = (*MOMENTS, AVERAGE) if optim.average else MOMENTS
        """What is kept of each weight beside it."""
        self._shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
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
        self._left = accumulation
        self._model = model
        self._adam = adam
        self._clip_norm = optim.clip_norm
        self._norm_of_step = math.nan
        self._reduction: OverlappedReduction | None = None
        if isinstance(self._deepspeed.optimizer, BF16_Optimizer):
            self._reduction = self._own_reduction(DTYPES[run.reduce_dtype])
        if self._reduction or (self.ranks == 1 and not self._sharded):
            self._deepspeed.enable_backward_allreduce = False

        self._prepare_moments()
        # bf16: DeepSpeed made its fp32 weights from the rounded ones
        for name, parameter in self._parameters():
            weight = _padded(weights[name], _shape(parameter))
            self._set_weight(parameter, weight)
            if optim.average:
                self._set_kept(parameter, AVERAGE, weight)

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

        unsharded_norm = None if self._sharded else self._norm()
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
        grads = (p.grad for _, p in self._parameters() if p.grad is not None)
        squares = torch.stack([grad.square().sum(dtype=torch.float64) for grad in grads])
        return math.sqrt(sum(squares.tolist()))

    # --------------------------------------------------------------------------------- full tensors

    @property
    def _sharded(self) -> bool:
        return self._deepspeed.optimizer is not self._adam

    @property
    def gathers(self) -> bool:
        """Whether `full_tensors` are gathered from the ranks, so that nobody else holds them; else
        they are the training's own, which the next step changes."""
        return self._sharded

    @property
    def _partitioned(self) -> bool:
        """ZeRO 3: a rank holds parts of parameters, too."""
        return self._deepspeed.zero_optimization_stage() == 3

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from zip(
            self._shapes, (p for p in self._model.parameters() if p.requires_grad), strict=True
        )

    def _prepare_moments(self) -> None:
        """Make Adam's moments, zeros, and the average, now: DeepSpeed would make and link them in
        the first step only."""
        for flat in self._adams_tensors():
            self._adam.state[flat] = {
                "step": torch.zeros((), dtype=torch.float32, device=flat.device),
                **{name: torch.zeros_like(flat, dtype=torch.float32) for name in self.kept},
            }

        if self._sharded and not self._partitioned:
            self._deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    def _adams_tensors(self) -> Iterator[Tensor]:
        """What Adam updates: a rank's part of the flat fp32 weights under ZeRO, the parameters
        without."""
        if self._partitioned:  # they are in Adam's groups only during a step
            yield from self._deepspeed.optimizer.fp32_partitioned_groups_flat
            return
        for group in self._adam.param_groups:
            yield from group["params"]

    def _set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        if self._partitioned:
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if self.rank == 0:
                    parameter.data.copy_(value)

            safe_set_local_fp32_param(parameter, self._part(parameter, value))
            return

        parameter.data.copy_(value)
        if self._sharded:
            safe_set_full_fp32_param(parameter, value)

    def _set_kept(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        if self._partitioned:
            safe_set_local_optimizer_state(parameter, self._part(parameter, value), name)
        elif self._sharded:
            safe_set_full_optimizer_state(parameter, value, name)
        else:
            self._adam.state[parameter][name].copy_(value)

    def _part(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """This rank's part of a tensor under ZeRO 3; the last ranks' ends with padding."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        own = value.flatten()[self.rank * size : (self.rank + 1) * size]
        return nn.functional.pad(own, (0, size - own.numel()))

    def full_tensors(self) -> Iterator[tuple[Any, ...]]:
        """(name, fp32 weight, first moment, second moment) of each parameter, whole, one at a time;
        then the average of the weight, where one is kept. Without the rows that pad the vocabulary.

        Collective: every rank must go through all of them.
        """
        for name, parameter in self._parameters():
            heartbeat.mark(Phase.SAVE)
            if self._sharded:
                weight = safe_get_full_fp32_param(parameter)
                kept = [safe_get_full_optimizer_state(parameter, each) for each in self.kept]
            else:
                weight = parameter.detach()
                kept = [self._adam.state[parameter][each] for each in self.kept]

            rows = self._shapes[name][0]
            yield name, *(each[:rows] for each in (weight, *kept))

    def checksums(self) -> dict[str, int]:
        """Of the bits of each tensor that every rank holds whole, by name: the parameters in the
        precision of forward and backward, which ranks must share to the last bit. Under ZeRO 3
        only the small ones; of the others there is one copy, spread over the ranks.

        Sums of whole numbers: exact in any order, and another number after any flipped bit."""
        replicated = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if not self._partitioned or getattr(parameter, "ds_persist", False)
        }
        sums = [_sum_of_bits(parameter.detach()) for parameter in replicated.values()]
        if not sums:
            return {}
        return dict(zip(replicated, torch.stack(sums).tolist(), strict=True))  # one wait for a GPU

    def restore(self, tensors: Iterator[tuple[Tensor, ...]] | None, steps: int) -> None:
        """Put back what `full_tensors` gave after `steps` optimizer steps, on any number of ranks
        and ZeRO stage.

        Rank 0 passes the tensors in order and sends them to the others, which pass None: only rank
        0 needs to see the checkpoint's files, and no rank can start from another one. Raises
        UserError for a tensor of another shape."""
        for name, parameter in self._parameters():
            heartbeat.go_on()
            shape = self._shapes[name]
            given = [torch.empty(shape) for _ in (parameter, *self.kept)]
            if tensors is not None:
                given = list(next(tensors))

            for found in given:
                if found.shape != shape:
                    raise UserError(
                        f"the checkpoint of update {steps}: {name} has the shape"
                        f" {tuple(found.shape)}, expected {tuple(shape)}; it is of another model."
                        " Nothing was changed"
                    )

            weight, *kept = (value.to(self.device, torch.float32).contiguous() for value in given)
            for value in (weight, *kept):
                dist.broadcast(value, src=0)

            whole = _shape(parameter)
            self._set_weight(parameter, _padded(weight, whole))
            for each, value in zip(self.kept, kept, strict=True):
                self._set_kept(parameter, each, _padded(value, whole))

        for state in self._adam.state.values():
            state["step"].fill_(float(steps))


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Of the whole parameter: under ZeRO 3 the tensor itself is empty."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _padded(value: Tensor, shape: torch.Size) -> Tensor:
    """With rows of 0 up to this shape."""
    if value.shape == shape:
        return value
    return nn.functional.pad(value, (*(0, 0) * (value.ndim - 1), 0, shape[0] - len(value)))


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """A tensor's content as whole numbers of 64 bits, added modulo 2**64: an int64 on its
    device. At the speed of its memory."""
    flat = tensor.reshape(-1)
    together = 8 // flat.element_size()
    if flat.storage_offset() % together:  # the sum must not depend on where the tensor lies
        flat = flat.clone()

    whole = flat.numel() // together * together
    own_size = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[flat.element_size()]
    rest = flat[whole:].view(own_size).sum(dtype=torch.int64)
    return flat[:whole].view(torch.int64).sum() + rest
