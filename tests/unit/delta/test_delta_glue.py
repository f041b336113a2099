"""`robustly glue`: the grid, the medians, the table, and what a stop, another task or another recipe
does."""

import json
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustly import UserError
from robustly.cli import main
from robustly.delta.config import DeltaExperiment, load_delta
from robustly.delta.tasks.glue import TASKS, in_the_paper
from robustly.delta.trials import glue as delta_glue
from robustly.delta.trials.glue import RESULT, glue, medians, table
from robustly.inspection import describe
from robustly.inspection.folders import folder_kind
from robustly.strict_yaml import parse_yaml

QUICK = [
    "optim.epochs=1", "glue.batch_size=[8, 16]", "glue.peak_lr=[1e-3, 1e-2]", "delta.seeds=3",
    "delta.methods=[{name: bitfit}]",
]  # fmt: skip


def text(draw: random.Random, label: int) -> str:
    return "".join(draw.choices(["abcd", "wxyz"][label], k=draw.randint(4, 9)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files of four tasks in the forms in which they are handed on."""
    folder = tmp_path_factory.mktemp("glue")
    draw = random.Random(1)
    for part, lines in (("train", 40), ("dev", 24)):
        rows = [(n, n % 2, text(draw, n % 2), text(draw, (n + n // 2) % 2)) for n in range(lines)]
        made: dict[str, list[str]] = {
            "cola": [f"src\t{label}\t\t{first}{n}" for n, label, first, _ in rows],
            "SST-2": ["sentence\tlabel", *(f"{first}{n} \t{label}" for n, label, first, _ in rows)],
            "mrpc": [
                json.dumps({"sentence1": f"{n}{a}", "sentence2": b, "label": label})
                for n, label, a, b in rows
            ],
            "stsb": [
                json.dumps({"text_a": f"{n}{a}", "text_b": b, "label": 5.0 * label + n / 100})
                for n, label, a, b in rows
            ],
        }
        for name, each in made.items():
            suffix = "tsv" if name in ("cola", "SST-2") else "jsonl"
            path = folder / (f"{name}.{part}.{suffix}" if name != "SST-2" else f"SST-2/{part}.tsv")
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(each) + "\n")

        pairs = [
            json.dumps({"premise": f"{n}{a}", "hypothesis": b, "label": n % 3})
            for n, _, a, b in rows
        ]
        (folder / f"mnli.{part}.jsonl").write_text("\n".join(pairs) + "\n")
        if part == "dev":
            others = [line.replace('"premise": "', '"premise": "z') for line in pairs]
            (folder / "mnli.dev_mismatched.jsonl").write_text("\n".join(others[:12]) + "\n")

    return folder


@pytest.fixture
def make(place: Path) -> Callable[..., DeltaExperiment]:
    return lambda *changes: load_delta(
        "delta/glue", [f"delta.base={place / 'base'}", *QUICK, *changes]
    )


def result_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / RESULT).read_text()))


def test_the_recipe_is_that_of_the_paper() -> None:
    config = load_delta("delta/glue")
    optim = config.optim
    assert (config.glue.batch_size, config.glue.peak_lr) == ((16, 32), (1e-5, 2e-5, 3e-5))
    assert (optim.epochs, optim.warmup, optim.weight_decay, config.delta.seeds) == (
        10,
        0.06,
        0.1,
        5,
    )
    assert [method.name for method in config.delta.listed] == ["full"]
    assert in_the_paper() == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"]


def test_medians_of_seeds() -> None:
    assert medians([{"mcc": 0.1}, {"mcc": 0.5}, {"mcc": 0.2}]) == {"mcc": 0.2}
    assert medians([{"a": 0.1, "b": 1.0}, {"a": 0.4, "b": 0.0}]) == {"a": 0.25, "b": 0.5}
    assert medians([{"a": 0.1}, {}, {"a": 0.3}]) == {"a": 0.1}  # one that diverged is the lowest
    assert medians([{"a": 0.1}, {}, {}]) == {"a": None}


def test_tasks_with_their_own_scores(
    make: Callable[..., DeltaExperiment], files: Path, tmp_path: Path
) -> None:
    done = glue(make(), ["cola", "mrpc", "stsb", "mnli"], tmp_path, files)
    for name, manifest in done.items():
        result = result_of(tmp_path / name)
        grid, seeds = result["grid"], result["seeds"]
        assert [(row["batch_size"], row["peak_lr"]) for row in grid] == [
            (8, 1e-3), (8, 1e-2), (16, 1e-3), (16, 1e-2),
        ]  # fmt: skip
        metric = result["metric"]
        best = max(grid, key=lambda row: row[metric])
        chosen = {key: seeds[0][key] for key in ("batch_size", "peak_lr")}
        assert chosen == {key: best[key] for key in chosen}
        assert [row["seed"] for row in seeds] == [1, 2, 3] and {row["seed"] for row in grid} == {1}
        assert all(chosen.items() <= row.items() for row in seeds)
        for score, median in result["medians"].items():
            assert median == statistics.median(row[score] for row in seeds)
            assert manifest.counts[score] == median

    metrics = {name: list(result_of(tmp_path / name)["medians"]) for name in done}
    assert metrics == {
        "cola": ["mcc"],
        "mrpc": ["accuracy", "binary_f1"],
        "stsb": ["pearson", "spearman"],
        "mnli": ["accuracy", "accuracy_mismatched"],
    }
    shown = table(tmp_path)
    assert [(row["task"], row["score"]) for row in shown] == [
        *((name, score) for name in ("cola", "mrpc", "stsb", "mnli") for score in metrics[name]),
        ("mean of 4", "-"),
    ]
    assert shown[-1]["RoBERTa-base"] == f"{(63.6 + 90.2 + 91.2 + 87.6) / 4:.1f}"
    assert shown[0]["median"] == f"{100 * result_of(tmp_path / 'cola')['medians']['mcc']:.1f}"
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2].startswith("| cola | mcc |") and "Medians of the seeds" in lines[-1]
    found = describe.describe_folder(tmp_path / "mrpc", folder_kind(tmp_path / "mrpc"))
    assert found.kind == "glue" and found.figures["settings"] == 4
    assert len(found.examples[0].rows) == 4


def test_a_stop_costs_no_training_that_is_done(
    make: Callable[..., DeltaExperiment],
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = delta_glue.trial
    begun: list[tuple[int, float, int]] = []

    def stopped_in_the_sixth(setting: Any, entry: Any, seed: int, folder: Path) -> Any:
        if not (folder / "trial.json").exists():
            begun.append((entry["optim.batch_size"], entry["optim.peak_lr"], seed))
            if len(begun) == 6:
                raise KeyboardInterrupt
        return trial(setting, entry, seed, folder)

    monkeypatch.setattr(delta_glue, "trial", stopped_in_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        glue(make(), ["cola"], tmp_path, files)
    assert not table(tmp_path)
    glue(make(), ["cola"], tmp_path, files)
    assert len(begun) == 7 and begun[5] == begun[6] and len({*begun}) == 6  # 4 settings, 2 seeds
    stopped = result_of(tmp_path / "cola")

    glue(make(), ["cola", "sst2"], tmp_path, files)  # another task joins the table
    assert [row["task"] for row in table(tmp_path)] == ["cola", "sst2", "mean of 2"]
    assert len(begun) == 13
    with pytest.raises(UserError, match="another"):
        glue(make("optim.epochs=2"), ["cola"], tmp_path, files)

    glue(make(), ["cola"], tmp_path / "at_once", files)
    assert result_of(tmp_path / "at_once" / "cola") == stopped


@pytest.mark.processes
@pytest.mark.usefixtures("warm_workers")
def test_several_processes_find_the_same(
    make: Callable[..., DeltaExperiment], files: Path, tmp_path: Path
) -> None:
    glue(make(), ["sst2"], tmp_path / "one", files)
    glue(make("delta.processes=2"), ["sst2"], tmp_path / "two", files)
    assert result_of(tmp_path / "one" / "sst2") == result_of(tmp_path / "two" / "sst2")


def test_a_setting_that_diverges_is_not_chosen(
    make: Callable[..., DeltaExperiment], files: Path, tmp_path: Path
) -> None:
    wild = ["glue.peak_lr=[1e30, 1e-3]", "delta.methods=[{name: full}]", "delta.seeds=1"]
    glue(make(*wild), ["cola"], tmp_path, files)
    states = [row["state"] for row in result_of(tmp_path / "cola")["grid"]]
    assert states == ["diverged", "complete"] * 2
    with pytest.raises(UserError, match="the loss of update"):
        glue(make(*wild, "glue.peak_lr=[1e30]"), ["cola"], tmp_path / "wild", files)


def test_keys_of_the_task_hold_for_every_task(
    make: Callable[..., DeltaExperiment], files: Path, tmp_path: Path
) -> None:
    one = ["glue.batch_size=[8]", "glue.peak_lr=[1e-3]", "delta.seeds=1"]
    config = make(*one, "delta.task.max_length=12", "delta.task.examples=10")
    for name in ("cola", "mrpc"):
        made = delta_glue._config_of(config, name, tmp_path, files).delta.task
        assert (made.max_length, made.examples, made.metric) == (12, 10, TASKS[name].metric)
    task = delta_glue._config_of(make("delta.task.class_weights=balanced"), "cola", tmp_path, files)
    assert task.delta.task.class_weights == "balanced"
    with pytest.raises(UserError, match=r"glue/stsb: 1 fault\n.*class_weights"):
        delta_glue._config_of(make("delta.task.class_weights=balanced"), "stsb", tmp_path, files)


def test_from_the_hub_once(
    make: Callable[..., DeltaExperiment],
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder that is laid out like the dataset stands for it."""
    folder = tmp_path / "nyu-mll" / "glue"
    (folder / "rte").mkdir(parents=True)
    for part, lines in (("train", 20), ("validation", 8)):
        rows = [{"sentence1": f"{part}{n}", "sentence2": "b", "label": n % 2} for n in range(lines)]
        (folder / "rte" / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: rte\n  data_files:\n  - split: train\n    path:"
        " rte/train.jsonl\n  - split: validation\n    path: rte/validation.jsonl\n---\n"
    )
    monkeypatch.chdir(tmp_path)
    one = ["glue.batch_size=[8]", "glue.peak_lr=[1e-3]", "delta.seeds=1"]
    glue(make(*one), ["rte"], tmp_path / "done", None)
    assert result_of(tmp_path / "done" / "rte")["training_examples"] == 20
    written = (tmp_path / "done" / "data" / "rte.train.jsonl").read_text().splitlines()
    assert json.loads(written[1]) == {"sentence1": "train1", "sentence2": "b", "label": 1}
    folder.rename(tmp_path / "gone")
    (tmp_path / "done" / "rte" / "manifest.json").unlink()
    glue(make(*one), ["rte"], tmp_path / "done", None)  # the files are there

    with pytest.raises(UserError, match=r"delta.task.dev: .*given by --data DIR"):
        glue(make(*one), ["cola"], tmp_path / "done", None)


def test_the_command(
    place: Path,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["glue", str(place / "base"), "--tasks", "sst2", "--data", str(files), "--json", *QUICK]
    with pytest.raises(SystemExit) as left:
        main(words)
    assert not left.value.code
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert made["folder"] == "runs/base/glue" and made["sst2"]["counts"]["seeds"] == 3
    assert "RoBERTa-base" in err and "94.8" in err and "table: runs/base/glue/table.md" in err
    assert math.isfinite(made["sst2"]["counts"]["accuracy"])

    with pytest.raises(SystemExit) as left:
        main([*words[:2], "--tasks", "sst", *words[4:]])
    assert left.value.code == 2
    assert "did you mean sst2?" in capsys.readouterr().err


def test_the_shipped_config_says_where_its_numbers_are_from() -> None:
    shipped = Path(delta_glue.__file__).resolve().parents[2] / "configs" / "delta" / "glue.yaml"
    assert "Table 10" in shipped.read_text() and parse_yaml(shipped.read_text())["seed"] == 1
