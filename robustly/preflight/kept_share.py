"""What share of the text the rules of a config keep, by a sample, for a corpus that is not cleaned
yet."""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from robustly import UserError
from robustly.data_prep.cleaning.sample import Judge
from robustly.pretrain.stage import PretrainingConfig

CHARACTERS, SLOWLY = 2_000_000, 500_000
"""Of a sample; the second, where quality rules split words: some seconds."""


class KeptShare(NamedTuple):
    """Bytes that are kept of bytes that there are."""

    of_source: dict[str, float]
    """By the names of the sources."""
    source: str
    """Where that is known from, or what it leaves out."""
    seconds: float | None = None
    """Processor seconds that the rules took here for a byte of text; None where nothing tells."""


def kept_share(config: PretrainingConfig) -> KeptShare:
    """What the rules make of a sample. All is kept where they cannot be applied here, and as far as
    duplicates go, which only the whole corpus shows."""
    cleaning, names = config.cleaning, config.corpus.names
    everything = dict.fromkeys(names, 1.0)
    alone = {"exact_duplicates", "near_duplicates"}
    duplicates = alone & cleaning.recipe().keys()
    left_out = "duplicates are not counted yet" if duplicates else ""
    if not cleaning.recipe().keys() - alone:
        return KeptShare(everything, left_out)

    found: list[tuple[str, int, int]] = []  # source, bytes, those that are kept
    begun = ended = 0.0
    try:
        judge = Judge(cleaning, config.data.language)
        for each in judge.sample(config.corpus, SLOWLY if cleaning.quality else CHARACTERS):
            kept = "" if each.reason else judge.replaced(each.text, each.spans)
            found.append((each.source, len(each.text.encode()), len(kept.encode())))
            ended = time.process_time()
            begun = begun or ended  # libraries and models are loaded for the first
    except UserError as error:
        return KeptShare(everything, f"cleaning is not counted yet: {error}")

    if not found:
        return KeptShare(everything, "cleaning is not counted yet: no document in a sample")

    share, off = _ratio(found)
    own = {name: [row for row in found if row[0] == name] for name in names}
    of_source = {name: _ratio(rows)[0] if rows else share for name, rows in own.items()}
    counted = f"cleaning keeps {share:.0%} ± {off:.0%} of a sample of {len(found):,} documents"
    timed = sum(size for _, size, _ in found[1:])
    seconds = (ended - begun) / timed if timed else None
    return KeptShare(of_source, "; ".join(filter(None, (counted, left_out))), seconds)


def _ratio(rows: Sequence[tuple[str, int, int]]) -> tuple[float, float]:
    """The share that is kept, and its standard error, if documents have nothing to do with each
    other (of a ratio: Cochran 1977, section 2.11)."""
    total = sum(size for _, size, _ in rows)
    share = sum(kept for *_, kept in rows) / total
    return share, math.sqrt(sum((kept - share * size) ** 2 for _, size, kept in rows)) / total
