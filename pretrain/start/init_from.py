"""Start from another model's weights (`model.init_from`): fit them to this model's vocabulary and
positions."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
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
from robustly.pretrain.start.source_tokens import SourceTokens
from robustly.tokenizer.special_tokens import SPECIAL_TOKENS
from robustly.tokenizer.vocabulary import Vocabulary

FIRST_POSITION = SPECIAL_TOKENS.index("<pad>") + 1

_SETTINGS = (
    ("hidden_act", "gelu"),
    ("position_embedding_type", "absolute"),
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
    theirs = SourceTokens.of(files)
    check_tokens(files.title, source, max(theirs.ids.values()) + 1, theirs.ids["<pad>"])
    first = theirs.ids["<pad>"] + 1
    positions = source.config.max_position_embeddings - first + FIRST_POSITION
    source.config.max_position_embeddings = positions  # in our layout
    check_dimensions(files, source, section, ["positions"] if positions < section.positions else [])

    words = theirs.words_of(vocabulary)
    pieces = [theirs.pieces_of(word) for word in words]
    weights = dict(source.named_parameters(remove_duplicate=False))
    matrices = [WORDS] if section.tied_head else [WORDS, OUTPUT]
    fitted = {
        **weights,
        **{name: mean_rows(weights[name], pieces) for name in matrices},
        OUTPUT_BIAS: mean_rows(weights[OUTPUT_BIAS][:, None], pieces)[:, 0],
        POSITIONS: longer(weights[POSITIONS], section.positions, first),
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(fitted[name])

    made = sum(word not in theirs.ids for word in words)
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


def keep_rows(model: RobertaForMaskedLM, tokens: int) -> None:
    """Take away the rows of a model that no token has: some tables are padded to a round size."""
    words, decoder = model.get_input_embeddings(), model.lm_head.decoder
    tied = decoder.weight is words.weight
    words.weight = nn.Parameter(words.weight[:tokens].clone(), requires_grad=False)
    words.num_embeddings = decoder.out_features = model.config.vocab_size = tokens
    decoder.weight = (
        words.weight if tied else nn.Parameter(decoder.weight[:tokens].clone(), requires_grad=False)
    )
    decoder.bias = nn.Parameter(decoder.bias[:tokens].clone(), requires_grad=False)
    share_bias(model)


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


def mean_rows(table: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """(N, H): of `table` (V, H), the mean of the rows of each of the N pieces; a single row as it
    is, to the bit."""
    flat = torch.tensor([number for numbers in pieces for number in numbers])
    sizes = torch.tensor([len(numbers) for numbers in pieces])
    return functional.embedding_bag(flat, table, sizes.cumsum(0) - sizes, mode="mean")


def longer(table: Tensor, rows: int, first: int = FIRST_POSITION) -> Tensor:
    """A table of positions with more rows, (rows, H): the learned ones, which begin at `first`,
    again and again, as in Longformer (Beltagy et al. 2020, section 5). Those before our first
    position, which no token has, are theirs before theirs, or 0."""
    learned = table[first:]
    before = table.new_zeros(FIRST_POSITION, table.shape[1])
    before[: min(first, FIRST_POSITION)] = table[: min(first, FIRST_POSITION)]
    return torch.cat([before, learned[torch.arange(rows - FIRST_POSITION) % len(learned)]])
