"""Launch ranks under `torchrun`, torch's own launcher: one torchrun on each machine, all with the
same rendezvous."""

import os
import shlex
import sys
from pathlib import Path

from robustly import UserError
from robustly.launch.job import MASTER_PORT, Job, LaunchOptions

# Without it, ranks that are restarted share the dead ranks' rendezvous store, find their addresses
# there, and fail until no restarts are left, or hang.
RESTART_FIX = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def command(job: Job, options: LaunchOptions) -> list[str]:
    """The torchrun command, the same on every machine."""
    nodes = options.nodes or 1
    if nodes > 1 and options.master is None:
        raise UserError(
            f"--nodes {nodes}: torchrun also needs --master HOST, the first machine as the others"
            " reach it"
        )

    # Beside this Python, so that every rank has this environment, whatever PATH says.
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    rendezvous = (
        ["--standalone"]
        if nodes == 1
        else [
            "--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-id", job.name,
            "--rdzv-endpoint", f"{options.master}:{options.master_port or MASTER_PORT}",
        ]
    )  # fmt: skip
    ranks = [
        "--nproc-per-node",
        str(options.ranks_per_node or job.ranks),
        "--max-restarts",
        str(options.restarts),
    ]
    return [torchrun, *rendezvous, *ranks, "--no-python", *job.command]


def render(job: Job, options: LaunchOptions) -> str:
    """The line to run on each machine."""
    assignments = " ".join(
        f"{name}={shlex.quote(value)}" for name, value in {**job.environment, **RESTART_FIX}.items()
    )
    return (
        f"cd {shlex.quote(str(job.folder))} && {assignments} {shlex.join(command(job, options))}\n"
    )


def start(job: Job, options: LaunchOptions) -> int:
    """Become torchrun on this machine; the other machines need the same command."""
    arguments = command(job, options)
    os.chdir(job.folder)
    # In place of this process, so that signals go straight to torchrun and its exit code is ours.
    os.execve(arguments[0], arguments, {**os.environ, **job.environment, **RESTART_FIX})
