"""A user's mistakes: one clear message, exit code 2, no traceback, nothing lost."""

from pathlib import Path

import pytest
from command_line import CORPUS, ROOT, robustly

pytestmark = pytest.mark.pipeline
GOOD = "A sentence of some words. Another one follows it.\n\n" * 3


def mistake(cwd: Path, *arguments: str, own_process: bool = False) -> str:
    done = robustly(*arguments, cwd=cwd, code=2, own_process=own_process)
    assert done.stdout == ""
    return done.stderr


def tiny(cwd: Path, content: bytes | str = GOOD, *changes: str) -> list[str]:
    """Arguments for a run on a file with this content."""
    (cwd / "corpus.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    small = [
        "tokenizer.vocab_size=270",
        "tokenizer.min_frequency=1",
        "corpus.validation=0",
        "run.workers=1",
    ]
    return [str(ROOT / "configs" / "tiny.yaml"), "corpus.sources=corpus.txt", *small, *changes]


def test_all_faults_of_a_page_at_once(tmp_path: Path) -> None:
    message = mistake(
        tmp_path, "run", str(ROOT / "configs" / "tiny.yaml"),
        "optim.peek_lr=1e-3", "schedule.updates=many", "model.heads=7", "tokenizer.vocab_size=5", "colour=red",
        own_process=True,
    )  # fmt: skip
    assert "5 faults" in message
    assert "optim.peek_lr: unknown key" in message and "did you mean optim.peak_lr?" in message
    assert "schedule.updates = 'many': expected a valid integer" in message
    assert "model.heads (7)" in message
    assert "at least 261" in message
    assert "colour: unknown key" in message


def test_a_block_longer_than_the_positions(tmp_path: Path) -> None:
    message = mistake(
        tmp_path, "run", *tiny(tmp_path, GOOD, "data.block_length=129", "model.positions=130")
    )
    assert "data.block_length = 129" in message and "at most 128" in message


def test_missing_page_and_wrong_command(tmp_path: Path) -> None:
    assert "no such config" in mistake(tmp_path, "run", "nowhere.yaml")
    assert "fly" in mistake(tmp_path, "fly", "tiny.yaml")


def test_a_task_without_its_files_is_found_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(
        "base: delta/lora.yaml\ndelta: {task: {train: nowhere.jsonl}}\n"
    )
    message = mistake(
        tmp_path, "run", *tiny(tmp_path, GOOD, f"report.delta={tmp_path / 'task.yaml'}")
    )
    assert "nowhere.jsonl" in message and "task.train" in message
    assert not (tmp_path / "runs").exists()


def test_missing_corpus(tmp_path: Path) -> None:
    message = mistake(tmp_path, "run", *tiny(tmp_path, GOOD, "corpus.sources=nowhere.txt"))
    assert "nowhere.txt" in message and "corpus.sources" in message


@pytest.mark.parametrize("content", ["", "\n\n\n", " \n \n\t\n"])
def test_empty_corpus(tmp_path: Path, content: str) -> None:
    message = mistake(tmp_path, "run", *tiny(tmp_path, content))
    assert "document" in message or "empty" in message


def test_bytes_that_are_not_utf_8(tmp_path: Path) -> None:
    message = mistake(tmp_path, "run", *tiny(tmp_path, b"fine\n\nna\xefve\n"))
    assert "UTF-8" in message and "corpus.txt" in message


def test_a_corpus_too_small_for_the_vocabulary(tmp_path: Path) -> None:
    message = mistake(tmp_path, "run", *tiny(tmp_path, GOOD, "tokenizer.vocab_size=5000"))
    assert "tokenizer.vocab_size" in message


def test_a_corpus_with_nothing_held_out(tmp_path: Path) -> None:
    message = mistake(tmp_path, "run", *tiny(tmp_path, GOOD, "corpus.validation=0.000001"))
    assert "validation" in message


def test_stages_out_of_order(tmp_path: Path) -> None:
    arguments = tiny(tmp_path)
    assert "robustly tokenizer" in mistake(tmp_path, "prepare", *arguments)
    assert "robustly" in mistake(tmp_path, "pretrain", *arguments)
    assert "robustly" in mistake(tmp_path, "publish", *arguments)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = mistake(tmp_path, "tokenizer", *tiny(tmp_path, GOOD, "paths.root=file/inside"))
    assert "paths.root" in message


def test_a_corpus_too_small_for_one_block(tmp_path: Path) -> None:
    content = "A sentence of some words. Another one follows it."
    long = ["data.block_length=128", "model.positions=130"]
    message = mistake(tmp_path, "run", *tiny(tmp_path, content, "tokenizer.vocab_size=261", *long))
    assert "data.block_length = 128" in message and "too few for one block" in message


@pytest.mark.parametrize(
    ("key", "page_key"),
    [("gradient_clipping=0.1", "optim.clip_norm"), ("zero_optimization.stage=3", "run.zero_stage")],
)
def test_deepspeed_keys_that_the_page_owns(tmp_path: Path, key: str, page_key: str) -> None:
    message = mistake(tmp_path, "run", *tiny(tmp_path, GOOD, f"run.deepspeed.{key}"))
    assert f"{key.split('=')[0]} is set by {page_key}" in message


@pytest.mark.parametrize("name", ["../elsewhere", "..", ""])
def test_a_new_run_that_is_no_name(tmp_path: Path, name: str) -> None:
    assert "--new-run" in mistake(tmp_path, "tokenizer", *tiny(tmp_path), "--new-run", name)


def test_a_rank_of_anothers_launcher_chooses_no_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would train the old one."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    message = mistake(tmp_path, "pretrain", *tiny(tmp_path), "--new-run", "other")
    assert "--new-run: each rank that another program starts" in message


def test_a_name_that_is_a_path(tmp_path: Path) -> None:
    assert "name = 'x/../../y'" in mistake(
        tmp_path, "tokenizer", *tiny(tmp_path, GOOD, "name=x/../../y")
    )


def test_a_fault_of_one_rank_is_the_only_message(tmp_path: Path) -> None:
    """Rank 0 alone finds the checkpoint damaged; rank 1 must leave with it, not die in its next
    collective."""
    text = CORPUS.read_text(encoding="utf-8")
    arguments = tiny(
        tmp_path, text[:30_000], "corpus.documents=line", "data.block_length=32", "run.ranks=2"
    )

    for stage in ("tokenizer", "prepare"):
        robustly(stage, *arguments, cwd=tmp_path)

    damaged = tmp_path / "runs" / "tiny" / "train" / "checkpoints" / "update-00000005"
    damaged.mkdir(parents=True)
    message = mistake(tmp_path, "pretrain", *arguments)
    assert message.count("none of its 1 checkpoints is whole") == 1
    assert damaged.exists()
