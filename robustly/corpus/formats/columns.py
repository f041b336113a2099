"""Texts in the columns of tables (pyarrow): strings of every kind, within structs, dictionaries, or
as bytes."""

from collections.abc import Iterator
from typing import Any

from robustly import UserError
from robustly.corpus.formats.format import Text
from robustly.corpus.formats.keys import joined

Keys = tuple[str, ...]


def check_columns(place: object, keys: Keys, schema: Any) -> None:
    """Raises UserError unless a pyarrow.Schema has a column of strings (or bytes, or nothing but
    nulls) for each of `corpus.text_key`; `place` names the table."""
    from pyarrow import types

    for key in keys:
        kind = _type_at(place, key, schema)
        if types.is_dictionary(kind):
            kind = kind.value_type
        if not any(is_kind(kind) for is_kind in _texts_and_nulls()):
            raise UserError(
                f"{place}: column {key!r} (corpus.text_key): expected strings, found"
                f" {kind}{_hint(key, kind)}"
            )


def _hint(key: str, kind: Any) -> str:
    """What to do with a column that holds no strings itself."""
    from pyarrow import types

    if types.is_struct(kind) and kind.num_fields:
        return f"; name a field within it, such as {key}.{kind.field(0).name}"
    if types.is_list(kind) or types.is_large_list(kind):
        return "; write the texts of a list as rows of their own"
    return ""


def top_columns(keys: Keys, schema: Any) -> list[str]:
    """The names of the columns that hold what is at `keys`."""
    return list(dict.fromkeys(_path(key, schema.names)[0] for key in keys))


def column_texts(batch: Any, keys: Keys, first: int) -> Iterator[Text]:
    """The texts at `keys` of a pyarrow.RecordBatch that `check_columns` knows, whose rows are
    numbered from `first` on."""
    columns = [_raw(_column(batch, key)) for key in keys]
    for row in range(batch.num_rows):
        try:
            values = [
                value.decode() if (value := each[row].as_py()) is not None else None
                for each in columns
            ]
            yield first + row, joined(values, keys)
        except UnicodeDecodeError as error:
            yield first + row, ValueError(f"not UTF-8 (byte 0x{error.object[error.start]:02x})")
        except ValueError as fault:
            yield first + row, fault


def _path(key: str, names: list[str]) -> list[str]:
    """The column, and the fields within it, that a key names: itself, or the parts between dots."""
    return [key] if key in names else key.split(".")


def _type_at(place: object, key: str, schema: Any) -> Any:
    from pyarrow import types

    fields, kind = list(schema), None
    for name in _path(key, schema.names):
        found = [field.type for field in fields if field.name == name]
        if len(found) != 1:
            within = "" if kind is None else f" in {key.rpartition(name)[0].rstrip('.')!r}"
            problem = f"{len(found)} columns" if found else "no column"
            names = (
                ", ".join(field.name for field in fields)
                or f"it holds {'nothing' if kind is None else kind}"
            )
            raise UserError(
                f"{place}: {problem} {name!r}{within} (corpus.text_key); its columns: {names}"
            )
        kind = found[0]
        fields = list(kind.fields) if types.is_struct(kind) else []

    return kind


def _column(batch: Any, key: str) -> Any:
    """The pyarrow.Array at a key."""
    import pyarrow.compute

    top, *within = _path(key, batch.schema.names)
    column = batch.column(top)
    return pyarrow.compute.struct_field(column, within) if within else column


def _raw(column: Any) -> Any:
    """Strings as bytes, whole or not UTF-8. Raises pyarrow.ArrowInvalid if the file's offsets point
    outside of it."""
    import pyarrow

    if isinstance(column, pyarrow.DictionaryArray):
        column.validate(full=True)
        return _raw(column.dictionary).take(column.indices)

    same = {
        pyarrow.string(): pyarrow.binary(),
        pyarrow.large_string(): pyarrow.large_binary(),
        pyarrow.string_view(): pyarrow.binary_view(),
    }
    raw = column.view(same[column.type]) if column.type in same else column
    raw.validate(full=True)
    return raw.cast(pyarrow.large_binary())


def _texts_and_nulls() -> tuple[Any, ...]:
    from pyarrow import types

    return (
        *(types.is_string, types.is_large_string, types.is_string_view),
        *(types.is_binary, types.is_large_binary, types.is_binary_view, types.is_null),
    )
