"""A model's weights in fp32 and what Adam keeps of each, whole, wherever DeepSpeed holds them: on
every rank, or under ZeRO in parts spread over the ranks."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robustly import UserError, heartbeat
from robustly.heartbeat import Phase
from robustly.pretrain.deepspeed_runtime import deepspeed
from robustly.pretrain.optimizer import AVERAGE, GuardedAdamW

MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names of Adam's first and second moment


class ShardedTensors:
    """Those of a model that DeepSpeed trains; the same on any number of ranks and ZeRO stage."""

    def __init__(
        self,
        model: nn.Module,
        adam: GuardedAdamW,
        engine: deepspeed.DeepSpeedEngine,
        weights: Mapping[str, Tensor],
        average: bool,
        device: torch.device,
    ):
        """`weights`: whole, by name, that the model begins with, without the rows that pad the
        vocabulary; DeepSpeed made its fp32 weights from rounded ones in bf16. `average`: whether
        one of the weights is kept."""
        self._model, self.device = model, device
        self.kept = (*MOMENTS, AVERAGE) if average else MOMENTS
        """What is kept of each weight beside it."""
        self._adam, self._engine = adam, engine
        self._shapes = {
            name: weights[name].shape for name, p in model.named_parameters() if p.requires_grad
        }
        self.count = sum(shape.numel() for shape in self._shapes.values())
        """How many numbers the weights are."""
        self._prepare_moments()
        for name, parameter in self.parameters():
            weight = _padded(weights[name], _shape(parameter))
            self.set_weight(parameter, weight)
            if average:
                self._set_kept(parameter, AVERAGE, weight)

    @property
    def sharded(self) -> bool:
        """Whether they are gathered from the ranks, so that nobody else holds what is read; else
        that is the training's own, which the next step changes."""
        return self._engine.optimizer is not self._adam

    @property
    def _partitioned(self) -> bool:
        """ZeRO 3: a rank holds parts of parameters, too."""
        return self._engine.zero_optimization_stage() == 3

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All that are trained, by the names that they had before DeepSpeed."""
        trained = (p for p in self._model.parameters() if p.requires_grad)
        yield from zip(self._shapes, trained, strict=True)

    # ---------------------------------------------------------------------------------------- whole

    def full(self) -> Iterator[tuple[Any, ...]]:
        """(name, fp32 weight, first moment, second moment) of each parameter, whole, one at a time;
        then the average of the weight, where one is kept. Without the rows that pad the vocabulary.

        Collective: every rank must go through all of them.
        """
        for name, parameter in self.parameters():
            heartbeat.mark(Phase.SAVE)
            if self.sharded:
                weight = deepspeed.utils.safe_get_full_fp32_param(parameter)
                kept = [
                    deepspeed.utils.safe_get_full_optimizer_state(parameter, each)
                    for each in self.kept
                ]
            else:
                weight = parameter.detach()
                kept = [self._adam.state[parameter][each] for each in self.kept]

            rows = self._shapes[name][0]
            yield name, *(each[:rows] for each in (weight, *kept))

    def restore(self, tensors: Iterator[tuple[Tensor, ...]] | None, steps: int) -> None:
        """Put back what `full` gave after `steps` optimizer steps, on any number of ranks and ZeRO
        stage.

        Rank 0 passes the tensors in order and sends them to the others, which pass None: only rank
        0 needs to see the checkpoint's files, and no rank can start from another one. Raises
        UserError for a tensor of another shape."""
        for name, parameter in self.parameters():
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
            self.set_weight(parameter, _padded(weight, whole))
            for each, value in zip(self.kept, kept, strict=True):
                self._set_kept(parameter, each, _padded(value, whole))

        for state in self._adam.state.values():
            state["step"].fill_(float(steps))

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
        sums = [sum_of_bits(parameter.detach()) for parameter in replicated.values()]
        if not sums:
            return {}
        return dict(zip(replicated, torch.stack(sums).tolist(), strict=True))  # one wait for a GPU

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Meanwhile the model computes with the average of its weights, which is kept; afterwards
        with the same bits as before. It takes the memory of one tensor. Collective."""
        self._show(AVERAGE)
        yield
        self._show()  # not after a fault, which ends the run: ranks could wait for one that is lost

    def _show(self, kept: str | None = None) -> None:
        """Compute with what is kept of the weights; default: with themselves."""
        for _, parameter in self.parameters():
            heartbeat.go_on()
            if not self.sharded:  # what is computed with is all that there is: they change places
                average = self._adam.state[parameter][AVERAGE]
                weight = parameter.detach().clone()
                parameter.data.copy_(average)
                average.copy_(weight)
            elif kept:
                self._set_computed(
                    parameter, deepspeed.utils.safe_get_full_optimizer_state(parameter, kept)
                )
            else:
                self._set_computed(parameter, deepspeed.utils.safe_get_full_fp32_param(parameter))

    # ------------------------------------------------------------------------------------- in parts

    def _prepare_moments(self) -> None:
        """Make Adam's moments, zeros, and the average, now: DeepSpeed would make and link them in
        the first step only."""
        for flat in self._adams_tensors():
            self._adam.state[flat] = {
                "step": torch.zeros((), dtype=torch.float32, device=flat.device),
                **{name: torch.zeros_like(flat, dtype=torch.float32) for name in self.kept},
            }

        if self.sharded and not self._partitioned:
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _adams_tensors(self) -> Iterator[Tensor]:
        """What Adam updates: a rank's part of the flat fp32 weights under ZeRO, the parameters
        without."""
        if self._partitioned:  # they are in Adam's groups only during a step
            yield from self._engine.optimizer.fp32_partitioned_groups_flat
            return
        for group in self._adam.param_groups:
            yield from group["params"]

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set a whole parameter to a value in fp32, with the rows that pad it. Collective."""
        self._set_computed(parameter, value)
        if self._partitioned:
            deepspeed.utils.safe_set_local_fp32_param(parameter, self._part(parameter, value))
        elif self.sharded:
            deepspeed.utils.safe_set_full_fp32_param(parameter, value)

    def _set_computed(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set what forward and backward compute with, in their precision."""
        if not self._partitioned:
            parameter.data.copy_(value)
            return

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if dist.get_rank() == 0:
                parameter.data.copy_(value)

    def _set_kept(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        if self._partitioned:
            deepspeed.utils.safe_set_local_optimizer_state(
                parameter, self._part(parameter, value), name
            )
        elif self.sharded:
            deepspeed.utils.safe_set_full_optimizer_state(parameter, value, name)
        else:
            self._adam.state[parameter][name].copy_(value)

    def _part(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """This rank's part of a tensor under ZeRO 3, where DeepSpeed sets whole ones only if the
        ranks divide their sizes; the last ranks' ends with padding."""
        size, rank = parameter.ds_tensor.numel(), dist.get_rank()  # type: ignore[attr-defined]
        own = value.flatten()[rank * size : (rank + 1) * size]
        return nn.functional.pad(own, (0, size - own.numel()))


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Of the whole parameter: under ZeRO 3 the tensor itself is empty."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _padded(value: Tensor, shape: torch.Size) -> Tensor:
    """With rows of 0 up to this shape."""
    if value.shape == shape:
        return value
    return nn.functional.pad(value, (*(0, 0) * (value.ndim - 1), 0, shape[0] - len(value)))


def sum_of_bits(tensor: Tensor) -> Tensor:
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
