"""Delta tuning: small modules (LoRA, adapters, prompts, ...) attached to a published checkpoint.

`load` gives the predictor of a folder that `robustly delta` wrote. For a training loop of your own
`attach` adds methods to a RoBERTa model of transformers, `save` writes what was trained, without
the base, `load_into` attaches it to a fresh model, and `merge` folds it into the weights.

`methods` holds a file for each method; `attachment` puts them on a model; `base_model` is the
encoder, which is never changed; `tasks` reads examples and turns them into tensors and scores;
`tuning` trains, with other ranks (`data_parallel`) where there are some; `predictor` answers;
`saving` writes and reads a delta's folder, `card` its README; `stage` is the command."""

from typing import TYPE_CHECKING, Any

from robustly.stages import resolve

if TYPE_CHECKING:
    from robustly.delta.attachment import attach
    from robustly.delta.merging import merge
    from robustly.delta.saving import load
    from robustly.delta.saving import load_model as load_into
    from robustly.delta.saving import save_model as save

__all__ = ["attach", "load", "load_into", "merge", "save"]

_FUNCTIONS = {
    "attach": "robustly.delta.attachment:attach",
    "load": "robustly.delta.saving:load",
    "load_into": "robustly.delta.saving:load_model",
    "merge": "robustly.delta.merging:merge",
    "save": "robustly.delta.saving:save_model",
}


def __getattr__(name: str) -> Any:
    """A function is imported when it is asked for: a config is read without torch."""
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return resolve(_FUNCTIONS[name])
