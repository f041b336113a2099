"""Describe any folder for `robustly inspect`, by the module that its kind names, and by the
command's options."""

from pathlib import Path
from typing import cast

from robustly import UserError, log, manifest
from robustly.description import Description
from robustly.files import write_atomic
from robustly.inspection.folders import (
    CHECKPOINT,
    RUN,
    describe_run,
    folder_kind,
    stage_of,
    unfinished,
)
from robustly.stages import KINDS, resolve


def describe_tokenizer(
    folder: Path, paths: list[str], by: str | None, text_key: str, how: str, other: Path | None
) -> Description | None:
    """The folder's tokenizer on texts, or beside another; None where neither was asked for."""
    if by and not paths:
        raise UserError(f"--by {by}: of which text? Give --text FILES, too")

    if not (paths or other):
        return None

    from robustly.corpus.texts import by_file, by_key, corpus_from_options
    from robustly.inspection.tokenizer import compare, describe_on

    texts = None
    if paths:
        corpus = corpus_from_options(paths, how, text_key)
        texts = by_key(corpus, by) if by else by_file(corpus)

    return compare(folder, other, texts) if other else describe_on(folder, texts)


def check_data_folder(folder: Path, option: str) -> None:
    """Raises UserError unless the folder is a finished one of the data stage, which `option` is
    for."""
    if (kind := folder_kind(folder)) != "data":
        inside = f"; this run's is {folder / 'data'}" if kind == RUN else ""
        raise UserError(f"{folder}: a {kind} folder; {option} is for data folders{inside}")
    manifest.require_whole(folder, "data")


def describe_data(
    folder: Path,
    blocks: int | None,
    documents: Path | None,
    html: Path | None,
    with_tokenizer: Path | None,
) -> Description:
    """Describe a data folder, and write the files that its options ask for."""
    from robustly.data_prep.decoding import OPTION, decode_documents
    from robustly.data_prep.json_lines import check_place
    from robustly.inspection.data import describe, find_tokenizer

    if documents:
        check_place(documents, OPTION)

    if html and (
        html.suffix not in (".html", ".htm") or not html.absolute().parent.is_dir() or html.is_dir()
    ):
        raise UserError(
            f"--html {html}: expected a file name that ends in .html, in a folder that is there"
        )

    needed = blocks or documents or with_tokenizer  # the HTML page can do without
    tokenizer = find_tokenizer(folder, with_tokenizer) if needed else None
    if documents and tokenizer:
        log.say(f"{decode_documents(folder, tokenizer, documents):,} documents: {documents}")

    found = describe(folder, manifest.require(folder, "data"), blocks or 1, tokenizer)
    if html:
        from robustly.inspection.html import html_page

        write_atomic(html, html_page(found))
        log.say(f"page: {html}")

    return found


def describe_folder(folder: Path, kind: str) -> Description:
    """What a folder of this kind holds; only what describes it is imported.

    Raises UserError if a file of a finished one is missing, was cut off or is not what was
    written."""
    if kind == RUN:
        return describe_run(folder)

    if finished := manifest.read(folder):
        # a table says of each checkpoint whether it is complete
        described = [name for name in finished.outputs if not name.startswith("checkpoints/")]
        manifest.check_whole(folder, finished, described)
    elif stage_of(folder) and kind != "train":  # which is described under way as well
        return unfinished(folder, kind)

    describe = resolve(KINDS["published" if kind == CHECKPOINT else kind].describe)
    return cast(Description, describe(folder, finished))
