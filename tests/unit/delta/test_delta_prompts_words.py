"""Prompts that start as words: a text, as peft does it, and training examples."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PromptEmbedding, PromptTuningConfig
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from robustly import UserError, delta
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.stage import make_delta
from robustly.delta.storage.saving import read_record, reload
from robustly.delta.tasks.data import TaskData, draw
from robustly.delta.tasks.examples import Example
from robustly.delta.tuning.seeds import attached
from robustly.delta.wording import verbalized

TEXT = "classify the request:"


def rows_of(model: PreTrainedModel) -> Tensor:
    rows: Tensor = model.base_model.embeddings.word_embeddings.rows().detach()
    return rows


def words_of(base: Base, text: str) -> Tensor:
    ids = base.tokenizer.encode_documents([text])[0]
    return base.model.base_model.embeddings.word_embeddings.weight[ids.tolist()]


def test_a_text_as_peft_has_it(place: Path) -> None:
    """Its tokens' rows, over again until the prompt is full. Special tokens, which peft adds at each
    end, are left out: they stand where a text begins and ends."""
    model = AutoModelForSequenceClassification.from_pretrained(place / "base", num_labels=2)
    settings = PromptTuningConfig(
        num_virtual_tokens=2 * (len(TEXT) + 2),  # a token for each letter, <s>, </s>
        token_dim=32,
        num_transformer_submodules=1,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=TEXT,
        tokenizer_name_or_path=str(place / "base"),
    )
    words = model.roberta.embeddings.word_embeddings
    theirs = PromptEmbedding(settings, words).embedding.weight
    special = words.weight[[0, 2]]
    theirs = torch.stack([row for row in theirs if not (row == special).all(dim=1).any()])
    assert len(theirs) == 2 * len(TEXT)
    method = {"name": "prompt", "tokens": len(theirs) - 5, "start": TEXT}
    delta.attach(model, method, tokenizer=AutoTokenizer.from_pretrained(place / "base"))
    assert torch.equal(rows_of(model), theirs[:-5])


def test_whatever_the_seed_and_the_tokenizers_maker(place: Path, base: Base) -> None:
    method = {"name": "prompt", "tokens": 25, "start": TEXT}
    tokenizers = (AutoTokenizer.from_pretrained(place / "base"), base.tokenizer)
    for seed, tokenizer in enumerate(tokenizers):
        model = delta.attach(base.with_head("sequence", 2, 1), method, seed, tokenizer)
        assert torch.equal(rows_of(model)[: len(TEXT)], words_of(base, TEXT))
        assert torch.equal(rows_of(model)[len(TEXT) :], words_of(base, TEXT)[: 25 - len(TEXT)])


def test_what_cannot_be(base: Base) -> None:
    def attach(start: str, tokenizer: object = base.tokenizer) -> None:
        method = {"name": "prompt", "tokens": 20, "start": start}
        delta.attach(base.with_head("sequence", 2, 1), method, 1, tokenizer)  # type: ignore[arg-type]

    with pytest.raises(UserError, match=r"'classify .* has 21 tokens, the prompt 20.*tokens: 21"):
        attach(TEXT)

    with pytest.raises(UserError, match="no tokenizer is known"):
        attach("a text", None)

    with pytest.raises(UserError, match="training examples are known to `robustly delta` alone"):
        attach("examples")

    for start in ("vocabluary", "", "  "):
        with pytest.raises(UserError, match="vocabulary, random, examples, or a text of several"):
            attach(start)


def test_examples_as_texts() -> None:
    """One of each label, then another of each."""
    drawn = [
        Example(("a", "b"), "x"),
        Example(("c",), "x"),
        Example(("d",), "y"),
        Example(("e", "f"), ("O", "B-z")),
        Example(("g",), 1, choices=("h", "i")),
        Example(("j", "k l"), (("l", 2),)),
        Example(("m",), 0.5),
    ]
    first = ["a b: x\n", "d: y\n", "e f: O B-z\n", "g: i\n", "j k l: l\n", "m: 0.5\n"]
    assert list(verbalized(drawn)) == [*first, "c: x\n"]


def test_a_delta_that_starts_as_words(
    make_config: Callable[..., DeltaExperiment], base: Base, data: TaskData
) -> None:
    """From the command's own task and tokenizer; what it started as is in its record, and is not
    needed to load it."""
    for start in (TEXT, "examples"):
        config = make_config(
            f"delta.methods=[{{name: prompt, tokens: 22, start: '{start}'}}]",
            "delta.seeds=1",
            "optim.epochs=0.3",
            f"name={start.split()[0]}",
        )
        text = TEXT
        if start == "examples":
            text = "".join(verbalized(draw(data, 60, 3)))

        begun = attached(base, config, data, 3).model
        assert torch.equal(rows_of(begun)[:21], words_of(base, text)[:21])
        make_delta(config)
        folder = config.folder("delta")
        assert read_record(folder).methods[0]["start"] == start
        assert not torch.equal(rows_of(reload(base, folder).model), rows_of(begun))
