"""A delta's folder: reloads to the bit whatever the head's seed, opens with plain peft, refuses
what does not fit."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from robustly import UserError, delta
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment, load_delta
from robustly.delta.stage import make_delta
from robustly.delta.storage.saving import RECORD, TENSORS, reload, save_tensors
from robustly.delta.tasks.data import TaskData
from robustly.delta.tuning.seeds import tune
from robustly.files import sha256
from robustly.strict_json import sealed

SHORT = ["optim.epochs=0.8", "optim.warmup=0.2"]  # 6 updates


@pytest.fixture(scope="module")
def arguments(place: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("finished") / "delta"
    return [f"paths.published={place / 'base'}", f"paths.delta={folder}", *SHORT]


@pytest.fixture(scope="module")
def finished(place: Path, arguments: list[str]) -> Path:
    """A delta of two seeds, of 6 updates each. Left as it is by the tests."""
    config = load_delta(place / "letters.yaml", arguments)
    make_delta(config)
    return config.folder("delta")


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def test_reloads_to_the_bit_under_any_head_seed(
    place: Path, base: Base, data: TaskData, finished: Path, arguments: list[str]
) -> None:
    texts = [example.texts[0] for example in data.test]
    trained = tune(
        base, load_delta(place / "letters.yaml", arguments), data, seed=3
    ).predictor.logits(texts)
    for head_seed in (3, 4):
        assert torch.equal(
            torch.stack(reload(base, finished, head_seed).logits(texts)), torch.stack(trained)
        )

    predictor = delta.load(str(place / "base"), str(finished))
    assert torch.equal(torch.stack(predictor.logits(texts)), torch.stack(trained))
    assert predictor.labels == ("early", "late", "middle") and set(predictor.predict(texts)) <= set(
        predictor.labels
    )
    with pytest.raises(UserError, match="expected a text"):
        predictor.predict([3])


def test_plain_peft_opens_it(place: Path, base: Base, finished: Path) -> None:
    bare = AutoModelForSequenceClassification.from_pretrained(place / "base", num_labels=3)
    plain = PeftModel.from_pretrained(bare, finished).eval()
    ids = torch.tensor([[0, 10, 11, 12, 2], [0, 20, 2, 1, 1]])
    mask = (ids != 1).long()
    with torch.no_grad():
        expected = reload(base, finished).model(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(plain(input_ids=ids, attention_mask=mask).logits, expected)


def test_what_the_folder_says(base: Base, finished: Path) -> None:
    record, scores, manifest = (
        json.loads((finished / f"{n}.json").read_text()) for n in ("delta", "scores", "manifest")
    )
    assert record["parameters"] == {
        "delta": 4 * 4 * 64, "head": 32 * 33 + 3 * 33, "trained": 4 * 4 * 64, "base": base.parameters,
    }  # fmt: skip
    stored = sum(tensor.numel() for tensor in load_file(finished / TENSORS).values())
    assert stored == record["parameters"]["delta"] + record["parameters"]["head"]
    assert record["base"]["fingerprint"] == base.fingerprint == manifest["inputs"]["base"]
    assert record["labels"] == scores["labels"] == ["early", "late", "middle"]
    assert (record["seed"], scores["saved_seed"], [one["seed"] for one in scores["seeds"]]) == (
        3,
        3,
        [3, 4],
    )
    accuracies = [one["scores"]["accuracy"] for one in scores["seeds"]]
    assert (
        scores["accuracy"] == pytest.approx(sum(accuracies) / 2) == manifest["counts"]["accuracy"]
    )
    assert scores["accuracy_deviation"] == pytest.approx(
        abs(accuracies[0] - accuracies[1]) / 2**0.5
    )
    assert scores["baseline"] == pytest.approx(1 / 3)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(line["seed"], line["update"]) for line in lines] == [
        (s, u) for s in (3, 4) for u in range(1, 7)
    ]
    everything = {path.name for path in finished.iterdir()} - {
        ".lock",
        "recipe.json",
        "manifest.json",
        "tensorboard",
    }
    assert everything == manifest["outputs"].keys()
    card = (finished / "README.md").read_text()
    header = ModelCard(card).data
    assert (header.base_model, header.library_name) == (None, "peft")  # a path is nobody else's
    assert header.tags == ["robustly", "roberta", "lora"]
    assert f"{scores['accuracy']:.4g}" in card
    assert base.fingerprint in card and "| early | 30 |" in card
    assert f"delta.load({json.dumps(base.name)}, {json.dumps(str(finished))})" in card


def test_another_base_is_refused_by_both_names(place: Path, finished: Path) -> None:
    with pytest.raises(
        UserError, match=r"made for the base .*place.*/base .*found .*/other .*would mean nothing"
    ):
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
    place: Path,
    finished: Path,
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stamps = {
        path: path.stat().st_mtime_ns
        for path in finished.iterdir()
        if path.is_file() and path.name != ".lock"
    }
    moved = Path(shutil.copy(place / "test.jsonl", tmp_path / "moved.jsonl"))
    make_delta(
        load_delta(place / "letters.yaml", [*arguments, f"delta.task.test={moved}", "name=other"])
    )
    changed = tmp_path / "changed.jsonl"
    changed.write_text(moved.read_text().replace("e 0 ", "e 00 "))
    assert "seed 3" not in capsys.readouterr().err

    for change, message in [
        ("delta.methods=[{name: lora, rank: 2}]", r"methods\.0\.rank: 4 there, 2 now"),
        ("delta.seeds=1", "seeds: 2 there, 1 now"),
        ("delta.task.max_length=39", "task.max_length: 40 there, 39 now"),
        (f"delta.task.test={changed}", "task.test: "),
        (f"paths.published={place / 'other'}", "input.base: "),
    ]:
        with pytest.raises(
            UserError, match=f"of another recipe; nothing was changed\n(?s:.*){message}"
        ):
            make_delta(load_delta(place / "letters.yaml", [*arguments, change]))

    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_mistake_leaves_no_folder(place: Path, tmp_path: Path) -> None:
    arguments = [f"paths.published={place / 'base'}", f"paths.delta={tmp_path / 'delta'}", *SHORT]
    for change in (
        "delta.methods=[{name: lora, targets: [q_proj]}]", "delta.task.examples=300", "delta.task.text=words",
        "delta.methods=[{name: lora}, {name: lora}]",
    ):  # fmt: skip
        with pytest.raises(UserError):
            make_delta(load_delta(place / "letters.yaml", [*arguments, change]))

    assert not (tmp_path / "delta").exists()


def test_a_stop_amid_the_second_seed_is_made_good(
    place: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [f"paths.published={place / 'base'}", f"paths.delta={tmp_path / 'delta'}", *SHORT]
    config = load_delta(place / "letters.yaml", arguments)

    seeds = []

    def stopped(
        base: Base, config: DeltaExperiment, data: TaskData, seed: int, *rest: Any, **options: Any
    ) -> object:
        seeds.append(seed)
        if seeds == [3, 4]:
            raise KeyboardInterrupt
        return tune(base, config, data, seed, *rest, **options)

    monkeypatch.setattr("robustly.delta.trials.trial.tune", stopped)
    with pytest.raises(KeyboardInterrupt):
        make_delta(config)

    with pytest.raises(UserError, match="no finished delta stage here"):
        delta.load(place / "base", tmp_path / "delta")

    make_delta(config)
    assert seeds == [3, 4, 4]  # the first one is not made again
    assert not (tmp_path / "delta" / "work").exists()
    assert (tmp_path / "delta" / TENSORS).read_bytes() == (finished / TENSORS).read_bytes()


def test_a_folder_that_does_not_reload_equal_is_not_finished(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        tensors = load_file(tmp_path / "delta" / TENSORS)
        next(iter(tensors.values())).view(-1)[0] += 0.1
        write_again(tmp_path / "delta", tensors)

    from robustly.delta.storage.saving import save

    monkeypatch.setattr("robustly.delta.storage.saving.save", damaged)
    arguments = [f"paths.published={place / 'base'}", f"paths.delta={tmp_path / 'delta'}", *SHORT]
    with pytest.raises(AssertionError, match="other logits on reload"):
        make_delta(load_delta(place / "letters.yaml", arguments))

    assert not (tmp_path / "delta" / "manifest.json").exists()


def write_again(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Other tensors, and a record that fits their file."""
    save_file(tensors, folder / TENSORS)
    change_record(
        folder,
        tensors={
            "bytes": (folder / TENSORS).stat().st_size,
            "sha256": sha256(folder / TENSORS),
        },
    )


def change_record(folder: Path, seal: bool = True, **values: object) -> None:
    record = json.loads((folder / RECORD).read_text())
    if seal:
        del record["seal"]

    record |= values
    (folder / RECORD).write_text(json.dumps(sealed(record) if seal else record))


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / TENSORS).read_bytes())
    content[-2] ^= 1
    (folder / TENSORS).write_bytes(content)


def cut_off(folder: Path) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-1])


def without_the_head(folder: Path) -> None:
    tensors = {
        name: tensor
        for name, tensor in load_file(folder / TENSORS).items()
        if "classifier" not in name
    }
    write_again(folder, tensors)


def without_a_lora_matrix(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    del tensors[next(name for name in tensors if "lora_B" in name)]
    write_again(folder, tensors)


def of_another_rank(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    write_again(
        folder,
        {name: tensor[:2] if "lora_A" in name else tensor for name, tensor in tensors.items()},
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, r"delta.safetensors: [\d,]+ bytes, sha256 .*: damaged since it was written"),
        (flip_a_bit, r"delta.safetensors: .*: damaged since it was written; restore it"),
        (
            lambda folder: change_record(folder, seal=False, labels=["x", "y"]),
            "its seal is another",
        ),
        (lambda folder: change_record(folder, tensors={}), "delta.json: tensors.bytes: "),
        (without_the_head, r"does not fit delta.json: classifier.* is missing"),
        (without_a_lora_matrix, r"does not fit delta.json: .*lora_B.* is missing"),
        (of_another_rank, r"does not fit delta.json: .*lora_.* is \(2, .*, expected \(4, "),
        (lambda folder: (folder / TENSORS).unlink(), "delta.safetensors: cannot be read: No such"),
        (lambda folder: (folder / RECORD).write_text("{"), "not a delta's record"),
        (lambda folder: (folder / RECORD).write_text("{}"), "not a delta's record"),
        (lambda folder: (folder / RECORD).unlink(), "no delta here: delta.json: No such file"),
    ],
)
def test_damage_is_named(
    base: Base, copy: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(copy)
    with pytest.raises(UserError, match=message):
        reload(base, copy)


def test_a_cut_off_file_of_a_finished_folder(place: Path, copy: Path) -> None:
    cut_off(copy)
    with pytest.raises(
        UserError, match=r"delta\.safetensors: .* bytes, expected .*: cut off or changed"
    ):
        delta.load(place / "base", copy)


def test_folders_that_are_no_deltas(place: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no finished delta stage here .* run `robustly delta CONFIG` first"
    ):
        delta.load(place / "base", tmp_path)


def test_a_model_of_ones_own_training(place: Path, base: Base, tmp_path: Path) -> None:
    """Python alone: attach, train by other means, save, load onto a fresh model; a wrong base is
    refused."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(place / "base", num_labels=2)
    delta.attach(model, [{"name": "adapter", "size": 4}, {"name": "bitfit"}])
    ids = torch.arange(4, 44).view(2, 20)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    for _ in range(2):
        model(ids, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    delta.save(model, tmp_path / "own")
    torch.manual_seed(1)
    fresh = AutoModelForSequenceClassification.from_pretrained(place / "base", num_labels=2)
    delta.load_into(fresh, tmp_path / "own")
    assert torch.equal(fresh.eval()(ids).logits, model.eval()(ids).logits)
    other = AutoModelForSequenceClassification.from_pretrained(place / "other", num_labels=2)
    with pytest.raises(UserError, match="on other weights it would mean nothing"):
        delta.load_into(other, tmp_path / "own")

    three = AutoModelForSequenceClassification.from_pretrained(place / "base", num_labels=3)
    with pytest.raises(UserError, match=r"classifier.out_proj.* is \(2"):
        delta.load_into(three, tmp_path / "own")


@pytest.mark.parametrize("mask", [0o027, 0o002])
def test_the_tensors_have_the_mode_that_the_user_wants(
    base: Base, finished: Path, tmp_path: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        save_tensors(reload(base, finished).model, tmp_path)
    finally:
        os.umask(before)

    path = tmp_path / TENSORS
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    saved, read = load_file(finished / TENSORS), load_file(path)
    assert saved.keys() == read.keys()
    assert all(torch.equal(saved[name], read[name]) for name in saved)
