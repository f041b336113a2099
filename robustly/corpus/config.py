"""Schema of the config's section `corpus`, and of where the work on a corpus runs: processes of
this machine, Slurm or Ray."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from robustly import UserError
from robustly.config import InputPath, Section


def _as_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def as_list(value: Any) -> Any:
    """For a key that takes one value or a list of them."""
    return value if isinstance(value, list) else [value]


def _keys(value: Any) -> Any:
    """`text_key`; in one fault what would be one for each type."""
    if isinstance(value, str) or (
        isinstance(value, list) and value and all(isinstance(key, str) for key in value)
    ):
        return value
    raise ValueError("expected a key, or a list of keys")


class SourceConfig(Section):
    """One body of text: files, or a dataset. In a config `{path: ...}`, `{hub: ...}`, or a path
    alone."""

    path: InputPath | None = None
    """File, folder or glob of .txt, .jsonl, .ndjson, .json, .csv or .tsv (each plain or .gz, .xz,
    .zst, .bz2), .parquet, .arrow or .feather; or a folder that `save_to_disk` wrote. A relative
    path is looked up beside the config file, then in the working directory."""
    hub: InputPath | None = None
    """A dataset on the Hugging Face Hub (owner/name), or a folder laid out like one; each row is a
    document. A folder is looked up like `path`, and taken before the Hub."""
    subset: str | None = None
    """Which of the dataset's configurations; default: its only or default one."""
    split: str = "train"
    """Which of the dataset's splits."""
    revision: str | None = None
    """Branch, tag or commit of the dataset; default: its main branch. A full commit stays what it
    is."""
    name: str | None = None
    """What reports call it; default: the last part of `path` or `hub`."""
    repeat: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How many times its blocks come in an epoch; of a fraction, a fixed choice of them."""
    held_out: bool = False
    """All of it is validation text: no part is trained on, by the tokenizer either.
    `corpus.validation` holds out of the other sources."""

    @model_validator(mode="after")
    def _files_or_dataset(self) -> Self:
        if (self.path is None) == (self.hub is None):
            found = "neither" if self.path is None else "both"
            raise ValueError(
                f"found {found} of path and hub; expected one: path for files, hub for a dataset"
            )

        if self.path is not None and (keys := self.off_default({"subset", "split", "revision"})):
            raise ValueError(f"{', '.join(keys)}: only for a dataset; expected hub, or path alone")
        if self.held_out and self.repeat != 1:
            raise ValueError(
                f"repeat = {self.repeat:g}: nothing of it is trained on, as held_out says; remove"
                " either"
            )

        return self

    @property
    def label(self) -> str:
        """What the config gives: a path, or the name of a dataset."""
        return self.path if self.path is not None else self.hub or ""

    @property
    def title(self) -> str:
        """What reports call it."""
        return self.name or Path(self.label).name


def unique_names(names: Sequence[str]) -> list[str]:
    """Names of sources, with their places (from 1) where some are the same."""
    count = Counter(names)
    return [
        f"{name} ({place})" if count[name] > 1 else name
        for place, name in enumerate(names, start=1)
    ]


class CorpusConfig(Section):
    """The raw text that everything is made from."""

    key: ClassVar = "corpus.sources"

    sources: Annotated[
        list[Annotated[SourceConfig, BeforeValidator(_as_source)]], BeforeValidator(as_list)
    ] = Field(default_factory=list)
    """One source or a list of them, in the order in which they enter the token store."""
    counts: Annotated[list[InputPath], BeforeValidator(as_list)] = Field(default_factory=list)
    """Word counts (.tsv, plain or .gz, .xz, .zst, .bz2: files, folders or globs) that the tokenizer
    is trained from instead of counting the words of `sources`; a line is a count, a tab and the
    word as a JSON string."""
    documents: Literal["blank_line", "file", "line"]
    """What a document is in a .txt file: text between blank lines, the whole file, or each line. In
    all others it is a row."""
    text_key: Annotated[str | list[str], BeforeValidator(_keys)]
    """Key (.jsonl, .json) or column (.parquet, .arrow, .csv, .tsv, a dataset) that holds the text;
    `data.text` is the key `text` within `data`, where no key has that very name. Of a list of keys
    the texts are joined by line feeds, and one that is null is left out."""
    validation: Annotated[float, Field(ge=0, lt=1)]
    """Share of documents held out, chosen by a hash of their text: stable when the corpus grows."""
    max_bad_lines: Annotated[int, Field(ge=0)] = 100
    """Rows without text (no JSON, no such key, not UTF-8, ...) in the whole corpus that are skipped
    before it is an error; `bad_lines.jsonl` lists them."""

    @model_validator(mode="after")
    def _holds_something(self) -> Self:
        if not (self.sources or self.counts):
            raise ValueError(
                "no sources: expected at least one (or `counts`, for a tokenizer alone)"
            )
        if self.sources and all(source.held_out for source in self.sources):
            raise ValueError("sources: all of them are held_out; expected one at least to train on")
        return self

    @property
    def training(self) -> "CorpusConfig":
        """The corpus without the sources that are held out."""
        sources = [source for source in self.sources if not source.held_out]
        return self.model_copy(update={"sources": sources})

    @property
    def repeats(self) -> tuple[float, ...]:
        """How many times each source comes in an epoch; empty: each once."""
        times = tuple(source.repeat for source in self.sources)
        return times if any(time != 1 for time in times) else ()

    @property
    def text_keys(self) -> tuple[str, ...]:
        """`text_key`, as if it were always a list."""
        return (self.text_key,) if isinstance(self.text_key, str) else tuple(self.text_key)

    @property
    def names(self) -> list[str]:
        """What reports call the sources."""
        return unique_names([source.title for source in self.sources])

    def reading(self) -> dict[str, str | list[str]]:
        """The part of the recipe that decides what text the files hold; the files themselves are
        hashed."""
        return {"documents": self.documents, "text_key": self.text_key}


class FilesBeside(CorpusConfig):
    """Files that the config names at another `key` than its sources, found, hashed and cut as these
    are."""

    @classmethod
    def of(cls, paths: Sequence[InputPath]) -> Self:
        sources = [SourceConfig(path=path) for path in paths]
        return cls(sources=sources, documents="line", text_key="", validation=0)


class CountFiles(FilesBeside):
    """Files of word counts."""

    key = "corpus.counts"


PROCESS_BYTES = 208 * 2**20  # Python and the libraries of a worker
COUNTING_BYTES = 512 * 2**20  # counts of a worker, where run.memory_gb says nothing
MIN_COUNTING_BYTES = 16 * 2**20

_SBATCH_OPTIONS = {
    **dict.fromkeys(
        ("array", "chdir", "error", "export", "job-name", "nodes", "ntasks", "output"),
        "this program",
    ),
    **{name: f"run.slurm.{name}" for name in ("account", "partition", "qos", "time")},
    "cpus-per-task": "run.slurm.cpus_per_task",
    "mem": "run.slurm.memory_gb",
}

_Word = Annotated[str, Field(coerce_numbers_to_str=True)]


class SlurmConfig(Section):
    """What each task of the job asks of Slurm, for run.executor slurm."""

    partition: str | None = None
    """Default: the cluster's."""
    time: _Word = "24:00:00"
    """Time limit of a task, as sbatch takes it: 60 are minutes."""
    cpus_per_task: PositiveInt = 1
    """Cores of a task; it uses one, and more are a way to more memory where the cluster deals that
    out by cores."""
    memory_gb: PositiveFloat | None = None
    """Memory of a task, in GiB; default: the cluster's."""
    account: str | None = None
    qos: str | None = None
    max_jobs: PositiveInt | None = None
    """Tasks that run at once; default: as many as the cluster lets."""
    options: dict[str, _Word] = Field(default_factory=dict)
    """Further options of sbatch by their long names, such as {constraint: icelake, exclusive:
    ""}."""

    @field_validator("options")
    @classmethod
    def _leaves_ours_alone(cls, value: dict[str, str]) -> dict[str, str]:
        if owned := sorted(value.keys() & _SBATCH_OPTIONS.keys()):
            raise ValueError(
                "; ".join(f"{name} is set by {_SBATCH_OPTIONS[name]}" for name in owned)
            )
        return value


@dataclass(frozen=True)
class Processing:
    """Where the work on a corpus runs; no byte of what is made depends on it."""

    workers: int
    """Processes at once on this machine, or in the Ray cluster."""
    memory_gb: float | None = None
    """Memory for counting words, over all workers of this machine; None: `COUNTING_BYTES` for each
    of them."""
    executor: str = "local"
    """Its name in `robustly.corpus.executors.EXECUTORS`."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    timeout: float = 120.0
    """Seconds without a sign of life after which a process of this machine counts as hung."""

    @property
    def counting_bytes(self) -> int:
        """Memory for the counts of one process: its share of `memory_gb`, less what Python and its
        libraries take.

        Raises UserError if that is less than MIN_COUNTING_BYTES.
        """
        processes, key, total = self.workers, "run.memory_gb", self.memory_gb
        if self.executor == "slurm":
            processes = 1  # each task has memory of its own
            if self.slurm.memory_gb:
                key, total = "run.slurm.memory_gb", self.slurm.memory_gb

        if total is None:
            return COUNTING_BYTES

        own = PROCESS_BYTES * (processes + (processes > 1))
        if (share := int(total * 2**30 - own) // processes) < MIN_COUNTING_BYTES:
            least = (own + MIN_COUNTING_BYTES * processes) / 2**30
            raise UserError(
                f"{key} = {total:g}: too little for run.workers = {processes}, which take"
                f" {least:.2f} with the least that counting needs; raise it, or lower run.workers"
            )

        return share
