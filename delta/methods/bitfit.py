"""BitFit: all biases of the encoder, those of all LayerNorms too (Ben Zaken et al. 2021)."""

from transformers import RobertaPreTrainedModel

from robustly.delta.specs import BitFit


def attach(model: RobertaPreTrainedModel, spec: BitFit) -> None:
    for name, parameter in model.named_parameters():
        if name.startswith(("roberta.embeddings.", "roberta.encoder.")) and name.endswith(".bias"):
            parameter.requires_grad_(True)
