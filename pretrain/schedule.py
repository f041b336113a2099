"""The learning rate of each update: a pure function (the paper's section 3.1; fairseq's polynomial_decay)."""

import math

from pretrain.config import Optim, Schedule


def learning_rate(update: int, optim: Optim, schedule: Schedule) -> float:
    """The rate of update number `update`, counted from 1; 0 is the state before training, rate 0.

    Linear from 0 to the peak over `warmup` updates, peak at update `warmup` itself; then to 0 at update
    `updates` along a line (power 1, as in fairseq) or half a cosine, or not at all. `wsd`, "warmup, stable, decay":
    at the peak up to the last `decay_updates`, then along 1 - sqrt (Hägele et al. 2024, section 3).
    """
    if update <= schedule.warmup and schedule.warmup:
        return optim.peak_lr * update / schedule.warmup
    done = (update - schedule.warmup) / max(1, schedule.updates - schedule.warmup)
    match schedule.decay:
        case "linear":
            return optim.peak_lr * max(0.0, 1.0 - done)
        case "cosine":
            return optim.peak_lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        case "constant":
            return optim.peak_lr
        case "wsd":
            since = update - (schedule.updates - schedule.decay_updates)
            return (
                optim.peak_lr * (1.0 - math.sqrt(min(1.0, since / schedule.decay_updates)))
                if since > 0
                else optim.peak_lr
            )
