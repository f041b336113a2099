"""Set the encoder up for speed and memory, as the config's `run` section says: attention kernel,
activation checkpointing, compilation. All of it changes the result by rounding only."""

import os
import shutil
import warnings
from importlib.util import find_spec

import torch

from robustly import UserError
from robustly.pretrain.config import RunConfig
from robustly.pretrain.objective import MaskedLanguageModel
from robustly.pretrain.unpadded import VARLEN

FLASH_MODULES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""The modules that must be there: transformers would fetch a missing one from the Hub."""

WITHOUT_DROPOUT = ("flash_attention_3", VARLEN)


def set_up_model(objective: MaskedLanguageModel, run: RunConfig, device: torch.device) -> None:
    """Set the objective's encoder up, in place. Raises UserError if this machine or model cannot
    run so."""
    if run.attention in WITHOUT_DROPOUT and objective.model.config.attention_probs_dropout_prob:
        raise UserError(
            f"run.attention = {run.attention} has no dropout, found model.attention_dropout > 0; "
            "expected run.attention = sdpa or flash_attention_2"
        )

    if run.attention in FLASH_MODULES:
        _check_flash(run, device)

    if run.attention == VARLEN:
        _check_varlen(objective, run, device)

    objective.model.set_attn_implementation(run.attention)
    objective.unpadded = run.attention == VARLEN
    if run.activation_checkpointing:
        objective.model.config.use_cache = False  # an encoder has none; transformers would warn
        with warnings.catch_warnings():
            # older releases of transformers 5 know no other name
            warnings.simplefilter("ignore", FutureWarning)
            # torch restores the state of its random numbers, so that dropout is drawn again alike
            objective.model.gradient_checkpointing_enable({"use_reentrant": False})

    if run.compile:
        _check_compiler()
        objective.model.roberta.compile()


def _check_flash(run: RunConfig, device: torch.device) -> None:
    name, module = run.attention, FLASH_MODULES[run.attention]
    if device.type != "cuda":
        raise UserError(
            f"run.attention = {name} needs a GPU, found {device.type}; expected sdpa or eager here"
        )
    if run.precision == "fp32":
        raise UserError(
            f"run.attention = {name} cannot compute in fp32; expected run.precision = bf16"
        )
    if find_spec(module) is None:
        raise UserError(
            f"run.attention = {name} needs the Python module {module}, which is not installed here"
        )


def _check_varlen(objective: MaskedLanguageModel, run: RunConfig, device: torch.device) -> None:
    """Raises UserError unless torch's `varlen_attn` has a kernel for this model and device."""
    if device.type == "cpu":
        if run.compile:
            raise UserError(
                f"run.compile with run.attention = {VARLEN} needs a GPU: on CPU torch would compile"
                " for the lengths of every micro-batch; expected run.compile = false or"
                " run.attention = sdpa here"
            )

        return

    if run.precision == "fp32":
        raise UserError(
            f"run.attention = {VARLEN} cannot compute in fp32 on a GPU; expected run.precision ="
            " bf16"
        )
    if (found := torch.cuda.get_device_capability(device)) < (8, 0):
        raise UserError(
            f"run.attention = {VARLEN} needs a GPU of compute capability 8.0 (Ampere) or later,"
            f" found {found[0]}.{found[1]}; expected run.attention = sdpa here"
        )

    config = objective.model.config
    if (size := config.hidden_size // config.num_attention_heads) % 8 or size > 256:
        raise UserError(
            f"run.attention = {VARLEN} needs heads of a multiple of 8 and at most 256 numbers,"
            f" found {size} (model.hidden / model.heads); expected run.attention = sdpa"
        )


def _check_compiler() -> None:
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if not any(map(shutil.which, compilers)):
        raise UserError(
            f"run.compile needs a C++ compiler, found none of {', '.join(compilers)} on PATH;"
            " install one"
        )
