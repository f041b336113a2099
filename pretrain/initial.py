"""The checkpoint that a run starts from (`model.init_from`): where it lies and what it is. Imports no torch.

Three kinds: a Hugging Face folder (a published folder of ours is one), a finished run of ours, a checkpoint of
fairseq's with the files of its vocabulary. `initial_weights` reads them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretrain.config import FairseqCheckpoint
from robustly import UserError, manifest
from robustly.config import find, fingerprint
from tokenizer.config import SPECIAL_TOKENS
from tokenizer.importing import FOLDER_FILES, read_fairseq
from tokenizer.vocabulary import Vocabulary, read, read_json_object

KEY = "model.init_from"
_EXPECTED = (
    "expected a Hugging Face folder (config.json and weights), a finished run of ours, or fairseq's files "
    "(weights, encoder, merges, dictionary)"
)
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Initial:
    """A checkpoint to start from: all files that decide what is taken."""

    kind: Literal["transformers", "run", "fairseq"]
    folder: Path
    """The folder of the weights; for fairseq, the .pt file."""
    weights: tuple[Path, ...]
    """The file of weights, or its shards."""
    settings: Path | None
    """What says the model's dimensions; fairseq keeps them with the weights."""
    vocabulary_files: tuple[Path, ...]

    def digest(self) -> str:
        """Hash of the content of all files, wherever they lie: what a run depends on."""
        files = [*self.weights, *([self.settings] if self.settings else []), *self.vocabulary_files]
        return fingerprint([manifest.sha256(path) for path in files])

    def vocabulary(self) -> Vocabulary:
        """The checkpoint's own vocabulary. Raises UserError unless it is of RoBERTa's kind, special ids included."""
        if self.kind == "fairseq":
            return read_fairseq(*self.vocabulary_files)
        folder = self.vocabulary_files[0].parent if self.vocabulary_files else self.folder
        vocabulary = read(folder)
        if moved := [token for number, token in enumerate(SPECIAL_TOKENS) if vocabulary.ids[token] != number]:
            raise UserError(
                f"{KEY}: {folder}: {moved[0]} has the id {vocabulary.ids[moved[0]]}; expected RoBERTa's layout, where "
                f"{', '.join(SPECIAL_TOKENS)} have the ids 0 to {len(SPECIAL_TOKENS) - 1}"
            )
        return vocabulary


def find_initial(init_from: str | FairseqCheckpoint, beside: Path) -> Initial:
    """The checkpoint that a page names; relative paths are looked up beside the page, then in the working directory.

    Raises UserError if it is not there, not finished, or none of the three kinds.
    """
    if isinstance(init_from, FairseqCheckpoint):
        weights, *rest = (
            _there(getattr(init_from, key), beside, f"{KEY}.{key}")
            for key in ("weights", "encoder", "merges", "dictionary")
        )
        return Initial("fairseq", weights, (weights,), None, tuple(rest))
    folder = _there(init_from, beside, KEY)
    if folder.is_file():
        raise UserError(f"{KEY}: {folder}: a file; {_EXPECTED}")
    for train in (folder / "train", folder):
        if (train / "checkpoints").is_dir():
            return _run(train)
    if (folder / "config.json").is_file():
        return _transformers(folder)
    raise UserError(f"{KEY}: {folder}: no model here; {_EXPECTED}")


def _run(train: Path) -> Initial:
    finished = manifest.require(train, "train", "robustly pretrain CONFIG")
    vocabulary = train.parent / "tokenizer"
    made = manifest.read(vocabulary)
    if made is None or made.hash != finished.inputs["tokenizer"]:
        raise UserError(
            f"{KEY}: {train}: its tokenizer is not in {vocabulary}; publish the run and give its published folder"
        )
    # of the last checkpoint: the best one is kept, too, and may be an older one
    weights = train / max(name for name in finished.outputs if name.endswith("/weights.safetensors"))
    return Initial("run", train, (weights,), train / manifest.RECIPE, _vocabulary_files(vocabulary))


def _transformers(folder: Path) -> Initial:
    if (folder / manifest.RECIPE).exists():
        manifest.require(folder, "published", "robustly publish CONFIG")
    if (folder / _INDEX).is_file():
        try:
            names = sorted({str(name) for name in read_json_object(folder / _INDEX)["weight_map"].values()})
        except (KeyError, AttributeError):
            raise UserError(f"{KEY}: {folder / _INDEX}: expected weight_map, an object of tensors and files") from None
        weights = tuple(folder / name for name in names)
    else:
        names = ["model.safetensors", "pytorch_model.bin"]
        weights = tuple(folder / name for name in names if (folder / name).is_file())[:1]
    if not weights or not all(path.is_file() for path in weights):
        missing = [str(path) for path in weights if not path.is_file()] or names
        raise UserError(f"{KEY}: {folder}: its weights are not there; looked for {', '.join(missing)}")
    return Initial("transformers", folder, weights, folder / "config.json", _vocabulary_files(folder))


def _vocabulary_files(folder: Path) -> tuple[Path, ...]:
    return tuple(folder / name for name in FOLDER_FILES if (folder / name).is_file())


def _there(path: str, beside: Path, key: str) -> Path:
    candidates = find(path, beside)
    if (found := next((candidate for candidate in candidates if candidate.exists()), None)) is None:
        raise UserError(
            f"{key}: {path}: not there; looked at {', '.join(map(str, candidates))}. Nothing is downloaded: fetch a "
            "model of the Hugging Face Hub first (`hf download NAME --local-dir FOLDER`)"
        )
    return found
