"""Baselines: training the head alone, and fine-tuning every parameter."""

from typing import TYPE_CHECKING, ClassVar, Literal

from robustly.delta.methods.method import Method

if TYPE_CHECKING:
    from transformers import RobertaConfig, RobertaPreTrainedModel


class HeadOnly(Method):
    """The head alone: a baseline."""

    name: Literal["head"]

    def attach(self, model: "RobertaPreTrainedModel") -> None:
        """Nothing to add: heads are trained beside every method."""

    def parameter_count(self, config: "RobertaConfig") -> int:
        return 0


class Full(Method):
    """Every parameter (fine-tuning): the other baseline."""

    name: Literal["full"]

    default_lr: ClassVar[float] = 3e-5

    def attach(self, model: "RobertaPreTrainedModel") -> None:
        model.requires_grad_(True)

    def parameter_count(self, config: "RobertaConfig") -> int:
        h, f = config.hidden_size, config.intermediate_size
        rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
        norm = 2 * h
        maps = 4 * (h * h + h) + (h * f + f) + (f * h + h)
        return rows * h + norm + config.num_hidden_layers * (maps + 2 * norm)
