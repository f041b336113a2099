"""`robustly trace` and `robustly replay`: what an update was trained on, and whether it can be
trained again."""

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustly import UserError, log, manifest
from robustly.cli.application import app
from robustly.cli.common import Overrides, user_errors
from robustly.exit_codes import FAULT, FINISHED, START_AGAIN
from robustly.experiment import Experiment, load_experiment
from robustly.inspection.folders import RUN, folder_kind

if TYPE_CHECKING:
    from robustly.data_prep.origins import Document
    from robustly.pretrain.replay import Comparison
    from robustly.pretrain.trace import Occurrence, TracedBlock

ENDED_WELL = (FINISHED, START_AGAIN)
"""Of ranks that are to stop before the last update."""

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Folder of a run or its train folder, or a config.")
]


@app.command(name="trace", short_help="What an update is trained on; which updates see a document.")
def trace_command(
    run: RunArgument,
    overrides: Overrides = None,
    update: Annotated[
        int | None, typer.Option(metavar="K", help="List the blocks and documents of update K.")
    ] = None,
    document: Annotated[
        int | None,
        typer.Option(metavar="D", help="List the updates that see document D of the train split."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=0, help="With --update: this rank's blocks alone.")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="How many ranks share an update; default: run.ranks.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the trace as one JSON object on stdout.")
    ] = False,
) -> None:
    """Trace an update to its documents, offsets and masks, or a document to the updates that see
    it. Nothing is run: both follow from the config and the token store, before, while and after the
    model is trained."""
    with user_errors():
        if (update is None) == (document is None):
            raise UserError("expected either --update K or --document D")

        from robustly.pretrain import trace
        from robustly.pretrain.bad_updates.update_records import SKIPPED, read
        from robustly.pretrain.clock import updates_made

        experiment = experiment_at(run, overrides)
        total = ranks or experiment.run.ranks
        if rank is not None and rank >= total:
            raise UserError(f"--rank {rank}: expected one of 0 to {total - 1} (--ranks {total})")

        skipped = {line["update"] for line in read(experiment.folder("train") / SKIPPED)}
        if document is not None:
            phases, schedule = trace.batches_of(experiment), experiment.schedule
            end = updates_made(experiment.folder("train"), schedule)
            found, seen = trace.trace_through(phases, document, schedule.begin, end, skipped)
            _show_document(found, seen, partition_files(experiment), as_json)
            return

        assert update is not None
        trace.check_update(update, experiment)
        chosen = range(total) if rank is None else [rank]
        whole = trace.batches_of(experiment, 0, total, update)
        shares = [trace.trace_update(whole.of_rank(one).at(update), update) for one in chosen]
        blocks = [block for share in shares for block in share]
        _show_update(update, update in skipped, blocks, partition_files(experiment), as_json)


@app.command(name="replay", short_help="Train updates of a run again, and compare.")
def replay_command(
    run: RunArgument,
    overrides: Overrides = None,
    updates: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How many updates are trained again; default: up to the next kept checkpoint.",
        ),
    ] = None,
    start: Annotated[
        int | None,
        typer.Option(
            "--from",
            metavar="UPDATE",
            help="The kept checkpoint to begin with; default: the newest with N updates after it.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was found as one JSON object on stdout.")
    ] = False,
) -> None:
    """Train N updates of a run again, in a temporary folder, from a checkpoint that it kept, and
    compare losses, and weights where another checkpoint lies at their end: they are the same to the
    last bit on the same layout (ranks, micro-batch, precision, ZeRO stage, attention,
    devices, versions), and
    within a tolerance on another. Exit code 1 where they are not."""
    with user_errors():
        from robustly.launch import local, snapshot
        from robustly.pretrain import replay

        experiment = experiment_at(run, overrides)
        experiment.stage().refuse_other_work()
        folder = experiment.folder("train")
        chosen = replay.choose(folder, updates, start)
        snapshot.say_other(folder)
        with tempfile.TemporaryDirectory(prefix="replay-") as temporary:
            again = experiment_at(run, [*(overrides or []), *replay.changes(Path(temporary))])
            replay.lay_out(folder, again.folder("train"), chosen)
            command = again.rank_command(live_code=True, stop_after=chosen.end)
            if (code := local.run(command, again.run.ranks, os.environ)) not in ENDED_WELL:
                raise typer.Exit(code)

            found = replay.compare(folder, again, chosen)

        _show_comparison(found, as_json)
        if not found.same:
            raise typer.Exit(FAULT)


def _show_comparison(found: "Comparison", as_json: bool) -> None:
    for line in found.layout:
        log.say(f"not the layout of the run: {line}")

    shown = 10
    for line in found.differences[:shown]:
        log.say(line)

    if (more := len(found.differences) - shown) > 0:
        log.say(f"and {more} more differences")

    verdict = "the same to the last bit"
    if found.tolerance:
        verdict = f"the same within {found.tolerance:g}" if found.same else "not the same"
    elif not found.same:
        verdict = "not the same"

    tensors = "no checkpoint at the end to compare with"
    if found.tensors:
        different = len(found.different_tensors)
        tensors = f"{found.tensors - different} of {found.tensors} the same to the last bit"

    log.table(
        f"replay: updates {found.start + 1} to {found.end}",
        {
            "lines of figures": found.lines,
            "largest difference of losses": f"{found.largest:.1e}",
            "weights and moments": tensors,
            "distance of weights": f"{found.distance:.1e}" if found.tensors else "-",
            "verdict": verdict,
        },
    )
    if as_json:
        log.print_json({**asdict(found), "same": found.same})


def experiment_at(run: str, overrides: list[str] | None) -> Experiment:
    """The experiment of a config, or of the folder of a run or its train folder, by the config that
    it was trained with. Raises UserError."""
    folder = Path(run)
    if not folder.is_dir():
        return load_experiment(run, overrides)

    kind = folder_kind(folder)
    if kind not in (RUN, "train"):
        raise UserError(f"{folder}: a {kind} folder; expected a run's, or its train folder")

    train = folder / "train" if kind == RUN else folder
    places = [
        f"paths.root={json.dumps(str(train.parent))}",
        f"paths.train={json.dumps(str(train))}",
    ]
    return load_experiment(str(train / "config.yaml"), [*places, *(overrides or [])])


def partition_files(experiment: Experiment) -> list[str]:
    """What each partition of the corpus is: a file and a range of its bytes (or rows, or a
    dataset's shards), or many files; nothing where the corpus is not here, or was cut otherwise."""
    from robustly.corpus.partitions import RULE, partitions

    made = manifest.read(experiment.folder("data"))
    if made and made.notes.get("cut") != RULE:
        log.say("without the files of the corpus: another version of robustly has cut it")
        return []

    try:
        cut = partitions(experiment.corpus)
    except UserError as fault:
        log.say(f"without the files of the corpus: {fault}")
        return []

    return [str(part) for part in cut]


def _read_from(files: list[str], partition: int) -> str | None:
    return files[partition] if partition < len(files) else None


def _show_update(
    update: int,
    skipped: bool,
    blocks: "list[TracedBlock]",
    files: list[str],
    as_json: bool,
) -> None:
    if as_json:
        listed = [block.json() for block in blocks]
        partitions = sorted({piece.partition for block in blocks for piece in block.pieces})
        read_from = {number: _read_from(files, number) for number in partitions}
        figures = {"update": update, "skipped": skipped, "blocks": listed, "partitions": read_from}
        log.print_json(figures)
        return

    from robustly.description import Listing, show_listing

    rows: list[dict[str, Any]] = [
        {
            "rank": block.rank,
            "micro_batch": block.micro_batch,
            "position": block.position,
            "epoch": block.epoch,
            "block": block.block,
            "documents": ", ".join(
                f"{piece.document}[{piece.offset}:{piece.offset + piece.tokens}]"
                for piece in block.pieces
            ),
            "masked": " ".join(map(str, block.masked)),
        }
        for block in blocks
    ]
    documents = {piece.document: piece for block in blocks for piece in block.pieces}
    log.say(f"update {update}: {len(blocks):,} blocks of {len(documents):,} documents")
    if skipped:
        log.say("it was skipped: no model has learnt from it")

    show_listing(Listing("blocks, in the order in which they go through the model", rows))
    show_listing(
        Listing(
            "documents, by their number in the train split",
            [
                {
                    "document": number,
                    "source": piece.source,
                    "shard": piece.shard,
                    "place_in_shard": piece.place,
                    "read_from": _read_from(files, piece.partition),
                }
                for number, piece in sorted(documents.items())
            ],
        )
    )


def _show_document(
    document: "Document", seen: "list[Occurrence]", files: list[str], as_json: bool
) -> None:
    figures = {**document._asdict(), "read_from": _read_from(files, document.partition)}
    if as_json:
        log.print_json({**figures, "seen": [line._asdict() for line in seen]})
        return

    from robustly.description import Listing, show_listing

    log.table(f"document {document.number}", figures)
    log.say(f"seen in {len({line.update for line in seen}):,} updates")
    show_listing(Listing("updates", [line._asdict() for line in seen]))
