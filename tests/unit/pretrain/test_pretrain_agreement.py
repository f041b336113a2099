"""What ranks disagree on is named by rank, host, key and both values."""

from typing import Any

import pytest

from robustly import UserError
from robustly.pretrain import agreement
from robustly.pretrain.agreement import agree, disagreements, odd_ranks, other_weights
from robustly.pretrain.ranks import FailedOnAnotherRank


def of(**changes: Any) -> dict[str, Any]:
    return {"seed": 1, "optim": {"peak_lr": 0.1, "betas": [0.9, 0.98]}, "teacher": None, **changes}


def test_ranks_that_state_the_same_agree() -> None:
    assert disagreements(["a", "b", "b"], [of(), of(), of()]) == []


def test_every_difference_is_named_once_for_the_ranks_of_a_host() -> None:
    other = of(seed=2, optim={"peak_lr": 0.1, "betas": [0.9, 0.99]})
    student = of(teacher={"path": "x"})
    assert disagreements(["a", "a", "b", "b", "c"], [of(), of(), other, other, student]) == [
        "ranks 2, 3 on b: seed = 2, rank 0 has 1",
        "ranks 2, 3 on b: optim.betas = [0.9, 0.99], rank 0 has [0.9, 0.98]",
        'rank 4 on c: teacher = {"path": "x"}, rank 0 has absent',
    ]


def test_a_difference_far_behind_in_a_list_is_shown() -> None:
    def sources(last: str) -> dict[str, Any]:
        paths = [*(f"a/long/path/to/a/file/of/the/corpus/{n}.txt" for n in range(9)), last]
        return {"corpus": {"sources": [{"path": path, "repeat": 1.0} for path in paths]}}

    assert disagreements(["a", "b"], [sources("x.txt"), sources("y.txt")]) == [
        "rank 1 on b: corpus.sources.9.path = y.txt, rank 0 has x.txt"
    ]


def test_rank_0_speaks_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [("a", of()), ("b", of(seed=2))]
    monkeypatch.setattr(agreement, "gather_over_ranks", lambda own: values)
    with pytest.raises(UserError, match=r"nothing was changed\n  rank 1 on b: seed = 2, rank 0"):
        agree(of(), rank=0)
    with pytest.raises(FailedOnAnotherRank):
        agree(of(seed=2), rank=1)

    monkeypatch.setattr(agreement, "gather_over_ranks", lambda own: values[:1])
    agree(of(), rank=0)


@pytest.mark.parametrize(
    ("sums", "odd"),
    [
        ([1, 1, 1], []),
        ([1], []),
        ([1, 2], [1]),  # nobody can tell which is right: rank 0 is the measure
        ([1, 2, 2], [0]),
        ([1, 2, 1, 3], [1, 3]),
        ([1, 2, 3], [1, 2]),
    ],
)
def test_ranks_that_hold_other_weights_than_most(sums: list[int], odd: list[int]) -> None:
    of_ranks = [{"a": 0, "b": each} for each in sums]
    assert odd_ranks(of_ranks) == odd
    if odd:
        lines = other_weights([f"host{rank}" for rank in range(len(sums))], of_ranks)
        usual = next(rank for rank in range(len(sums)) if rank not in odd)
        assert lines == [
            f"rank {rank} on host{rank}: 1 of 2 tensors, such as b, differ from those of rank"
            f" {usual} on host{usual}"
            for rank in odd
        ]
