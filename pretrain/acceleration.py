"""How the encoder is run, as `run` says: by which attention, with which activations kept, compiled or not.

All of it changes the result by rounding only.
"""

import os
import shutil
import warnings
from importlib.util import find_spec

import torch

from pretrain.config import Run
from pretrain.objective import MaskedLanguageModel
from robustly import UserError

FLASH_MODULES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""What the packages are imported as. transformers would fetch a missing one from the Hub."""


def accelerate(objective: MaskedLanguageModel, run: Run, device: torch.device) -> None:
    """Have the encoder run as `run` says, in place. Raises UserError if this machine or model cannot."""
    if run.attention in FLASH_MODULES:
        _check_flash(objective, run, device)
    objective.model.set_attn_implementation(run.attention)
    if run.activation_checkpointing:
        objective.model.config.use_cache = False  # an encoder has none; transformers would warn
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the name that all of transformers 5 knows
            # torch restores the state of its random numbers, so that dropout is drawn again alike
            objective.model.gradient_checkpointing_enable({"use_reentrant": False})
    if run.compile:
        _check_compiler()
        objective.model.roberta.compile()


def _check_flash(objective: MaskedLanguageModel, run: Run, device: torch.device) -> None:
    name, module = run.attention, FLASH_MODULES[run.attention]
    if device.type != "cuda":
        raise UserError(f"run.attention = {name} needs a GPU, found {device.type}; expected sdpa or eager here")
    if run.precision == "fp32":
        raise UserError(f"run.attention = {name} cannot compute in fp32; expected run.precision = bf16")
    if name == "flash_attention_3" and objective.model.config.attention_probs_dropout_prob:
        raise UserError(
            f"run.attention = {name} has no dropout, found model.attention_dropout > 0; "
            "expected run.attention = flash_attention_2 or sdpa"
        )
    if find_spec(module) is None:
        raise UserError(f"run.attention = {name} needs the Python module {module}, which is not installed here")


def _check_compiler() -> None:
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if not any(map(shutil.which, compilers)):
        raise UserError(f"run.compile needs a C++ compiler, found none of {', '.join(compilers)} on PATH; install one")
