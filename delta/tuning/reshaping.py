"""Carry what was learnt from one model with a delta to another one of other methods or sizes."""

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import RobertaPreTrainedModel

from robustly.delta.attachment import stored, trained


def carry(old: RobertaPreTrainedModel, new: RobertaPreTrainedModel) -> None:
    """Give what the new model stores the values that it has in the old one. Where it is larger,
    what is added stays as it starts."""
    of_old = {_plain(name): tensor for name, tensor in stored(old).items()}
    with torch.no_grad():
        for name, tensor in stored(new).items():
            if (known := of_old.get(_plain(name))) is not None:
                _corner(tensor, known).copy_(known)


def carry_moments(
    old: RobertaPreTrainedModel, before: Optimizer, new: RobertaPreTrainedModel, after: Optimizer
) -> None:
    """Give the optimizer of the new model Adam's moments of the old one's; those of what is added
    are 0."""
    of_old = {_plain(name): parameter for name, parameter in trained(old).items()}
    for name, parameter in trained(new).items():
        if (known := of_old.get(_plain(name))) is None:
            continue
        for key, value in before.state[known].items():
            moment = value.clone()
            if key != "step":
                moment = torch.zeros_like(parameter)
                _corner(moment, value).copy_(value)

            after.state[parameter][key] = moment


def _plain(name: str) -> str:
    """A parameter's name without the wrappers that low-rank methods put around a map."""
    return name.replace("base_layer.", "")


def _corner(tensor: Tensor, known: Tensor) -> Tensor:
    return tensor[tuple(slice(size) for size in known.shape)]
