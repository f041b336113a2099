"""Write a model as ONNX, for onnxruntime and whatever else reads it: a base, a merged delta, or a
delta on its base; and prove that it computes the same.

By torch's own exporter, which goes by `torch.export`. (optimum's last release for ONNX, of 2025, is
for transformers 4.)"""

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from robustly import Unproven, UserError
from robustly.delta.attachment import ENCODERS
from robustly.delta.layers.soft_tokens import longest_input
from robustly.delta.publishing.merged import save_tokenizer
from robustly.delta.storage.saving import RECORD, base_of, load
from robustly.files import write_atomic
from robustly.log import quiet_transformers
from robustly.pretrain.start.model_files import find_folder
from robustly.pretrain.start.open_model import first_line
from robustly.resources import check_memory
from robustly.tokenizer.special_tokens import SPECIAL_TOKENS

MODEL = "model.onnx"
TOLERANCE = 1e-4
"""Of an output, beside its largest magnitude: other kernels round otherwise, in fp32."""


class _Found(NamedTuple):
    """What is to be written."""

    title: str
    model: PreTrainedModel
    tokenizer: Path
    """The folder that holds it."""
    longest: int
    """Tokens of the longest input; those of a prompt are not among them."""

    @property
    def axes(self) -> dict[int, str]:
        """Names of the axes of the inputs."""
        if type(self.model).__name__.endswith("ForMultipleChoice"):
            return {0: "inputs", 1: "choices", 2: "tokens"}
        return {0: "inputs", 1: "tokens"}


def export(folder: Path, into: Path, base: Path | None = None) -> dict[str, Any]:
    """Write the model in a folder as `model.onnx` into another folder, with its config, its
    tokenizer and a card. Returns facts: outputs, bytes, the longest input, and the largest
    difference of an output between onnxruntime and torch.

    `folder`: published, or saved by transformers, as `robustly delta merge` does, or a delta's;
    `base`: the delta's, in the place of the one that it names. The model takes `input_ids` and
    `attention_mask`, of any number of inputs and tokens, and returns what transformers does, in
    fp32; a delta's prompts are within.

    Raises UserError without the packages of the extra `onnx`, if `into` holds something, or if
    `folder` holds no such model; Unproven, and writes nothing, if an output differs."""
    _require_packages()
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise UserError(f"--into {into}: is there already; expected a new folder, or an empty one")

    found = _open(folder, base)
    into.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{into.name}-", dir=into.absolute().parent) as place:
        made = Path(place) / into.name
        made.mkdir()
        outputs = _write(found, made / MODEL)
        difference = _prove(found, made / MODEL, outputs)
        found.model.config.save_pretrained(made)
        save_tokenizer(found.tokenizer, found.longest, made)
        write_atomic(made / "README.md", _card(found, into.name, outputs, difference))
        made.replace(into)

    return {
        "outputs": outputs,
        "bytes": sum(path.stat().st_size for path in into.iterdir()),
        "longest_input": found.longest,
        "max_difference": difference,
    }


def _require_packages() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the package {error.name} is not installed; `pip install 'robustly[onnx]'`"
        ) from None


def _open(folder: Path, base: Path | None) -> _Found:
    if not (folder / RECORD).exists():
        if base is not None:
            raise UserError(f"--base {base}: for a delta, and {folder} holds none")
        return _plain(folder)

    own = base_of(folder, base)
    predictor = load(own, folder)
    if predictor.head.prompt_tokens:  # a program cannot look for them
        predictor.model.base_model.embeddings.word_embeddings.in_text = True

    methods = " and ".join(method.name for method in predictor.model.delta.methods)
    title = f"A delta ({methods}) on the encoder {Path(own.name).name}"
    return _Found(title, predictor.model, Path(own.name), predictor.head.longest)


def _plain(folder: Path) -> _Found:
    """A model of transformers, under the head that its config names."""
    files = find_folder(folder, "FOLDER")
    files.verify()
    try:
        with quiet_transformers():
            (architecture,) = AutoConfig.from_pretrained(folder).architectures or [""]
            if not hasattr(transformers, architecture):
                raise ValueError(f"config.json: architectures: {architecture or 'none'}")
            model, keys = getattr(transformers, architecture).from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # transformers, torch and json each raise their own
        check_memory(error, files.title)
        raise UserError(
            f"{files.title}: cannot be opened by transformers: {first_line(error)}"
        ) from error

    if not isinstance(model.base_model, ENCODERS):
        raise UserError(
            f"{files.title}: {type(model).__name__}; expected a RoBERTa, XLM-RoBERTa or CamemBERT"
        )
    if missing := sorted(keys["missing_keys"]):
        raise UserError(f"{files.title}: holds no {missing[0]}, which {architecture} has")

    longest = longest_input(model.base_model)
    return _Found(f"{architecture} of {folder.name}", model.eval(), folder, longest)


class _Outputs(nn.Module):
    """A model of transformers as a function of ids and mask to tensors."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _write(found: _Found, path: Path) -> list[str]:
    """Write the model; returns the names of its outputs."""
    function = _Outputs(found.model).eval()
    inputs = next(_probes(found))
    with torch.no_grad(), _quiet_exporter():
        names = list(function(**inputs))
        program = torch.onnx.export(
            function,
            kwargs=inputs,
            dynamic_shapes={name: found.axes for name in inputs},
            output_names=names,
            dynamo=True,
            verbose=False,
        )

    assert program is not None  # without a path
    program.save(path)
    return names


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep what the exporter tells its makers from people."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _probes(found: _Found) -> Iterator[dict[str, Tensor]]:
    """Inputs of several shapes, two of three with padding: of random ids, as no text is given."""
    config = found.model.config
    draw = torch.Generator().manual_seed(1)
    words = config.vocab_size - 1  # <mask> is the last
    for inputs, tokens in ((3, min(7, found.longest)), (2, found.longest), (1, 3)):
        shape = [
            {"inputs": inputs, "choices": 2 + inputs % 2, "tokens": tokens}[a]
            for a in found.axes.values()
        ]
        ids = torch.randint(len(SPECIAL_TOKENS), words, shape, generator=draw)
        ids[..., 0] = config.bos_token_id
        ids[-1, ..., tokens - inputs + 1 :] = config.pad_token_id
        yield {"input_ids": ids, "attention_mask": ids.ne(config.pad_token_id).long()}


def _prove(found: _Found, path: Path, names: list[str]) -> float:
    """The largest difference of an output between onnxruntime and torch. Raises Unproven if it is
    more than rounding."""
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    largest = 0.0
    for inputs in _probes(found):
        with torch.no_grad():
            expected = _Outputs(found.model)(**inputs)
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        for name, value in zip(names, session.run(names, given), strict=True):
            difference = float((torch.from_numpy(value) - expected[name]).abs().max())
            magnitude = max(1.0, float(expected[name].abs().max()))
            if not difference <= TOLERANCE * magnitude:
                raise Unproven(
                    f"onnxruntime gives other {name}, by up to {difference:.1g} of"
                    f" {magnitude:.2g}; nothing was written. Please report it"
                )
            largest = max(largest, difference)

    return largest


def _card(found: _Found, name: str, outputs: list[str], difference: float) -> str:
    """README.md: what the model is, and how onnxruntime runs it."""
    axes = " x ".join(found.axes.values())
    one = "[None] " if "choices" in found.axes.values() else " "
    labels = ""
    if type(found.model).__name__.endswith(("SequenceClassification", "TokenClassification")):
        labels = ", ".join(found.model.config.id2label.values())
        labels = f" Labels, in the order of the logits: {labels}."
    return (
        f"# {name}\n\n"
        f"{found.title}, as ONNX. Made by `robustly export`.\n\n"
        f"Inputs, of any size: `input_ids` and `attention_mask`, {axes}. Outputs, fp32:"
        f" {', '.join(f'`{output}`' for output in outputs)}.{labels}\n\n"
        "```python\n"
        "from onnxruntime import InferenceSession\n"
        "from transformers import AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        f'session = InferenceSession("{name}/{MODEL}")\n'
        'texts = ["Hello world", "A text of other length"]\n'
        'inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="np")\n'
        f'given = {{key: inputs[key]{one}for key in ("input_ids", "attention_mask")}}\n'
        "print(session.run(None, given)[0].shape)\n"
        "```\n\n"
        f"By onnxruntime, outputs differ from torch's by at most {difference:.0e}. Inputs may have"
        f" up to {found.longest} tokens; `truncation=True` cuts them there.\n"
    )
