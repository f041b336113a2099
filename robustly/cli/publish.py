"""`robustly publish` and `robustly report`."""

from robustly import UserError
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
from robustly.cli.run import summarize
from robustly.experiment import published_work, report_work


@app.command(name="publish", short_help="Make a folder that plain transformers loads.")
def publish_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    as_json: Json = False,
) -> None:
    """Make a folder of the last checkpoint (publish.checkpoint: or the best) that plain
    transformers loads, and prove it."""
    with user_errors():
        experiment = experiment_of(config, overrides, new_run)
        folder = experiment.folder("published")
        following = "report", *retyped(config, overrides, new_run)
        report(
            folder,
            published_work(experiment).make(),
            (
                command_line(*following)
                if experiment.report.delta
                else command_line("inspect", str(folder))
            ),
            as_json,
        )


@app.command(name="report")
def report_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    as_json: Json = False,
) -> None:
    """Compare a delta on the published model and on an untrained one."""
    with user_errors():
        experiment = experiment_of(config, overrides, new_run)
        if experiment.compared_delta() is None:
            raise UserError(
                f"{config}: names no delta to compare; set report.delta, such as"
                " report.delta=delta/lora.yaml"
            )

        manifests = {
            "published": published_work(experiment).make(),
            "report": report_work(experiment).make(),
        }
        report(experiment.folder("report"), manifests["report"], None, as_json)
        summarize(experiment, manifests)
