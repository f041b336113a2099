"""The checkpoint that a run starts from (`model.init_from`), or its teacher: where it lies and what
it is. Imports no torch.

Three kinds: a Hugging Face folder (a published folder of ours is one), a finished run of ours, a
checkpoint of fairseq's with the files of its vocabulary. `initial_weights` reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from robustly import UserError, manifest
from robustly.config import InputPath, fingerprint, locate
from robustly.files import sha256
from robustly.pretrain.config import FairseqCheckpoint
from robustly.tokenizer.importing import FOLDER_FILES, read_fairseq
from robustly.tokenizer.special_tokens import SPECIAL_TOKENS
from robustly.tokenizer.vocabulary import Vocabulary, read, read_json_object

KEY = "model.init_from"
_EXPECTED = (
    "expected a Hugging Face folder (config.json and weights), a finished run of ours, or fairseq's"
    " files (weights, encoder, merges, dictionary)"
)
_FETCH = (
    "Nothing is downloaded: fetch a model of the Hugging Face Hub first (`hf download NAME"
    " --local-dir FOLDER`)"
)
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Initial:
    """A checkpoint to start from: all files that decide what is taken."""

    key: str
    """The page's, which names it."""
    kind: Literal["transformers", "run", "fairseq"]
    folder: Path
    """The folder of the weights; for fairseq, the .pt file."""
    weights: tuple[Path, ...]
    """The file of weights, or its shards."""
    settings: Path | None
    """What says the model's dimensions; fairseq keeps them with the weights."""
    vocabulary_files: tuple[Path, ...]

    def digest(self) -> str:
        """Hash of the content of all files, wherever they lie: what a run depends on.

        Raises UserError if weights that a stage of ours wrote are damaged.
        """
        others = [*([self.settings] if self.settings else []), *self.vocabulary_files]
        return fingerprint([*map(self._weights_hash, self.weights), *map(sha256, others)])

    def _weights_hash(self, path: Path) -> str:
        if (finished := manifest.read(self.folder)) is None:
            return sha256(path)
        found = manifest.verify(self.folder, finished, path.relative_to(self.folder).as_posix())
        return str(found["sha256"])

    def vocabulary(self) -> Vocabulary:
        """The checkpoint's own vocabulary. Raises UserError unless it is of RoBERTa's kind, special
        ids included."""
        if self.kind == "fairseq":
            return read_fairseq(*self.vocabulary_files)

        folder = self.vocabulary_files[0].parent if self.vocabulary_files else self.folder
        vocabulary = read(folder)
        if moved := [
            token for number, token in enumerate(SPECIAL_TOKENS) if vocabulary.ids[token] != number
        ]:
            raise UserError(
                f"{self.key}: {folder}: {moved[0]} has the id {vocabulary.ids[moved[0]]}; expected"
                f" RoBERTa's layout, where {', '.join(SPECIAL_TOKENS)} have the ids 0 to"
                f" {len(SPECIAL_TOKENS) - 1}"
            )

        return vocabulary


def find_initial(init_from: InputPath | FairseqCheckpoint, key: str = KEY) -> Initial:
    """The checkpoint that `key` of a page names; relative paths are looked up beside it, then in
    the working directory.

    Raises UserError if it is not there, not finished, or none of the three kinds.
    """
    if isinstance(init_from, FairseqCheckpoint):
        weights, *rest = (
            locate(f"{key}.{file}", getattr(init_from, file), advice=_FETCH)
            for file in ("weights", "encoder", "merges", "dictionary")
        )
        return Initial(key, "fairseq", weights, (weights,), None, tuple(rest))

    folder = locate(key, init_from, advice=_FETCH)
    if folder.is_file():
        raise UserError(f"{key}: {folder}: a file; {_EXPECTED}")

    for train in (folder / "train", folder):
        if (train / "checkpoints").is_dir():
            return _run(train, key)

    if (folder / "config.json").is_file():
        return _transformers(folder, key)

    raise UserError(f"{key}: {folder}: no model here; {_EXPECTED}")


def _run(train: Path, key: str) -> Initial:
    finished = manifest.require(train, "train")
    vocabulary = train.parent / "tokenizer"
    made = manifest.read(vocabulary)
    if made is None or made.hash != finished.inputs["tokenizer"]:
        raise UserError(
            f"{key}: {train}: its tokenizer is not in {vocabulary}; publish the run and give its"
            " published folder"
        )

    # of the last checkpoint: the best one is kept, too, and may be an older one
    weights = train / max(
        name for name in finished.outputs if name.endswith("/weights.safetensors")
    )

    return Initial(
        key, "run", train, (weights,), train / manifest.RECIPE, _vocabulary_files(vocabulary)
    )


def _transformers(folder: Path, key: str) -> Initial:
    if (folder / manifest.RECIPE).exists():
        manifest.require(folder, "published")

    if (folder / _INDEX).is_file():
        try:
            names = sorted(
                {str(name) for name in read_json_object(folder / _INDEX)["weight_map"].values()}
            )
        except (KeyError, AttributeError):
            raise UserError(
                f"{key}: {folder / _INDEX}: expected weight_map, an object of tensors and files"
            ) from None

        weights = tuple(folder / name for name in names)
    else:
        names = ["model.safetensors", "pytorch_model.bin"]
        weights = tuple(folder / name for name in names if (folder / name).is_file())[:1]

    if not weights or not all(path.is_file() for path in weights):
        missing = [str(path) for path in weights if not path.is_file()] or names
        raise UserError(
            f"{key}: {folder}: its weights are not there; looked for {', '.join(missing)}"
        )

    return Initial(
        key, "transformers", folder, weights, folder / "config.json", _vocabulary_files(folder)
    )


def _vocabulary_files(folder: Path) -> tuple[Path, ...]:
    return tuple(folder / name for name in FOLDER_FILES if (folder / name).is_file())
