"""Between examples and models: ids against transformers' own tokenizer, losses and answers against
counts by hand."""

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional
from transformers import (
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaTokenizerFast,
)

from robustly import UserError
from robustly.delta.tasks.config import Task
from robustly.delta.tasks.examples import Example
from robustly.delta.tasks.heads import EncodedExample, TaskHead, task_head
from robustly.delta.tasks.heads.long_texts import fitted
from robustly.tokenizer.merges import train_merges
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary
from robustly.tokenizer.words import split_words

TEXT = (
    """ It was great, it was terrible. The cat sat on the mat ; who saw the cat? Anna lives in Paris, Berlin and
London. No news is good news: all in all it was bad. "Quotes" (and brackets) came first."""
    * 3
)
LONGEST = 24
CPU = torch.device("cpu")
TAGS = ("B-LOC", "I-LOC", "O")
HEADS = {
    "sequence": RobertaForSequenceClassification,
    "tokens": RobertaForTokenClassification,
    "choice": RobertaForMultipleChoice,
    "spans": RobertaForQuestionAnswering,
    "masked_lm": RobertaForMaskedLM,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tokenizer, and what transformers makes of the same files."""
    folder: Path = tmp_path_factory.mktemp("vocabulary")
    merges = train_merges(Counter(split_words(TEXT)).items(), 150, 1).merges
    vocabulary = lay_out(merges, ["[ENT]"])
    save_vocabulary(vocabulary, folder)

    return SimpleNamespace(
        tokenizer=Tokenizer(vocabulary),
        reference=RobertaTokenizerFast.from_pretrained(folder),
        spaced=RobertaTokenizerFast.from_pretrained(folder, add_prefix_space=True),
    )


def make(
    place: SimpleNamespace,
    kind: str,
    labels: tuple[str, ...] = (),
    longest: int = LONGEST,
    **keys: Any,
) -> TaskHead:
    config = {"kind": kind, "train": "a.jsonl", "test": "b.jsonl", **keys}
    return task_head(
        TypeAdapter(Task).validate_python(config),
        labels,
        place.tokenizer,
        longest,
        place.tokenizer.vocab_size,
    )


def model(place: SimpleNamespace, head: TaskHead, labels: int | None = None) -> Any:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=place.tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=LONGEST + 2, type_vocab_size=1, initializer_range=0.5,
        pad_token_id=place.tokenizer.pad_id, num_labels=labels or head.outputs,
    )  # fmt: skip
    return HEADS[head.kind](config).eval()


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(split_words(TEXT), k=words)).strip()


# -------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("words", [(1, 1), (3, 40), (40, 3), (40, 40), (9, 11), (40, 9)])
@pytest.mark.parametrize("longest", [LONGEST, LONGEST + 1])
def test_texts_and_pairs_are_encoded_as_transformers_does(
    place: SimpleNamespace, words: tuple[int, int], longest: int
) -> None:
    draw = random.Random(str(words))
    pairs = [(text(draw, words[0]), text(draw, words[1])) for _ in range(5)]
    rows = make(place, "classification", ("x", "y"), longest).encode(
        [Example((first,), "x") for first, _ in pairs]
    )
    expected = place.reference([first for first, _ in pairs], truncation=True, max_length=longest)[
        "input_ids"
    ]
    assert [row.ids[0] for row in rows] == expected and {row.target for row in rows} == {0}
    rows = make(place, "regression", (), longest, text_pair="u").encode(
        [Example(pair, 2.5) for pair in pairs]
    )
    firsts, seconds = map(list, zip(*pairs, strict=True))
    expected = place.reference(firsts, seconds, truncation="longest_first", max_length=longest)[
        "input_ids"
    ]
    assert [row.ids[0] for row in rows] == expected and {row.target for row in rows} == {2.5}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(2, 14))
def test_the_longer_text_is_cut_first(first: int, second: int, room: int) -> None:
    """As if one token after the other were taken from the longer text, of equal ones from the
    first."""
    sizes = [first, second]
    while sum(sizes) > room:
        sizes[0 if sizes[0] >= sizes[1] else 1] -= 1

    (kept,), _ = fitted([list(range(first)), list(range(second))], room, "cut", 1)
    assert kept == [list(range(len(part))) for part in kept]  # at their ends
    assert sum(map(len, kept)) == sum(sizes)
    assert abs(len(kept[0]) - sizes[0]) <= 1  # the odd token
    assert min(map(len, kept)) == min(sizes)


def test_special_tokens_in_a_text_are_text(place: SimpleNamespace) -> None:
    head = make(
        place, "cloze", ("x", "y"), template="{text} <mask>", words={"x": "great", "y": "bad"}
    )
    (row,) = head.encode([Example(("a</s><mask><pad>",))])
    assert [
        row.ids[0].count(n)
        for n in (place.tokenizer.mask_id, place.tokenizer.eos_id, place.tokenizer.pad_id)
    ] == [
        1,
        1,
        0,
    ]


# -------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize("longest", [LONGEST, 9])
def test_words_are_encoded_as_transformers_does(place: SimpleNamespace, longest: int) -> None:
    draw = random.Random(3)
    texts = [
        tuple(draw.choices(["Paris", "terrible", "cat's", "O'Neill", "é", "[ENT]", "x[ENT]s"], k=k))
        for k in (1, 4, 9, 15)
    ]
    tags = [tuple(draw.choices(TAGS, k=len(words))) for words in texts]
    head = make(place, "tokens", TAGS, longest)
    rows = head.encode([Example(words, answer) for words, answer in zip(texts, tags, strict=True)])
    expected = place.spaced(
        [list(words) for words in texts],
        is_split_into_words=True,
        truncation=True,
        max_length=longest,
    )
    assert [row.ids[0] for row in rows] == expected["input_ids"]

    for number, row in enumerate(rows):
        seen = expected.word_ids(number)
        firsts = [i for i, word in enumerate(seen) if word is not None and word not in seen[:i]]
        assert [first and first[1] for first in row.firsts if first] == firsts
        assert len(row.firsts) == len(texts[number]) and None not in row.firsts[: len(firsts)]
        assert row.target == [TAGS.index(tag) for tag in tags[number]]

    assert any(None in row.firsts for row in rows)


def test_tags_are_learnt_at_first_pieces_alone(place: SimpleNamespace) -> None:
    head = make(place, "tokens", TAGS)
    rows = head.encode(
        [Example(("zebra", "in", "Paris"), ("O", "O", "B-LOC")), Example(("zebra",), ("B-LOC",))]
    )
    torch.manual_seed(1)
    logits = torch.randn(*head.batch(rows, CPU)["input_ids"].shape, 3, requires_grad=True)
    encoder = SimpleNamespace(logits=logits)
    loss = head.loss(head.logits(lambda **batch: encoder, {}, rows), rows)
    places = [(n, first[1]) for n, row in enumerate(rows) for first in row.firsts if first]
    by_hand = [
        -logits[at].log_softmax(-1)[tag] for at, tag in zip(places, (2, 2, 0, 0), strict=True)
    ]
    assert loss.item() == pytest.approx(torch.stack(by_hand).mean().item())
    loss.backward()
    assert logits.grad is not None
    assert {tuple(at) for at in logits.grad.abs().sum(-1).nonzero().tolist()} == set(places)


def test_words_that_are_cut_off_count_as_missed(place: SimpleNamespace) -> None:
    head = make(place, "tokens", TAGS, longest=8)
    example = Example(("in",) * 9, ("B-LOC",) * 9)
    (row,) = head.encode([example])
    assert row.firsts == (*((0, place) for place in range(1, 7)), *[None] * 3)
    logits = torch.zeros(1, 9, 3)
    logits[..., 0] = 1
    answers = head.answers(logits, [row])
    assert answers == [("B-LOC",) * 6 + ("O",) * 3]
    assert head.scores(answers, [example])["recall"] == pytest.approx(6 / 9)
    assert head.loss(logits, [row]).item() == pytest.approx(
        -torch.tensor([1.0, 0, 0]).log_softmax(0)[0].item()
    )


# ------------------------------------------------------------------------------------------ choices


def test_choices_are_encoded_as_transformers_does(place: SimpleNamespace) -> None:
    draw = random.Random(5)
    examples = [
        Example(
            (text(draw, size), text(draw, 3)),
            0,
            choices=tuple(text(draw, k) for k in (1, 2, 30)[:choices]),
        )
        for size, choices in ((4, 2), (40, 3), (7, 3))
    ]
    for pair in (None, "question"):
        rows = make(place, "multiple_choice", text_pair=pair).encode(
            [
                example if pair else Example(example.texts[:1], 0, choices=example.choices)
                for example in examples
            ]
        )
        for row, example in zip(rows, examples, strict=True):
            ends = [
                f"{example.texts[1]} {choice}" if pair else choice for choice in example.choices
            ]
            expected = place.reference(
                [example.texts[0]] * len(ends), ends, truncation="longest_first", max_length=LONGEST
            )
            assert list(row.ids) == expected["input_ids"]


def test_rows_with_fewer_choices(place: SimpleNamespace) -> None:
    """They have the loss and the answer that they have alone, whatever the places that they lack
    score."""
    head = make(place, "multiple_choice")
    rows = head.encode(
        [
            Example(("who saw",), 1, choices=("the cat", "Anna")),
            Example(("in",), 2, choices=("a", "b", "Paris")),
        ]
    )
    batch = head.batch(rows, CPU)
    assert batch["input_ids"].shape == (5, max(map(head.length, rows)))
    tuned = model(place, head)

    with torch.no_grad():
        logits = head.logits(tuned, batch, rows)
        alone = head.logits(tuned, head.batch(rows[:1], CPU), rows[:1])
        assert torch.allclose(logits[:1, :2], alone, atol=1e-5)
        assert head.loss(logits[:1], rows[:1]).item() == pytest.approx(
            head.loss(alone, rows[:1]).item(), rel=1e-4
        )

    logits = torch.tensor([[1.0, 2.0, 9.0], [1.0, 2.0, 9.0]])
    assert head.answers(logits, rows) == [1, 2]
    assert head.loss(logits[:1], rows[:1]).item() == pytest.approx(
        -torch.tensor([1.0, 2]).log_softmax(0)[1].item()
    )
    assert head.scores([1, 0], [Example(("",), 1), Example(("",), 2)]) == {"accuracy": 0.5}


# ------------------------------------------------------------------------------------------- clozes

WORDS = {"neg": "terrible", "pos": "great"}


def cloze(place: SimpleNamespace, template: str, longest: int = LONGEST, **keys: Any) -> TaskHead:
    return make(
        place, "cloze", ("neg", "pos"), longest, **{"template": template, "words": WORDS, **keys}
    )


@pytest.mark.parametrize(
    "template",
    [
        "{text} It was <mask>.",
        "It was <mask> : {text}",
        "<mask> news : {text}",
        "(The cat) {text} It was  <mask>",
    ],
)
def test_a_template_is_encoded_as_transformers_encodes_it_filled(
    place: SimpleNamespace, template: str
) -> None:
    texts = ["The cat sat on the mat", "Paris", "it was", "it was terrible."]
    rows = cloze(place, template).encode([Example((each,), "pos") for each in texts])
    assert [row.ids[0] for row in rows] == place.reference(
        [template.replace("{text}", each) for each in texts]
    )["input_ids"]
    assert {row.target for row in rows} == {1}


def test_the_template_is_never_cut(place: SimpleNamespace) -> None:
    head = cloze(place, "{text} ? <mask> , {text_pair}", text_pair="u")
    draw = random.Random(7)
    pairs = [
        (text(draw, first), text(draw, second))
        for first, second in ((40, 40), (2, 40), (40, 2), (2, 2))
    ]
    question, comma = (
        place.reference(f" {sign}", add_special_tokens=False)["input_ids"] for sign in "?,"
    )
    fixed = [*question, place.tokenizer.mask_id, *comma]

    for row, (first, second) in zip(
        head.encode([Example(pair) for pair in pairs]), pairs, strict=True
    ):
        whole = [
            place.reference(each, add_special_tokens=False)["input_ids"]
            for each in (first, f" {second}")
        ]
        (kept,), _ = fitted(whole, LONGEST - 2 - len(fixed), "cut", 1)
        assert row.ids[0] == [0, *kept[0], *fixed, *kept[1], 2]
        assert len(row.ids[0]) == min(LONGEST, sum(map(len, whole)) + len(fixed) + 2)


def test_pseudo_tokens_are_numbered_as_they_appear(place: SimpleNamespace) -> None:
    head = cloze(place, "{prompt:2} {text} {prompt} <mask> {prompt}")
    first = place.tokenizer.vocab_size
    (row,) = head.encode([Example(("Paris",))])
    (paris,) = place.tokenizer.encode_documents([" Paris"])
    assert row.ids[0] == [
        0,
        first,
        first + 1,
        *paris.tolist(),
        first + 2,
        place.tokenizer.mask_id,
        first + 3,
        2,
    ]
    assert head.prompt_tokens == 4 and head.outputs == first
    assert (
        cloze(place, "{text} <mask>").prompt_tokens == 0 == make(place, "regression").prompt_tokens
    )


def test_the_head_at_the_mask_over_the_words(place: SimpleNamespace) -> None:
    head = cloze(place, "{text} It was <mask>.")
    rows = head.encode([Example(("The cat sat on the mat",), "pos"), Example(("Paris",), "neg")])
    tuned = model(place, head)
    batch = head.batch(rows, CPU)
    with torch.no_grad():
        logits = head.logits(tuned, batch, rows)
        everything = tuned(**batch).logits

    ids = [
        place.tokenizer.encode_documents([f" {word}"])[0].item() for word in ("terrible", "great")
    ]
    for number, row in enumerate(rows):
        expected = everything[number, row.ids[0].index(place.tokenizer.mask_id), ids]
        assert torch.allclose(logits[number], expected, atol=1e-5)

    assert logits.shape == (2, 2)
    assert head.answers(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), rows) == ["pos", "neg"]


def test_a_word_of_several_tokens(place: SimpleNamespace) -> None:
    with pytest.raises(
        UserError, match=r"delta.task.words: pos: 'zoo' is \d tokens .*\(' ', 'z', 'o', 'o'\)"
    ):
        cloze(place, "{text} <mask>", words={"neg": "terrible", "pos": "zoo"})


def test_a_template_that_leaves_no_room(place: SimpleNamespace) -> None:
    assert cloze(place, "{text} {prompt:20} <mask>").prompt_tokens == 20
    with pytest.raises(UserError, match=r"delta.task.template: takes 24 of the 24 tokens"):
        cloze(place, "{text} {prompt:21} <mask>")
    with pytest.raises(UserError, match=r"delta.task.template: takes 23 of the 24 tokens"):
        cloze(place, "{text} {prompt:20} <mask> {text_pair}", text_pair="u")


# ---------------------------------------------------------------------------------- batches, losses


def kinds(place: SimpleNamespace) -> list[tuple[TaskHead, list[Example]]]:
    """Each kind with three examples of different lengths."""
    texts = ["Paris", "The cat sat on the mat", "it was"]
    return [
        (
            make(place, "classification", ("x", "y", "z")),
            [Example((t,), c) for t, c in zip(texts, "xzy", strict=True)],
        ),
        (
            make(place, "regression"),
            [Example((t,), n) for t, n in zip(texts, (1.0, -2.0, 0.5), strict=True)],
        ),
        (
            make(place, "tokens", TAGS),
            [Example(tuple(t.split()), ("B-LOC",) * len(t.split())) for t in texts],
        ),
        (
            make(place, "multiple_choice"),
            [Example((t,), 1, choices=("in", "Anna lives")) for t in texts],
        ),
        (cloze(place, "{text} It was <mask>."), [Example((t,), "neg") for t in texts]),
        (
            make(place, "multi_label", ("x", "y", "z")),
            [Example((t,), c) for t, c in zip(texts, (("x", "z"), (), ("y",)), strict=True)],
        ),
        (
            make(place, "span_qa", no_answer=True, stride=2),
            [
                Example(("who ?", "Anna lives in Paris ; " * 3), (("Paris", 14),)),
                Example(("where ?", "the cat sat"), (("the cat", 0), ("cat", 4))),
                Example(("in ?", "it was bad"), ()),
            ],
        ),
    ]


def test_padding_changes_nothing(place: SimpleNamespace) -> None:
    for head, examples in kinds(place):
        tuned, rows = model(place, head), head.encode(examples)
        with torch.no_grad():
            together = head.logits(tuned, head.batch(rows, CPU), rows)
            for number, row in enumerate(rows):
                alone = head.logits(tuned, head.batch([row], CPU), [row])[0]
                places = tuple(map(slice, alone.shape))
                assert torch.allclose(together[number][places], alone, atol=1e-4), head.task.kind
                if head.task.kind != "regression":
                    assert head.answers([together[number]], [row]) == head.answers([alone], [row])
                assert head.length(row) == head.batch([row], CPU)["input_ids"].shape[-1]

        assert len({head.length(row) for row in rows}) > 1


def test_every_kind_is_learnt_by_the_same_loop(place: SimpleNamespace) -> None:
    for head, examples in kinds(place):
        tuned, rows = model(place, head), head.encode(examples)
        optimizer = torch.optim.AdamW(tuned.parameters(), 3e-3)
        losses = []

        for _ in range(40):
            loss = head.loss(head.logits(tuned, head.batch(rows, CPU), rows), rows)
            assert loss.dtype == torch.float32 and loss.shape == ()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

        assert losses[-1] < 0.2 * losses[0], head.task.kind
        with torch.no_grad():
            answers = head.answers(head.logits(tuned, head.batch(rows, CPU), rows), rows)

        if head.task.kind == "regression":
            assert answers == pytest.approx([example.label for example in examples], abs=0.7)
        elif head.task.kind == "span_qa":
            assert answers == ["Paris", "the cat", ""]
        else:
            assert answers == [example.label for example in examples], head.task.kind


def test_losses_are_means_in_fp32(place: SimpleNamespace) -> None:
    rows = [
        EncodedExample(([0, 2],), 1),
        EncodedExample(([0, 2],), 0),
        EncodedExample(([0, 2],), 1),
    ]
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss = make(place, "classification", ("x", "y")).loss(logits, rows)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(
        functional.cross_entropy(logits.float(), torch.tensor([1, 0, 1])).item()
    )
    numbers = make(place, "regression").loss(torch.tensor([[1.0], [2.0], [4.0]]).bfloat16(), rows)
    assert numbers.dtype == torch.float32 and numbers.item() == pytest.approx((0 + 4 + 9) / 3)


def test_the_mean_loss_is_over_all_targets(place: SimpleNamespace) -> None:
    """Whatever the rows' own numbers of them: micro-batches of an update add up to it."""
    for head, examples in kinds(place):
        rows = head.encode(examples)
        with torch.no_grad():
            logits = head.logits(model(place, head), head.batch(rows, CPU), rows)

        losses = head.losses(logits, rows)
        assert losses.shape == (3,) and losses.dtype == torch.float32
        assert head.training(rows) == head
        parts = [head.loss(logits[i : i + 1], rows[i : i + 1]) for i in range(3)]
        weights = [head.targets([row]) for row in rows]
        mean = sum(p * w for p, w in zip(parts, weights, strict=True)) / sum(weights)
        assert head.loss(logits, rows).item() == pytest.approx(float(mean), rel=1e-5)


def test_class_weights_and_label_smoothing_as_torch_has_them(place: SimpleNamespace) -> None:
    """In the loss of training alone; a weighted mean."""
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    targets = [0, 2, 2, 1]
    rows = [EncodedExample(([0, 2],), target) for target in targets]
    weights = {"x": 3.0, "z": 0.5}
    head = make(
        place, "classification", ("x", "y", "z"), class_weights=weights, label_smoothing=0.1
    )
    reference = torch.nn.CrossEntropyLoss(torch.tensor([3.0, 1.0, 0.5]), label_smoothing=0.1)
    expected = reference(logits, torch.tensor(targets)).item()
    assert head.training(rows).loss(logits, rows).item() == pytest.approx(expected)
    plain = functional.cross_entropy(logits, torch.tensor(targets)).item()
    assert head.loss(logits, rows).item() == pytest.approx(plain)


def test_balanced_weights_as_scikit_learn_has_them(place: SimpleNamespace) -> None:
    targets = [0, 0, 0, 0, 1, 2]
    rows = [EncodedExample(([0, 2],), target) for target in targets]
    head = make(place, "classification", ("x", "y", "z"), class_weights="balanced").training(rows)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    assert head.weights == pytest.approx(expected.tolist())
    assert head.targets(rows) == pytest.approx(len(rows))
    assert head.training(rows[:5]).weights == pytest.approx((5 / 8, 5 / 2, 1.0))


def test_tags_have_weights(place: SimpleNamespace) -> None:
    head = make(place, "tokens", TAGS, class_weights="balanced", label_smoothing=0.2)
    rows = head.encode(
        [Example(("in", "Paris"), ("O", "B-LOC")), Example(("in", "the"), ("O", "O"))]
    )
    trained = head.training(rows)
    assert trained.weights == pytest.approx((2.0, 1.0, 2 / 3))
    logits = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(2))
    reference = torch.nn.CrossEntropyLoss(torch.tensor(trained.weights), label_smoothing=0.2)
    expected = reference(logits.flatten(0, 1), torch.tensor([2, 0, 2, 2])).item()
    assert trained.loss(logits, rows).item() == pytest.approx(expected)


def test_several_labels_are_learnt_one_by_one(place: SimpleNamespace) -> None:
    """The mean over rows and labels, as transformers has it; a weight is that of having a label."""
    rows = [
        EncodedExample(([0, 2],), each) for each in ([1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0])
    ]
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
    targets = torch.tensor([row.target for row in rows])
    head = make(
        place,
        "multi_label",
        ("x", "y"),
        class_weights="balanced",
        label_smoothing=0.2,
        threshold=0.7,
    )
    expected = torch.nn.BCEWithLogitsLoss()(logits, targets).item()
    assert head.loss(logits, rows).item() == pytest.approx(expected)
    trained = head.training(rows)
    assert trained.weights == pytest.approx((1 / 3, 3.0))
    weighted = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1 / 3, 3.0]))
    expected = weighted(logits, targets * 0.8 + 0.1).item()
    assert trained.loss(logits, rows).item() == pytest.approx(expected)
    scores = torch.tensor([[0.8, 0.9], [0.9, 0.8], [0.9, 0.9], [0.8, 0.8]])  # sigmoid: 0.69, 0.71
    assert head.answers(scores, rows) == [("y",), ("x",), ("x", "y"), ()]


def test_probabilities_of_each_kind(place: SimpleNamespace) -> None:
    """They are of each label, tag or choice, and the most probable one is the answer."""
    for head, examples in kinds(place):
        rows = head.encode(examples)
        with torch.no_grad():
            logits = head.logits(model(place, head), head.batch(rows, CPU), rows)

        found, answers = head.probabilities(logits, rows), head.answers(logits, rows)
        if head.task.kind == "regression":
            assert found is None
            continue

        assert found is not None and len(found) == len(rows)
        if head.task.kind == "tokens":
            found = [word for row in found for word in row]
            answers = [tag for row in answers for tag in row]
        if head.task.kind == "multi_label":
            assert [tuple(k for k, p in row.items() if p >= 0.5) for row in found] == answers
            continue

        for shares, answer in zip(found, answers, strict=True):
            named = dict(enumerate(shares)) if isinstance(shares, list) else shares
            assert sum(named.values()) == pytest.approx(1)
            assert max(named, key=named.__getitem__) == answer
            if head.task.kind != "span_qa":
                assert set(named) == (set(head.labels) or {0, 1})


def test_a_word_that_is_cut_off_has_no_probabilities(place: SimpleNamespace) -> None:
    head = make(place, "tokens", TAGS, longest=8)
    rows = head.encode([Example(("in",) * 7)])
    (found,) = head.probabilities(torch.zeros(1, 7, 3), rows) or ()
    assert found == [dict.fromkeys(TAGS, pytest.approx(1 / 3))] * 6 + [{}]


def test_what_each_kind_asks_of_a_base(place: SimpleNamespace) -> None:
    asked = {head.task.kind: (head.kind, head.outputs) for head, _ in kinds(place)}
    assert asked == {
        "classification": ("sequence", 3),
        "regression": ("sequence", 1),
        "tokens": ("tokens", 3),
        "multiple_choice": ("choice", 1),
        "cloze": ("masked_lm", place.tokenizer.vocab_size),
        "multi_label": ("sequence", 3),
        "span_qa": ("spans", 2),
    }


def test_inputs_without_answers_are_encoded_the_same(place: SimpleNamespace) -> None:
    for head, examples in kinds(place):
        bare = [Example(example.texts, choices=example.choices) for example in examples]
        rows = head.encode(bare)
        assert [row.ids for row in rows] == [row.ids for row in head.encode(examples)]
        assert {row.target for row in rows} == {None}
        assert head.encode([]) == []


def test_inputs_of_another_shape(place: SimpleNamespace) -> None:
    with pytest.raises(UserError, match="expected a question and its context, found 1"):
        make(place, "span_qa").encode([Example(("a",))])

    with pytest.raises(UserError, match="expected a text, found 2"):
        make(place, "classification", ("x", "y")).encode([Example(("a", "b"))])

    with pytest.raises(UserError, match="expected a pair of texts, found 1"):
        make(place, "regression", text_pair="u").encode([Example(("a",))])

    with pytest.raises(UserError, match="expected a pair of texts, found 1"):
        cloze(place, "{text} <mask> {text_pair}", text_pair="u").encode([Example(("a",))])

    with pytest.raises(UserError, match="found no choices"):
        make(place, "multiple_choice").encode([Example(("a",))])


def test_a_base_without_positions(place: SimpleNamespace) -> None:
    assert make(place, "regression", longest=8).longest == 8
    assert make(place, "regression", longest=100, max_length=50).longest == 50
    with pytest.raises(UserError, match="leaves 7 positions"):
        make(place, "regression", longest=7)
