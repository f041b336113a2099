"""Look at the hosts of a run before it starts: `robustly launch check`, and what every start does
by itself."""

import dataclasses
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.files import write_json
from robustly.findings import Finding
from robustly.launch import Launcher
from robustly.launch.checks import NO_CHECK
from robustly.launch.checks.asking import ask
from robustly.launch.checks.compare import Answer, Fault, compare
from robustly.launch.checks.facts import Question, nearest, writing
from robustly.launch.checks.report import AllReduce, Report
from robustly.launch.job import Job, LaunchOptions, Machines
from robustly.preflight.memory import rank_memory
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.start.question import question_of

RANKS = "robustly.pretrain.start.check_hosts"
QUIET = ("TORCH_CPP_LOG_LEVEL=ERROR",)
"""Torch reads it as it is imported; it would warn of hosts without a name."""


def look(
    launcher: Launcher[Any],
    job: Job,
    options: LaunchOptions,
    config: PretrainingConfig,
    live_code: bool,
    wanted: bool = True,
) -> dict[str, str]:
    """What every start does before it, where its launcher reaches the hosts and that is `wanted`:
    ask them. Returns variables for the ranks, so that they do not look again; elsewhere they do so
    themselves.

    Raises UserError where the run cannot be started like this, StartAgain where hosts only do not
    answer."""
    if wanted and NO_CHECK not in os.environ:
        if launcher.reached is None:
            return {}

        found = _ask(launcher.reached(job, options), config, live_code)
        found.refuse()
        found.warn()

    return {NO_CHECK: "1"}


def examine(
    launcher: Launcher[Any],
    job: Job,
    options: LaunchOptions,
    config: PretrainingConfig,
    live_code: bool,
) -> Report:
    """The whole check: hosts, then ranks of the launcher that measure an all-reduce. Raises
    UserError where the launcher cannot run something now."""
    found = Report({}, [])
    if launcher.reached:
        found = _ask(launcher.reached(job, options), config, live_code)
        if found.problems:
            return found

    run = launcher.run or (launcher.start if launcher.waits else None)
    if run is None:
        raise UserError(
            "this launcher only hands the run to others: its ranks look at their hosts as they"
            " start, before anything is written"
        )

    place = nearest(job.finished.parent)
    with writing(place):
        folder = Path(tempfile.mkdtemp(prefix=".robustly-check-", dir=place))
    try:
        out = folder / "result.json"
        order: dict[str, Any] = {"out": str(out)}
        if not launcher.reached:
            order["question"] = asdict(_question(config))
        if options.meets:  # the other machines' commands have configs of their own
            order["config"] = str(folder / "config.json")
            write_json(Path(order["config"]), config.resolved())

        ranks = replace(
            job,
            command=("/usr/bin/env", *QUIET, sys.executable, "-m", RANKS, json.dumps(order)),
            finished=out,
            name=f"{job.name}-check",
            keeps_logs=False,
        )
        code = run(ranks, _once(options))
        if not out.exists():
            return Report(found.answers, [*found.faults, _no_ranks(found, code)])

        result = json.loads(out.read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    if not launcher.reached:
        answers = {host: Answer(*fields) for host, fields in result["answers"].items()}
        found = Report(answers, compare(answers))
    return found._replace(all_reduce=AllReduce(*result["all_reduce"]))


def _ask(machines: Machines, config: PretrainingConfig, live_code: bool) -> Report:
    return ask(machines, _question(config), own_code=live_code)


def _question(config: PretrainingConfig) -> Question:
    memory = rank_memory(config, config.run.ranks, "cuda").peak
    return replace(question_of(config), gpu_memory=memory)


def _once(options: LaunchOptions) -> LaunchOptions:
    """A check that fails is not tried again."""
    again = any(field.name == "restarts" for field in dataclasses.fields(options))
    return replace(options, restarts=0) if again else options  # type: ignore[call-arg]


def _no_ranks(found: Report, code: int) -> Fault:
    said = f"no ranks added up numbers together (exit code {code})"
    do = (
        "see what is said above; where they waited for each other, ports must be open between all"
        " hosts (NCCL_DEBUG=INFO)"
    )
    return Fault(tuple(found.answers) or ("all",), Finding("all-reduce", "problem", said, do))
