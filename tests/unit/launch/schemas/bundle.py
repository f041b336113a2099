"""Print the OpenAPI schema of a CustomResourceDefinition (a YAML file) as JSON, without
descriptions."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml


def without_descriptions(node: Any) -> Any:
    if isinstance(node, list):
        return [without_descriptions(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        name: without_descriptions(value)
        for name, value in node.items()
        if not (name == "description" and isinstance(value, str))
    }


definition = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
(version,) = definition["spec"]["versions"]
schema = without_descriptions(version["schema"]["openAPIV3Schema"])
print(json.dumps(schema, separators=(",", ":")))
