"""`robustly` and `python -` without the seconds of importing torch, transformers and DeepSpeed:
each command is forked from one process that has imported them.

A command sees its own arguments, folder, environment and files, as in a process of its own. It is
for tests of many commands; how a command starts, is interrupted or killed is tested on real
processes."""

import atexit
import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import stat
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
SHIM = """#!{python} -IS
import json, os, socket, sys
name = os.path.basename(sys.argv[0])
if name == "python" and sys.argv[1:] != ["-"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({address!r})
    asked = dict(argv=[name, *sys.argv[1:]], cwd=os.getcwd(), environ=dict(os.environ))
    socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
    answer = server.recv(1)
sys.exit(answer[0] if answer else 1)
"""


@contextmanager
def commands(folder: Path) -> Iterator[Path]:
    """A folder for PATH, with `robustly` and `python`; no process that they started outlives the
    context."""
    address = folder / "socket"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    with subprocess.Popen(
        [sys.executable, "-m", "tests.warm", str(address)], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
        start_new_session=True,
    ) as server:  # fmt: skip
        assert server.stdout
        try:
            assert server.stdout.readline() == b"ready\n"
            for name in ("robustly", "python"):
                shim = folder / name
                shim.write_text(SHIM.format(python=sys.executable, address=str(address)))
                shim.chmod(shim.stat().st_mode | stat.S_IXUSR)

            yield folder
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def _serve(address: str) -> None:
    """Fork a process for every command; tell who asked how it ended."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        selectors.DefaultSelector() as ready,
    ):
        listener.bind(address)
        listener.listen()
        ready.register(listener, selectors.EVENT_READ)
        print("ready", flush=True)

        while True:
            for key, _ in ready.select():
                if key.fileobj is listener:
                    asker = listener.accept()[0]
                    if (child := os.fork()) == 0:
                        listener.close()
                        _be(asker)
                    ready.register(os.pidfd_open(child), selectors.EVENT_READ, (child, asker))
                    continue

                ready.unregister(key.fileobj)
                os.close(key.fd)
                child, asker = key.data
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                with asker, contextlib.suppress(BrokenPipeError):  # whoever asked was killed
                    asker.send(bytes([status % 256]))


def _be(asker: socket.socket) -> NoReturn:
    """Be the command that was asked for, and end."""
    message, files, *_ = socket.recv_fds(asker, 1 << 20, 3)
    asker.close()
    for place, file in enumerate(files):
        os.dup2(file, place)
        os.close(file)

    asked = json.loads(message)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environ"])
    sys.argv = asked["argv"]
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    code: int | str | None = 0

    try:
        if sys.argv[0] == "robustly":
            sys.path[0] = str(Path(sys.executable).parent)
            from robustly.cli import main as command

            command()
        else:
            sys.path[0] = ""
            exec(compile(sys.stdin.read(), "<stdin>", "exec"), vars(main))
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1

    if isinstance(code, str):
        print(code, file=sys.stderr)

    # as at the end of any process; taking down what the server imported would take seconds
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else bool(code))


if __name__ == "__main__":
    for module in (
        "delta.compare",
        "delta.search",
        "robustly.delta.stage",
        "robustly.pretrain.loop",
        "robustly.evaluation.evaluate",
        "robustly.publish.report",
    ):
        importlib.import_module(module)
    gc.freeze()  # or the first collection of every child would copy all of it
    _serve(sys.argv[1])
