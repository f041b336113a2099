"""A product team's way through deltas, from the shell: one table of long texts with several labels
each, of which one is rare -> shares, a chosen method, training, answers to new rows, a merged
model, ONNX."""

import csv
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import robustly

pytestmark = pytest.mark.pipeline

WORDS = {
    "billing": ("invoice", "charged", "refund", "payment"),
    "delivery": ("parcel", "courier", "late", "address"),
    "privacy": ("password", "leaked", "private", "account"),
}
SHARES = {"billing": 0.6, "delivery": 0.4, "privacy": 0.08}
FILLER = [
    "we",
    "saw",
    "that",
    "the",
    "house",
    "was",
    "old",
    "and",
    "they",
    "came",
    "to",
    "the",
    "place",
    "by",
    "the",
    "river",
    "when",
    "it",
    "was",
    "dark",
]
CONFIG: dict[str, Any] = {
    "schema": 1,
    "name": "tickets",
    "paths": {"root": "runs/small"},
    "delta": {
        "methods": "auto",
        "task": {
            "kind": "multi_label",
            "train": "tickets.csv",
            "text": "message",
            "label": "topics",
            "separator": ";",
            "dev": 0.15,
            "test": 0.2,
            "long": "windows",
            "pool": "max",
            "metric": "macro_f1",
            "class_weights": "balanced",
        },
    },
    "optim": {"epochs": 2, "batch_size": 8, "peak_lr": 3e-3},
}


def tickets(count: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Messages, longer than the base's 64 tokens, each with the words of its topics somewhere."""
    draw = random.Random(seed)
    for number in range(count):
        topics = [topic for topic, share in SHARES.items() if draw.random() < share]
        words = draw.choices(FILLER, k=draw.randint(50, 90))
        for topic in topics:
            for _ in range(14):
                words.insert(draw.randrange(len(words)), draw.choice(WORDS[topic]))
        yield f"{number}: {' '.join(words)}", topics


@pytest.fixture(scope="module")
def work(finished: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a published folder, a table and a config."""
    folder = tmp_path_factory.mktemp("team")
    published = Path("runs", "small", "published")
    shutil.copytree(finished[0] / published, folder / published)

    with (folder / "tickets.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["message", "topics"])
        table.writerows((message, ";".join(topics)) for message, topics in tickets(560, 1))

    (folder / "tickets.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return folder


def test_from_a_table_to_answers(work: Path) -> None:
    delta = Path("runs/small/deltas/tickets")
    done = robustly("delta", "tickets.yaml", "--json", cwd=work)

    manifest = json.loads(done.stdout)
    counts = manifest["counts"]
    assert counts["metric"] == "macro_f1" and 0 <= counts["macro_f1"] <= 1
    assert 80 < counts["test_examples"] < 145 and counts["training_examples"] > 300
    choice = json.loads((work / delta / "choice.json").read_text())
    assert len(choice["candidates"]) >= 2 and choice["methods"]
    scores = json.loads((work / delta / "scores.json").read_text())
    assert {row["label"] for row in scores["by_label"]} == {*WORDS}

    new = list(tickets(40, 2))
    rows = [json.dumps({"id": place, "message": text}) for place, (text, _) in enumerate(new)]
    (work / "new.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    said = robustly("delta", "predict", str(delta), "new.jsonl", "--keep", "id", cwd=work)
    answers = [json.loads(line) for line in said.stdout.splitlines()]
    assert [answer["input"]["id"] for answer in answers] == [*range(40)]
    assert all({*answer["label"]} <= {*WORDS} for answer in answers)
    assert all({*answer["scores"]} == {*WORDS} for answer in answers)

    table = work / "new.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["message", "topics"])
        writer.writerows((text, ";".join(topics)) for text, topics in new)
    scored = json.loads(
        robustly("delta", "score", str(delta), "new.csv", "--json", cwd=work).stdout
    )
    truth = [{*topics} for _, topics in new]
    both = sum(len({*a["label"]} & t) for a, t in zip(answers, truth, strict=True))
    either = sum(len(a["label"]) + len(t) for a, t in zip(answers, truth, strict=True))
    assert scored["scores"]["micro_f1"] == pytest.approx(2 * both / either)


def test_a_merged_model_gives_the_same_answers_in_another_runtime(work: Path) -> None:
    """Short messages, which need no windows."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    transformers = pytest.importorskip("transformers")
    maps = "delta.methods=[{name: lora, targets: [query, key, value, dense]}]"
    named = ("delta", "tickets.yaml", "name=lora", maps, "optim.epochs=6", "--json")
    counts = json.loads(robustly(*named, cwd=work).stdout)["counts"]
    assert counts["macro_f1"] > counts["baseline"] + 0.15  # though its base knows next to nothing
    delta, model, served = "runs/small/deltas/lora", "runs/small/model", "runs/small/served"
    robustly("delta", "merge", delta, "--into", model, cwd=work)
    robustly("export", model, "--into", served, cwd=work)

    messages = ["my parcel is late", "you charged me, and my private account has leaked"]
    (work / "short.txt").write_text("\n".join(messages) + "\n", encoding="utf-8")
    said = robustly("delta", "predict", delta, "short.txt", cwd=work)
    answers = [json.loads(line) for line in said.stdout.splitlines()]

    tokenizer = transformers.AutoTokenizer.from_pretrained(work / served)
    labels = json.loads((work / served / "config.json").read_text())["id2label"]
    session = onnxruntime.InferenceSession(work / served / "model.onnx")
    inputs = tokenizer(messages, padding=True, return_tensors="np")
    wanted = {each.name for each in session.get_inputs()}
    (logits,) = session.run(["logits"], {k: v for k, v in inputs.items() if k in wanted})
    for answer, scores in zip(answers, logits, strict=True):
        probabilities = 1 / (1 + np.exp(-scores))
        found = {labels[str(place)]: p for place, p in enumerate(probabilities)}
        assert answer["scores"] == pytest.approx(found, abs=1e-4)
