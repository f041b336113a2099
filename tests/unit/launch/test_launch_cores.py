"""The cores of a machine are divided over its ranks by NUMA node."""

import os
import sys

import pytest

from robustly import UserError
from robustly.launch import Job, LocalOptions, cores, local


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0-2,8\n", {0, 1, 2, 8}), ("5\n", {5}), ("\n", set()), ("0-1,4-5", {0, 1, 4, 5})],
)
def test_lists_of_the_kernel(text, expected):
    assert cores.numbers(text) == expected


ONE = [[(0,), (1,), (2,), (3,), (4,)]]
TWO = [[(0, 8), (1, 9), (2, 10), (3, 11)], [(4, 12), (5, 13), (6, 14), (7, 15)]]


@pytest.mark.parametrize(
    ("nodes", "ranks", "expected"),
    [
        (ONE, 1, [[0, 1, 2, 3, 4]]),
        (ONE, 2, [[0, 1], [2, 3, 4]]),
        (TWO, 1, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (TWO, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (TWO, 3, [[0, 1, 2, 3], [4, 5], [6, 7]]),
        (TWO, 4, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (TWO, 8, [[0], [1], [2], [3], [4], [5], [6], [7]]),
        ([*TWO, [(16,)]], 2, [[0, 1, 2, 3], [4, 5, 6, 7, 16]]),
    ],
)
def test_each_rank_has_cores_of_one_node_if_there_are_enough_ranks(nodes, ranks, expected):
    divided = cores.divide(nodes, ranks)
    assert [[core[0] for core in share] for share in divided] == expected
    assert {core for share in divided for core in share} <= {
        core for node in nodes for core in node
    }


def test_more_ranks_than_cores_are_refused():
    with pytest.raises(UserError, match="--bind-cores: 6 ranks would share the 5 cores"):
        cores.divide(ONE, 6)


def machine(tmp_path, nodes, siblings):
    for number, text in enumerate(nodes):
        folder = tmp_path / "node" / f"node{number}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{text}\n")
    (tmp_path / "node" / "possible").write_text("0-1\n")

    for text in siblings:
        for number in cores.numbers(text):
            folder = tmp_path / "cpu" / f"cpu{number}" / "topology"
            folder.mkdir(parents=True)
            (folder / "thread_siblings_list").write_text(f"{text}\n")


def test_the_threads_of_a_core_stay_together(tmp_path):
    # as a machine of two sockets numbers them; node 2 has memory alone
    machine(tmp_path, ["0-1,4-5", "2-3,6-7", ""], ["0,4", "1,5", "2,6", "3,7"])
    everything = set(range(8))
    assert cores.cores_by_node(everything, tmp_path) == [[(0, 4), (1, 5)], [(2, 6), (3, 7)]]
    # a container or a queue may leave some of them
    assert cores.cores_by_node({1, 4, 5}, tmp_path) == [[(1, 5), (4,)]]


def test_nodes_are_in_the_order_of_their_numbers(tmp_path):
    machine(tmp_path, [str(number) for number in range(12)], [])
    found = cores.cores_by_node(set(range(12)), tmp_path)
    assert found == [[(number,)] for number in range(12)]


def test_a_kernel_that_does_not_say(tmp_path):
    assert cores.cores_by_node({0, 1, 2}, tmp_path) == [[(0,), (1,), (2,)]]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /sys")
def test_of_this_machine():
    (share,) = cores.shares(1)
    assert {thread for core in share for thread in core} == os.sched_getaffinity(0)


def test_another_system_is_refused(monkeypatch):
    monkeypatch.setattr(cores.sys, "platform", "darwin")
    with pytest.raises(UserError, match="--bind-cores: cannot be done on darwin"):
        cores.shares(1)


BOUND = """
import os, pathlib
rank, threads = os.environ["RANK"], sorted(os.sched_getaffinity(0))
pathlib.Path({folder!r}, rank).write_text(" ".join(map(str, threads)) + " " + os.environ["OMP_NUM_THREADS"])
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="binds cores")
def test_ranks_run_on_their_cores_alone(tmp_path, monkeypatch):
    """The launcher's own cores stay what they were."""
    monkeypatch.chdir(tmp_path)  # `start` goes there
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = os.sched_getaffinity(0)
    if len(cores.cores_by_node(before)[0]) < 2:
        pytest.skip("needs two cores")

    command = (sys.executable, "-S", "-c", BOUND.format(folder=str(tmp_path)))
    job = Job(command, tmp_path, tmp_path / "manifest.json", ranks=2)
    assert local.start(job, LocalOptions(bind_cores=True)) == 0
    assert os.sched_getaffinity(0) == before
    for rank, share in enumerate(cores.shares(2)):
        *threads, omp = map(int, (tmp_path / str(rank)).read_text().split())
        assert set(threads) == cores.numbers_of(share)
        assert omp == len(share)

    text = local.render(job, LocalOptions(bind_cores=True))
    first = ",".join(map(str, sorted(cores.numbers_of(cores.shares(2)[0]))))
    assert f"taskset -c {first} {sys.executable}" in text
