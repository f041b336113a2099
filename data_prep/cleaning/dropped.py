"""Write the documents that the clean stage drops as JSON lines, to be looked at."""

from dataclasses import replace
from pathlib import Path

from robustly import log
from robustly.corpus import decisions
from robustly.corpus.config import CorpusConfig
from robustly.corpus.documents import documents
from robustly.corpus.feed import in_order
from robustly.corpus.partitions import partitions
from robustly.data_prep.json_lines import check_place, new_file

OPTION = "--dropped"


def write_dropped(corpus: CorpusConfig, folder: Path, path: Path) -> int:
    """Read the corpus once more and write what the finished stage in `folder` drops to `path`, as
    the rules saw it: with the stage's replacements. Returns how many documents.

    A line is {"text", "source", "reason"}, in the order of the corpus. The file is there when all
    of it is; compressed if it ends in .gz. Raises UserError as `check_place` does, or if the corpus
    cannot be read."""
    check_place(path, OPTION)
    summary = decisions.read_summary(folder)
    reasons, of_each = summary.verdicts, decisions.decisions_in(folder, summary)
    sources, cut = corpus.names, decisions.attach(partitions(corpus), folder)
    written = 0

    with (
        new_file(path) as write,
        log.progress("writing dropped documents", len(cut), "partitions") as advance,
    ):
        whole = [replace(partition, decisions=None) for partition in cut]
        for number, partition in enumerate(in_order(whole)):
            codes = decisions.read(of_each[number]).tolist()
            for text, code in zip(documents(partition, corpus, []), codes, strict=True):
                if code != decisions.KEPT:
                    source = sources[partition.source]
                    write({"text": text, "source": source, "reason": reasons[code]})
                    written += 1

            advance(1)

    return written
