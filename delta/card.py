"""The card of a delta, written from its records."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from delta.folder import Record
from delta.tuning import Score, mean_and_deviation
from robustly import __version__, markdown
from robustly.log import show


def delta_card(
    name: str, folder: Path, record: Record, scores: Sequence[Score], majority: float, recipe: Mapping[str, Any]
) -> str:
    """README.md: what the delta is, how well it does, how to load it from `folder`, and onto what."""
    base_name, folder_name = (json.dumps(str(part), ensure_ascii=False) for part in (record.base["name"], folder))
    mean, deviation = mean_and_deviation(scores)
    front = {"library_name": "peft", "base_model": record.base["name"], "tags": ["robustly", "lora", "roberta"]}
    delta, head, base = (record.parameters[part] for part in ("delta", "head", "base"))
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {name}\n",
        f"A {record.method['name']} delta and a classification head for the encoder `{record.base['name']}`, which it "
        "needs and does not hold. Made by `robustly delta`.\n",
        "## Scores\n",
        markdown.facts(
            {
                "accuracy, mean" if deviation is not None else "accuracy": mean,
                **({"sample standard deviation": deviation, "seeds": len(scores)} if deviation is not None else {}),
                "always the most frequent label": majority,
                "test examples": sum(map(sum, scores[0].confusion)),
                "training examples": record.task["training_examples"],
            }
        ),
        _per_label(record.labels, scores[0]),
        f"The delta in this folder is that of seed {record.seed}, the first, with an accuracy of "
        f"{show(scores[0].accuracy)}; it was not chosen by its score. Each seed draws its own training examples.\n",
        "## Use\n",
        "```python\nimport delta\n\n"
        f"classifier = delta.load({base_name}, {folder_name})\n"
        'classifier.predict(["some text"])\n```\n',
        "Or with plain peft, which does not check the base:\n",
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForSequenceClassification\n\n"
        "base = AutoModelForSequenceClassification.from_pretrained("
        f"{base_name}, num_labels={len(record.labels)})\n"
        f"model = PeftModel.from_pretrained(base, {folder_name}).eval()\n```\n",
        "## Facts\n",
        markdown.facts(
            {
                "parameters of the delta": f"{delta:,} ({delta / base:.2%} of the base's {base:,})",
                "parameters of the head": head,
                "longest input, tokens": record.max_length,
                "base, sha256 of the encoder's weights": record.base["fingerprint"],
                **{f"method: {key}": str(value) for key, value in record.method.items()},
                **{f"optim: {key}": str(value) for key, value in recipe["optim"].items()},
                **{f"schedule: {key}": str(value) for key, value in recipe["schedule"].items()},
                "robustly": __version__,
            }
        ),
    ]
    return "\n".join(sections)


def _per_label(labels: Sequence[str], score: Score) -> str:
    """Recall and precision of each label, of one seed."""
    rows = []
    for number, label in enumerate(labels):
        right, tested = score.confusion[number][number], sum(score.confusion[number])
        answered = sum(row[number] for row in score.confusion)
        found, precise = (f"{right / count:.1%}" if count else "-" for count in (tested, answered))
        rows.append([label, tested, found, precise])
    return markdown.table(["label", "tested", "of these found", "of its answers right"], rows)
