"""People read stderr, programs read stdout; metrics survive a kill."""

import io
import json
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robustly import UserError, log
from robustly.metrics import Extent, Metrics, WandbRun, read_metrics

# -------------------------------------------------------------------------------------------- words


@pytest.mark.processes
def test_messages_go_to_stderr_and_json_alone_to_stdout():
    program = """
from robustly import log
log.say("said [not markup] of a line that is longer than eighty columns, which is where a terminal would break it")
log.warn("beware")
log.error("broken")
log.table("counts", {"bad_lines": 3})
with log.progress("reading", 10, "files") as advance:
    advance(10)
log.print_json({"a": [1, "é"], "b": None})
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"a": [1, "é"], "b": None}
    assert "é" in done.stdout
    lines = done.stderr.splitlines()
    assert lines[0].endswith("where a terminal would break it") and "[not markup]" in lines[0]
    assert lines[1:3] == ["warning: beware", "error: broken"]
    assert any("bad lines" in line and "3" in line for line in lines)
    assert "\x1b" not in done.stderr  # colours are for terminals


@pytest.mark.parametrize(("terminal", "shown"), [(True, 3), (False, 5)])
def test_a_narrow_terminal_gets_the_first_fields_and_a_file_all(
    terminal: bool, shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(
        log,
        "console",
        Console(file=out, width=60, force_terminal=terminal, soft_wrap=True, highlight=False),
    )
    fields = [f"field {number} {'x' * 8}" for number in range(5)]  # 16 each, and 2 between
    log.say_fields(fields)
    assert out.getvalue() == "  ".join(fields[:shown]) + "\n"


def test_brackets_in_tables_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich would take the first for bold print, and fail on the second."""
    written = io.StringIO()
    monkeypatch.setattr(log, "console", Console(file=written, width=80))
    log.table("runs/[bold]x", {"[b]labels": "[/b] and [red]y"})
    assert all(
        part in written.getvalue() for part in ("runs/[bold]x", "[b]labels", "[/b] and [red]y")
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1234567, "1,234,567"),
        (0.000612345, "0.0006123"),
        (12345.678, "12,346"),
        (9999.4, "9,999"),
        (True, "True"),
        (None, "None"),
        ("3", "3"),
    ],
)
def test_figures(value, shown):
    assert log.show(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (45.4, "45 s"),
        (119, "119 s"),
        (720, "12 min"),
        (12_600, "3.5 h"),
        (181_440, "2.1 d"),
    ],
)
def test_durations(seconds, shown):
    assert log.duration(seconds) == shown


# ----------------------------------------------------------------------------------------- progress


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    with log.progress("reading", 1000, "documents") as advance:
        for _ in range(20):
            now[0] += 1.5
            advance(50)

    assert capsys.readouterr().err.splitlines() == [
        # every 10 s at the earliest: after 7, 14 steps of 1.5 s
        "reading: 350 of 1,000 documents, 33 documents/s, 20 s left",
        "reading: 700 of 1,000 documents, 33 documents/s, 9 s left",
    ]


def test_a_rate_below_one_is_said_as_seconds(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    with log.progress("seed 1", 100, "updates") as advance:
        now[0] += 12.5
        advance(1)

    assert capsys.readouterr().err == "seed 1: 1 of 100 updates, 12.5 s each, 1238 s left\n"


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    console = Console(force_terminal=True, width=120, record=True, file=io.StringIO())
    monkeypatch.setattr(log, "console", console)
    with log.progress("reading", 1000, "documents") as advance:
        advance(400)
    assert "1000/1000" not in console.export_text(clear=False)
    assert "400/1000" in console.export_text()


# ------------------------------------------------------------------------------------------ metrics


def write(folder: Path, updates: range, resume_at: int, loss: float = 1.0) -> None:
    metrics = Metrics(folder, resume_at)
    for update in updates:
        metrics.write("metrics", {"update": update, "loss": loss, "device": "cpu"})
        if update % 2 == 0:
            metrics.write("evaluations", {"update": update, "validation_loss": loss / 2})
    metrics.close()


def lines(folder: Path, name: str = "metrics") -> list[tuple[int, float]]:
    return [
        (line["update"], line.get("loss", line.get("validation_loss")))
        for line in read_metrics(folder / f"{name}.jsonl")
    ]


def test_metrics_are_there_as_soon_as_they_are_written(tmp_path):
    metrics = Metrics(tmp_path, 0)
    metrics.write("metrics", {"update": 1, "loss": 2.5})
    assert lines(tmp_path) == [(1, 2.5)]
    metrics.close()


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    write(tmp_path, range(1, 8), resume_at=0)
    write(
        tmp_path, range(5, 7), resume_at=4, loss=3.0
    )  # killed after 7, the last checkpoint was of 4
    assert lines(tmp_path) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 3.0), (6, 3.0)]
    assert lines(tmp_path, "evaluations") == [(2, 0.5), (4, 0.5), (6, 1.5)]
    assert not list(tmp_path.glob("*.tmp"))


def test_without_a_checkpoint_metrics_begin_anew(tmp_path):
    write(tmp_path, range(0, 4), resume_at=0)  # an evaluation at 0 comes before any update
    write(tmp_path, range(0, 2), resume_at=0, loss=3.0)
    assert lines(tmp_path) == [(0, 3.0), (1, 3.0)]
    assert lines(tmp_path, "evaluations") == [(0, 1.5)]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_last_line_that_a_kill_cut_off_is_left_out(tmp_path, cut):
    write(tmp_path, range(1, 4), resume_at=0)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    kept = 3 if cut == 1 else 2  # without its line feed alone, a line is whole
    assert [update for update, _ in lines(tmp_path)] == [1, 2, 3][:kept]
    write(tmp_path, range(4, 5), resume_at=3)
    assert [update for update, _ in lines(tmp_path)] == [*[1, 2, 3][:kept], 4]
    assert file.read_bytes().count(b"\n") == kept + 1


def written(folder: Path) -> dict[str, Extent]:
    return {path.name: Extent.of(path.read_bytes()) for path in folder.glob("*.jsonl")}


def test_sync_says_how_far_the_files_are_written(tmp_path):
    metrics = Metrics(tmp_path, 0)
    metrics.write("metrics", {"update": 1, "loss": 2.5})
    found = metrics.sync()
    assert found == written(tmp_path)
    assert (found["metrics.jsonl"].lines, found["evaluations.jsonl"].size) == (1, 0)
    metrics.close()


def test_what_the_checkpoint_says_is_kept_to_the_byte(tmp_path):
    write(tmp_path, range(0, 5), resume_at=0)
    expected = written(tmp_path)
    before = [path.read_bytes() for path in sorted(tmp_path.glob("*.jsonl"))]
    for resume_at in (4, 0):  # there may be a checkpoint before the first update
        write(tmp_path, range(5, 8), resume_at=4)
        metrics = Metrics(tmp_path, resume_at, expected=expected)
        metrics.close()
        assert metrics.lost == ()
        assert [path.read_bytes() for path in sorted(tmp_path.glob("*.jsonl"))] == before


@pytest.mark.parametrize("damage", ["missing", "cut", "a digit", "another line"])
@pytest.mark.parametrize("name", ["metrics", "evaluations"])
def test_what_the_checkpoint_does_not_say_is_refused(tmp_path, damage, name):
    write(tmp_path, range(0, 5), resume_at=0)
    expected, file = written(tmp_path), tmp_path / f"{name}.jsonl"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        changes = {"cut": content[:-1], "a digit": content.replace(b'loss": 1', b'loss": 2', 1)}
        file.write_bytes(changes.get(damage, b'{"update": 0}\n' + content))
        if file.read_bytes() == content:  # the evaluations' losses are halves
            file.write_bytes(content.replace(b"0.5", b"0.6", 1))

    now = written(tmp_path)
    with pytest.raises(UserError, match=rf"{name}\.jsonl: begins with .*accept_lost_metrics=true"):
        Metrics(tmp_path, 4, expected=expected)

    assert written(tmp_path) == now
    metrics = Metrics(tmp_path, 4, expected=expected, accept_lost=True)
    metrics.close()
    assert metrics.lost == (f"{name}.jsonl",)


def test_a_figure_that_is_not_finite_is_refused(tmp_path):
    metrics = Metrics(tmp_path, 0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        metrics.write("metrics", {"update": 1, "loss": float("nan")})
    metrics.close()
    assert lines(tmp_path) == []


def test_tensorboard_shows_the_same_figures(tmp_path):
    write(tmp_path, range(1, 8), resume_at=0)
    write(tmp_path, range(5, 7), resume_at=4, loss=3.0)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Tags()["scalars"] == [
        "loss",
        "validation_loss",
    ]  # numbers alone; update is the axis
    assert [(event.step, event.value) for event in board.Scalars("loss")] == lines(tmp_path)


# --------------------------------------------------------------------------------- Weights & Biases


class FakeWandb(types.ModuleType):
    """Keeps what is sent."""

    Error = type("Error", (Exception,), {})

    def __init__(self):
        super().__init__("wandb")
        self.started, self.sent, self.finished = [], [], 0

    def init(self, **settings):
        self.started.append(settings)
        return self

    def log(self, figures, step):
        self.sent.append((step, figures))

    def finish(self):
        self.finished += 1


AT_WANDB = WandbRun("mlm", "team", "mine", "hash", {"seed": 1})


def test_weights_and_biases_get_the_same_figures(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    metrics = Metrics(tmp_path, 0, AT_WANDB)
    metrics.write("metrics", {"update": 3, "loss": 2.5, "device": "cpu"})
    metrics.write(
        "evaluations", {"update": 4, "validation_loss": 2.0, "validation_sources": {"a": {}}}
    )
    metrics.close()
    assert fake.sent == [(3, {"loss": 2.5}), (4, {"validation_loss": 2.0})]
    assert fake.finished == 1
    settings = fake.started[0]
    assert (settings["project"], settings["entity"], settings["name"]) == ("mlm", "team", "mine")
    assert (settings["resume"], settings["config"], settings["dir"]) == (
        "allow",
        {"seed": 1},
        str(tmp_path),
    )


def test_a_resume_is_the_same_run_there_and_another_name_or_recipe_is_another(
    tmp_path, monkeypatch
):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    others = (AT_WANDB, AT_WANDB, replace(AT_WANDB, name="b"), replace(AT_WANDB, recipe_hash="h2"))
    for at in others:
        Metrics(tmp_path, 2, at).close()

    first, again, *rest = (settings["id"] for settings in fake.started)
    assert first == again and len({first, *rest}) == 3


def test_without_the_package_or_a_login_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'robustly\[wandb\]'"):
        Metrics(tmp_path, 0, AT_WANDB)

    fake = FakeWandb()
    monkeypatch.setattr(
        fake, "init", lambda **settings: (_ for _ in ()).throw(fake.Error("no API key"))
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(UserError, match=r"no API key.*wandb login.*WANDB_MODE=offline"):
        Metrics(tmp_path, 0, AT_WANDB)


def test_what_a_message_quotes_cannot_command_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        log.printable("a\x1b[31m\r\u202eb\ud800\nnaïve 日本")
        == "a\\x1b[31m\\r\\u202eb\\ud800\nnaïve 日本"
    )
