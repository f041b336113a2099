"""Measure how well a tokenizer fits the held-out documents of its token store, for the model card
and `robustly inspect`."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustly.corpus.texts import NamedTexts
from robustly.data_prep.store import Store, check_tokenizer
from robustly.tokenizer.fit import measure_fit
from robustly.tokenizer.tokenizer import Tokenizer

DOCUMENTS = 1000
BYTES = 20_000_000
"""Of each source, at most: seconds of work."""
COLUMNS = (
    "documents",
    "bytes",
    "bytes_per_token",
    "tokens_per_word",
    "words_in_one_token",
    "single_byte_share",
)


def held_out_texts(data_folder: Path, tokenizer: Tokenizer) -> NamedTexts | None:
    """The first documents of each source in the validation split, DOCUMENTS of them or BYTES; None
    if it is empty.

    Raises UserError if the store cannot be read or is another tokenizer's.
    """
    check_tokenizer(data_folder, tokenizer)
    store = Store(data_folder, "validation")
    if not store.documents:
        return None
    return NamedTexts("held-out documents", "source", _first_of_each(store, tokenizer))


def held_out_fit(data_folder: Path, tokenizer: Tokenizer) -> dict[str, list[dict[str, Any]]]:
    """What the tokenizer makes of `held_out_texts`, for a manifest.

    `rows`: COLUMNS for each `source`, and for all where there are several; `cuts`: excerpts as they
    are cut. Both are empty where nothing is held out."""
    if (texts := held_out_texts(data_folder, tokenizer)) is None:
        return {"rows": [], "cuts": []}

    fit = measure_fit(tokenizer, texts)
    rows = [size | ratio for size, ratio in zip(fit.sizes, fit.ratios, strict=True)]
    return {
        "rows": [
            {"source": row["name"], **{column: row[column] for column in COLUMNS}} for row in rows
        ],
        "cuts": [{"source": cut.pop("name"), **cut} for cut in fit.cuts],
    }


def _first_of_each(store: Store, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    for number, name in enumerate(store.sources):
        left = BYTES
        for text in itertools.islice(store.texts_of(number, tokenizer), DOCUMENTS):
            yield name, text
            if (left := left - len(text.encode())) <= 0:
                break
