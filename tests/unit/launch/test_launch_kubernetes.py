"""What a cluster is given, against the published schemas and the rules that these do not hold; what
kubectl's words lead to."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_schemas import validate
from kubernetes_server import api_server

from robustly import UserError
from robustly.exit_codes import FAULT, FINISHED, MISTAKE, START_AGAIN
from robustly.launch import Job, KubernetesOptions, kubernetes
from robustly.launch.checks import NO_CHECK
from robustly.launch.kubernetes import FURTHER
from tests.lab.jobset import COUNTED, FAIL, UNCOUNTED, action, job_failure

HERE = Path(__file__).parent
JOB = Job(
    command=(
        sys.executable,
        "-m",
        "robustly.cli",
        "pretrain",
        "mine.yaml",
        "data.language=it's $HOME",
    ),
    folder=Path("/home/me/my runs"),
    finished=Path("/home/me/my runs/runs/Tiny_One/train/manifest.json"),
    name="Tiny_One",
    ranks=8,
    environment={"PYTHONPATH": "/of/this/machine"},
)
LEAST: dict[str, Any] = {"image": "registry.example/robustly:1", "volume": ("work:/work",)}
ALL = LEAST | {
    "nodes": 4,
    "restarts": 5,
    "volume": ("work:/work", "corpora.v2:/corpora"),
    "cpu": "96",
    "memory": "900Gi",
    "shm": "64Gi",
    "resource": ("rdma/hca=8",),
    "capability": ("IPC_LOCK",),
    "grace": 300,
    "node_selector": ("gpu=h100", "zone=7"),
    "toleration": ("nvidia.com/gpu:NoSchedule", "team=nlp:NoExecute", "spot"),
    "env": ("NCCL_IB_HCA=mlx5", "RATE=6e-4", "HEX=0x10", "ASKED=yes", "EMPTY=", "LETTER=y"),
    "secret": ("wandb", "hub"),
    "pull_secret": ("registry",),
    "label": ("kueue.x-k8s.io/queue-name=gpu",),
    "namespace": "nlp",
}  # fmt: skip


def options(**given: Any) -> KubernetesOptions:
    return KubernetesOptions(**{**LEAST, **given})


def objects(**given: Any) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(kubernetes.render(JOB, options(**given))))


def job_of(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    jobset = spec["template"]["spec"] if document["kind"] == "TrainingRuntime" else spec
    (replicated,) = jobset["replicatedJobs"]
    found: dict[str, Any] = replicated["template"]["spec"]
    return found


def container_of(document: dict[str, Any]) -> dict[str, Any]:
    (found,) = job_of(document)["template"]["spec"]["containers"]
    return dict(found)


# ------------------------------------------------------------------------------------- the schemas


CASES = [
    pytest.param({"kind": kind, **given}, id=f"{kind}-{name}")
    for kind in ("jobset", "trainjob")
    for name, given in (("least", LEAST), ("all", ALL), ("no-gpu", {**LEAST, "gpus": 0}))
]


@pytest.mark.parametrize("given", CASES)
def test_the_published_schemas_accept_it(given):
    documents = objects(**given)
    expected = ["JobSet"] if given["kind"] == "jobset" else ["TrainingRuntime", "TrainJob"]
    assert [each["kind"] for each in documents] == expected
    for document in documents:
        validate(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("completionMode",), 3),
        (("podFailurePolicies",), {}),
        (("template", "spec", "terminationGracePeriodSeconds"), "120"),
        (("template", "spec", "containers", 0, "env", 0, "value"), 1),
        (("template", "spec", "containers", 0, "volumes"), []),
        (("podFailurePolicy", "rules", 0, "onExitCodes", "values", 0), "1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["jobset", "trainjob"])
def test_the_schemas_reach_into_the_job_and_its_pods(kind, path, value):
    document = objects(kind=kind, secret=("wandb",))[0]
    node: Any = job_of(document)
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(document)


@pytest.mark.parametrize("given", CASES)
def test_what_the_servers_check_beside_schemas(given):
    """JobSet's webhook (pkg/webhooks/jobset_webhook.go) and Kubernetes' validation of Jobs
    (pkg/apis/batch/validation)."""
    document, *others = objects(**given)
    spec = document["spec"]
    jobset = spec["template"]["spec"] if others else spec
    job = job_of(document)
    pod = job["template"]["spec"]
    name, domain = document["metadata"]["name"], r"[a-z]([-a-z0-9]*[a-z0-9])?"
    assert re.fullmatch(domain, jobset["network"]["subdomain"])
    assert len(f"{name}-node-0-{job['completions'] - 1}-abcde") <= 63
    assert job["completions"] == job["parallelism"] == given.get("nodes", 1)

    for rule in jobset["failurePolicy"]["rules"]:
        assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
        assert {*rule["onJobFailureReasons"]} <= {"PodFailurePolicy", "BackoffLimitExceeded"}

    assert pod["restartPolicy"] == "Never"  # or no podFailurePolicy
    for rule in job["podFailurePolicy"]["rules"]:
        if codes := rule.get("onExitCodes"):
            assert codes["values"] == sorted({*codes["values"]}) and 0 not in codes["values"]
            assert codes["containerName"] == pod["containers"][0]["name"]

    mounted = {each["name"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}
    paths = [each["mountPath"] for each in pod["containers"][0]["volumeMounts"]]
    assert len(paths) == len({*paths})

    if others:  # Trainer looks for these names
        (train_job,) = others
        (replicated,) = jobset["replicatedJobs"]
        label = replicated["template"]["metadata"]["labels"]
        assert label == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
        assert pod["containers"][0]["name"] == replicated["name"] == "node"
        assert train_job["spec"]["runtimeRef"]["name"] == name
        assert train_job["spec"]["trainer"]["numNodes"] == job["completions"]
        assert spec["mlPolicy"] == {"numNodes": job["completions"]}
        assert jobset["network"]["subdomain"] == train_job["metadata"]["name"]


@pytest.mark.parametrize("kind", ["jobset", "trainjob"])
def test_golden(kind):
    """To write them anew: `python -m pytest tests/unit/launch/test_launch_kubernetes.py -k golden`
    with GOLDEN=1."""
    text = kubernetes.render(
        JOB, options(kind=kind, **{k: v for k, v in ALL.items() if k != "kind"})
    )
    golden = HERE / "golden" / f"{kind}.yaml"
    if os.environ.get("GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------ exit codes


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        ([(FINISHED, False), (FINISHED, False)], None),
        ([(FAULT, False)], FAIL),
        ([(MISTAKE, False)], FAIL),
        ([(START_AGAIN, False), (MISTAKE, False)], FAIL),
        ([(127, False)], FAIL),  # no such program in the image
        ([(START_AGAIN, False)], COUNTED),
        ([(137, False)], COUNTED),  # out of memory
        ([(143, False)], COUNTED),
        ([(139, False)], COUNTED),
        ([(FURTHER, False)], UNCOUNTED),
        ([(START_AGAIN, False), (FURTHER, False)], UNCOUNTED),
        ([(START_AGAIN, True)], UNCOUNTED),  # drained, preempted, or its node lost
        ([(137, True)], UNCOUNTED),
        ([(MISTAKE, True)], FAIL),
    ],
)
@pytest.mark.parametrize("kind", ["jobset", "trainjob"])
def test_what_follows_from_a_pods_end(kind, pods, expected):
    document = objects(kind=kind)[0]
    spec = document["spec"]
    policy = (spec if kind == "jobset" else spec["template"]["spec"])["failurePolicy"]
    failed = job_failure(job_of(document), pods)
    assert (failed and action(policy, *failed)) == expected


# ------------------------------------------------------------------------------- what the pods get


def test_texts_stay_texts_for_a_parser_of_yaml_1_2():
    """PyYAML reads 6e-4 as text, Kubernetes' parser as a number, and then refuses it."""
    text = kubernetes.render(JOB, KubernetesOptions(**ALL))
    env = {each["name"]: each.get("value") for each in container_of(objects(**ALL)[0])["env"]}
    assert env["RATE"] == "6e-4" and '"6e-4"' in text
    assert env["LETTER"] == "y" and '"y"' in text
    assert env["HEX"] == "0x10" and env["ASKED"] == "yes" and env["EMPTY"] == ""


def test_nothing_of_this_machine_is_in_it(monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    text = kubernetes.render(JOB, KubernetesOptions(**ALL))
    assert "/home/me" not in text and sys.executable not in text and "/of/this/machine" not in text
    assert container_of(objects()[0])["command"] == [
        *("python", "-m", "robustly.launch.pod", "--nodes", "1", "--ranks", "8"),
        *("--finished", "runs/Tiny_One/train/manifest.json"),
        *(
            "--",
            "python",
            "-m",
            "robustly.cli",
            "pretrain",
            "mine.yaml",
            "data.language=it's $$HOME",
        ),
    ]


def test_no_check_reaches_the_pods():
    """Their ranks look at their hosts themselves."""
    told = JOB.with_variables({NO_CHECK: "1"})
    env = container_of(next(yaml.safe_load_all(kubernetes.render(told, options()))))["env"]
    assert {"name": NO_CHECK, "value": "1"} in env
    assert NO_CHECK not in kubernetes.render(JOB, options())


def test_dollar_signs_arrive():
    """Kubernetes replaces $(NAME) in commands and variables, and takes $$ for $."""
    job = Job(
        ("robustly", "pretrain", "mine.yaml", "data.language=$(MASTER_ADDR)"),
        JOB.folder,
        JOB.finished,
    )
    command = container_of(next(yaml.safe_load_all(kubernetes.render(job, options()))))["command"]
    assert command[-1] == "data.language=$$(MASTER_ADDR)"


def test_attempts_differ_and_are_the_same_on_all_pods():
    env = {each["name"]: each for each in container_of(objects()[0])["env"]}
    names = list(env)
    assert env["ROBUSTLY_ATTEMPT"]["value"] == "$(JOBSET_UID)-$(JOBSET_RESTART)"
    assert names.index("ROBUSTLY_ATTEMPT") > names.index("JOBSET_UID")
    assert names.index("ROBUSTLY_ATTEMPT") > names.index("JOBSET_RESTART")
    assert env["MASTER_ADDR"]["value"] == "tiny-one-node-0-0.tiny-one"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image": None}, "--image is missing"),
        ({"volume": ()}, "--volume is missing"),
        ({"volume": ("work",)}, "--volume work:: expected CLAIM:/PATH"),
        ({"volume": ("work:data",)}, "--volume work:data: expected CLAIM:/PATH"),
        ({"env": ("NCCL_DEBUG",)}, "--env NCCL_DEBUG: expected NAME=VALUE"),
        ({"env": ("MASTER_PORT=1",)}, "--env MASTER_PORT: the launcher sets it"),
        ({"env": ("RANK=0",)}, "--env RANK: the launcher sets it"),
        # else the Job would leave it, and every pod be the first
        ({"env": ("JOB_COMPLETION_INDEX=0",)}, "--env JOB_COMPLETION_INDEX: the launcher sets it"),
        ({"env": ("A=1", "A=2")}, "--env A=2: A is given twice"),
        ({"env": ("A B=1",)}, "--env A B: expected the name of a variable"),
        ({"node_selector": ("gpu=H100 80GB",)}, "--node-selector gpu H100 80GB: expected up to 63"),
        ({"label": ("a/b/c=d",)}, "--label a/b/c: expected a key"),
        ({"secret": ("HF_TOKEN",)}, "--secret HF_TOKEN: expected a name of lower-case letters"),
        ({"pull_secret": ("a b",)}, "--pull-secret a b: expected a name"),
        ({"image": " "}, "--image  : expected an image"),
        ({"volume": ("work:/work:ro",)}, "--volume work:/work:ro: expected CLAIM:/PATH"),
        ({"volume": ("my_work:/work",)}, "--volume my_work:/work: expected CLAIM:/PATH"),
        ({"volume": ("work:/dev/shm",)}, "--volume work:/dev/shm: two volumes cannot be at one"),
        ({"resource": ("gpu=8",)}, "--resource gpu: expected a resource such as rdma/hca"),
        ({"resource": ("nvidia.com/gpu=4",)}, "--resource nvidia.com/gpu: give it as --gpus"),
        ({"toleration": ("a b:NoExecute",)}, "--toleration a b: expected a key"),
        ({"volume": ("work:/a", "data:/a")}, "--volume work:/a: two volumes cannot be at one path"),
        ({"folder": Path("runs")}, "--folder runs: expected a path in the pods from / on"),
        ({"memory": "900GB"}, "--memory 900GB: expected an amount such as 96"),
        ({"cpu": "all"}, "--cpu all: expected an amount"),
        ({"shm": "16 Gi"}, "--shm 16 Gi: expected an amount"),
        ({"resource": ("=1",)}, "--resource =1: expected NAME=VALUE"),
        ({"resource": ("rdma/hca=x",)}, "--resource rdma/hca x: expected a whole number"),
        ({"toleration": ("a:b:c",)}, "--toleration a:b:c: expected KEY"),
        ({"toleration": ("a:NoSuchThing",)}, "--toleration a:NoSuchThing: expected KEY"),
        ({"name": "Über"}, "give another one by --name"),
        ({"name": "a" * 49}, "up to 48 lower-case letters"),
    ],
)
def test_options_that_do_not_suffice(given, said):
    with pytest.raises(UserError, match=re.escape(said)):
        objects(**given)


# -------------------------------------------------------------------------------------- kubectl


@pytest.fixture
def kubectl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, int], Path]]:
    """A stand-in that says something, ends with a code and keeps what it was given."""

    def say(text: str, code: int) -> Path:
        program = tmp_path / "kubectl"
        stream = 2 if code else 1
        program.write_text(
            f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/given\n'
            f"cat >&{stream} <<'END'\n{text}\nEND\nexit {code}\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        return tmp_path / "given"

    yield say


def test_it_is_printed_unless_it_is_to_be_applied(kubectl, capsys):
    given = kubectl("jobset.jobset.x-k8s.io/tiny-one created", 0)
    assert kubernetes.start(JOB, options()) == 0
    printed = capsys.readouterr()
    assert printed.out == kubernetes.render(JOB, options())
    assert "--apply" in printed.err
    assert not given.exists()


@pytest.mark.processes
def test_kubectl_gets_what_would_be_printed(kubectl, capsys):
    given = kubectl("jobset.jobset.x-k8s.io/tiny-one created", 0)
    assert kubernetes.start(JOB, options(apply=True)) == 0
    assert given.read_text() == kubernetes.render(JOB, options())
    assert given.with_name("arguments").read_text() == "apply -f -\n"
    told = capsys.readouterr().err
    assert "kubectl logs -f" in told and "jobset-name=tiny-one" in told


@pytest.mark.processes
@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (
            'error: resource mapping not found for name: "tiny-one" namespace: "" from "STDIN": no matches for'
            ' kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"\nensure CRDs are installed first',
            1, "the cluster lacks JobSet",
        ),
        (
            'Error from server (BadRequest): error when creating "STDIN": JobSet in version "v1alpha2" cannot be handled'
            ' as a JobSet: strict decoding error: unknown field "spec.failurePolicy.rules[0].onJobFailureMessagePatterns"',
            1, "older than 0.10",
        ),
        (
            "The connection to the server localhost:8080 was refused - did you specify the right host or port?",
            1, "kubectl config get-contexts",
        ),
        (
            'Error from server (Forbidden): jobsets.jobset.x-k8s.io is forbidden: User "me" cannot create resource',
            1, "--namespace",
        ),
        (
            'The JobSet "tiny-one" is invalid: spec.replicatedJobs: Invalid value: null: field is immutable',
            1, "kubectl delete jobset tiny-one",
        ),
        ("jobset.jobset.x-k8s.io/tiny-one unchanged", 0, "nothing was started"),
        ("something else", 1, "kubectl apply: something else"),
    ],
)  # fmt: skip
def test_what_kubectl_refuses_is_told_with_what_to_do(kubectl, text, code, said):
    kubectl(text, code)
    with pytest.raises(UserError, match=re.escape(said)):
        kubernetes.start(JOB, options(apply=True))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has kubectl itself speak to a server at an address."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")

    def use(server: str) -> None:
        named = {"clusters": {"server": server}, "users": {}}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            **{key: [{"name": "it", key[:-1]: value}] for key, value in named.items()},
        }
        (tmp_path / "config").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        monkeypatch.setenv("HOME", str(tmp_path))  # its caches

    return use


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["jobset", "trainjob"])
def test_kubectl_itself_reads_the_same(cluster, kind, capsys):
    """Its parser of YAML is another one; and it has the server refuse unknown fields."""
    given = options(**{**ALL, "kind": kind, "apply": True})
    with api_server() as (address, created):
        cluster(address)
        assert kubernetes.start(JOB, given) == 0
        expected = list(yaml.safe_load_all(kubernetes.render(JOB, given)))
        for (query, found), wanted in zip(created, expected, strict=True):
            found["metadata"].pop("annotations")  # kubectl's own
            assert found == wanted
            assert "fieldValidation=Strict" in query
            validate(found)

        with pytest.raises(UserError, match=f"kubectl delete {kind} tiny-one"):
            kubernetes.start(JOB, given)  # unchanged


@pytest.mark.processes
def test_kubectl_itself_without_a_cluster(cluster):
    with api_server() as (address, _):
        cluster(address)

    with pytest.raises(UserError, match="no cluster there"):
        kubernetes.start(JOB, options(apply=True))


def test_without_kubectl(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="kubectl: not found"):
        kubernetes.start(JOB, options(apply=True))


@pytest.mark.processes
def test_from_the_command_line(tmp_path):
    """Tokenizer and data may be on the volume alone: they need not be on this machine."""
    command = [
        *(sys.executable, "-m", "robustly.cli", "launch", "kubernetes", "roberta_base"),
        *("--image", "robustly:1", "--volume", "work:/work", "--nodes", "2", "--kind", "trainjob"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [each["kind"] for each in yaml.safe_load_all(done.stdout)] == [
        "TrainingRuntime",
        "TrainJob",
    ]
