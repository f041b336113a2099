"""Decode a token store into JSON lines: the documents as they were read, less the dropped ones."""

from pathlib import Path
from typing import TYPE_CHECKING

from robustly import log
from robustly.data_prep.json_lines import check_place, new_file
from robustly.data_prep.store import SPLITS, Store

if TYPE_CHECKING:
    from robustly.tokenizer.tokenizer import Tokenizer

OPTION = "--decode-documents"


def decode_documents(folder: Path, tokenizer: "Tokenizer", path: Path) -> int:
    """Write every document of a store to `path`, split by split and in the order of the store;
    returns their number.

    A line is {"text", "source", "split"}. The file is there when all of it is; compressed if it
    ends in .gz. Raises UserError as `check_place` does, and if `tokenizer` is not the store's."""
    check_place(path, OPTION)
    stores = [Store(folder, split) for split in SPLITS]
    total = sum(store.documents for store in stores)

    with new_file(path) as write, log.progress("decoding", total, "documents") as advance:
        for store in stores:
            for source, text in store.named_texts(tokenizer):
                write({"text": text, "source": source, "split": store.split})
                advance(1)

    return total
