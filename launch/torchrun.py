"""Launch ranks under `torchrun`, torch's own launcher: one torchrun on each machine, all with the
same rendezvous."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from robustly import UserError
from robustly.launch.job import MASTER_PORT, Job, LaunchOptions, option

# Without it, ranks that are restarted share the dead ranks' rendezvous store, find their addresses
# there, and fail until no restarts are left, or hang.
RESTART_FIX = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@dataclass(frozen=True)
class TorchrunOptions(LaunchOptions):
    nodes: int = option("Machines.", 1, min=1)
    master: str | None = option("The first machine, as the others reach it.")
    master_port: int = option("Port on the first machine where all meet.", MASTER_PORT)
    restarts: int = option("New starts of all ranks after failures.", 3, min=0)


def command(job: Job, options: TorchrunOptions) -> list[str]:
    """The torchrun command, the same on every machine."""
    if options.nodes > 1 and options.master is None:
        raise UserError(
            f"--nodes {options.nodes}: torchrun also needs --master HOST, the first machine as the"
            " others reach it"
        )

    # Beside this Python, so that every rank has this environment, whatever PATH says.
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    rendezvous = (
        ["--standalone"]
        if options.nodes == 1
        else [
            "--nnodes", str(options.nodes), "--rdzv-backend", "c10d", "--rdzv-id", job.name,
            "--rdzv-endpoint", f"{options.master}:{options.master_port}",
        ]
    )  # fmt: skip
    ranks = [
        "--nproc-per-node",
        str(options.ranks_per_node or job.ranks),
        "--max-restarts",
        str(options.restarts),
    ]
    return [torchrun, *rendezvous, *ranks, "--no-python", *job.command]


def render(job: Job, options: TorchrunOptions) -> str:
    """The line to run on each machine."""
    assignments = " ".join(
        f"{name}={shlex.quote(value)}" for name, value in {**job.environment, **RESTART_FIX}.items()
    )
    return (
        f"cd {shlex.quote(str(job.folder))} && {assignments} {shlex.join(command(job, options))}\n"
    )


def start(job: Job, options: TorchrunOptions) -> int:
    """Become torchrun on this machine; the other machines need the same command."""
    arguments = command(job, options)
    os.chdir(job.folder)
    # In place of this process, so that signals go straight to torchrun and its exit code is ours.
    os.execve(arguments[0], arguments, {**os.environ, **job.environment, **RESTART_FIX})
