"""The commands of the stages that make data: clean, tokenizer, prepare."""

from pathlib import Path
from typing import Annotated

import typer

from robustly import log
from robustly.cli.application import app
from robustly.cli.common import (
    ConfigArgument,
    Json,
    NewRun,
    Overrides,
    command_line,
    experiment_of,
    report,
    retyped,
    user_errors,
)
from robustly.experiment import clean_work, data_work, tokenizer_work


@app.command(name="clean", short_help="Filter and deduplicate the corpus.")
def clean_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    dropped: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write every dropped document, too, to a new .jsonl or .jsonl.gz."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Filter and deduplicate the corpus, as the config's section `cleaning` asks for it. No text is
    changed: the later stages skip the documents that are dropped."""
    with user_errors():
        from robustly.data_prep.cleaning.dropped import OPTION, write_dropped
        from robustly.data_prep.json_lines import check_place

        if dropped:
            check_place(dropped, OPTION)

        experiment = experiment_of(config, overrides, new_run)
        folder = experiment.folder("clean")
        manifest = clean_work(experiment).make()
        if dropped:
            number = write_dropped(experiment.corpus, folder, dropped)
            log.say(f"{number:,} dropped documents: {dropped}")

        following = command_line("tokenizer", *retyped(config, overrides, new_run))
        report(folder, manifest, following, as_json)


@app.command(name="tokenizer")
def tokenizer_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    as_json: Json = False,
) -> None:
    """Train the byte-level BPE tokenizer on the corpus."""
    with user_errors():
        experiment = experiment_of(config, overrides, new_run)
        following = command_line("prepare", *retyped(config, overrides, new_run))
        report(
            experiment.folder("tokenizer"), tokenizer_work(experiment).make(), following, as_json
        )


@app.command(name="prepare")
def prepare_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    as_json: Json = False,
) -> None:
    """Turn the corpus into the token store."""
    with user_errors():
        experiment = experiment_of(config, overrides, new_run)
        following = command_line("pretrain", *retyped(config, overrides, new_run))
        report(experiment.folder("data"), data_work(experiment).make(), following, as_json)
