"""Small checkpoints: ours, one with a tokenizer that `tokenizers` trained, one like XLM-R's, and
other encoders over word pieces."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForMaskedLM,
    DistilBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaForMaskedLM,
)

from robustly.tokenizer.vocabulary import lay_out, save_vocabulary

NAMES = {
    "bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>",
    "unk_token": "<unk>", "mask_token": "<mask>",
}  # fmt: skip
TEXT = [
    "The children were playing in the garden.",
    "It began to rain, and they went into the house.",
] * 20


def config(size: int, **changes: Any) -> RobertaConfig:
    return RobertaConfig(
        **{
            "vocab_size": size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 64, "max_position_embeddings": 42, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
            "initializer_range": 0.3, **changes,
        }
    )  # fmt: skip


def model(size: int, kind: Any = RobertaForMaskedLM, **changes: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return kind(config(size, **changes))


def ours(folder: Path, merges: Sequence[str] = ("t h", "th e", "Ġ the", "i n", "Ã ¤")) -> Path:
    """As `robustly publish` writes it, without its records."""
    vocabulary = lay_out([tuple(merge.split()) for merge in merges])
    model(len(vocabulary.ids)).save_pretrained(folder)
    save_vocabulary(vocabulary, folder)
    return folder


def byte_level(folder: Path) -> Path:
    """A byte-level tokenizer that `tokenizers` trained, in one file, <mask> not the last entry."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokens.train_from_iterator(TEXT, trainer)
    return _saved(folder, tokens, RobertaForMaskedLM)


def unigram(folder: Path) -> Path:
    """Pieces with ▁ for spaces, as SentencePiece makes them for XLM-R."""
    tokens = Tokenizer(models.Unigram())
    tokens.pre_tokenizer = pre_tokenizers.Metaspace()
    tokens.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokens.train_from_iterator(TEXT, trainer)
    return _saved(folder, tokens, XLMRobertaForMaskedLM)


DIMENSIONS = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 40, "initializer_range": 0.3,
}  # fmt: skip
DISTILLED = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}


def word_piece(folder: Path, config: type[PreTrainedConfig], **changes: Any) -> Path:
    """A masked language model of another kind, over word pieces as BERT's are, white space dropped;
    `[CLS] text [SEP]`, padding of id 0."""
    names = {name: f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokens = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokens.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokens.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokens.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=[*names.values()], show_progress=False
    )
    tokens.train_from_iterator(TEXT, trainer)
    tokens.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {f"{name}_token": token for name, token in names.items()}
    PreTrainedTokenizerFast(tokenizer_object=tokens, **named).save_pretrained(folder)
    ids = {
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    dimensions = DISTILLED if config is DistilBertConfig else DIMENSIONS
    size = tokens.get_vocab_size()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        built = AutoModelForMaskedLM.from_config(
            config(vocab_size=size, **{**ids, **dimensions, **changes})
        )
    built.save_pretrained(folder)
    return folder


def _saved(folder: Path, tokens: Tokenizer, kind: Any) -> Path:
    tokens.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    PreTrainedTokenizerFast(tokenizer_object=tokens, **NAMES).save_pretrained(folder)
    model(tokens.get_vocab_size(), kind).save_pretrained(folder)
    return folder
