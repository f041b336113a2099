"""`robustly evaluate`: any masked language model on any text."""

from pathlib import Path
from typing import Annotated

import typer

from robustly import UserError, log
from robustly.cli.application import app
from robustly.cli.common import Documents, MoreFiles, TextKey, user_errors


@app.command(name="evaluate", short_help="Loss of a model on any text; minimal pairs.")
def evaluate_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Published folder, or a checkpoint on this machine: RoBERTa, BERT, ...",
        ),
    ],
    more: MoreFiles = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILES",
            help="Files, folders or globs, of all kinds that a corpus has; repeatable.",
        ),
    ] = None,
    minimal_pairs: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="JSON lines with sentence_good and sentence_bad; repeatable."
        ),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(help="What is kept whole: sentence, line or raw; default: as trained."),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="Whose rules end sentences; default: as trained."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="How units fill blocks, as data.format; default: as trained."),
    ] = None,
    block_length: Annotated[
        int | None,
        typer.Option(help="Tokens per block; default: as trained."),
    ] = None,
    masking: Annotated[
        str, typer.Option(help="bert, or run: the run's own rate, rule, masks and blocks.")
    ] = "bert",
    mask_rate: Annotated[
        float | None,
        typer.Option(help="Share of the tokens that are targets; default: 0.15."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Blocks at a time; changes nothing but speed.")
    ] = 32,
    documents: Documents = "blank_line",
    text_key: TextKey = "text",
    max_bad_lines: Annotated[
        int, typer.Option(min=0, help="Broken rows that are skipped before it is an error.")
    ] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all figures as one JSON object on stdout.")
    ] = False,
) -> None:
    """Masked-LM loss of a model on any text, and its accuracy on minimal pairs.

    Text is cut into the units and blocks that the model was trained on: a published folder says
    which; for any other model, lines are kept whole, and a block, 512 tokens at most, ends with its
    document. Options say otherwise. Each --text is packed on its own, like a source of a config.

    15% of the tokens (--mask-rate) are targets: 80% of them shown as <mask>, 10% as a random token,
    10% as they are; <s> and </s> never are. The masks are the same every time and depend on nothing
    but a block's place in its --text. With --masking run, rate, rule, masks and number of blocks
    are those of the run's own evaluation: on its held-out documents, the loss is the run's.

    Loss and perplexity compare models that share a tokenizer, on text that is cut alike; bits per
    byte compare others, roughly: what is masked together differs.

    Minimal pairs are scored by pseudo-log-likelihood (Salazar et al. 2020); a tie counts half.
    """
    with user_errors():
        if more and text and minimal_pairs:
            raise UserError(
                f"{more[0]}: of which option? Repeat --text or --minimal-pairs before each file"
            )
        if more and not (text or minimal_pairs):
            raise UserError(
                f"{more[0]}: expected an option before it: --text FILES or --minimal-pairs FILE"
            )
        if not (text or minimal_pairs):
            raise UserError(
                "nothing to evaluate on: expected --text FILES, --minimal-pairs FILE, or both"
            )

        from robustly.evaluation.cutting import TextOptions
        from robustly.evaluation.evaluate import evaluate_folder

        # a shell that expands a glob gives the option its first file and leaves the others bare
        texts = [*(text or []), *(more if more and text else [])]
        pairs = [*(minimal_pairs or []), *(map(Path, more) if more and minimal_pairs else [])]
        found = evaluate_folder(
            folder,
            texts,
            pairs,
            TextOptions(unit, language, format, block_length, masking, mask_rate),
            batch_size,
            documents,
            text_key,
            max_bad_lines,
        )
        if as_json:
            log.print_json(found)
