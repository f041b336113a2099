"""The base: the encoder that a delta attaches to, its tokenizer, and the fingerprint that tells it
from others."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaPreTrainedModel,
)

from robustly import UserError
from robustly.delta.attachment import fingerprint, is_head
from robustly.delta.layers.soft_tokens import longest_input
from robustly.pretrain.start.model_files import ModelFiles, find_folder
from robustly.pretrain.start.open_model import check_tokens, open_model
from robustly.rng import Purpose, seed64
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.reading import read_json_object
from robustly.tokenizer.tokenizer import Tokenizer

HeadKind = Literal["sequence", "tokens", "choice", "spans", "masked_lm"]
HEADS: dict[HeadKind, type[RobertaPreTrainedModel]] = {
    "sequence": RobertaForSequenceClassification,
    "tokens": RobertaForTokenClassification,
    "choice": RobertaForMultipleChoice,
    "spans": RobertaForQuestionAnswering,
    "masked_lm": RobertaForMaskedLM,
}


@dataclass(frozen=True)
class Base:
    """An encoder that is never changed. Models that are made of it share its weights in memory, so
    that many deltas are at hand on one base."""

    name: str
    """Where it was loaded from, as the user wrote it."""
    model: RobertaForMaskedLM
    """fp32, on the CPU, with the language-modeling head that only a cloze uses."""
    has_lm_head: bool
    """Whether the folder holds that head; otherwise it is random."""
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path | str) -> "Base":
        """A published folder of ours, or any folder that transformers saved a RoBERTa model and its
        tokenizer to.

        Raises UserError if the folder is missing, unfinished, of another model type, without some
        of the encoder's weights, or if the tokenizer is not byte-level in RoBERTa's layout or does
        not fit the model."""
        files = find_folder(Path(folder), "paths.published")
        _check_kind(files)
        model, has_head, _ = open_model(files, needs_head=False)
        own = load_tokenizer(folder)
        check_tokens(files.title, model, own.vocab_size, own.pad_id)
        return cls(str(folder), model, has_head, own)

    def untrained(self, seed: int) -> "Base":
        """The same configuration and tokenizer with fresh random weights: what pretraining is
        compared with."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed64(seed, Purpose.INIT, 0, 0))
            model = RobertaForMaskedLM(self.model.config).eval().requires_grad_(False)
        return Base(f"{self.name}, untrained", model, self.has_lm_head, self.tokenizer)

    def with_head(
        self, head: HeadKind, outputs: int, seed: int, labels: Sequence[str] = ()
    ) -> RobertaPreTrainedModel:
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
        config = RobertaConfig.from_dict({**settings, "id2label": dict(enumerate(names))})
        config.label2id = {label: number for number, label in config.id2label.items()}
        config._name_or_path = self.name  # peft writes it into adapter_config.json
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed64(seed, Purpose.INIT, 0, 0))
            model = HEADS[head](config)

        own = {
            name: tensor
            for name, tensor in self.model.state_dict().items()
            if name in model.state_dict()
        }
        found = model.load_state_dict(own, strict=False, assign=True)
        assert all(is_head(name) for name in found.missing_keys), found
        model.tie_weights()
        return model.eval()

    @property
    def longest_input(self) -> int:
        """Tokens of the longest input (`robustly.delta.layers.soft_tokens.longest_input`)."""
        return longest_input(self.model.roberta)

    @property
    def parameters(self) -> int:
        """Of the encoder, without heads."""
        return sum(parameter.numel() for parameter in self.model.roberta.parameters())

    @cached_property
    def fingerprint(self) -> str:
        """Of the encoder's weights (`robustly.delta.attachment.fingerprint`)."""
        return fingerprint(self.model.roberta)


def _check_kind(files: ModelFiles) -> None:
    """Raises UserError, with the way round, for a model that is no RoBERTa: methods, heads and
    stored deltas know its encoder by the names and shapes of RoBERTa's."""
    assert files.settings
    kind = read_json_object(files.settings).get("model_type")
    if kind not in (None, "roberta"):  # without any, transformers says so
        raise UserError(
            f"{files.title}: model_type = {kind!r}; expected roberta, to whose layers deltas attach"
            " (`robustly evaluate` takes others). peft attaches LoRA or IA3 to this one:"
            " `get_peft_model(AutoModelForSequenceClassification.from_pretrained(FOLDER),"
            " LoraConfig(task_type='SEQ_CLS'))`"
        )
