"""Loss of a folder's model on text files and its accuracy on minimal pairs."""

import gzip
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from small_checkpoints import model, ours, unigram
from transformers import RobertaForMaskedLM

from robustly import UserError
from robustly.evaluation.cutting import TextOptions
from robustly.evaluation.evaluate import evaluate_folder
from robustly.evaluation.minimal_pairs import read_pairs
from robustly.evaluation.scoring import standard_error
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary

PROSE = [f"The {animal} number {n} went into the garden and saw the other one." for n in range(12) for animal in
         ("cat", "dog", "very old grey horse, which had not eaten since the day before yesterday,")]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ours(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.txt, b.jsonl.gz and pairs.jsonl."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a.txt").write_text("\n\n".join(PROSE), encoding="utf-8")
    with gzip.open(folder / "b.jsonl.gz", "wt") as out:
        out.writelines(json.dumps({"text": text[::-1]}) + "\n" for text in PROSE[:10])

    pairs = [
        {
            "sentence_good": "The cats run.",
            "sentence_bad": "The cats runs.",
            "linguistics_term": "verbs",
            "UID": "v",
        },
        {
            "sentence_good": "The dogs run.",
            "sentence_bad": "The dogs runs.",
            "linguistics_term": "verbs",
            "UID": "w",
        },
        {"sentence_good": "These cats.", "sentence_bad": "This cats.", "linguistics_term": "nouns"},
        {"sentence_good": "It is so.", "sentence_bad": "It is so."},
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n\n")
    return folder


def on_text(
    checkpoint: Path,
    *texts: Path | str,
    length: int | None = None,
    batch_size: int = 4,
    **more: Any,
) -> Any:
    options = TextOptions(block_length=length)
    return evaluate_folder(
        checkpoint, [str(text) for text in texts], [], options, batch_size, **more
    )["text"]


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one == pytest.approx(other, rel=1e-5)


def test_files_are_scored_alike_in_any_batch_order_and_company(
    checkpoint: Path, place: Path
) -> None:
    a, b = place / "a.txt", place / "b.jsonl.gz"
    both = on_text(checkpoint, a, b)
    assert both["cut"]["block_length"] == 40 and list(both["files"]) == [str(a), str(b)]
    turned = on_text(checkpoint, b, a, batch_size=64)
    assert list(turned["files"]) == [str(b), str(a)]
    alone = on_text(checkpoint, b, batch_size=1)
    for path in (a, b):
        assert_close(both["files"][str(path)], turned["files"][str(path)])

    assert_close(alone["total"], both["files"][str(b)])


def test_the_figures_count_everything(checkpoint: Path, place: Path) -> None:
    total = on_text(checkpoint, place / "a.txt")["total"]
    assert total["documents"] == len(PROSE)
    assert total["bytes"] == sum(len(text.encode()) for text in PROSE)
    # every token of every document is a candidate: 15% of them in the mean
    assert total["masked_tokens"] == pytest.approx(0.15 * total["tokens"], rel=0.05)
    assert total["bits"] == pytest.approx(total["loss"] / math.log(2))
    shorter = on_text(checkpoint, place / "a.txt", length=12)
    assert shorter["cut"]["block_length"] == 12 and shorter["total"]["tokens"] == total["tokens"]
    assert shorter["total"]["loss"] != pytest.approx(total["loss"], rel=1e-4)


def test_a_model_that_knows_nothing(tmp_path: Path, place: Path) -> None:
    """All 261 entries are equally likely to it, and each stands for one byte."""
    blank = model(261)
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()

    blank.save_pretrained(tmp_path)
    save_vocabulary(lay_out([]), tmp_path)
    total = on_text(tmp_path, place / "a.txt")["total"]
    assert total["perplexity"] == pytest.approx(261, rel=1e-4)
    assert total["bits_per_byte"] == pytest.approx(math.log2(261), rel=1e-5)
    assert total["loss_standard_error"] == pytest.approx(0, abs=1e-6)


def test_sentencepiece_vocabularies(tmp_path: Path, place: Path) -> None:
    total = on_text(unigram(tmp_path), place / "a.txt")["total"]
    assert total["documents"] == len(PROSE) and total["loss"] > 0
    longer_tokens = total["bits"] / total["bits_per_byte"]  # bytes per masked token
    assert 1 < longer_tokens < 8


def test_the_standard_error_is_that_of_a_mean_of_units() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert standard_error(values, np.ones(30)) == pytest.approx(stats.sem(values))
    assert standard_error(values * 7, np.full(30, 7.0)) == pytest.approx(stats.sem(values))
    assert standard_error(values[:1], np.ones(1)) is None


def test_the_standard_error_is_the_spread_of_the_ratio() -> None:
    """Documents of unequal length, whose tokens hang together: over many draws, the ratio varies as
    it says."""
    draw = np.random.default_rng(1)
    ratios, errors = [], []

    for _ in range(2000):
        weights = draw.integers(1, 20, 80).astype(float)
        sums = weights * draw.normal(5, 1, 80)
        ratios.append(sums.sum() / weights.sum())
        errors.append(standard_error(sums, weights))

    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.06)


# ------------------------------------------------------------------------------------ minimal pairs


def log_likelihood(checkpoint: Path, text: str) -> float:
    """The pseudo-log-likelihood by a loop over the tokens, with transformers alone."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(checkpoint)
    roberta = RobertaForMaskedLM.from_pretrained(checkpoint).eval()
    ids = tokens(text, return_tensors="pt")["input_ids"]
    total = 0.0

    for position in range(1, ids.shape[1] - 1):
        masked = ids.clone()
        masked[0, position] = tokens.mask_token_id
        with torch.no_grad():
            total += float(roberta(masked).logits.log_softmax(-1)[0, position, ids[0, position]])

    return total


def test_minimal_pairs(checkpoint: Path, place: Path) -> None:
    report = evaluate_folder(checkpoint, [], [place / "pairs.jsonl"], batch_size=5)
    assert "text" not in report
    pairs = report["minimal_pairs"]
    scores = pairs["scores"]

    for row in scores[:3]:
        assert row["good"] == pytest.approx(
            log_likelihood(checkpoint, row["sentence_good"]), rel=1e-5
        )
        assert row["bad"] == pytest.approx(
            log_likelihood(checkpoint, row["sentence_bad"]), rel=1e-5
        )
        assert row["point"] == float(row["good"] > row["bad"])

    assert scores[3]["point"] == 0.5  # a tie
    points = [row["point"] for row in scores]
    assert (pairs["pairs"], pairs["accuracy"]) == (4, np.mean(points))
    assert pairs["standard_error"] == pytest.approx(stats.sem(points))
    verbs = pairs["groups"]["linguistics_term"]["verbs"]
    assert (verbs["pairs"], verbs["accuracy"]) == (2, np.mean(points[:2]))
    assert pairs["groups"]["linguistics_term"]["nouns"] == {
        "pairs": 1, "accuracy": points[2], "standard_error": None,
    }  # fmt: skip
    assert list(pairs["groups"]["UID"]) == ["v", "w"]
    assert [row["line"] for row in scores] == [1, 2, 3, 4]


def test_the_bundled_pairs_are_well_formed() -> None:
    bundled = Path(__file__).resolve().parents[3] / "data_prep" / "corpora" / "minimal_pairs.jsonl"
    pairs = read_pairs(bundled)
    assert len(pairs) >= 40
    assert len(
        {pair.sentence_good for pair in pairs} | {pair.sentence_bad for pair in pairs}
    ) == 2 * len(pairs)
    assert {"linguistics_term", "UID"} == set.intersection(*({*pair.groups} for pair in pairs))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"sentence_good": "A."}',
            "line 1: no key 'sentence_bad'; the keys here: 'sentence_good'",
        ),
        (b'\n{"sentence_good": "A.", "sentence_bad"', "line 2: not JSON"),
        (b"[" * 100_000, "line 1: not JSON that can be read: nested too deeply"),
        (b'["A.", "B."]', "line 1: expected a JSON object, found list"),
        (
            b'{"sentence_good": "A.", "sentence_bad": " "}',
            "line 1: 'sentence_bad': expected a sentence",
        ),
        (
            b'{"sentence_good": "A.", "sentence_bad": 3}',
            "line 1: 'sentence_bad': expected a sentence, found 3",
        ),
        (b'{"sentence_good": "\xe4", "sentence_bad": "B."}', "line 1: not UTF-8 (byte 0xe4)"),
        (
            b'{"sentence_good": "\\ud800", "sentence_bad": "B."}',
            "line 1: 'sentence_good': half of a surrogate pair",
        ),
        (b"\n \n", "no pair in it"),
    ],
)
def test_faulty_pairs(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as fault:
        read_pairs(path)
    assert str(fault.value).startswith(f"{path}: {message}")


def test_a_sentence_that_is_too_long(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    fits, too_long = "x" * 38, "x" * 39
    path.write_text(json.dumps({"sentence_good": fits, "sentence_bad": "y"}))
    evaluate_folder(checkpoint, [], [path])
    path.write_text("\n" + json.dumps({"sentence_good": too_long, "sentence_bad": "y"}))
    with pytest.raises(UserError, match=r"pairs.jsonl: line 2: a sentence of 41 tokens.*takes 40"):
        evaluate_folder(checkpoint, [], [path])


# ----------------------------------------------------------------------------------------- mistakes


def refusal(checkpoint: Path, *texts: Path, **more: Any) -> str:
    with pytest.raises(UserError) as fault:
        on_text(checkpoint, *texts, **more)
    assert "corpus." not in str(fault.value)  # the command has no page
    return str(fault.value)


def test_faulty_texts(checkpoint: Path, place: Path, tmp_path: Path) -> None:
    assert (
        "--text: " in (message := refusal(checkpoint, tmp_path / "none*.txt"))
        and "no file there" in message
    )
    odd = tmp_path / "page.pdf"
    odd.write_text("x")
    assert "unknown kind of file" in refusal(checkpoint, odd)
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert refusal(checkpoint, place / "a.txt", empty).startswith(f"{empty}: empty")
    empty.write_text(" \n\n")
    assert refusal(checkpoint, place / "a.txt", empty).startswith(f"{empty}: no document")
    empty.write_bytes(b"caf\xe9")
    assert "not UTF-8" in refusal(checkpoint, empty)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "' + "good " * 100 + '"}\n{"text": \n')
    message = refusal(checkpoint, rows)
    assert "rows.jsonl: line 2" in message and "raise --max-bad-lines" in message
    assert on_text(checkpoint, rows, max_bad_lines=1)["total"]["documents"] == 1
    rows.write_text('{"body": "x"}\n')
    assert "--text-key" in refusal(checkpoint, rows)
    rows.write_text('{"text": " "}\n{"text": "\\n"}\n')
    assert "more than white space to the tokenizer" in refusal(checkpoint, rows)
    short = tmp_path / "short.txt"
    short.write_text("x")
    assert "no token of it was masked" in refusal(checkpoint, short)


def test_faulty_options(checkpoint: Path, place: Path) -> None:
    text = place / "a.txt"
    assert "--documents page: expected one of blank_line, file, line" in refusal(
        checkpoint, text, documents="page"
    )


def test_relative_paths_are_looked_up_in_the_working_directory(
    checkpoint: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    found = on_text(checkpoint, "*.txt", "a.txt")
    assert list(found["files"]) == [os.fspath(place / "a.txt")]
