"""Checkpoints that others made, through all stages: a run that changes nothing publishes the very
model and tokenizer, and XLM-RoBERTa is continued with a vocabulary of bytes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import CORPUS, ROOT, robustly
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    RobertaForMaskedLM,
    XLMRobertaForMaskedLM,
)

from tests.small_checkpoints import NAMES, config

pytestmark = pytest.mark.pipeline
TEXT = CORPUS.read_text(encoding="utf-8")[:60_000]
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

# a rate at which no weight changes
PAGE = f"""
base: {ROOT}/configs/tiny.yaml
name: foreign
corpus: {{sources: text.txt, documents: line, validation: 0.2}}
data: {{block_length: 40}}
model: {{layers: 2, hidden: 32, heads: 2, feed_forward: 64, positions: 42, layer_norm_eps: 1e-5, init_from: there}}
optim: {{batch_size: 8, peak_lr: 1e-30}}
schedule: {{updates: 1, warmup: 0}}
run: {{ranks: 1, micro_batch: 8, workers: 1}}
report: {{delta: null}}
"""


def run(commands: list[str], folder: Path, *overrides: str) -> Path:
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "foreign.yaml").write_text(PAGE, encoding="utf-8")
    for command in commands:
        robustly(command, "foreign.yaml", *overrides, cwd=folder)

    return folder / "runs" / "foreign"


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    model, found = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values())
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ids])).logits[0]


def trained(model: Any, trainer: Any, pre_tokenizer: Any, decoder: Any) -> PreTrainedTokenizerFast:
    tokens = Tokenizer(model)
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizer, decoder
    tokens.train_from_iterator(TEXT.splitlines(), trainer)
    tokens.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(tokenizer_object=tokens, **NAMES)


def test_a_run_that_changes_nothing_publishes_what_was_there(tmp_path: Path) -> None:
    """A space before each text, added tokens that are not special, an output matrix of its own, two
    token types, and rows that no token has."""
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[*SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer = trained(models.BPE(), trainer, byte_level, decoders.ByteLevel())
    added = ("<user>", AddedToken("the", single_word=True), AddedToken("[CUT]", lstrip=True))
    tokenizer.add_tokens([*added])
    there = tmp_path / "there"
    tokenizer.save_pretrained(there)
    settings = config(320, type_vocab_size=2, tie_word_embeddings=False)
    RobertaForMaskedLM(settings).save_pretrained(there)

    size = len(tokenizer)
    keys = ("tokenizer.import=there", f"tokenizer.vocab_size={size}", "model.tied_head=false")
    published = run(["run"], tmp_path, *keys, "model.token_types=2") / "published"
    again = AutoTokenizer.from_pretrained(published)
    texts = [
        *TEXT.splitlines()[:40],
        "naïve café",
        " two  spaces",
        "日本 🙂",
        "a <user>x [CUT] the",
    ]
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]

    ids = tokenizer(texts[0])["input_ids"][:40]
    difference = logits(published, ids) - logits(there, ids)[:, :size]
    assert difference.abs().max() < 1e-5
    manifest = json.loads((published / "manifest.json").read_text())
    model = AutoModelForMaskedLM.from_pretrained(published)
    assert manifest["counts"]["parameters"] == sum(p.numel() for p in model.parameters()) - size


def test_sentencepiece_is_continued_with_a_vocabulary_of_bytes(tmp_path: Path) -> None:
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=[*SPECIAL],
        unk_token="<unk>",
        show_progress=False,
    )
    metaspace = pre_tokenizers.Metaspace()
    tokenizer = trained(models.Unigram(), trainer, metaspace, decoders.Metaspace())
    tokenizer.save_pretrained(tmp_path / "there")
    settings = config(len(tokenizer))
    XLMRobertaForMaskedLM(settings).save_pretrained(tmp_path / "there")
    done = run(["tokenizer", "prepare", "pretrain"], tmp_path, "tokenizer.vocab_size=330")
    words = json.loads((done / "tokenizer" / "vocab.json").read_text())
    (weights,) = done.glob("train/checkpoints/*/weights.safetensors")
    ours = load_file(weights)["roberta.embeddings.word_embeddings.weight"]
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "there").get_input_embeddings().weight
    for here, piece in (("Ġthe", "▁the"), ("Ġ", "▁"), ("a", "a"), ("<mask>", "<mask>")):
        row = theirs[tokenizer.convert_tokens_to_ids(piece)]
        assert torch.equal(ours[words[here]], row)
