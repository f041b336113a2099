"""A rank that trains nothing: it begins and ends as `robustly pretrain` does, and starts within a
third of a second. Run as `slurm_rank.py FOLDER BEHAVIOUR`; its work is 40 updates, with a checkpoint
after each tenth."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from robustly import UserError, heartbeat, stopping

UPDATES, EVERY = 40, 10


def main(folder: Path, behaviour: str) -> None:
    from robustly.cli.rank import _fail
    from robustly.launch import ends
    from robustly.launch.environment import rank_from_environment

    me = rank_from_environment()
    assert me
    heartbeat.begin(f"rank {me.rank}")
    ends.keep_word(me.rank, folder)
    stopping.listen(speaks=me.rank == 0)

    # misbehave:2 does so in the first two starts of the job
    what, _, starts = behaviour.partition(":")
    attempt = os.environ[ends.ATTEMPT]
    does = me.rank == 1 and int(attempt.partition(".")[2]) < int(starts or 0)
    if does and what == "killed-at-start":
        os.kill(os.getpid(), signal.SIGKILL)

    begun = folder / "begun" / attempt
    begun.mkdir(parents=True, exist_ok=True)
    found = {**os.environ, "me": vars(me), "host": socket.gethostname()}
    (begun / f".{me.rank}").write_text(json.dumps(found))
    (begun / f".{me.rank}").rename(begun / str(me.rank))
    while len(list(begun.glob("[0-9]*"))) < me.world_size:
        time.sleep(0.01)

    checkpoints = folder / "checkpoints"
    done = max((int(each.name[7:]) for each in checkpoints.glob("update-*")), default=0)
    with stopping.noted() as asked:
        for update in range(done + 1, UPDATES + 1):
            heartbeat.mark(heartbeat.Phase.FORWARD, update)
            time.sleep(0.02 if what == "usual" or starts else 1.0)
            if (update % EVERY == 0 or asked) and what != "idle":
                (checkpoints / f"update-{update:08d}").mkdir(parents=True, exist_ok=True)
            if asked:
                code = stopping.code_of(asked[0])
                heartbeat.leave(heartbeat.Kind.STOPPED, code, f"stopped after update {update}")
                sys.exit(code)
            if does and update == done + EVERY + EVERY // 2:
                if what == "diverges":
                    _fail(me, UserError("the loss is nan"))
                os.kill(os.getpid(), signal.SIGKILL)

    (folder / "manifest.json").write_text("{}")


if __name__ == "__main__":
    with stopping.ends_in_one_line():
        main(Path(sys.argv[1]), sys.argv[2])
