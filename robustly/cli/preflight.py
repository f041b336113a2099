"""`robustly plan` and `robustly doctor`: before anything runs."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from robustly import UserError, log
from robustly.cli.application import app
from robustly.cli.common import ConfigArgument, Overrides, user_errors
from robustly.experiment import Experiment, load_experiment
from robustly.pretrain.flops import flops_per_token

if TYPE_CHECKING:
    from robustly.preflight.speed import Speed


@app.command(name="plan", short_help="Estimate time, memory and disk of a config.")
def plan_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Ranks in all; default: run.ranks.")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="GB", help="Memory of one GPU; default: this machine's."),
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=0.001, metavar="N", help="Speed of all ranks together.")
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="N", help="Operations a rank reaches, 10^12 per second."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine's speed: some 20 seconds.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the plan as one JSON object on stdout.")
    ] = False,
) -> None:
    """Estimate what a config takes, before anything runs: parameters, FLOPs, epochs, memory of a
    rank, time, disk."""
    with user_errors():
        from robustly.preflight.machine import machine_for
        from robustly.preflight.plan import plan, show

        experiment = load_experiment(config, overrides)
        total = ranks or experiment.run.ranks
        machine = machine_for(experiment.run, total, memory)
        speed = _speed(experiment, total, tokens_per_second, tflops, measure)
        found = plan(experiment, total, machine, speed)
        show(found)
        if as_json:
            log.print_json(asdict(found))


def _speed(
    experiment: Experiment,
    ranks: int,
    tokens_per_second: float | None,
    tflops: float | None,
    measured: bool,
) -> "Speed | None":
    """The speed that was given or is to be measured. Raises UserError for more than one of them."""
    from robustly.preflight.speed import Speed, speed_at

    if (tokens_per_second is not None) + (tflops is not None) + measured > 1:
        raise UserError("--tokens-per-second, --tflops, --measure: give one of them")
    if tokens_per_second is not None:
        return Speed(tokens_per_second, "--tokens-per-second")

    if tflops is not None:
        per_token = flops_per_token(
            experiment.model,
            experiment.tokenizer.vocab_size,
            experiment.data.block_length,
            experiment.masking.mean_probability,
        )
        return speed_at(tflops, ranks, per_token, f"--tflops {tflops:g}, {ranks} ranks")

    if not measured:
        return None

    from robustly.launch.environment import Rank, export
    from robustly.launch.local import free_port

    log.say("measuring one rank's speed on this machine ...")
    export(Rank(0, 0, 1, 1, "127.0.0.1", free_port()))
    from robustly.preflight.measure_speed import measure

    return measure(experiment, ranks)


@app.command(name="doctor", short_help="What this machine has and lacks.")
def doctor_command(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as one JSON object on stdout.")
    ] = False,
) -> None:
    """What this machine has and lacks for training, each line with what to do. Exit code 1: not
    even tiny can run."""
    from robustly.preflight import doctor

    with user_errors():
        report = doctor.examine()
        doctor.show(report)
        if as_json:
            log.print_json(asdict(report))

        if not report.able:
            raise typer.Exit(1)
