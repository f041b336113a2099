"""`robustly inspect` and `robustly evaluate` on the folders of a small run, through the command
line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ranks import run_distributed
from robustly import cli, log
from robustly.experiment import (
    Experiment,
    data_work,
    load_experiment,
    published_work,
    tokenizer_work,
)
from robustly.pretrain.loop import pretrain

pytestmark = pytest.mark.pipeline
CORPORA = Path(__file__).resolve().parents[2] / "data_prep" / "corpora"
STAGES = ("tokenizer", "data", "train", "published")


CHANGES = {
    "corpus.validation": 0.2, "tokenizer.vocab_size": 800, "model.layers": 2, "model.hidden": 32, "model.heads": 2,
    "model.feed_forward": 64, "optim.batch_size": 8, "schedule.updates": 4, "schedule.warmup": 1, "run.workers": 1,
    "run.log_every": 1, "run.evaluate_every": 2, "run.evaluate_blocks": 8, "run.checkpoint_every": 2,
}  # fmt: skip


def train(rank: int, ranks: int, experiment: Experiment) -> None:
    torch.set_num_threads(1)
    pretrain(experiment, rank, rank, ranks)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, beside its corpus.txt. Left as it is by the tests."""
    work = tmp_path_factory.mktemp("inspected")
    text = (CORPORA / "prose_cc0.txt").read_text(encoding="utf-8")
    (work / "corpus.txt").write_text(text[: text.index("\n\n", 100_000)], encoding="utf-8")
    places = [f"corpus.sources={work / 'corpus.txt'}", f"paths.root={work / 'run'}"]
    experiment = load_experiment(
        "tiny", [*(f"{key}={value}" for key, value in CHANGES.items()), *places]
    )
    tokenizer_work(experiment).make()
    data_work(experiment).make()
    run_distributed(1, train, experiment)
    published_work(experiment).make()
    return work / "run"


def robustly(capfd: pytest.CaptureFixture[str], *arguments: Any, code: int = 0) -> tuple[str, str]:
    """stdout and stderr of a command, in this process: most of the time would go into importing
    torch anew."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as leaving:
        cli.main([str(argument) for argument in arguments])

    captured = capfd.readouterr()
    assert (leaving.value.code or 0) == code, captured.err
    assert "Traceback" not in captured.err and "\x1b" not in captured.err
    return captured.out, captured.err


@pytest.mark.parametrize("stage", ["", *STAGES])
def test_every_folder_of_a_run_is_described(
    run: Path, stage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out, err = robustly(capfd, "inspect", run / stage)
    assert out == "" and str(run / stage) in err.replace("\n", "")
    out, _ = robustly(capfd, "inspect", run / stage, "--json")
    found = json.loads(out)
    assert found["kind"] == (stage or "run")
    assert found["figures"]["bytes_on_disk"] > 1000
    assert all(rows for rows in found["examples"].values())
    assert ("not finished" not in err) and found["summary"]


def test_a_run_that_was_stopped(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stopped = tmp_path / "stopped"
    shutil.copytree(run, stopped)
    shutil.rmtree(stopped / "published")
    (stopped / "train" / "manifest.json").unlink()
    shutil.rmtree(stopped / "train" / "checkpoints" / "update-00000004")
    found = json.loads(robustly(capfd, "inspect", stopped, "--json")[0])
    assert found["notes"] == ["next: robustly pretrain CONFIG"]
    assert [row["state"] for row in found["examples"]["stages"]] == [
        "finished",
        "finished",
        "begun",
        "not begun",
    ]
    _, err = robustly(capfd, "inspect", stopped / "train")
    assert "not finished" in err and "checkpoint of update 2" in err
    (stopped / "data" / "manifest.json").unlink()
    assert "not finished" in robustly(capfd, "inspect", stopped / "data")[1]
    assert "no such folder" in robustly(capfd, "inspect", stopped / "published", code=2)[1]
    assert "It holds" in robustly(capfd, "inspect", tmp_path, code=2)[1]


def test_a_tokenizer_on_held_out_documents(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer's folder in a run, the published folder's manifest and the model card tell the
    same of them."""
    found = json.loads(robustly(capfd, "inspect", run / "tokenizer", "--json")[0])
    (sizes,) = found["examples"]["held-out documents, by source"]
    (ratios,) = found["examples"]["what a token stands for, by source"]
    data = json.loads((run / "data" / "manifest.json").read_text())["counts"]
    assert sizes["name"] == "corpus.txt" and sizes["documents"] == data["validation_documents"] > 0
    published = json.loads((run / "published" / "manifest.json").read_text())["counts"]
    (row,) = published["tokenizer"]["rows"]
    assert row.items() <= {**sizes, **ratios, "source": "corpus.txt"}.items()
    card = (run / "published" / "README.md").read_text()
    assert (
        all(f" {log.show(value)} |" in card for value in row.values())
        and "these documents included" in card
    )
    assert "its tokenizer on held-out documents" in robustly(capfd, "inspect", run / "published")[1]
    alone = tmp_path / "tokenizer"
    shutil.copytree(run / "tokenizer", alone)
    found = json.loads(robustly(capfd, "inspect", alone, "--json")[0])
    assert "held-out documents, by source" not in found["examples"]
    assert found["notes"] == [f"on your own text: robustly inspect {alone} --text FILES"]


def test_tokenizers_on_text(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"lang": "fi", "text": "Oma tupa, oma lupa."},
        {"lang": "en", "text": "It was in the house."},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    listing = "what a token stands for, by lang"

    for folder in ("tokenizer", "published"):
        out, _ = robustly(capfd, "inspect", run / folder, "--text", path, "--by", "lang", "--json")
        found = json.loads(out)["examples"][listing]
        assert [row["name"] for row in found] == ["en", "fi", "total"]
        assert found[0]["tokens_per_word"] < found[1]["tokens_per_word"]

    # what a shell makes of --text *
    _, err = robustly(
        capfd, "inspect", run / "tokenizer", "--text", path, run.parent / "corpus.txt"
    )
    assert "rows.jsonl" in err and "corpus.txt" in err and "total" in err
    _, err = robustly(capfd, "inspect", run / "tokenizer", "--compare", run / "published")
    assert "Both give the same ids to every text." in err and "by file" not in err
    arguments = "--compare", run / "published", "--text", path, "--by", "lang", "--json"
    found = json.loads(robustly(capfd, "inspect", run / "tokenizer", *arguments)[0])
    assert [row["ratio"] for row in found["examples"]["text, by lang"]] == [1, 1, 1]


def test_mistakes_about_a_tokenizers_text(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, text = run / "tokenizer", run.parent / "corpus.txt"
    for arguments, message in (
        ((folder, text), "expected an option before it: --text FILES"),
        ((folder, "--by", "lang"), "--by lang: of which text?"),
        ((folder, "--text", text, "--by", "lang"), f"{text}: has no keys"),
        ((folder, "--text", tmp_path / "nowhere.txt"), "--text: "),
        (
            (run / "data", "--text", text),
            "--text and --compare take tokenizer folders, published ones",
        ),
        ((run, "--compare", folder), f"this run's tokenizer is {folder}"),
        ((folder, "--compare", run / "train"), f"{run / 'train'}: a train folder"),
        ((folder, "--compare", tmp_path / "nowhere"), "no such folder"),
    ):
        out, err = robustly(capfd, "inspect", *arguments, code=2)
        assert message in err and out == ""


def test_a_data_folder_in_full(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Blocks, a page, and the documents, which are those of the corpus."""
    documents, page = tmp_path / "documents.jsonl", tmp_path / "data.html"
    page.write_text("of yesterday")
    options = "--blocks", 3, "--decode-documents", documents, "--html", page
    out, err = robustly(capfd, "inspect", run / "data", *options, "--json")
    found = json.loads(out)["examples"]
    assert [row["split"] for row in found["blocks as text"]] == 3 * ["train"] + 3 * ["validation"]
    counts = json.loads((run / "data" / "manifest.json").read_text())["counts"]

    for kind in ("documents", "units"):
        for split in ("train", "validation"):
            bins = [row[kind] for row in found[f"{kind} by tokens"] if row["split"] == split]
            assert sum(bins) == counts[f"{split}_{kind}"]

    assert "blocks by fill, full_sentences 32" in found and f"documents: {documents}" in err
    assert page.read_text().startswith("<!doctype html>") and page.read_text().count("<img ") == 3
    rows = [json.loads(line) for line in documents.read_text(encoding="utf-8").splitlines()]
    splits = [row["split"] for row in rows]
    assert splits == [
        split for split in ("train", "validation") for _ in range(counts[f"{split}_documents"])
    ]
    corpus = (run.parent / "corpus.txt").read_text(encoding="utf-8")
    assert {row["source"] for row in rows} == {"corpus.txt"} and all(
        row["text"] in corpus for row in rows
    )
    assert sum(len(row["text"].encode()) for row in rows) == counts["bytes"]
    alone = tmp_path / "data"
    shutil.copytree(run / "data", alone)
    robustly(
        capfd,
        "inspect",
        alone,
        "--tokenizer",
        run / "tokenizer",
        "--decode-documents",
        tmp_path / "two.jsonl",
    )
    assert (tmp_path / "two.jsonl").read_bytes() == documents.read_bytes()


def test_mistakes_about_a_data_folder(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, there = run / "data", tmp_path / "there.jsonl"
    there.write_text("mine")
    alone, begun = tmp_path / "alone", tmp_path / "begun"
    for copy in (alone, begun):
        shutil.copytree(data, copy)

    (begun / "manifest.json").unlink()

    for arguments, message in (
        (
            (run, "--blocks", 2),
            f"{run}: a run folder; --blocks is for data folders; this run's is {data}",
        ),
        (
            (run / "train", "--html", tmp_path / "a.html"),
            "a train folder; --html is for data folders",
        ),
        (
            (run / "tokenizer", "--decode-documents", tmp_path / "a.jsonl"),
            "--decode-documents is for data folders",
        ),
        (
            (run / "tokenizer", "--text", there, "--tokenizer", run),
            "--text, --by and --compare are for tokenizers",
        ),
        (
            (data, "--text", run.parent / "corpus.txt"),
            "--text and --compare take tokenizer folders",
        ),
        ((begun, "--blocks", 2), "no finished data stage here"),
        ((data, "--decode-documents", there), f"{there}: is there already"),
        ((data, "--decode-documents", tmp_path / "a.txt"), "ends in .jsonl or .jsonl.gz"),
        ((data, "--html", tmp_path / "no" / "a.html"), "in a folder that is there"),
        ((data, "--html", run.parent / "corpus.txt"), "ends in .html"),
        (
            (alone, "--decode-documents", tmp_path / "a.jsonl"),
            "--tokenizer FOLDER takes it from elsewhere",
        ),
        ((alone, "--blocks", 2), f"text needs the tokenizer in {tmp_path / 'tokenizer'}"),
        ((alone, "--blocks", 2, "--tokenizer", run / "train"), f"the tokenizer in {run / 'train'}"),
    ):
        out, err = robustly(capfd, "inspect", *arguments, code=2)
        assert message in err and out == ""

    assert (
        there.read_text() == "mine"
        and not (tmp_path / "a.jsonl").exists()
        and not (tmp_path / "a.html").exists()
    )
    assert "--tokenizer FOLDER" in robustly(capfd, "inspect", alone)[1]


def test_evaluate(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One JSON object on stdout, words on stderr."""
    pairs = CORPORA / "minimal_pairs.jsonl"
    monkeypatch.chdir(run.parent)
    Path("more.txt").write_text(
        "A few words more.\n\nAnd again some words.\n\n" * 9, encoding="utf-8"
    )
    out, err = robustly(
        capfd, "evaluate", "run/published", "--minimal-pairs", pairs, "--text", "*.txt", "--json"
    )
    found = json.loads(out)
    assert sorted(Path(path).name for path in found["text"]["files"]) == ["corpus.txt", "more.txt"]
    total = found["text"]["total"]
    assert total["documents"] == sum(
        figures["documents"] for figures in found["text"]["files"].values()
    )
    assert 5 < total["loss"] < 7 and total["loss_standard_error"] > 0
    assert found["minimal_pairs"]["pairs"] == len(pairs.read_text().splitlines())
    assert "bits per byte" in err and "a tie counts half" in err


def test_the_loss_of_the_run_again(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On the run's own held-out documents, as its store is decoded, under its own masks."""
    everything = tmp_path / "documents.jsonl"
    robustly(capfd, "inspect", run / "data", "--decode-documents", everything)
    lines = [
        line
        for line in everything.read_text().splitlines()
        if json.loads(line)["split"] == "validation"
    ]
    (tmp_path / "held_out.jsonl").write_text("\n".join(lines))
    command = "evaluate", run / "published", "--text", tmp_path / "held_out.jsonl", "--json"
    out, err = robustly(capfd, *command, "--masking", "run")
    found = json.loads(out)["text"]
    own = json.loads((run / "published" / "manifest.json").read_text())["counts"]
    assert found["total"]["masked_tokens"] == own["validation_masked_tokens"]
    assert found["total"]["loss"] == pytest.approx(own["validation_loss"], abs=1e-5)
    assert found["evaluated_blocks"] == 8 < found["blocks"]
    assert "as the run's own evaluation does it, on 8 of" in " ".join(err.split())
    lines = json.loads(robustly(capfd, *command, "--unit", "line")[0])["text"]
    assert lines["cut"]["unit"] == "line" and lines["blocks"] == lines["evaluated_blocks"]


def test_what_to_evaluate_on_must_be_said(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, text, pairs = (
        run / "published",
        run.parent / "corpus.txt",
        CORPORA / "minimal_pairs.jsonl",
    )
    assert "nothing to evaluate on" in robustly(capfd, "evaluate", model, code=2)[1]
    assert "--text FILES" in robustly(capfd, "evaluate", model, text, code=2)[1]
    _, err = robustly(
        capfd, "evaluate", model, "--text", text, "--minimal-pairs", pairs, text, code=2
    )
    assert "of which option" in err
    # what a shell makes of --text *.txt
    out, _ = robustly(capfd, "evaluate", model, "--text", text, run.parent / "corpus.txt", "--json")
    assert len(json.loads(out)["text"]["files"]) == 1
    out, _ = robustly(capfd, "evaluate", model, "--minimal-pairs", pairs, pairs, "--json")
    assert json.loads(out)["minimal_pairs"]["pairs"] == len(pairs.read_text().splitlines())
    assert (
        "Nothing is downloaded"
        in robustly(capfd, "evaluate", "roberta-base", "--text", text, code=2)[1]
    )
