"""Loss and gradient norm of every update of a real run that nothing disturbed, for the test that
spikes are not seen where there are none.

    robustly run configs/tiny.yaml paths.root=QUIET schedule.updates=10000 schedule.warmup=500 \
        run.ranks=1 optim.batch_size=16 optim.peak_lr=1e-3 run.micro_batch=16 \
        run.checkpoint_every=5000 run.evaluate_every=5000 run.log_every=1
    python benchmarks/quiet_run.py QUIET/train tests/unit/pretrain/quiet_run.npz

Small updates make it a hard case: each has some 150 masked tokens, so both numbers are noisy."""

import argparse
from pathlib import Path

import numpy as np

from robustly.metrics import read_metrics
from robustly.pretrain.bad_updates.spikes import Usual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path, help="its train folder")
    parser.add_argument("into", type=Path, help="file to write, .npz")
    arguments = parser.parse_args()
    lines = read_metrics(arguments.train / "metrics.jsonl")
    loss, norm = (np.array([line[key] for line in lines]) for key in ("loss", "grad_norm"))
    # four digits and a half: 16 bits would hide small differences, 32 do not compress
    rounded = {
        name: np.round(v, 3).astype(np.float32) for name, v in (("loss", loss), ("norm", norm))
    }
    np.savez_compressed(arguments.into, **rounded)

    for sigma in (4.0, 4.5, 5.0, 5.5, 6.0):
        usual, found = Usual(sigma, {}), 0
        for pair in zip(loss.tolist(), norm.tolist(), strict=True):
            found += usual.spike(*pair) is not None
            usual.add(*pair)

        print(f"{len(lines):,} updates, from {sigma} standard deviations on: {found} spikes")


if __name__ == "__main__":
    main()
