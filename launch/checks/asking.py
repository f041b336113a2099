"""Ask hosts for their facts before ranks start: all at once, with a deadline, so that one that is
down is a line of the answer and not the end of it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from secrets import token_hex

from robustly.launch.checks.compare import Answer, compare
from robustly.launch.checks.facts import Question, facts, levels, word_file, write_word
from robustly.launch.checks.report import Report
from robustly.launch.job import Machines, Reached
from robustly.launch.remote import SSH_FAILED

DEADLINE = 30.0
"""Seconds for an answer; ssh itself gives up on a host after 20."""


def ask(machines: Machines, question: Question, own_code: bool = True) -> Report:
    """What all hosts of a run answer; `own_code` as `compare` takes it. Raises UserError where the
    run's folder cannot be written from here."""
    hosts = machines.hosts
    with shared_word(question, alone=len(hosts) == 1) as question:
        questions = [
            replace(
                question,
                hosts=len(hosts),
                ranks=host.ranks,
                master=hosts[0].address,
                port=host.port,
                first=host is hosts[0],
                other_ports=host.other_ports,
            )
            for host in hosts
        ]
        with ThreadPoolExecutor(len(hosts)) as threads:
            answers = threads.map(_ask, hosts, questions)
            found = dict(zip((host.name for host in hosts), answers, strict=True))

    return Report(found, compare(found, machines.spare, own_code))


@contextmanager
def shared_word(question: Question, alone: bool = False) -> Iterator[Question]:
    """The question with a random word, which lies in the run's folder meanwhile for the other hosts
    to find; none where there are no others."""
    if alone:
        yield question
        return

    folders = levels(Path(question.train))
    level = next(i for i, folder in enumerate(folders) if folder.is_dir())
    asked = replace(question, word=token_hex(8), level=level)
    write_word(asked)
    try:
        yield asked
    finally:
        word_file(asked).unlink(missing_ok=True)


def _ask(host: Reached, question: Question) -> Answer:
    sent = time.time()
    if host.words is None:
        return Answer(facts(question, sent), sent, time.time())

    text = json.dumps(asdict(question))
    command = host.words((sys.executable, "-m", "robustly.launch.checks.facts", text))
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE
        )
    except subprocess.TimeoutExpired:
        return Answer(None, sent, time.time(), f"no answer within {DEADLINE:.0f} s")
    except OSError as error:
        return Answer(None, sent, time.time(), f"{command[0]}: {error.strerror}")

    received = time.time()
    # a login there may print something of its own
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"host"')]
    if done.returncode == 0 and lines:
        return Answer(json.loads(lines[-1]), sent, received)

    said = done.stderr.strip().splitlines()
    fault = said[-1] if said else f"exit code {done.returncode} without a word"
    reached = 0 <= done.returncode != SSH_FAILED
    return Answer(None, sent, received, fault, reached)
