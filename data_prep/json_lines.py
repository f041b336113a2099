"""Write JSON lines: to a new file, plain or compressed, that appears when it is whole."""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from robustly import UserError
from robustly.files import atomic

ENDINGS = (".jsonl", ".jsonl.gz")


def check_place(path: Path, option: str) -> None:
    """Raises UserError, naming the option that asks for it, unless documents can be written to a
    new file at `path`."""
    if not path.name.endswith(ENDINGS):
        raise UserError(f"{option} {path}: expected a name that ends in {' or '.join(ENDINGS)}")
    if path.exists():
        raise UserError(
            f"{option} {path}: is there already and was left as it is; give another name"
        )
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: no folder {path.parent}; make it first")


@contextmanager
def new_file(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yields what writes an object as a line of the file; compressed if its name ends in .gz."""
    with ExitStack() as open_files:
        out: BinaryIO = open_files.enter_context(atomic(path))
        if path.name.endswith(".gz"):
            # without a time or a name: the same documents give the same bytes
            packed = gzip.GzipFile("", "wb", compresslevel=6, fileobj=out, mtime=0)
            out = cast(BinaryIO, open_files.enter_context(packed))

        def write(line: Mapping[str, Any]) -> None:
            out.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

        yield write
