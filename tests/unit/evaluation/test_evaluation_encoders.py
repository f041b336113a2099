"""Encoders of many kinds get the loss that plain transformers gives them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_checkpoints import word_piece
from transformers import (
    AlbertConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForNextSentencePrediction,
    BertForPreTraining,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ElectraForPreTraining,
    ModernBertConfig,
    NomicBertConfig,
    PreTrainedConfig,
    RoFormerConfig,
)

from robustly import UserError
from robustly.evaluation.cutting import TextOptions
from robustly.evaluation.evaluate import evaluate_folder
from robustly.evaluation.model import open_masked_lm
from robustly.pretrain.config import MaskingConfig
from robustly.pretrain.masking import (
    EVALUATION_EPOCH,
    EVALUATION_SEED,
    SpecialTokens,
    mask_blocks,
)

ENCODERS: list[tuple[type[PreTrainedConfig], dict[str, Any]]] = [
    (BertConfig, {}),
    (ModernBertConfig, {"local_attention": 8, "global_attn_every_n_layers": 2}),
    (DistilBertConfig, {"max_position_embeddings": 40, "initializer_range": 0.3}),
    (ElectraConfig, {"embedding_size": 16}),
    (DebertaV2Config, {"relative_attention": True, "position_biased_input": False}),
    (AlbertConfig, {"embedding_size": 16}),
    (RoFormerConfig, {}),
    (NomicBertConfig, {}),
]
DOCUMENTS = [
    "It began to rain.\n\n  The children were\tplaying in the garden. \n",
    "And they went into the house.",
    "Rain!\nThe garden, the house; the rain:\nchildren.",
] * 4


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return path


def plain_loss(folder: Path, rate: float) -> tuple[float, int]:
    """With transformers alone but for the choice of masks: each document, which fits into a block,
    by its lines; and the number of targets."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    blocks = [
        [
            tokenizer.cls_token_id,
            *(
                token
                for line in text.splitlines()
                if line.strip()
                for token in tokenizer(line.strip())["input_ids"][1:]  # with [SEP]
            ),
        ]
        for text in DOCUMENTS
    ]
    padded = tokenizer.pad({"input_ids": blocks}, return_tensors="np")
    ids, attention = padded["input_ids"], padded["attention_mask"]
    assert ids.shape[1] <= 40
    rule = MaskingConfig(probability=rate, mask=0.8, random=0.1, style="bert")
    names = tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id
    special = SpecialTokens(len(tokenizer), *names, tokenizer.mask_token_id)
    epoch, index = np.full(len(ids), EVALUATION_EPOCH), np.arange(len(ids))
    masked = mask_blocks(ids, attention.sum(1), epoch, index, rule, special, EVALUATION_SEED)
    labels = torch.from_numpy(np.where(masked.targets, ids, -100))
    with torch.no_grad():
        found = model(
            input_ids=torch.from_numpy(masked.inputs),
            attention_mask=torch.from_numpy(attention),
            labels=labels,
        )
    return float(found.loss), int(masked.targets.sum())


@pytest.mark.parametrize(("config", "changes"), ENCODERS)
def test_the_loss_is_that_of_plain_transformers(
    config: type[PreTrainedConfig], changes: dict[str, Any], text_file: Path, tmp_path: Path
) -> None:
    folder = word_piece(tmp_path, config, **changes)
    report = evaluate_folder(folder, [str(text_file)], [], TextOptions(mask_rate=0.4), 5)["text"]
    loss, targets = plain_loss(folder, 0.4)
    assert report["cut"]["unit"] == "line" and report["blocks"] == len(DOCUMENTS)
    assert report["total"]["masked_tokens"] == targets > 40
    assert report["total"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert 0.5 < report["total"]["bits"] / report["total"]["bits_per_byte"] < 8


@pytest.mark.parametrize(("config", "changes"), ENCODERS[:3])
def test_pseudo_log_likelihood(
    config: type[PreTrainedConfig], changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = word_piece(tmp_path / "model", config, **changes)
    pair = {"sentence_good": "The children went.", "sentence_bad": "The the rain into garden."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    (row,) = evaluate_folder(folder, [], [tmp_path / "pairs.jsonl"])["minimal_pairs"]["scores"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()

    for sentence, score in (("sentence_good", "good"), ("sentence_bad", "bad")):
        ids = tokenizer(pair[sentence], return_tensors="pt")["input_ids"]
        total = 0.0
        for position in range(1, ids.shape[1] - 1):
            masked = ids.clone()
            masked[0, position] = tokenizer.mask_token_id
            with torch.no_grad():
                scores = model(input_ids=masked).logits.log_softmax(-1)
            total += float(scores[0, position, ids[0, position]])
        assert row[score] == pytest.approx(total, rel=1e-5)


def test_lines_that_are_nothing_to_the_tokenizer(tmp_path: Path) -> None:
    """BERT's drops control characters: such a line is white space, and no empty unit, which would
    end the document."""
    folder = word_piece(tmp_path, BertConfig)
    text = "\u200b\nthe garden and the house\n\u0001\nthe rain"
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (tmp_path / "plain.txt").write_text("the garden and the house\nthe rain")
    found, plain = (
        evaluate_folder(folder, [str(tmp_path / name)], [], TextOptions(mask_rate=0.5))["text"]
        for name in ("text.jsonl", "plain.txt")
    )
    assert found["blocks"] == plain["blocks"] == 1
    assert found["total"]["loss"] == plain["total"]["loss"]
    assert found["total"]["bytes_between_units"] == 7 == plain["total"]["bytes_between_units"] + 6


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as fault:
        open_masked_lm(folder, torch.device("cpu"))
    return str(fault.value)


def test_heads_of_other_tasks_are_not_made_up(tmp_path: Path) -> None:
    """BERT's pretraining head holds that for masks; the others do not."""
    folder = word_piece(tmp_path, BertConfig)
    config = BertConfig.from_pretrained(folder)
    BertForPreTraining(config).save_pretrained(folder)
    open_masked_lm(folder, torch.device("cpu"))
    BertForNextSentencePrediction(config).save_pretrained(folder)
    assert "tensors are missing (cls.predictions" in refusal(folder)


def test_a_discriminator_is_no_masked_language_model(tmp_path: Path) -> None:
    folder = word_piece(tmp_path, ElectraConfig, embedding_size=16)
    ElectraForPreTraining(ElectraConfig.from_pretrained(folder)).save_pretrained(folder)
    assert "tensors are missing (generator_" in refusal(folder)


def test_pairs_want_token_types(tmp_path: Path, text_file: Path) -> None:
    folder = word_piece(tmp_path, BertConfig)
    with pytest.raises(UserError, match="--format segment_pair: BertForMaskedLM tells"):
        evaluate_folder(folder, [str(text_file)], [], TextOptions(format="segment_pair"))
