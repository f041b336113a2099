"""Faults of a delta's config: kinds of a union are told apart by a key, and are no keys
themselves."""

from pathlib import Path

import pytest

from robustly import UserError
from robustly.delta.config import load_delta
from robustly.delta.methods import label, parse


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("delta.task.trian=x", "delta.task.trian: unknown key (value 'x'); did you mean delta.task.train?"),
        ("delta.task.label=3", "delta.task.label = 3: expected a valid string"),
        ("delta.task.kind=clozze", "delta.task.kind = 'clozze': expected 'classification', 'multi_label', "),
        ("delta.methods=[{name: lora, rnk: 3}]", "delta.methods.0.rnk: unknown key (value 3); did you mean "
         "delta.methods.0.rank?"),
        ("delta.methods=[{name: lora, r: 3}]", "delta.methods.0.r: unknown key (value 3); did you mean "
         "delta.methods.0.rank?"),
        ("delta.methods=[{name: adapter, r: 3}]", "delta.methods.0.r: unknown key (value 3); known here: lr, name, "),
        ("delta.methods=[{name: adapter, bottleneck_size: 3}]", "did you mean delta.methods.0.size?"),
        ("delta.methods=[{name: prefix, num_virtual_tokens: 3}]", "did you mean delta.methods.0.tokens?"),
        ("delta.methods=[{name: lora, lora_alpha: 3}]", "did you mean delta.methods.0.alpha?"),
        ("delta.methods=[{name: lora, target_modules: [query]}]", "did you mean delta.methods.0.targets?"),
        ("compare.entries=[{methods: [{name: lora, r: 3}]}]", "compare.entries.0.methods.0.r: unknown key (value 3); "
         "did you mean compare.entries.0.methods.0.rank?"),
        ("delta.methods=[{name: lora}, {name: lorra}]", "delta.methods.1.name = 'lorra': expected 'lora', 'dora', "),
        ("delta.methods=lorra", "; did you mean lora?"),
        ("delta.methods=[3]", "delta.methods.0 = 3: expected a mapping of keys"),
        ("delta.methods=[{rank: 3}]", "delta.methods.0.name: missing; it says which kind this is, found {'rank': 3}"),
        ("delta.methods=[{name: lora}, {name: lora}]", "expected each method once, found lora, lora"),
        ("optim.epoch=3", "optim.epoch: unknown key (value 3); did you mean optim.epochs?"),
    ],
)  # fmt: skip
def test_a_fault_names_the_key_as_the_page_has_it(place: Path, change: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        load_delta(place / "letters.yaml", [change])
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("lora", ["lora"]),
        ("[lora, bitfit]", ["lora", "bitfit"]),
        ("{name: lora, rank: 4}", ["lora (rank 4)"]),
        ("[{name: lora, rank: 4}, bitfit]", ["lora (rank 4)", "bitfit"]),
    ],
)
def test_methods_by_their_names(place: Path, given: str, meant: list[str]) -> None:
    changes = [f"delta.methods={given}", f"compare.entries=[{{methods: {given}}}]"]
    config = load_delta(place / "letters.yaml", changes)
    assert [label([method]) for method in config.delta.listed] == meant
    assert config.compare.entries
    assert config.compare.entries[0].methods == config.delta.listed
    assert load_delta(place / "letters.yaml", ["delta.methods=auto"]).delta.methods == "auto"


def test_attach_says_the_same() -> None:
    assert label(parse("lora")) == "lora" and label(parse(["lora", "bitfit"])) == "lora + bitfit"
    with pytest.raises(
        UserError, match=r"methods\.0\.r: unknown key .* did you mean methods\.0\.rank"
    ):
        parse([{"name": "lora", "r": 4}])

    with pytest.raises(UserError, match=r"expected each method once, found lora, lora"):
        parse(["lora", {"name": "lora", "rank": 4}])

    with pytest.raises(UserError, match=r"methods.* at least 1 item"):
        parse([])
