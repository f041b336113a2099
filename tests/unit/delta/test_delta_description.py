"""What a delta's folder says of itself."""

import json
from collections.abc import Callable
from functools import partial

import pytest

from robustly import UserError
from robustly.delta.config import DeltaExperiment
from robustly.delta.stage import make_delta
from robustly.delta.storage.saving import read_record
from robustly.inspection.describe import describe_folder
from robustly.manifest import Stage

describe = partial(describe_folder, kind="delta")


def test_a_delta(make_config: Callable[..., DeltaExperiment]) -> None:
    config = make_config("optim.epochs=0.5")
    folder = config.folder("delta")
    made = make_delta(config)
    found = describe(folder)
    assert json.loads(json.dumps(found.json(), allow_nan=False))["kind"] == "delta"
    assert "lora delta" in found.summary and "3 labels" in found.summary
    figures = found.figures
    assert (figures["lora_rank"], figures["lora_targets"]) == (4, "query, value")
    assert figures["accuracy"] == made.counts["accuracy"]
    assert figures["delta_parameters"] == made.counts["delta_parameters"] == 2 * 2 * 2 * 32 * 4
    assert figures["labels"] == ", ".join(read_record(folder).labels)
    assert len(found.examples[0].rows) == config.delta.seeds
    (folder / "scores.json").write_text("")
    with pytest.raises(UserError, match=r"scores\.json: 0 bytes"):
        describe(folder)


def test_an_unfinished_delta(make_config: Callable[..., DeltaExperiment]) -> None:
    folder = make_config().folder("delta")
    with Stage(folder, "delta", {}, {}).begin():
        found = describe(folder)
    assert "not finished" in found.summary and "robustly delta CONFIG" in found.notes[0]
