"""A JobSet without a cluster: its pods as processes on the hosts of a lab, and what Kubernetes' Job
controller and the JobSet controller make of their ends, by the object's own policies."""

import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lab.hosts import LONG, Hosts, Process

FAIL, COUNTED = "FailJobSet", "RestartJobSet"
UNCOUNTED = "RestartJobSetAndIgnoreMaxRestarts"
COMPLETED = "Completed"


def job_failure(job: dict[str, Any], ends: Sequence[tuple[int, bool]]) -> tuple[str, str] | None:
    """Why a Job fails, in the words of Kubernetes' controller (pkg/controller/job): reason and
    message; None if it does not. `job`: its spec; `ends`: of each pod that ended, exit code and
    whether it was disrupted."""
    for code, disrupted in ends:
        if code == 0:
            continue
        for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
            matching = f"matching {rule['action']} rule at index {index}"
            pod = "nlp/tiny-node-0-76-x7k2p"
            if code in rule.get("onExitCodes", {}).get("values", ()):
                container = rule["onExitCodes"]["containerName"]
                return (
                    "PodFailurePolicy",
                    f"Container {container} for pod {pod} failed with exit code {code} {matching}",
                )
            if disrupted and "onPodConditions" in rule:
                return (
                    "PodFailurePolicy",
                    f"Pod {pod} has condition DisruptionTarget {matching}",
                )

    if sum(code != 0 for code, _ in ends) > job["backoffLimit"]:
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    return None


def action(policy: dict[str, Any], reason: str, message: str) -> str:
    """What becomes of the JobSet of a Job that failed: pkg/controllers/failure_policy.go there."""
    for rule in policy["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return str(rule["action"])
    return COUNTED


class JobSet:
    """An object of the kind JobSet, whose pods run on hosts that are named as pods are: the working
    directory must be the hosts' shared folder."""

    def __init__(self, document: dict[str, Any], hosts: Hosts):
        self.spec, self.hosts = document["spec"], hosts
        (replicated,) = self.spec["replicatedJobs"]
        self.job = replicated["template"]["spec"]
        self.starts = 0
        self.pods: dict[str, Process] = {}
        self.disrupted: set[str] = set()
        self.killed: set[str] = set()
        domain = self.spec["network"]["subdomain"]
        for host in hosts.names:  # JobSet's headless service
            lines = "".join(f"{hosts.address(name)} {name}.{domain}\n" for name in hosts.names)
            hosts.run(host, ["sh", "-c", f"printf '{lines}' >> /etc/hosts"])

    @staticmethod
    def hosts_of(name: str, pods: int) -> list[str]:
        return [f"{name}-node-0-{index}" for index in range(pods)]

    def start(self, *indices: int) -> None:
        """Create the pods of the Job, or those of these indices."""
        if not self.pods:
            self.starts += 1
        (container,) = self.job["template"]["spec"]["containers"]
        command = [word.replace("$$", "$") for word in container["command"]]
        for index in indices or range(self.job["completions"]):
            name = self.hosts.names[index]
            # the first process of a container, as in a cluster
            self.pods[name] = self.hosts.popen(
                name,
                ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command],
                self._environment(container, index),
                cwd=Path(container["workingDir"]),
                stderr=subprocess.PIPE,
            )

    def _environment(self, container: dict[str, Any], index: int) -> dict[str, str]:
        labels = {
            "jobset.sigs.k8s.io/restart-attempt": str(self.starts - 1),
            "jobset.sigs.k8s.io/jobset-uid": "0c1d5c52-7f6e-4b5c-8a55-1d6c3a0e9b77",
        }
        found = {"JOB_COMPLETION_INDEX": str(index)}
        for each in container["env"]:
            if "value" in each:
                found[each["name"]] = re.sub(
                    r"\$\((\w+)\)", lambda name: found[name[1]], each["value"]
                )
            else:
                (label,) = re.findall(
                    r"metadata\.labels\['(.*)'\]", each["valueFrom"]["fieldRef"]["fieldPath"]
                )
                found[each["name"]] = labels[label]
        return found

    def terminate(self, name: str) -> None:
        """SIGTERM to the container's first process."""
        if self.pods[name].poll() is None:
            for process in self.pods[name].inner.children():
                process.send_signal(signal.SIGTERM)

    def kill(self, index: int) -> None:
        """As the kernel does where a container has no memory left: all of its processes."""
        name = self.hosts.names[index]
        self.killed.add(name)
        for process in self.pods[name].inner.children():
            process.kill()
        # the other pods' ranks end by themselves, and the cluster is to see this end, too
        self.pods[name].wait(LONG)

    def evict(self, index: int) -> None:
        """As a drained node does."""
        name = self.hosts.names[index]
        self.disrupted.add(name)
        self.terminate(name)

    def end(self, patience: float = 300) -> tuple[str, dict[str, int], dict[str, str]]:
        """Wait for the end of the Job: what becomes of the JobSet, the exit codes of the pods that
        ended by themselves, and what each pod said. The others are deleted."""
        deadline = time.monotonic() + patience
        failure = None
        while failure is None:
            assert time.monotonic() < deadline, f"the pods did not end in {patience:.0f} s"
            codes = {name: pod.poll() for name, pod in self.pods.items()}
            ended = {
                # unshare has its own code for it
                name: 128 + signal.SIGKILL if name in self.killed else code
                for name, code in codes.items()
                if code is not None
            }
            failure = job_failure(
                self.job, [(code, name in self.disrupted) for name, code in ended.items()]
            )
            if len(ended) == len(self.pods) and failure is None:
                break
            time.sleep(0.05)

        for name in self.pods:
            self.terminate(name)
        said = {name: pod.communicate(timeout=LONG)[1] for name, pod in self.pods.items()}
        self.pods, self.disrupted, self.killed = {}, set(), set()
        what = action(self.spec["failurePolicy"], *failure) if failure else COMPLETED
        return what, ended, said
