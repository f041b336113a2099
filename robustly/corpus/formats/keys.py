"""Texts in rows by `corpus.text_key`: at a key, at a path of keys (`data.text`), or at several,
joined."""

from collections.abc import Mapping, Sequence
from typing import Any


def text_of(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The text of a row. Raises ValueError that says what the row has in its place."""
    return joined([value_at(row, key) for key in keys], keys)


def joined(values: Sequence[Any], keys: Sequence[str]) -> str:
    """The strings at `keys`, joined by line feeds; a null beside others is left out. Raises
    ValueError for anything else, or if all are null."""
    texts = []
    for key, value in zip(keys, values, strict=True):
        if value is None and len(keys) > 1:
            continue
        if not isinstance(value, str):
            found = "null" if value is None else type(value).__name__
            raise ValueError(f"expected a string at {key!r} (corpus.text_key), found {found}")
        texts.append(value)

    if not texts:
        raise ValueError(f"nothing at {', '.join(map(repr, keys))} (corpus.text_key)")
    return "\n".join(texts)


def value_at(row: Mapping[str, Any], key: str) -> Any:
    """What a row holds at a key or a path of keys. Raises ValueError if there is nothing."""
    if key in row:
        return row[key]

    value: Any = row
    for name in key.split("."):
        if not isinstance(value, Mapping):
            raise ValueError(
                f"expected an object to hold {name!r} of {key!r} (corpus.text_key), found"
                f" {type(value).__name__}"
            )
        if name not in value:
            raise ValueError(
                f"no key {key!r} (corpus.text_key); the keys here: {', '.join(map(repr, value))}"
            )
        value = value[name]

    return value
