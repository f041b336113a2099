"""The two baselines: nothing but the head, and every parameter."""

from transformers import RobertaPreTrainedModel

from robustly.delta.specs import Full, Head


def head(model: RobertaPreTrainedModel, spec: Head) -> None:
    """Nothing to add: heads are trained beside every method."""


def full(model: RobertaPreTrainedModel, spec: Full) -> None:
    model.requires_grad_(True)
