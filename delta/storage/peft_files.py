"""Write a delta of one of peft's methods as peft does, so that peft alone can load it."""

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path

from peft import PeftConfig, TaskType
from safetensors.torch import save
from torch import Tensor
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    PreTrainedModel,
    RobertaModel,
)

from robustly.delta.attachment import finished, stored, trained
from robustly.files import write_atomic

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"

_TASKS = {
    TaskType.SEQ_CLS: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    TaskType.TOKEN_CLS: MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
}
_HEADS = ["classifier", "score"]
"""What peft adds for these tasks by itself: modules that are stored whole."""


def write(model: PreTrainedModel, folder: Path, base_name: str) -> list[Path]:
    """Write a delta for `peft.PeftModel.from_pretrained(model, folder)`, where peft can
    hold it: exactly one of lora, dora, ia3, adalora, prefix and p_tuning_v2 under a sequence or
    token classification head, or one of the first four under a language-modeling head. Returns the
    files; none where it cannot.

    `base_name`: what peft is to load under it. The model that it loads computes the same, but for
    prefixes, where peft also moves the text's positions on by the prefix's length: it computes the
    same if it is given `position_ids` that are that much smaller. (peft 0.21 loads a prefix, but
    cannot run it under transformers 5.24, which renamed the argument that it is passed in; under
    5.23 it runs.)"""
    if (config := _config(model)) is None:
        return []

    config.base_model_name_or_path = base_name
    config.inference_mode = True
    fields = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    write_atomic(folder / CONFIG, json.dumps(fields, indent=2, sort_keys=True) + "\n")
    tensors = {
        _name_in_peft(name, model.delta.methods[0].name, config): tensor.cpu().contiguous()
        for name, tensor in finished(model).items()
        if name not in model.delta.kept
    }
    write_atomic(folder / TENSORS, save(tensors, metadata={"format": "pt"}))
    return [folder / CONFIG, folder / TENSORS]


def runs_prefixes() -> bool:
    """Whether plain peft can run a prefix here."""
    return "past_key_values" in inspect.signature(RobertaModel.forward).parameters


def by_own_names(tensors: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """What peft's file of tensors holds of a finished model that `write` can write, by the names
    of the model's parameters; what is stored and not trained is as it is in the model: it is in
    peft's config."""
    config = _config(model)
    assert config
    names = {
        name: _name_in_peft(name, model.delta.methods[0].name, config) for name in trained(model)
    }
    kept = {name: tensor for name, tensor in stored(model).items() if name not in names}
    return kept | {name: tensors[in_peft] for name, in_peft in names.items() if in_peft in tensors}


def _config(model: PreTrainedModel) -> PeftConfig | None:
    """What peft loads the delta by; None where it cannot."""
    if len(model.delta.methods) > 1:
        return None

    config = model.delta.methods[0].peft_config(model.config)
    kind = type(model.config)
    task = next((task for task, heads in _TASKS.items() if type(model) is heads[kind]), None)
    masked_lm = type(model) is MODEL_FOR_MASKED_LM_MAPPING[kind]
    if config is None or (task is None and (not masked_lm or config.is_prompt_learning)):
        return None

    config.task_type = task
    if not config.is_prompt_learning:
        config.modules_to_save = list(_HEADS) if task else None
        if task is None:
            config.exclude_modules = r"lm_head\..*"  # ours are the encoder's alone

    return config


def _name_in_peft(name: str, adapter: str, config: PeftConfig) -> str:
    """What peft calls a parameter in its file, where the name of the adapter is left out."""
    if config.is_prompt_learning:
        return "prompt_embeddings" if name.startswith("roberta.prefix.") else f"base_model.{name}"
    bare = re.sub(rf"\.{adapter}(?=\.|$)", "", name)
    bare = re.sub(r"lora_magnitude_vector\.weight$", "lora_magnitude_vector", bare)
    return f"base_model.model.{bare}"
