"""What ranks print: lines, prefixes, log files, and consoles and disks that take none of it."""

import sys
import threading
import time
from pathlib import Path

import pytest

from robustly.launch import logs
from robustly.launch.logs import Output, TextLines, log_name


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"on", b"e\ntw", b"o\n"], ["one", "two"]),
        ([b"half a line at the end"], ["half a line at the end"]),
        (["ü".encode()[:1], "ü".encode()[1:] + b"\n"], ["ü"]),  # cut within a character
        ([b"no \xff UTF-8 \xc3\n"], ["no � UTF-8 �"]),
        ([b"\xc3"], ["�"]),
        ([b"by Windows\r\n", b"cut here\r", b"\n"], ["by Windows", "cut here"]),
        ([b" 10%\r", b" 20%\r 30%", b"\r100%\ndone\n"], ["100%", "done"]),  # a bar
        ([b"50%\r", b"51%\r"], ["51%"]),
        ([b"\x1b[33mwarning\x1b[0m: \x1b[2Kx\n"], ["warning: x"]),
        ([b"a\n\nb\n"], ["a", "", "b"]),
        ([b"x" * 70_000], ["x" * 65_536, "x" * 4_464]),  # without a line feed
        ([], []),
    ],
)
def test_lines(pieces, expected):
    lines = TextLines()
    found = [line for piece in pieces for line in lines.add(piece)]
    assert found + lines.add(b"", last=True) == expected


def test_a_bar_of_a_month_takes_no_memory():
    lines = TextLines()
    for number in range(10_000):
        assert lines.add(f"\r{number:100d}".encode()) == []

    assert lines.add(b"\n") == [f"{9_999:100d}"]
    assert len(lines._rest) == 0


def test_each_line_has_its_rank_and_each_rank_its_file(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    output = Output(3, tmp_path / "train" / "logs", "20261129-1")
    output.add("gpu01", 0, b"update 1\nhalf")
    output.add("gpu02", 2, b"warning\n")
    output.add("gpu02", None, b"ssh: banner\n")
    output.add("gpu01", 0, b" a line\n")
    output.end("gpu01", 0)
    output.end("gpu02", 2, "Traceback\nRuntimeError: it was this")
    output.close()
    assert capsys.readouterr().err.splitlines() == [
        "[gpu01:0] update 1",
        "[gpu02:2] warning",
        "[gpu02] ssh: banner",
        "[gpu01:0] half a line",
    ]

    header, *lines = (tmp_path / "train/logs/gpu01-0.log").read_text().splitlines()
    assert header.endswith(": rank 0 of 3 on gpu01, attempt 20261129-1")
    assert lines == ["update 1", "half a line"]
    assert (tmp_path / "train/logs/gpu02-2.log").read_text().splitlines()[1:] == [
        "warning",
        "Traceback",
        "RuntimeError: it was this",
    ]


def test_the_next_start_appends(tmp_path):
    (tmp_path / "train").mkdir()
    for attempt in ("1", "2"):
        output = Output(2, tmp_path / "train" / "logs", attempt)
        output.add("a", 1, f"of {attempt}\n".encode())
        output.close()

    lines = (tmp_path / "train/logs/a-1.log").read_text().splitlines()
    assert [line.rpartition(", ")[2] for line in lines] == [
        "attempt 1",
        "of 1",
        "attempt 2",
        "of 2",
    ]


@pytest.mark.parametrize("ranks", [1, 2])
def test_rank_0_on_one_machine_is_shown_as_it_prints(tmp_path, capsys, ranks):
    (tmp_path / "train").mkdir()
    output = Output(ranks, tmp_path / "train" / "logs", all_here=True)
    printed = "\r\x1b[2K 10% ü\r\x1b[2K 100% ü\nhalf".encode()
    for byte in printed:
        output.add("vm", 0, bytes([byte]))
    output.end("vm", 0)
    output.close()
    assert capsys.readouterr().err.encode() == printed
    assert (tmp_path / "train/logs/vm-0.log").read_text().splitlines()[1:] == [" 100% ü", "half"]


def test_a_start_that_is_refused_writes_nothing(tmp_path):
    """The run's folder appears when the ranks have agreed."""
    output = Output(2, tmp_path / "train" / "logs")
    output.add("a", 0, b"one\n")
    output.drain()
    assert not (tmp_path / "train").exists()
    (tmp_path / "train").mkdir()
    output.add("a", 0, b"two\n")
    output.close()
    assert (tmp_path / "train/logs/a-0.log").read_text().splitlines()[1:] == ["one", "two"]


def test_a_console_that_is_held_holds_up_nobody(monkeypatch, capsys):
    held = threading.Event()
    show = logs._show
    monkeypatch.setattr(logs, "DRAIN", 0.2)
    monkeypatch.setattr(logs, "LIMIT", 1000)
    monkeypatch.setattr(logs, "_show", lambda name, text: held.wait(30) and show(name, text))
    output = Output(2)
    begun = time.monotonic()
    for _ in range(100):
        output.add("a", 0, b"x" * 90 + b"\n")
    output.drain()
    assert time.monotonic() - begun < 10

    held.set()
    monkeypatch.setattr(logs, "DRAIN", 10.0)
    output.drain()
    output.add("a", 0, b"last\n")
    output.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 20
    assert lines[-2:] == ["... 90 pieces of output are missing here ...", "[a:0] last"]


def test_a_disk_that_takes_no_log_is_said_once(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "logs").touch()  # no folder
    output = Output(2, tmp_path / "train" / "logs")
    for _ in range(3):
        output.add("a", 0, b"shown\n")
    output.close()
    said = capsys.readouterr().err
    assert said.count("shown") == 3 and said.count("warning: logs are not written") == 1


def test_a_console_that_has_gone_is_no_fault(monkeypatch):
    tried = []

    class Gone:
        def write(self, text: str) -> None:
            tried.append(text)
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr(sys, "stderr", Gone())
    output = Output(2)
    for line in (b"x\n", b"y\n"):
        output.add("a", 0, line)
        output.drain()
    assert tried == ["[a:0] x\n", "[a:0] y\n"]  # whoever writes has lived on


def test_the_name_of_a_log_is_a_file_name():
    assert log_name("gpu01", 3) == "gpu01-3.log"
    assert log_name("fe80::1%eth0/x", 3) == "fe80__1_eth0_x-3.log"


def test_attempts_leave_no_files_open(tmp_path):
    """As of hundreds of ranks in a launcher that starts them again and again."""
    folder = tmp_path / "train" / "logs"
    folder.parent.mkdir()
    before = set(threading.enumerate())
    output = Output(1, folder)
    output.add("gpu01", 0, b"update 1\n")
    writers = set(threading.enumerate()) - before
    output.close()
    for thread in writers:
        thread.join(20)
    assert writers and not any(thread.is_alive() for thread in writers)
    opened = {link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    assert (folder / "gpu01-0.log").is_file() and folder / "gpu01-0.log" not in opened
