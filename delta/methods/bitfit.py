"""BitFit: all biases of the encoder, those of all LayerNorms too (Ben Zaken et al. 2021)."""

from typing import TYPE_CHECKING, Literal

from robustly.delta.methods.method import Method

if TYPE_CHECKING:
    from transformers import RobertaConfig, RobertaPreTrainedModel


class BitFit(Method):
    """All biases of the encoder (Ben Zaken et al. 2021)."""

    name: Literal["bitfit"]

    def attach(self, model: "RobertaPreTrainedModel") -> None:
        for name, parameter in model.named_parameters():
            of_encoder = name.startswith(("roberta.embeddings.", "roberta.encoder."))
            if of_encoder and name.endswith(".bias"):
                parameter.requires_grad_(True)

    def parameter_count(self, config: "RobertaConfig") -> int:
        h = config.hidden_size
        of_layer = 3 * h + h + 2 * h + config.intermediate_size + h  # queries to the last map
        return config.num_hidden_layers * of_layer + h
