"""BitFit: all biases of the encoder, those of all LayerNorms too (Ben Zaken et al. 2021)."""

from typing import TYPE_CHECKING, ClassVar, Literal

from robustly.delta.methods.method import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BitFit(Method):
    """All biases of the encoder (Ben Zaken et al. 2021)."""

    name: Literal["bitfit"]

    by_row: ClassVar[bool] = True

    def attach(self, model: "PreTrainedModel") -> None:
        for name, parameter in model.base_model.named_parameters():
            if name.startswith(("embeddings.", "encoder.")) and name.endswith(".bias"):
                parameter.requires_grad_(True)
