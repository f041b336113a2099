"""The last lines of a run that failed."""

import pytest

from robustly.heartbeat import Kind
from robustly.launch import summary
from robustly.launch.supervise import Ended

KILLED = Ended(
    75, Kind.ERROR, "gpu02", 9, "rank 9 on gpu02 was killed (SIGKILL): ...", signal=9, update=812
)


def test_where_why_how_far_and_what_to_type(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "train/logs/gpu02-9.log"
    log.parent.mkdir(parents=True)
    log.touch()
    newest = tmp_path / "train/checkpoints/update-00000800"
    assert summary.summary(KILLED, tmp_path / "train", newest, "robustly launch hostfile c") == [
        "where        rank 9 on gpu02",
        "why          killed (SIGKILL): perhaps memory ran out",
        "last update  812",
        "checkpoint   train/checkpoints/update-00000800",
        "log          train/logs/gpu02-9.log",
        "next         robustly launch hostfile c",
    ]


@pytest.mark.parametrize(
    ("ended", "why", "following"),
    [
        (
            Ended(
                1, Kind.ERROR, "a", 0, "rank 0:\nTraceback\n  File\nRuntimeError: ours\n", update=3
            ),
            "RuntimeError: ours",
            "report this; to go on: robustly x",
        ),
        (
            Ended(
                75, Kind.ERROR, "a", 0, "rank 0 on a: no update for 41 s, and stuck; the run ends"
            ),
            "no update for 41 s, and stuck",
            "robustly x",
        ),
        (
            Ended(75, Kind.ERROR, "a", 0, "rank 0 on a left no word: killed; the run ends"),
            "left no word: killed",
            "robustly x",
        ),
        (
            Ended(2, Kind.ERROR, "a", 0, "update 7: loss is nan; see dump", update=7),
            "update 7: loss is nan",
            "mend it; then: robustly x",
        ),
        (Ended(7, Kind.ERROR, "a", 0), "exit code 7", "robustly x"),
        (
            Ended(75, Kind.ERROR, "a", None, "a: nothing has been heard"),
            "a: nothing has been heard",
            "robustly x",
        ),
    ],
)
def test_other_ends(tmp_path, ended, why, following):
    lines = summary.summary(ended, tmp_path, None, "robustly x")
    found = {line[:12].strip(): line[13:] for line in lines}
    assert (found["why"], found["next"]) == (why, following)
    assert found["checkpoint"] == "none yet" and "log" not in found
    assert found["where"] == ("a" if ended.rank is None else "rank 0 on a")


def test_what_ranks_found_together_is_nobodys(tmp_path):
    """Rank 0 speaks for all; the lines below the first say who has what."""
    text = "rank 0 on a: the hosts are not ready; nothing was written\n  b: seed = 9, a has 1\n    -> mend\n`robustly"
    lines = summary.summary(Ended(2, Kind.ERROR, "a", 0, text), tmp_path, None, "robustly x")
    assert lines[0] == "why          the hosts are not ready: b: seed = 9, a has 1"


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        (KILLED, True),
        (Ended(0), False),
        (Ended(75, Kind.STOPPED, text="stopped after update 4"), False),
        (Ended(2, Kind.ERROR, "a", 0, "no such tokenizer"), False),  # refused: its line says all
        (Ended(2, Kind.ERROR, "a", 0, "diverged", update=812), True),
    ],
)
def test_who_needs_a_summary(tmp_path, capsys, ended, told):
    summary.tell(ended, tmp_path)
    assert ("where" in capsys.readouterr().err) == told
