"""Spikes are found, and none is where there is none: on the 10,000 updates of a real run
(benchmarks/quiet_run.py)."""

import random
from pathlib import Path

import numpy as np
import pytest

from robustly.pretrain.bad_updates.spikes import LEAST, WINDOW, Spike, Usual, sigmas_above

Pairs = list[tuple[float, float]]


@pytest.fixture(scope="module")
def quiet() -> Pairs:
    """Loss and gradient norm of each update."""
    with np.load(Path(__file__).with_name("quiet_run.npz")) as arrays:
        loss, norm = (arrays[name].astype(np.float64).tolist() for name in ("loss", "norm"))
    return list(zip(loss, norm, strict=True))


def found(pairs: Pairs, usual: Usual) -> dict[int, Spike]:
    spikes = {}
    for update, (loss, norm) in enumerate(pairs, start=1):
        if spike := usual.spike(loss, norm):
            spikes[update] = spike
        usual.add(loss, norm)

    return spikes


def test_a_quiet_run_of_10_000_updates_has_none(quiet: Pairs) -> None:
    assert len(quiet) == 10_000
    assert found(quiet, Usual(6.0, {})) == {}
    assert len(found(quiet, Usual(4.0, {}))) > 5  # the test can fail


@pytest.mark.parametrize(("what", "factor"), [("loss", 2.0), ("gradient norm", 8.0)])
def test_made_spikes_are_all_found_and_nothing_else(quiet: Pairs, what: str, factor: float) -> None:
    draw = random.Random(3)
    made = {draw.randint(start, start + 60) for start in range(200, 9_900, 100)}
    disturbed = [
        (loss * factor, norm) if what == "loss" else (loss, norm * factor) for loss, norm in quiet
    ]
    mixed = [
        bad if update in made else good
        for update, (good, bad) in enumerate(zip(quiet, disturbed, strict=True), start=1)
    ]
    spikes = found(mixed, Usual(6.0, {}))
    assert set(spikes) == made
    assert {spike.what for spike in spikes.values()} == {what}
    one = next(iter(spikes.values()))
    assert one.sigmas >= 6 and one.usual < one.value
    assert str(one).startswith(f"the {what} is ")


def test_a_resumed_run_finds_the_same(quiet: Pairs) -> None:
    whole, begun = Usual(4.0, {}), Usual(4.0, {})
    expected = found(quiet[:6000], whole)
    assert expected.keys() > set()
    for at in (10, 100, 3000):
        begun = Usual(4.0, {})
        first = found(quiet[:at], begun)
        then = found(quiet[at:6000], Usual(4.0, begun.recent))
        assert {**first, **{at + update: spike for update, spike in then.items()}} == expected

    assert {len(values) for values in whole.recent.values()} == {WINDOW}


def test_what_lies_below_or_comes_too_early_is_no_spike() -> None:
    before = [1.0 + 0.01 * (number % 7) for number in range(LEAST)]
    assert sigmas_above(100.0, before) > 6
    assert sigmas_above(100.0, before[1:]) == 0
    assert sigmas_above(1e-6, before) < 0
    usual = Usual(6.0, {"loss": before, "gradient norm": before})
    assert usual.spike(0.0, 1e-6) is None  # nothing was masked
    usual.add(0.0, 1.0)
    assert len(usual.recent["loss"]) == LEAST and len(usual.recent["gradient norm"]) == LEAST + 1


def test_a_level_that_hardly_varies_spikes_by_more_than_rounding() -> None:
    before = [2.0] * WINDOW
    assert sigmas_above(2.0 * (1 + 1e-6), before) < 1
    assert sigmas_above(2.02, before) > 6
