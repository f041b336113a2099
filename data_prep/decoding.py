"""The documents of a token store as JSON lines: the corpus as it was read, less what was dropped."""

import gzip
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from data_prep.store import SPLITS, Store
from robustly import UserError, log
from robustly.manifest import atomic

if TYPE_CHECKING:
    from tokenizer.encoder import Encoder

ENDINGS = (".jsonl", ".jsonl.gz")


def check_place(path: Path) -> None:
    """Raises UserError unless documents can be written to a new file at `path`."""
    if not path.name.endswith(ENDINGS):
        raise UserError(f"--decode-documents {path}: expected a name that ends in {' or '.join(ENDINGS)}")
    if path.exists():
        raise UserError(f"--decode-documents {path}: is there already and was left as it is; give another name")
    if not path.parent.is_dir():
        raise UserError(f"--decode-documents {path}: no folder {path.parent}; make it first")


def decode_documents(folder: Path, encoder: "Encoder", path: Path) -> int:
    """Write every document of a store to `path`, split by split and in the order of the store; returns how many.

    A line is {"text", "source", "split"}. The file is there when all of it is; compressed if it ends in .gz.
    Raises UserError as `check_place` does, and if `encoder` is not the store's.
    """
    check_place(path)
    stores = [Store(folder, split) for split in SPLITS]
    total = sum(store.documents for store in stores)
    with ExitStack() as open_files:
        out: BinaryIO = open_files.enter_context(atomic(path))
        if path.name.endswith(".gz"):  # without a time or a name: the same documents give the same bytes
            packed = gzip.GzipFile("", "wb", compresslevel=6, fileobj=out, mtime=0)
            out = cast(BinaryIO, open_files.enter_context(packed))
        advance = open_files.enter_context(log.progress("decoding", total, "documents"))
        for store in stores:
            for source, text in store.named_texts(encoder):
                line = {"text": text, "source": source, "split": store.split}
                out.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                advance(1)
    return total
