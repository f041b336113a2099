"""Damaged tokenizers, texts of all formats, decisions of cleaning, and token stores."""

import bz2
import csv
import functools
import gzip
import json
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from robustly import manifest, npy
from robustly.config import InputPath
from robustly.corpus import decisions, replacements
from robustly.corpus.bad_lines import FILE, BadLine, list_bad_lines, listed_in
from robustly.corpus.config import CorpusConfig
from robustly.corpus.documents import documents
from robustly.corpus.files import FILES as READ_FILES
from robustly.corpus.files import remember_files, remembered_files
from robustly.corpus.partitions import partitions
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.store import Shard, ShardWriter, Split, Store, write_store
from robustly.inspection.describe import describe_folder
from robustly.manifest import Stage
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.added_tokens import AddedToken
from robustly.tokenizer.config import FairseqFiles
from robustly.tokenizer.counting import parse_count
from robustly.tokenizer.counts import write_counts
from robustly.tokenizer.importing import read_imported
from robustly.tokenizer.segmenters import segmenter
from robustly.tokenizer.special_tokens import byte_symbols
from robustly.tokenizer.vocabulary import Vocabulary, lay_out, save_vocabulary
from tests.fuzz.damage import Form
from tests.fuzz.reading import Reader, check

VOCABULARY = lay_out([("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n")], ("[ENT]",))
TEXTS = ["the cat in the hat", "a thin thing", "naïve 日本 text\nof two lines", "in the end"] * 3
FILES: tuple[tuple[str, Form], ...] = tuple(
    (name, "json") for name in ("vocab.json", "tokenizer.json", "tokenizer_config.json")
)


# ---------------------------------------------------------------------------------------- tokenizer


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    files = save_vocabulary(VOCABULARY, folder)
    Stage(folder, "tokenizer", {"merges": 4}, {}).finish(files, {"bytes": 3}, {})


def write_old_tokenizer(folder: Path) -> None:
    """As RoBERTa's own is, without a tokenizer.json."""
    save_vocabulary(VOCABULARY, folder)
    (folder / "tokenizer.json").unlink()
    (folder / "added_tokens.json").write_text(json.dumps({"[ENT]": VOCABULARY.ids["[ENT]"]}))


def write_spaced_tokenizer(folder: Path) -> None:
    """With a space before a text, an added token that is not special, and an id that no token
    has."""
    ids = {**VOCABULARY.ids, "<cut>": len(VOCABULARY.ids) + 1}
    cut = AddedToken("<cut>", lstrip=True, normalized=True)
    added = (*VOCABULARY.added, cut)
    save_vocabulary(replace(VOCABULARY, ids=ids, added=added, prefix_space=True), folder)


def read_spaced_tokenizer(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder)
    texts = [*TEXTS, "the <cut> [ENT]the"]
    return facts(tokenizer.vocabulary), [ids.tolist() for ids in tokenizer.encode_documents(texts)]


def write_marked_tokenizer(folder: Path) -> None:
    """Of the other pattern."""
    save_vocabulary(replace(VOCABULARY, pattern="unicode"), folder)


def write_fairseq(folder: Path) -> None:
    numbers = {
        token: number for number, token in enumerate([*byte_symbols(), "th", "the", "Ġthe", "in"])
    }
    (folder / "encoder.json").write_text(json.dumps(numbers), encoding="utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in VOCABULARY.merges)
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    (folder / "dict.txt").write_text("".join(f"{number} 1\n" for number in numbers.values()))


def facts(vocabulary: Vocabulary) -> Any:
    return vocabulary.fingerprint, vocabulary.added, vocabulary.nfc, vocabulary.prefix_space


def read_tokenizer(folder: Path) -> Any:
    """As a stage does that depends on it."""
    manifest.require_whole(folder, "tokenizer")
    tokenizer = load_tokenizer(folder)
    return facts(tokenizer.vocabulary), [ids.tolist() for ids in tokenizer.encode_documents(TEXTS)]


def read_fairseq(folder: Path) -> Any:
    files = {"encoder": "encoder.json", "merges": "vocab.bpe", "dictionary": "dict.txt"}
    return facts(
        read_imported(FairseqFiles(**{key: str(folder / name) for key, name in files.items()}))
    )


def write_words(folder: Path) -> None:
    write_counts(folder / "counts.tsv", [("a", 3), (' "', 2), (" quoted", 2), ("naïve", 1)])
    write_counts(folder / "counts.tsv.zst", [("a", 3), ("b", 2)])
    read_words(folder)  # compiled code is loaded by pickle, once, which is not the reader's doing


def read_words(folder: Path) -> Any:
    from robustly import UserError
    from robustly.corpus.reading import line_at, lines

    found = []
    for name in ("counts.tsv", "counts.tsv.zst"):
        for place, line in lines(str(folder / name)):
            try:
                if isinstance(line, ValueError):
                    raise line
                found.append(parse_count(line, "gpt2"))
            except ValueError as fault:
                raise UserError(f"{line_at(str(folder / name), place)}: {fault}") from None
    return found


def write_list(folder: Path) -> None:
    (folder / "words.txt").write_text("the\ncat 3\nhat\nthin\n日本\n", encoding="utf-8")


def read_list(folder: Path) -> Any:
    segment = segmenter(InputPath(str(folder / "words.txt")), "tokenizer.segmenter")
    return [segment(text) for text in TEXTS]


# ------------------------------------------------------------------------------------------- corpus


FACTS = {f"{name}.txt": {"bytes": 1, "mtime_ns": 2, "sha256": "3" * 64} for name in "ab"}


def write_files(folder: Path) -> None:
    Stage(folder, "data", {}, {}).finish([], {}, remember_files(folder, FACTS))


def write_bad_lines(folder: Path) -> None:
    (folder / "a.jsonl").write_text("broken\n{}\n")
    bad_lines = [BadLine(str(folder / "a.jsonl"), byte, "not JSON: x") for byte in (0, 7)]
    list_bad_lines(bad_lines, corpus(folder), folder)


def write_corpus(folder: Path) -> None:
    plain = "\n\n".join(TEXTS).encode()
    rows = "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in TEXTS).encode()
    (folder / "a.txt").write_bytes(plain)
    (folder / "b.jsonl").write_bytes(rows)
    (folder / "c.txt.gz").write_bytes(gzip.compress(plain))
    (folder / "d.jsonl.xz").write_bytes(lzma.compress(rows))
    (folder / "e.txt.zst").write_bytes(pyarrow.Codec("zstd").compress(plain, asbytes=True))
    table = pyarrow.table({"text": TEXTS, "n": list(range(len(TEXTS)))})
    pyarrow.parquet.write_table(table, folder / "f.parquet", row_group_size=4)
    array = json.dumps([{"text": text, "n": [1]} for text in TEXTS], indent=1).encode()
    (folder / "g.json").write_bytes(array)
    (folder / "h.json.bz2").write_bytes(bz2.compress(rows))
    (folder / "i.json.gz").write_bytes(gzip.compress(array))
    with (folder / "j.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([["n", "text"], *enumerate(TEXTS)])
    (folder / "k.tsv").write_text(
        "text\tn\n" + "".join(f"{text.split()[0]}\t1\n" for text in TEXTS)
    )
    strings = pyarrow.table({"text": pyarrow.array(TEXTS, pyarrow.string_view()),
                             "d": pyarrow.array(TEXTS).dictionary_encode()})  # fmt: skip
    for name, kind in (("l.arrow", pyarrow.ipc.new_file), ("m.feather", pyarrow.ipc.new_stream)):
        with kind(folder / name, strings.schema) as out:
            out.write_table(strings, max_chunksize=4)
    with pyarrow.ipc.new_file(
        folder / "n.arrow", table.schema, options=pyarrow.ipc.IpcWriteOptions(compression="lz4")
    ) as out:
        out.write_table(table, max_chunksize=5)
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder / "o", num_shards=2)


def corpus(*paths: Path) -> CorpusConfig:
    return CorpusConfig(
        sources=list(map(str, paths)), documents="blank_line", text_key="text", validation=0.3
    )


def read_corpus(name: str, folder: Path, key: str = "text") -> Any:
    found = corpus(folder / name).model_copy(update={"text_key": key})
    return [text for part in partitions(found) for text in documents(part, found, [])]


def write_decisions(folder: Path) -> None:
    write_corpus(folder)
    cleaned = folder / "clean"
    with Stage(cleaned, "clean", {}, {"corpus": "c"}).begin() as stage:
        npy.write(cleaned / decisions.FILE, np.array([0, 1, 0, 2] * 3, np.uint8))
        spans = np.array([(0, 0, 2, 0), (0, 3, 4, 1), (6, 1, 2, 0)], replacements.SPAN)
        npy.write(cleaned / replacements.FILE, spans)
        summary = {
            "format": 2, "verdicts": ["kept", "min_words", "x"], "documents": [12],
            "placeholders": {"mail": "<mail>", "ip": "<ip>"}, "spans": [3],
        }  # fmt: skip
        (cleaned / decisions.SUMMARY).write_text(json.dumps(summary))
        files = [
            cleaned / decisions.FILE,
            cleaned / replacements.FILE,
            cleaned / decisions.SUMMARY,
        ]
        stage.finish(files, {"documents": 12})


def read_decisions(folder: Path, *, whole: bool = True) -> Any:
    if whole:
        decisions.require(folder / "clean", "c")
    found = corpus(folder / "a.txt")
    parts = decisions.attach(partitions(found), folder / "clean")
    return [text for part in parts for text in documents(part, found, [])]


# -------------------------------------------------------------------------------------------- store


def write_data(folder: Path) -> None:
    write_tokenizer(folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    store = folder / "data"
    shards: dict[Split, list[Shard]] = {"train": [], "validation": []}
    with Stage(store, "data", {"data": {"unit": "line"}}, {"tokenizer": "t"}).begin() as stage:
        for split, texts in (("train", TEXTS), ("validation", TEXTS[:4])):
            for number in range(2):
                writer = ShardWriter(
                    store, f"{split}-{number:05d}", number, tokenizer.eos_id, tokenizer.dtype
                )
                with writer:
                    for text in texts[number::2]:
                        ids = tokenizer.encode_documents([text])[0].astype(tokenizer.dtype)
                        end = np.array([tokenizer.eos_id], tokenizer.dtype)
                        writer.append(
                            np.concatenate([ids, end]), np.array([len(ids) + 1]), ["", "\n"]
                        )
                assert writer.shard
                shards[split].append(writer.shard)  # type: ignore[index]

        files = write_store(store, store, stage.hash, tokenizer, ["a", "b"], shards)
        for format in ("full_sentences", "segment_pair"):
            Blocks(store, "train", 16, format)  # type: ignore[arg-type]
        stage.finish(files, {"bytes": 9})


def read_store(folder: Path, *, whole: bool) -> Any:
    store = folder / "data"
    finished = manifest.require_whole(store, "data") if whole else manifest.require(store, "data")
    tokenizer = load_tokenizer(folder / "tokenizer")
    blocks = [Blocks(store, "train", 16, format) for format in ("full_sentences", "segment_pair")]  # type: ignore[arg-type]
    gathered = [[part.tolist() for part in each.gather(np.arange(len(each)))] for each in blocks]
    texts = list(Store(store, "validation").texts(tokenizer))
    return finished.hash, gathered, [each.source_lengths.tolist() for each in blocks], texts


def shard_files(name: str = "train-00001") -> tuple[tuple[str, Form], ...]:
    return tuple(
        (f"data/{name}.{kind}.npy", "npy")
        for kind in ("tokens", "units", "documents", "gaps", "gap_ends")
    )


STORE: tuple[tuple[str, Form], ...] = (
    ("data/store.json", "json"), *shard_files(), *shard_files("validation-00000"), ("data/manifest.json", "json"),
    ("data/views/*.npy", "npy"), ("data/views/*.json", "json"),
)  # fmt: skip


def write_array(folder: Path) -> None:
    npy.write(folder / "a.npy", np.arange(20, dtype=np.uint32))


def described(kind: str, inside: str = ".") -> Any:
    return lambda folder: describe_folder(folder / inside, kind).json()


CLEAN: tuple[tuple[str, Form], ...] = (
    ("clean/verdicts.json", "json"),
    ("clean/verdicts.npy", "npy"),
    ("clean/replacements.npy", "npy"),
)
READERS = [
    Reader("tokenizer", write_tokenizer, read_tokenizer, (*FILES, ("merges.txt", "bytes")), hashed=True),
    Reader(
        "tokenizer of elsewhere",
        write_old_tokenizer,
        lambda folder: facts(load_tokenizer(folder).vocabulary),
        (("vocab.json", "json"), ("added_tokens.json", "json"), ("tokenizer_config.json", "json"), ("merges.txt", "bytes")),
    ),
    Reader(
        "tokenizer with a space",
        write_spaced_tokenizer,
        read_spaced_tokenizer,
        (*FILES, ("merges.txt", "bytes")),
    ),
    Reader(
        "tokenizer that keeps marks",
        write_marked_tokenizer,
        lambda folder: facts(load_tokenizer(folder).vocabulary),
        (("tokenizer.json", "json"),),
    ),
    Reader("list of words", write_list, read_list, (("words.txt", "bytes"),)),
    Reader(
        "imported tokenizer",
        write_tokenizer,
        lambda folder: facts(read_imported(InputPath(str(folder)))),
        (*FILES, ("merges.txt", "bytes")),
    ),
    Reader(
        "fairseq's vocabulary",
        write_fairseq,
        read_fairseq,
        (("encoder.json", "json"), ("vocab.bpe", "bytes"), ("dict.txt", "bytes")),
    ),
    Reader("list of bad lines", write_bad_lines, listed_in, ((FILE, "jsonl"),)),
    Reader("files that were read", write_files, lambda folder: remembered_files(folder) in ({}, FACTS),
           ((READ_FILES, "json"), ("manifest.json", "json")), hashed=True),
    Reader("word counts", write_words, read_words, (("counts.tsv", "bytes"), ("counts.tsv.zst", "bytes"))),
    *(
        Reader(f"corpus, {name[2:]}", write_corpus, functools.partial(read_corpus, name), ((name, form),))
        for name, form in (
            ("a.txt", "bytes"), ("b.jsonl", "jsonl"), ("c.txt.gz", "bytes"), ("d.jsonl.xz", "bytes"),
            ("e.txt.zst", "bytes"), ("f.parquet", "bytes"), ("g.json", "bytes"), ("g.json", "json"),
            ("h.json.bz2", "bytes"), ("i.json.gz", "bytes"), ("j.csv", "bytes"), ("k.tsv", "bytes"),
            ("l.arrow", "bytes"), ("m.feather", "bytes"), ("n.arrow", "bytes"),
        )
    ),
    *(
        Reader(f"corpus, column of dictionaries, {name}", write_corpus, functools.partial(read_corpus, name, key="d"),
               ((name, "bytes"),))
        for name in ("l.arrow", "m.feather")
    ),
    Reader(
        "corpus, saved dataset",
        write_corpus,
        functools.partial(read_corpus, "o"),
        (("o/state.json", "json"), ("o/*.json", "bytes"), ("o/*.arrow", "bytes")),
        named="/o",
    ),
    Reader(
        "decisions",
        write_decisions,
        read_decisions,
        CLEAN,
        hashed=True,
    ),
    Reader(
        "decisions, not hashed",
        write_decisions,
        functools.partial(read_decisions, whole=False),
        CLEAN,
    ),
    Reader("array", write_array, lambda folder: npy.read(folder / "a.npy", np.uint32, 20).sum(), (("a.npy", "npy"),)),
    Reader("token store", write_data, functools.partial(read_store, whole=True), STORE, hashed=True),
    Reader("token store, not hashed", write_data, functools.partial(read_store, whole=False), STORE),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
@pytest.mark.parametrize("reader", READERS, ids=str)
def test_damage_is_told(reader: Reader, tmp_path: Path) -> None:
    check(reader, tmp_path)
