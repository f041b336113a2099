"""Small tokenizers in Hugging Face's files, trained by `tokenizers`: no stage has made them."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from robustly.tokenizer.vocabulary import lay_out, save_vocabulary


def trained_elsewhere(folder: Path, texts: Iterable[str], size: int) -> Path:
    """`size` entries, <mask> among them."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator(texts, trainer)
    merges = [tuple(merge) for merge in json.loads(tokens.to_str())["model"]["merges"]]
    save_vocabulary(lay_out(merges), folder)
    return folder
