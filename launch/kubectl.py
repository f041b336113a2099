"""Hand objects to a Kubernetes cluster by `kubectl apply`, and say what to do where it refuses
them."""

import re
import subprocess

from robustly import UserError

NO_CLUSTER = "no cluster there: `kubectl config get-contexts` lists those that kubectl knows"
ADVICE = {
    'no matches for kind "JobSet"': (
        "the cluster lacks JobSet (0.10 or newer): https://jobset.sigs.k8s.io/docs/installation/"
    ),
    'no matches for kind "Train': (
        "the cluster lacks Kubeflow Trainer (2.1 or newer); --kind jobset needs JobSet alone"
    ),
    "onJobFailureMessagePatterns": "the cluster's JobSet is older than 0.10: a newer one is needed",
    "refused": NO_CLUSTER,
    "no such host": NO_CLUSTER,
    "orbidden": "you may not do this in that namespace: choose one by --namespace, or ask for it",
    "namespaces": "choose a namespace that is there by --namespace",
    "immutable": (
        "one of this name is there: `kubectl delete {kind} {name}` first, or --name another"
    ),
    "unchanged": (
        "one of this name is there, and nothing was started: `kubectl delete {kind} {name}` first,"
        " which loses nothing of the run, or --name another"
    ),
}
"""What to do, by what kubectl says."""


def apply(text: str, kind: str, name: str) -> str:
    """Apply the objects of a YAML text, of which the one of this kind and name runs. Returns what
    kubectl said; raises UserError where nothing was started."""
    try:
        done = subprocess.run(
            ["kubectl", "apply", "-f", "-"], input=text, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise UserError(
            "kubectl: not found; install it, or leave --apply out and carry what is printed to"
            " where it is"
        ) from None

    unchanged = re.search(rf"^{kind}\S*/{name} unchanged$", done.stdout, re.MULTILINE)
    if done.returncode or unchanged:
        said = (done.stderr if done.returncode else done.stdout).strip()
        advice = next((each for sign, each in ADVICE.items() if sign in said), "")
        raise UserError(f"kubectl apply: {said}\n{advice.format(kind=kind, name=name)}".rstrip())

    return done.stdout.strip()
