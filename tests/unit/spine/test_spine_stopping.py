"""Commands that are asked to stop."""

import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.processes

# What `robustly` is while it imports, and in a command.
PLACES = {
    "imports": "print('there', flush=True); time.sleep(60)",
    "a command": """
import typer
from robustly.cli.common import user_errors
app = typer.Typer()
@app.command()
def work():
    with user_errors():
        print("there", flush=True)
        time.sleep(60)
app([])
""",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 75),
        (signal.SIGHUP, 75),
        (signal.SIGUSR1, 75),
        (signal.SIGINT, 130),
    ],
)
def test_a_command_ends_in_one_line(number: signal.Signals, code: int, place: str) -> None:
    body = "\n".join(f"    {line}" for line in PLACES[place].splitlines())
    # the tests may run under nohup, or in a shell's background
    listen = "for n in (1, 2): signal.signal(n, signal.default_int_handler if n == 2 else signal.SIG_DFL)"
    program = (
        f"import signal, time\n{listen}\nfrom robustly import stopping\n"
        f"with stopping.ends_in_one_line():\n{body}\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "there\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=30)

    assert process.returncode == code
    assert said.splitlines() == [
        "stopped; nothing that was finished is lost, and the same command goes on"
    ]
