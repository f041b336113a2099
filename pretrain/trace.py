"""Trace an update to its documents, and a document to its updates: pure functions of the config and
the token store, without a model.

Both ask what training asks: the sampler for the blocks of an update, the masks of these, and the
packed index for the places of their tokens. So what they list is what is trained on, on any number
of ranks, before, while and after it is."""

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from robustly import UserError
from robustly.data_prep.origins import Document, Origins
from robustly.data_prep.store import check_tokenizer
from robustly.pretrain.attention import attention_for, in_rows
from robustly.pretrain.batches import Batches
from robustly.pretrain.clock import CLOCK, updates_made
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.phases import Phases
from robustly.pretrain.sessions import SESSIONS
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.targets import open_training_blocks
from robustly.tokenizer import load_tokenizer


class TracedPiece(NamedTuple):
    """A run of a block's tokens that are of one document."""

    document: int
    """Its number in the train split, counted from 0."""
    source: str
    partition: int
    """Of the corpus, from which the document was read."""
    shard: str
    place: int
    """Of the document among those of its shard."""
    at: int
    """Where the run begins in the block."""
    offset: int
    """Where it begins in the document, in tokens of the stream."""
    tokens: int


@dataclass(frozen=True)
class TracedBlock:
    """A block of an update."""

    position: int
    """In the endless stream of epochs."""
    rank: int
    micro_batch: int
    row: int
    epoch: int
    entry: int
    """Place in the epoch's list; with seed and epoch it decides the mask."""
    block: int
    """Number in the packed index."""
    second: int
    """The block whose second segment is shown; `block` itself but for exchanged pairs."""
    tokens: int
    masked: list[int]
    """Positions of the targets in the block."""
    pieces: list[TracedPiece]

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "pieces": [piece._asdict() for piece in self.pieces]}


class Occurrence(NamedTuple):
    """A document's appearance in an update."""

    update: int
    epoch: int
    position: int
    """Of the block that shows it, in the endless stream of epochs."""
    block: int


def batches_of(
    config: PretrainingConfig, rank: int = 0, ranks: int = 1, update: int | None = None
) -> Phases:
    """The batches of a config, from its finished tokenizer and data folders, laid out as the
    session laid them out that made `update`. Raises UserError where the folders are not finished,
    do not belong together, or are not those that were trained on."""
    config.stage().refuse_other_work()
    tokenizer, folder = load_tokenizer(config.folder("tokenizer")), config.folder("data")
    check_tokenizer(folder, tokenizer)
    train = open_training_blocks(config, tokenizer)
    special, name = SpecialTokens.of(tokenizer), _attention_of(config, update)
    return Phases.of(config, train, special, rank, ranks, in_rows(name))


def _attention_of(config: PretrainingConfig, update: int | None) -> str:
    """The attention that an update was made with, where the run's sessions say so; else that of
    the config, which with `auto` is what this machine would take."""
    sessions = config.folder("train") / SESSIONS
    for line in sessions.read_text().splitlines() if sessions.exists() else ():
        session = json.loads(line)
        made = update is not None and session["from_update"] < update <= session["to_update"]
        if made and session.get("attention"):
            return str(session["attention"])

    if config.run.attention != "auto":
        return config.run.attention

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return attention_for(config.run, config.model, device).name


def trace_update(batches: Batches, update: int) -> list[TracedBlock]:
    """The blocks of this rank's part of an update, in the order in which they go through the
    model."""
    origins = Origins(batches.sampler.blocks)
    share = batches.share(update)
    positions = (batches.sizes.before(update) + share.dealt.places).tolist()
    found = []
    for micro_batch, rows in enumerate(share.dealt.rows):
        for place, row in enumerate(rows.tolist()):
            epoch, entry, block, second = (int(column[row]) for column in share.samples)
            found.append(
                TracedBlock(
                    position=positions[row],
                    rank=batches.rank,
                    micro_batch=micro_batch,
                    row=place,
                    epoch=epoch,
                    entry=entry,
                    block=block,
                    second=second,
                    tokens=int(share.masked.lengths[row]),
                    masked=np.flatnonzero(share.masked.masked.targets[row]).tolist(),
                    pieces=_pieces(origins, block, second),
                )
            )

    return found


def _pieces(origins: Origins, block: int, second: int) -> list[TracedPiece]:
    found = []
    for piece in origins.pieces(block, second):
        of = origins.document(piece.document)
        of_document = of.number, of.source, of.partition, of.shard, of.place
        found.append(TracedPiece(*of_document, piece.at, piece.offset, piece.tokens))

    return found


def trace_document(
    batches: Batches, number: int, updates: int, skipped: Collection[int] = (), begin: int = 0
) -> tuple[Document, list[Occurrence]]:
    """A document of the train split, and where the updates after `begin` up to `updates`, less
    those that are `skipped`, see it, in their order; all are of one phase.

    Raises UserError if there is no such document."""
    origins = Origins(batches.sampler.blocks)
    document = origins.document(number)
    firsts, seconds = origins.blocks_with(number)
    seen = _seen(batches, firsts, seconds, begin, updates)
    return document, [line for line in seen if line.update not in skipped]


def _seen(
    batches: Batches, firsts: Any, seconds: Any, begin: int, updates: int
) -> Iterator[Occurrence]:
    sampler, sizes = batches.sampler, batches.sizes
    start, end = sizes.before(begin + 1), sizes.before(updates + 1)
    for epoch in range(start // sampler.size, -(-end // sampler.size)):
        for place in sampler.positions(epoch, firsts, seconds).tolist():
            position = epoch * sampler.size + place
            if start <= position < end:
                sample = sampler.stream(position, position + 1)
                yield Occurrence(sizes.update_of(position), epoch, position, int(sample.block[0]))


def trace_through(
    phases: Phases, number: int, begin: int, end: int, skipped: Collection[int] = ()
) -> tuple[Document, list[Occurrence]]:
    """As `trace_document`, of all updates after `begin` up to `end`, phase by phase."""
    seen: list[Occurrence] = []
    for after, last, batches in phases:
        if last > begin:
            span = end if batches is phases.last else last, skipped, max(after, begin)
            document, lines = trace_document(batches, number, *span)
            seen += lines

    return document, seen


def check_update(update: int, config: PretrainingConfig) -> None:
    """Raises UserError unless the config has such an update."""
    schedule = config.schedule
    first, last = schedule.begin + 1, updates_made(config.folder("train"), schedule)
    if not first <= update <= last:
        key = CLOCK if schedule.hours else "schedule.updates"
        raise UserError(f"update {update}: expected one of {first} to {last} ({key})")
