"""A classifier of texts: a base with a delta and a head."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from tokenizer.encoder import Encoder

BATCH = 32  # texts that are scored at a time


@dataclass(frozen=True)
class Classifier:
    """From texts to labels."""

    model: PeftModel
    """A RobertaForSequenceClassification with a delta attached."""
    tokenizer: Encoder
    labels: tuple[str, ...]
    max_length: int
    """Tokens of an input, <s> and </s> included; what is longer is cut at its end."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text: <s> ... </s>, at most `max_length`."""
        bos, eos, room = self.tokenizer.bos_id, self.tokenizer.eos_id, self.max_length - 2
        return [[bos, *ids[:room].tolist(), eos] for ids in self.tokenizer.encode_documents(texts)]

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """N rows of ids as (N, longest) ids and their attention mask (1 on tokens, 0 on padding)."""
        longest = max(map(len, rows))
        pad = self.tokenizer.pad_id
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return ids.to(self.model.device), mask.to(self.model.device)

    def logits(self, texts: Sequence[str]) -> Tensor:
        """(N, labels) scores, fp32, on the CPU; no text is dropped out of. Texts of like length go together."""
        rows = self.encode(texts)
        result = torch.empty(len(rows), len(self.labels))
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            for start in range(0, len(rows), BATCH):
                places = by_length[start : start + BATCH]
                ids, mask = self.pad([rows[i] for i in places])
                result[places] = self.model(input_ids=ids, attention_mask=mask).logits.float().cpu()
        self.model.train(training)
        return result

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The best label of each text."""
        return [self.labels[best] for best in self.logits(texts).argmax(1).tolist()]
