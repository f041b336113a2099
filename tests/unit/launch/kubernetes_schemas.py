"""Validate what a Kubernetes cluster is given, by the schemas that its projects publish
(tests/unit/launch/schemas)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

HERE = Path(__file__).parent


@cache
def schema(kind: str) -> Any:
    text = (HERE / "schemas" / f"{kind.lower()}.json").read_text(encoding="utf-8")
    return strict(json.loads(text))


def strict(node: Any) -> Any:
    """A schema of Kubernetes as JSON Schema, which refuses fields that it does not name, as the
    server does when kubectl asks (`--validate=strict`, its default)."""
    if isinstance(node, list):
        return [strict(each) for each in node]
    if not isinstance(node, dict):
        return node

    made = {name: strict(value) for name, value in node.items()}
    if node.get("x-kubernetes-int-or-string"):
        made = {"type": ["integer", "string"]}
    elif (
        isinstance(node.get("properties"), dict)
        and node.get("type") == "object"
        and "additionalProperties" not in node
        and not node.get("x-kubernetes-preserve-unknown-fields")
    ):
        made["additionalProperties"] = False

    return made


METADATA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
"""Of an object as such: a CustomResourceDefinition does not repeat it."""


def validate(document: dict[str, Any]) -> None:
    of_kind = schema(document["kind"])
    of_kind = {**of_kind, "properties": {**of_kind["properties"], "metadata": METADATA}}
    jsonschema.Draft202012Validator(of_kind).validate(document)
