"""Start from another model's weights (`model.init_from`): fit them to this model's vocabulary and
positions."""

import itertools
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import RobertaForMaskedLM

from robustly import UserError
from robustly.pretrain.config import ModelConfig
from robustly.pretrain.objective import share_bias
from robustly.pretrain.start.model_files import ModelFiles
from robustly.pretrain.start.open_model import (
    DIMENSIONS,
    ROBERTAS,
    check_tokens,
    first_names,
    open_model,
)
from robustly.pretrain.start.parameter_names import OUTPUT, OUTPUT_BIAS, POSITIONS, WORDS
from robustly.tokenizer.special_tokens import SPECIAL_TOKENS, byte_symbols
from robustly.tokenizer.vocabulary import Vocabulary

FIRST_POSITION = SPECIAL_TOKENS.index("<pad>") + 1

_SETTINGS = (
    ("hidden_act", "gelu"),
    ("position_embedding_type", "absolute"),
    ("pad_token_id", FIRST_POSITION - 1),
    ("is_decoder", False),
)
"""What else RoBERTa's arithmetic rests on."""


def start_from(
    model: RobertaForMaskedLM, files: ModelFiles, section: ModelConfig, vocabulary: Vocabulary
) -> str:
    """Put a checkpoint's weights into a new model, fitted to its vocabulary and positions; returns
    a sentence that says how.

    Raises UserError if the checkpoint cannot be read, or does not fit: every mismatch is named.
    """
    source = open_roberta(files, section)
    positions = source.config.max_position_embeddings
    check_dimensions(files, source, section, ["positions"] if positions < section.positions else [])
    theirs = files.vocabulary()
    check_tokens(files.title, source, len(theirs.ids), theirs.ids["<pad>"])

    pieces = pieces_of(vocabulary, theirs)
    weights = dict(source.named_parameters())
    matrices = weights.keys() & {WORDS, OUTPUT}  # the second where it is not the first
    fitted = {
        **weights,
        **{name: mean_rows(weights[name], pieces) for name in matrices},
        OUTPUT_BIAS: mean_rows(weights[OUTPUT_BIAS][:, None], pieces)[:, 0],
        POSITIONS: longer(weights[POSITIONS], section.positions),
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(fitted[name])

    made = len(pieces) - len(vocabulary.ids.keys() & theirs.ids.keys())
    return (
        f"starting from {files.folder}: {len(pieces) - made:,} tokens as they are there, {made:,}"
        f" made from their pieces; positions {positions:,} there, {section.positions:,} here"
    )


def open_roberta(files: ModelFiles, section: ModelConfig) -> RobertaForMaskedLM:
    """The model in some files, which must be RoBERTa's own: nothing more, and with its activation
    and positions. `section` says how many heads it has where the files do not.

    Raises UserError if it is another one."""
    model, _, unknown = open_model(files, ROBERTAS, heads=section.heads)
    if unknown:
        raise UserError(
            f"{files.title}: {len(unknown)} unknown tensors ({first_names(unknown)}). Expected"
            " RoBERTa with its head for masked language modeling alone"
        )

    share_bias(model)
    for name, expected in _SETTINGS:
        if (found := getattr(model.config, name, expected)) != expected:
            raise UserError(
                f"{files.settings}: {name} = {found!r}; expected RoBERTa's, {expected!r}"
            )

    return model


def check_dimensions(
    files: ModelFiles, model: RobertaForMaskedLM, section: ModelConfig, free: Collection[str]
) -> None:
    """Raises UserError that names every dimension, but the `free` ones, that the config's model has
    otherwise."""
    faults = [
        f"  model.{key}: {there} there, {here} in the config"
        for key, name in DIMENSIONS.items()
        if key not in free
        and (there := getattr(model.config, name)) != (here := getattr(section, key))
    ]
    if faults:
        title = f"{files.title}: not the config's model; set these keys to what is there"
        raise UserError("\n".join([title, *faults]))


def pieces_of(vocabulary: Vocabulary, source: Vocabulary) -> list[list[int]]:
    """For each id of `vocabulary`, the ids of `source` that stand for its token: itself, or the
    pieces it is cut into.

    Tokens are the same if they are written the same. Since every byte is a token, every token has
    pieces."""
    order = {pair: number for number, pair in enumerate(source.merges)}
    symbols = byte_symbols()
    special = {*vocabulary.special}
    pieces = []
    for token in sorted(vocabulary.ids, key=vocabulary.ids.__getitem__):
        if token in source.ids:
            pieces.append([source.ids[token]])
            continue

        text = "".join(symbols[byte] for byte in token.encode()) if token in special else token
        pieces.append([source.ids[piece] for piece in _merged(list(text), order)])

    return pieces


def _merged(pieces: list[str], order: Mapping[tuple[str, str], int]) -> list[str]:
    """The pieces after all merges, each time of the pair that comes first in `order`."""
    while len(pieces) > 1:
        pairs = list(itertools.pairwise(pieces))
        number, at = min((order.get(pair, len(order)), place) for place, pair in enumerate(pairs))
        if number == len(order):
            break
        pieces[at : at + 2] = ["".join(pairs[at])]

    return pieces


def mean_rows(table: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """(N, H): of `table` (V, H), the mean of the rows of each of the N pieces; a single row as it
    is, to the bit."""
    flat = torch.tensor([number for numbers in pieces for number in numbers])
    sizes = torch.tensor([len(numbers) for numbers in pieces])
    return functional.embedding_bag(flat, table, sizes.cumsum(0) - sizes, mode="mean")


def longer(table: Tensor, rows: int) -> Tensor:
    """A table of positions with more rows, (rows, H): the learned ones again and again, as in
    Longformer (Beltagy et al. 2020, section 5). Those before the first position, which no token
    has, stay as they are."""
    learned = table.shape[0] - FIRST_POSITION
    again = FIRST_POSITION + torch.arange(rows - FIRST_POSITION) % learned
    return torch.cat([table[:FIRST_POSITION], table[again]])
