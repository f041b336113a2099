"""Delta tuning: small modules (LoRA, adapters, prompts, ...) attached to a published checkpoint.

`load` gives the predictor of a folder that `robustly delta` wrote. For a training loop of your own
`attach` adds methods to a RoBERTa model of transformers, `save` writes what is trained, without
the base, `load_into` attaches it to a fresh model, and `merge` folds it into the weights.

`methods` holds a file for each method, `layers` their torch modules; `attachment` puts them on a
model; `base_model` is the encoder, which is never changed; `tasks` reads examples and turns them
into tensors and scores; `tuning` trains, by a teacher too (`teaching`); `predictor` answers,
`together` for several deltas at once, of which a `route` chooses; `saving` writes and reads a
delta's folder, `card` its README; `stage` is the command. A finished delta answers rows from a
shell (`inputs`, `answering`), becomes a plain folder (`merged`), and is pushed (`hub`)."""

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
    from robustly.delta.saving import load

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
    from robustly.delta.saving import save_model

    save_model(model, Path(folder))


def load_into(model: "PreTrainedModel", folder: Path | str) -> "PreTrainedModel":
    """Attach what `save` or `robustly delta` wrote to a freshly loaded model of the same base and
    kind of head."""
    from robustly.delta.saving import load_model

    return load_model(model, Path(folder))


def merge(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model without delta modules and with the same logits, where the methods allow it
    (`robustly.delta.merging.merge`)."""
    from robustly.delta.merging import merge

    return merge(model)
