"""A delta's folder: reloads to the bit whatever the head's seed, opens with plain peft, refuses what does not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import delta
from delta.base import Base
from delta.config import load_page
from delta.folder import ADAPTER, RECORD, reload
from delta.stage import make_delta
from delta.task import TaskData
from delta.tuning import tune
from robustly import UserError

SHORT = ["schedule.updates=6", "schedule.warmup=1"]


@pytest.fixture(scope="module")
def arguments(place: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("finished") / "delta"
    return [f"paths.published={place / 'base'}", f"paths.delta={folder}", *SHORT]


@pytest.fixture(scope="module")
def finished(place: Path, arguments: list[str]) -> Path:
    """A delta of two seeds, of 6 updates each. Left as it is by the tests."""
    page = load_page(place / "page.yaml", arguments)
    make_delta(page)
    return page.folder("delta")


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def test_reloads_to_the_bit_under_any_head_seed(
    place: Path, base: Base, data: TaskData, finished: Path, arguments: list[str]
) -> None:
    texts = [example.text for example in data.test]
    trained = tune(base, load_page(place / "page.yaml", arguments), data, seed=3).classifier.logits(texts)
    for head_seed in (3, 4):
        assert torch.equal(reload(base, finished, head_seed).logits(texts), trained)
    classifier = delta.load(str(place / "base"), str(finished))
    assert torch.equal(classifier.logits(texts), trained)
    assert classifier.labels == ("early", "late", "middle") and set(classifier.predict(texts)) <= set(classifier.labels)


def test_nothing_is_looked_up_on_the_hub(base: Base, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """peft would do so where the base's name is no folder here, as in another working directory."""
    settings = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "models/base"}))
    asked: list[str] = []
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda name, *_: asked.append(name))
    reload(base, copy)
    assert asked == []


def test_plain_peft_opens_it(place: Path, base: Base, finished: Path) -> None:
    bare = AutoModelForSequenceClassification.from_pretrained(place / "base", num_labels=3)
    plain = PeftModel.from_pretrained(bare, finished).eval()
    ids, mask = reload(base, finished).pad([[0, 10, 11, 12, 2], [0, 20, 2]])
    with torch.no_grad():
        expected = reload(base, finished).model(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(plain(input_ids=ids, attention_mask=mask).logits, expected)


def test_what_the_folder_says(base: Base, finished: Path) -> None:
    record, scores, manifest = (
        json.loads((finished / f"{n}.json").read_text()) for n in ("delta", "scores", "manifest")
    )
    assert record["parameters"] == {"delta": 4 * 4 * 64, "head": 32 * 33 + 3 * 33, "base": base.parameters}
    stored = sum(tensor.numel() for tensor in load_file(finished / ADAPTER).values())
    assert stored == record["parameters"]["delta"] + record["parameters"]["head"]
    assert record["base"]["fingerprint"] == base.fingerprint == manifest["inputs"]["base"]
    assert record["labels"] == scores["labels"] == ["early", "late", "middle"]
    assert (record["seed"], scores["saved_seed"], [one["seed"] for one in scores["seeds"]]) == (3, 3, [3, 4])
    accuracies = [one["accuracy"] for one in scores["seeds"]]
    assert scores["accuracy"] == pytest.approx(sum(accuracies) / 2) == manifest["counts"]["accuracy"]
    assert scores["accuracy_deviation"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
    assert scores["majority_class"] == pytest.approx(1 / 3)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(line["seed"], line["update"]) for line in lines] == [(s, u) for s in (3, 4) for u in range(1, 7)]
    everything = {path.name for path in finished.iterdir()} - {".lock", "recipe.json", "manifest.json"}
    assert everything == manifest["outputs"].keys()
    card = (finished / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n") and f"{scores['accuracy']:.4g}" in card
    assert base.fingerprint in card and "| early | 30 |" in card
    assert f"delta.load({json.dumps(base.name)}, {json.dumps(str(finished))})" in card


def test_another_base_is_refused_by_both_names(place: Path, finished: Path) -> None:
    with pytest.raises(UserError, match=r"made for the base .*place.*/base .*found .*/other .*would mean nothing"):
        delta.load(place / "other", finished)


def test_another_vocabulary_is_refused(place: Path, finished: Path, tmp_path: Path) -> None:
    base = shutil.copytree(place / "base", tmp_path / "base")
    (base / "tokenizer.json").unlink()  # vocab.json and merges.txt say the same
    ids = json.loads((base / "vocab.json").read_text())
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (base / "vocab.json").write_text(json.dumps(ids))
    with pytest.raises(UserError, match="the same weights and another vocabulary"):
        delta.load(base, finished)


def test_the_same_command_does_nothing_and_another_recipe_is_refused(
    place: Path, finished: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in finished.iterdir() if path.name != ".lock"}
    moved = Path(shutil.copy(place / "test.jsonl", tmp_path / "moved.jsonl"))
    make_delta(load_page(place / "page.yaml", [*arguments, f"task.test={moved}", "name=other"]))
    changed = tmp_path / "changed.jsonl"
    changed.write_text(moved.read_text().replace("e 0 ", "e 00 "))
    assert "seed 3" not in capsys.readouterr().err
    for change, message in [
        ("method.rank=2", "method.rank: 4 there, 2 now"),
        ("seeds=1", "seeds: 2 there, 1 now"),
        ("task.max_length=39", "task.max_length: 40 there, 39 now"),
        (f"task.test={changed}", "task.test: "),
        (f"paths.published={place / 'other'}", "input.base: "),
    ]:
        with pytest.raises(UserError, match=f"of another recipe; nothing was changed\n.*{message}"):
            make_delta(load_page(place / "page.yaml", [*arguments, change]))
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_mistake_leaves_no_folder(place: Path, tmp_path: Path) -> None:
    arguments = [f"paths.published={place / 'base'}", f"paths.delta={tmp_path / 'delta'}", *SHORT]
    for change in ("method.targets=[q_proj]", "task.examples=300", "task.text=words"):
        with pytest.raises(UserError):
            make_delta(load_page(place / "page.yaml", [*arguments, change]))
    assert not (tmp_path / "delta").exists()


def test_a_stop_amid_the_second_seed_is_made_good(
    place: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [f"paths.published={place / 'base'}", f"paths.delta={tmp_path / 'delta'}", *SHORT]
    page = load_page(place / "page.yaml", arguments)

    def stopped(base: Base, page: object, data: TaskData, seed: int) -> object:
        if seed == 4:
            raise KeyboardInterrupt
        return tune(base, page, data, seed)  # type: ignore[arg-type]

    monkeypatch.setattr("delta.stage.tune", stopped)
    with pytest.raises(KeyboardInterrupt):
        make_delta(page)
    with pytest.raises(UserError, match="no finished delta stage here"):
        delta.load(place / "base", tmp_path / "delta")
    monkeypatch.undo()
    make_delta(page)
    assert (tmp_path / "delta" / ADAPTER).read_bytes() == (finished / ADAPTER).read_bytes()


def test_a_folder_that_does_not_reload_equal_is_not_finished(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*arguments: object) -> list[Path]:
        files = save(*arguments)  # type: ignore[arg-type]
        tensors = load_file(tmp_path / "delta" / ADAPTER)
        next(iter(tensors.values())).view(-1)[0] += 0.1
        save_file(tensors, tmp_path / "delta" / ADAPTER)
        return files

    from delta.folder import save

    monkeypatch.setattr("delta.folder.save", damaged)
    arguments = [f"paths.published={place / 'base'}", f"paths.delta={tmp_path / 'delta'}", *SHORT]
    with pytest.raises(AssertionError, match="does not reload to the same logits"):
        make_delta(load_page(place / "page.yaml", arguments))
    assert not (tmp_path / "delta" / "manifest.json").exists()


def cut_off(folder: Path) -> None:
    (folder / ADAPTER).write_bytes((folder / ADAPTER).read_bytes()[:-1])


def without_the_head(folder: Path) -> None:
    tensors = {name: tensor for name, tensor in load_file(folder / ADAPTER).items() if "classifier" not in name}
    save_file(tensors, folder / ADAPTER)


def without_a_lora_matrix(folder: Path) -> None:
    tensors = load_file(folder / ADAPTER)
    del tensors[next(name for name in tensors if "lora_B" in name)]
    save_file(tensors, folder / ADAPTER)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, "adapter_model.safetensors: missing, cut off or damaged"),
        (without_the_head, "peft cannot load it .*classifier"),
        (without_a_lora_matrix, r"does not fit adapter_config.json: .*lora_B.* is missing"),
        (lambda folder: (folder / ADAPTER).unlink(), "missing, cut off or damaged"),
        (lambda folder: (folder / RECORD).write_text("{"), "not a delta's record"),
        (lambda folder: (folder / RECORD).write_text("{}"), "not a delta's record"),
        (lambda folder: (folder / RECORD).unlink(), "no delta here: delta.json: No such file"),
    ],
)
def test_damage_is_named(base: Base, copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy)
    with pytest.raises(UserError, match=message):
        reload(base, copy)


def test_a_cut_off_file_of_a_finished_folder(place: Path, copy: Path) -> None:
    cut_off(copy)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: .* bytes, expected .*: cut off or changed"):
        delta.load(place / "base", copy)


def test_folders_that_are_no_deltas(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished delta stage here .* run `robustly delta CONFIG` first"):
        delta.load(place / "base", tmp_path)
