"""The clean stage through the command line, before the stages that read the corpus."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.pipeline
ROOT = Path(__file__).resolve().parents[2]
ROBUSTLY = Path(sys.executable).with_name("robustly")
TEXTS = [
    f"This is text number {n}, and it has {n} words or so. It ends{' here' * (n % 9)}."
    for n in range(40)
]
ON = ["cleaning.exact_duplicates=true", "cleaning.min_words=5"]


def robustly(cwd: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(ROBUSTLY), *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, (
        f"exit code {done.returncode}, expected {code}:\n{done.stdout}\n{done.stderr}"
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def work(tmp_path: Path) -> Path:
    rows = [*TEXTS, TEXTS[3], "Too short."]
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in rows)
    )
    (tmp_path / "page.yaml").write_text(
        f"base: {ROOT}/configs/tiny.yaml\nname: small\ncorpus: {{sources: corpus.jsonl, validation:"
        " 0}\ntokenizer: {vocab_size: 300, min_frequency: 1}\nrun: {workers: 1}\n"
    )
    return tmp_path


def test_the_stages_in_order(work: Path) -> None:
    early = robustly(work, "tokenizer", "page.yaml", *ON, code=2)
    assert (
        "no finished clean stage here" in early.stderr
        and "run `robustly clean CONFIG` first" in early.stderr
    )
    assert "cleaning: the page asks for none" in robustly(work, "clean", "page.yaml", code=2).stderr
    assert not (work / "runs" / "small" / "clean" / "recipe.json").exists()

    made = robustly(work, "clean", "page.yaml", *ON, "--dropped", "dropped.jsonl", "--json")
    counts = json.loads(made.stdout)["counts"]
    assert (counts["documents"], counts["kept_documents"]) == (42, 40)
    assert (
        "dropped by min words" in made.stderr
        and "next: " in made.stderr
        and "robustly tokenizer" in made.stderr
    )
    dropped = [json.loads(line) for line in (work / "dropped.jsonl").read_text().splitlines()]
    assert [(row["text"], row["reason"]) for row in dropped] == [
        (TEXTS[3], "exact_duplicates"), ("Too short.", "min_words"),
    ]  # fmt: skip
    refused = robustly(work, "clean", "page.yaml", *ON, "--dropped", "dropped.jsonl", code=2)
    assert "is there already" in refused.stderr

    changed = robustly(work, "tokenizer", "page.yaml", *ON, "cleaning.min_words=6", code=2)
    assert "cleaning.min_words: 5 there, 6 now" in changed.stderr
    trained = json.loads(robustly(work, "tokenizer", "page.yaml", *ON, "--json").stdout)
    assert trained["counts"]["documents"] == 40
    prepared = json.loads(robustly(work, "prepare", "page.yaml", *ON, "--json").stdout)
    assert prepared["counts"]["train_documents"] == 40
    assert (
        prepared["inputs"]["clean"] == trained["inputs"]["clean"] == json.loads(made.stdout)["hash"]
    )

    told = json.loads(robustly(work, "inspect", "runs/small/clean", "--json").stdout)
    assert [row["reason"] for row in told["examples"]["dropped"]] == [
        "min_words",
        "exact_duplicates",
    ]
    stages = json.loads(robustly(work, "inspect", "runs/small", "--json").stdout)["examples"][
        "stages"
    ]
    assert [row["folder"] for row in stages if row["state"] == "finished"] == [
        "clean",
        "tokenizer",
        "data",
    ]

    sibling = [
        "tokenizer.vocab_size=290",
        "--new-run",
        "sibling",
        "--json",
    ]  # reuses the clean stage
    again = json.loads(robustly(work, "tokenizer", "page.yaml", *ON, *sibling).stdout)
    assert (
        again["inputs"] == trained["inputs"] and not (work / "runs" / "sibling" / "clean").exists()
    )


def test_a_page_without_cleaning_knows_nothing_of_it(work: Path) -> None:
    trained = json.loads(robustly(work, "tokenizer", "page.yaml", "--json").stdout)
    assert trained["counts"]["documents"] == 42 and list(trained["inputs"]) == ["corpus"]
    assert sorted(path.name for path in (work / "runs" / "small").iterdir()) == ["tokenizer"]


def test_mistakes_on_the_page(work: Path) -> None:
    wrong = ["cleaning.quality={gopher_quality: {min_words: 3}}", "cleaning.exact_duplicate=true"]
    told = robustly(work, "clean", "page.yaml", *wrong, code=2).stderr
    assert "2 faults" in told
    assert "gopher_quality has no parameter 'min_words'; did you mean min_doc_words?" in told
    assert (
        "cleaning.exact_duplicate: unknown key (value True); did you mean"
        " cleaning.exact_duplicates?" in told
    )
