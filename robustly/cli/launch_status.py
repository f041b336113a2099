"""`robustly launch status`: where a run stands, whatever started it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from robustly import UserError, log
from robustly.cli.common import Overrides, command_line, user_errors
from robustly.experiment import CONFIGS, Experiment, load_experiment

JsonStatus = Annotated[
    bool, typer.Option("--json", help="Print the status as one JSON object on stdout.")
]


def status_command(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder of the run, or of its training, or config.")
    ],
    overrides: Overrides = None,
    as_json: JsonStatus = False,
) -> None:
    """Tell where a run stands: stages, whether it trains and where, update, loss, speed, time left,
    newest checkpoint, how it last ended, and what to type next. It watches for a few seconds, from
    any machine that sees the folder, whatever launcher started it."""
    with user_errors():
        from robustly.inspection import status

        experiment = _experiment(run, overrides or [])
        train = experiment.folder("train")
        stages = [
            status.of_stage(stage.name, experiment.folder(stage.name))
            for stage in experiment.stages
            if stage.name != "train"
        ]
        training = status.of_training(train, *status.observe(train))
        verbs = {stage.name: stage.verb for stage in experiment.stages}
        names = list(verbs)
        open_stages = [stage for stage in stages if stage.state != "done"]
        before = [stage for stage in open_stages if names.index(stage.name) < names.index("train")]
        after = [stage for stage in open_stages if stage not in before]
        config = run if not Path(run).is_dir() else str(train / "config.yaml")

        def command(found: list[status.StageStatus]) -> str:
            return command_line(verbs[found[0].name], config, *(overrides or [])) if found else ""

        look = command_line("launch", "status", run, *(overrides or []))
        busy = any(stage.state == "running" for stage in stages)
        then = status.next_step(training, command(before), command(after), look, busy)
        if as_json:
            log.print_json(
                {
                    "run": str(experiment.root),
                    "stages": [asdict(stage) for stage in stages],
                    "train": {"folder": str(train), **asdict(training)},
                    "next": then,
                }
            )
            return

        states = {stage.name: stage.state for stage in stages} | {"train": training.state}
        log.table(
            f"status of {experiment.root}",
            {
                "stages": ", ".join(f"{name} {states[name]}" for name in names),
                **_rows(training),
                "next": then,
            },
        )


def _experiment(run: str, overrides: list[str]) -> Experiment:
    """Of a config, or of a folder by the config that it was trained with, or begun to be. Raises
    UserError."""
    folder = Path(run)
    if not folder.is_dir():
        return load_experiment(run, overrides)

    for train in (folder, folder / "train"):
        settled = sorted((train / CONFIGS).glob("*.yaml"), key=lambda path: path.stat().st_mtime_ns)
        for config in (train / "config.yaml", *reversed(settled)):
            if config.is_file():
                return load_experiment(config, overrides)

    raise UserError(f"{folder}: no training was begun here; give the run's config")


def _rows(training: Any) -> dict[str, Any]:
    """What is known, for people."""
    rows: dict[str, Any] = {}
    if held := training.holder:
        words = [f"rank 0 is pid {held['pid']} on {held['host']}", held["job"], held["attempt"]]
        rows["held by"] = ", ".join(filter(None, (*words, f"since {held['since']}")))
    if training.hosts:
        rows["hosts"] = ", ".join(training.hosts)
    if training.starts:
        rows["starts"] = training.starts
    if now := training.progress:
        at = [f"update {now.update:,} of {now.updates:,}"]
        at += [f"loss {now.loss:.4f}"] if now.loss is not None else []
        at += [f"{now.tokens_per_second:,.0f} tokens/s"] if now.tokens_per_second else []
        ago = now.seconds_ago
        rows["progress"] = ", ".join(at) + (f", {log.duration(ago)} ago" if ago is not None else "")
        if training.state != "done" and now.seconds_left is not None:
            rows["time left"] = log.duration(now.seconds_left)
        kept = f"update {now.checkpoint:,}" if now.checkpoint is not None else "none yet"
        if now.best:
            kept += f"; the best: update {now.best['update']:,}"
        rows["newest checkpoint"] = kept
    if end := training.last_end:
        who = f"rank {end['rank']} on {end['host']}, " if end["host"] else ""
        rows["last end"] = (
            f"{who}exit code {end['code']}, at update {end['update']}: {end['reason']}"
        )
    return rows
