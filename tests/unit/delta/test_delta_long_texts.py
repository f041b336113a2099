"""Texts that are longer than an input: what inputs hold of them, how windows are pooled, and how much
is said to be cut."""

import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from transformers import RobertaConfig

from robustly import UserError
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.predictor import Predictor
from robustly.delta.stage import make_delta
from robustly.delta.storage import saving
from robustly.delta.tasks.config import Task
from robustly.delta.tasks.data import read
from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads import EncodedExample, TaskHead
from robustly.delta.tasks.heads.long_texts import (
    cut_counts,
    fitted,
    most_central,
    pooled,
    window_starts,
)
from robustly.delta.trials.compare import compare
from robustly.delta.trials.search import search
from robustly.delta.tuning.seeds import score
from robustly.manifest import Manifest
from robustly.pretrain.objective import new_model
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary

MakeConfig = Callable[..., DeltaExperiment]
LONGEST = 40
"""Tokens of an input of the base."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A letter is a token, but for two words of a cloze."""
    folder = tmp_path_factory.mktemp("base")
    save_vocabulary(lay_out([("Ġ", "y"), ("Ġ", "w")]), folder)
    config = RobertaConfig(
        vocab_size=263, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=LONGEST + 2, type_vocab_size=1, initializer_range=0.3,
    )  # fmt: skip
    new_model(config, 1).save_pretrained(folder)
    return Base.load(folder)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 12))
def test_windows_are_full_few_and_at_equal_distances(size: int, window: int, most: int) -> None:
    starts = window_starts(size, window, most)
    covered = {token for start in starts for token in range(start, min(size, start + window))}
    assert starts[0] == 0 and len(starts) == min(most, max(1, -(-size // window)))
    assert len(covered) == min(size, len(starts) * window)
    if len(starts) > 1:
        assert starts[-1] == size - window
        steps = [after - before for before, after in itertools.pairwise(starts)]
        assert max(steps) - min(steps) <= 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=2),
    st.integers(2, 30),
    st.sampled_from(["cut", "head_tail", "windows"]),
    st.integers(1, 5),
)
def test_what_inputs_hold_and_what_is_lost(
    sizes: list[int], room: int, long: Any, most: int
) -> None:
    texts = [[1000 * place + token for token in range(size)] for place, size in enumerate(sizes)]
    found = fitted(texts, room, long, most)
    held = {token for parts in found.inputs for part in parts for token in part}
    assert found.lost == sum(sizes) - len(held)
    for parts in found.inputs:
        assert len(parts) == len(texts) and sum(map(len, parts)) <= room
        assert all(part == sorted(part) for part in parts)
        if sum(sizes) >= room:
            assert sum(map(len, parts)) == room  # every input is full

    if sum(sizes) <= room:
        assert found == ([texts], 0)
    if long == "windows" and len(texts) == 1 and sizes[0] <= most * room:
        assert not found.lost
    if long != "windows":
        assert len(found.inputs) == 1


def test_the_first_128_and_the_last_382_of_510() -> None:
    text = list(range(2000))
    (((only,)), lost) = fitted([text], 510, "head_tail", 1)
    assert only == [text[:128] + text[-382:]] and lost == 2000 - 510


def test_the_shorter_text_of_a_pair_stands_in_every_window() -> None:
    question, passage = [7, 8, 9], list(range(100, 140))
    found = fitted([question, passage], 13, "windows", 9)
    assert [first for first, _ in found.inputs] == [question] * 4 and not found.lost
    assert [second for _, second in found.inputs] == [
        passage[start : start + 10] for start in (0, 10, 20, 30)
    ]
    assert fitted([passage, question], 13, "windows", 9).inputs == [
        [second, first] for first, second in found.inputs
    ]


def test_the_window_that_shows_most_around_a_word() -> None:
    starts = [0, 6, 12]
    assert [most_central(place, starts, 8) for place in (0, 5, 6, 7, 12, 13, 19)] == [
        (0, 0), (0, 5), (0, 6), (1, 1), (1, 6), (2, 1), (2, 7),
    ]  # fmt: skip
    assert most_central(8, [0, 12], 8) is None


@pytest.mark.parametrize(("pool", "of"), [("mean", torch.mean), ("max", torch.amax)])
def test_logits_of_windows_are_pooled(pool: Any, of: Any) -> None:
    scores = torch.randn(6, 3, requires_grad=True)
    found = pooled(scores, [1, 3, 2], pool)
    expected = [scores[:1], scores[1:4], scores[4:]]
    assert torch.equal(found, torch.stack([of(part, 0) for part in expected]))
    (gradient,) = torch.autograd.grad(found.sum(), scores)
    assert gradient.sum().item() == pytest.approx(9)
    assert pooled(scores, [1] * 6, pool) is scores


# --------------------------------------------------------------------------------------------- kinds


def examples(draw: random.Random) -> dict[str, list[Example]]:
    """Of each kind, one that fits and two that do not. A byte is a token here."""

    def text(size: int) -> str:
        return "".join(draw.choices("abcdefghij ", k=size - 1)) + "x"

    sizes = [(5, 4), (60, 9), (150, 70)]
    return {
        "classification": [Example((text(a),), "x") for a, _ in sizes],
        "regression": [Example((text(a), text(b)), 0.5) for a, b in sizes],
        "cloze": [Example((text(a),), "x") for a, _ in sizes],
        "multiple_choice": [
            Example((text(a),), 1, choices=(text(b), text(b // 2))) for a, b in sizes
        ],
        "tokens": [
            Example(tuple(text(3).replace(" ", "y") for _ in range(a // 3)), ("O",) * (a // 3))
            for a, _ in sizes
        ],
    }


KEYS: dict[str, dict[str, Any]] = {
    "classification": {},
    "regression": {"text_pair": "other"},
    "cloze": {"template": "{text} so<mask>.", "words": {"x": "y", "z": "w"}},
    "multiple_choice": {},
    "tokens": {},
}
LABELS = {"classification": ("x", "z"), "cloze": ("x", "z"), "tokens": ("B-k", "I-k", "O")}


def predictor(base: Base, kind: str, **keys: Any) -> Predictor:
    words = {"kind": kind, "train": "a.jsonl", "test": "b.jsonl", **KEYS[kind], **keys}
    task = TypeAdapter[Any](Task).validate_python(words)
    return Predictor.attached(base, task, LABELS.get(kind, ()), [{"name": "head"}], seed=1)


def answers(predictor: Predictor, examples: list[Example]) -> list[Any]:
    return predictor.head.answers(predictor.logits_of(examples), predictor.head.encode(examples))


@pytest.mark.parametrize("kind", KEYS)
def test_an_example_that_fits_is_encoded_as_before(base: Base, kind: str) -> None:
    draw = random.Random(1)
    short = examples(draw)[kind][:1]
    one, *others = (
        predictor(base, kind, long=long).head.encode(short)
        for long in ("cut", "windows", "head_tail")[: 2 if kind == "tokens" else 3]
    )
    assert all(other == one for other in others) and one[0].lost == 0 < one[0].tokens


@pytest.mark.parametrize("kind", KEYS)
def test_windows_hold_every_token_and_a_row_has_one_answer(base: Base, kind: str) -> None:
    made = examples(random.Random(2))[kind]
    whole = predictor(base, kind, long="windows")
    rows, cut = whole.head.encode(made), predictor(base, kind).head.encode(made)
    assert [row.tokens for row in rows] == [row.tokens for row in cut]
    assert not rows[0].lost and [row.lost > 0 for row in cut] == [False, True, True]
    if kind not in ("regression", "multiple_choice"):  # of a long pair the shorter text is cut
        assert not any(row.lost for row in rows)
    assert [len(row.ids) for row in rows] == [sum(row.windows) for row in rows]
    assert len(rows[2].ids) > len(rows[1].ids) > len(rows[0].ids)
    assert all(len(ids) <= LONGEST for row in rows for ids in row.ids)
    assert len(answers(whole, made)) == 3


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("kind", [kind for kind in KEYS if kind != "tokens"])
def test_logits_are_those_of_the_windows_alone_pooled(base: Base, kind: str, pool: str) -> None:
    """The same in training and in answering: each window answered as a text of its own."""
    made = examples(random.Random(3))[kind]
    whole = predictor(base, kind, long="windows", pool=pool)
    head, model = whole.head, whole.model
    rows = head.encode(made)
    found = whole.logits_of(made)
    with torch.no_grad():
        together = head.logits(model, head.batch(rows, model.device), rows)
        for row, logits, trained in zip(rows, found, together, strict=True):
            alone = [score_of(head, model, ids) for ids in row.ids]
            parts = torch.stack(alone).split(list(row.windows))
            each = [part.mean(0) if pool == "mean" else part.amax(0) for part in parts]
            expected = torch.cat(each).flatten()
            assert torch.allclose(logits.flatten()[: len(expected)], expected, atol=1e-5)
            assert torch.allclose(trained.flatten()[: len(expected)], expected, atol=1e-5)


def score_of(head: TaskHead, model: Any, ids: list[int]) -> torch.Tensor:
    """The model's own logits of one input."""
    given = torch.tensor([ids])
    if head.kind == "choice":
        return model(input_ids=given[None]).logits[0]
    logits = model(input_ids=given).logits[0]
    if head.kind == "masked_lm":
        place = ids.index(head.tokenizer.mask_id)
        words = [head.tokenizer.vocabulary.ids[word] for word in ("Ġy", "Ġw")]
        return logits[place, words]
    return logits


def test_every_word_of_a_long_text_has_the_tag_of_its_own_window(base: Base) -> None:
    made = examples(random.Random(4))["tokens"]
    whole = predictor(base, "tokens", long="windows")
    head, model = whole.head, whole.model
    for row, logits in zip(head.encode(made), whole.logits_of(made), strict=True):
        with torch.no_grad():
            each = [model(input_ids=torch.tensor([ids])).logits[0] for ids in row.ids]
        for word, first in zip(logits, row.firsts, strict=False):
            assert first is not None
            assert torch.allclose(word, each[first[0]][first[1]], atol=1e-5)

    tags = answers(whole, made)
    assert [len(each) for each in tags] == [len(each.texts) for each in made]


def test_a_loss_of_windows_reaches_all_of_them(base: Base) -> None:
    whole = predictor(base, "classification", long="windows")
    rows = whole.head.encode(examples(random.Random(5))["classification"][2:])
    batch = whole.head.batch(rows, whole.model.device)
    embedded = whole.model.roberta.embeddings.word_embeddings(batch["input_ids"]).detach()
    embedded.requires_grad_()
    inputs = {"inputs_embeds": embedded, "attention_mask": batch["attention_mask"]}
    whole.head.loss(whole.head.logits(whole.model, inputs, rows), rows).backward()
    assert embedded.grad is not None and len(embedded) == 4
    assert all(each.abs().max() > 0 for each in embedded.grad)


def test_long_texts_are_scored_in_batches_of_bounded_size(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of windows is no larger than one of short texts, unless one text has more."""
    made = examples(random.Random(6))["classification"] * 20
    whole = predictor(base, "classification", long="windows")
    sizes = []
    batch = TaskHead.batch

    def counted(self: Any, rows: Any, device: Any) -> Any:
        sizes.append(sum(len(row.ids) for row in rows))
        return batch(self, rows, device)

    monkeypatch.setattr(TaskHead, "batch", counted)
    assert len(whole.logits_of(made)) == 60
    assert max(sizes) <= 32 and sum(sizes) == sum(len(r.ids) for r in whole.head.encode(made))


# ---------------------------------------------------------------------------------------- what is said


def test_how_much_is_cut() -> None:
    rows = [EncodedExample(([0, 2],), tokens=10), EncodedExample(([0, 2],), tokens=30, lost=15)]
    assert cut_counts(rows) == (2, 1, 15 / 40)
    assert str(cut_counts(rows)) == "1 of 2 texts, 37.5% of all tokens"
    assert cut_counts([]) == (0, 0, 0.0)


def write_long_task(folder: Path) -> None:
    """What tells the labels apart stands at the end of texts of about 110 letters."""
    draw = random.Random(7)
    for part, lines in (("train", 80), ("test", 60)):
        rows = []
        for number in range(lines):
            label = ("early", "late")[number % 2]
            start = "".join(draw.choices("mnop", k=draw.randint(70, 90)))
            end = "".join(draw.choices({"early": "abcd", "late": "wxyz"}[label], k=28))
            rows.append(json.dumps({"text": f"{part[1]}{start}{end}", "label": label}))
        (folder / f"{part}.jsonl").write_text("\n".join(rows) + "\n")


@pytest.fixture
def make_long(make_config: MakeConfig, tmp_path: Path) -> MakeConfig:
    write_long_task(tmp_path)
    files = [f"delta.task.{part}={tmp_path / part}.jsonl" for part in ("train", "test")]

    def make(*changes: str) -> DeltaExperiment:
        return make_config(
            *files,
            *("delta.task.examples=null", "delta.seeds=1", "optim.epochs=8", "optim.batch_size=8"),
            *changes,
        )

    return make


def test_header_manifest_result_and_card_say_what_is_cut(
    make_long: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = make_delta(make_long("optim.epochs=0.1"))
    said = " ".join(capsys.readouterr().err.split())
    assert "80 of 80 texts" in said and "60 of 60 texts" in said
    assert "delta.task.long" in said
    counts = manifest.counts
    assert (counts["training_texts_cut"], counts["test_texts_cut"]) == (80, 60)
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    sizes = [len(row["text"]) for row in rows]  # a letter is a token
    share = sum(size - 38 for size in sizes) / sum(sizes)
    assert counts["test_tokens_cut"] == pytest.approx(share, abs=1e-4)
    card = (tmp_path / "deltas" / "letters" / "README.md").read_text()
    assert "60 of 60 texts" in card and f"{share:.1%}" in card


@pytest.mark.parametrize("work", [compare, search])
def test_a_comparison_and_a_search_say_it_too(
    work: Callable[[DeltaExperiment], Manifest],
    make_long: MakeConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work(
        make_long(
            "optim.epochs=0.1",
            "delta.task.dev=0.2",
            "compare.entries=[{methods: [head]}]",
            "search.trials=1",
        )
    )
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"texts cut: training (\d+) of \1 texts.*; dev (\d+) of \2 texts", said)


def test_nothing_is_said_to_be_cut_where_nothing_is(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = make_delta(make_config("delta.seeds=1", "optim.epochs=0.1"))
    said = " ".join(capsys.readouterr().err.split())
    assert "texts cut" not in said and "windows" not in said
    assert manifest.counts["test_texts_cut"] == 0 == manifest.counts["test_tokens_cut"]


def test_what_stands_at_the_end_is_learnt_from_windows(
    make_long: MakeConfig, tmp_path: Path
) -> None:
    """Cut texts hold nothing to learn from; windows and ends do, and a reload answers the same."""
    accuracy = {}
    for long in ("cut", "head_tail"):
        config = make_long(f"delta.task.long={long}")
        (tuned,) = score(Base.load(config.base), config, read(config.delta.task))
        accuracy[long] = tuned.scores["accuracy"]

    windows = make_long("delta.task.long=windows", "name=windows")
    accuracy["windows"] = make_delta(windows).counts["accuracy"]
    assert accuracy["cut"] < 0.75 < 0.9 < min(accuracy["head_tail"], accuracy["windows"])
    reloaded = saving.load(make_long().base, tmp_path / "deltas" / "windows")
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    answers = reloaded.predict([row["text"] for row in rows])
    right = sum(answer == row["label"] for answer, row in zip(answers, rows, strict=True))
    assert right / len(rows) == pytest.approx(accuracy["windows"])


def test_a_length_beyond_the_model_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"max_length = 41: .*base has positions for 40 tokens"):
        make_delta(make_config("delta.task.max_length=41"))


def test_an_older_delta_states_more_tokens_than_its_base_has(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config("delta.seeds=1", "optim.epochs=0.1")
    make_delta(config)
    folder = tmp_path / "deltas" / "letters"
    record = saving.read_record(folder)
    record.task["max_length"] = 512
    for key in ("long", "pool", "max_windows"):
        del record.task[key]
    saving.write_json(folder / saving.RECORD, saving.sealed(saving.asdict(record)))
    assert saving.reload(Base.load(config.base), folder).head.longest == 40


@pytest.mark.parametrize("name", ["long=middle", "pool=sum", "max_windows=0"])
def test_what_is_no_way_with_long_texts(make_config: MakeConfig, name: str) -> None:
    with pytest.raises(UserError, match=name.partition("=")[0]):
        make_config(f"delta.task.{name}")
