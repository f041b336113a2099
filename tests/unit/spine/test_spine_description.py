"""What kind a folder is, a run's description, and how descriptions look."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from robustly import UserError, log
from robustly.description import Description, Listing, show
from robustly.inspection.folders import describe_run, folder_kind
from robustly.manifest import Stage


def stage(folder: Path, name: str, finish: bool = True) -> Path:
    with Stage(folder, name, {"a": 1}, {}).begin() as begun:
        (folder / "file").write_bytes(b"12345")
        if finish:
            begun.finish([folder / "file"], {})
    return folder


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize("name", ["tokenizer", "data", "train", "published", "report", "delta"])
def test_a_stage_is_known_by_its_manifest_or_its_recipe(
    tmp_path: Path, name: str, finish: bool
) -> None:
    assert folder_kind(stage(tmp_path / "anything", name, finish)) == name


def test_runs_checkpoints_and_stages_that_are_still_counting(tmp_path: Path) -> None:
    (tmp_path / "tokenizer" / "work").mkdir(parents=True)
    assert folder_kind(tmp_path / "tokenizer") == "tokenizer"
    assert folder_kind(tmp_path) == "run"
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    assert folder_kind(tmp_path / "checkpoint") == "checkpoint"


def test_what_is_not_known_is_listed(tmp_path: Path) -> None:
    for number in range(14):
        (tmp_path / f"{number:02}.txt").touch()

    (tmp_path / "00folder").mkdir()
    with pytest.raises(
        UserError, match=r"It holds 00\.txt, 00folder/, .* and 3 more\. Known are .*tokenizer, data"
    ):
        folder_kind(tmp_path)

    with pytest.raises(UserError, match="a file, not a folder"):
        folder_kind(tmp_path / "00.txt")

    with pytest.raises(UserError, match="no such folder"):
        folder_kind(tmp_path / "nowhere")

    (tmp_path / "00folder" / "recipe.json").write_text('{"stage": "data"')
    with pytest.raises(UserError, match=r"recipe\.json: Invalid JSON"):
        folder_kind(tmp_path / "00folder")

    (tmp_path / "00folder" / "recipe.json").write_text('{"stage": "data"}')
    with pytest.raises(UserError, match=r"recipe\.json: hash: Field required"):
        folder_kind(tmp_path / "00folder")


def test_a_run_names_its_stages_and_the_next_command(tmp_path: Path) -> None:
    def stages() -> dict[str, str]:
        return {row["folder"]: row["state"] for row in describe_run(tmp_path).examples[0].rows}

    stage(tmp_path / "tokenizer", "tokenizer")
    stage(tmp_path / "data", "data", finish=False)
    found = describe_run(tmp_path)
    assert found.summary == "A run: 1 of 4 stages finished."
    assert stages() == {
        "tokenizer": "finished",
        "data": "begun",
        "train": "not begun",
        "published": "not begun",
    }
    assert found.notes == ["next: robustly prepare CONFIG"]
    assert found.examples[0].rows[0]["bytes_on_disk"] > 5
    for name in ("data", "train", "published", "report"):
        stage(tmp_path / name, name)

    assert describe_run(tmp_path).notes[0].startswith("next: robustly evaluate")
    stage(tmp_path / "deltas" / "one", "delta", finish=False)
    assert [*stages()][-2:] == ["report", "deltas/one"]
    assert describe_run(tmp_path).notes == ["next: robustly delta CONFIG"]


WIDE = Description(
    Path("runs/with_quite_a_long_name/tokenizer"),
    "tokenizer",
    "One sentence about the folder, which says more than sixty columns can hold on a line.",
    {"tokens": 1234567, "share": 0.5, "fingerprint": "0123456789abcdef" * 6},
    [
        Listing(
            "texts",
            [
                {"number": n, "text": f"[/red] {'word ' * 20}[bold]", "nothing": None}
                for n in (1, 2000)
            ],
        ),
        Listing("many columns", [{f"quite a long column {n}": 1234567 for n in range(12)}]),
        Listing("empty", []),
    ],
    ["next: robustly prepare CONFIG"],
)


def test_a_narrow_terminal_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(
        log, "console", Console(file=written, width=60, soft_wrap=True, highlight=False)
    )
    show(WIDE)
    text = written.getvalue()
    assert max(map(len, text.splitlines())) <= 60
    assert "1,234,567" in text and "2,000" in text and "[/red]" in text and "[bold]" in text
    assert "\x1b" not in text and "empty" not in text
    assert "robustly prepare" in text
    assert text.count("1,234,567") == 1 + 12  # whole, in however many columns


def test_the_same_facts_as_json() -> None:
    found = json.loads(json.dumps(WIDE.json()))
    assert found["folder"] == str(WIDE.folder) and found["figures"]["tokens"] == 1234567
    assert found["examples"]["texts"][1]["number"] == 2000
    assert found["notes"] == list(WIDE.notes)


def test_commands_stay_whole_and_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is copied from a narrow terminal or a file must work when it is typed."""
    run = tmp_path / "a run with a long name, and spaces"
    for name in ("tokenizer", "data", "train", "published"):
        stage(run / name, name)

    written = io.StringIO()
    monkeypatch.setattr(
        log, "console", Console(file=written, width=60, soft_wrap=True, highlight=False)
    )
    show(describe_run(run))
    assert f"next: robustly evaluate '{run / 'published'}' --text FILES\n" in written.getvalue()
    assert f"run: {run}\n" in written.getvalue()
