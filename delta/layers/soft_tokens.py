"""Soft tokens: learned embeddings among those of the text, by ids beyond the vocabulary.

The word embedding answers to pseudo-ids, vocabulary size + i for token i of a prompt. An input that
holds some, as a cloze template does, is taken as it is. Into any other they are inserted after its
first token, and their positions are removed from what the encoder returns: `<s>` stays first and
each token keeps its place, so that every head reads, and every label means, what it does without a
prompt. (peft puts them before `<s>` and leaves them there.)

What makes the embeddings is a module of the method's: a table, a network, or a decoder of few
numbers."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from robustly import UserError

TABLE = "roberta.embeddings.word_embeddings.prompt.table"
"""Name of a prompt's parameter, tokens x hidden, where it is one."""

SHORTEST_TEXT = 3
"""Positions that are left to a text at least: <s>, a token, </s>."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
"""Arguments of RobertaModel, in its order."""


class PromptedEmbedding(nn.Embedding):
    """The base's word embedding, its parameter shared, that also knows the pseudo-ids of a
    prompt."""

    def __init__(self, words: nn.Embedding, prompt: nn.Module, tokens: int):
        """`prompt()` makes the embeddings, tokens x hidden."""
        super().__init__(
            words.num_embeddings, words.embedding_dim, words.padding_idx, _weight=words.weight
        )
        self.weight = words.weight  # the very parameter: a decoder that is tied to it stays tied
        self.prompt = prompt
        self.tokens = tokens
        self.inserted = False
        """Whether the encoder's present input got its pseudo-ids from us."""
        self.in_text = False
        """Whether the inputs of an exported program hold pseudo-ids, at which it cannot look."""

    @property
    def pseudo_ids(self) -> range:
        return range(self.num_embeddings, self.num_embeddings + self.tokens)

    def rows(self) -> Tensor:
        """The prompt's embeddings, tokens x hidden, or inputs x tokens x hidden where each has its
        own. The same to the bit with and without gradients,
        for which libraries have kernels of their own, and under autocast: scores during training
        are those of what is stored."""
        if torch.compiler.is_exporting():  # a program has neither
            return self.prompt()
        with torch.enable_grad(), torch.autocast(self.weight.device.type, enabled=False):
            rows: Tensor = self.prompt()
        return rows if torch.is_grad_enabled() else rows.detach()

    def forward(self, input: Tensor) -> Tensor:
        """`input`: ids and pseudo-ids of any shape. Returns their embeddings, ... x hidden."""
        ours = input >= self.num_embeddings
        words = super().forward(input.masked_fill(ours, 0))
        places = (input - self.num_embeddings).clamp(min=0)
        rows = self.rows().to(words.dtype)
        if rows.dim() == 2:
            prompt = nn.functional.embedding(places, rows)
        else:
            prompt = rows.gather(1, places[..., None].expand(-1, -1, rows.shape[2]))

        return torch.where(ours[..., None], prompt, words)

    def table(self) -> "PromptTable":
        """A table of what the prompt's network makes."""
        return PromptTable(self.rows().detach().clone())


def attach(model: PreTrainedModel, prompt: nn.Module, tokens: int) -> PromptedEmbedding:
    """Give the model a prompt of so many tokens, made by `prompt()` (tokens x hidden), in place;
    returns the word embedding that holds it.

    Raises UserError if the model has a prompt already, or too few positions for it.
    """
    encoder = model.base_model
    words = encoder.embeddings.word_embeddings
    if isinstance(words, PromptedEmbedding):
        names = ", ".join(method.name for method in model.delta.methods)
        raise UserError(
            f"methods: {names}: a model has one prompt: give one of prompt, p_tuning and"
            " intrinsic_prompt"
        )

    if tokens > (most := longest_input(encoder) - SHORTEST_TEXT):
        raise UserError(
            f"tokens = {tokens}: expected at most {most}, so that the model's positions leave some"
            " to texts"
        )

    prompted = PromptedEmbedding(words, prompt.to(words.weight.device), tokens)
    encoder.embeddings.word_embeddings = prompted
    encoder.register_forward_pre_hook(_insert, with_kwargs=True)
    encoder.register_forward_hook(_remove)
    model.delta.positions = tokens
    return prompted


def longest_input(encoder: PreTrainedModel) -> int:
    """Tokens of the longest input: positions are counted from the padding id + 1."""
    return encoder.config.max_position_embeddings - encoder.embeddings.padding_idx - 1


def _insert(
    encoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[()], dict[str, Any]]:
    """Inputs of the encoder, with the prompt after the first token unless they hold pseudo-ids.

    Attentions, where asked for, are those of the longer input. Raises UserError if the text is too
    long beside the prompt, or where it is unclear what is meant."""
    assert len(args) <= len(INPUTS)
    inputs = {**dict(zip(INPUTS, args, strict=False)), **kwargs}
    words: PromptedEmbedding = encoder.embeddings.word_embeddings
    ids = inputs.get("input_ids")
    words.inserted = ids is None or not _holds_prompt(ids, words)
    if not words.inserted:
        return (), inputs

    count = words.tokens
    if ids is not None:
        _check_length(ids, count, encoder)
        pseudo = torch.arange(words.pseudo_ids.start, words.pseudo_ids.stop, device=ids.device)
        inputs["input_ids"] = after_first(ids, pseudo.expand(ids.shape[0], -1))
    else:
        embedded = inputs["inputs_embeds"]
        inputs["inputs_embeds"] = after_first(
            embedded, words.rows().to(embedded.dtype).expand(embedded.shape[0], -1, -1)
        )

    if (mask := inputs.get("attention_mask")) is not None:
        if mask.dim() != 2:
            raise UserError(
                "attention_mask: expected (inputs, tokens) beside a prompt, found"
                f" {tuple(mask.shape)}"
            )

        inputs["attention_mask"] = after_first(mask, mask.new_ones(mask.shape[0], count))

    if (types := inputs.get("token_type_ids")) is not None:
        inputs["token_type_ids"] = after_first(types, types[:, :1].expand(-1, count))

    if (places := inputs.get("position_ids")) is not None:
        ours = places[:, :1] + torch.arange(count + 1, device=places.device)
        inputs["position_ids"] = torch.cat([ours, places[:, 1:] + count], dim=1)

    return (), inputs


def _remove(encoder: PreTrainedModel, args: tuple[Any, ...], output: Any) -> Any:
    """What the encoder returns, without the positions that were inserted."""
    words: PromptedEmbedding = encoder.embeddings.word_embeddings
    if not words.inserted:
        return output
    if isinstance(output, tuple):  # return_dict=False
        return _cut(output, words.tokens)
    for name, value in output.items():
        output[name] = _cut(value, words.tokens)

    return output


def _cut(value: Any, count: int) -> Any:
    """Hidden states, inputs x tokens x hidden, without those of the prompt; anything else as it
    is."""
    if isinstance(value, tuple):
        return tuple(_cut(each, count) for each in value)
    if isinstance(value, Tensor) and value.dim() == 3:
        return without(value, count)
    return value


def after_first(tensor: Tensor, inserted: Tensor) -> Tensor:
    """Inputs x tokens, with others inserted after the first token."""
    return torch.cat([tensor[:, :1], inserted, tensor[:, 1:]], dim=1)


def without(states: Tensor, count: int) -> Tensor:
    """Inputs x tokens x hidden, without so many tokens after the first."""
    return torch.cat([states[:, :1], states[:, 1 + count :]], dim=1)


def _holds_prompt(ids: Tensor, words: PromptedEmbedding) -> bool:
    if torch.compiler.is_exporting():
        return words.in_text

    inputs = int((ids >= words.num_embeddings).any(dim=1).sum())
    if inputs == 0:
        return False
    if inputs < len(ids):
        raise UserError(
            f"{inputs} of {len(ids)} inputs hold pseudo-ids of the prompt; expected them in all, or"
            " in none"
        )
    if (last := int(ids.max())) not in words.pseudo_ids:
        raise UserError(
            f"an input holds token {last - words.num_embeddings} of the prompt, which has"
            f" {words.tokens}, from 0: give it more `tokens`, or the template fewer"
        )

    return True


def _check_length(ids: Tensor, count: int, encoder: PreTrainedModel) -> None:
    """torch would name an index that is out of range. Padding has no position, so it may go
    beyond."""
    if torch.compiler.is_exporting():  # a program cannot look at its input
        return

    most = longest_input(encoder) - count
    if (
        ids.shape[1] > most
        and (found := int((ids != encoder.embeddings.padding_idx).sum(dim=1).max())) > most
    ):
        raise UserError(
            f"an input of {found} tokens: expected at most {most}, since the prompt takes {count}"
            f" of the model's {most + count} positions"
        )


# ------------------------------------------------------------------------------------------ prompts


class PromptTable(nn.Module):
    """A prompt that is learned directly. Parameters: tokens x hidden."""

    def __init__(self, rows: Tensor):
        super().__init__()
        self.table = nn.Parameter(rows)

    def forward(self) -> Tensor:
        return self.table


class PromptNetwork(nn.Module):
    """A BiLSTM over input embeddings of its own, and two linear maps with a ReLU between them
    (P-Tuning's section 3.2; sizes of the authors' code: two layers, hidden / 2 in each direction).
    Nothing is dropped out."""

    def __init__(self, tokens: int, hidden: int):
        super().__init__()
        self.inputs = nn.Parameter(torch.randn(tokens, hidden))
        self.lstm = nn.LSTM(hidden, hidden // 2, num_layers=2, bidirectional=True, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(2 * (hidden // 2), hidden), nn.ReLU(), nn.Linear(hidden, hidden)
        )

    def forward(self) -> Tensor:
        """Embeddings, tokens x hidden."""
        rows: Tensor = self.mlp(self.lstm(self.inputs[None])[0])[0]
        return rows

    def train(self, mode: bool = True) -> Self:
        """Always training: the mode would change the LSTM's kernel alone, and cuDNN's other one has
        no gradients."""
        return super().train(True)


def decode(decoder: Mapping[str, Tensor], code: Tensor) -> Tensor:
    """linear, tanh, linear. `code`: ... x dimension; returns ... x (tokens * hidden).

    `decoder`: `inner_weight` (width x dimension), `outer_weight` (tokens * hidden x width),
    `inner_bias`, `outer_bias`."""
    inner = torch.tanh(nn.functional.linear(code, decoder["inner_weight"], decoder["inner_bias"]))
    return nn.functional.linear(inner, decoder["outer_weight"], decoder["outer_bias"])


class PromptCode(nn.Module):
    """The numbers that are trained, and the frozen decoder, which is no parameter and not stored
    with them."""

    def __init__(self, decoder: Mapping[str, Tensor], dimension: int, tokens: int, hidden: int):
        super().__init__()
        self.code = nn.Parameter(torch.empty(dimension).normal_(std=0.02))  # as the authors' code
        self.shape = (tokens, hidden)
        for name, tensor in decoder.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self) -> Tensor:
        """Embeddings, tokens x hidden."""
        return decode(dict(self.named_buffers()), self.code).view(self.shape)
