"""The model card of a delta: the README.md of its folder, written from its records."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from huggingface_hub import ModelCardData

from robustly import __version__, markdown
from robustly.delta.methods import parse
from robustly.delta.predictor import sample_input
from robustly.delta.storage import peft_files
from robustly.delta.storage.saving import DeltaRecord, task_of
from robustly.delta.tasks.data import TaskData
from robustly.delta.tasks.heads.long_texts import CutCounts
from robustly.delta.trials.auto import choice_section
from robustly.delta.trials.trial import DECISIONS
from robustly.delta.tuning.seeds import SeedScore, mean_and_deviation
from robustly.log import show

SAMPLE = "Some text."
"""An input of the snippets."""


class Source(NamedTuple):
    """Where a reader of the card finds the base and the delta."""

    base: str
    delta: str
    base_model: str | None
    """The base's name on the Hugging Face Hub, if it is known."""
    hub: bool = False
    """Whether both are found there; else they are folders."""


def delta_card(
    name: str,
    folder: Path,
    source: Source,
    record: DeltaRecord,
    scores: Sequence[SeedScore],
    by_label: Sequence[Mapping[str, Any]],
    data: TaskData,
    recipe: Mapping[str, Any],
    counts: Mapping[str, Any],
) -> str:
    """README.md of a delta's folder: what it is, how well it does, how to load it, and onto what.
    `counts`: the manifest's, of which the examples and how much of them is cut are told."""
    methods = [method["name"] for method in record.methods]
    peft = (folder / peft_files.CONFIG).exists()
    header = ModelCardData(
        base_model=source.base_model,
        library_name="peft" if peft else None,
        tags=["robustly", "roberta", *methods],
    )
    examples = {
        f"{data.scored_on} examples": len(data.test),
        "training examples": record.facts["training_examples"],
        **{f"cut: {part}": str(each) for part, each in CutCounts.of(counts).items() if each.cut},
    }
    sections = [
        f"---\n{header.to_yaml()}\n---\n",
        f"# {name}\n",
        f"A {' + '.join(methods)} delta with its head, for the encoder `{source.base}`,"
        f" which it needs and does not hold. Task: {data.kind}. Made by `robustly delta`.\n",
        "## Scores\n",
        _score_table(scores, data),
        markdown.facts(examples),
        _per_label(by_label),
        f"The delta in this folder is that of seed {record.seed}, the first, with {data.metric}"
        f" {show(scores[0].scores[data.metric])}; it was not chosen by its score. Each seed draws"
        " its own training examples.\n",
        choice_section(folder, data.metric),
        _decisions_section(folder),
        "## Use\n",
        _use(source, record),
    ]
    if peft:
        sections.append(_peft_use(source, record))

    return "\n".join([*sections, "## Facts\n", markdown.facts(_facts(record, recipe))])


def _decisions_section(folder: Path) -> str:
    """What the tuner decided by watching itself; empty where it did not."""
    if not (path := folder / DECISIONS).exists():
        return ""

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [[row[key] for key in ("seed", "epoch", "part", "text")] for row in rows]
    table = markdown.table(["seed", "epoch", "part", "what, and why"], lines)
    shown = table if lines else "It found nothing to change.\n"
    return (
        f"## Decisions\n\nThe tuner watched its scores on the dev file (`optim.watch`).\n\n{shown}"
    )


def _use(source: Source, record: DeltaRecord) -> str:
    """How robustly loads it."""
    base, folder = _quoted(source.base), _quoted(source.delta)
    imports = "from robustly import delta\n"
    if source.hub:
        imports = f"from huggingface_hub import snapshot_download\n{imports}"
        base, folder = (f"snapshot_download({each})" for each in (base, folder))

    sample = sample_input(task_of(record), SAMPLE)
    return (
        f"```python\n{imports}\n"
        f"predictor = delta.load({base}, {folder})\n"
        f"print(predictor.predict([{_quoted(sample)}]))\n```\n"
    )


def _score_table(scores: Sequence[SeedScore], data: TaskData) -> str:
    rows = []
    for metric in scores[0].scores:
        mean, deviation = mean_and_deviation([score.scores[metric] for score in scores])
        values = (mean, deviation, data.baselines.get(metric))
        rows.append([metric, *("-" if value is None else show(value) for value in values)])

    file = f"{data.scored_on} file"
    deviation_of = f"deviation of {len(scores)} seeds"
    return markdown.table([file, "mean", deviation_of, "the same answer to all"], rows)


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

    teacher = recipe.get("teacher", {})
    facts |= {f"teacher: {key}": str(value) for key, value in teacher.items()}
    facts |= {f"optim: {key}": str(value) for key, value in recipe["optim"].items()}
    return {**facts, "robustly": __version__}


_AUTO = {"tokens": "TokenClassification", "cloze": "MaskedLM"}
"""Kind of task -> what follows AutoModelFor, where it is not SequenceClassification."""


def _peft_use(source: Source, record: DeltaRecord) -> str:
    """How plain peft loads it, where it can run it."""
    note = "".join(method.peft_note for method in parse(record.methods))
    if note and not peft_files.runs_prefixes():
        return (
            "peft's own files are here, too, but plain peft cannot run a prefix under the"
            f" transformers that made them ({transformers.__version__}).\n"
        )

    kind = _AUTO.get(record.task["kind"], "SequenceClassification")
    labels = "" if kind == "MaskedLM" else f", num_labels={len(record.labels) or 1}"
    base, folder = _quoted(source.base), _quoted(source.delta)
    return (
        "Or with plain peft, which does not check the base:\n\n"
        "```python\nfrom peft import PeftModel\n"
        f"from transformers import AutoModelFor{kind}, AutoTokenizer\n\n"
        f"base = AutoModelFor{kind}.from_pretrained({base}{labels})\n"
        f"model = PeftModel.from_pretrained(base, {folder}).eval()\n"
        f"tokenizer = AutoTokenizer.from_pretrained({base})\n"
        f'logits = model(**tokenizer({_quoted(SAMPLE)}, return_tensors="pt")).logits\n```\n'
        + (f"\n{note}" if note else "")
    )


def _quoted(value: Any) -> str:
    """A value as a literal of Python."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _per_label(by_label: Sequence[Mapping[str, Any]]) -> str:
    """Recall and precision of each label, of the first seed."""
    rows = [
        [row["label"], row["tested"], *(_share(row[name]) for name in ("recall", "precision"))]
        for row in by_label
    ]
    header = ["label", "tested", "of these found", "of its answers right"]
    return markdown.table(header, rows) if rows else ""


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
