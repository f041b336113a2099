"""The commands of the stages, and `robustly run`, which makes them all in order."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from robustly import UserError, log
from robustly.cli.application import app
from robustly.cli.common import (
    ConfigArgument,
    Json,
    NewRun,
    Overrides,
    command_line,
    experiment_of,
    next_command,
    show_result,
    user_errors,
)
from robustly.cli.train import LiveCode
from robustly.experiment import Experiment, train_work
from robustly.manifest import Manifest
from robustly.stages import RUN_STAGES, STAGES, RunStage


@app.command(name="run", short_help="All stages in order; what is finished is skipped.")
def run_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    live_code: LiveCode = False,
    as_json: Json = False,
) -> None:
    """All stages in order: clean, tokenizer, prepare, pretrain, publish, report. A finished stage
    is skipped."""
    with user_errors():
        experiment = experiment_of(config, overrides, new_run)
        if compared := experiment.compared_delta():
            from robustly.delta.tasks.data import read

            read(compared.delta.task)  # a fault of its files is said now, not after the training

        manifests = make_all(experiment, experiment.stages, live_code)
        summarize(experiment, manifests)
        if as_json:
            log.print_json({name: asdict(manifest) for name, manifest in manifests.items()})


def make_all(
    experiment: Experiment, stages: list[RunStage], live_code: bool
) -> dict[str, Manifest]:
    manifests = {}
    for stage in stages:
        log.say(f"--- {stage.name}")
        train = stage.name == "train"
        work = train_work(experiment, live_code=live_code) if train else experiment.work(stage)
        manifests[stage.name] = work.make()
        show_result(experiment.folder(stage.name), manifests[stage.name], False)

    return manifests


def summarize(experiment: Experiment, manifests: dict[str, Manifest]) -> None:
    """The final summary of a run: what the model is worth, where it is, and what to do with it."""
    from robustly.description import show_listing
    from robustly.publish.report import summary

    compared = manifests["report"].counts if "report" in manifests else None
    for listing in summary(manifests["published"], compared):
        show_listing(listing)

    published = experiment.folder("published")
    log.say(f"\nthe curve: {published / 'curve.png'}")
    log.say(f"the model: {published} (plain transformers loads it)")
    log.say(f"its card:  {published / 'README.md'}")
    log.say(f"next:      {command_line('inspect', str(published))}")
    log.say("           docs/howto/ in the repository: your own text, language, task")


@app.command(
    name="clean", help=STAGES["clean"].help, short_help="Filter and deduplicate the corpus."
)
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
    examples: Annotated[
        int | None,
        typer.Option(
            "--show",
            metavar="N",
            min=1,
            help="Make nothing: show N examples of what each rule does, of a sample where the"
            " corpus is not cleaned yet.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    with user_errors():
        from robustly.data_prep.cleaning.dropped import OPTION, write_dropped
        from robustly.data_prep.json_lines import check_place

        if dropped and examples:
            raise UserError(
                "--show makes nothing, and --dropped writes what was made; give one of them"
            )
        if dropped:
            check_place(dropped, OPTION)

        experiment = experiment_of(config, overrides, new_run)
        if examples:
            show_examples(experiment, examples, as_json)
            return

        folder = experiment.folder("clean")
        manifest = experiment.work(STAGES["clean"]).make()
        if dropped:
            number = write_dropped(experiment.corpus, folder, dropped)
            log.say(f"{number:,} dropped documents: {dropped}")

        following = next_command(experiment, "clean", config, overrides, new_run)
        show_result(folder, manifest, as_json, following)


def show_examples(experiment: Experiment, number: int, as_json: bool) -> None:
    """What each rule of cleaning does, on examples."""
    from robustly import description
    from robustly.data_prep.cleaning.showing import show_rules
    from robustly.experiment import clean_stage

    found = show_rules(clean_stage(experiment), number)
    if as_json:
        log.print_json(found.json())
    else:
        description.show(found)


def add_command(stage: RunStage) -> None:
    """The command of a stage that takes no options of its own."""

    @app.command(name=stage.verb, help=stage.help)
    def command(
        config: ConfigArgument,
        overrides: Overrides = None,
        new_run: NewRun = None,
        as_json: Json = False,
    ) -> None:
        with user_errors():
            experiment = experiment_of(config, overrides, new_run)
            manifest = experiment.work(stage).make()
            following = next_command(experiment, stage.name, config, overrides, new_run)
            show_result(experiment.folder(stage.name), manifest, as_json, following)


for each in RUN_STAGES:
    if each.name not in ("clean", "train", "report"):
        add_command(each)


@app.command(name="report", help=STAGES["report"].help)
def report_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    as_json: Json = False,
) -> None:
    with user_errors():
        experiment = experiment_of(config, overrides, new_run)
        if experiment.compared_delta() is None:
            raise UserError(
                f"{config}: names no delta to compare; set report.delta, such as"
                " report.delta=delta/lora.yaml"
            )

        made = {name: experiment.work(STAGES[name]).make() for name in ("published", "report")}
        show_result(experiment.folder("report"), made["report"], as_json)
        summarize(experiment, made)
