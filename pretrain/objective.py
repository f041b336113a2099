"""The model and its loss: masked language modeling, and next-sentence prediction beside it for the
paper's ablation."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import RobertaConfig, RobertaForMaskedLM

from robustly.pretrain.config import ModelConfig
from robustly.pretrain.cross_entropy import (
    Compiled,
    Guesses,
    Scores,
    filled,
    guesses,
    summed_cross_entropy,
)
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.micro_batch import Row
from robustly.pretrain.score_chunks import ELEMENTS, rows_of_chunks
from robustly.pretrain.unpadded import encode_row


def roberta_config(model: ModelConfig, special: SpecialTokens) -> RobertaConfig:
    """transformers' configuration of the model, with every number stated: some of its defaults are
    not RoBERTa's."""
    return RobertaConfig(
        vocab_size=special.size,
        hidden_size=model.hidden,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        intermediate_size=model.feed_forward,
        max_position_embeddings=model.positions,
        type_vocab_size=model.token_types,
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=model.attention_dropout,
        layer_norm_eps=model.layer_norm_eps,
        initializer_range=model.init_std,
        hidden_act="gelu",
        bos_token_id=special.bos,
        pad_token_id=special.pad,
        eos_token_id=special.eos,
        tie_word_embeddings=model.tied_head,
    )


def new_model(config: RobertaConfig, seed: int) -> RobertaForMaskedLM:
    """A model with fresh weights: N(0, init_std) for matrices and embeddings, biases 0, padding
    rows 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RobertaForMaskedLM(config)

    share_bias(model)
    return model


def share_bias(model: RobertaForMaskedLM) -> None:
    """Make the two names of the head's bias one parameter. transformers computes with the output
    layer's, and does so itself only where the matrix is tied."""
    model.lm_head.bias = model.lm_head.decoder.bias


NEXT_SENTENCE = "next_sentence."
"""What the names of a next-sentence head's parameters begin with, in checkpoints."""


class NextSentenceHead(nn.Module):
    """Whether a block's second segment follows its first, from the hidden state of <s>: BERT's
    pooler and a linear layer (Devlin et al. 2019, section 3.1)."""

    def __init__(self, config: RobertaConfig, seed: int):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, 2)
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.dense, self.output):
            nn.init.normal_(layer.weight, std=config.initializer_range, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, first: Tensor) -> Tensor:
        """(N, 2) scores of "does not follow" and "follows", fp32; `first`: (N, H), the encoder's
        hidden state of each <s>."""
        return self.output(torch.tanh(self.dense(first))).float()


class Evaluation(NamedTuple):
    """How well M masked tokens in N blocks are guessed."""

    tokens: Guesses
    """Of the masked tokens."""
    follows: Tensor | None
    """(N, 2) scores, fp32; None without a next-sentence head."""


class LossTerm(NamedTuple):
    """One of the sums that a forward pass gives. The loss of an update is the weighted sum of the
    terms' means."""

    name: str
    """As `reporting.UpdateResult` has it."""
    over: Literal["masked_tokens", "pairs", "tokens"]
    """What the mean is over: all of these in the global batch, on all ranks."""
    weight: float = 1.0


def weighted(sums: Sequence[float], terms: Sequence[LossTerm], divisors: Sequence[float]) -> float:
    """The loss, or the part of it that sums of the terms make up. `divisors`: what the terms' means
    are over."""
    parts = zip(sums, terms, divisors, strict=True)
    return sum(total * term.weight / divisor for total, term, divisor in parts)


class MaskedLanguageModel(nn.Module):
    """Encoder, then head and cross-entropy on the masked positions only; a next-sentence head, if
    there is one, on <s>.

    Shapes: N blocks of L positions, hidden size H, M masked tokens."""

    def __init__(self, model: RobertaForMaskedLM, next_sentence: NextSentenceHead | None = None):
        super().__init__()
        self.model = model
        self.next_sentence = next_sentence
        self.chunk = ELEMENTS
        """Scores of the vocabulary that are computed at a time: the engine sets it by the device's
        memory."""
        self.compiled: Compiled | None = None
        """The losses of a chunk of scores, where head and losses are compiled."""
        self.usual: tuple[int, float] | None = None
        """Positions of a micro-batch, and which share of them are targets: the chunks are sized by
        these where head and losses are compiled."""
        self.entries = model.lm_head.decoder.out_features
        """Of the vocabulary; `pad_vocabulary` adds rows to the tables, not entries."""

    def loss_terms(self) -> list[LossTerm]:
        """What `forward` gives, in its order."""
        pairs = [] if self.next_sentence is None else [LossTerm("pair_loss_sum", "pairs")]
        return [LossTerm("loss_sum", "masked_tokens"), *pairs]

    def forward(
        self,
        inputs: Tensor,
        attention: Tensor | Row | None,
        positions: Tensor,
        labels: Tensor,
        follows: Tensor | None = None,
        tokens: int | None = None,
    ) -> Tensor:
        """Sums of the cross-entropy in nats, fp32: over M masked tokens, and over the blocks of two
        segments; (1,), or (2,) with a next-sentence head.

        The arguments are a `MicroBatch`'s. M may be 0: the sum is then 0, and so is every
        gradient."""
        hidden = self.encode(inputs, attention)  # (N, L, H)
        scores = self.scores(hidden, positions, self.rows)
        sums = [summed_cross_entropy(scores, labels.long(), self.rows, self.compiled)]
        if self.next_sentence is not None:
            assert follows is not None
            scores = self.next_sentence(first_of_blocks(hidden, attention))
            right = follows.long()
            sums.append(functional.cross_entropy(scores, right, ignore_index=-1, reduction="sum"))

        return torch.stack(sums)

    def evaluate(
        self, inputs: Tensor, attention: Tensor | Row | None, positions: Tensor, labels: Tensor
    ) -> Evaluation:
        """How well the masked tokens are guessed, and the scores of the next sentences."""
        hidden = self.encode(inputs, attention)
        follows = None
        if self.next_sentence is not None:
            follows = self.next_sentence(first_of_blocks(hidden, attention))

        chosen = hidden.flatten(0, 1)[positions]  # (M, H)

        def computed(some: slice) -> Tensor:
            # by the head itself, for which ZeRO 3 fetches the matrix
            scores: Tensor = self.model.lm_head(chosen[some])
            return scores[:, : self.entries].float()

        return Evaluation(guesses(computed, labels.long(), self._most_rows), follows)

    @property
    def rows(self) -> int:
        """Of a chunk of scores."""
        if self.usual is None:
            return self._most_rows
        return rows_of_chunks(self._most_rows, *self.usual)

    @property
    def _most_rows(self) -> int:
        return max(1, self.chunk // self.entries)

    def scores(self, hidden: Tensor, positions: Tensor, rows: int | None = None) -> Scores:
        """What the vocabulary's scores at `positions`, (M,), of the hidden states, (N, L, H), are
        computed from: transformers' RobertaLMHead up to its output matrix, and that. `rows`: of a
        chunk; needed where the head is compiled."""
        decoder = self.model.lm_head.decoder
        chosen = hidden.flatten(0, 1)[positions]
        if self.compiled is None:
            states = self.transform(chosen)
        else:
            assert rows
            chunks = max(1, math.ceil(len(chosen) / rows))
            parts = filled(chosen, chunks * rows).split(rows)
            states = torch.cat([self.transform(part) for part in parts])[: len(chosen)]

        return Scores(states, decoder.weight, decoder.bias, self.entries)

    def transform(self, chosen: Tensor) -> Tensor:
        """What the output matrix is given for hidden states, both (m, H)."""
        head = self.model.lm_head
        found: Tensor = head.layer_norm(functional.gelu(head.dense(chosen)))
        return found

    def compile_head(self, usual: tuple[int, float] | None = None) -> None:
        """Compile what the head and the losses do between matrix products: for chunks of one number
        of rows, so that each is one graph, however many tokens are masked."""
        self.usual = usual
        self.compiled = Compiled.once()
        self.transform = torch.compile(self.transform, dynamic=False)  # type: ignore[method-assign]

    def pad_vocabulary(self, multiple: int) -> None:
        """Round the rows of the vocabulary's tables up to a multiple, for matrix products on tensor
        cores. The rows that are added are 0 and stay so: no input has their ids, and they get no
        probability (`Scores.entries`)."""
        extra = -self.entries % multiple
        decoder = self.model.lm_head.decoder
        embeddings = self.model.roberta.embeddings.word_embeddings
        # tied, two of these are one
        for table in {embeddings.weight, decoder.weight, decoder.bias}:
            sides = (0, 0) * (table.ndim - 1)
            table.data = functional.pad(table.data, (*sides, 0, extra))

    def encode(self, inputs: Tensor, attention: Tensor | Row | None) -> Tensor:
        """The last hidden states, (N, L, H), or (1, T, H) of a row."""
        roberta = self.model.roberta
        if isinstance(attention, Row):
            return encode_row(roberta, inputs, attention)

        name = roberta.config._attn_implementation
        if attention is not None and name in ("sdpa", "eager"):
            attention = attention_mask(attention, name, self.model.dtype)

        found: Tensor = roberta(inputs, attention_mask=attention).last_hidden_state
        return found


def attention_mask(attention: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """The mask of padded blocks, (N, 1, 1, L), for transformers' attention of this name: for sdpa
    where there are tokens, for eager what is added to the scores.

    transformers would make one of (N, 1, L, L), and first wait for the GPU to learn whether all of
    `attention`, (N, L), is 1."""
    tokens = attention.bool()[:, None, None, :]
    if name == "sdpa":
        return tokens
    return torch.zeros_like(tokens, dtype=dtype).masked_fill(~tokens, torch.finfo(dtype).min)


def first_of_blocks(hidden: Tensor, attention: Tensor | Row | None) -> Tensor:
    """The hidden state of each block's <s>, (N, H); `hidden`: (N, L, H), or (1, T, H) of a row,
    where N is E - 1, and those that are no blocks have any state."""
    if isinstance(attention, Row):
        return hidden[0, attention.ends[:-1].clamp(max=hidden.shape[1] - 1)]
    return hidden[:, 0]
