"""The example of CONTRIBUTING.md works: a delta method is a file and a line."""

import re
from pathlib import Path
from typing import Any

import pytest
from attached import at_size_of_roberta_base, batch, new_model, scores, train

from robustly.delta import methods
from robustly.delta.attachment import attach, count
from robustly.delta.base_model import Base
from robustly.delta.conformance import check_conformance
from robustly.delta.methods.method import Method
from robustly.delta.storage.merging import merge

CONTRIBUTING = Path(__file__).parents[3] / "CONTRIBUTING.md"


@pytest.fixture
def norm_tuning(monkeypatch: pytest.MonkeyPatch) -> type[Method]:
    """The method of the example, registered."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    section = text.partition("## Adding a delta method\n")[2].partition("\n## ")[0]
    code = re.search(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert code and "here `NormTuning`" in section
    module: dict[str, Any] = {"__name__": "robustly.delta.methods.norm_tuning"}
    exec(code[1], module)
    monkeypatch.setattr(methods, "METHODS", (*methods.METHODS, module["NormTuning"]))
    return module["NormTuning"]


def test_it_trains(norm_tuning: type[Method]) -> None:
    model = attach(new_model(), [{"name": "layer_norm"}])
    expected = {name for name, _ in new_model().named_parameters() if "LayerNorm" in name}
    before = scores(model, batch())
    reached = train(model, batch(labels=True))
    assert {name for name in reached if name not in model.delta.head} == expected
    assert not scores(model, batch()).equal(before)
    assert scores(merge(model), batch()).equal(scores(model, batch()))


def test_it_conforms(norm_tuning: type[Method], base: Base) -> None:
    (found,) = check_conformance(base, [{"name": "layer_norm"}])
    assert found.trained == 2 * 32 * 5
    assert count(at_size_of_roberta_base().config, "layer_norm") == 38_400
