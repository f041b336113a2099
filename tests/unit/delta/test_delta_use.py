"""What a product team does with a finished delta from a shell: predict, score, merge."""

import csv
import gzip
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from typer.testing import CliRunner, Result

from robustly import UserError, delta
from robustly.cli.commands import app
from robustly.delta.answering import rows as answering
from robustly.delta.answering.inputs import Given, read, windows
from robustly.delta.answering.rows import Options, answers
from robustly.delta.base_model import Base
from robustly.delta.config import load_delta
from robustly.delta.predictor import Predictor
from robustly.delta.stage import make_delta
from robustly.delta.storage.merging import merge
from robustly.delta.tasks.config import Task
from robustly.delta.tasks.heads import Wanted

LABELS = ("early", "late", "middle")


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta of one seed that knows its task. Left as it is by the tests."""
    folder = tmp_path_factory.mktemp("use") / "delta"
    keys = [f"paths.published={place / 'base'}", f"paths.delta={folder}", "delta.seeds=1"]
    make_delta(load_delta(place / "letters.yaml", [*keys, "optim.epochs=4"]))
    return folder


@pytest.fixture(scope="module")
def predictor(place: Path, finished: Path) -> Predictor:
    return delta.load(place / "base", finished)


def robustly(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["delta", *map(str, arguments)])
    assert done.exit_code == code, f"{done.exit_code}: {done.stderr}{done.exception}"
    return done


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def texts_of(place: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (place / "test.jsonl").read_text().splitlines()]


def untrained(base: Base, kind: str, labels: tuple[str, ...], **keys: Any) -> Predictor:
    task: Task = TypeAdapter[Any](Task).validate_python(
        {"kind": kind, "train": "a.jsonl", "test": "b.jsonl", "max_length": 40, **keys}
    )
    return Predictor.attached(base, task, labels, [{"name": "bitfit"}], seed=1)


def given(*rows: Any) -> Iterator[Given]:
    return (Given(row, lambda n=n: f"row {n}") for n, row in enumerate(rows, start=1))  # type: ignore[misc]


# -------------------------------------------------------------------------------------- from a shell


def test_every_form_of_input_has_the_same_answers(
    place: Path, finished: Path, predictor: Predictor, tmp_path: Path
) -> None:
    """Text, JSON lines, CSV, compressed, several files: one object a row, in the rows' order."""
    texts = [*texts_of(place)[:20], 'a "quote", and\tmore']
    lines, rows = tmp_path / "in.txt", [{"text": text, "id": n} for n, text in enumerate(texts)]
    lines.write_text("".join(f"{text}\n" for text in texts))
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    with (tmp_path / "in.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["id", "text"])
        table.writeheader()
        table.writerows(rows)

    with gzip.open(tmp_path / "in.txt.gz", "wb") as packed:
        packed.write(lines.read_bytes())

    expected = objects(robustly("predict", finished, lines).stdout)
    assert [answer["label"] for answer in expected] == predictor.predict(texts)
    for answer, scores in zip(expected, predictor.probabilities(texts), strict=True):
        assert answer["scores"] == pytest.approx(scores, abs=1e-6)
        assert [*answer["scores"].values()] == sorted(answer["scores"].values(), reverse=True)
        assert next(iter(answer["scores"])) == answer["label"]
        assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-5)

    for name in ("in.jsonl", "in.csv", "in.txt.gz"):
        assert objects(robustly("predict", finished, tmp_path / name).stdout) == expected

    done = robustly("predict", finished, lines, tmp_path / "in.csv", "--top", 2)
    assert [answer["label"] for answer in objects(done.stdout)] == [
        answer["label"] for answer in [*expected, *expected]
    ]
    assert {len(answer["scores"]) for answer in objects(done.stdout)} == {2}
    assert "42 answers" in done.stderr

    kept = robustly("predict", finished, tmp_path / "in.jsonl", "--keep", "id")
    assert [answer["input"] for answer in objects(kept.stdout)] == [{"id": n} for n in range(21)]


def test_an_input_that_is_longer_than_the_delta_reads(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("abcd\n" + "abcd" * 20 + "\n")
    done = robustly("predict", finished, tmp_path / "in.txt")
    short, long = objects(done.stdout)
    assert "tokens_cut" not in short and long["tokens_cut"] == 80 - (40 - 2)  # a byte is a token
    assert "warning: 1 of 2 inputs are longer than the delta reads" in done.stderr


def test_a_base_in_half_precision(place: Path, finished: Path, predictor: Predictor) -> None:
    half = delta.load(Base.load(place / "base", torch.bfloat16), finished)
    texts = texts_of(place)
    found = objects(
        robustly("predict", finished, place / "test.jsonl", "--precision", "bf16").stdout
    )
    assert [answer["label"] for answer in found] == half.predict(texts)
    first = [answer["scores"]["early"] for answer in found]
    exact = [scores["early"] for scores in predictor.probabilities(texts)]
    assert first == pytest.approx(exact, abs=0.05) and first != pytest.approx(exact, abs=1e-5)
    done = robustly("score", finished, place / "test.jsonl", "--precision", "half", code=2)
    assert "--precision half: expected one of fp32, bf16, fp16" in done.stderr


def test_none_of_these(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "in.txt"
    file.write_text("abcabcabcab\nwxyzwxyzwxyz\najwm\n")
    plain = objects(robustly("predict", finished, file).stdout)
    best = sorted(max(answer["scores"].values()) for answer in plain)
    bound = (best[0] + best[1]) / 2
    done = robustly("predict", finished, file, "--min-score", bound)
    for answer, without in zip(objects(done.stdout), plain, strict=True):
        sure = max(answer["scores"].values()) >= bound
        assert answer == without | {"label": without["label"] if sure else None}

    assert "3 answers, 1 of them none of the labels" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "line", "fault"),
    [
        ("x.txt", "abc\n\nabc\n", "line 2", "'text' (delta.task.text): empty"),
        ("x.txt", "abc\n \t\nabc\n", "line 2", "empty"),
        ("x.jsonl", '{"text": "abc"}\n\n{"text": " "}\n', "line 3", "empty"),
        ("x.jsonl", '{"text": "abc"}\n{"txt": "abc"}\n', "line 2", "no key 'text'"),
        ("x.jsonl", '{"text": "abc"}\n{"text": 3}\n', "line 2", "expected a string, found int"),
        ("x.jsonl", '{"text": "abc"}\n{"text": "\\ud800"}\n', "line 2", "half of a surrogate"),
        ("x.jsonl", '{"text": "abc"}\n{"text": \n', "line 2", "not JSON"),
        ("x.csv", "id,text\n1,abc\n2,\n", "line 3", "empty"),
        ("x.csv", "id,text\n1,abc\n2,a,b\n", "line 3", "3 cells, but there are 2 columns"),
    ],
)
def test_a_row_without_an_input(
    finished: Path, tmp_path: Path, name: str, content: str, line: str, fault: str
) -> None:
    """It is refused as training refuses it, with its line, after the answers before it; or has an
    error in its place."""
    (tmp_path / name).write_text(content)
    done = robustly("predict", finished, tmp_path / name, code=2)
    assert [*objects(done.stdout)[0]] == ["label", "scores"] and len(objects(done.stdout)) == 1
    assert f"error: {tmp_path / name}: {line}" in done.stderr.replace("\n", "")
    assert fault in done.stderr

    rest = robustly("predict", finished, tmp_path / name, "--max-bad-lines", 1)
    passed = objects(rest.stdout)
    assert [*passed[1]] == ["error"] and f"{tmp_path / name}: {line}" in passed[1]["error"]
    assert all("label" in answer for answer in (passed[0], *passed[2:]))
    assert len(passed) == (3 if content.endswith("abc\n") and name == "x.txt" else 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.txt"], "no.txt: no such file"),
        (["."], ".: a folder"),
        (["no.doc", "--format", "docx"], "--format docx: expected one of txt, jsonl"),
        (["-", "-"], r"standard input (-) is given twice"),
        (["letters.yaml"], "expected .txt, .jsonl"),
        (["test.jsonl", "--keep", "nr"], "test.jsonl: line 1: no key 'nr' (--keep)"),
        (["test.jsonl", "--base", "nowhere"], "its base, nowhere, is not there"),
        (["test.jsonl", "--base", "other"], "on other weights it would mean nothing"),
    ],
)
def test_mistakes(
    place: Path,
    finished: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    done = robustly("predict", finished, *arguments, code=2)
    assert message in done.stderr and not done.stdout


def test_a_folder_that_is_no_delta(place: Path) -> None:
    assert "no finished delta stage here" in robustly("predict", place, code=2).stderr


# -------------------------------------------------------------------------------------- its input


class Pipe:
    """Standard input that is written to while it is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        reader, writer = os.pipe()
        self.writer = os.fdopen(writer, "w")
        monkeypatch.setattr("sys.stdin", os.fdopen(reader))

    def send(self, text: str) -> None:
        self.writer.write(text)
        self.writer.flush()


def test_standard_input_is_answered_as_it_comes(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer is there before the second input is written."""
    pipe = Pipe(monkeypatch)
    found = answers(predictor, read(["-"]), Options(slow=True))
    for text in ("abcd", "wxyz"):
        pipe.send(f"{text}\n")
        assert next(found)["label"] == predictor.predict([text])[0]

    pipe.writer.close()
    assert list(found) == []


@pytest.mark.parametrize(
    ("content", "format", "expected"),
    [
        ("a b\n{c\n", None, ["a b", "{c"]),
        ('{"text": "a"}\r\n{"text": "b"}\r\n', None, [{"text": "a"}, {"text": "b"}]),
        ("{a}\n{b}\n", "txt", ["{a}", "{b}"]),
        ('\ufeff{"text": "a"}', None, [{"text": "a"}]),
        ('text,n\n"a\nb",1\nc,2\n', "csv", [{"text": "a\nb", "n": "1"}, {"text": "c", "n": "2"}]),
        ("text\tn\na\t1\n", "tsv", [{"text": "a", "n": "1"}]),
        ("", None, []),
    ],
)
def test_what_standard_input_is(
    content: str, format: str | None, expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipe(monkeypatch)
    pipe.send(content)
    pipe.writer.close()
    assert [row.row for row in read(["-"], format)] == expected


def test_windows_are_whole_unless_the_next_item_is_late() -> None:
    assert list(windows(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    go_on = threading.Event()

    def slowly() -> Iterator[int]:
        yield from range(4)
        assert go_on.wait(timeout=60)
        yield 4
        raise UserError("the end")

    found = windows(slowly(), 3, slow=True)
    assert [next(found), next(found)] == [[0, 1, 2], [3]]
    go_on.set()
    assert next(found) == [4]
    with pytest.raises(UserError, match="the end"):
        next(found)


def test_the_memory_is_that_of_a_window(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows without an end: answers begin, in their order, after a window of them."""
    monkeypatch.setattr(answering, "WINDOW", 8)
    taken = []

    def endless() -> Iterator[Given]:
        while True:
            taken.append("abcd"[: len(taken) % 4 + 1] * 3)
            yield Given(taken[-1], lambda: "")

    found = answers(predictor, endless(), Options())
    some = [next(found)["label"] for _ in range(20)]
    assert len(taken) == 24 and some == predictor.predict(taken[:20])


# -------------------------------------------------------------------------------------- every kind


def test_tags_have_spans(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = untrained(base, "tokens", ("B-city", "I-city", "O"))
    marks = {"New": "B-city", "York": "I-city", "Oslo": "B-city"}

    def by_word(self: Predictor, examples: Any, advance: Any) -> Any:
        from robustly.delta.predictor import Answer

        def of(word: str) -> dict[str, float]:
            tag = marks.get(word, "O")
            return {each: 0.8 if each == tag else 0.1 for each in self.labels}

        return [
            Answer(tuple(marks.get(w, "O") for w in each.texts), [of(w) for w in each.texts])
            for each in examples
        ]

    monkeypatch.setattr(Predictor, "answer", by_word)
    line = "from  New York to Oslo"
    row = {"words": line.split()}
    (found, same) = answers(predictor, given(line, row), Options())
    assert found["tags"] == ["O", "B-city", "I-city", "O", "B-city"]
    assert found["spans"] == [
        {"label": "city", "text": "New York", "start": 1, "end": 3, "score": 0.8, "characters": [6, 14]},
        {"label": "city", "text": "Oslo", "start": 4, "end": 5, "score": 0.8, "characters": [18, 22]},
    ]  # fmt: skip
    for span in found["spans"]:
        first, last = span.pop("characters")
        assert line[first:last] == span["text"]

    assert same == found  # of words there are no characters
    (none,) = answers(predictor, given(row), Options(Wanted(min_score=0.9)))
    assert none == {"tags": ["O"] * 5, "spans": []}
    with pytest.raises(UserError, match="--top 2: a word has one tag"):
        next(answers(predictor, given(row), Options(Wanted(top=2))))


def test_numbers_and_choices_and_pairs(base: Base) -> None:
    regression = untrained(base, "regression", (), text_pair="other")
    row = {"text": "abc", "other": "def"}
    (found,) = answers(regression, given(row), Options())
    assert found == {"label": pytest.approx(regression.predict([("abc", "def")])[0], abs=1e-6)}
    assert regression.probabilities([("abc", "def")]) == [None]
    with pytest.raises(
        UserError, match="row 1: a line of text; expected an object with 'text', 'other'"
    ):
        next(answers(regression, given("abc"), Options()))
    with pytest.raises(UserError, match="--min-score: a number is not more or less probable"):
        next(answers(regression, given(row), Options(Wanted(min_score=0.5))))
    with pytest.raises(UserError, match="--top 1: answers to regression are no labels"):
        next(answers(regression, given(row), Options(Wanted(top=1))))

    choice = untrained(base, "multiple_choice", ())
    row = {"text": "abc", "choices": ["d", "e", "fg"]}
    (found,) = answers(choice, given(row), Options())
    best = choice.predict([("abc", row["choices"])])[0]
    assert (found["answer"], found["choice"]) == (best, row["choices"][best])
    assert found["scores"] == pytest.approx(
        choice.probabilities([("abc", row["choices"])])[0], abs=1e-6
    )
    assert max(found["scores"]) == found["scores"][best]
    (none,) = answers(choice, given(row), Options(Wanted(min_score=1)))
    assert (none["answer"], none["choice"]) == (None, None)


def test_several_labels_and_spans(base: Base) -> None:
    several = untrained(base, "multi_label", LABELS)
    (scores,) = several.probabilities(["abc"])
    (found,) = answers(several, given("abc"), Options())
    assert found["label"] == [label for label in LABELS if scores[label] >= 0.5]
    assert found["scores"] == pytest.approx(scores, abs=1e-6)
    (none,) = answers(several, given("abc"), Options(Wanted(min_score=1)))
    assert none == found | {"label": []}

    spans = untrained(base, "span_qa", ())
    row = {"question": "abc", "context": "def ghi jkl"}
    (found,) = answers(spans, given(row), Options(Wanted(top=3)))
    assert found["answer"] == next(iter(found["scores"])) == spans.predict([tuple(row.values())])[0]
    assert found["answer"] in row["context"] and len(found["scores"]) == 3
    with pytest.raises(UserError, match="expected an object with 'question', 'context'"):
        next(answers(spans, given("abc"), Options()))


# -------------------------------------------------------------------------------------- from Python


def test_what_python_refuses(predictor: Predictor) -> None:
    """A text alone would be answered letter by letter; blank texts are refused as in training."""
    for call in (predictor.predict, predictor.probabilities, predictor.logits):
        for alone in ("some text", b"some text", {"text": "some text"}):
            with pytest.raises(UserError, match=r"expected a list of inputs, found .*some text"):
                call(alone)  # type: ignore[operator]

        with pytest.raises(UserError, match=r"input 1 \(the first is 0\): blank: ' \\n'"):
            call(["abc", " \n"])  # type: ignore[operator]
        with pytest.raises(UserError, match=r"input 0 \(the first is 0\): expected a text"):
            call([3])  # type: ignore[operator]

    assert predictor.predict(iter(["abc"])) == predictor.predict(("abc",))
    assert predictor.predict([]) == predictor.probabilities([]) == []


# -------------------------------------------------------------------------------------- score


def test_score_says_what_the_test_file_gave(place: Path, finished: Path) -> None:
    scores = json.loads((finished / "scores.json").read_text())
    done = robustly("score", finished, place / "test.jsonl", "--json")
    found = json.loads(done.stdout)
    assert found["scores"] == pytest.approx(scores["seeds"][0]["scores"])
    assert found["labels"] == scores["by_label"] and found["examples"] == 90
    assert "accuracy" in done.stderr and "early" in done.stderr and "recall" in done.stderr


def test_a_label_that_the_delta_does_not_know(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(
        '{"text": "abc", "label": "early"}\n{"text": "abd", "label": "never"}\n'
    )
    message = robustly("score", finished, tmp_path / "x.jsonl", code=2).stderr
    assert "x.jsonl: line 2: the delta does not know the label 'never'" in message.replace("\n", "")
    assert "early, late, middle" in message


def test_predictions_lie_beside_the_scores(
    place: Path, finished: Path, predictor: Predictor
) -> None:
    found = objects((finished / "predictions.jsonl").read_text())
    rows = objects((place / "test.jsonl").read_text())
    assert [each["line"] for each in found] == list(range(1, 91))
    assert [each["expected"] for each in found] == [row["label"] for row in rows]
    assert [each["label"] for each in found] == predictor.predict([row["text"] for row in rows])
    scores = json.loads((finished / "scores.json").read_text())
    right = sum(each["label"] == each["expected"] for each in found)
    assert right / 90 == pytest.approx(scores["seeds"][0]["scores"]["accuracy"])
    assert "predictions.jsonl" in json.loads((finished / "manifest.json").read_text())["outputs"]


# -------------------------------------------------------------------------------------- merge


def test_merge_leaves_a_plain_folder(
    place: Path, finished: Path, predictor: Predictor, tmp_path: Path
) -> None:
    into = tmp_path / "merged"
    done = robustly("merge", finished, "--into", into, "--json")
    facts = json.loads(done.stdout)
    assert facts["max_logit_difference"] < 1e-5 and facts["folder"] == str(into)
    texts = texts_of(place)[:8]
    model = AutoModelForSequenceClassification.from_pretrained(into).eval()
    assert torch.equal(
        model.classifier.out_proj.weight, merge(predictor.model).classifier.out_proj.weight
    )
    tokenizer = AutoTokenizer.from_pretrained(into)
    assert tokenizer.model_max_length == predictor.head.longest == 40
    for text, expected in zip(texts, predictor.logits(texts), strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        assert torch.allclose(logits, expected, atol=1e-5)

    classify = pipeline("text-classification", model=str(into), truncation=True)
    found = [each["label"] for each in classify([*texts, "abc" * 40])]
    assert found == predictor.predict([*texts, "abc" * 40])
    card = (into / "README.md").read_text()
    exec(card.split("```python\n")[1].split("```")[0].replace('"merged"', repr(str(into))), {})
    assert str(place) not in card

    refused = robustly("merge", finished, "--into", into, code=2)
    assert "is there already" in refused.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"merged"}


def test_what_cannot_be_merged(place: Path, tmp_path: Path) -> None:
    keys = [
        f"paths.published={place / 'base'}",
        f"paths.delta={tmp_path / 'delta'}",
        "delta.seeds=1",
    ]
    methods = "delta.methods=[{name: adapter, size: 2}]"
    make_delta(load_delta(place / "letters.yaml", [*keys, "optim.epochs=0.1", methods]))
    done = robustly("merge", tmp_path / "delta", "--into", tmp_path / "merged", code=2)
    assert "adapter: cannot be merged" in done.stderr and not (tmp_path / "merged").exists()


def test_a_merge_that_fails_its_proof_leaves_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(model: Any) -> Any:
        plain = merge(model)
        plain.classifier.out_proj.bias.data += 0.01
        return plain

    monkeypatch.setattr("robustly.delta.publishing.merged.merge", damaged)
    done = robustly("merge", finished, "--into", tmp_path / "merged", code=1)
    assert "gives other logits, by up to 0.01" in done.stderr.replace("\n", "")
    assert list(tmp_path.iterdir()) == []
