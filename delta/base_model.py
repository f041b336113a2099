"""The base: the encoder that a delta attaches to, its tokenizer, and the fingerprint that tells it
from others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    PreTrainedModel,
)

from robustly import UserError
from robustly.delta.attachment import head_names
from robustly.delta.fingerprint import fingerprint, rounded
from robustly.delta.layers.soft_tokens import longest_input
from robustly.pretrain.start.model_files import ModelFiles, find_folder
from robustly.pretrain.start.open_model import ROBERTAS, check_tokens, open_model
from robustly.rng import Purpose, seed64
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.reading import read_json_object
from robustly.tokenizer.tokenizer import Tokenizer

HeadKind = Literal["sequence", "tokens", "choice", "spans", "masked_lm"]
HEADS: dict[HeadKind, Mapping[type, type[PreTrainedModel]]] = {
    "sequence": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "tokens": MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "choice": MODEL_FOR_MULTIPLE_CHOICE_MAPPING,
    "spans": MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    "masked_lm": MODEL_FOR_MASKED_LM_MAPPING,
}
"""transformers' class for each, by the class of the config."""


@dataclass(frozen=True)
class Base:
    """An encoder that is never changed. Models that are made of it share its weights in memory, so
    that many deltas are at hand on one base."""

    name: str
    """Where it was loaded from, as the user wrote it."""
    model: PreTrainedModel
    """A masked language model, on the CPU; only a cloze uses its head."""
    has_lm_head: bool
    """Whether the folder holds that head; otherwise it is random."""
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path | str, dtype: torch.dtype = torch.float32) -> "Base":
        """A published folder of ours, or any folder that transformers saved a model of RoBERTa's
        architecture and its tokenizer to.

        `dtype`: torch.bfloat16 or torch.float16 halve the memory, and deltas of the base still know
        it. Raises UserError if the folder is missing, unfinished, of another model type, without
        some of the encoder's weights, or if the tokenizer is not byte-level in RoBERTa's layout or
        does not fit the model."""
        files = find_folder(Path(folder), "paths.published")
        _check_kind(files)
        model, has_head, _ = open_model(files, needs_head=False)
        own = load_tokenizer(folder)
        check_tokens(files.title, model, own.vocab_size, own.pad_id)
        return cls(str(folder), model.to(dtype), has_head, own)

    def untrained(self, seed: int) -> "Base":
        """The same configuration and tokenizer with fresh random weights: what pretraining is
        compared with."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed64(seed, Purpose.INIT, 0, 0))
            model = type(self.model)(self.model.config).eval().requires_grad_(False)
        return Base(f"{self.name}, untrained", model, self.has_lm_head, self.tokenizer)

    def shape(self) -> "Base":
        """The same without weights (on torch's meta device): methods are attached to it to be
        checked and counted."""
        with torch.device("meta"):
            return replace(self, model=type(self.model)(self.model.config))

    def with_head(
        self, head: HeadKind, outputs: int, seed: int, labels: Sequence[str] = ()
    ) -> PreTrainedModel:
        """A model of the encoder under a fresh random head, which is a function of the seed; the
        encoder's weights, and for "masked_lm" the language-modeling head's, are the base's own.
        Evaluating.

        `outputs`: scores of an input (of a token for "tokens"); `labels`: their names, if they have
        some. Raises UserError for "masked_lm" if the base's folder holds no language-modeling head.
        """
        if head == "masked_lm" and not self.has_lm_head:
            raise UserError(
                f"{self.name}: holds no language-modeling head, which a cloze needs; publish one,"
                " or use another kind of task"
            )

        settings = {
            k: v
            for k, v in self.model.config.to_dict().items()
            if k not in ("id2label", "label2id")
        }
        names = labels or [f"LABEL_{number}" for number in range(outputs)]
        kind = type(self.model.config)
        config = kind.from_dict({**settings, "id2label": dict(enumerate(names))})
        config.label2id = {label: number for number, label in config.id2label.items()}
        config._name_or_path = self.name  # peft writes it into adapter_config.json
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed64(seed, Purpose.INIT, 0, 0))
            model = HEADS[head][kind](config).to(self.model.dtype)

        own = {
            name: tensor
            for name, tensor in self.model.state_dict().items()
            if name in model.state_dict()
        }
        found = model.load_state_dict(own, strict=False, assign=True)
        assert head_names(model).issuperset(found.missing_keys), found
        model.tie_weights()
        return model.eval()

    @property
    def longest_input(self) -> int:
        """Tokens of the longest input (`robustly.delta.layers.soft_tokens.longest_input`)."""
        return longest_input(self.model.base_model)

    @property
    def width(self) -> int:
        """Hidden units."""
        return int(self.model.config.hidden_size)

    @property
    def parameters(self) -> int:
        """Of the encoder, without heads."""
        return sum(parameter.numel() for parameter in self.model.base_model.parameters())

    @cached_property
    def fingerprint(self) -> str:
        """Of the encoder's weights (`robustly.delta.fingerprint`); of a shape none."""
        return "" if self.model.device.type == "meta" else fingerprint(self.model.base_model)

    @cached_property
    def rounded(self) -> dict[str, str]:
        """The same after a cast to half precision, by its type."""
        return rounded(self.model.base_model)


def _check_kind(files: ModelFiles) -> None:
    """Raises UserError, with the way round, for a model that is no RoBERTa: methods, heads and
    stored deltas know its encoder by the names and shapes of RoBERTa's, which XLM-RoBERTa and
    CamemBERT share."""
    assert files.settings
    kind = read_json_object(files.settings).get("model_type")
    if kind not in (None, *ROBERTAS):  # without any, transformers says so
        raise UserError(
            f"{files.title}: model_type = {kind!r}; expected {', '.join(ROBERTAS)}, to whose layers"
            " deltas attach (`robustly evaluate` takes others). peft attaches LoRA or IA3 to this"
            " one: `get_peft_model(AutoModelForSequenceClassification.from_pretrained(FOLDER),"
            " LoraConfig(task_type='SEQ_CLS'))`"
        )
