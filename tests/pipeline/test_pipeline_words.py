"""Code as it is, with whole words of a list of one's own: from raw text to a published folder."""

import json
import random
from pathlib import Path

import pytest
from command_line import ROOT, robustly

from robustly.metrics import read_metrics

pytestmark = pytest.mark.pipeline
NAMES = ["count", "total", "index", "value", "result", "buffer", "length", "offset"]


def program(draw: random.Random, number: int) -> str:
    lines = [
        f"def f{number}({draw.choice(NAMES)}):\r\n" if number % 3 == 0 else f"def f{number}():\n"
    ]
    for _ in range(draw.randint(3, 30)):
        one, two, three = draw.choices(NAMES, k=3)
        indent = draw.choice(["    ", "        ", "\t"])
        lines.append(f"{indent}{one} = {two} + {three} * {number}  # the {one} of it\n")

    return "".join(lines) + draw.choice(["", "\n\n", "    \n"])


def test_code_is_trained_on_and_published(tmp_path: Path) -> None:
    draw = random.Random(3)
    programs = [program(draw, number) for number in range(300)]
    (tmp_path / "code.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in programs)
    )
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "config.yaml").write_text(
        f"""
base: {ROOT}/configs/tiny.yaml
name: code
corpus: {{sources: code.jsonl, validation: 0.1}}
tokenizer: {{vocab_size: 500}}
data: {{unit: raw, block_length: 64}}
model: {{layers: 2, hidden: 32, heads: 2, feed_forward: 64, positions: 66}}
masking: {{whole_words: true, words: names.txt}}
optim: {{batch_size: 8, peak_lr: 2e-3}}
schedule: {{updates: 4, warmup: 1}}
run: {{micro_batch: 4, ranks: 1, log_every: 1, evaluate_every: 4, checkpoint_every: 2, workers: 1}}
report: {{delta: null}}
"""
    )
    robustly("run", "config.yaml", cwd=tmp_path)
    root = tmp_path / "runs" / "code"
    assert all(line["loss"] > 1 for line in read_metrics(root / "train" / "metrics.jsonl"))

    decoded = tmp_path / "decoded.jsonl"
    robustly("inspect", str(root / "data"), "--decode-documents", str(decoded), cwd=tmp_path)
    found = [json.loads(line)["text"] for line in decoded.read_text().splitlines()]
    assert sorted(found) == sorted(programs)

    card = (root / "published" / "README.md").read_text()
    assert "by frequency" in card and card.count("<mask>") >= 5

    # the words are kept beside the data: the list itself is asked for no more
    robustly("trace", "config.yaml", "--update", "1", cwd=tmp_path)
    (tmp_path / "names.txt").write_text("other\n")
    for again in (["trace", "config.yaml", "--update", "1"], ["replay", "config.yaml"]):
        refused = robustly(*again, cwd=tmp_path, code=2)
        assert "another recipe" in refused.stderr and "input.words" in refused.stderr

    (root / "published").rename(root / "before")
    published = robustly("publish", "config.yaml", cwd=tmp_path)
    assert "left out" not in published.stderr
    assert (root / "published" / "README.md").read_text() == card
