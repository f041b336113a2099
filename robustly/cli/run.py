"""`robustly run`: all stages in order."""

from dataclasses import asdict

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
    user_errors,
)
from robustly.experiment import Experiment
from robustly.manifest import Manifest


@app.command(name="run", short_help="All stages in order; what is finished is skipped.")
def run_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    as_json: Json = False,
) -> None:
    """All stages in order: clean, tokenizer, prepare, pretrain, publish, report. A finished stage
    is skipped."""
    with user_errors():
        experiment = experiment_of(config, overrides, new_run)
        if compared := experiment.compared_delta():
            from robustly.delta.tasks import read

            read(compared.delta.task)  # a fault of its files is said now, not after the training

        manifests: dict[str, Manifest] = {}
        for stage in experiment.stages:
            log.say(f"--- {stage.name}")
            manifests[stage.name] = experiment.work(stage).make()
            report(experiment.folder(stage.name), manifests[stage.name], None, False)

        summarize(experiment, manifests)
        if as_json:
            log.print_json({name: asdict(manifest) for name, manifest in manifests.items()})


def summarize(experiment: Experiment, manifests: dict[str, Manifest]) -> None:
    """The final summary of a run: what the model is worth, where it is, and what to do with it."""
    from robustly.description import show_listing
    from robustly.publish.report import summary

    published = experiment.folder("published")

    for listing in summary(
        manifests["published"], manifests["report"].counts if "report" in manifests else None
    ):
        show_listing(listing)

    log.say(f"\nthe curve: {published / 'curve.png'}")
    log.say(f"the model: {published} (plain transformers loads it)")
    log.say(f"its card:  {published / 'README.md'}")
    log.say(f"next:      {command_line('inspect', str(published))}")
    log.say("           docs/howto/: your own text, language, task")
