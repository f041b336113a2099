"""The base: the encoder that a delta attaches to, its tokenizer, and the fingerprint that tells it from others."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import RobertaForSequenceClassification, RobertaModel

import tokenizer
from robustly import UserError, manifest
from robustly.log import quiet_transformers
from robustly.rng import Purpose, seed64
from tokenizer.encoder import Encoder


@dataclass(frozen=True)
class Base:
    """An encoder that is never changed: classifiers are made from a copy of its weights."""

    name: str
    """Where it was loaded from, as the user wrote it."""
    model: RobertaModel
    """fp32, on the CPU, without heads."""
    tokenizer: Encoder

    @classmethod
    def load(cls, folder: Path | str) -> "Base":
        """A published folder of ours, or any folder that transformers saved a RoBERTa model and its tokenizer to.

        Raises UserError if the folder is missing, unfinished, of another model type, without some of the encoder's
        weights, or if the tokenizer is not byte-level in RoBERTa's layout or does not fit the model.
        """
        folder = Path(folder)
        _check_is_roberta(folder)
        vocabulary = tokenizer.load(folder)
        try:
            with quiet_transformers():  # it would list the language-modeling head as unexpected, which it is not here
                model, found = RobertaModel.from_pretrained(
                    folder,
                    add_pooling_layer=False,
                    dtype=torch.float32,
                    local_files_only=True,
                    output_loading_info=True,
                )
        except Exception as error:  # each format and version has its own
            raise UserError(f"{folder}: transformers cannot load the model: {error}") from error
        if lacking := sorted(map(str, found["missing_keys"])):
            raise UserError(f"{folder}: lacks {len(lacking)} weights of the encoder, such as {lacking[0]}")
        config = model.config
        if vocabulary.vocab_size > config.vocab_size or vocabulary.pad_id != config.pad_token_id:
            raise UserError(
                f"{folder}: the tokenizer has {vocabulary.vocab_size:,} entries and pads with {vocabulary.pad_id}; the "
                f"model has {config.vocab_size:,} and pads with {config.pad_token_id}: they are not of one checkpoint"
            )
        return cls(str(folder), model.eval(), vocabulary)

    def untrained(self, seed: int) -> "Base":
        """The same configuration and tokenizer with fresh random weights: what pretraining is compared with."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed64(seed, Purpose.INIT, 0, 0))
            return Base(f"{self.name}, untrained", RobertaModel(self.model.config, False).eval(), self.tokenizer)

    def classifier(self, labels: Sequence[str], seed: int) -> RobertaForSequenceClassification:
        """A copy of the encoder under a fresh random head of `labels`; the head is a function of the seed."""
        config = type(self.model.config).from_dict(
            {
                **self.model.config.to_dict(),
                "id2label": dict(enumerate(labels)),
                "label2id": {label: number for number, label in enumerate(labels)},
            }
        )
        config._name_or_path = self.name  # peft writes it into adapter_config.json
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed64(seed, Purpose.INIT, 0, 0))
            model = RobertaForSequenceClassification(config)
        model.roberta.load_state_dict(self.model.state_dict())
        return model.eval()

    @property
    def longest_input(self) -> int:
        """Tokens of the longest input: positions are counted from the padding id + 1."""
        return self.model.config.max_position_embeddings - self.model.config.pad_token_id - 1

    @property
    def parameters(self) -> int:
        """Of the encoder, without heads."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the encoder's tensors by name: name, type, shape, bytes. The same however the files cut them, and
        with or without a language-modeling head beside them."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            tensor = parameter.detach().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.numpy().data)
        return digest.hexdigest()


def _check_is_roberta(folder: Path) -> None:
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise UserError(
            f"{folder}: {what}; paths.published (default: <paths.root>/published) must be a folder that `robustly "
            "publish` or transformers' save_pretrained wrote. Names on the Hub are not downloaded"
        )
    if (folder / manifest.RECIPE).exists():
        manifest.require(folder, "published", "robustly publish CONFIG")
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no model that transformers can open: config.json: {error}") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "roberta":
        raise UserError(f"{folder}: a model of type {kind!r}; deltas attach to model_type 'roberta'")
