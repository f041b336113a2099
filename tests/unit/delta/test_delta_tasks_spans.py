"""Questions about a context: windows and tokens against transformers' own tokenizer, the loss
against its model, answers against all spans one by one."""

import dataclasses
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from transformers import RobertaConfig, RobertaForQuestionAnswering, RobertaTokenizerFast

from robustly.delta.tasks.config import Task
from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads import TaskHead, task_head
from robustly.tokenizer.merges import train_merges
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary
from robustly.tokenizer.words import split_words

TEXT = "Anna lives in Zürich – not in “Paris”, 東京 or Łódź. The cat sat on the mat ; who saw it ? "
LONGEST = 24
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder: Path = tmp_path_factory.mktemp("vocabulary")
    merges = train_merges(Counter(split_words(TEXT * 3)).items(), 120, 1).merges
    vocabulary = lay_out(merges)
    save_vocabulary(vocabulary, folder)
    return SimpleNamespace(
        tokenizer=Tokenizer(vocabulary), reference=RobertaTokenizerFast.from_pretrained(folder)
    )


def make(place: SimpleNamespace, longest: int = LONGEST, **keys: Any) -> TaskHead:
    config = {"kind": "span_qa", "train": "a.jsonl", "test": "b.jsonl", **keys}
    return task_head(
        TypeAdapter(Task).validate_python(config),
        (),
        place.tokenizer,
        longest,
        place.tokenizer.vocab_size,
    )


def contexts(draw: random.Random, count: int) -> list[str]:
    words = TEXT.split()
    return [" ".join(draw.choices(words, k=draw.randint(2, 40))) for _ in range(count)]


@pytest.mark.parametrize("stride", [1, 4, 7])
def test_windows_and_spans_are_those_of_transformers(place: SimpleNamespace, stride: int) -> None:
    head = make(place, stride=stride)
    for context in contexts(random.Random(stride), 20):
        (row,) = head.encode([Example(("who ?", context))])
        expected = place.reference(
            "who ?", context, truncation="only_second", max_length=LONGEST, stride=stride,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        assert list(row.ids) == expected["input_ids"] and row.target is None
        for number, passage in enumerate(row.passages):
            within = [i for i, part in enumerate(expected.sequence_ids(number)) if part == 1]
            assert passage.first == within[0] and len(passage.spans) == len(within)
            for (begin, end), at in zip(passage.spans, within, strict=True):
                start, until = expected["offset_mapping"][number][at]
                # theirs leave the space before a word out
                assert context[begin:end].strip() == context[start:until].strip()


def test_where_an_answer_is_in_each_window(place: SimpleNamespace) -> None:
    """Its tokens cover it, and no token less does; a window that has not all of it points at
    <s>."""
    draw = random.Random(5)
    head = make(place, stride=6)
    whole = 0
    for context in contexts(draw, 60):
        start = draw.randrange(len(context))
        end = draw.randint(start + 1, min(len(context), start + 12))
        answer = context[start:end]
        if not answer.strip():
            continue

        (row,) = head.encode([Example(("who ?", context), ((answer, start),))])
        for (first, last), passage in zip(row.target, row.passages, strict=True):
            shown = [place for begin, until in passage.spans for place in range(begin, until)]
            if not set(range(start, end)) <= set(shown):
                assert (first, last) == (0, 0)
                continue

            whole += 1
            spans = passage.spans[first - passage.first : last + 1 - passage.first]
            assert spans[0][0] <= start < spans[0][1] and spans[-1][0] < end <= spans[-1][1]

    assert whole > 50


def test_the_loss_is_that_of_transformers_model(place: SimpleNamespace) -> None:
    """In windows without padding; of no answer it is that of <s>."""
    head = make(place, stride=4, no_answer=True)
    examples = [
        Example(("who ?", " ".join(["Anna lives in Paris"] * 12)), (("Paris", 14),)),
        Example(("who ?", " ".join(["who saw the cat"] * 12)), ()),
    ]
    rows = head.encode(examples)
    rows = [
        type(row)(
            tuple(ids for ids in row.ids if len(ids) == LONGEST),
            [t for t, ids in zip(row.target, row.ids, strict=True) if len(ids) == LONGEST],
            context=row.context,
            passages=tuple(p for p, ids in zip(row.passages, row.ids, strict=True) if len(ids) == LONGEST),
        )
        for row in rows
    ]  # fmt: skip
    targets = [ends for row in rows for ends in row.target]
    assert (0, 0) in targets and len(set(targets)) > 1 and len(rows[0].ids) > 1
    torch.manual_seed(1)
    config = RobertaConfig(
        vocab_size=place.tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=LONGEST + 2, initializer_range=0.5, num_labels=2,
        pad_token_id=place.tokenizer.pad_id,
    )  # fmt: skip
    model = RobertaForQuestionAnswering(config).eval()
    batch = head.batch(rows, CPU)
    starts, ends = torch.tensor(targets).unbind(1)
    with torch.no_grad():
        expected = model(**batch, start_positions=starts, end_positions=ends).loss
        logits = head.logits(model, batch, rows)
        assert head.loss(logits, rows).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_best_answer_of_all_spans(place: SimpleNamespace) -> None:
    """By trying each beginning with each end in each window."""
    draw = random.Random(7)
    for context in contexts(draw, 15):
        for longest in (1, 3, 30):
            head = make(place, stride=4, longest_answer=longest)
            (row,) = head.encode([Example(("who ?", context))])
            torch.manual_seed(draw.randrange(1000))
            logits = torch.randn(len(row.ids) + 1, LONGEST, 2)  # a window of another row is padding
            scored = {
                (
                    float(
                        logits[number, passage.first + i, 0] + logits[number, passage.first + j, 1]
                    ),
                    context[begin : passage.spans[j][1]].strip(),
                )
                for number, passage in enumerate(row.passages)
                for i, (begin, _) in enumerate(passage.spans)
                for j in range(i, min(i + longest, len(passage.spans)))
            }
            best = max((score, text) for score, text in scored if text)
            assert head.answers([logits], [row]) == [best[1]]
            (found,) = head.probabilities([logits], [row]) or []
            assert next(iter(found)) == best[1] and "" not in found
            assert sum(found.values()) == pytest.approx(1)


def test_no_answer_is_one_if_there_may_be_none(place: SimpleNamespace) -> None:
    """By the least of the windows' scores of <s>: one window that holds the answer is enough."""
    context = " ".join(["Anna lives in Paris"] * 4)
    rows = make(place, stride=4).encode([Example(("who ?", context))])
    logits = torch.full((len(rows[0].ids), LONGEST, 2), -5.0)
    logits[:, 0] = 9.0
    logits[1, rows[0].passages[1].first] = 1.0
    with_none, without = make(place, no_answer=True), make(place)
    assert with_none.answers([logits], rows) == [""]
    assert without.answers([logits], rows) != [""]
    logits[1, 0] = 0.5
    assert with_none.answers([logits], rows) == without.answers([logits], rows)
    (found,) = with_none.probabilities([logits], rows) or []
    best = without.answers([logits], rows)[0]
    assert found[""] / found[best] == pytest.approx(torch.tensor(-1.0).exp().item())


def test_a_long_question_leaves_room_to_the_context(place: SimpleNamespace) -> None:
    (row,) = make(place).encode([Example(("who saw it ? " * 20, "Anna lives in Paris"))])
    assert len(row.passages[0].spans) == 5 and max(map(len, row.ids)) <= LONGEST


def test_a_context_in_another_normal_form(place: SimpleNamespace) -> None:
    """A vocabulary in NFC: answers are cut out of the text that was encoded."""
    nfc = Tokenizer(dataclasses.replace(place.tokenizer.vocabulary, nfc=True))
    head = make(SimpleNamespace(tokenizer=nfc))
    context = "Łódź Zu\u0308rich o\u0308 Paris"  # u and a diaeresis
    start = context.index("Paris")
    (row,) = head.encode([Example(("where ?", context), (("Paris", start),))])
    ((first, last),) = row.target
    spans = row.passages[0].spans
    begin, end = spans[first - row.passages[0].first][0], spans[last - row.passages[0].first][1]
    assert row.context[begin:end].strip() == "Paris" and "Zürich" in row.context
