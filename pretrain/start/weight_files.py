"""Find the files of a Hugging Face folder's weights: whole, or in shards with an index or without.
Imports no torch."""

import re
from collections.abc import Collection
from pathlib import Path

from robustly import UserError
from robustly.tokenizer.reading import read_json_object

NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What transformers calls a file of weights, or the index of its shards; the first one counts, as
there."""
_SHARD = re.compile(r"((?:pytorch_)?model)-(\d{5})-of-(\d{5})\.(safetensors|bin)")

_MERGE_RANKS = (
    "shards of DeepSpeed's ranks; merge them: python -m deepspeed.utils.zero_to_fp32 {0} {0}"
)
_MERGE_FSDP = "shards of FSDP's ranks; merge them: accelerate merge-weights {0}/{1} {0}"
_CONVERT = "weights of {}; save them with transformers as model.safetensors"
_ELSEWHERE = (
    ("zero_to_fp32.py", _MERGE_RANKS),
    ("global_step*", _MERGE_RANKS),
    ("*_model_states.pt", _MERGE_RANKS),
    ("pytorch_model_fsdp_*", _MERGE_FSDP),
    ("*.distcp", "shards of FSDP's ranks; merge them: accelerate merge-weights {0} {0}"),
    ("pytorch_model_fsdp.bin", "whole weights of FSDP; rename it to pytorch_model.bin"),
    ("checkpoint-*", "a checkpoint of transformers' Trainer; give that folder"),
    ("snapshots", "a cache of the Hub; give a folder within it"),
    ("adapter_config.json", "an adapter of peft; merge it into its model and save that"),
    ("model.*.safetensors", "weights of one variant; rename it to model.safetensors"),
    ("pytorch_model.*.bin", "weights of one variant; rename it to pytorch_model.bin"),
    ("tf_model.h5", _CONVERT.format("TensorFlow")),
    ("flax_model.msgpack", _CONVERT.format("Flax")),
    ("*.safetensors", "if it holds the whole model, rename it to model.safetensors"),
    ("*.ckpt", "a checkpoint of Lightning; save its model's weights alone (save_pretrained)"),
    ("*.onnx", "a graph of ONNX, not to be trained; take the weights that it was made from"),
    ("*.gguf", "weights of llama.cpp; take those that they were made from"),
)
"""What other programs call theirs, and how it becomes one of ours; {0}: the folder, {1}: the
name."""


def weight_files(folder: Path, title: str) -> tuple[Path, ...]:
    """The file of weights in a folder, or its shards in order.

    Raises UserError that says what lies there instead if there are none, and which are missing if
    shards are."""
    if found := next((folder / name for name in NAMES if (folder / name).is_file()), None):
        return (found,) if found.suffix != ".json" else _indexed(found, title)

    if series := _series({path.name for path in folder.iterdir()}):
        return _all_there(folder, series, title)

    raise UserError(
        f"{title}: its weights are not there; looked for {', '.join(NAMES)}"
        + what_lies_there(folder)
    )


def what_lies_there(folder: Path) -> str:
    """What another program has left in a folder, and what to do with it; empty if nothing is
    known. To be put after a message."""
    for glob, advice in _ELSEWHERE:
        if found := max(folder.glob(glob), key=_by_number, default=None):
            return f". {found.name} is there: " + advice.format(folder, found.name)

    return ""


def _by_number(path: Path) -> tuple[int, str]:
    return len(path.name), path.name  # checkpoint-1000 after checkpoint-900


def _indexed(index: Path, title: str) -> tuple[Path, ...]:
    try:
        names = sorted({str(name) for name in read_json_object(index)["weight_map"].values()})
    except (KeyError, AttributeError):
        raise UserError(
            f"{title}: {index}: expected weight_map, an object of tensors and files"
        ) from None

    return _all_there(index.parent, names, title)


def _series(names: Collection[str]) -> list[str]:
    """All names of the shards of which some are there, safetensors first; empty if none is."""
    found = [shard for name in sorted(names, reverse=True) if (shard := _SHARD.fullmatch(name))]
    if not found:
        return []

    stem, _, count, kind = min(found, key=lambda shard: shard[4] == "bin").groups()
    return [f"{stem}-{number:05d}-of-{count}.{kind}" for number in range(1, int(count) + 1)]


def _all_there(folder: Path, names: list[str], title: str) -> tuple[Path, ...]:
    there = {path.name for path in folder.iterdir()}
    if missing := [name for name in names if name not in there]:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise UserError(f"{title}: its weights are not there; looked for {shown}")

    return tuple(folder / name for name in names)
