"""Several processes: one delta trained together, and seeds side by side."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from robustly import UserError
from robustly.delta import checkpoint as delta_checkpoint
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment, load_delta
from robustly.delta.data_parallel import Ranks, joined
from robustly.delta.predictor import Predictor
from robustly.delta.stage import _one_seed, make_delta
from robustly.delta.tasks.data import read
from robustly.delta.trainer import DeltaTrainer
from robustly.delta.tuning import tune
from tests.ranks import run_distributed

MakeConfig = Callable[..., DeltaExperiment]
LETTERS = "abcdefgh"


def exchanged(rank: int, size: int, meeting: str) -> dict[str, Any]:
    with joined(Path(meeting), rank, size) as ranks:
        words = [letter * 2 for letter in ranks.share(LETTERS)]
        few = ranks.gathered([letter for letter in ranks.share("ab")])
        tensors = [torch.full((2, 2), 1.0 + rank), torch.tensor(10.0**rank)]
        ranks.add(tensors)

        return {
            "mine": words,
            "all": ranks.gathered(words),
            "few": few,
            "sums": [t.tolist() for t in tensors],
        }


@pytest.mark.processes
def test_what_ranks_exchange(tmp_path: Path) -> None:
    found = run_distributed(3, exchanged, str(tmp_path / "meeting"))
    assert [one["mine"] for one in found] == [["aa", "dd", "gg"], ["bb", "ee", "hh"], ["cc", "ff"]]
    for one in found:
        assert one["all"] == [letter * 2 for letter in LETTERS]
        assert one["few"] == ["a", "b"]  # the third has none
        assert one["sums"] == [[[6.0, 6.0], [6.0, 6.0]], 111.0]

    assert Ranks().gathered([1, 2]) == [1, 2] and Ranks().share([1, 2]) == [1, 2]


def write_tags(folder: Path, name: str, lines: int) -> None:
    """Sentences of 1 to 9 words: a batch's shares have unequal numbers of targets."""
    rows = []
    for number in range(lines):
        words = [
            f"{'xyz'[(number + place) % 3]}{place}{name}" for place in range(1 + number * 7 % 9)
        ]
        tags = ["B-P" if word[0] == "x" else "O" for word in words]
        rows.append(json.dumps({"words": words, "tags": tags}) + "\n")

    (folder / f"{name}.jsonl").write_text("".join(rows))


TAGS = {
    "kind": "tokens", "train": "a.jsonl", "dev": "b.jsonl", "test": "c.jsonl", "words": "words", "tags": "tags",
    "max_length": 40,
}  # fmt: skip


def trained_by(rank: int, size: int, path: str, changes: list[str], meeting: str) -> dict[str, Any]:
    config = load_delta(path, changes)
    with joined(Path(meeting), rank, size) as ranks:
        tuned = tune(Base.load(config.base), config, read(config.delta.task), 3, ranks=ranks)

    # Without the keys' biases: their gradient is 0 but for rounding, which Adam makes large.
    weights = {
        name: parameter.detach().double().sum().item()
        for name, parameter in tuned.predictor.model.named_parameters()
        if not name.endswith("key.bias")
    }

    return {
        "lines": tuned.lines, "scores": tuned.score.scores, "epoch": tuned.score.epoch,
        "weights": weights,
    }  # fmt: skip


@pytest.mark.processes
@pytest.mark.parametrize(
    "method", ["{name: lora, rank: 4, dropout: 0}", "{name: adalora, dropout: 0}", "{name: bitfit}"]
)
@pytest.mark.parametrize("kind", ["classification", "tokens"])
def test_a_delta_does_not_depend_on_how_many_train_it(
    place: Path, tmp_path: Path, method: str, kind: str
) -> None:
    """Without dropout: the loss of each update, the scores on dev and test, and the weights; every
    rank has them."""
    for file in ("train.jsonl", "test.jsonl"):
        shutil.copy(place / file, tmp_path)

    raw = yaml.safe_load((place / "letters.yaml").read_text())
    task = TAGS if kind == "tokens" else {**raw["delta"]["task"], "dev": "dev.jsonl"}
    path = tmp_path / "letters.yaml"
    path.write_text(yaml.safe_dump({**raw, "delta": {**raw["delta"], "task": task}}))
    dev = (place / "train.jsonl").read_text().replace('"text": "r', '"text": "d').splitlines()[:25]
    (tmp_path / "dev.jsonl").write_text("\n".join(dev) + "\n")
    for name, lines in (("a", 40), ("b", 25), ("c", 30)):
        write_tags(tmp_path, name, lines)

    still = tmp_path / "base"
    shutil.copytree(place / "base", still)
    config = json.loads((still / "config.json").read_text())
    (still / "config.json").write_text(
        json.dumps({**config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    )
    changes = [
        f"paths.published={still}",
        f"delta.methods=[{method}]",
        "optim.epochs=1.5",
        "optim.batch_size=7",
    ]
    (one,) = run_distributed(1, trained_by, str(path), changes, str(tmp_path / "one"))

    for three in run_distributed(3, trained_by, str(path), changes, str(tmp_path / "three")):
        assert [line.keys() for line in three["lines"]] == [line.keys() for line in one["lines"]]
        for line, other in zip(three["lines"], one["lines"], strict=True):
            assert line["loss"] == pytest.approx(other["loss"], rel=2e-4)

        assert three["weights"] == pytest.approx(one["weights"], rel=1e-3, abs=1e-3)
        # A close decision may turn.
        assert three["scores"] == pytest.approx(one["scores"], abs=0.03)
        assert three["epoch"] == one["epoch"]


@pytest.mark.processes
@pytest.mark.usefixtures("warm_workers")
def test_seeds_side_by_side_are_those_one_after_the_other(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    make_delta(make_config("optim.epochs=1", "name=one"))
    make_delta(make_config("optim.epochs=1", "name=two", "delta.processes=2"))
    one, two = (tmp_path / "deltas" / name for name in ("one", "two"))
    assert (one / "metrics.jsonl").read_text() == (two / "metrics.jsonl").read_text()
    assert (one / "delta.safetensors").read_bytes() == (two / "delta.safetensors").read_bytes()
    assert len(json.loads((two / "scores.json").read_text())["seeds"]) == 2


@pytest.mark.processes
@pytest.mark.usefixtures("warm_workers")
def test_more_processes_than_seeds_train_one_together(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a config, in processes of their own; a batch of 2 has no share for a third one."""
    manifest = make_delta(
        make_config(
            "optim.epochs=1",
            "delta.seeds=1",
            "delta.processes=3",
            "optim.batch_size=2",
            "delta.task.examples=12",
        )
    )
    lines = (tmp_path / "deltas/letters/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6 and manifest.counts["seeds"] == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    with pytest.raises(
        UserError, match=r"delta.processes = 3: 2 would train a seed together.* there are 1 GPUs"
    ):
        make_delta(
            make_config("name=another", "delta.seeds=1", "delta.processes=3", "optim.batch_size=2")
        )


def test_judging_is_shared(
    base: Base, place: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank of two answers every second example; the other's answers come from it."""
    config = make_config("optim.epochs=0.5")
    data = read(config.delta.task)
    predictor = tune(base, config, data, 3).predictor
    answered = []
    logits = Predictor._logits
    monkeypatch.setattr(
        Predictor, "_logits", lambda self, rows: answered.append(len(rows)) or logits(self, rows)
    )
    whole = predictor.judge(data.test)
    rows = predictor.head.encode(data.test)
    other = logits(predictor, rows[1::2])

    class Two(Ranks):
        def gathered(self, share: list[Any]) -> list[Any]:
            return [
                (share, other)[place % 2][place // 2] for place in range(len(share) + len(other))
            ]

    assert predictor.judge(data.test, Two(0, 2)).scores == pytest.approx(whole.scores, rel=1e-5)
    assert answered == [90, 45]


class WithAll(Ranks):
    """A rank that trains on all there is, so that nobody else is needed."""

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        return items


def test_dropout_differs_from_update_to_update_and_from_rank_to_rank(
    base: Base, place: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("optim.epochs=0.67")
    data = read(config.delta.task)
    gradients, seeds = DeltaTrainer._backward, []
    monkeypatch.setattr(
        DeltaTrainer,
        "_backward",
        lambda *given: seeds.append(torch.initial_seed()) or gradients(*given),
    )
    for rank in (0, 1):
        tune(base, config, data, 3, ranks=WithAll(rank, 1))

    assert len(seeds) == 2 * 5 == len(set(seeds))


def test_the_first_rank_alone_writes_states(
    base: Base,
    place: Path,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delta_checkpoint, "EVERY", 0.0)
    config = make_config("optim.epochs=0.2", "optim.batch_size=8")
    data = read(config.delta.task)
    tune(base, config, data, 3, checkpoint=tmp_path / "first.pt", ranks=WithAll(0, 1))
    tune(
        base,
        config,
        data,
        3,
        tmp_path / "board",
        checkpoint=tmp_path / "second.pt",
        ranks=WithAll(1, 1),
    )
    assert (tmp_path / "first.pt").exists()
    assert not (tmp_path / "second.pt").exists() and not (tmp_path / "board").exists()
    _one_seed(base, config, data, 3, tmp_path / "second", WithAll(1, 1))
    assert not list((tmp_path / "second").rglob("*"))
