"""Every command in the documentation does what it says: it is run, on a shrunken page, or needs
what is not here.

Fenced blocks are marked `sh` (run here, a page of the documentation at a time, in a folder like a
checkout after `make quickstart`), `sh gpu` or `sh cluster` (not run; its pages and keys are
checked), `sh make` (a target of the Makefile) or `python` (run). Blocks of output and listings have
no mark and must hold no command."""

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from robustly.delta.config import load_delta
from robustly.experiment import load_experiment
from tests import warm

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BIN = Path(sys.executable).parent

SHRUNKEN = f"""
base: {ROOT}/configs/tiny.yaml
corpus: {{sources: ../data_prep/corpora/small.txt, validation: 0.1}}
tokenizer: {{vocab_size: 800}}
model: {{layers: 2, hidden: 32, heads: 2, feed_forward: 64}}
optim: {{batch_size: 8}}
schedule: {{updates: 12, warmup: 3}}
run: {{micro_batch: 4, log_every: 4, evaluate_every: 6, evaluate_blocks: 16, checkpoint_every: 6, workers: 1}}
report: {{delta: delta/lora.yaml}}
"""
SHRUNKEN_DELTA = f"""
base: {ROOT}/configs/delta/lora.yaml
delta:
  task: {{train: ../../delta/tasks/snips/train.jsonl, test: ../../delta/tasks/snips/test.jsonl}}
  seeds: 2
optim: {{epochs: 1.0}}
"""


def finnish() -> str:
    """A text with Finnish proverbs between words made of Finnish syllables: enough for a
    vocabulary."""
    draw = random.Random(1)
    syllables = [
        start + vowel
        for start in "hjklmnprstv"
        for vowel in ("a", "aa", "e", "i", "ii", "o", "u", "uu", "ä", "y")
    ]
    words = ["".join(draw.choices(syllables, k=draw.randint(2, 4))) for _ in range(1500)]
    sentences = [" ".join(draw.choices(words, k=8)).capitalize() + "." for _ in range(2500)]
    proverbs = "Oma tupa, oma lupa. Ei oppi ojaan kaada. Vahinko ei tule kello kaulassa."

    return "\n\n".join(
        f"{proverbs} {' '.join(sentences[n : n + 10])}" for n in range(0, len(sentences), 10)
    )


class Block(NamedTuple):
    mark: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [
        Block(mark.strip(), text) for mark, text in FENCE.findall(page.read_text(encoding="utf-8"))
    ]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def path() -> str:
    """The variable PATH: our commands, then those of the virtual environment and of the machine."""
    return f"{warm.commands()}:{BIN}:{os.environ['PATH']}"


@pytest.fixture(scope="session")
def checkout(once: Callable[..., Path], path: str) -> Path:
    """A folder like a checkout after `make quickstart`: what the documentation's commands touch,
    and a finished run."""

    def fill(folder: Path) -> None:
        shutil.copytree(ROOT / "configs", folder / "configs")
        (folder / "configs" / "tiny.yaml").write_text(SHRUNKEN, encoding="utf-8")
        (folder / "configs" / "delta" / "lora.yaml").write_text(SHRUNKEN_DELTA, encoding="utf-8")
        shutil.copytree(ROOT / "delta" / "tasks", folder / "delta" / "tasks")
        shutil.copytree(ROOT / "data_prep" / "corpora", folder / "data_prep" / "corpora")
        text = (ROOT / "data_prep" / "corpora" / "prose_cc0.txt").read_text(encoding="utf-8")
        small = text[: text.index("\n\n", 250_000)]
        (folder / "data_prep" / "corpora" / "small.txt").write_text(small, encoding="utf-8")
        (folder / "texts").mkdir()
        (folder / "texts" / "english.txt").write_text(small, encoding="utf-8")
        (folder / "texts" / "suomi.txt").write_text(finnish(), encoding="utf-8")
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "activate").write_text(f'export PATH="{path}"\n')
        run_in(folder, "robustly run configs/tiny.yaml", path)

    return once("checkout", fill)


def run_in(folder: Path, script: str, path: str) -> None:
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script], env={**os.environ, "PATH": path},
        cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, (
        f"exit code {done.returncode} of:\n{script}\n{done.stdout}\n{done.stderr}"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.pipeline
@pytest.mark.parametrize(
    "page", [p for p in PAGES if {b.mark for b in blocks(p)} & {"sh", "python"}], ids=name_of
)
def test_the_commands_of_a_page_run_as_they_stand(
    page: Path, checkout: Path, tmp_path: Path, path: str
) -> None:
    folder = tmp_path / "checkout"
    shutil.copytree(checkout, folder, symlinks=True)
    script = []

    for block in blocks(page):
        if block.mark == "sh":
            script.append(block.text)
        elif block.mark == "python":
            script.append(f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK")

    run_in(folder, "\n".join(script), path)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_marked(page: Path) -> None:
    for block in blocks(page):
        assert block.mark in (
            "",
            "text",
            "sh",
            "sh gpu",
            "sh cluster",
            "sh make",
            "python",
            "yaml",
            "json",
        ), block
        if not block.mark:
            commands = [
                line
                for line in block.text.splitlines()
                if re.match(r"\$|robustly |make |pip |\. ", line)
            ]
            assert not commands, f"{name_of(page)}: commands in a block without a mark: {commands}"


ELSEWHERE = [
    pytest.param(words, id=" ".join(words))
    for page in PAGES
    for block in blocks(page)
    if block.mark in ("sh gpu", "sh cluster")
    for line in block.text.replace("\\\n", " ").splitlines()
    if (words := shlex.split(line, comments=True)) and words[0] == "robustly"
]


@pytest.mark.parametrize("words", ELSEWHERE)
def test_what_needs_a_gpu_or_a_cluster_names_real_pages_keys_and_options(
    words: list[str], tmp_path: Path
) -> None:
    _, command, *arguments = words
    named = ["configs/delta/glue.yaml"] if command == "glue" else arguments
    page = ROOT / next(word for word in named if word.endswith(".yaml"))
    if not page.exists():  # the reader's own, such as configs/mine.yaml
        arguments = ["tiny" if word.endswith(".yaml") else word for word in arguments]

    if command == "launch":
        (tmp_path / "hosts").write_text("gpu01 slots=8\n")
        arguments = [str(ROOT / word) if word.endswith(".yaml") else word for word in arguments]
        done = subprocess.run(
            [str(BIN / "robustly"), "launch", *arguments, "--dry-run"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "pretrain" in done.stdout, done.stderr
        return

    overrides = [word for word in arguments if re.match(r"[a-z_]+(\.[a-z_]+)*=", word)]
    if command in ("delta", "glue"):
        load_delta(page, overrides)
    else:
        load_experiment(page if page.exists() else "tiny", overrides)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_makefile_knows_the_targets(page: Path) -> None:
    for block in blocks(page):
        if block.mark == "sh make":
            targets = [
                line.split("#")[0].split()
                for line in block.text.splitlines()
                if line.startswith("make ")
            ]
            assert targets
            for command in targets:
                subprocess.run(
                    [*command[:1], "-n", *command[1:]], cwd=ROOT, check=True, capture_output=True
                )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{name_of(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_into_pages_lead_to_a_heading(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        found = page.parent / target if target else page
        assert heading in headings(found), f"{name_of(page)}: {target}#{heading}"


def headings(page: Path) -> set[str]:
    """The names by which links reach the headings of a page, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-")
        for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
