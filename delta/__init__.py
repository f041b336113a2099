"""Delta tuning: small modules (LoRA, adapters, prompts, ...) attached to a published checkpoint.

`load` gives the predictor of a folder that `robustly delta` wrote. For a training loop of your own
`attach` adds methods to a RoBERTa model of transformers, `save` writes what is trained, without
the base, `load_into` attaches it to a fresh model, and `merge` folds it into the weights.

`base_model` is the encoder, which is never changed; `methods` holds a file for each method,
`layers` their torch modules, and `attachment` puts them on a model. `tasks` reads examples and
turns them into tensors and scores; `predictor` is a base with a delta and a head, ready to answer.
Around them are `tuning`, which trains; `storage`, which writes and reads a delta's folder;
`trials`, which try configs side by side; `answering`, for rows from a shell and several deltas at
once; and `publishing`. `stage` is the command, `subspace` finds the space of intrinsic prompts, and
`route_training` trains what chooses among finished deltas."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from robustly.delta.base_model import Base
    from robustly.delta.predictor import Predictor
    from robustly.tokenizer.tokenizer import Tokenizer

# Each function imports what it needs when it is called: a delta's config is read without torch.


def load(base: "Base | Path | str", folder: Path | str) -> "Predictor":
    """The predictor that `robustly delta` saved in `folder`, on its base:
    `load(...).predict(["some text"])`.

    Given a `robustly.delta.base_model.Base`, every delta on it shares its weights in memory:
    switching is using another predictor. Raises UserError if either folder is missing or damaged,
    or if the delta was made for another base."""
    from robustly.delta.storage.saving import load

    return load(base, folder)


def attach(
    model: "PreTrainedModel",
    methods: object,
    seed: int = 0,
    tokenizer: "Tokenizer | PreTrainedTokenizerBase | None" = None,
) -> "PreTrainedModel":
    """Attach methods, such as "lora" or `[{"name": "lora", "rank": 8}]`, to a RoBERTa, XLM-RoBERTa
    or CamemBERT model of transformers, in place; returns it
    (`robustly.delta.attachment.attach`). `tokenizer`: of the model, for a prompt that starts as a
    text."""
    from robustly.delta.attachment import attach
    from robustly.delta.wording import by_tokenizer

    return attach(model, methods, seed, wording=by_tokenizer(tokenizer) if tokenizer else None)


def save(model: "PreTrainedModel", folder: Path | str) -> None:
    """Write the delta and the head of a model that is trained after `attach`, without its base. The
    model stays as it is: its training can go on."""
    from robustly.delta.storage.saving import save_model

    save_model(model, Path(folder))


def load_into(model: "PreTrainedModel", folder: Path | str) -> "PreTrainedModel":
    """Attach what `save` or `robustly delta` wrote to a freshly loaded model of the same base and
    kind of head."""
    from robustly.delta.storage.saving import load_model

    return load_model(model, Path(folder))


def merge(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model without delta modules and with the same logits, where the methods allow it
    (`robustly.delta.storage.merging.merge`)."""
    from robustly.delta.storage.merging import merge

    return merge(model)
