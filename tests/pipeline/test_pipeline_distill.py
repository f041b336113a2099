"""A teacher, and a student of half its layers: better than without the teacher, published, the same
on any ranks."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import ROOT, robustly
from numpy.typing import NDArray
from transformers import AutoModelForMaskedLM

from robustly.data_prep.blocks import Blocks
from robustly.experiment import load_experiment
from robustly.pretrain.checkpoints.checkpoint import of_finished
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.validation import masked_batches
from robustly.tokenizer import load_tokenizer

pytestmark = pytest.mark.pipeline

TEACHER = f"""
base: {ROOT}/configs/tiny.yaml
name: teacher
corpus: {{sources: text.txt, documents: line, validation: 0.1}}
tokenizer: {{vocab_size: 360}}
model: {{layers: 2, hidden: 64, heads: 2, feed_forward: 128}}
optim: {{batch_size: 32, peak_lr: 5e-3}}
schedule: {{updates: 200, warmup: 20}}
run: {{ranks: 1, micro_batch: 32, log_every: 50, evaluate_every: 1000, checkpoint_every: 1000, workers: 1}}
report: {{delta: null}}
"""
STUDENT = """
base: teacher.yaml
name: student
tokenizer: {import: runs/teacher/published}
model: {layers: 1}
distillation: {teacher: runs/teacher/published}
optim: {batch_size: 8, peak_lr: 2e-3}
schedule: {updates: 40, warmup: 4}
run: {log_every: 1}
"""
ALONE = ("name=alone", "distillation.soft=0", "distillation.cosine=0")
DATA = ("paths.tokenizer=runs/student/tokenizer", "paths.data=runs/student/data")


def language() -> str:
    """Lines of words each of which has one of two successors: a small model learns it in a
    minute."""
    draw = random.Random(1)
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    words = [
        "".join(pair)
        for pair in zip(syllables, draw.sample(syllables, len(syllables)), strict=True)
    ]
    successors = {word: draw.sample(words, 2) for word in words}
    lines = []

    for _ in range(4000):
        line = [draw.choice(words)]
        while len(line) < 12:
            line.append(draw.choice(successors[line[-1]]))

        lines.append(" ".join(line))

    return "\n".join(lines)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a published teacher and its published student."""
    folder = tmp_path_factory.mktemp("distill")
    (folder / "text.txt").write_text(language(), encoding="utf-8")
    (folder / "teacher.yaml").write_text(TEACHER, encoding="utf-8")
    (folder / "student.yaml").write_text(STUDENT, encoding="utf-8")
    robustly("run", "teacher.yaml", cwd=folder)
    robustly("run", "student.yaml", cwd=folder)
    return folder


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (folder / "train" / f"{name}.jsonl").read_text().splitlines()
    ]


def losses_of_blocks(work: Path, run: str) -> NDArray[np.float64]:
    """Nats per masked token of each held-out block, under masks that are the same for all, of a
    run's student."""
    page = load_experiment(work / "student.yaml")
    vocabulary = SpecialTokens.of(load_tokenizer(work / "runs" / "student" / "tokenizer"))
    held_out = Blocks(
        work / "runs" / "student" / "data", "validation", page.data.block_length, page.data.format
    )
    model = AutoModelForMaskedLM.from_pretrained(work / "runs" / "student" / "published").eval()
    model.load_state_dict(
        of_finished(work / "runs" / run / "train", page.schedule.updates).weights(), strict=False
    )
    found = []

    for batch, _ in masked_batches(held_out, None, page.masking, vocabulary, 1):
        if len(batch.labels):
            with torch.no_grad():
                scores = model(
                    input_ids=batch.inputs, attention_mask=batch.attention
                ).logits.flatten(0, 1)

            found.append(
                torch.nn.functional.cross_entropy(scores[batch.positions], batch.labels).item()
            )

    return np.array(found)


def test_a_student_learns_and_better_than_without_the_teacher(work: Path) -> None:
    student = work / "runs" / "student"
    before, after = (line["validation_loss"] for line in lines(student, "evaluations"))
    assert after < before - 0.1
    metrics = lines(student, "metrics")
    assert metrics[-1]["soft_loss"] < metrics[0]["soft_loss"]
    assert metrics[-1]["cosine_loss"] < metrics[0]["cosine_loss"] < 2
    robustly("distill", "student.yaml", *ALONE, *DATA, cwd=work)  # the same start, the same updates
    assert lines(work / "runs" / "alone", "evaluations")[0]["validation_loss"] == before
    gain = losses_of_blocks(work, "alone") - losses_of_blocks(work, "student")
    error = gain.std(ddof=1) / len(gain) ** 0.5
    assert len(gain) > 100 and gain.mean() > 4 * error  # pairs of blocks


def test_what_is_published_is_a_plain_roberta_of_half_the_layers(work: Path) -> None:
    published = work / "runs" / "student" / "published"
    model = AutoModelForMaskedLM.from_pretrained(published)
    assert model.config.num_hidden_layers == 1 and type(model).__name__ == "RobertaForMaskedLM"
    card = (published / "README.md").read_text()
    assert (
        "distilled from another, its teacher" in card and "the checkpoint it started from" in card
    )
    recipe = json.loads((work / "runs" / "student" / "train" / "recipe.json").read_text())
    assert recipe["inputs"].keys() == {"data", "tokenizer", "teacher"}
    assert "teacher" not in recipe["recipe"]["distillation"]


def test_every_sum_is_over_all_ranks_and_its_mean_is_weighted(work: Path) -> None:
    """The same first update on one rank and, with half the weight of the only part that counts, on
    two: of uneven shares, one of which has an empty micro-batch."""
    short = ("schedule.updates=2", "schedule.warmup=1", "optim.batch_size=9", *DATA)
    one, two = ("one", "distillation.mlm=2.0"), ("two", "distillation.mlm=1.0")
    layouts = {
        one: ("run.ranks=1", "run.micro_batch=32"),
        two: ("run.ranks=2", "run.micro_batch=2"),
    }
    for (name, weight), layout in layouts.items():
        without = ("distillation.soft=0", "distillation.cosine=0", weight)
        robustly("distill", "student.yaml", f"name={name}", *without, *short, *layout, cwd=work)

    whole, split = (lines(work / "runs" / name, "metrics")[0] for name in ("one", "two"))
    for part in ("loss", "soft_loss", "cosine_loss"):
        assert split[part] == pytest.approx(whole[part], rel=1e-4), part

    assert split["grad_norm"] == pytest.approx(whole["grad_norm"] / 2, rel=1e-3)


def test_what_does_not_fit_is_refused_before_the_first_update(work: Path) -> None:
    wider = robustly(
        "distill", "student.yaml", "name=wider", "model.hidden=32", *DATA, cwd=work, code=2
    )
    assert (
        "distillation.teacher: " in wider.stderr
        and "model.hidden: 64 there, 32 in the config" in wider.stderr
    )
    assert "Traceback" not in wider.stderr
    without = robustly("distill", "teacher.yaml", cwd=work, code=2)
    assert "names no teacher; set distillation.teacher" in without.stderr
    # the teacher's own folder is whole, and of another recipe
    other = robustly("distill", "student.yaml", "distillation.soft=1", cwd=work, code=2)
    assert "distillation.soft: 5.0 there, 1.0 now" in other.stderr
