"""Import a vocabulary: RoBERTa's own from fairseq's files, or the folder of a Hugging Face
tokenizer."""

from collections.abc import Iterator
from pathlib import Path

from robustly import UserError
from robustly.config import InputPath, locate
from robustly.tokenizer.config import FairseqFiles
from robustly.tokenizer.reading import read_json, read_merges, read_text, read_vocabulary
from robustly.tokenizer.special_tokens import (
    MASK_TOKEN,
    SPECIAL_TOKENS,
    byte_symbols,
    could_be_learned,
)
from robustly.tokenizer.vocabulary import FILLER, Vocabulary

KEY = "tokenizer.import"
# Of a Hugging Face folder, all that decides how text is encoded.
FOLDER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "added_tokens.json",
)
_WAY_ROUND = (
    "To start from a RoBERTa, XLM-RoBERTa or CamemBERT with it, leave tokenizer.import out: the"
    " tokens of a vocabulary that is trained on your text take their rows from model.init_from"
    " (docs/howto/continue_pretraining.md)"
)


def files_of(imported: InputPath | FairseqFiles) -> list[Path]:
    """The files of an import that are there. Raises UserError if there are none, or one of
    fairseq's is missing."""
    if isinstance(imported, FairseqFiles):
        return [locate(f"{KEY}.{key}", getattr(imported, key)) for key in FairseqFiles.model_fields]

    folder = locate(KEY, imported)
    if not folder.is_dir():
        raise UserError(
            f"{KEY}: {folder}: expected the folder of a Hugging Face tokenizer, found a file"
        )

    return [folder / name for name in FOLDER_FILES if (folder / name).exists()]


def read_imported(imported: InputPath | FairseqFiles) -> Vocabulary:
    """The vocabulary of `tokenizer.import`.

    Raises UserError if a file is missing, and for a tokenizer of another kind with what makes it
    one."""
    if isinstance(imported, FairseqFiles):
        encoder, merges, dictionary = files_of(imported)
        return _whole(read_fairseq(encoder, merges, dictionary), merges)

    folder = locate(KEY, imported)
    try:
        vocabulary = read_vocabulary(folder)
        _check_layout(vocabulary, folder)
    except UserError as fault:
        raise UserError(f"{fault}. {_WAY_ROUND}") from None

    return _whole(vocabulary, folder)


def _check_layout(vocabulary: Vocabulary, folder: Path) -> None:
    for number, token in enumerate(SPECIAL_TOKENS):
        if (found := vocabulary.ids[token]) != number:
            raise UserError(
                f"{folder}: {token} has the id {found}; RoBERTa's layout, on which masking and"
                f" positions rest, gives {', '.join(SPECIAL_TOKENS)} the ids 0 to"
                f" {len(SPECIAL_TOKENS) - 1}"
            )


def _whole(vocabulary: Vocabulary, path: Path) -> Vocabulary:
    """Raises UserError if tokens that only a merge can make are made by none: then the merges are
    cut off."""
    made = {
        *byte_symbols(),
        *(left + right for left, right in vocabulary.merges),
        *(token.content for token in vocabulary.named),
    }
    if lost := [
        token
        for token in vocabulary.ids
        if token not in made and could_be_learned(token, vocabulary.pattern)
    ]:
        raise UserError(
            f"{path}: {len(lost):,} tokens of the vocabulary are made by no merge, such as"
            f" {lost[0]!r}: the {len(vocabulary.merges):,} merges are cut off, or belong to another"
            " vocabulary"
        )

    return vocabulary


def read_fairseq(encoder: Path, merges: Path, dictionary: Path) -> Vocabulary:
    """RoBERTa's vocabulary from GPT-2's `encoder.json` and `vocab.bpe` and fairseq's `dict.txt`.

    fairseq gives `<s> <pad> </s> <unk>` the ids 0 to 3, the lines of the dictionary (GPT-2's ids,
    by frequency) those that follow, and adds `<mask>` at the end (fairseq/data/dictionary.py;
    fairseq/tasks/masked_lm.py). Raises UserError if the files do not belong together."""
    by_number = read_json(encoder)
    if not isinstance(by_number, dict) or not all(
        isinstance(number, int) for number in by_number.values()
    ):
        raise UserError(
            f"{encoder}: expected GPT-2's encoder.json, an object of tokens and their ids"
        )

    tokens = {str(number): token for token, number in by_number.items()}
    ids = {token: number for number, token in enumerate(SPECIAL_TOKENS)}

    for line, name in enumerate(_names(dictionary), start=1):
        token = name if name.startswith(FILLER) else tokens.get(name)
        if token is None:
            raise UserError(
                f"{dictionary}: line {line}: {name!r} is neither an id of {encoder} nor a {FILLER}"
            )
        if token in ids:
            raise UserError(f"{dictionary}: line {line}: {name!r} ({token}) stands there twice")

        ids[token] = len(ids)

    ids[MASK_TOKEN] = len(ids)
    pairs = read_merges(merges, by_number)
    needed = [*byte_symbols(), *(left + right for left, right in pairs)]
    if missing := [token for token in needed if token not in ids]:
        raise UserError(
            f"{dictionary}: {len(missing):,} tokens of {merges} have no line there, such as"
            f" {missing[0]!r} (GPT-2's id {by_number.get(missing[0])}): fairseq would read them as"
            " <unk>, and their text would be lost"
        )

    return Vocabulary(ids, pairs)


def _names(dictionary: Path) -> Iterator[str]:
    for number, line in enumerate(read_text(dictionary).split("\n"), start=1):
        if not line:
            continue
        name, _, count = line.rpartition(" ")
        if not (name and count.isdigit()):
            raise UserError(
                f"{dictionary}: line {number}: expected an id and its count, found {line[:60]!r}"
            )
        yield name
