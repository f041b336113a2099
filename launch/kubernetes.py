"""Launch ranks in the pods of a Kubernetes cluster: a JobSet, or a TrainJob of Kubeflow Trainer, of
one pod a node."""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from robustly import UserError, log
from robustly.exit_codes import FAULT, MISTAKE
from robustly.launch import kubectl
from robustly.launch.checks import NO_CHECK
from robustly.launch.ends import ATTEMPT, FOLDER
from robustly.launch.environment import RANK_VARIABLES
from robustly.launch.job import MASTER_PORT, Job, LaunchOptions, option, port_option
from robustly.launch.kubernetes_form import (
    AMOUNT,
    ANY,
    COUNT,
    IMAGE,
    KEY,
    LABEL,
    OBJECT,
    RESOURCE,
    VARIABLE,
    checked,
    pairs,
    toleration,
    volumes,
)

FURTHER = 76
"""Exit code of a pod: as START_AGAIN, with a newer checkpoint than at its start. Not counted."""
GPU = "nvidia.com/gpu"
NODE = "node"  # the JobSet's one job and the pods' one container; Kubeflow Trainer wants this name
NOT_STARTED = (126, 127)
"""Exit codes of a container whose program is not there or cannot be run."""
INDEX = "JOB_COMPLETION_INDEX"
"""Variable that an Indexed Job gives each pod, unless it has one of that name."""
SHM = "/dev/shm"
LONGEST_NAME = 63  # of a pod: it becomes a host name

Yaml = dict[str, Any]


@dataclass(frozen=True)
class KubernetesOptions(LaunchOptions):
    image: str | None = option("Image of the pods, made from the Containerfile. Required.")
    volume: tuple[str, ...] = option(
        "A volume that all pods share, by its claim; the first is where they work; repeatable."
        " Required.",
        (),
        metavar="CLAIM:/PATH",
    )
    kind: Literal["jobset", "trainjob"] = option("What the cluster is given.", "jobset")
    nodes: int = option("Pods, one on each machine.", 1, min=1)
    restarts: int = option("New starts after failures without a newer checkpoint.", 3, min=0)
    gpus: int | None = option("GPUs of a pod; default: one for each rank.", min=0)
    cpu: str | None = option("Cores of a pod, such as 96.")
    memory: str | None = option("Memory of a pod, such as 900Gi, with what lies in /dev/shm.")
    shm: str = option("Most of the memory that /dev/shm takes.", "16Gi")
    resource: tuple[str, ...] = option(
        "Another resource of a pod, such as rdma/hca=8; repeatable.", (), metavar="NAME=COUNT"
    )
    capability: tuple[str, ...] = option(
        "A capability of the container, such as IPC_LOCK for InfiniBand; repeatable.", ()
    )
    grace: int | None = option(
        "Seconds for the last checkpoint of a pod that must end; default: by its size.", min=1
    )
    node_selector: tuple[str, ...] = option(
        "A label that the machines have; repeatable.", (), metavar="KEY=VALUE"
    )
    toleration: tuple[str, ...] = option(
        "A taint that the pods tolerate; repeatable.", (), metavar="KEY[=VALUE][:EFFECT]"
    )
    env: tuple[str, ...] = option("A variable of the ranks; repeatable.", (), metavar="NAME=VALUE")
    secret: tuple[str, ...] = option(
        "A secret whose keys become variables of the ranks; repeatable.", (), metavar="NAME"
    )
    pull_secret: tuple[str, ...] = option(
        "A secret to pull the image with; repeatable.", (), metavar="NAME"
    )
    label: tuple[str, ...] = option(
        "A label of the job, such as kueue.x-k8s.io/queue-name=gpu; repeatable.",
        (),
        metavar="KEY=VALUE",
    )
    namespace: str | None = option("Namespace; default: kubectl's.")
    name: str | None = option("Name of the job; default: the run's.")
    folder: Path | None = option("Working directory; default: the first volume's path.")
    master_port: int | None = port_option(
        f"Port on the first pod where all meet; default: {MASTER_PORT}."
    )
    apply: bool = option("Hand it to `kubectl apply`, instead of printing it.", False)


# ------------------------------------------------------------------------------------ what to run


def render(job: Job, options: KubernetesOptions) -> str:
    """The objects as YAML. Raises UserError if the options do not suffice.

    One Job of `nodes` pods, each of which runs `robustly.launch.pod`. The pods know each other by
    the names that JobSet's headless service gives them. A pod fails for good, so that all of them
    start anew together: `_failures` says when."""
    name = _name(job, options)
    documents = (
        [_jobset(job, options, name)]
        if options.kind == "jobset"
        else [_training_runtime(job, options, name), _train_job(job, options, name)]
    )
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=100)


def _jobset(job: Job, options: KubernetesOptions, name: str) -> Yaml:
    """https://github.com/kubernetes-sigs/jobset, api/jobset/v1alpha2."""
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(options, name),
        "spec": _jobset_spec(job, options, name),
    }


def _training_runtime(job: Job, options: KubernetesOptions, name: str) -> Yaml:
    """What a TrainJob refers to: Trainer makes a JobSet of the TrainJob's name from its template.

    Without a framework's policy, because torch's would set variables for torchrun."""
    spec = _jobset_spec(job, options, name)
    (replicated,) = spec["replicatedJobs"]
    replicated["template"] = {
        "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
        **replicated["template"],
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": _metadata(options, name),
        "spec": {
            "mlPolicy": {"numNodes": options.nodes},
            "template": {
                **({"metadata": {"labels": labels}} if (labels := _labels(options)) else {}),
                "spec": spec,
            },
        },
    }


def _train_job(job: Job, options: KubernetesOptions, name: str) -> Yaml:
    """https://github.com/kubeflow/trainer, pkg/apis/trainer/v1alpha1."""
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(options, name),
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": name,
            },
            "trainer": {"numNodes": options.nodes},
        },
    }


def _jobset_spec(job: Job, options: KubernetesOptions, name: str) -> Yaml:
    of_pods, of_jobs = _failures(options.restarts)
    return {
        "network": {"enableDNSHostnames": True, "subdomain": name},
        "failurePolicy": of_jobs,
        "replicatedJobs": [
            {
                "name": NODE,
                "replicas": 1,
                "template": {
                    "spec": {
                        "completionMode": "Indexed",
                        "completions": options.nodes,
                        "parallelism": options.nodes,
                        "backoffLimit": 0,
                        "podFailurePolicy": of_pods,
                        "template": {"spec": _pod(job, options, name)},
                    }
                },
            }
        ],
    }


def _failures(restarts: int) -> tuple[Yaml, Yaml]:
    """When pods fail: what the Job says of it (podFailurePolicy), and what becomes of the JobSet
    (failurePolicy).

    A Job cannot start its pods anew together; a JobSet can, and reads why the Job failed:

    * exit code 1 or 2, or no program: PodFailurePolicy with that code; all is over
    * FURTHER, or a node drained, preempted or lost: PodFailurePolicy; start again, uncounted
    * anything else (75, killed, out of memory): BackoffLimitExceeded; start again, counted

    The messages are those of Kubernetes' Job controller (pkg/controller/job/pod_failure_policy.go).
    """
    final = [FAULT, MISTAKE, *NOT_STARTED]
    by_code = {"containerName": NODE, "operator": "In"}
    disrupted = {"type": "DisruptionTarget", "status": "True"}
    of_pods = {
        "rules": [
            {"action": "FailJob", "onExitCodes": {**by_code, "values": final}},
            {"action": "FailJob", "onExitCodes": {**by_code, "values": [FURTHER]}},
            {"action": "FailJob", "onPodConditions": [disrupted]},
        ]
    }
    of_jobs = {
        "maxRestarts": restarts,
        "rules": [
            {
                "name": "would_fail_again",
                "action": "FailJobSet",
                "onJobFailureReasons": ["PodFailurePolicy"],
                "onJobFailureMessagePatterns": [
                    f"failed with exit code ({'|'.join(map(str, final))}) "
                ],
            },
            {
                "name": "got_further_or_lost_its_node",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["PodFailurePolicy"],
                "onJobFailureMessagePatterns": [
                    f"failed with exit code {FURTHER} ",
                    "has condition DisruptionTarget ",
                ],
            },
        ],
    }
    return of_pods, of_jobs


def _pod(job: Job, options: KubernetesOptions, name: str) -> Yaml:
    shm = checked("--shm", options.shm, AMOUNT)
    shared = [{"claimName": claim} for claim, _ in volumes(options.volume, [SHM])]
    return _without_empty(
        {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": options.grace or job.last_checkpoint,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,  # a service named `master` would set MASTER_PORT
            "nodeSelector": pairs("--node-selector", options.node_selector, KEY, LABEL),
            "tolerations": [toleration(text) for text in options.toleration],
            "imagePullSecrets": _named("--pull-secret", options.pull_secret),
            "containers": [_container(job, options, name)],
            "volumes": [
                {
                    "name": "shm",
                    "emptyDir": {"medium": "Memory", "sizeLimit": shm},
                },
                *(
                    {"name": f"shared-{number}", "persistentVolumeClaim": claim}
                    for number, claim in enumerate(shared)
                ),
            ],
        }
    )


def _container(job: Job, options: KubernetesOptions, name: str) -> Yaml:
    if not options.image:
        raise UserError("--image is missing: name the image that was made from the Containerfile")

    ranks = options.ranks_per_node or job.ranks
    paths = [path for _, path in volumes(options.volume, [SHM])]
    security = {"capabilities": {"add": [*options.capability]}} if options.capability else {}
    return _without_empty(
        {
            "name": NODE,
            "image": checked("--image", options.image, IMAGE),
            "command": _command(job, options.nodes, ranks),
            "workingDir": _working_directory(options, paths[0]),
            "env": _environment(job, options, name),
            "envFrom": [{"secretRef": each} for each in _named("--secret", options.secret)],
            "ports": [{"containerPort": options.master_port or MASTER_PORT}],
            "resources": _without_empty({"limits": _resources(options, ranks)}),
            "securityContext": security,
            "volumeMounts": [
                {"name": "shm", "mountPath": SHM},
                *(
                    {"name": f"shared-{number}", "mountPath": path}
                    for number, path in enumerate(paths)
                ),
            ],
        }
    )


def _command(job: Job, nodes: int, ranks: int) -> list[str]:
    """The pod's program. The image's Python stands for the one of this machine, and paths within
    the job's folder are relative to the pods' working directory."""
    program = ["python"] if job.command[0] == sys.executable else [job.command[0]]
    finished = job.finished
    if finished.is_relative_to(job.folder):
        finished = finished.relative_to(job.folder)

    return [
        *("python", "-m", "robustly.launch.pod"),
        *("--nodes", str(nodes), "--ranks", str(ranks), "--finished", str(finished)),
        *("--", *map(_literal, [*program, *job.command[1:]])),
    ]


def _environment(job: Job, options: KubernetesOptions, name: str) -> list[Yaml]:
    """The Job itself adds INDEX, the number of the pod. Of this machine's environment nothing goes
    along."""
    label = "metadata.labels['{}']".format
    of_pod = {
        "JOBSET_UID": label("jobset.sigs.k8s.io/jobset-uid"),
        "JOBSET_RESTART": label("jobset.sigs.k8s.io/restart-attempt"),
    }
    fixed = {
        ATTEMPT: "$(JOBSET_UID)-$(JOBSET_RESTART)",
        "MASTER_ADDR": f"{name}-{NODE}-0-0.{name}",
        "MASTER_PORT": str(options.master_port or MASTER_PORT),
    }
    if NO_CHECK in job.environment:
        fixed[NO_CHECK] = job.environment[NO_CHECK]
    given = pairs("--env", options.env, VARIABLE, ANY)
    ours = {*fixed, *of_pod, *RANK_VARIABLES, INDEX, FOLDER}
    if taken := sorted({*given} & ours):
        raise UserError(f"--env {taken[0]}: the launcher sets it")

    return [
        *(
            {"name": each, "valueFrom": {"fieldRef": {"fieldPath": of_pod[each]}}}
            for each in of_pod
        ),
        *({"name": each, "value": value} for each, value in fixed.items()),
        *({"name": each, "value": _literal(value)} for each, value in given.items()),
    ]


def _resources(options: KubernetesOptions, ranks: int) -> dict[str, str]:
    """Limits, which are requests as well. Cores too: a rank counts those that it may use."""
    gpus = ranks if options.gpus is None else options.gpus
    asked = {
        **({GPU: str(gpus)} if gpus else {}),
        **({"cpu": checked("--cpu", options.cpu, AMOUNT)} if options.cpu else {}),
        **({"memory": checked("--memory", options.memory, AMOUNT)} if options.memory else {}),
    }
    more = pairs("--resource", options.resource, RESOURCE, COUNT)
    if GPU in more:
        raise UserError(f"--resource {GPU}: give it as --gpus")
    return {**asked, **more}


def _working_directory(options: KubernetesOptions, default: str) -> str:
    if options.folder and not options.folder.is_absolute():
        raise UserError(f"--folder {options.folder}: expected a path in the pods from / on")

    return str(options.folder or default)


# -------------------------------------------------------------------------- what the options say


def _name(job: Job, options: KubernetesOptions) -> str:
    """Raises UserError where the pods' names would not do as host names."""
    name = options.name or re.sub("[^a-z0-9]+", "-", job.name.lower()).strip("-")
    longest = len(f"{name}-{NODE}-0-{options.nodes - 1}-abcde")
    if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) or longest > LONGEST_NAME:
        raise UserError(
            f"{name!r} does not do as a name in Kubernetes: expected up to"
            f" {LONGEST_NAME - longest + len(name)} lower-case letters, digits and hyphens, a"
            " letter first; give another one by --name"
        )

    return name


def _metadata(options: KubernetesOptions, name: str) -> Yaml:
    return _without_empty(
        {"name": name, "namespace": options.namespace, "labels": _labels(options)}
    )


def _labels(options: KubernetesOptions) -> dict[str, str]:
    return pairs("--label", options.label, KEY, LABEL)


def _without_empty(fields: Mapping[str, Any]) -> Yaml:
    return {name: value for name, value in fields.items() if value not in (None, [], {})}


def _literal(text: str) -> str:
    """Kubernetes replaces $(NAME) in commands and variables, and takes $$ for $."""
    return text.replace("$", "$$")


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what PyYAML takes for text, but Kubernetes' parser for a number or a truth
    value, such as 6e-4."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # lists stand in from their key

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _named(option: str, given: Iterable[str]) -> list[Yaml]:
    return [{"name": checked(option, each, OBJECT)} for each in given]


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    doubtful = re.match(r"[-+.]*\d|[yn]$", text, re.IGNORECASE)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if doubtful else None)


_Dumper.add_representer(str, _text)


def start(job: Job, options: KubernetesOptions) -> int:
    """Print the objects, or hand them to kubectl. Raises UserError where it does not take them."""
    text, name = render(job, options), _name(job, options)
    if not options.apply:
        sys.stdout.write(text)
        log.say("printed, not started: --apply hands it to kubectl")
        return 0

    log.say(kubectl.apply(text, options.kind, name))
    pods = f"-l jobset.sigs.k8s.io/jobset-name={name}"
    log.say(f"how it is: kubectl get {options.kind} {name}; kubectl get pods {pods} -o wide")
    log.say(f"what it says: kubectl logs -f --prefix --max-log-requests {options.nodes} {pods}")
    return 0
