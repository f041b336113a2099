"""The picture of a run."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np

from robustly.publish.curve import draw_curve


def write_records(folder: Path, evaluations: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [{"update": update, "loss": 8 - update / 10} for update in range(1, 21)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if evaluations:
        lines = [{"update": update, "validation_loss": 8 - update / 11} for update in (0, 10, 20)]
        (folder / "evaluations.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines)
        )

    return folder


def test_a_picture_shows_the_losses_and_the_baseline(tmp_path: Path) -> None:
    records = write_records(tmp_path / "train")
    draw_curve(records, 6.7, tmp_path / "with.png")
    draw_curve(records, None, tmp_path / "without.png")
    draw_curve(records, 6.7, tmp_path / "again.png")
    with_baseline, without = (
        matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("with", "without")
    )
    assert with_baseline.shape == without.shape and with_baseline.shape[0] > 300
    red = [
        np.mean((image[..., 0] > 0.7) & (image[..., 1] < 0.3)) for image in (with_baseline, without)
    ]
    assert red[0] > red[1] == 0
    assert (tmp_path / "with.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again.png",
        "train",
        "with.png",
        "without.png",
    ]


def test_a_run_that_held_nothing_out_has_a_picture_too(tmp_path: Path) -> None:
    draw_curve(write_records(tmp_path / "train", evaluations=False), None, tmp_path / "curve.png")
    image = matplotlib.image.imread(tmp_path / "curve.png")
    assert image[..., :3].min() < 0.5 < image[..., :3].max()
