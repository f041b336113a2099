"""Read texts that a command's options name (`--text` and the like) as a corpus is read."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, get_args

from robustly import UserError, log
from robustly.corpus.bad_lines import BadLine, listed, refuse_many, told, warn
from robustly.corpus.config import CorpusConfig, SourceConfig
from robustly.corpus.documents import documents
from robustly.corpus.feed import in_order
from robustly.corpus.files import corpus_files
from robustly.corpus.formats import DOCUMENTS, format_of
from robustly.corpus.partitions import Partition, partitions

# Messages of the corpus reader name keys of a config; here they are options of the command.
OPTIONS = {
    "; word counts (.tsv) only for corpus.counts": "",
    "corpus.sources": "--text",
    "corpus.text_key": "--text-key",
    "corpus.documents": "--documents",
}
BAD_LINES = {"corpus.max_bad_lines": "--max-bad-lines"}  # of commands that can skip broken rows
MAX_VALUES = 2000
"""Of the key of `--by`: some corpora have as many languages; more would be names of documents."""


class FileText(NamedTuple):
    """A document of a file."""

    source: int
    """Place of the file's source among the corpus's."""
    path: str
    text: str


@dataclass(frozen=True)
class NamedTexts:
    """Documents, each with a name: that of its file, or a value of its row."""

    title: str
    by: str
    """What the names are of, such as `file` or `lang`."""
    named: Iterable[tuple[str, str]]
    """(name, text) of each document."""
    by_name: bool = False
    """Whether tables list them by name, rather than in the order in which they came."""


def corpus_from_options(
    paths: Sequence[str], how: str, text_key: str, max_bad_lines: int = 0
) -> CorpusConfig:
    """The corpus of the files, folders or globs that `--text` names; `how` is the value of
    `--documents`.

    Raises UserError for a value that `corpus.documents` does not take.
    """
    if how not in (known := get_args(CorpusConfig.model_fields["documents"].annotation)):
        raise UserError(f"--documents {how}: expected one of {', '.join(known)}")

    return CorpusConfig(
        sources=[
            SourceConfig(path=str(Path(path).expanduser().absolute()))
            for path in dict.fromkeys(paths)
        ],
        documents=how,
        text_key=text_key,
        validation=0,
        max_bad_lines=max_bad_lines,
    )


def read_texts(
    corpus: CorpusConfig, what: str, options: Mapping[str, str] = OPTIONS
) -> Iterator[FileText]:
    """Each document, the files one after the other, with a progress bar.

    Raises UserError if a source matches no file or holds no text, a file cannot be read, or there
    are too many broken rows; `options` are named in place of the config's keys."""
    bad_lines: list[BadLine] = []
    with _as_options(options):
        cut = _partitions(corpus)
        with log.progress(what, len(cut), "partitions") as advance:
            for number, of_source in itertools.groupby(in_order(cut), key=lambda part: part.source):
                seen, broken = False, len(bad_lines)
                for partition in of_source:
                    for text in documents(partition, corpus, bad_lines):
                        seen = True
                        yield FileText(number, partition.pieces[0].path, text)
                    advance(1)

                if not seen:
                    own = told(listed(bad_lines[broken:]))
                    label = corpus.sources[number].label
                    raise UserError(f"{label}: no document in it; expected text{own}")

        refuse_many(bad_lines, corpus)

    if bad_lines:
        warn(listed(bad_lines))


def by_file(corpus: CorpusConfig) -> NamedTexts:
    """The documents of a corpus without broken rows, under their files' names; raises UserError as
    `read_texts` does."""
    with _as_options(OPTIONS):
        names = _names([str(path) for _, path in corpus_files(corpus)])
    return NamedTexts(
        "text", "file", ((names[one.path], one.text) for one in read_texts(corpus, "measuring"))
    )


def by_key(corpus: CorpusConfig, key: str) -> NamedTexts:
    """The documents of rows (.jsonl, .parquet) without broken ones, under the strings that the rows
    hold at `key`.

    Raises UserError for a .txt file; while it is read, as `read_texts` does, and if a row has no
    string at `key`, or if there are more than MAX_VALUES of them."""
    with _as_options(OPTIONS):
        for _, path in corpus_files(corpus):
            if not format_of(path).has_keys:
                keyed = " or ".join(suffix for suffix, kind in DOCUMENTS.items() if kind.has_keys)
                raise UserError(
                    f"{path}: has no keys; --by {key} takes {keyed}, whose rows have some"
                )

    return NamedTexts("text", key, _rows(corpus, key), by_name=True)


def _rows(corpus: CorpusConfig, key: str) -> Iterator[tuple[str, str]]:
    """The rows are read twice, side by side: as their texts, and as if the value of the key were
    the text."""
    values = corpus.model_copy(update={"text_key": key})
    names: set[str] = set()
    texts = read_texts(corpus, "measuring")

    with _as_options({**OPTIONS, "corpus.text_key": "--by"}):
        labels = (
            label
            for partition in in_order(_partitions(values))
            for label in documents(partition, values, [])
        )
        for one, name in zip(texts, labels, strict=True):
            names.add(name)
            if len(names) > MAX_VALUES:
                raise UserError(
                    f"--by {key}: more than {MAX_VALUES:,} values; expected a key that many rows"
                    " share, such as a language or a source"
                )
            yield name, one.text


def _partitions(corpus: CorpusConfig) -> list[Partition]:
    """The partitions of the files, each of one file. Raises UserError if those of a source are
    empty."""
    found = [
        replace(partition, pieces=(piece,))
        for partition in partitions(corpus)
        for piece in partition.pieces
    ]
    read = {partition.source for partition in found}
    for number, source in enumerate(corpus.sources):
        if number not in read:
            raise UserError(f"{source.label}: empty; expected text")

    return found


def _names(paths: Sequence[str]) -> dict[str, str]:
    """What people call each file: its name, or its path where others have the same name."""
    count = Counter(Path(path).name for path in dict.fromkeys(paths))
    return {path: Path(path).name if count[Path(path).name] == 1 else path for path in paths}


@contextmanager
def _as_options(options: Mapping[str, str]) -> Iterator[None]:
    """Name options instead of the config's keys in what is raised. Of broken rows, a command
    without an option for them tells the first alone."""
    try:
        yield
    except UserError as fault:
        message = str(fault)
        if not BAD_LINES.keys() & options.keys() and any(key in message for key in BAD_LINES):
            message = message.partition("\n")[0] + "; mend the row or leave it out"

        for key, option in options.items():
            message = message.replace(key, option)

        raise UserError(message) from fault.__cause__
