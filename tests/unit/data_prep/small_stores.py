"""Small tokenizers, corpora and stores for the tests of the data stage."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numbered_store import BOS, EOS

from robustly import manifest
from robustly.corpus.config import CorpusConfig
from robustly.data_prep.config import DataConfig
from robustly.description import Description
from robustly.inspection import data
from robustly.inspection.describe import describe_folder
from robustly.manifest import Stage
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary

VIEW = DataConfig(unit="sentence", language="en", block_length=16, format="full_sentences")


def train_tokenizer(
    folder: Path,
    merges: Sequence[str] = ("t h", "th e", "i n", "Ġ the", "e r", "Ġ a"),
    special_tokens: Sequence[str] = (),
    prefix_space: bool = False,
) -> Path:
    """A finished tokenizer stage with a few merges."""
    folder.mkdir()
    vocabulary = replace(
        lay_out([tuple(merge.split()) for merge in merges], special_tokens),
        prefix_space=prefix_space,
    )
    files = save_vocabulary(vocabulary, folder)
    Stage(folder, "tokenizer", {"merges": list(merges)}, {}).finish(files, {}, {})
    return folder


def corpus(*paths: str, documents: str = "blank_line", validation: float = 0.0) -> CorpusConfig:
    return CorpusConfig(
        sources=list(paths), documents=documents, text_key="text", validation=validation
    )


def write_rows(path: Path, texts: Sequence[str]) -> Path:
    """A .jsonl file with these documents."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def packed(
    documents: Sequence[Sequence[Sequence[int]]], block_length: int, format: str
) -> list[list[int]]:
    """Blocks the slow and obvious way: lists of tokens, filled line by line as docs/data_format.md
    says."""
    if format == "none":
        lines = [[*unit, EOS] for units in documents for unit in [*units, []]]
        stream = [token for line in lines for token in line][:-1]
        starts = range(0, len(stream), block_length - 1)
        return [[BOS, *stream[at : at + block_length - 1]] for at in starts]

    blocks: list[list[int]] = [[BOS]]

    def place(line: list[int]) -> None:
        if len(blocks[-1]) > 1 and len(blocks[-1]) + len(line) > block_length:
            blocks.append([BOS])

        while len(line) > block_length - 1:
            cut = block_length - 1
            if line[cut:] == [EOS]:
                cut -= 1

            blocks[-1] += line[:cut]
            blocks.append([BOS])
            line = line[cut:]

        blocks[-1] += line

    for number, units in enumerate(documents):
        if number and format == "full_sentences":
            place([EOS])

        if number and format == "doc_sentences":
            blocks.append([BOS])

        for unit in units:
            place([*unit, EOS])

    return blocks


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of the store itself."""
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")} | {
        "store.json": (folder / "store.json").read_bytes()
    }


def describe(folder: Path, *options: Any, **more: Any) -> Description:
    """A data folder as `robustly inspect` describes it, without or with its options."""
    if not (options or more):
        return describe_folder(folder, "data")
    return data.describe(folder, manifest.require(folder, "data"), *options, **more)
