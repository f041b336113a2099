"""A router over the deltas of several tasks: what it is trained on, its folder, its answers."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from typer.testing import CliRunner

from robustly import UserError
from robustly.cli.commands import app
from robustly.delta.answering import route
from robustly.delta.answering.route import features
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.layers.routing import first_pass
from robustly.delta.route_training import fit, make_route
from robustly.delta.storage.saving import load
from robustly.inspection.describe import describe_folder

MakeConfig = Callable[..., DeltaExperiment]
QUICK = ("delta.seeds=1", "optim.epochs=2")


def write_digits(folder: Path) -> None:
    """A second task: low or high digits, between brackets."""
    draw = random.Random(1)
    for name, lines in (("train", 100), ("test", 40)):
        rows = []
        for number in range(lines):
            high = number % 2
            digits = "".join(draw.choices("56789" if high else "01234", k=draw.randint(8, 16)))
            rows.append(json.dumps({"text": f"[{digits}]", "label": "high" if high else "low"}))
        (folder / f"digits_{name}.jsonl").write_text("\n".join(rows) + "\n")


@pytest.fixture
def two(make_config: MakeConfig, tmp_path: Path) -> list[DeltaExperiment]:
    write_digits(tmp_path)
    files = (f"delta.task.{part}={tmp_path / f'digits_{part}.jsonl'}" for part in ("train", "test"))
    return [make_config(*QUICK), make_config("name=digits", *files, *QUICK)]


def clouds(sizes: Sequence[int], spread: float = 1.0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(2)
    far = 5 + torch.randn(len(sizes), 16, generator=draw)
    return [
        far[number] + spread * torch.randn(size, 16, generator=draw)
        for number, size in enumerate(sizes)
    ]


# --------------------------------------------------------------------------------------- the router


def test_it_separates_nearly_as_well_as_a_logistic_regression() -> None:
    train, test = clouds([300, 300, 300]), clouds([300, 300, 300])
    of_task = torch.arange(3).repeat_interleave(300)
    right = (fit(train)(torch.cat(test)).argmax(1) == of_task).float().mean().item()
    model = LogisticRegression(max_iter=1000).fit(torch.cat(train), of_task)
    assert right > model.score(torch.cat(test), of_task) - 0.02


def test_a_task_of_few_texts_counts_as_much_as_one_of_many() -> None:
    few, many = clouds([30, 900], spread=2.0)
    router = fit([few, many])
    found = [
        (router(each).argmax(1) == task).float().mean() for task, each in enumerate((few, many))
    ]
    assert min(found) > 0.75
    again = fit([few, many])
    assert torch.equal(again.keys, router.keys)


def test_features_are_those_of_each_text_alone(base: Base) -> None:
    texts = ["abcd", "wxyz wxyz wxyz", "j", "klm" * 40]
    found = features(base, texts)
    for text, one in zip(texts, found, strict=True):
        ids = base.tokenizer.encode_documents([text])[0].tolist()[: base.longest_input - 2]
        alone = first_pass(base.model.roberta, input_ids=torch.tensor([[0, *ids, 2]]))
        torch.testing.assert_close(one, alone[0])


# --------------------------------------------------------------------------------------- the folder


def test_texts_go_to_the_delta_of_their_task(
    two: list[DeltaExperiment], place: Path, tmp_path: Path
) -> None:
    made = make_route(two, tmp_path / "route")
    assert made.counts["deltas"] == 2 and made.counts["accuracy"] == 1.0
    assert make_route(two, tmp_path / "route") == made  # nothing to do
    record = json.loads((tmp_path / "route" / "route.json").read_text())
    assert [(task["name"], task["trained"], task["tested"]) for task in record["tasks"]] == [
        ("letters", 150, 90),
        ("digits", 100, 40),
    ]
    assert record["confusion"] == [[90, 0], [0, 40]]

    shutil.move(tmp_path / "route", tmp_path / "moved")  # with copies of the deltas
    folders = [config.folder("delta") for config in two]
    texts = ["t 1 abcdabcdabcd", "[0101230410]", "t 3 zyxwzzyx"]
    plain = [load(place / "base", folder).predict(texts) for folder in folders]
    shutil.rmtree(tmp_path / "deltas")
    moved = route.load(place / "base", tmp_path / "moved")
    found = moved.predict(texts)
    assert [choice.delta for choice, _ in found] == ["letters", "digits", "letters"]
    assert [answer for _, answer in found] == [plain[0][0], plain[1][1], plain[0][2]]
    shares = moved.router(features(moved.base, texts)).max(1).values
    assert [choice.share for choice, _ in found] == pytest.approx(shares.tolist())
    assert moved.predict([]) == []

    described = describe_folder(tmp_path / "moved", "route")
    assert [row["sent there"] for row in described.examples[0].rows] == [1.0, 1.0]
    with pytest.raises(UserError, match="made for the base"):
        route.load(place / "other", tmp_path / "moved")
    (tmp_path / "moved" / "router.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"router\.safetensors"):
        route.load(place / "base", tmp_path / "moved")


def test_a_text_of_two_tasks_is_of_none(two: list[DeltaExperiment], tmp_path: Path) -> None:
    for part in ("train", "test"):
        file = tmp_path / f"digits_{part}.jsonl"
        letters = Path(two[0].delta.task.train.candidates[0]).with_name(f"{part}.jsonl")
        taken = [json.loads(line)["text"] for line in letters.read_text().splitlines()[:7]]
        lines = [json.dumps({"text": text, "label": "low"}) for text in taken]
        file.write_text(file.read_text() + "\n".join(lines) + "\n")

    make_route(two, tmp_path / "route")
    record = json.loads((tmp_path / "route" / "route.json").read_text())
    assert [(task["trained"], task["tested"]) for task in record["tasks"]] == [(143, 83), (100, 40)]


def test_the_command(
    two: list[DeltaExperiment], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text(
        f"base: {place / 'letters.yaml'}\nname: digits\ndelta:\n  task:\n"
        f"    train: {tmp_path}/digits_train.jsonl\n    test: {tmp_path}/digits_test.jsonl\n"
    )
    every = [f"paths.published={place / 'base'}", f"paths.root={tmp_path}", *QUICK]
    files = [str(place / "letters.yaml"), "digits.yaml"]
    command = ["delta", "route", *files, *every, "--into", "route", "--json"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["counts"]["accuracy"] == 1.0
    inputs = [{"text": "[0101230410]", "id": 7}, {"text": "t 1 abcdabcd"}, {"text": " "}]
    inputs.append({"text": "t 1 abcdabcd", "delta": "digits"})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(each) + "\n" for each in inputs))
    command = ["delta", "predict", "route", "in.jsonl", "--top", "1", "--max-bad-lines", "1"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    digits, letters, bad, named = map(json.loads, found.stdout.splitlines())
    assert (digits["delta"], letters["delta"], named["delta"]) == ("digits", "letters", "digits")
    assert digits["share"] > 0.5 and letters["share"] > 0.5 and "share" not in named
    assert digits["label"] in ("low", "high") and letters["label"] in ("early", "middle", "late")
    assert named["label"] in ("low", "high") and "line 3" in bad["error"]


def test_a_row_goes_only_where_it_can(
    two: list[DeltaExperiment], place: Path, tmp_path: Path
) -> None:
    """A task of pairs beside one of single texts."""
    for part in ("train", "test"):
        file = tmp_path / f"digits_{part}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        pairs = [{**row, "other": row["text"]} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in pairs))

    task = two[1].delta.task.model_copy(update={"text_pair": "other"})
    delta = two[1].delta.model_copy(update={"task": task})
    make_route([two[0], two[1].model_copy(update={"delta": delta})], tmp_path / "route")
    router = route.load(place / "base", tmp_path / "route")
    single, pair = {"text": "[0101230410]"}, {"text": "abcd", "other": "[0123]"}
    (one, _), (other, _) = router.predict([single, pair])
    assert (one.delta, one.share) == ("letters", 1.0) and other.share < 1
    with pytest.raises(ValueError, match="text"):
        router.inputs({"sentence": "abcd"})


def test_what_cannot_be_routed_is_refused(two: list[DeltaExperiment], tmp_path: Path) -> None:
    letters, digits = two
    with pytest.raises(UserError, match="two deltas or more, found 1"):
        make_route([letters], tmp_path / "route")
    with pytest.raises(UserError, match="two configs are named 'letters'"):
        make_route([letters, letters], tmp_path / "route")
    other = digits.delta.model_copy(update={"base": letters.delta.task.train})
    with pytest.raises(UserError, match="digits: of the base"):
        make_route([letters, digits.model_copy(update={"delta": other})], tmp_path / "route")
