"""`robustly export`: a model or a delta as ONNX."""

from pathlib import Path
from typing import Annotated

import typer

from robustly import log
from robustly.cli.application import app
from robustly.cli.common import user_errors


@app.command(name="export", short_help="Write a model or a delta as ONNX.")
def export_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Published folder, merged delta, or any that transformers saved; or a delta.",
        ),
    ],
    into: Annotated[Path, typer.Option(metavar="FOLDER", help="Where it goes: a new folder.")],
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="A delta's base; default: where it lay when it was trained."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the facts as one JSON object on stdout.")
    ] = False,
) -> None:
    """Write a model as model.onnx, for any number of inputs of any length, with its tokenizer and
    labels beside it: a base, a merged delta, or a delta on its base, with methods of every kind.
    onnxruntime gives the same outputs as torch, or nothing is written.

    Needs `pip install 'robustly[onnx]'`.
    """
    with user_errors():
        from robustly.publish.onnx import export

        facts = export(folder, into, base)
        log.table(f"exported: {into}", {**facts, "outputs": ", ".join(facts["outputs"])})
        if as_json:
            log.print_json({"folder": str(into), **facts})
