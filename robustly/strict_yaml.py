"""Read YAML strictly, YAML 1.2's core schema, a bounded size and no key twice, and write it."""

import re
from collections.abc import Callable, Hashable
from typing import Any

import yaml

VALUES = 100_000
"""Values of a document at most, aliases written out: what a few lines of them could make of it."""
CORE = ("null", "bool", "int", "float", "str", "seq", "map")
"""The types of YAML 1.2's core schema."""
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars: `6e-4` is a number (PyYAML: a string), `no` is a word (PyYAML:
    False), and so are `1:30` (90) and `2024-01-01` (a date)."""


_Loader.yaml_constructors = {
    tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (*(_TAG + name for name in CORE), None)
}
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rpartition(":")[2] not in ("bool", "float", "int", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?[0-9]+$|^0x[0-9a-fA-F]+$|^0o[0-7]+$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _refuse(message: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


def _scalar(kind: str, read: Callable[[str], Any]) -> None:
    """Have scalars of a type read by a function that raises ValueError or KeyError for others."""

    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        text = loader.construct_scalar(node)
        try:
            return read(text)
        except (ValueError, KeyError):
            raise _refuse(f"{text[:40]!r} is not of the type {kind}", node) from None

    _Loader.add_constructor(_TAG + kind, construct)


def _integer(text: str) -> int:
    """`010` is ten and `0o10` is eight (YAML 1.1 has `010` for eight)."""
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


def _number(text: str) -> float:
    return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.lower()))


def _text(text: str) -> str:
    """Raises ValueError for what is no text: a NUL, or half of a surrogate pair."""
    if "\0" in text:
        raise ValueError

    text.encode()
    return text


_scalar("int", _integer)
_scalar("float", _number)
_scalar("bool", lambda text: {"true": True, "false": False}[text.lower()])
_scalar("str", _text)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue  # `<<: *other`: its keys may be set again

        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, Hashable):
            message = f"{key!r} cannot be a key (a template that was not filled in?)"
            raise _refuse(message, key_node)
        if key in seen:
            message = f"the key {key!r} stands twice (lines {seen[key]} and {line})"
            raise _refuse(message, key_node)

        seen[key] = line

    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _size(node: yaml.Node, above: tuple[yaml.Node, ...], known: dict[yaml.Node, int]) -> int:
    """How many values a node stands for, aliases written out. Raises YAMLError for too many, or for
    an alias within what it stands for."""
    if node in above:
        raise _refuse("an alias within what it stands for", node)
    if isinstance(node, yaml.ScalarNode):
        return 1

    if node not in known:
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        known[node] = 1 + sum(_size(part, (*above, node), known) for part in parts)
        if known[node] > VALUES:
            raise _refuse(f"more than {VALUES:,} values", node)

    return known[node]


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.2 or YAML 1.1 takes for another scalar."""


_Dumper.yaml_implicit_resolvers = {
    first: [
        *_Loader.yaml_implicit_resolvers.get(first, []),
        *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
    ]
    for first in {*_Loader.yaml_implicit_resolvers, *yaml.SafeDumper.yaml_implicit_resolvers}
}


def dump_yaml(value: Any) -> str:
    """Plain data as YAML that `parse_yaml` reads as the same, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def parse_yaml(text: str) -> Any:
    """Parse one YAML document by these rules. Raises yaml.YAMLError."""
    loader = _Loader(text)  # a SafeLoader underneath
    try:
        if (node := loader.get_single_node()) is None:
            return None

        _size(node, (), {})
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    finally:
        loader.dispose()
