"""Knowledge distillation: a small model, the student, learns from a trained one, the teacher (Sanh
et al. 2019, DistilBERT).

The student has the teacher's width and vocabulary and fewer layers. It starts from the teacher's
embeddings, head and some of its layers. It learns the masked tokens, the probabilities that the
teacher gives to every token, and the teacher's hidden states."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import RobertaForMaskedLM

from robustly import UserError
from robustly.pretrain.config import DistillationConfig, ModelConfig
from robustly.pretrain.cross_entropy import summed_cross_entropy, summed_divergence
from robustly.pretrain.micro_batch import Row
from robustly.pretrain.objective import LossTerm, MaskedLanguageModel
from robustly.pretrain.start.init_from import check_dimensions, keep_rows, open_roberta
from robustly.pretrain.start.model_files import ModelFiles
from robustly.pretrain.start.open_model import check_tokens
from robustly.tokenizer.tokenizer import Tokenizer


def layers_to_start_from(student: int, teacher: int) -> list[int]:
    """Which of the teacher's layers, counted from 0, the student's start from unless the config
    says: evenly spaced, from the first on.

    Every second one (0, 2, 4, ...) for a student of half as many, as in the paper's section 3. (The
    authors' script for DistilRoBERTa has 0, 2, 4, 7, 9 and 11 of 12.)
    """
    assert 0 < student <= teacher
    return [place * teacher // student for place in range(student)]


def open_teacher(
    files: ModelFiles,
    student: ModelConfig,
    tokenizer: Tokenizer,
    chosen: Sequence[int] | None = None,
) -> RobertaForMaskedLM:
    """The teacher's model in fp32, without dropout, for evaluation only. `chosen`: the layers that
    the student is to start from.

    Raises UserError unless it has the student's dimensions but for the layers, as many of these or
    more, those that are chosen, and the tokenizer's vocabulary; all dimensions that differ are
    named."""
    teacher = open_roberta(files, student)
    try:
        theirs = files.vocabulary()
    except UserError as fault:
        raise UserError(
            f"{fault}. A teacher has the data's vocabulary: continue this one with a vocabulary of"
            " bytes (model.init_from), and let that run teach"
        ) from None

    check_tokens(files.title, teacher, len(theirs.ids), theirs.ids["<pad>"])
    if theirs.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{files.title}: {len(theirs.ids):,} tokens there, {tokenizer.vocab_size:,} in the"
            " data's vocabulary, and not the same; set tokenizer.import to the teacher's folder and"
            " prepare the data with it"
        )

    keep_rows(teacher, tokenizer.vocab_size)

    layers = teacher.config.num_hidden_layers
    if student.layers > layers:
        raise UserError(
            f"{files.title}: {layers} layers there; expected model.layers of as many at most, found"
            f" {student.layers}"
        )

    if beyond := [layer for layer in chosen or () if layer >= layers]:
        raise UserError(
            f"distillation.layers: {beyond[0]}: {files.title} has {layers}, from 0 to {layers - 1}"
        )

    check_dimensions(files, teacher, student, ["layers"])
    # it never trains; some kernels ask for the config's word on that
    teacher.config.hidden_dropout_prob = teacher.config.attention_probs_dropout_prob = 0.0
    return teacher


def start_from_teacher(
    student: RobertaForMaskedLM,
    teacher: RobertaForMaskedLM,
    chosen: Sequence[int] | None = None,
) -> list[int]:
    """Give a student its teacher's embeddings, head and some of its layers: those that are chosen,
    or `layers_to_start_from`; returns which."""
    ours, theirs = student.roberta.encoder.layer, teacher.roberta.encoder.layer
    layers = list(chosen or layers_to_start_from(len(ours), len(theirs)))
    student.roberta.embeddings.load_state_dict(teacher.roberta.embeddings.state_dict())
    student.lm_head.load_state_dict(teacher.lm_head.state_dict())
    for layer, number in zip(ours, layers, strict=True):
        layer.load_state_dict(theirs[number].state_dict())

    return layers


class Distillation(MaskedLanguageModel):
    """A student's objective: masked language modeling, and likeness to the teacher on the same
    inputs.

    Shapes: N blocks of L positions, hidden size H, M masked tokens."""

    def __init__(
        self, model: RobertaForMaskedLM, teacher: MaskedLanguageModel, settings: DistillationConfig
    ):
        """`teacher`: frozen, in evaluation mode, on the device, in the precision and with the
        attention of the run."""
        super().__init__(model)
        # in a tuple it is no submodule: neither trained nor saved, and always in evaluation mode
        self._teacher = (teacher,)
        self.settings = settings

    def pad_vocabulary(self, multiple: int) -> None:
        """The teacher's, too: their scores are compared."""
        super().pad_vocabulary(multiple)
        (teacher,) = self._teacher
        teacher.pad_vocabulary(multiple)

    def loss_terms(self) -> list[LossTerm]:
        settings = self.settings
        return [
            LossTerm("loss_sum", "masked_tokens", settings.mlm),
            LossTerm("soft_loss_sum", settings.soft_over, settings.soft),
            LossTerm("cosine_loss_sum", "tokens", settings.cosine),
        ]

    def forward(
        self,
        inputs: Tensor,
        attention: Tensor | Row | None,
        positions: Tensor,
        labels: Tensor,
        follows: Tensor | None = None,
        tokens: int | None = None,
    ) -> Tensor:
        """Sums, (3,) fp32: cross-entropy in nats over M masked tokens, divergence from the teacher
        over these or all tokens, as `soft_over` says, and `cosine_loss` over all tokens.

        The arguments are a `MicroBatch`'s."""
        assert follows is None
        rows = self.rows
        hidden = self.encode(inputs, attention)  # (N, L, H)
        (teacher,) = self._teacher
        with torch.no_grad():
            their_hidden = teacher.encode(inputs, attention)

        masked = self.scores(hidden, positions, rows)
        ours, places = masked, positions
        if self.settings.soft_over == "tokens":
            places = places_of_tokens(inputs, attention, tokens)
            ours = self.scores(hidden, places, rows)

        with torch.no_grad():
            theirs = teacher.scores(their_hidden, places, rows)

        temperature = self.settings.temperature

        return torch.stack(
            [
                summed_cross_entropy(masked, labels.long(), rows, self.compiled),
                summed_divergence(ours, theirs, temperature, rows, self.compiled),
                cosine_loss(hidden, their_hidden, where_tokens(inputs, attention)),
            ]
        )


def where_tokens(inputs: Tensor, attention: Tensor | Row | None) -> Tensor:
    """1 on the tokens of blocks, 0 on padding and on an <s> without a block: like `inputs`."""
    if isinstance(attention, Row):
        return (torch.arange(inputs.numel(), device=inputs.device) < attention.tokens).long()[None]
    return torch.ones_like(inputs) if attention is None else (attention == 1).long()


def places_of_tokens(
    inputs: Tensor, attention: Tensor | Row | None, tokens: int | None = None
) -> Tensor:
    """Where the tokens of blocks are in the flattened inputs, (tokens,). How many there are must be
    said where blocks are padded: a GPU would be waited for to learn it."""
    if isinstance(attention, Row):
        return torch.arange(attention.tokens, device=inputs.device)
    if attention is None:
        return torch.arange(inputs.numel(), device=inputs.device)

    assert tokens is not None
    so_far = (attention == 1).flatten().cumsum(0)
    return torch.searchsorted(so_far, torch.arange(1, tokens + 1, device=inputs.device))


def cosine_loss(student: Tensor, teacher: Tensor, counted: Tensor) -> Tensor:
    """The sum of 1 - cosine of two models' hidden states, (N, L, H), over the tokens where
    `counted`, (N, L), is 1."""
    likeness = functional.cosine_similarity(student.float(), teacher.float(), dim=-1)
    return ((1 - likeness) * counted).sum()
