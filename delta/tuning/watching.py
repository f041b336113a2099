"""Decide by what is seen of a training: its dev curve, and its gradients (`optim.watch`).

These are pure functions; `adjusting` looks and acts. What they follow: a rate is halved where the
dev score stands still (as in many recipes since Krizhevsky et al. 2012, section 5), or where it has
fallen, from the best epoch on; a part of a mixture that counts for nothing gives its parameters to
the one that counts most, as AdaLoRA does with the ranks of maps (Zhang et al. 2023)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

PATIENCE = 2
"""Epochs without a better score, or since the last move, before the next one."""
LEARNT = 0.9
"""Share of the loss before training below which something was learnt. Until then a loss that does
not fall from epoch to epoch is that of a rate which is too high: at one that is too low it falls
all the same."""
ENOUGH = 30
"""Updates of an epoch whose loss is believed before anything is learnt; of shorter ones two must
agree."""
FACTOR = 0.5
"""Of a rate that is lowered."""
LEAST = 2.0**-10
"""Smallest share of its own rate that a part is lowered to."""
VANISHED = 0.01
"""Share of what was learnt, or of its first gradients, with which a part counts for nothing."""


@dataclass(frozen=True)
class Look:
    """What is seen after an epoch; the first one is taken before training."""

    epoch: float
    score: float
    """The main score on the dev file, as `robustly.delta.tasks.metrics.gain` has it: the higher the
    better."""
    loss: float
    """On the dev file, nats."""
    gradients: dict[str, float]
    """Of each part, the head and the methods: the mean norm in the epoch's updates."""


Move = Literal["none", "back", "lower", "weigh"]


def move(
    looks: Sequence[Look], moved: int, methods: int, per_epoch: float, baseline: float
) -> Move:
    """What to do after the last look. `back`: to the best epoch with lower rates; `lower` the rate
    of a part; `weigh` the parts of a mixture.

    `moved`: how many looks there were at the last move; `methods`: how many there are; `per_epoch`:
    updates of an epoch; `baseline`: the score of the same answer to all."""
    start, now, best = looks[0], looks[-1], best_of(looks)
    if fell(start, best, now, baseline) and (learnt(start, best) or per_epoch >= ENOUGH):
        return "back"
    if len(looks) - moved < PATIENCE:
        return "none"
    if now is best:
        return "weigh" if methods > 1 and learnt(start, best) else "none"
    since = looks[max(moved, looks.index(best) + 1) :]
    if len(since) < PATIENCE:
        return "none"
    if not learnt(start, best):
        falls = now.loss < min(look.loss for look in (best, *since[:-1]))
        return "none" if falls else "back"
    return "lower" if stands_still(best, since) else "none"


def learnt(start: Look, look: Look) -> bool:
    """Whether the loss is well below the one before training."""
    return look.loss < LEARNT * start.loss


def better(start: Look, best: Look, now: Look) -> bool:
    """Whether an epoch is better than the best one so far. Until something is learnt its loss must
    be lower than before training as well: of many labels chance finds now one more, now one
    less."""
    return now.score > best.score and (learnt(start, best) or now.loss < start.loss)


def best_of(looks: Sequence[Look]) -> Look:
    """The first of the best ones."""
    best = looks[0]
    for look in looks:
        if better(looks[0], best, look):
            best = look

    return best


def fell(start: Look, best: Look, now: Look, baseline: float) -> bool:
    """Whether training has lost more than half of what the best epoch was above the same answer to
    all, and its loss is higher than there; before anything is learnt, higher by a hundredth. (A
    loss that rises while the score stands is that of a model that is too sure of itself.)"""
    half = baseline + max(0.0, best.score - baseline) / 2
    least = best.loss if learnt(start, best) else max(best.loss, start.loss) * 1.01
    return now.loss > least and (now.score <= half or not learnt(start, best))


def stands_still(best: Look, since: Sequence[Look]) -> bool:
    """Whether neither the score nor the loss was better than before in the last epochs. `since`:
    the looks after the best one, and after the last move."""
    least = min(look.loss for look in (best, *since[:-PATIENCE]))
    return all(look.score <= best.score and look.loss >= least for look in since[-PATIENCE:])


def lowered(share: float, times: int = 1) -> float | None:
    """A part's share of its own rate, halved so many times; None where it was lowered enough."""
    return max(LEAST, share * FACTOR**times) if share > LEAST else None


def to_blame(losses: Mapping[str, float]) -> str:
    """Which part's rate is too high: that whose return to the best epoch, alone, leaves the lowest
    loss on the dev file. `losses`: by part."""
    return min(losses, key=losses.__getitem__)


def silent(looks: Sequence[Look], part: str) -> bool:
    """Whether a part's share of the gradient's norm has all but vanished since the first epoch."""
    first, now = (
        look.gradients[part] / norm if (norm := math.hypot(*look.gradients.values())) else 0.0
        for look in (next(look for look in looks if part in look.gradients), looks[-1])
    )
    return now <= VANISHED * first


def gains(now: Look, without: Mapping[str, Look]) -> dict[str, float]:
    """How much higher the loss on the dev file is without each method, nats."""
    return {name: look.loss - now.loss for name, look in without.items()}


def to_switch_off(looks: Sequence[Look], without: Mapping[str, Look]) -> str | None:
    """The method of a mixture that gains the least, if that is next to nothing of what was learnt,
    or if it no longer learns; and if the score does not fall without it."""
    now = looks[-1]
    gained = gains(now, without)
    least = min(gained, key=gained.__getitem__)
    nothing = gained[least] <= VANISHED * (looks[0].loss - now.loss)
    if without[least].score >= now.score and (nothing or silent(looks, least)):
        return least
    return None
