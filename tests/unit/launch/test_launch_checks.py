"""What hosts say of themselves before a run, and what is made of it."""

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from robustly import StartAgain, UserError, manifest
from robustly.exit_codes import FINISHED, MISTAKE, START_AGAIN
from robustly.findings import Finding
from robustly.gpus import Gpu
from robustly.launch.checks import asking, facts
from robustly.launch.checks.compare import Answer, Fault, compare, rows
from robustly.launch.checks.facts import Facts, Question, interfaces
from robustly.launch.checks.report import AllReduce, Report
from robustly.launch.job import Machines, Reached

ROOT = Path(__file__).resolve().parents[3]


def of_host(**changes: Any) -> Facts:
    """A host of two, at 100 s by its clock."""
    same = {
        "variables": {},
        "code": {"commit": "abc"},
        "versions": {"torch": "2.13.0"},
        "config": {"seed": 1, "optim": {"peak_lr": 0.1}},
        "data": {"recipe": "d1", "files": "f1"},
    }
    found: Facts = {
        "host": "x",
        "begun": 100.0,
        "ended": 101.0,
        "same": {**same, **changes.pop("same", {})},
        "gpus": [],
        "shown": {"commit": "abc", "torch": ""},
        "findings": [],
    }
    return {**found, **changes}  # type: ignore[typeddict-item]


def answered(**changes: Any) -> Answer:
    return Answer(of_host(**changes), 99.0, 102.0)


SILENT = Answer(None, 99.0, 119.0, "ssh: connect to host c port 22: Connection timed out")


def said(faults: list[Fault]) -> list[tuple[str, str, str]]:
    return [(", ".join(hosts), one.status, f"{one.what}: {one.found}") for hosts, one in faults]


# ---------------------------------------------------------------------------------------- comparing


def test_hosts_that_are_alike_and_well() -> None:
    answers = {"a": answered(), "b": answered()}
    assert compare(answers) == [] and Report(answers, []).code == FINISHED
    assert rows(answers)[1] == {
        "host": "b", "answer": "3.0 s", "commit": "abc", "GPUs": "no GPU", "clock": "ok",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("same", "expected"),
    [
        ({"config": {"seed": 2, "optim": {"peak_lr": 0.1}}}, "config.seed = 2, a has 1"),
        ({"config": {"seed": 1, "optim": {"peak_lr": 0.2}}}, "config.optim.peak_lr = 0.2, a has 0.1"),
        ({"code": {"commit": "def"}}, "code.commit = def, a has abc"),
        ({"versions": {"torch": "2.11.0"}}, "versions.torch = 2.11.0, a has 2.13.0"),
        ({"data": {"recipe": "d2", "files": "f1"}}, "data.recipe = d2, a has d1"),
        ({"variables": {"NCCL_ALGO": "Ring"}}, "variables.NCCL_ALGO = Ring, a has absent"),
    ],
)  # fmt: skip
def test_what_differs_is_named_once_with_its_hosts_and_both_values(
    same: dict[str, Any], expected: str
) -> None:
    odd = answered(same=same)
    ((hosts, finding),) = compare({"a": answered(), "b": odd, "c": odd, "d": answered()})
    assert hosts == ("b", "c") and finding.status == "problem" and finding.found == expected
    assert finding.do


def test_of_several_hosts_the_odd_ones_are_named_first_or_not() -> None:
    """Each by what it alone has of its own."""
    answers = {
        "a": answered(same={"code": {"commit": "def"}}, gpus=["H100"]),
        "b": answered(),
        "c": answered(same={"data": {"recipe": "d2", "files": "f1"}}),
        "d": answered(),
    }
    assert said(compare(answers)) == [
        ("a", "problem", "code: code.commit = def, b has abc"),
        ("a", "problem", "gpus: 1 x H100, b has no GPU"),
        ("c", "problem", "data: data.recipe = d2, a has d1"),
    ]


def test_code_of_a_host_that_ranks_do_not_run_is_a_note() -> None:
    answers = {"a": answered(), "b": answered(same={"code": {"commit": "def"}})}
    ((_, finding),) = compare(answers, own_code=False)
    assert finding.status == "note" and "--live-code" in finding.do


def test_what_a_host_finds_itself_is_grouped_and_the_worst_comes_first() -> None:
    note, problem = (
        Finding("open files", "note", "few", "more"),
        Finding("port", "problem", "x", "y"),
    )
    answers = {
        "a": answered(findings=[asdict(note), asdict(problem)]),
        "b": answered(findings=[asdict(note)]),
    }
    assert compare(answers) == [Fault(("a",), problem), Fault(("a", "b"), note)]


def test_what_is_missing_is_said_once_by_the_host_that_lacks_it() -> None:
    lacking = of_host(findings=[asdict(Finding("data", "problem", "no finished data", "share"))])
    del lacking["same"]["data"]
    faults = compare({"a": answered(), "b": Answer(lacking, 99.0, 102.0)})
    assert said(faults) == [("b", "problem", "data: no finished data")]


def test_a_host_that_does_not_answer_is_a_line_and_not_the_end() -> None:
    seed = {"config": {"seed": 2, "optim": {"peak_lr": 0.1}}}
    answers = {"c": SILENT, "a": answered(), "b": answered(same=seed)}
    assert [hosts for hosts, _ in compare(answers)] == [("c",), ("b",)]
    assert rows(answers)[0] == {"host": "c", "answer": "none"}

    found = Report(answers, compare(answers))
    assert found.code == MISTAKE
    with pytest.raises(
        UserError, match=r"(?s)c: reach: .* timed out\n.*b: config.seed = 2, a has 1\n"
    ) as refusal:
        found.refuse()
    assert not isinstance(refusal.value, StartAgain)


def test_where_hosts_only_do_not_answer_a_new_start_may_help() -> None:
    answers = {"c": SILENT, "a": answered()}
    found = Report(answers, compare(answers))
    assert found.code == START_AGAIN
    with pytest.raises(StartAgain):
        found.refuse()


def test_a_host_that_answers_without_the_environment_is_not_called_down() -> None:
    """No new start helps, and no spare makes up for it."""
    lacking = Answer(None, 99.0, 100.0, "env: '/venv/bin/python': No such file", reached=True)
    answers = {"a": answered(), "b": lacking}
    (fault,) = compare(answers, spare=1)
    assert (fault.finding.what, fault.finding.status) == ("start", "problem")
    assert "at the same paths" in fault.finding.do and "ssh" not in fault.finding.do
    assert Report(answers, [fault]).code == MISTAKE
    assert [each.finding.what for each in compare({**answers, "c": SILENT}, spare=1)] == [
        "start", "reach",
    ]  # fmt: skip


def test_a_host_may_be_missing_where_others_can_stand_in(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = {"a": answered(), "c": SILENT, "d": answered()}
    found = Report(answers, compare(answers, spare=1))
    assert found.code == FINISHED
    found.refuse()
    found.warn()
    assert "warning: c: reach: ssh: connect" in capsys.readouterr().err
    assert Report(answers, compare({**answers, "d": SILENT}, spare=1)).code == START_AGAIN

    lost = Finding("network", "problem", "does not reach a", "look at it")
    away = answered(findings=[asdict(lost)])
    (one,) = compare({**answers, "c": away}, spare=1)
    assert (one.hosts, one.finding.what, one.finding.status) == (("c",), "network", "note")
    both = {**answers, "d": away}
    assert {fault.finding.status for fault in compare(both, spare=1)} == {"problem"}
    assert Report(both, compare(both, spare=1)).code == START_AGAIN


@pytest.mark.parametrize(
    ("gpus", "status"),
    [(["H100"], "problem"), (["A100"], "note"), (["H100", "A100"], "note")],
)
def test_unlike_gpus(gpus: list[str], status: str) -> None:
    first = [] if status == "problem" else ["H100"]
    ((hosts, finding),) = compare({"a": answered(gpus=first), "b": answered(gpus=gpus)})
    assert (hosts, finding.status) == (("b",), status)
    assert "1 x " in finding.found


@pytest.mark.parametrize(
    ("begun", "ended", "ahead"),
    [
        (100.0, 101.0, 0.0),
        (98.0, 99.0, -1.0),  # it began to look before it was asked
        (107.0, 109.0, 7.0),  # and ended after its answer was here
        (99.5, 102.5, 0.5),
    ],
)
def test_clocks_are_compared_as_far_as_the_round_trip_allows(
    begun: float, ended: float, ahead: float
) -> None:
    answer = answered(begun=begun, ended=ended)
    assert answer.clock() == ahead
    faults = compare({"a": answered(), "b": answer})
    assert [finding.what for _, finding in faults] == (["clock"] if abs(ahead) > 1 else [])


def test_what_programs_get() -> None:
    answers = {"a": answered(), "c": SILENT}
    found = Report(answers, compare(answers), AllReduce(4, 2, 2**24, 0.01))
    plain = json.loads(json.dumps(found.plain()))
    assert plain["ready"] is False and plain["faults"][0]["hosts"] == ["c"]
    assert plain["hosts"]["c"]["fault"] == SILENT.fault and plain["hosts"]["c"]["facts"] is None
    assert plain["all_reduce"] == {"ranks": 4, "hosts": 2, "bytes": 2**24, "seconds": 0.01}
    assert "16.8" in str(found.all_reduce) or "0.02 GB in 10.0 ms, 2.52 GB/s" in str(
        found.all_reduce
    )


# -------------------------------------------------------------------------------------- looking around


@pytest.fixture
def question(tmp_path: Path) -> Question:
    return Question(
        tokenizer=str(tmp_path / "tokenizer"),
        data=str(tmp_path / "data"),
        train=str(tmp_path / "run/train"),
        config={"seed": 7},
    )


def found_by(question: Question, variables: dict[str, str] | None = None) -> dict[str, Finding]:
    given = facts.facts(question, 0.0, variables=variables or {})
    return {each["what"]: Finding(**each) for each in given["findings"]}


def test_a_host_alone_has_nothing_to_compare(question: Question) -> None:
    given = facts.facts(question, 0.0)
    assert given["same"] == {} and given["host"] == socket.gethostname()
    assert found_by(question) == {}


def test_what_must_be_the_same_on_all_hosts(question: Question) -> None:
    several = replace(question, hosts=2)
    variables = {
        "NCCL_ALGO": "Ring", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_HCA": "mlx5_0", "GLOO_SOCKET_IFNAME": "lo",
        "UCX_NET_DEVICES": "x", "UCX_TLS": "tcp", "HOME": "/root",
    }  # fmt: skip
    same = facts.facts(several, 0.0, variables=variables)["same"]
    assert same["variables"] == {"NCCL_ALGO": "Ring", "UCX_TLS": "tcp"}
    assert same["config"] == {"seed": 7} and "torch" in same["versions"]
    assert same["code"]["commit"] == manifest.commit() and "source" in same["code"]
    assert {"tokenizer", "data"} <= found_by(several).keys()  # nothing there


@pytest.mark.parametrize(
    ("variables", "lacking"),
    [
        ({"GLOO_SOCKET_IFNAME": "eth0"}, ""),
        ({"GLOO_SOCKET_IFNAME": "eth0,ib0"}, ""),
        ({"GLOO_SOCKET_IFNAME": "eth0,ib1"}, "ib1"),
        ({"GLOO_SOCKET_IFNAME": "eth"}, "eth"),
        ({"NCCL_SOCKET_IFNAME": "eth"}, ""),  # NCCL takes the beginning of a name
        ({"NCCL_SOCKET_IFNAME": "=eth"}, "eth"),
        ({"NCCL_SOCKET_IFNAME": "^docker,veth"}, ""),
        ({"NCCL_SOCKET_IFNAME": "ens,eth"}, ""),
        ({"NCCL_SOCKET_IFNAME": "ens"}, "ens"),
        ({"GLOO_SOCKET_IFNAME": ""}, ""),
    ],
)
def test_interfaces_that_are_not_there(variables: dict[str, str], lacking: str) -> None:
    found = interfaces(variables, {"lo", "eth0", "ib0"})
    assert bool(found) is bool(lacking)
    if found:
        assert f"there is no {lacking}" in found[0].found and "eth0, ib0, lo" in found[0].do


def test_names_by_which_hosts_cannot_find_each_other(
    question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = replace(question, hosts=2, master="localhost")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    assert "resolves to 127.0.1.1" in found_by(several)["own name"].found
    assert "own name" not in found_by(several, {"GLOO_SOCKET_IFNAME": "lo"})
    assert "own name" not in found_by(replace(several, hosts=1))
    assert "own name" not in found_by(replace(several, master=""))  # ranks have met
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.1")
    assert "own name" not in found_by(several)

    def unknown(name: str, port: None) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    found = found_by(replace(several, master="gpu01"))["first host"].found
    assert found == "does not know the first host, gpu01 (Name or service not known)"


def test_a_first_host_that_is_not_reached(
    question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(code: int) -> Callable[[tuple[str, int], float], None]:
        def refuse(address: tuple[str, int], timeout: float) -> None:
            assert address == ("localhost", 29500)
            raise OSError(code, os.strerror(code))

        return refuse

    asked = replace(question, hosts=2, master="localhost", port=29500)
    monkeypatch.setattr(socket, "create_connection", connect(errno.EHOSTUNREACH))
    found = found_by(asked)["network"]
    assert found.found == "does not reach localhost, port 29500 (No route to host)"
    assert found.status == "problem" and "firewall" in found.do
    assert "network" not in found_by(replace(asked, first=True))
    assert "network" not in found_by(replace(asked, port=None))
    # nobody listens there yet
    monkeypatch.setattr(socket, "create_connection", connect(errno.ECONNREFUSED))
    assert "network" not in found_by(asked)


def test_a_port_that_is_taken(question: Question) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        number = taken.getsockname()[1]
        here = replace(question, port=number, first=True)
        found = found_by(here)["port"]
        assert f"port {number}" in found.found and found.status == "problem"
        assert found_by(replace(here, other_ports=True))["port"].status == "note"
        assert "port" not in found_by(replace(here, first=False))
    assert "port" not in found_by(here)


@pytest.mark.parametrize(
    ("one", "all_of_them", "status"), [(2**60, 2**61, "problem"), (1, 2**61, "note"), (1, 2, "")]
)
def test_disk(question: Question, one: int, all_of_them: int, status: str) -> None:
    found = found_by(replace(question, checkpoint=one, checkpoints=all_of_them))
    assert (found["disk"].status if found else "") == status


def test_a_folder_that_is_another_one(
    question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "PATIENCE", 0.0)
    with asking.shared_word(question) as asked:
        assert asked.word and list(tmp_path.glob(".robustly-check-*"))
        assert found_by(asked) == {}
        elsewhere = replace(asked, train=str(tmp_path / "other/run/train"))
        assert "is another one here" in found_by(elsewhere)["run's folder"].found
    assert list(tmp_path.iterdir()) == []


def test_the_word_lies_in_the_runs_folder_where_there_is_one(
    question: Question, tmp_path: Path
) -> None:
    Path(question.train).mkdir(parents=True)
    with asking.shared_word(question) as asked:
        assert asked.level == 0 and len(list(Path(question.train).iterdir())) == 1
    with asking.shared_word(question, alone=True) as asked:
        assert asked == question


@pytest.mark.parametrize(
    ("ranks", "need", "found"),
    [
        (2, 0, {}),
        (3, 0, {"gpus": "3 ranks, and 2 GPUs"}),
        (2, 70 * 10**9, {"gpu 1": "50.00 GB of its memory are free; a rank is estimated to take 70.00"}),
        (1, 70 * 10**9, {}),
    ],
)  # fmt: skip
def test_gpus_for_ranks(
    question: Question,
    ranks: int,
    need: int,
    found: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cards = [
        Gpu("H100", 80 * 10**9, (9, 0), "1", number, used=used * 10**9)
        for number, used in enumerate([0, 30])
    ]
    monkeypatch.setattr(facts, "gpus", lambda: cards)
    monkeypatch.setattr(facts, "gpu_processes", lambda: [])
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cu130")
    monkeypatch.setattr(facts, "shared_memory", lambda: Finding("/dev/shm", "ok", ""))
    given = found_by(replace(question, ranks=ranks, gpu_memory=need))
    assert given.keys() == found.keys()
    assert all(text in given[what].found for what, text in found.items())

    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cpu")  # which leaves them alone
    assert found_by(replace(question, ranks=ranks, gpu_memory=need)) == {}


def test_it_is_light_and_quick(question: Question) -> None:
    program = "import sys, robustly.launch.checks.facts; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not {"torch", "transformers", "deepspeed", "numpy"} & set(done.stdout.split())


# -------------------------------------------------------------------------------------------- asking


def reached(name: str, words: Callable[..., list[str]] | None) -> Reached:
    return Reached(name, 1, name, words)


def test_all_hosts_are_asked_at_once(
    question: Question, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stand-ins for ssh: one that runs the command, after a word of its login; one that has none;
    one that hangs; one that breaks."""
    monkeypatch.setattr(asking, "DEADLINE", 20.0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    hosts = [
        reached("here", None),
        reached("there", lambda command: ["sh", "-c", 'echo welcome; exec "$@"', "sh", *command]),
        reached("away", lambda command: ["sh", "-c", "echo ssh: no route >&2; exit 255"]),
        reached("odd", lambda command: ["sh", "-c", "exit 3"]),
        reached("lacking", lambda command: ["no-such-ssh"]),
    ]
    found = asking.ask(Machines(hosts), question)
    assert [*found.answers] == ["here", "there", "away", "odd", "lacking"]
    faults = {name: answer.fault for name, answer in found.answers.items()}
    assert faults == {
        "here": "", "there": "", "away": "ssh: no route", "odd": "exit code 3 without a word",
        "lacking": "no-such-ssh: No such file or directory",
    }  # fmt: skip
    assert [name for name, answer in found.answers.items() if answer.reached] == ["odd"]
    there = found.answers["there"].facts
    assert there and there["host"] == socket.gethostname() and there["same"]["config"]["seed"] == 7
    assert not list(tmp_path.glob(".robustly-check-*"))

    monkeypatch.setattr(asking, "DEADLINE", 0.2)
    slow = [reached("slow", lambda command: ["sleep", "30"])]
    (answer,) = asking.ask(Machines(slow), question).answers.values()
    assert answer.fault == "no answer within 0 s"


def test_a_folder_that_cannot_be_written_here(
    question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    with (
        pytest.raises(UserError, match="cannot be written: Permission denied"),
        asking.shared_word(question),
    ):
        pass
