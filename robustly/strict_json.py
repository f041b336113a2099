"""Read JSON strictly: as values of the types that it was written from, and sealed records as they
were written."""

import hashlib
import json
import re
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails

from robustly import UserError
from robustly.resources import check_memory

SEAL = "seal"
"""Key of a record that holds the hash of all others."""

Kind = TypeVar("Kind")

record = with_config(ConfigDict(strict=True, extra="forbid"))
"""Decorates the classes that files are read into: values of their own types, and no other keys."""


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its seal, to be written."""
    return {**values, SEAL: _seal(values)}


def _seal(values: Mapping[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_json(
    path: Path, kind: type[Kind], remedy: str, format: int | None = None, seal: bool = False
) -> Kind:
    """A JSON file as a value of a type that pydantic knows. A seal is compared and taken off;
    `seal`: there must be one. `format`: the version of the file, under the key `format`, that is
    read here.

    Raises FileNotFoundError or NotADirectoryError if the file is not there; UserError, which ends
    with `remedy`, if it cannot be read, is of another version or not of this type, or was changed
    since it was sealed."""
    try:
        return parse_json(path.read_bytes(), kind, format, seal)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        check_memory(error, path)
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; {remedy}") from None
    except ValueError as fault:
        raise UserError(f"{path}: {fault}; {remedy}") from None


def parse_json(
    content: bytes | str, kind: type[Kind], format: int | None = None, seal: bool = False
) -> Kind:
    """As `read_json`, of a text. Raises ValueError that says what is wrong with it."""
    try:
        value = _adapter(Any).validate_json(content)
        if seal and isinstance(value, dict) and SEAL not in value:
            raise ValueError("has no seal: changed, or made by another version of robustly")

        if isinstance(value, dict) and SEAL in value:
            if value.pop(SEAL) != _seal(value):
                raise ValueError("changed since it was written (its seal is another)")
            content = json.dumps(value)

        if format is not None and isinstance(value, dict) and value.get("format") != format:
            raise ValueError(
                f"format {value.get('format')!r}, expected {format} (made by another version of"
                " robustly)"
            )

        found: Kind = _adapter(cast(Hashable, kind)).validate_json(content)
    except ValidationError as error:
        raise ValueError(_in_words(error.errors()[0])) from None

    if "\\u0000" in json.dumps(value):
        raise ValueError("a text in it holds a NUL character")

    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _in_words(fault: ErrorDetails) -> str:
    """A fault with its place."""
    place = ".".join(map(str, fault["loc"]))
    message = re.sub(r"^Input should be", "expected", fault["msg"])
    return f"{place}: {message}" if place else message
