"""Set the encoder up for speed and memory, as the config's `run` section says: attention kernel,
activation checkpointing, compilation. All of it changes the result by rounding only."""

import os
import shutil
import warnings

import torch
from torch import nn
from transformers import RobertaModel

from robustly import UserError
from robustly.pretrain.attention import Attention
from robustly.pretrain.config import RunConfig
from robustly.pretrain.objective import MaskedLanguageModel


def set_up_model(
    objective: MaskedLanguageModel,
    run: RunConfig,
    attention: Attention,
    ranks: int = 1,
    usual: tuple[int, float] | None = None,
) -> None:
    """Set the objective's encoder up, in place. `ranks`: how many train together. `usual`: as the
    objective's. Raises UserError if this machine lacks what it takes."""
    objective.model.set_attn_implementation(attention.name)
    if run.activation_checkpointing:
        objective.model.config.use_cache = False  # an encoder has none; transformers would warn
        with warnings.catch_warnings():
            # older releases of transformers 5 know no other name
            warnings.simplefilter("ignore", FutureWarning)
            # torch restores the state of its random numbers, so that dropout is drawn again alike
            objective.model.gradient_checkpointing_enable({"use_reentrant": False})

    if run.compile:
        _check_compiler()
        # beyond the limit of graphs torch would go on uncompiled, with a warning alone
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        for part in _compiled_parts(objective.model.roberta, ranks):
            part.compile(dynamic=False)

        objective.compile_head(usual)


def _compiled_parts(roberta: RobertaModel, ranks: int) -> list[nn.Module]:
    """What is compiled for itself: the whole encoder on one rank alone; of several, each layer, all
    of them by one graph. A compiled part gives all its gradients at the end of its backward pass,
    and those of a layer are on their way to the other ranks while the pass goes on below it."""
    if ranks == 1:
        return [roberta]
    return [roberta.embeddings, *roberta.encoder.layer]


def _check_compiler() -> None:
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if not any(map(shutil.which, compilers)):
        raise UserError(
            f"run.compile needs a C++ compiler, found none of {', '.join(compilers)} on PATH;"
            " install one"
        )
