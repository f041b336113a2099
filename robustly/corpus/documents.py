"""Read the documents of a corpus, the same for counting words and for making the token store.

A corpus is a list of files and datasets, in the order of the config's sources; they are cut into
partitions, small files gathered, and all work is done partition by partition. Their list depends on
what is read alone, never on the number of workers, so that whatever is made from them is the same
bytes for any number of workers, and one large file keeps every core busy.

What the text of a document is, to the byte:

* `.txt`, `documents: blank_line`: a run of lines between blank lines, without the line feed of its
  last line. A blank line holds nothing but ASCII white space (space, tab, carriage return, vertical
  tab, form feed). Nothing else is taken away: a carriage return before a line feed stays.
* `.txt`, `documents: line`: each line that is not blank, without its line feed.
* `.txt`, `documents: file`: the file as it is.
* `.jsonl`, `.ndjson`: the string under `corpus.text_key` in the object on each line, as JSON
  decodes it; blank lines are skipped.
* `.json`: the same; or, if neither of its first two lines is an object, of each object of an array,
  or of objects one after the other, over however many lines.
* `.csv`, `.tsv`: the cell in the column `corpus.text_key` of each row below the column names. In
  `.csv` quotes hold commas and line ends together, and line ends stay what they are; in `.tsv` they
  do, too, or are text, as its first bytes tell.
* `.parquet`, `.arrow`, `.feather`, and a dataset: the string in the column `corpus.text_key` of
  each row; of bytes, as UTF-8.

Only a line feed ends a line (in `.csv` and `.tsv` a carriage return does, too). A byte order mark
at the start of a file is a mark of its encoding, not text. A document is there whole or not at all:
one that holds a byte that is not UTF-8, a NUL or half of a surrogate pair is a bad row."""

from collections.abc import Iterator

from robustly.corpus import decisions, hub, replacements
from robustly.corpus.bad_lines import BadLine, refuse_many
from robustly.corpus.config import CorpusConfig
from robustly.corpus.formats import format_of
from robustly.corpus.partitions import Partition
from robustly.corpus.reading import check_text


def documents(
    partition: Partition, corpus: CorpusConfig, bad_lines: list[BadLine]
) -> Iterator[str]:
    """The texts of the documents that begin in a partition and are kept by its filter decisions,
    with its replacements; the last one is read to its end, wherever that lies.

    Rows that give no text are appended to `bad_lines` and skipped; so is a document with a broken
    byte, a NUL or half of a surrogate pair in it. Raises UserError with file and line for more of
    them than `corpus.max_bad_lines`, and for a file that cannot be read to its end; and if the
    decisions are on other documents."""
    texts = _texts(partition, corpus, bad_lines)
    if partition.replacements:
        texts = replacements.replaced(texts, partition.replacements)
    if partition.decisions:
        texts = decisions.kept(texts, partition.decisions)

    return texts


def _texts(partition: Partition, corpus: CorpusConfig, bad_lines: list[BadLine]) -> Iterator[str]:
    for piece in partition.pieces:
        path, start, end = piece.path, piece.start, piece.end
        if piece.dataset:
            path = f"{path}, shard {start}"
            checked, rows = False, hub.texts(piece.dataset, start, end, corpus.text_keys)
        else:
            kind = format_of(path)
            checked, rows = kind.checked, kind.texts(piece.file, start, end, corpus)

        for place, text in rows:
            try:
                if isinstance(text, ValueError):
                    raise text
                if not checked:
                    check_text(text)
            except ValueError as fault:
                bad_lines.append(BadLine.of(path, place, fault))
                refuse_many(bad_lines, corpus)
            else:
                yield text
