"""The API reference, made from docstrings into site/: `make docs`, then open site/index.html."""

import re
import sys
from pathlib import Path

import pdoc
import pdoc.render

# What other programs may build on; the rest may change without notice. The modules `config`
# document the keys of a config file.
PUBLIC = (
    "robustly.experiment",
    "robustly.corpus.config",
    "robustly.corpus.documents",
    "robustly.tokenizer",
    "robustly.tokenizer.config",
    "robustly.tokenizer.tokenizer",
    "robustly.tokenizer.vocabulary",
    "robustly.tokenizer.reading",
    "robustly.data_prep.config",
    "robustly.data_prep.cleaning.config",
    "robustly.data_prep.store",
    "robustly.data_prep.blocks",
    "robustly.pretrain.config",
    "robustly.pretrain.masking",
    "robustly.pretrain.schedule",
    "robustly.publish.config",
    "robustly.preflight.config",
    "robustly.evaluation.cutting",
    "robustly.evaluation.model",
    "robustly.evaluation.scoring",
    "robustly.evaluation.text",
    "robustly.evaluation.minimal_pairs",
    "robustly.delta",
    "robustly.delta.config",
    "robustly.delta.tasks.config",
    "robustly.delta.base_model",
    "robustly.delta.predictor",
    "robustly.delta.tuning.seeds",
    "robustly.delta.conformance",
)

CODE = re.compile(r"(```.*?```|`[^`]*`)", re.DOTALL)


def escaped(docstring: str) -> str:
    """Names such as <s> and <mask> are text; within backticks, Markdown knows that by itself."""
    parts = CODE.split(docstring)
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)


def write(folder: Path) -> None:
    """Raises RuntimeError if a module cannot be imported."""
    to_html = pdoc.render.env.filters["to_html"]
    pdoc.render.env.filters["to_html"] = lambda docstring: to_html(escaped(docstring))

    # a name stands for a module without those below it
    specs = [spec for name in PUBLIC for spec in (name, f"!{re.escape(name)}\\.")]
    pdoc.pdoc(*specs, output_directory=folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
