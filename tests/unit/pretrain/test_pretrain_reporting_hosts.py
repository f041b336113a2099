"""The hosts of a training, in its header."""

import pytest

from robustly.pretrain.reporting import hosts_of_ranks


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        (["a"], "a (0)"),
        (["a", "a"], "a (0-1)"),
        (["a"] * 8 + ["b"] * 8 + ["c"], "a (0-7), b (8-15), c (16)"),
        (["a", "b", "a"], "a (0), b (1), a (2)"),
    ],
)
def test_hosts_and_their_ranks(hosts: list[str], said: str) -> None:
    assert hosts_of_ranks(hosts) == said
