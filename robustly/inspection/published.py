"""Describe a published folder, any Hugging Face checkpoint, or a run's report."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired

import torch
import transformers
from pydantic import ConfigDict, with_config
from safetensors import SafetensorError, safe_open
from typing_extensions import TypedDict

from robustly import UserError
from robustly.description import Description, Listing
from robustly.evaluation.model import open_masked_lm
from robustly.inspection.folders import disk_bytes, provenance, typed
from robustly.log import quiet_transformers
from robustly.manifest import Manifest
from robustly.pretrain.start.open_model import first_line
from robustly.resources import check_memory
from robustly.strict_json import parse_json

BLANKS = (
    "The <mask> is on the table.",
    "She opened the <mask> and looked at him.",
    "They have <mask> here for years.",
)
_SETTINGS = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward",
    "max_position_embeddings": "positions",
    "vocab_size": "vocabulary",
}


def describe(folder: Path, finished: Manifest | None) -> Description:
    """Describe a published folder, or a checkpoint without a manifest; blanks are filled now.

    Raises UserError if config.json or the weights cannot be read."""
    counts = finished.counts if finished else {}
    settings = _read_settings(folder / "config.json")
    classes = settings.get("architectures") or [settings.get("model_type", "unknown")]
    what = f"{'A published' if finished else 'A Hugging Face checkpoint of a'} {', '.join(classes)}"
    parameters = counts.get("parameters") or _parameters(folder)
    blanks = [example["text"] for example in counts.get("examples", [])][:3] or BLANKS
    filled, notes = _fill(folder, blanks)
    if filled:
        notes.append(f"next: robustly evaluate {typed(folder)} --text FILES")

    listings = [Listing("blanks, filled now", filled)]
    if rows := counts.get("tokenizer", {}).get("rows"):
        listings.append(Listing("its tokenizer on held-out documents", rows))

    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    sizes = [{"file": path.name, "bytes": path.stat().st_size} for path in files]
    return Description(
        folder,
        "published" if finished else "checkpoint",
        f"{what} with {parameters:,} parameters." if parameters else f"{what}.",
        {
            "parameters": parameters,
            **{name: settings[key] for key, name in _SETTINGS.items() if key in settings},
            **{key: value for key, value in counts.items() if not isinstance(value, list | dict)},
            "bytes_on_disk": disk_bytes(folder),
            **provenance(finished),
        },
        [*listings, Listing("files", sizes)],
        notes,
    )


def describe_report(folder: Path, finished: Manifest) -> Description:
    """Describe a run's report."""
    counts = finished.counts
    columns = {name: values for name, values in counts.items() if isinstance(values, list)}
    seeds = [
        {"run": number, **dict(zip(columns, row, strict=True))}
        for number, row in enumerate(zip(*columns.values(), strict=True), start=1)
    ]

    return Description(
        folder,
        "report",
        "Whether the model is worth its training: a delta on it and on an untrained one.",
        {
            **{name: value for name, value in counts.items() if name not in columns},
            "bytes_on_disk": disk_bytes(folder),
            **provenance(finished),
        },
        [Listing("by seed", seeds)],
        [f"in words: {folder / 'README.md'}"],
    )


@with_config(ConfigDict(extra="allow"))
class _ModelSettings(TypedDict):
    """Of a config.json."""

    architectures: NotRequired[list[str] | None]
    model_type: NotRequired[str]


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(path.read_bytes(), _ModelSettings))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); expected a model's configuration as JSON"
        ) from None


def _parameters(folder: Path) -> int | None:
    """Of all tensors in the folder's safetensors files, whose headers alone are read; None without
    such files."""
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as tensors:
                total += sum(
                    math.prod(tensors.get_slice(name).get_shape())
                    for name in tensors.keys()  # noqa: SIM118 (a safe_open is not iterable)
                )
        except (OSError, SafetensorError) as error:
            check_memory(error, path)
            raise UserError(
                f"{path}: cannot be read ({error}): cut off or damaged; copy it again"
            ) from None

    return total or None


def _fill(folder: Path, blanks: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The three best guesses for each blank; or why there are none."""
    try:
        lm = open_masked_lm(folder, torch.device("cpu"))
    except UserError as fault:
        return [], [f"no blanks are filled: {fault}"]

    texts = [text.replace("<mask>", lm.hf_tokenizer.mask_token) for text in blanks]
    try:
        texts = [text for text in texts if len(lm.hf_tokenizer(text)["input_ids"]) <= lm.longest]
        with quiet_transformers():
            fill = transformers.pipeline(
                "fill-mask", model=lm.model, tokenizer=lm.hf_tokenizer, top_k=3, device="cpu"
            )
            found = [fill(text) for text in texts]
    except Exception as error:  # of settings that only computing finds odd
        check_memory(error, folder)
        return [], [f"no blanks are filled: {folder}: {first_line(error)}"]

    rows = []
    for text, guesses in zip(texts, found, strict=True):
        shown = [f"{guess['token_str'].strip()} ({guess['score']:.1%})" for guess in guesses]
        rows.append({"text": text, "guesses": ", ".join(shown)})

    return rows, []
