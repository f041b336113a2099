"""`robustly delta predict`, `score` and `merge`: what a finished delta is used by."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustly import UserError, log
from robustly.cli.common import user_errors
from robustly.cli.delta import delta_app

if TYPE_CHECKING:
    from robustly.delta.answering.route import Route
    from robustly.delta.answering.together import Together
    from robustly.delta.base_model import Base
    from robustly.delta.predictor import Predictor

DeltaFolder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="What `robustly delta` has made.")
]
BaseFolder = Annotated[
    Path | None,
    typer.Option(
        "--base", metavar="FOLDER", help="Its base; default: where it lay when it was trained."
    ),
]

Precision = Annotated[
    str,
    typer.Option(
        help="Of the base's weights: fp32; or bf16 or fp16, which halve its memory. The delta's own"
        " stay in fp32."
    ),
]
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""By torch's names."""


def finished_delta(
    folder: Path, base: Path | None, precision: str = "fp32"
) -> "tuple[Base, Predictor]":
    """A delta on its base, on the GPU if there is one. Raises UserError if one of them is not what
    it should be."""
    from robustly.delta.storage.saving import load

    found = in_precision(folder, base, precision)
    predictor = load(found, folder)
    predictor.model.to(device())
    return found, predictor


def finished_deltas(folders: Sequence[Path], base: Path | None, precision: str) -> "Together":
    """Deltas on one base, by the names of their folders, on the GPU if there is one. Raises
    UserError if two have one name, or as `finished_delta` does."""
    from robustly.delta.answering.together import Together

    names = [folder.name for folder in folders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--deltas: {twice[0]} twice; expected folders of different names")

    found = in_precision(folders[0], base, precision)
    return Together.load(found, dict(zip(names, folders, strict=True))).to(device())


def finished_route(folder: Path, base: Path | None, precision: str) -> "Route":
    """What `robustly delta route` has made, on the GPU if there is one. Raises UserError as
    `finished_delta` does."""
    from robustly.delta.answering.route import DELTAS, load, read_record

    name = read_record(folder).tasks[0].name
    route = load(in_precision(folder / DELTAS / name, base, precision), folder)
    route.deltas.to(device())
    return route


def in_precision(folder: Path, base: Path | None, precision: str) -> "Base":
    """The base of a delta. Raises UserError as `robustly.delta.storage.saving.base_of` does."""
    import torch

    from robustly.delta.storage.saving import base_of

    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision}: expected one of {', '.join(PRECISIONS)}")
    return base_of(folder, base, getattr(torch, PRECISIONS[precision]))


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@delta_app.command(name="predict", short_help="Answer inputs of files or of standard input.")
def delta_predict_command(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FOLDER [FILE]...",
            help="What `robustly delta` has made; and text (an input a line), JSON lines, CSV, or"
            " any other kind that a task's files have; - (and none): standard input.",
        ),
    ] = None,
    deltas: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER,FOLDER,...",
            help="Several deltas on one base, in the place of FOLDER. A row is for the one that it"
            " names under the key `delta`, by its folder's name, and else for all of them.",
        ),
    ] = None,
    base: BaseFolder = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="SUFFIX",
            help="What the input is, such as txt, jsonl, csv; default: by the file's name, and"
            " standard input by its first character.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(metavar="K", min=1, help="Show the scores of the best K labels alone."),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            min=0,
            max=1,
            help="Below this probability the label is null: none of these.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="Repeat this key of the row in its answer, such as id; repeatable."
        ),
    ] = None,
    max_bad_lines: Annotated[
        int,
        typer.Option(
            min=0,
            help="Rows without an input that may be; each has an error in the place of its answer.",
        ),
    ] = 0,
    precision: Precision = "fp32",
) -> None:
    """Answer each input by one line of JSON on stdout, in the inputs' order: the label, and how
    probable each label is; for tags the spans as well. Inputs are answered while they are read,
    however many there are, and from a pipe as they come. A row has the keys that the delta's
    training file had, without the answer; a line of text is the text. Several deltas
    (`--deltas`) answer by one run of the encoder, where their methods allow it. In the place of a
    delta, what `robustly delta route` has made sends each row to the delta that it is for.

    A row that holds no input (a blank text, a missing key, broken JSON) ends the command with its
    line and exit code 2, after the answers to all rows before it.
    """
    with user_errors():
        from robustly.delta.answering.inputs import read
        from robustly.delta.answering.route import RECORD
        from robustly.delta.answering.rows import CUT, Options, answers
        from robustly.delta.predictor import unseen
        from robustly.delta.tasks.heads import Wanted

        files = given or []
        predictor: Predictor | Together | Route
        if deltas:
            predictor = finished_deltas(list(map(Path, deltas.split(","))), base, precision)
        elif files and (Path(files[0]) / RECORD).exists():
            predictor, files = finished_route(Path(files[0]), base, precision), files[1:]
        elif files:
            predictor, files = finished_delta(Path(files[0]), base, precision)[1], files[1:]
        else:
            raise UserError("expected the folder of a delta, or --deltas FOLDER,FOLDER,...")

        names = files or ["-"]
        options = Options(Wanted(top, min_score), tuple(keep or ()), max_bad_lines, "-" in names)
        # on one terminal a bar would stand between the answers
        progress = log.progress("answering", None, "rows")
        with nullcontext(unseen) if sys.stdout.isatty() else progress as advance:
            count, none, cut = print_answers(
                answers(predictor, read(names, format), options, advance), options.slow
            )

        log.say(f"{count:,} answers" + (f", {none:,} of them none of the labels" if none else ""))
        if cut:
            log.warn(
                f"{cut:,} of {count:,} inputs are longer than the delta reads; their answers say by"
                f" how many tokens ({CUT}), and delta.task.long of its config what is read"
            )


def print_answers(found: Iterable[Mapping[str, Any]], at_once: bool) -> tuple[int, int, int]:
    """Print each answer as a line of JSON, until there are no more or who reads them has gone
    (`| head`). `at_once`: they are waited for. Returns how many there were, how many of them are
    none of the labels, and how many are of inputs that were cut."""
    from robustly.delta.answering.rows import CUT

    count = none = cut = 0
    try:
        for answer in found:
            sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
            if at_once:
                sys.stdout.flush()

            count += 1
            none += answer.get("label", "") in (None, [])
            cut += any(CUT in each for each in (answer, *answer.get("answers", {}).values()))

    except BrokenPipeError:
        # what is left in it has no reader, either, when Python flushes it in the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        with suppress(BrokenPipeError):
            sys.stdout.flush()  # the answers come before a fault

    return count, none, cut


@delta_app.command(name="score", short_help="Score a delta on a labelled file.")
def delta_score_command(
    folder: DeltaFolder,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="With the keys of the delta's training file; or hub:NAME/SPLIT."
        ),
    ],
    base: BaseFolder = None,
    precision: Precision = "fp32",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the scores as one JSON object on stdout.")
    ] = False,
) -> None:
    """Score a delta on a labelled file: the task's metrics, the loss, and for each label how many
    are found and how many answers are right."""
    with user_errors():
        from robustly.delta.answering.rows import judged

        _, predictor = finished_delta(folder, base, precision)
        examples, judgement = judged(predictor, file)
        labels = judgement.by_label
        log.table(f"{folder} on {file}", {"examples": len(examples), **judgement.scores})
        if labels:
            log.rows(labels)

        if as_json:
            scores = {"examples": len(examples), "scores": judgement.scores, "labels": labels}
            log.print_json({"folder": str(folder), "file": file, **scores})


@delta_app.command(name="merge", short_help="Merge a delta into its base, for plain transformers.")
def delta_merge_command(
    folder: DeltaFolder,
    into: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the model goes: a new folder.")
    ],
    base: BaseFolder = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the facts as one JSON object on stdout.")
    ] = False,
) -> None:
    """Write a delta and its base as one model that plain transformers loads, with tokenizer and
    labels, where the methods allow it: lora, dora, ia3, adalora, bitfit, full and head. The folder
    is reloaded by transformers and gives the same logits, or nothing is written."""
    with user_errors():
        from robustly.delta.publishing.merged import write_merged

        found, predictor = finished_delta(folder, base)
        facts = write_merged(predictor, found, into)
        log.table(f"merged: {into}", facts)
        if as_json:
            log.print_json({"folder": str(into), **facts})
