"""Opening checkpoints of every kind, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_checkpoints import byte_level, config, model, ours, unigram, word_piece
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    FNetConfig,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaForSequenceClassification,
)

from robustly import UserError
from robustly.evaluation.model import MaskedLM, open_masked_lm
from robustly.manifest import Stage
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary

CPU = torch.device("cpu")
TEXTS = [
    "The children  played in\n\nthe garden. ",
    "Mädchen 日本 🙂, 1234!",
    "<mask> is </s> text",
    "x",
    " ",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ours(tmp_path_factory.mktemp("ours"))


@pytest.mark.parametrize("make", [byte_level, unigram])
def test_any_fast_tokenizer_serves(make: Callable[[Path], Path], tmp_path: Path) -> None:
    lm = open_masked_lm(make(tmp_path), CPU)
    # ours reads byte-level ones out of tokenizer.json
    assert (lm.tokenizer is None) == (make is unigram)
    slow = MaskedLM(lm.model, lm.hf_tokenizer, None).encode(TEXTS)
    assert [one.ids.tolist() for one in lm.encode(TEXTS)] == [one.ids.tolist() for one in slow]
    assert lm.special.mask == lm.hf_tokenizer.convert_tokens_to_ids("<mask>") and lm.longest == 40

    for text, encoded in zip(TEXTS, lm.encode(TEXTS), strict=True):
        assert len(encoded.ids) == len(encoded.bytes)
        if make is byte_level:  # names of special tokens are plain text
            assert not set(encoded.ids.tolist()) & {
                lm.special.bos,
                lm.special.eos,
                lm.special.mask,
            }

        assert (encoded.bytes >= 0).all()
        # white space at the very end may belong to no token
        assert len(text.rstrip().encode()) <= encoded.bytes.sum() <= len(text.encode())


def test_the_fast_encoder_and_transformers_agree(checkpoint: Path) -> None:
    lm = open_masked_lm(checkpoint, CPU)
    assert lm.tokenizer is not None
    slow = MaskedLM(lm.model, lm.hf_tokenizer, None)

    for text, one, other in zip(TEXTS, lm.encode(TEXTS), slow.encode(TEXTS), strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.bytes.sum() == other.bytes.sum() == len(text.encode())
        if text.isascii():
            assert one.bytes.tolist() == other.bytes.tolist()

    _, with_umlaut, *_ = lm.encode(TEXTS)
    pieces = [lm.tokenizer.decode_bytes([number]) for number in with_umlaut.ids.tolist()]
    assert with_umlaut.bytes.tolist() == [len(piece) for piece in pieces]


def test_a_space_that_is_put_before_a_text_is_none_of_its_bytes(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "prefixed"
    shutil.copytree(checkpoint, folder)
    rewrite(folder / "tokenizer_config.json", add_prefix_space=True)
    file = folder / "tokenizer.json"
    rewrite(
        file,
        pre_tokenizer={**json.loads(file.read_text())["pre_tokenizer"], "add_prefix_space": True},
    )
    lm = open_masked_lm(folder, CPU)
    slow = MaskedLM(lm.model, lm.hf_tokenizer, None)
    for each in (lm, slow):
        (encoded,) = each.encode(["the"])
        assert lm.hf_tokenizer.convert_ids_to_tokens(encoded.ids.tolist()) == ["Ġthe"]
        assert encoded.bytes.tolist() == [3]


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_tokenizer_that_does_more_than_its_merges_say_is_not_replaced(tmp_path: Path) -> None:
    folder = byte_level(tmp_path)
    rewrite(folder / "tokenizer.json", normalizer={"type": "Lowercase"})
    lm = open_masked_lm(folder, CPU)
    assert lm.tokenizer is None
    upper, lower = lm.encode(["THE", "the"])
    assert upper.ids.tolist() == lower.ids.tolist() and upper.bytes.sum() == 3


def test_further_special_tokens_are_read_as_tokens(tmp_path: Path) -> None:
    """As the model's own tokenizer reads them; its control tokens stay text."""
    folder = word_piece(tmp_path, BertConfig)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENT]"]})
    tokenizer.save_pretrained(folder)
    bert = AutoModelForMaskedLM.from_pretrained(folder)
    bert.resize_token_embeddings(len(tokenizer))
    bert.save_pretrained(folder)
    lm = open_masked_lm(folder, CPU)
    texts = ["the [ENT] in the house", "the house", "the [MASK] in [SEP]"]
    first, second, third = lm.encode(texts)
    for text, found in zip(texts[:2], (first, second), strict=True):
        assert found.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert found.bytes.sum() == len(text)

    assert tokenizer.convert_tokens_to_ids("[ENT]") in first.ids
    assert not {lm.special.mask, lm.special.eos} & set(third.ids.tolist())


def test_ours_is_taken_where_it_reads_further_special_tokens_alike(tmp_path: Path) -> None:
    vocabulary = lay_out([("t", "h"), ("th", "e")], ["[ENT]"])
    model(len(vocabulary.ids)).save_pretrained(tmp_path)
    save_vocabulary(vocabulary, tmp_path)
    lm = open_masked_lm(tmp_path, CPU)
    text = "the [ENT] in the[ENT] house"
    (found,) = lm.encode([text])
    assert lm.tokenizer and found.ids.tolist().count(vocabulary.ids["[ENT]"]) == 2
    assert found.ids.tolist() == lm.hf_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert found.bytes.sum() == len(text)

    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"][str(vocabulary.ids["[ENT]"])]["lstrip"] = True
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    lm = open_masked_lm(tmp_path, CPU)  # to transformers it takes a space that it leaves to us
    assert lm.tokenizer is None
    assert lm.encode([text])[0].ids.size == found.ids.size - 1


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as fault:
        open_masked_lm(folder, CPU)
    assert str(folder) in str(fault.value)
    return str(fault.value)


def test_no_folder_and_no_model(tmp_path: Path) -> None:
    assert "Nothing is downloaded" in refusal(tmp_path / "roberta-base")
    assert "no model here (no config.json)" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "its weights are not there" in refusal(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert "cannot be opened as a masked language model" in refusal(tmp_path)


def with_model(checkpoint: Path, folder: Path, other: Any) -> Path:
    """The checkpoint with another model in the place of its own."""
    shutil.copytree(
        checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json")
    )
    other.save_pretrained(folder)
    return folder


def test_a_head_that_is_missing_is_not_made_up(checkpoint: Path, tmp_path: Path) -> None:
    lm = open_masked_lm(checkpoint, CPU)
    size = lm.special.size
    for name, other in (
        ("classifier", RobertaForSequenceClassification(config(size))),
        ("encoder", model(size).roberta),
    ):
        message = refusal(with_model(checkpoint, tmp_path / name, other))
        assert "6 of the model's tensors are missing (lm_head.bias" in message
        assert "not an encoder alone" in message


def test_models_of_other_kinds(checkpoint: Path, tmp_path: Path) -> None:
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_layer=1, n_embd=8, n_head=1))
    assert "model_type = 'gpt2'; expected a masked language model" in refusal(
        with_model(checkpoint, tmp_path / "gpt", gpt)
    )
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    bart = BartForConditionalGeneration(BartConfig(vocab_size=300, **small))
    message = refusal(with_model(checkpoint, tmp_path / "bart", bart))
    assert "BartForConditionalGeneration cannot be evaluated here" in message
    # it mixes positions without regard to padding
    fnet = word_piece(tmp_path / "fnet", FNetConfig)
    assert "its scores of an input beside a longer one are others" in refusal(fnet)


def test_tokenizers_that_do_not_serve(checkpoint: Path, tmp_path: Path) -> None:
    small = with_model(checkpoint, tmp_path / "small", model(100))
    assert "do not belong together" in refusal(small)
    maskless = byte_level(tmp_path / "maskless")

    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (maskless / name).exists():
            settings = json.loads((maskless / name).read_text())
            (maskless / name).write_text(
                json.dumps({k: v for k, v in settings.items() if k != "mask_token"})
            )

    assert "no mask token" in refusal(maskless)
    (maskless / "tokenizer.json").unlink()
    assert "tokenizer" in refusal(maskless)


def test_cut_off_weights_and_unfinished_folders(checkpoint: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(checkpoint, cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors: cannot be read" in refusal(cut)
    with Stage(cut, "published", {}, {}).begin():
        assert "no finished published stage" in refusal(cut)


def test_bytes_of_a_text_of_nothing(tmp_path: Path) -> None:
    (empty,) = open_masked_lm(unigram(tmp_path), CPU).encode([""])
    assert (
        empty.ids.dtype == empty.bytes.dtype == np.int64 and empty.ids.size == empty.bytes.size == 0
    )
