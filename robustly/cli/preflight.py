"""`robustly plan` and `robustly doctor`: before anything runs."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from robustly import UserError, log
from robustly.cli.application import app
from robustly.cli.common import (
    ConfigArgument,
    Overrides,
    user_errors,
)
from robustly.experiment import Experiment, load_experiment
from robustly.pretrain.flops import flops_per_token
from robustly.resources import available_memory, cores

if TYPE_CHECKING:
    from robustly.preflight.plan import Machine, Speed


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
        from robustly.preflight.plan import plan, show

        experiment = load_experiment(config, overrides)
        settings = experiment
        total = ranks or experiment.run.ranks
        machine = _machine(experiment, total, memory)
        speed = _speed(experiment, total, tokens_per_second, tflops, measure)
        found = plan(
            settings,
            experiment.corpus,
            experiment.tokenizer,
            total,
            machine,
            speed,
        )
        show(found)
        if as_json:
            log.print_json(asdict(found))


def _machine(experiment: Experiment, ranks: int, gigabytes: float | None) -> "Machine":
    """What a rank runs on: the GPU whose memory is given, this machine's, or, for fp32 without one,
    its CPU."""
    from robustly.preflight import doctor
    from robustly.preflight.plan import Machine

    if gigabytes is not None:
        return Machine("cuda", round(gigabytes * 1e9), "--memory")

    if here := doctor.gpus():
        least = min(here, key=lambda gpu: gpu.memory)
        return Machine("cuda", least.memory, f"this machine's {least.name}")

    if experiment.run.precision != "fp32":
        return Machine("cuda", None, "no GPU on this machine: say --memory GB")

    shared = f"this machine's free RAM / {ranks} {'rank' if ranks == 1 else 'ranks'}"
    return Machine("cpu", available_memory() // ranks, shared)


def _speed(
    experiment: Experiment,
    ranks: int,
    tokens_per_second: float | None,
    tflops: float | None,
    measured: bool,
) -> "Speed | None":
    """The speed that was given or is to be measured. Raises UserError for more than one of them."""
    from robustly.preflight import plan

    if (tokens_per_second is not None) + (tflops is not None) + measured > 1:
        raise UserError("--tokens-per-second, --tflops, --measure: give one of them")
    if tokens_per_second is not None:
        return plan.Speed(tokens_per_second, "--tokens-per-second")

    vocabulary = experiment.tokenizer.vocab_size
    if tflops is not None:
        per_token = flops_per_token(
            experiment.model,
            vocabulary,
            experiment.data.block_length,
            experiment.masking.probability,
        )
        return plan.speed_at(tflops, ranks, per_token, f"--tflops {tflops:g}, {ranks} ranks")

    if not measured:
        return None

    from robustly.launch.environment import Rank, export
    from robustly.launch.local import free_port

    log.say("measuring one rank's speed on this machine ...")
    export(Rank(0, 0, 1, 1, "127.0.0.1", free_port()))
    from robustly.preflight.speed import measure

    return measure(experiment, vocabulary, ranks, cores())


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
