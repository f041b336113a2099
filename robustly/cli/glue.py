"""`robustly glue`: a published model on GLUE's tasks."""

import difflib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from robustly import UserError, log
from robustly.cli.application import app
from robustly.cli.common import Overrides, user_errors
from robustly.cli.completion import configs


@app.command(name="glue", short_help="Finetune on GLUE's tasks; a table of dev medians.")
def glue_command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Published folder, or any RoBERTa on this machine."),
    ],
    overrides: Overrides = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Such as cola,sst2; default: all but wnli."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with GLUE's files: cola.train.tsv, CoLA/train.tsv, cola/train.jsonl or the"
            " like. Default: they are fetched from the Hub.",
        ),
    ] = None,
    config: Annotated[
        str,
        typer.Option(metavar="CONFIG", help="What is tuned, and how.", autocompletion=configs),
    ] = "delta/glue",
    into: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where results go; default: runs/NAME/glue."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as one JSON object on stdout.")
    ] = False,
) -> None:
    """Finetune a published model on GLUE's tasks by the paper's recipe (Liu et al. 2019, section
    5.1 and Table 10), and tell the median of five seeds on dev.

    Of the batch sizes 16 and 32 and the rates 1e-5, 2e-5 and 3e-5 the best on dev is found with one
    seed; four more seeds are trained with it: ten trainings of ten epochs a task. The same command
    goes on where the last one stopped; other tasks join the table in the same folder. With
    delta.methods=[lora] and the like it is a delta that is tuned; give `glue.peak_lr` then, too:
    Table 10's rates are for all weights of RoBERTa-base and larger ones."""
    with user_errors():
        from robustly.delta.tasks.glue import TASKS, in_the_paper

        names = [name.strip() for name in tasks.split(",")] if tasks else in_the_paper()
        for name in names:
            if name not in TASKS:
                near = difflib.get_close_matches(name, TASKS, n=1)
                meant = f"; did you mean {near[0]}?" if near else ""
                raise UserError(f"--tasks {name}: expected some of {','.join(TASKS)}{meant}")

        from robustly.delta.config import load_delta
        from robustly.delta.trials.glue import TABLE, glue

        base = f"delta.base={json.dumps(str(folder.absolute()))}"
        settled = load_delta(config, [base, *(overrides or [])])
        run = folder.absolute().parent if folder.name == "published" else folder.absolute()
        results = into or Path("runs") / run.name / "glue"
        done = glue(settled, names, results, data)
        log.say(f"table: {results / TABLE}")
        if as_json:
            log.print_json({"folder": str(results), **{k: asdict(v) for k, v in done.items()}})
