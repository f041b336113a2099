"""`robustly trace`: which documents an update is trained on, and which updates see a document."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustly import UserError, log
from robustly.cli.application import app
from robustly.cli.common import Overrides, user_errors
from robustly.experiment import Experiment, load_experiment
from robustly.inspection.folders import RUN, folder_kind

if TYPE_CHECKING:
    from robustly.data_prep.origins import Document
    from robustly.pretrain.trace import Seen, TracedBlock

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

        experiment = experiment_at(run, overrides)
        total = ranks or experiment.run.ranks
        if rank is not None and rank >= total:
            raise UserError(f"--rank {rank}: expected one of 0 to {total - 1} (--ranks {total})")

        if document is not None:
            found, seen = trace.trace_document(
                trace.batches_of(experiment), document, experiment.schedule.updates
            )
            _show_document(found, seen, as_json)
            return

        assert update is not None
        trace.check_update(update, experiment)
        chosen = range(total) if rank is None else [rank]
        whole = trace.batches_of(experiment, 0, total)
        blocks = [
            block for one in chosen for block in trace.trace_update(whole.of_rank(one), update)
        ]
        _show_update(update, blocks, as_json)


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


def _show_update(update: int, blocks: "list[TracedBlock]", as_json: bool) -> None:
    if as_json:
        log.print_json({"update": update, "blocks": [block.json() for block in blocks]})
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
                }
                for number, piece in sorted(documents.items())
            ],
        )
    )


def _show_document(document: "Document", seen: "list[Seen]", as_json: bool) -> None:
    if as_json:
        log.print_json({**document._asdict(), "seen": [line._asdict() for line in seen]})
        return

    from robustly.description import Listing, show_listing

    log.table(f"document {document.number}", document._asdict())
    log.say(f"seen in {len({line.update for line in seen}):,} updates")
    show_listing(Listing("updates", [line._asdict() for line in seen]))
