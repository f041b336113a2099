"""`robustly inspect`: what a folder holds."""

from pathlib import Path
from typing import Annotated

import typer

from robustly import UserError, log
from robustly.cli.application import app
from robustly.cli.common import Documents, MoreFiles, TextKey, user_errors
from robustly.inspection.folders import folder_kind


@app.command(name="inspect", short_help="What a folder holds, in words and figures.")
def inspect_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="A stage's folder, a run, a checkpoint, or a tokenizer."
        ),
    ],
    more: MoreFiles = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILES",
            help=(
                "What the folder's tokenizer makes of text: files, folders or globs, of all kinds"
                " that a corpus has; repeatable."
            ),
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="A row for each value of a key, such as lang; default: each file."
        ),
    ] = None,
    text_key: TextKey = "text",
    documents: Documents = "blank_line",
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Another folder, whose tokenizer is set beside this one's."
        ),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Data: show N blocks of each packed index as text; default: one.",
        ),
    ] = None,
    decode_documents: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Data: write every document back, to a new .jsonl or .jsonl.gz."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Data: write the facts as one HTML page with plots, too."
        ),
    ] = None,
    with_tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="FOLDER",
            help="Data: its tokenizer; default: the one beside the folder.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the facts as one JSON object on stdout.")
    ] = False,
) -> None:
    """What a folder holds, in words, figures and examples: tokenizer, data, train, published,
    report, delta, a whole run, or a Hugging Face checkpoint or tokenizer.

    With --text: how well the folder's tokenizer fits a text, in bytes per token, tokens per word
    and the share of bytes that are tokens of their own. With --compare: two tokenizers, on the same
    text.

    With --decode-documents: every document of a data folder as JSON lines (text, source, split).
    """
    from robustly import description
    from robustly.inspection import describe

    with user_errors():
        if more and not text:
            raise UserError(
                f"{more[0]}: expected an option before it: --text FILES or --compare FOLDER"
            )

        # a shell that expands a glob gives the option its first file and leaves the others bare
        paths = [*(text or []), *(more or [])]
        for_data = {
            "--blocks": blocks,
            "--decode-documents": decode_documents,
            "--html": html,
            "--tokenizer": with_tokenizer,
        }
        if given := [option for option, value in for_data.items() if value is not None]:
            if paths or by or compare:
                raise UserError(
                    f"{given[0]} is for data folders; --text, --by and --compare are for tokenizers"
                )

            describe.check_data_folder(folder, given[0])
            found = describe.describe_data(folder, blocks, decode_documents, html, with_tokenizer)
        else:
            of_tokenizer = describe.describe_tokenizer(
                folder, paths, by, text_key, documents, compare
            )
            found = of_tokenizer or describe.describe_folder(folder, folder_kind(folder))

        if as_json:
            log.print_json(found.json())
        else:
            description.show(found)
