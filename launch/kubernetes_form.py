"""The form that Kubernetes wants of names, labels, amounts, volumes and taints.

A cluster accepts a JobSet whose pods have others, and then can make no pods of it. So they are
refused here."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from robustly import UserError


class Form(NamedTuple):
    pattern: str
    words: str


_WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
OBJECT = Form(_DOMAIN, "a name of lower-case letters, digits, hyphens and dots")
KEY = Form(rf"({_DOMAIN}/)?{_WORD}", "a key such as gpu or example.com/gpu")
LABEL = Form(
    rf"({_WORD})?", "up to 63 letters, digits, hyphens, underscores and dots, a letter or digit"
    " first and last"
)  # fmt: skip
VARIABLE = Form(r"[-._A-Za-z][-._A-Za-z0-9]*", "the name of a variable")
RESOURCE = Form(
    rf"{_DOMAIN}/{_WORD}|ephemeral-storage|hugepages-\w+", "a resource such as rdma/hca"
)
IMAGE = Form(r"\S+", "an image such as registry.example/robustly:0.1")
PATH = Form(r"/[^:]+", "a path from / on, without a colon")
AMOUNT = Form(
    r"(\d+\.?\d*|\.\d+)([numkMGTPE]|[KMGTPE]i|[eE][-+]?\d+)?", "an amount such as 96, 500m or 900Gi"
)  # fmt: skip
COUNT = Form(r"\d+([kMGTPE]|[KMGTPE]i)?", "a whole number")
ANY = Form(r"(?s:.*)", "any text")


def checked(option: str, given: str, form: Form) -> str:
    """The value of an option. Raises UserError where it has another form."""
    if not re.fullmatch(form.pattern, given):
        raise UserError(f"{option} {given}: expected {form.words}")
    return given


def pairs(option: str, given: Iterable[str], key: Form, value: Form) -> dict[str, str]:
    """NAME=VALUE of an option that may be repeated. Raises UserError for another form, and for a
    name that stands twice."""
    found: dict[str, str] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not name or not equals:
            raise UserError(f"{option} {each}: expected NAME=VALUE")
        if name in found:
            raise UserError(f"{option} {each}: {name} is given twice")
        checked(option, name, key)
        found[name] = checked(f"{option} {name}", text, value)

    return found


def volumes(given: Iterable[str], taken: Iterable[str]) -> list[tuple[str, str]]:
    """Claims and where they are mounted. Raises UserError for two at one path, or at one that is
    `taken`."""
    found = [each.partition(":")[::2] for each in given]
    if not found:
        raise UserError(
            "--volume is missing: name the claim of the volume that holds config, data and runs,"
            " and where the pods find it, such as --volume work:/work"
        )

    paths = [path.rstrip("/") for _, path in found]
    for claim, path in found:
        if not re.fullmatch(OBJECT.pattern, claim) or not re.fullmatch(PATH.pattern, path):
            raise UserError(f"--volume {claim}:{path}: expected CLAIM:/PATH, such as work:/work")
        if [*paths, *taken].count(path.rstrip("/")) > 1:
            raise UserError(f"--volume {claim}:{path}: two volumes cannot be at one path")

    return found


def toleration(text: str) -> Mapping[str, Any]:
    """As `kubectl taint` writes taints. Without a value, any will do; without an effect, all.
    Raises UserError for another form."""
    form = re.fullmatch(r"(?P<key>[^=:]+)(=(?P<value>[^:]*))?(:(?P<effect>\w+))?", text)
    if not form or form["effect"] not in (None, "NoSchedule", "PreferNoSchedule", "NoExecute"):
        raise UserError(
            f"--toleration {text}: expected KEY[=VALUE][:EFFECT], with the effect NoSchedule,"
            " PreferNoSchedule or NoExecute, such as nvidia.com/gpu:NoSchedule"
        )

    key = checked("--toleration", form["key"], KEY)
    if form["value"] is None:
        value = {"operator": "Exists"}
    else:
        value = {"value": checked(f"--toleration {key}", form["value"], LABEL)}
    return {"key": key, **value, **({"effect": form["effect"]} if form["effect"] else {})}
