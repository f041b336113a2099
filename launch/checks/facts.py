"""What one host says of itself before a run: `python -m robustly.launch.checks.facts QUESTION`
prints it as JSON. Imports no torch, and takes about a second."""

import contextlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

from robustly import UserError, log, manifest, provenance
from robustly.config import fingerprint
from robustly.findings import Finding, gigabytes, gpu_health, open_files, shared_memory
from robustly.gpus import Gpu, gpu_processes, gpus
from robustly.launch.checks.names import first_host, network, own_name
from robustly.resources import available_memory

BEGUN = time.time()
PREFIXES = ("NCCL_", "GLOO_", "TORCH_NCCL_", "UCX_", "FI_")
OWN = ("IFNAME", "HCA", "DEVICES", "_IFACE")
"""Ends of variables that name a host's own devices, and may differ."""
PATIENCE = 2.0  # seconds until a file that another host wrote shows here


@dataclass(frozen=True)
class Question:
    """What is asked of a host. The ranks' paths, as they would find them."""

    tokenizer: str
    data: str
    train: str
    config: dict[str, Any] = field(default_factory=dict)
    """As whoever asks has it; empty: all ranks are given the same, or have compared theirs."""
    checkpoint: int = 0
    """Bytes of one."""
    checkpoints: int = 0
    """Bytes of all that will lie there at a time."""
    gpu_memory: int = 0
    """Bytes that a rank takes of its GPU, as estimated; 0: not known."""
    ranks: int = 1
    """Of this host."""
    hosts: int = 1
    """Of the run."""
    master: str = ""
    """Where ranks are to meet; empty: they have met."""
    port: int | None = None
    """The port that they meet on, if it is chosen by now."""
    first: bool = False
    """Whether they meet on this host, where it must be free."""
    other_ports: bool = False
    """Whether a new start would take another."""
    word: str = ""
    """Of the file that another host wrote; empty: none."""
    level: int = 0
    """How far above the train folder it lies: 0 is in it."""


class Facts(TypedDict):
    """What a host says of itself."""

    host: str
    begun: float
    """Its clock as it began to look."""
    ended: float
    """And at the end."""
    same: dict[str, Any]
    """What must be the same on every host, as nested plain data."""
    gpus: list[str]
    """Their kinds."""
    shown: dict[str, str]
    """For people."""
    findings: list[dict[str, Any]]
    """What this host alone can tell (`Finding`s); none of them `ok`."""


def facts(
    question: Question,
    begun: float,
    mine: Collection[int] = (),
    variables: Mapping[str, str] = os.environ,
) -> Facts:
    """Look around on this host. `mine`: processes that may be on its GPUs."""
    findings: list[Finding] = []
    same: dict[str, Any] = {}
    if question.hosts > 1:  # else there is nothing to compare it with
        same, findings = _same(question, variables)

    to_meet = question.hosts > 1 and question.master
    here = gpus()
    computing = [each for each in gpu_processes() if each.pid not in mine] if here else []
    findings += [
        *gpu_health(here, computing),
        *enough_gpus(here, question),
        *interfaces(variables, {name for _, name in socket.if_nameindex()}),
        *(way_to_first(question) if to_meet else []),
        *(own_name(variables) if to_meet and not here else []),
        *(port(question.port, question.other_ports) if question.first and question.port else []),
        *run_folder(question),
        *disk(question),
        open_files(),
    ]
    if here and question.ranks > 1:
        findings.append(shared_memory())

    versions = same.get("versions", {})
    shown = {
        "commit": _short(same.get("code", {}).get("commit", "")),
        "python": versions.get("python", ""),
        "torch": versions.get("torch", "").partition("+")[0],
        "memory": gigabytes(available_memory()),
        "disk": gigabytes(shutil.disk_usage(nearest(Path(question.train))).free),
    }
    return {
        "host": socket.gethostname(),
        "begun": begun,
        "ended": time.time(),
        "same": same,
        "gpus": [gpu.name for gpu in here],
        "shown": shown,
        "findings": [asdict(each) for each in findings if each.status != "ok"],
    }


def _short(commit: str) -> str:
    """With a + where files differ from it."""
    number, dirty, _ = commit.partition("-dirty")
    return number[:7] + ("+" if dirty else "")


def _same(question: Question, variables: Mapping[str, str]) -> tuple[dict[str, Any], list[Finding]]:
    found: dict[str, Any] = {
        "config": question.config,
        "variables": {
            name: value
            for name, value in sorted(variables.items())
            if name.startswith(PREFIXES) and not name.endswith(OWN)
        },
    }
    lacks: list[Finding] = []
    try:
        code = provenance.code()
        found |= {"versions": code.pop("versions"), "code": code}
    except metadata.PackageNotFoundError as error:
        do = f"install it there, into {sys.prefix}"
        lacks.append(Finding("libraries", "problem", f"{error.name} is not installed", do))

    for stage, folder in (("tokenizer", question.tokenizer), ("data", question.data)):
        try:
            made = manifest.require(Path(folder), stage)
            found[stage] = {"recipe": made.hash, "files": fingerprint(made.outputs)}
        except (UserError, OSError) as fault:
            do = "the folder must be on a file system that all hosts share, or be copied to each"
            lacks.append(Finding(stage, "problem", str(fault), do))

    return found, lacks


# ----------------------------------------------------------------------------- what a host can tell


def enough_gpus(here: list[Gpu], question: Question) -> list[Finding]:
    """A GPU for each rank, with the memory that it needs. None where torch is built for CPU."""
    if not here or metadata.version("torch").endswith("+cpu"):
        return []
    if len(here) < question.ranks:
        return [
            Finding(
                "gpus",
                "problem",
                f"{question.ranks} ranks, and {len(here)} {'GPU' if len(here) == 1 else 'GPUs'}",
                "lower the ranks of this host, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on"
                " CPU",
            )
        ]

    return [
        Finding(
            f"gpu {gpu.index}",
            "note",
            f"{log.gigabytes(gpu.memory - gpu.used)} of its memory are free; a rank is estimated to"
            f" take {log.gigabytes(question.gpu_memory)}",
            "lower run.micro_batch (`robustly plan` says to what)",
        )
        for gpu in here[: question.ranks]
        if gpu.memory - gpu.used < question.gpu_memory
    ]


def interfaces(variables: Mapping[str, str], there: set[str]) -> list[Finding]:
    """Variables that name a network interface, and none that is there. gloo takes names; NCCL
    beginnings of names, `=` before whole ones, `^` before those to be left alone."""
    found = []
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        text = variables.get(variable, "")
        wanted = [name for name in text.lstrip("=").split(",") if name]
        whole = variable.startswith("GLOO") or text.startswith("=")
        if not wanted or (text.startswith("^") and not whole):
            continue

        def exists(name: str, whole: bool = whole) -> bool:
            return name in there if whole else any(each.startswith(name) for each in there)

        # gloo opens each one; NCCL takes what it finds
        lacking = [name for name in wanted if not exists(name)]
        if lacking and (variable.startswith("GLOO") or len(lacking) == len(wanted)):
            found.append(
                Finding(
                    variable,
                    "problem",
                    f"{variable}={text}, and there is no {', '.join(lacking)}",
                    f"name one of {', '.join(sorted(there))}",
                )
            )

    return found


def way_to_first(question: Question) -> list[Finding]:
    """Whether this host knows and reaches the one where ranks are to meet."""
    unknown = first_host(question.master)
    if unknown or question.first or not question.port:
        return unknown
    return network(question.master, question.port)


def port(number: int, others: bool) -> list[Finding]:
    """Whether the port where ranks are to meet is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's store listens
        try:
            probe.bind(("", number))
            return []
        except OSError as error:
            found = f"port {number}: {error.strerror}"
            if others:
                do = "the start after this one takes the next; or take one: --master-port N"
                return [Finding("port", "note", found, do)]
            return [Finding("port", "problem", found, "take another: --master-port N")]


def nearest(folder: Path) -> Path:
    """A folder, or the nearest above it that exists."""
    return next(each for each in levels(folder) if each.is_dir())


def levels(folder: Path) -> list[Path]:
    whole = folder.absolute()
    return [whole, *whole.parents]


def word_file(question: Question) -> Path:
    return levels(Path(question.train))[question.level] / f".robustly-check-{question.word}"


def write_word(question: Question) -> None:
    """Write the file that the other hosts look for. Raises UserError if that cannot be."""
    file = word_file(question)
    with writing(file.parent):
        file.write_text(question.word)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Something is written into a folder meanwhile. Raises UserError if that cannot be."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror}; set paths.root to another place"
        ) from None


def run_folder(question: Question) -> list[Finding]:
    """Whether the run's folder is the one that the others have, and can be written."""
    file = word_file(question)
    deadline = time.monotonic() + PATIENCE
    while question.word and not _says(file, question.word):
        if time.monotonic() > deadline:
            return [
                Finding(
                    "run's folder",
                    "problem",
                    f"{file.parent} is another one here: a file that was written there does not"
                    " show",
                    "put it on a file system that all hosts share (paths.root), at the same path",
                )
            ]
        time.sleep(0.1)

    folder = nearest(Path(question.train))
    if os.access(folder, os.W_OK):
        return []
    return [
        Finding(
            "run's folder",
            "problem",
            f"{folder} cannot be written here",
            "give it to the user that trains, or mount it for writing",
        )
    ]


def _says(file: Path, word: str) -> bool:
    try:
        return file.read_text() == word
    except OSError:
        return False


def disk(question: Question) -> list[Finding]:
    """Free disk for checkpoints."""
    folder = nearest(Path(question.train))
    free = shutil.disk_usage(folder).free
    facts = f"{log.gigabytes(free)} are free in {folder}, and"
    if free < question.checkpoint:
        found = f"{facts} a checkpoint takes {log.gigabytes(question.checkpoint)}"
        do = "make room, or set paths.train to a larger disk"
        return [Finding("disk", "problem", found, do)]
    if free < question.checkpoints:
        found = f"{facts} checkpoints may take {log.gigabytes(question.checkpoints)}"
        do = "make room before they do, or lower run.keep_checkpoints"
        return [Finding("disk", "note", found, do)]
    return []


def main(words: Iterable[str]) -> None:
    (text,) = words
    known = {each.name for each in fields(Question)}  # whoever asks may have other code
    given = {name: value for name, value in json.loads(text).items() if name in known}
    print(json.dumps(facts(Question(**given), BEGUN)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
