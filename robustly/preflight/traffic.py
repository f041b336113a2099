"""How many bytes a rank sends over the network in an update, as the engine has DeepSpeed 0.19.8
send them. Plain arithmetic, without torch.

Ring algorithms, as NCCL's: of n bytes, a rank of R sends n (R - 1) / R to scatter the sum or to
gather the parts, and twice as many where all are to have the sum (Patarasuk and Yuan 2009). A ring
goes through a machine once, so that of all of its ranks together no more leave it."""

from dataclasses import dataclass

from robustly.preflight.memory import DTYPE_BYTES, offloads_optimizer
from robustly.pretrain.config import RunConfig

NETWORKS = {
    "NVLink of an H100, 450 GB/s": 450e9,
    "8 x 400 Gb/s a machine": 400e9,
    "400 Gb/s a machine": 50e9,
    "100 Gb/s a machine": 12.5e9,
}
"""Bytes per second, one way. Rated ones: a ring reaches some 80% of them."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in an update."""

    gradients: int
    weights: int
    hidden: int
    """Of the gradients, those that are on their way while the last backward pass goes on: it hides
    as much of their time as it has left itself."""

    @property
    def total(self) -> int:
        return self.gradients + self.weights

    def seconds(self) -> dict[str, float]:
        """On each network, at its rated speed."""
        return {name: self.total / speed for name, speed in NETWORKS.items()}


def traffic(
    run: RunConfig, ranks: int, parameters: int, micro_batches: int, embeddings: int = 0
) -> Traffic:
    """Of an update of so many micro-batches on each rank. `embeddings`: those of the parameters
    whose gradients come last, when nothing is left to hide them.

    Bytes of a parameter, but for (R - 1) / R; a: micro-batches; s: bytes of a number in the run's
    precision; r: of `run.reduce_dtype`:

        stage 0          gradients 8
        stage 1, bf16    gradients r              weights 2
        stage 1, others  gradients 8              weights s
        stage 2          gradients 2 r a          weights s
        stage 3          gradients r a            weights 2 s a

    DeepSpeed's stages 1 and 2 give every rank the whole sum; ours, stage 1 in bf16, gives each its
    part, bucket by bucket, whether layers are compiled or not (robustly.pretrain.reduction). Stage
    3 gathers the weights for each pass, forward and backward."""
    stage, size = run.zero_stage_for(ranks), DTYPE_BYTES[run.precision]
    reduced = DTYPE_BYTES[run.reduce_dtype]
    by_parts = stage == 1 and run.precision == "bf16" and not offloads_optimizer(run)
    if stage == 0:
        gradients, weights = 8, 0
    elif stage == 1:
        gradients, weights = reduced if by_parts else 2 * reduced, size
    elif stage == 2:
        gradients, weights = 2 * reduced * micro_batches, size
    else:
        gradients, weights = reduced * micro_batches, 2 * size * micro_batches

    sent = parameters * (ranks - 1) / ranks
    hidden = gradients * (1 - embeddings / parameters) if by_parts else 0
    return Traffic(round(sent * gradients), round(sent * weights), round(sent * hidden))
