"""Find a model: of which kind it is, and which files hold it. Imports no torch.

Three kinds: a Hugging Face folder (a published folder of ours is one), a finished run of ours, a
checkpoint of fairseq's with the files of its vocabulary. `open_model` reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from robustly import UserError, manifest
from robustly.config import InputPath, fingerprint, locate
from robustly.files import sha256
from robustly.pretrain.config import FairseqCheckpoint
from robustly.pretrain.start.weight_files import weight_files, what_lies_there
from robustly.tokenizer.importing import FOLDER_FILES, read_fairseq
from robustly.tokenizer.reading import read_json_object, read_vocabulary
from robustly.tokenizer.special_tokens import SPECIAL_TOKENS
from robustly.tokenizer.vocabulary import Vocabulary

_EXPECTED = (
    "expected a Hugging Face folder (config.json and weights), a finished run of ours, or fairseq's"
    " files (weights, encoder, merges, dictionary)"
)
_FETCH = (
    "Nothing is downloaded: fetch a model of the Hugging Face Hub first (`hf download NAME"
    " --local-dir FOLDER`)"
)


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk: all files that decide what is opened."""

    title: str
    """What messages about it begin with: the config's key that names it, if one does, and where it
    lies."""
    kind: Literal["transformers", "run", "fairseq"]
    folder: Path
    """The folder of the weights; for fairseq, the .pt file."""
    weights: tuple[Path, ...]
    """The file of weights, or its shards."""
    settings: Path | None
    """The file with the model's dimensions; fairseq keeps them with the weights."""
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

    def layers(self) -> int | None:
        """How many the model has; None where the weights alone tell. Raises UserError if the file
        of its dimensions is damaged."""
        if self.settings is None:
            return None

        stated = read_json_object(self.settings)
        named = stated.get("recipe", {}).get("model", {}) if self.kind == "run" else stated
        found = named.get("layers" if self.kind == "run" else "num_hidden_layers")
        return found if isinstance(found, int) else None

    def verify(self) -> None:
        """Raises UserError if a file that a stage of ours wrote has been damaged since. Files that
        were hashed and have not changed are not read again."""
        if finished := manifest.read(self.folder):
            own = (*self.weights, *([self.settings] if self.settings else []))
            names = [path.relative_to(self.folder).as_posix() for path in own]
            manifest.check_whole(self.folder, finished, names)

        for folder in {path.parent for path in self.vocabulary_files}:
            if finished := manifest.read(folder):
                names = [path.name for path in self.vocabulary_files]
                manifest.check_whole(folder, finished, names)

    def vocabulary(self) -> Vocabulary:
        """The model's own vocabulary. Raises UserError unless it is of RoBERTa's kind, special ids
        included."""
        if self.kind == "fairseq":
            return read_fairseq(*self.vocabulary_files)

        folder = self.vocabulary_files[0].parent if self.vocabulary_files else self.folder
        vocabulary = read_vocabulary(folder)
        if moved := [
            token for number, token in enumerate(SPECIAL_TOKENS) if vocabulary.ids[token] != number
        ]:
            raise UserError(
                f"{self.title}: {moved[0]} has the id {vocabulary.ids[moved[0]]}; expected"
                f" RoBERTa's layout, where {', '.join(SPECIAL_TOKENS)} have the ids 0 to"
                f" {len(SPECIAL_TOKENS) - 1}"
            )

        return vocabulary


def find_model(named: InputPath | FairseqCheckpoint, key: str = "model.init_from") -> ModelFiles:
    """The model, of any kind, that a config names under `key`.

    Raises UserError if it is not there, not finished, or none of the three kinds.
    """
    if isinstance(named, FairseqCheckpoint):
        weights, *rest = (
            locate(f"{key}.{file}", getattr(named, file), advice=_FETCH)
            for file in ("weights", "encoder", "merges", "dictionary")
        )
        return ModelFiles(f"{key}: {weights}", "fairseq", weights, (weights,), None, tuple(rest))

    folder = locate(key, named, advice=_FETCH)
    if folder.is_file():
        raise UserError(f"{key}: {folder}: a file; {_EXPECTED}")

    for train in (folder / "train", folder):
        if (train / "checkpoints").is_dir():
            return _find_run(train, key)

    if not (folder / "config.json").is_file():
        raise UserError(f"{key}: {folder}: no model here; {_EXPECTED}{what_lies_there(folder)}")

    return find_folder(folder, key)


def _find_run(train: Path, key: str) -> ModelFiles:
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

    return ModelFiles(
        f"{key}: {train}",
        "run",
        train,
        (weights,),
        train / manifest.RECIPE,
        _vocabulary_files(vocabulary),
    )


def find_folder(folder: Path, key: str = "") -> ModelFiles:
    """The model in a published folder of ours, or in one that transformers saved a model to.

    Raises UserError if there is none, or the folder is unfinished.
    """
    title = f"{key}: {folder}" if key else str(folder)
    expected = "expected a published folder or a Hugging Face checkpoint (config.json and weights)"
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise UserError(f"{title}: {what}; {expected}. {_FETCH}")

    if (folder / manifest.RECIPE).exists():
        manifest.require(folder, "published")

    if not (folder / "config.json").is_file():
        raise UserError(
            f"{title}: no model here (no config.json); {expected}{what_lies_there(folder)}"
        )

    return ModelFiles(
        title,
        "transformers",
        folder,
        weight_files(folder, title),
        folder / "config.json",
        _vocabulary_files(folder),
    )


def _vocabulary_files(folder: Path) -> tuple[Path, ...]:
    return tuple(folder / name for name in FOLDER_FILES if (folder / name).is_file())
