"""The model card of a delta: the README.md of its folder, written from its records."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from robustly import __version__, markdown
from robustly.delta.auto import choice_section
from robustly.delta.methods import parse
from robustly.delta.saving import DeltaRecord
from robustly.delta.tasks.data import TaskData
from robustly.delta.tuning import SeedScore, mean_and_deviation
from robustly.log import show


def delta_card(
    name: str,
    folder: Path,
    record: DeltaRecord,
    scores: Sequence[SeedScore],
    data: TaskData,
    recipe: Mapping[str, Any],
) -> str:
    """README.md: what the delta is, how well it does, how to load it from `folder`, and onto
    what."""
    base_name, folder_name = (
        json.dumps(str(part), ensure_ascii=False) for part in (record.base["name"], folder)
    )
    methods = [method["name"] for method in record.methods]
    peft = (folder / "adapter_config.json").exists()
    header = ModelCardData(
        base_model=record.base["name"],
        library_name="peft" if peft else None,
        tags=["robustly", "roberta", *methods],
    )
    examples = {
        "test examples": len(data.test),
        "training examples": record.facts["training_examples"],
    }
    sections = [
        f"---\n{header.to_yaml()}\n---\n",
        f"# {name}\n",
        f"A {' + '.join(methods)} delta with its head, for the encoder `{record.base['name']}`,"
        f" which it needs and does not hold. Task: {data.kind}. Made by `robustly delta`.\n",
        "## Scores\n",
        _score_table(scores, data),
        markdown.facts(examples),
        _per_label(record.labels, scores[0]),
        f"The delta in this folder is that of seed {record.seed}, the first, with {data.metric}"
        f" {show(scores[0].scores[data.metric])}; it was not chosen by its score. Each seed draws"
        " its own training examples.\n",
        choice_section(folder, data.metric),
        "## Use\n",
        "```python\nfrom robustly import delta\n\n"
        f"predictor = delta.load({base_name}, {folder_name})\n"
        "predictor.predict([...])\n```\n",
    ]
    if peft:
        sections.append(_peft_use(base_name, folder_name, record))

    return "\n".join([*sections, "## Facts\n", markdown.facts(_facts(record, recipe))])


def _score_table(scores: Sequence[SeedScore], data: TaskData) -> str:
    rows = []
    for metric in scores[0].scores:
        mean, deviation = mean_and_deviation([score.scores[metric] for score in scores])
        values = (mean, deviation, data.baselines.get(metric))
        rows.append([metric, *("-" if value is None else show(value) for value in values)])

    deviation_of = f"deviation of {len(scores)} seeds"
    return markdown.table(["test file", "mean", deviation_of, "the same answer to all"], rows)


def _facts(record: DeltaRecord, recipe: Mapping[str, Any]) -> dict[str, Any]:
    delta, base = (record.parameters[part] for part in ("delta", "base"))
    facts = {
        "parameters stored": f"{delta:,} ({delta / base:.2%} of the base's {base:,})",
        "parameters trained": record.parameters["trained"],
        "parameters of the head": record.parameters["head"],
        "base, sha256 of the encoder's weights": record.base["fingerprint"],
    }
    for method in record.methods:
        stated = {key: value for key, value in method.items() if value is not None}
        name = stated.pop("name")
        facts |= {f"{name}: {key}": str(value) for key, value in stated.items()}

    facts |= {f"optim: {key}": str(value) for key, value in recipe["optim"].items()}
    return {**facts, "robustly": __version__}


def _peft_use(base_name: str, folder_name: str, record: DeltaRecord) -> str:
    kind = "TokenClassification" if record.task["kind"] == "tokens" else "SequenceClassification"
    outputs = len(record.labels) or 1
    note = "".join(method.peft_note for method in parse(record.methods))

    return (
        "Or with plain peft, which does not check the base:\n\n"
        f"```python\nfrom peft import PeftModel\nfrom transformers import AutoModelFor{kind}\n\n"
        f"base = AutoModelFor{kind}.from_pretrained({base_name}, num_labels={outputs})\n"
        f"model = PeftModel.from_pretrained(base, {folder_name}).eval()\n```\n"
        + (f"\n{note}" if note else "")
    )


def _per_label(labels: Sequence[str], score: SeedScore) -> str:
    """Recall and precision of each label, of one seed."""
    if not score.confusion:
        return ""
    rows = []

    for number, label in enumerate(labels):
        right, tested = score.confusion[number][number], sum(score.confusion[number])
        answered = sum(row[number] for row in score.confusion)
        found, precise = (f"{right / count:.1%}" if count else "-" for count in (tested, answered))
        rows.append([label, tested, found, precise])

    return markdown.table(["label", "tested", "of these found", "of its answers right"], rows)
