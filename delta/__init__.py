"""Delta tuning: small modules that attach to a published checkpoint.

`base` is the encoder that is never changed; `methods` attaches, with a file for each method (`lora`); `classifier`
turns texts into labels; `task` reads and draws examples; `tuning` trains and scores; `folder` saves and loads;
`card` is the README of a folder; `stage` is the command.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from delta.classifier import Classifier


def load(base: Path | str, folder: Path | str) -> "Classifier":
    """The classifier that `robustly delta` saved in `folder`, on its base: `load(...).predict(["some text"])`.

    Raises UserError if either folder is missing or damaged, or if the delta was made for another base.
    """
    from delta.folder import load

    return load(base, folder)
