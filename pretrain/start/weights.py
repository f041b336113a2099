"""The weights of `model.init_from`, fitted to the page's model: its vocabulary and its
positions."""

import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import RobertaConfig, RobertaForMaskedLM

from robustly import UserError, manifest
from robustly.pretrain.config import ModelConfig
from robustly.pretrain.objective import NEXT_SENTENCE
from robustly.pretrain.start import fairseq
from robustly.pretrain.start.checkpoint import Initial
from robustly.pretrain.start.parameter_names import OUTPUT, OUTPUT_BIAS, POSITIONS, WORDS
from robustly.pretrain.start.tensor_files import read_tensors
from robustly.tokenizer.special_tokens import SPECIAL_TOKENS, byte_symbols
from robustly.tokenizer.vocabulary import Vocabulary, read_json_object

FIRST_POSITION = SPECIAL_TOKENS.index("<pad>") + 1

# RobertaConfig's name of each of the page's dimensions
_DIMENSIONS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
}
_LIKE_ROBERTA = (
    "roberta",
    "xlm-roberta",
    "camembert",
)  # one layout of parameters; the tokenizer may differ
# the pooler and what only names the positions; what another bias is tied to
_NOT_TAKEN = (
    "roberta.pooler.",
    "roberta.embeddings.position_ids",
    "lm_head.decoder.bias",
    NEXT_SENTENCE,
)


@dataclass(frozen=True)
class Taken:
    """What a checkpoint holds: its weights by transformers' names, its dimensions by the page's
    keys."""

    weights: dict[str, Tensor]
    dimensions: dict[str, Any]
    vocabulary: Vocabulary


def start_from(
    model: RobertaForMaskedLM, initial: Initial, section: ModelConfig, vocabulary: Vocabulary
) -> str:
    """Put the checkpoint's weights into a new model, fitted to its vocabulary and positions; says
    how.

    Raises UserError if the checkpoint cannot be read, or does not fit: every mismatch is named.
    """
    taken = read(initial)
    title = f"{initial.key}: {initial.folder}"
    check_dimensions(taken, section, title)
    parameters = dict(model.named_parameters())
    check_names(taken.weights, parameters.keys(), title)
    pieces = pieces_of(vocabulary, taken.vocabulary)
    if (rows := taken.weights[WORDS].shape[0]) < len(taken.vocabulary.ids):
        raise UserError(
            f"{title}: {rows:,} rows for the {len(taken.vocabulary.ids):,} tokens of its vocabulary"
        )

    fitted = {
        **taken.weights,
        WORDS: mean_rows(taken.weights[WORDS], pieces),
        OUTPUT_BIAS: mean_rows(taken.weights[OUTPUT_BIAS][:, None], pieces)[:, 0],
        POSITIONS: longer(taken.weights[POSITIONS], section.positions),
    }
    faults = [
        f"  {name}: {list(fitted[name].shape)} there, {list(parameter.shape)} here"
        for name, parameter in parameters.items()
        if fitted[name].shape != parameter.shape
    ]
    if faults:
        raise UserError("\n".join([f"{title}: tensors of other shapes", *faults]))

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(fitted[name])

    made = len(pieces) - len(vocabulary.ids.keys() & taken.vocabulary.ids.keys())

    return (
        f"starting from {initial.folder}: {len(pieces) - made:,} tokens as they are there, {made:,}"
        f" made from their pieces; positions {taken.dimensions['positions']:,} there,"
        f" {section.positions:,} here"
    )


# ------------------------------------------------------------------------------------------ reading


def read(initial: Initial) -> Taken:
    """Read a checkpoint of any kind. Raises UserError if it is damaged, or not of a RoBERTa."""
    if initial.kind == "fairseq":
        weights, dimensions = fairseq.read_checkpoint(initial.folder)
        return Taken(_masked_lm(weights, initial), dimensions, initial.vocabulary())

    if finished := manifest.read(initial.folder):
        names = [path.relative_to(initial.folder).as_posix() for path in initial.weights]
        for name in manifest.unverified(
            initial.folder, finished, names
        ):  # since `Initial.digest` did
            manifest.verify(initial.folder, finished, name)

    assert initial.settings
    settings = read_json_object(initial.settings)
    dimensions = (
        settings["recipe"]["model"] if initial.kind == "run" else _dimensions(settings, initial)
    )
    vocabulary = initial.vocabulary()
    weights = {
        name: tensor for path in initial.weights for name, tensor in read_tensors(path).items()
    }
    return Taken(_masked_lm(weights, initial), dimensions, vocabulary)


def _dimensions(settings: dict[str, Any], initial: Initial) -> dict[str, Any]:
    """The dimensions in a config.json. Raises UserError if they are of another kind of model."""
    kind = settings.get("model_type")
    if kind not in _LIKE_ROBERTA:
        raise UserError(
            f"{initial.settings}: model_type = {kind!r}; expected {', '.join(_LIKE_ROBERTA)}"
        )

    config = RobertaConfig(
        **{name: settings[name] for name in _DIMENSIONS.values() if name in settings}
    )

    for name, expected in (
        ("hidden_act", "gelu"),
        ("position_embedding_type", "absolute"),
        ("pad_token_id", FIRST_POSITION - 1),
    ):
        if (found := settings.get(name, expected)) != expected:
            raise UserError(
                f"{initial.settings}: {name} = {found!r}; expected RoBERTa's, {expected!r}"
            )

    return {key: getattr(config, name) for key, name in _DIMENSIONS.items()}


def _masked_lm(weights: dict[str, Tensor], initial: Initial) -> dict[str, Tensor]:
    """The parameters of a masked language model alone, in fp32. Raises UserError if its output is
    not tied."""
    weights = {
        name: tensor.float() for name, tensor in weights.items() if not name.startswith(_NOT_TAKEN)
    }
    output = weights.pop(OUTPUT, None)
    if output is not None and WORDS in weights and not torch.equal(output, weights[WORDS]):
        raise UserError(
            f"{initial.key}: {initial.folder}: its output layer has weights of its own; expected"
            " those of the embeddings, as in RoBERTa (tie_word_embeddings)"
        )

    return weights


# ------------------------------------------------------------------------------------------ fitting


def check_dimensions(taken: Taken, section: ModelConfig, title: str) -> None:
    """Raises UserError that names every dimension in which the page's model differs; it may have
    more positions."""
    page = section.model_dump()
    faults = [
        f"  model.{key}: {there} there, {page[key]} on the page"
        for key in _DIMENSIONS
        if (there := taken.dimensions.get(key, page[key])) != page[key]
        and not (key == "positions" and there < page[key])
    ]
    if faults:
        raise UserError(
            "\n".join([f"{title}: not the page's model; set these keys to what is there", *faults])
        )


def check_names(there: Mapping[str, Tensor], expected: Set[str], title: str) -> None:
    """Raises UserError that names the tensors that are missing or that the model has no place
    for."""
    missing, unknown = sorted(expected - there.keys()), sorted(there.keys() - expected)
    parts = [
        f"{len(names)} {what} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        for what, names in (("tensors missing", missing), ("unknown", unknown))
        if names
    ]
    if parts:
        raise UserError(
            f"{title}: {'; '.join(parts)}. Expected RoBERTa with its head for masked language"
            " modeling, not an encoder alone, nor one that was fine-tuned for another task"
        )


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
