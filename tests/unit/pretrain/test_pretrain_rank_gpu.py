"""Which GPU is a rank's, without GPUs."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from robustly import UserError
from robustly.pretrain import process_group
from robustly.pretrain.process_group import start_ranks
from robustly.pretrain.rank_gpu import own_gpu, refuse_shared


@pytest.mark.parametrize(
    ("local_rank", "visible", "gpu"),
    [
        (0, 1, 0),
        (0, 8, 0),
        (7, 8, 7),
        (3, 8, 3),  # fewer ranks than GPUs
        (3, 1, 0),  # --gpus-per-task=1: each rank sees its own alone
    ],
)
def test_a_rank_takes_the_gpu_of_its_number_or_the_one_that_it_sees(
    local_rank: int, visible: int, gpu: int
) -> None:
    assert own_gpu(local_rank, visible) == gpu


def test_too_few_gpus_are_refused() -> None:
    with pytest.raises(UserError, match="more ranks on this machine than its 2 GPUs"):
        own_gpu(2, 2)


def test_a_machine_that_does_not_know_the_first_one_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch would wait for as long as a start may take."""
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    with pytest.raises(UserError, match=r"does not know the first host, nowhere\.invalid"):
        start_ranks(0)


class Store(dict[str, bytes]):
    """Stands for torch's, which waits for a key."""

    def __init__(self) -> None:
        self.there = threading.Condition()

    def set(self, key: str, value: str) -> None:
        with self.there:
            self[key] = value.encode()
            self.there.notify_all()

    def get(self, key: str) -> bytes:  # type: ignore[override]
        with self.there:
            assert self.there.wait_for(lambda: key in self, timeout=10)
            return self[key]


def ask(uuids: list[str]) -> list[str]:
    """What ranks with these GPUs are told, "" where they may go on."""
    store, told = Store(), [""] * len(uuids)

    def rank(number: int) -> None:
        try:
            refuse_shared(uuids[number], number, len(uuids), store)
        except UserError as refused:
            told[number] = str(refused)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(len(uuids))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    return told


def test_one_gpu_for_two_ranks_is_refused_by_both() -> None:
    assert ask(["GPU-a", "GPU-b", "GPU-c"]) == ["", "", ""]
    told = ask(["GPU-a", "GPU-b", "GPU-a"])
    assert told[1] == "" and told[0] == told[2]
    assert "ranks 0, 2 on " in told[0] and "see one GPU together" in told[0]


def test_deepspeed_is_told_the_same_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank's device, and LOCAL_RANK, by which DeepSpeed sets it once more."""
    chosen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)

    def meet(url: str, timeout: Any) -> Iterator[Any]:
        raise UserError(os.environ["LOCAL_RANK"])

    monkeypatch.setattr(process_group, "rendezvous", meet)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"^0$"):
        start_ranks(3)

    assert chosen == [torch.device("cuda", 0)]
