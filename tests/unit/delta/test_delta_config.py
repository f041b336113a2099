"""Faults of a delta's config: kinds of a union are told apart by a key, and are no keys
themselves."""

from pathlib import Path

import pytest

from robustly import UserError
from robustly.delta.config import load_delta


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("delta.task.trian=x", "delta.task.trian: unknown key (value 'x'); did you mean delta.task.train?"),
        ("delta.task.label=3", "delta.task.label = 3: expected a valid string"),
        ("delta.task.kind=clozze", "delta.task.kind = 'clozze': expected 'classification', 'regression', 'tokens', "),
        ("delta.methods=[{name: lora, rnk: 3}]", "delta.methods.0.rnk: unknown key (value 3); did you mean "
         "delta.methods.0.rank?"),
        ("delta.methods=[{name: lora}, {name: lorra}]", "delta.methods.1.name = 'lorra': expected 'lora', 'dora', "),
        ("delta.methods=[{rank: 3}]", "delta.methods.0.name: missing; it says which kind this is, found {'rank': 3}"),
        ("delta.methods=[lora]", "delta.methods.0 = 'lora': expected a mapping of keys"),
        ("delta.methods=[{name: lora}, {name: lora}]", "expected each method once, found lora, lora"),
        ("optim.epoch=3", "optim.epoch: unknown key (value 3); did you mean optim.epochs?"),
    ],
)  # fmt: skip
def test_a_fault_names_the_key_as_the_page_has_it(place: Path, change: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        load_delta(place / "letters.yaml", [change])
    assert message in str(refused.value)
