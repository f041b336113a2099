"""The gradient's way over the network: added up over the ranks bucket by bucket, while the last
backward pass of an update goes on.

Each rank gets the sum of its own part alone (reduce-scatter, as in ZeRO: Rajbhandari et al. 2020,
section 7.1), which it makes its part of the step with. DeepSpeed 0.19.8 would send the whole
gradient to all of them, in fp32, when the backward pass is over: for P parameters 8 P bytes of each
rank; here they are 4 P, or 2 P in bf16.

The word embeddings come last where the head is tied to them, and nothing is left to hide them
behind: a third of RoBERTa-base's gradient, a seventh of large's."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 2**24
"""Parameters that are reduced together, where they are tensors of less: 34 MB in bf16. Enough of
them to begin early, and large enough for a network's full speed."""


def in_buckets(groups: Sequence[dict[str, Any]], most: int = BUCKET) -> list[dict[str, Any]]:
    """Adam's parameter groups, cut into buckets of at most `most` numbers, or one parameter, in the
    order in which a backward pass finishes them: the reverse of the forward pass's."""
    buckets: list[dict[str, Any]] = []
    for group in groups:
        size = most
        for parameter in reversed(group["params"]):
            size += parameter.numel()
            if size > most:
                buckets.append({**group, "params": []})
                size = parameter.numel()

            buckets[-1]["params"].append(parameter)

    return buckets


class Bucket(NamedTuple):
    """Parameters whose gradients are reduced together."""

    parameters: Sequence[nn.Parameter]
    gradient: Tensor
    """(n,): this rank's gradients of them all, one after the other; n is a multiple of the ranks.
    Once reduced, only its own part is of use."""
    own: Tensor
    """(n / ranks,), a view of it: the part that this rank makes the step with."""


class OverlappedReduction:
    """Reduces buckets in their order, each as soon as it is complete."""

    def __init__(self, buckets: Sequence[Bucket], dtype: torch.dtype):
        """`dtype`: what is sent, and added up, in. The gradients must be added to the buckets by
        hooks that were registered before."""
        self.buckets, self.dtype = buckets, dtype
        self.ranks = dist.get_world_size()
        self._missing: list[set[nn.Parameter]] | None = None  # none outside of a last pass
        self._sent: list[tuple[dist.Work | None, Tensor]] = []
        for number, bucket in enumerate(buckets):
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, number))

    def begin(self) -> None:
        """The backward pass that follows is the last of its update."""
        self._missing = [set(bucket.parameters) for bucket in self.buckets]

    def finish(self) -> Tensor:
        """Wait until every `own` holds the sum over the ranks; the sum of their squares, float64 on
        the device."""
        while len(self._sent) < len(self.buckets):  # whatever had no gradient
            self._send()

        for (work, found), bucket in zip(self._sent, self.buckets, strict=True):
            if work:
                work.wait()
            if found is not bucket.own:
                bucket.own.copy_(found)

        self._missing, self._sent = None, []
        norms = torch._foreach_norm([bucket.own for bucket in self.buckets])
        return torch.stack(norms).double().square().sum()

    def _arrived(self, number: int, parameter: nn.Parameter) -> None:
        if self._missing is None:
            return

        self._missing[number].discard(parameter)
        # every rank must send them in the same order
        while len(self._sent) < len(self.buckets) and not self._missing[len(self._sent)]:
            self._send()

    def _send(self) -> None:
        bucket = self.buckets[len(self._sent)]
        if self.ranks == 1:
            self._sent.append((None, bucket.own))
            return

        found, given = bucket.own, bucket.gradient
        if given.dtype != self.dtype:
            found, given = (each.to(self.dtype) for each in (found, given))

        work = dist.reduce_scatter_tensor(found, given, async_op=True)
        self._sent.append((work, found))
