"""A run that starts from a checkpoint: of a published model, and of a finished run with other
tokens and positions."""

import json
import math
from pathlib import Path

import pytest
import torch
from command_line import CORPUS, ROOT, robustly

from robustly.config import InputPath
from robustly.pretrain.start.model_files import find_model
from robustly.pretrain.start.open_model import open_model

pytestmark = pytest.mark.pipeline
TEXT = CORPUS.read_text(encoding="utf-8")

BASE = f"""
base: {ROOT}/configs/tiny.yaml
name: first
corpus: {{sources: old.txt, documents: line, validation: 0.1}}
tokenizer: {{vocab_size: 500}}
data: {{block_length: 32}}
model: {{layers: 2, hidden: 32, heads: 2, feed_forward: 64, positions: 34}}
optim: {{batch_size: 32, peak_lr: 1e-2}}
schedule: {{updates: 60, warmup: 5}}
run: {{ranks: 1, micro_batch: 32, log_every: 20, evaluate_every: 1000, checkpoint_every: 1000, workers: 1}}
report: {{delta: null}}
"""
CONTINUED = """
base: first.yaml
name: continued
corpus: {sources: new.txt, validation: 0.2}
tokenizer: {import: runs/first/published}
model: {init_from: runs/first/published}
optim: {peak_lr: 5e-3}
schedule: {updates: 60, warmup: 5}
"""
WIDER = """
base: first.yaml
name: wider
corpus: {sources: new.txt, validation: 0.2}
tokenizer: {vocab_size: 600}
data: {block_length: 64}
model: {positions: 66, init_from: runs/first}
optim: {batch_size: 16, peak_lr: 5e-3}
schedule: {updates: 20, warmup: 2}
run: {micro_batch: 16}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished first run, and other text."""
    folder = tmp_path_factory.mktemp("continue")
    end = TEXT.index("\n\n", 120_000)
    (folder / "old.txt").write_text(TEXT[:end], encoding="utf-8")
    (folder / "new.txt").write_text(TEXT[end : TEXT.index("\n\n", end + 60_000)], encoding="utf-8")
    for name, page in (("first", BASE), ("continued", CONTINUED), ("wider", WIDER)):
        (folder / f"{name}.yaml").write_text(page, encoding="utf-8")

    robustly("run", "first.yaml", cwd=folder)
    return folder


def losses(folder: Path) -> list[float]:
    lines = (folder / "train" / "evaluations.jsonl").read_text().splitlines()
    return [json.loads(line)["validation_loss"] for line in lines]


def card(folder: Path) -> str:
    return (folder / "published" / "README.md").read_text()


def test_the_loss_on_new_text_falls_below_the_starting_checkpoints(work: Path) -> None:
    said = robustly("run", "continued.yaml", cwd=work)
    continued = work / "runs" / "continued"
    before, after = losses(continued)
    assert after < before - 0.1
    assert (
        before < math.log(500) - 0.3
    )  # what guessing all tokens alike gives, and an untrained model
    assert "500 tokens as they are there, 0 made from their pieces" in said.stderr
    assert "the checkpoint it started from" in card(continued) and "untrained" not in card(
        continued
    )
    assert "pretrained further, from another checkpoint" in card(continued)
    assert "untrained" in card(work / "runs" / "first") and "from scratch" in card(
        work / "runs" / "first"
    )
    inputs = json.loads((continued / "train" / "recipe.json").read_text())["inputs"]
    assert inputs.keys() == {"data", "tokenizer", "init_from"}
    refused = robustly("pretrain", "continued.yaml", "model.init_from=null", cwd=work, code=2)
    assert "input.init_from" in refused.stderr and "absent now" in refused.stderr
    # the folder of a run holds the same weights as what was published of it
    run, published = (
        find_model(InputPath(f"runs/first{place}", work)) for place in ("", "/published")
    )
    assert run.vocabulary() == published.vocabulary()
    ours, theirs = (open_model(files).model.state_dict() for files in (run, published))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_other_tokens_and_longer_positions(work: Path) -> None:
    for command in ("tokenizer", "prepare"):
        robustly(command, "wider.yaml", cwd=work)

    said = robustly("pretrain", "wider.yaml", cwd=work)
    before, after = losses(work / "runs" / "wider")
    assert after < before - 0.1
    assert (
        "positions 34 there, 66 here" in said.stderr
        and " 0 made from their pieces" not in said.stderr
    )


def test_a_model_of_another_size_is_refused_before_the_first_update(work: Path) -> None:
    other = (
        "model.hidden=64",
        "model.layers=3",
        "paths.tokenizer=runs/first/tokenizer",
        "paths.data=runs/first/data",
    )
    refused = robustly("pretrain", "continued.yaml", "name=other", *other, cwd=work, code=2)
    assert "model.hidden: 32 there, 64 in the config" in refused.stderr
    assert "model.layers: 2 there, 3 in the config" in refused.stderr
    assert "Traceback" not in refused.stderr
    gone = robustly(
        "pretrain",
        "continued.yaml",
        "name=other",
        *other,
        "model.init_from=nothing",
        cwd=work,
        code=2,
    )
    assert "model.init_from: nothing: not there; looked at" in gone.stderr
