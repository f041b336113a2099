"""Run a function as several ranks on this machine: forked after one import of torch and
DeepSpeed."""

import gc
import importlib
import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import robustly.pretrain.engine  # noqa: F401 - imported once, before the ranks are forked

# DeepSpeed would import the first, and by it torch's compiler, when it makes the engine: a second a
# rank; the log would import the second
importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
importlib.import_module("torch.utils.tensorboard")


def run_distributed(
    ranks: int, function: Callable[..., Any], *arguments: Any, timeout: float = 240.0
) -> list[Any]:
    """Call function(rank, ranks, *arguments) in `ranks` forked processes; returns their JSON-able
    results.

    Raises AssertionError with the traceback of the first rank that failed; no process outlives the
    call."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    pipes, children = {}, {}

    for rank in range(ranks):
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reader)
            _be_rank(rank, ranks, port, writer, function, arguments)

        os.close(writer)
        pipes[rank], children[rank] = reader, child

    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout

    try:
        while len(results) < ranks and time.monotonic() < deadline:
            for rank, child in children.items():
                if rank not in results and os.waitpid(child, os.WNOHANG)[0]:
                    with os.fdopen(pipes.pop(rank)) as pipe:
                        results[rank] = json.loads(
                            pipe.read() or '{"failed": "died without a word"}'
                        )

            if any("failed" in result for result in results.values()):
                break
            time.sleep(0.02)
    finally:
        for rank in children.keys() - results.keys():
            os.kill(children[rank], signal.SIGKILL)
            os.waitpid(children[rank], 0)

        for pipe_end in pipes.values():
            os.close(pipe_end)

    for rank, result in sorted(results.items()):
        assert "failed" not in result, f"rank {rank} of {ranks}:\n{result['failed']}"

    assert len(results) == ranks, (
        f"ranks {sorted(children.keys() - results.keys())} did not end in {timeout} s"
    )
    return [results[rank]["result"] for rank in range(ranks)]


def _be_rank(
    rank: int,
    ranks: int,
    port: int,
    writer: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    gc.freeze()  # or every collection that DeepSpeed asks for goes through all that was imported
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        outcome = {"result": function(rank, ranks, *arguments)}
    except BaseException:
        outcome = {"failed": traceback.format_exc()}

    with os.fdopen(writer, "w") as pipe:
        json.dump(outcome, pipe)

    os._exit(0)
