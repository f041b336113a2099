"""JSON lines (.jsonl): a document is the string under `corpus.text_key` of a line's object."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.corpus.config import CorpusConfig
from robustly.corpus.foreign import HEAD
from robustly.corpus.formats.format import Format, Row, Text
from robustly.corpus.formats.keys import text_of
from robustly.corpus.reading import byte_ranges, lines, lines_at, opened

_OTHER_JSON = "; name the file .json, if it is an array, or has objects over several lines"


def ranges(path: Path, corpus: CorpusConfig, total: int, size: int) -> Iterable[tuple[int, int]]:
    return byte_ranges(total, size)


def texts(path: str, start: int, end: int, corpus: CorpusConfig) -> Iterator[Text]:
    if end - start > HEAD:
        _check_no_array(path)

    for place, line in lines(path, start, end):
        try:
            text = text_of(json_object(line), corpus.text_keys)
        except ValueError as fault:
            yield place, ValueError(f"{fault}{_OTHER_JSON}") if _is_no_line(line) else fault
        else:
            del line  # of a large document, one copy less while the text is worked on
            yield place, text


def _check_no_array(path: str) -> None:
    """Raises UserError if the file begins as an array in one line, which would be held whole."""
    with opened(path) as stream:
        head = stream.peek()
    if head.lstrip(b" \t\r\n\xef\xbb\xbf").startswith(b"[") and b"\n" not in head:
        raise UserError(f"{path}: an array in one line; expected a JSON object a line{_OTHER_JSON}")


def _is_no_line(line: str | ValueError) -> bool:
    """Whether a line that is no object may begin an array, or an object over several lines."""
    return isinstance(line, str) and (line.startswith("[") or line.rstrip() == "{")


def rows(path: str) -> Iterator[Row]:
    for place, line in lines(path):
        try:
            yield place, json_object(line)
        except ValueError as fault:
            yield place, fault


def json_object(line: str | ValueError) -> dict[str, Any]:
    """The object in a line of JSON. Raises ValueError that says what is wrong with the line."""
    if isinstance(line, ValueError):
        raise line

    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON: {error.msg}, at character {error.pos + 1} of the line"
        ) from None
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply") from None
    except ValueError:
        raise ValueError("not JSON that can be read: a number of thousands of digits") from None

    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")

    return value


JSON_LINES = Format(ranges, texts, rows, places=lines_at, has_keys=True)
