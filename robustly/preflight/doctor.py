"""`robustly doctor`: check this machine for training, and say what can be trained on it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustly import log
from robustly.findings import Finding, gpu_health, open_files, shared_memory
from robustly.gpus import gpu_processes, gpus
from robustly.preflight import checks


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and what follows from them."""

    findings: list[Finding]
    able: bool
    """Whether `robustly run configs/tiny.yaml` can work here."""
    verdict: str


def examine() -> Diagnosis:
    """Make every check, in the order in which they are printed."""
    here = Path.cwd()
    seen = gpus()
    health = gpu_health(seen, gpu_processes() if seen else [])
    torch_findings, usable_gpus = checks.torch_and_gpus(seen)
    findings = [checks.python(), *checks.libraries(), *torch_findings, *health]
    if not usable_gpus:
        findings.append(checks.processor())

    findings += [
        checks.memory(),
        shared_memory(),
        checks.disk(here),
        checks.working_directory(here),
        open_files(),
        checks.launchers(),
        checks.encoding(),
        checks.variables(os.environ),
    ]
    problems = [finding.what for finding in findings if finding.status == "problem"]
    cluster = checks.which("sbatch") is not None
    return Diagnosis(findings, not problems, verdict(problems, usable_gpus, cluster))


def verdict(problems: Sequence[str], usable_gpus: int, cluster: bool) -> str:
    """What can be trained on this machine, in a line."""
    if problems:
        return f"nothing can be trained here until this is fixed: {', '.join(problems)}"

    where = (
        "; Slurm is here: `robustly launch slurm CONFIG` trains on the cluster" if cluster else ""
    )
    if usable_gpus > 1:
        return (
            f"{usable_gpus} GPUs: any config with run.ranks={usable_gpus}, or configs/tiny.yaml to"
            f" begin with{where}"
        )
    if usable_gpus:
        return (
            "one GPU: configs/gpu_24gb_day.yaml and its like, or configs/tiny.yaml to begin"
            f" with{where}"
        )

    return (
        "CPU only: `robustly run configs/tiny.yaml` trains in minutes; larger models need a"
        f" GPU{where}"
    )


def show(report: Diagnosis) -> None:
    """Print a line for each finding, what to do below it, and the verdict."""
    width = max(len(finding.what) for finding in report.findings)
    for finding in report.findings:
        log.say(f"{finding.status:<8} {finding.what:<{width}}  {finding.found}")
        if finding.do:
            log.say(f"{'':<8} {'':<{width}}  -> {finding.do}")

    log.say(report.verdict)
