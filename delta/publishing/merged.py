"""Write a merged delta as a plain folder of transformers, and prove that it answers the same:
`robustly delta merge`."""

import json
import re
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, RobertaPreTrainedModel

from robustly import Unproven, UserError
from robustly.delta.base_model import Base
from robustly.delta.predictor import Predictor, sample_input
from robustly.delta.storage.merging import merge
from robustly.files import write_atomic, write_json
from robustly.log import quiet_transformers
from robustly.tokenizer.importing import FOLDER_FILES
from robustly.tokenizer.tokenizer import Tokenizer

TOLERANCE = 1e-4
"""Of logits, beside their largest magnitude: adding a delta to its weights rounds, in fp32."""
TEXTS = (
    "Hello world",
    "Two  spaces, and a naïve café: 日本 🙂.",
    "It's 12:30 already, and nobody has come to the station yet. ",
)


_PROBLEMS = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
"""Kind of task -> what transformers' pipeline makes of the logits."""


def write_merged(predictor: Predictor, base: Base, into: Path) -> dict[str, Any]:
    """Write the merged model of a predictor, its base's tokenizer and a card into a folder that is
    not there yet or empty. Returns facts: parameters, bytes, and the largest difference of a logit
    between the folder, reloaded by transformers alone, and the delta on its base.

    Raises UserError if a method cannot be merged (`merging.merge`) or if the folder holds
    something; Unproven, and nothing is written, if logits or token ids differ."""
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise UserError(f"--into {into}: is there already; expected a new folder, or an empty one")

    plain = merge(predictor.model)
    plain.config.problem_type = _PROBLEMS.get(predictor.head.task.kind)
    into.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{into.name}-", dir=into.absolute().parent) as place:
        folder = Path(place) / into.name
        folder.mkdir()
        _save(plain, folder)
        save_tokenizer(Path(base.name), predictor.head.longest, folder)
        difference = _prove(predictor, plain, folder)
        card = _card(predictor, plain, into.name, difference)
        write_atomic(folder / "README.md", card)
        folder.replace(into)

    return {
        "parameters": sum(parameter.numel() for parameter in plain.parameters()),
        "bytes": sum(path.stat().st_size for path in into.iterdir()),
        "longest_input": predictor.head.longest,
        "max_logit_difference": difference,
    }


def _save(plain: RobertaPreTrainedModel, folder: Path) -> None:
    with quiet_transformers():
        plain.save_pretrained(folder)

    # safetensors writes it for its owner alone; the file beside it has the mode of the user's umask
    mode = stat.S_IMODE((folder / "config.json").stat().st_mode)
    (folder / "model.safetensors").chmod(mode)


def save_tokenizer(base: Path, longest: int, folder: Path) -> None:
    """The base's own files, which cut a text, where they are asked to, as the delta's were."""
    for name in (*FOLDER_FILES, "special_tokens_map.json"):
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)

    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, {**settings, "model_max_length": longest})


def _prove(predictor: Predictor, plain: RobertaPreTrainedModel, folder: Path) -> float:
    """The largest difference of a logit between the folder, as transformers loads it, and the
    delta. Raises Unproven if it is more than rounding, or if a text becomes other ids."""
    head = predictor.head
    long = TEXTS[2] * (head.longest // 8 + 1)
    with quiet_transformers():
        model = type(plain).from_pretrained(folder).eval().to(predictor.model.device)
        tokenizer = AutoTokenizer.from_pretrained(folder)

    inputs = [sample_input(head.task, text) for text in (*TEXTS, long)]
    reloaded = Predictor(model, head, predictor.labels)
    pairs = list(zip(predictor.logits(inputs), reloaded.logits(inputs), strict=True))
    difference = max(float((one - other).abs().max()) for one, other in pairs)
    largest = max(float(one.abs().max()) for one, _ in pairs)
    if difference > TOLERANCE * max(1.0, largest):
        raise Unproven(
            f"the merged model gives other logits, by up to {difference:.1g} of {largest:.2g};"
            " nothing was written. Keep the base and the delta, and please report it"
        )

    _check_ids(head.tokenizer, tokenizer, [*TEXTS, long])
    return difference


def _check_ids(ours: Tokenizer, theirs: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    for text, ids in zip(texts, ours.encode_documents(texts), strict=True):
        expected = [ours.bos_id, *ids.tolist(), ours.eos_id]
        if (found := theirs(text, verbose=False)["input_ids"]) != expected:
            raise Unproven(
                f"{text[:80]!r} becomes the ids {found[:8]} by transformers, expected"
                f" {expected[:8]}; nothing was written"
            )


def _card(predictor: Predictor, plain: RobertaPreTrainedModel, name: str, difference: float) -> str:
    """README.md: what the model is, and how transformers loads it."""
    methods = ", ".join(method.name for method in predictor.model.delta.methods)
    model = re.sub(r"^[A-Za-z]+?For", "AutoModelFor", type(plain).__name__)
    return (
        f"# {name}\n\n"
        f"An encoder with a delta ({methods}) merged into its weights, and the head of its task:"
        f" {predictor.head.task.kind}. Made by `robustly delta merge`.\n\n"
        "```python\n"
        f"from transformers import AutoTokenizer, {model}\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        f'model = {model}.from_pretrained("{name}").eval()\n'
        "```\n\n"
        "Reloaded by transformers alone, its logits differ from those of the delta on its base by"
        f" at most {difference:.0e}. Texts may have up to {predictor.head.longest} tokens;"
        " `truncation=True` cuts them there.\n"
    )
