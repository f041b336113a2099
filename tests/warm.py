"""Commands of tests without the seconds of importing torch, transformers and DeepSpeed: `robustly`
and `python` in `commands()` are forked from one process that has imported them.

A command sees its own arguments, folder, environment, open files and umask, receives the signals that are
sent to it, dies when its starter kills it, and starts its own ranks and workers in the same way.
What it cannot show is the start of a process itself and another seed of Python's hashes; some tests
of each stage start real processes for that. A command that is given on a host of the lab (tests/lab)
runs there.

A session of tests has one server, which imports nothing until somebody asks for a command, and ends
with the session, however that ends."""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import math
import multiprocessing.spawn
import os
import runpy
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
VARIABLE = "ROBUSTLY_TESTS_COMMANDS"
"""Folder of the session's commands, for xdist's workers."""

LIBRARIES = ("torch", "transformers.models.roberta.modeling_roberta", "transformers.pipelines")
"""What a process without our code needs, such as the one that proves a published folder."""
OURS = (
    "robustly.pretrain.loop",
    "robustly.evaluation",
    "robustly.publish.publish",
    "robustly.delta.stage",
    "robustly.delta.trials.compare",
    "robustly.delta.trials.search",
    "robustly.cli.commands",
    "robustly.cli.rank",
    # what these import when they need it
    "deepspeed.runtime.zero.muon.muon_optimizer",  # and with it torch's compiler: see ranks.py
    "torch.utils.tensorboard",
    "matplotlib.figure",
    "scipy.stats",
    "sklearn.metrics",
    "seqeval.metrics",
    "optuna",
)
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
END = 0
"""The server's standard input: it ends with the session."""
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # <sys/prctl.h>
HIGH = 500  # file descriptors that no command asks for by number

SHIM = """#!{python} -IS
import json, os, signal, socket, struct, sys
name, words = os.path.basename(sys.argv[0]), [word for word in sys.argv[1:] if word not in ("-B", "-P")]
if name == "robustly" or words == ["-"] or words[:2] == ["-m", "robustly.cli"] or (
    words[:1] == ["-c"] and words[1].startswith("from multiprocessing.spawn import spawn_main")
) or words[:1] and os.path.basename(words[0]) == "gpu_parts.py":
    place = "ours"
elif words[:3] == ["-W", "ignore", "-c"]:
    place = "libraries"
else:
    os.execv({python!r}, [{python!r}, *words])

passed_on = [getattr(signal, name) for name in {signals!r}]
mask = signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
ignored = [n for n in passed_on if signal.getsignal(n) is signal.SIG_IGN]
files = [0, 1, 2]
for number in map(int, os.listdir("/proc/self/fd")):
    try:
        if number > 2 and os.get_inheritable(number):
            files.append(number)
    except OSError:  # the listing itself
        pass

umask = os.umask(0)
os.umask(umask)
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect(os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), place))
asked = dict(
    argv=[sys.argv[0], *words], cwd=os.getcwd(), environ=dict(os.environ), files=files,
    ignored=ignored, mask=sorted(mask), umask=umask,
)
socket.send_fds(server, [json.dumps(asked).encode()], files)
os.closerange(3, server.fileno())
os.closerange(server.fileno() + 1, 1000)
child = struct.unpack("i", server.recv(4))[0]
for number in passed_on:
    if number not in ignored:
        signal.signal(number, lambda number, frame: os.kill(child, number))
signal.pthread_sigmask(signal.SIG_SETMASK, mask)
code = struct.unpack("i", server.recv(4))[0]
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def commands() -> Path:
    """The folder with the session's `robustly` and `python`."""
    return Path(os.environ[VARIABLE])


@contextmanager
def server() -> Iterator[None]:
    """The session's server; no process that it started outlives the context."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    for name in ("robustly", "python"):
        shim = folder / name
        shim.write_text(SHIM.format(python=sys.executable, signals=SIGNALS))
        shim.chmod(0o755)
    # where a launcher looks for it: beside its Python
    (folder / "torchrun").symlink_to(Path(sys.executable).with_name("torchrun"))

    os.environ[VARIABLE] = str(folder)
    # pyarrow's allocator would start a thread, and a process with threads cannot be forked
    pyarrow = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
    environment = {**os.environ, **pyarrow, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm", str(folder)], cwd=ROOT, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdin and process.stdout

    try:
        assert process.stdout.readline() == b"listening\n"
        yield
    finally:
        process.stdin.close()  # by which it ends
        process.stdout.close()
        del os.environ[VARIABLE]
        assert process.wait() == 0, "commands outlived the tests that started them"


def _listen(folder: Path) -> int:
    """Wait for the first command; then import the libraries, and in a fork of this process our code
    as well, and serve both. Returns the number of commands that did not end in time."""
    listeners = {}
    for place in ("libraries", "ours"):
        listeners[place] = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.chdir(folder):  # the path of a socket may have 107 characters
            listeners[place].bind(place)
        listeners[place].listen(100)

    print("listening", flush=True)
    with selectors.DefaultSelector() as ready:
        for waited_for in (END, *listeners.values()):
            ready.register(waited_for, selectors.EVENT_READ)

        if any(key.fileobj == END for key, _ in ready.select()):
            return 0

    sys.executable = str(folder / "python")
    multiprocessing.spawn.set_executable(sys.executable)
    _import(LIBRARIES)

    if (ours := os.fork()) == 0:
        listeners["libraries"].close()
        _import(OURS)
        sys.modules["robustly.launch.snapshot"]._hashes()  # of what was imported
        os._exit(_serve(listeners["ours"]))

    listeners["ours"].close()
    left = _serve(listeners["libraries"])
    return left + os.waitstatus_to_exitcode(os.waitpid(ours, 0)[1])


def _import(modules: tuple[str, ...]) -> None:
    for module in modules:
        importlib.import_module(module)

    gc.freeze()  # or the first collection of every child would copy all of it
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, "a process with threads cannot be forked"


def _serve(listener: socket.socket) -> int:
    """Fork a process for every command, and tell who asked how it ended, until the session ends and
    a little longer. Returns the number of commands that were still running then, and are killed."""
    running: dict[int, socket.socket] = {}
    deadline = math.inf

    with selectors.DefaultSelector() as ready:
        ready.register(END, selectors.EVENT_READ)
        ready.register(listener, selectors.EVENT_READ)

        while deadline == math.inf or (running and time.monotonic() < deadline):
            for key, _ in ready.select(None if deadline == math.inf else 0.1):
                if key.fileobj == END:
                    ready.unregister(END)
                    deadline = time.monotonic() + 5
                elif key.fileobj is listener:
                    asker = listener.accept()[0]
                    message, files, *_ = socket.recv_fds(asker, 1 << 20, 253)
                    if (child := os.fork()) == 0:
                        _be(json.loads(message), files, asker)

                    for file in files:
                        os.close(file)
                    running[child] = asker
                    ready.register(os.pidfd_open(child), selectors.EVENT_READ, child)
                    ready.register(asker, selectors.EVENT_READ, child)
                elif isinstance(key.fileobj, socket.socket):  # who asked was killed
                    ready.unregister(key.fileobj)
                    _kill(key.data)
                else:
                    ready.unregister(key.fileobj)
                    os.close(key.fd)
                    status = os.waitstatus_to_exitcode(os.waitpid(key.data, 0)[1])
                    with running.pop(key.data) as asker, contextlib.suppress(KeyError, OSError):
                        ready.unregister(asker)
                        asker.send(struct.pack("i", status))

    for child in running:
        _kill(child)
    return len(running)


def _kill(child: int) -> None:
    """A command and what it started in its own session."""
    for end in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            end(child, signal.SIGKILL)


def _be(asked: dict[str, Any], files: list[int], asker: socket.socket) -> NoReturn:
    """Be the command that was asked for, and end."""
    _enter_host(asker)
    os.setsid()
    asker.send(struct.pack("i", os.getpid()))
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, HIGH) for file in files]
    asker.detach()
    os.closerange(0, HIGH)
    for place, file in zip(asked["files"], high, strict=True):
        os.dup2(file, place)
        os.close(file)

    os.chdir(asked["cwd"])
    os.umask(asked["umask"])
    os.environ.clear()
    os.environ.update(asked["environ"])
    sys.argv = asked["argv"]
    for number in asked["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["mask"])
    code: int | str | None = 0

    try:
        _take_place(sys.argv[1:])
        _run(sys.argv[1:])
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


def _take_place(words: list[str]) -> None:
    """Where PYTHONPATH begins with the kept code of a run: this process, which has imported the
    very same, stands in for one that imports it from there; of another code, a real one starts."""
    first = Path(os.environ.get("PYTHONPATH", "").split(os.pathsep)[0])
    if not (first / "robustly-code.json").exists():
        return

    snapshot = sys.modules["robustly.launch.snapshot"]
    kept = json.loads((first / "robustly-code.json").read_bytes())["files"]
    if {name: kept[name] for name in kept if name.endswith(".py")} != snapshot._hashes():
        os.execv(PYTHON, [PYTHON, *words])
    # by which it says what code it is
    for each in (snapshot, sys.modules["robustly.provenance"]):
        each.PACKAGE = first / "robustly"  # type: ignore[attr-defined]
    for name in ("robustly", "robustly.manifest"):
        module = sys.modules[name]
        module.__file__ = str(first / Path(str(module.__file__)).relative_to(ROOT))


def _enter_host(asker: socket.socket) -> None:
    """Go to the host where the command was given, if that is another one. Its processes are not the
    server's children, so this process stays behind and waits for the one that goes there."""
    there, _, _ = struct.unpack("3i", asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    spaces = [Path(f"/proc/{there}/ns/{kind}") for kind in ("ipc", "uts", "net", "pid", "mnt")]
    if all(space.samefile(f"/proc/self/ns/{space.name}") for space in spaces):
        return

    libc = ctypes.CDLL(None, use_errno=True)
    for opened in [os.open(space, os.O_RDONLY) for space in spaces]:
        if libc.setns(opened, 0):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(opened)

    if gone := os.fork():
        os.closerange(0, 1000)
        code = os.waitstatus_to_exitcode(os.waitpid(gone, 0)[1])
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code)

    libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    libc.prctl(PR_SET_NAME, name_on_host(there).encode())


def name_on_host(asker: int) -> str:
    """The name, in the list of processes, of what works for a command on a host."""
    return f"warm-{asker}"


def _run(words: list[str]) -> None:
    """As `robustly` does, or Python with these words."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if Path(sys.argv[0]).name == "robustly":
        from robustly.cli import main as command

        command()
        return

    sys.path[0] = ""
    if words[:2] == ["-W", "ignore"]:
        warnings.simplefilter("ignore")
        words = words[2:]

    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], vars(main))
    elif words[0].endswith(".py"):
        sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")
    else:
        sys.argv = words
        exec(compile(sys.stdin.read(), "<stdin>", "exec"), vars(main))


if __name__ == "__main__":
    commands_left = _listen(Path(sys.argv[1]))
    shutil.rmtree(sys.argv[1])
    sys.exit(commands_left)
