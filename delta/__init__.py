"""Delta tuning: small modules that attach to a published checkpoint.

`specs` names the methods and their sizes; `methods` attaches them, with a file for each;
`attachment` is what holds a model and its methods together; `base` is the encoder that is never
changed; `tasks` reads examples and turns them into tensors and scores; `tuning` trains, with other
`ranks` where there are some, and goes on from a `checkpoint`; `predictor` answers; `folder` saves
and loads; `merging` folds a delta into its base; `card` is the README of a folder; `stage` is the
command."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import RobertaPreTrainedModel

    from robustly.delta.base_model import Base
    from robustly.delta.predictor import Predictor


def load(base: "Base | Path | str", folder: Path | str) -> "Predictor":
    """The predictor that `robustly delta` saved in `folder`, on its base: `load(...).predict(["some
    text"])`.

    Given a `delta.base.Base`, every delta on it shares its weights in memory: switching is using
    another predictor. Raises UserError if either folder is missing or damaged, or if the delta was
    made for another base."""
    from robustly.delta.saving import load

    return load(base, folder)


def attach(
    model: "RobertaPreTrainedModel", methods: Sequence[Any], seed: int = 0
) -> "RobertaPreTrainedModel":
    """Attach methods, such as `[{"name": "lora", "rank": 8}]`, to a RoBERTa model of transformers,
    in place; returns it (`robustly.delta.attachment.attach`)."""
    from robustly.delta.attachment import attach

    return attach(model, methods, seed)


def save(model: "RobertaPreTrainedModel", folder: Path | str) -> None:
    """Write the delta and the head of a model that was trained after `attach`, without its base."""
    from robustly.delta.saving import save_model

    save_model(model, Path(folder))


def load_into(model: "RobertaPreTrainedModel", folder: Path | str) -> "RobertaPreTrainedModel":
    """Attach what `save` or `robustly delta` wrote to a freshly loaded model of the same base and
    kind of head."""
    from robustly.delta.saving import load_model

    return load_model(model, Path(folder))


def merge(model: "RobertaPreTrainedModel") -> "RobertaPreTrainedModel":
    """The model without delta modules and with the same logits, where the methods allow it
    (`robustly.delta.merging.merge`)."""
    from robustly.delta.merging import merge

    return merge(model)
