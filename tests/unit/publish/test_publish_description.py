"""What published folders, checkpoints and reports say of themselves."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_checkpoints import model, ours, unigram
from transformers import pipeline

from robustly import UserError
from robustly.description import Description
from robustly.inspection.describe import describe_folder
from robustly.manifest import Stage

describe = partial(describe_folder, kind="published")
describe_report = partial(describe_folder, kind="report")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ours(tmp_path_factory.mktemp("ours"))


def finish(folder: Path, **counts: Any) -> None:
    outputs = [path for path in folder.iterdir() if path.is_file()]
    Stage(folder, "published", {}, {}).finish(outputs, counts)


def filled(found: Description) -> list[dict[str, Any]]:
    json.dumps(found.json(), allow_nan=False)
    return [dict(row) for row in found.examples[0].rows]


def test_a_checkpoint_without_a_manifest(checkpoint: Path) -> None:
    found = describe(checkpoint)
    parameters = sum(p.numel() for p in model(266).parameters())
    assert (found.kind, found.figures["parameters"]) == ("checkpoint", parameters)
    assert (
        found.summary
        == f"A Hugging Face checkpoint of a RobertaForMaskedLM with {parameters:,} parameters."
    )
    assert (found.figures["layers"], found.figures["hidden"], found.figures["positions"]) == (
        2,
        32,
        42,
    )
    rows = filled(found)
    assert len(rows) == 3
    theirs = pipeline("fill-mask", model=str(checkpoint), top_k=1)(rows[0]["text"])
    assert rows[0]["guesses"].startswith(
        f"{theirs[0]['token_str'].strip()} ({theirs[0]['score']:.1%})"
    )
    sizes = {row["file"]: row["bytes"] for row in found.examples[1].rows}
    assert sizes["model.safetensors"] == (checkpoint / "model.safetensors").stat().st_size


def test_other_tokenizers_fill_blanks_too(tmp_path: Path) -> None:
    assert len(filled(describe(unigram(tmp_path)))) == 3


def test_a_published_folder(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    shutil.copytree(checkpoint, folder)
    texts = [
        "too long for the model" * 5 + "<mask>",
        "The <mask> 1.",
        "The <mask> 2.",
        "The <mask> 3.",
    ]
    examples = [{"text": text, "answer": "x", "guesses": ["a"]} for text in texts]
    finish(folder, parameters=77, validation_loss=2.5, max_logit_difference=0.0, examples=examples)
    found = describe(folder)
    assert (found.kind, found.figures["parameters"], found.figures["validation_loss"]) == (
        "published",
        77,
        2.5,
    )
    assert [row["text"] for row in filled(found)] == texts[1:3]
    assert "examples" not in found.figures
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.safetensors: 0 bytes, expected"):
        describe(folder)

    (folder / "manifest.json").unlink()
    (folder / "recipe.json").unlink(missing_ok=True)
    with Stage(folder, "published", {}, {}).begin():
        pass

    assert "not finished" in describe(folder).summary


def test_a_model_that_cannot_fill_blanks_is_described_all_the_same(
    checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(
        checkpoint,
        tmp_path / "encoder",
        ignore=shutil.ignore_patterns("*.safetensors", "config.json"),
    )
    model(266).roberta.save_pretrained(tmp_path / "encoder")
    found = describe(tmp_path / "encoder")
    assert found.figures["parameters"] and not filled(found)
    assert "no blanks are filled" in found.notes[0] and "are missing" in found.notes[0]
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="expected an object"):
        describe(tmp_path)


def test_a_report(tmp_path: Path) -> None:
    made = Stage(tmp_path, "report", {}, {})
    with made.begin():
        assert "not finished" in describe_report(tmp_path).summary
        counts = {
            "task": "x",
            "gain": 0.2,
            "ours_accuracies": [0.8, 0.9],
            "untrained_accuracies": [0.6, 0.7],
        }
        made.finish([], counts)

    found = describe_report(tmp_path)
    assert found.figures["gain"] == 0.2 and "ours_accuracies" not in found.figures
    assert [dict(row) for row in found.examples[0].rows] == [
        {"run": 1, "ours_accuracies": 0.8, "untrained_accuracies": 0.6},
        {"run": 2, "ours_accuracies": 0.9, "untrained_accuracies": 0.7},
    ]
