"""What tests of methods share: a small base under any head, a batch, some updates, a reload.
Nothing is dropped out."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaPreTrainedModel,
)

from robustly.delta.attachment import attach, stored, trained

HEADS: dict[str, type[RobertaPreTrainedModel]] = {
    "sequence": RobertaForSequenceClassification,
    "tokens": RobertaForTokenClassification,
    "masked_lm": RobertaForMaskedLM,
    "choice": RobertaForMultipleChoice,
    "spans": RobertaForQuestionAnswering,
}
VOCABULARY, PAD, LENGTH = 61, 1, 12


def new_model(head: str = "sequence", head_seed: int = 1, **sizes: Any) -> RobertaPreTrainedModel:
    """The same base under a random head, which is a function of the seed. Evaluating."""
    config = RobertaConfig(**{
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 42, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
        "initializer_range": 0.1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **sizes,
    })  # fmt: skip
    torch.manual_seed(0)
    base = RobertaForMaskedLM(config)
    torch.manual_seed(head_seed)
    model = HEADS[head](config)
    own = base.state_dict()
    model.load_state_dict(
        {name: own.get(name, tensor) for name, tensor in model.state_dict().items()}
    )
    return model.eval()


def at_size_of_roberta_base() -> RobertaPreTrainedModel:
    """Without memory; `num_labels` 2: 124,647,170 parameters."""
    config = RobertaConfig(
        vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1, num_labels=2
    )
    with torch.device("meta"):
        return RobertaForSequenceClassification(config)


def batch(head: str = "sequence", labels: bool = False) -> dict[str, Tensor]:
    """Three texts, two of them padded."""
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(4, VOCABULARY, (3, LENGTH), generator=draw)
    for row, length in enumerate((LENGTH, 7, 9)):
        ids[row, 0], ids[row, length - 1] = 0, 2
        ids[row, length:] = PAD

    tensors = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    if head == "choice":
        tensors = {name: tensor[:, None].repeat(1, 2, 1) for name, tensor in tensors.items()}
        tensors["input_ids"][:, 1, 1] = 9

    if labels:
        tensors |= {
            "sequence": {"labels": torch.tensor([0, 1, 1])},
            "tokens": {"labels": ids % 2},
            "masked_lm": {"labels": ids},
            "choice": {"labels": torch.tensor([0, 1, 1])},
            "spans": {
                "start_positions": torch.tensor([1, 2, 3]),
                "end_positions": torch.tensor([2, 2, 4]),
            },
        }[head]

    return tensors


def scores(model: RobertaPreTrainedModel, tensors: dict[str, Tensor]) -> Tensor:
    """Logits, inputs x ...; of spans those of starts and of ends, one after the other."""
    with torch.no_grad():
        out = model.eval()(**tensors)
    return torch.cat([out.start_logits, out.end_logits]) if "start_logits" in out else out.logits


def train(model: RobertaPreTrainedModel, tensors: dict[str, Tensor], updates: int = 3) -> set[str]:
    """Returns the names of the parameters that a gradient has reached."""
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
    reached = set()
    model.train()

    for update in range(1, updates + 1):
        loss = model(**tensors).loss + sum(penalty() for penalty in model.delta.penalties)
        loss.backward()
        optimizer.step()
        for act in model.delta.after_update:
            act(update, updates)

        reached |= {
            n
            for n, p in trained(model).items()
            if p.grad is not None and bool(p.grad.abs().max() > 0)
        }
        optimizer.zero_grad()

    model.eval()
    return reached


def reloaded(
    model: RobertaPreTrainedModel, head: str = "sequence", **sizes: Any
) -> RobertaPreTrainedModel:
    """What is stored of a finished model, on a base under another head."""
    fresh = new_model(head, head_seed=2, **sizes)
    attach(fresh, model.delta.methods, seed=8, finished=True)
    assert stored(fresh).keys() == stored(model).keys()
    with torch.no_grad():
        for name, tensor in stored(fresh).items():
            tensor.copy_(stored(model)[name])

    return fresh
