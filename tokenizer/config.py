"""Schema of the page's `corpus` and `tokenizer` sections, and of how the work on a corpus is spread."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from robustly import UserError
from robustly.config import Section


def _as_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class Source(Section):
    """One body of text: files, or a dataset. In a page `{path: ...}`, `{hub: ...}`, or a path alone."""

    path: str | None = None
    """File, folder or glob of .txt, .jsonl or .parquet, each plain or .gz, .xz, .zst (not parquet).
    A relative path is looked up beside the page, then in the working directory."""
    hub: str | None = None
    """A dataset on the Hugging Face Hub (owner/name), or a folder laid out like one; each row is a document.
    A folder is looked up like `path`, and taken before the Hub."""
    subset: str | None = None
    """Which of the dataset's configurations; default: its only or default one."""
    split: str = "train"
    """Which of the dataset's splits."""
    revision: str | None = None
    """Branch, tag or commit of the dataset; default: its main branch. A full commit stays what it is."""
    name: str | None = None
    """What reports call it; default: the last part of `path` or `hub`."""
    repeat: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How many times its blocks come in an epoch; of a fraction, a fixed choice of them."""
    held_out: bool = False
    """All of it is validation text: no part is trained on, by the tokenizer either. `corpus.validation` holds out of
    the other sources."""

    @model_validator(mode="after")
    def _files_or_dataset(self) -> Self:
        if (self.path is None) == (self.hub is None):
            found = "neither" if self.path is None else "both"
            raise ValueError(f"found {found} of path and hub; expected one: path for files, hub for a dataset")
        if self.path is not None and (keys := sorted(self.model_fields_set & {"subset", "split", "revision"})):
            raise ValueError(f"{', '.join(keys)}: only for a dataset; expected hub, or path alone")
        if self.held_out and self.repeat != 1:
            raise ValueError(f"repeat = {self.repeat:g}: nothing of it is trained on, as held_out says; remove either")
        return self

    @property
    def label(self) -> str:
        """What the page gives: a path, or the name of a dataset."""
        return self.path if self.path is not None else self.hub or ""

    @property
    def title(self) -> str:
        """What reports call it."""
        return self.name or Path(self.label).name


def told_apart(names: Sequence[str]) -> list[str]:
    """Names of sources, with their places (from 1) where some are the same."""
    count = Counter(names)
    return [f"{name} ({place})" if count[name] > 1 else name for place, name in enumerate(names, start=1)]


class Corpus(Section):
    """The raw text that everything is made from."""

    key: ClassVar = "corpus.sources"
    kinds: ClassVar[tuple[str, ...]] = (".txt", ".jsonl", ".parquet")
    expected: ClassVar = "expected .txt, .jsonl (both plain, .gz, .xz or .zst) or .parquet"

    sources: Annotated[list[Annotated[Source, BeforeValidator(_as_source)]], BeforeValidator(_as_list)] = Field(
        default_factory=list
    )
    """One source or a list of them, in the order in which they enter the token store."""
    counts: Annotated[list[str], BeforeValidator(_as_list)] = Field(default_factory=list)
    """Word counts (.tsv, plain or .gz, .xz, .zst: files, folders or globs) that the tokenizer is trained from instead
    of counting the words of `sources`; a line is a count, a tab and the word as a JSON string."""
    documents: Literal["blank_line", "file", "line"]
    """What a document is in a .txt file: text between blank lines, the whole file, or each line.
    In .jsonl, .parquet and a dataset it is a row."""
    text_key: str
    """Key (.jsonl) or column (.parquet, a dataset) that holds the text."""
    validation: Annotated[float, Field(ge=0, lt=1)]
    """Share of documents held out, chosen by a hash of their text: stable when the corpus grows."""
    max_bad_lines: Annotated[int, Field(ge=0)] = 100
    """Rows without text in the whole corpus that are counted and skipped before it is an error."""

    @model_validator(mode="after")
    def _holds_something(self) -> Self:
        if not (self.sources or self.counts):
            raise ValueError("no sources: expected at least one (or `counts`, for a tokenizer alone)")
        if self.sources and all(source.held_out for source in self.sources):
            raise ValueError("sources: all of them are held_out; expected one at least to train on")
        return self

    @property
    def training(self) -> "Corpus":
        """The corpus without the sources that are held out."""
        sources = [source for source in self.sources if not source.held_out]
        return self if len(sources) == len(self.sources) else self.model_copy(update={"sources": sources})

    @property
    def repeats(self) -> tuple[float, ...]:
        """How many times each source comes in an epoch; empty: each once."""
        times = tuple(source.repeat for source in self.sources)
        return times if any(time != 1 for time in times) else ()

    @property
    def names(self) -> list[str]:
        """What reports call the sources."""
        return told_apart([source.title for source in self.sources])

    def reading(self) -> dict[str, str]:
        """The part of the recipe that decides what text the files hold; the files themselves are hashed."""
        return {"documents": self.documents, "text_key": self.text_key}


class CountFiles(Corpus):
    """Files of word counts, read line by line as text is."""

    key = "corpus.counts"
    kinds = (".tsv",)
    expected = "expected word counts: .tsv, plain, .gz, .xz or .zst"

    @classmethod
    def of(cls, corpus: Corpus) -> "CountFiles":
        """The counts that a page names."""
        return cls(sources=[Source(path=path) for path in corpus.counts], documents="line", text_key="", validation=0)


SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as in fairseq; <mask> is the last id
MASK_TOKEN = "<mask>"
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256 + 1  # specials, every byte, <mask>
MAX_MIN_WORD_COUNT = 1000


class FairseqFiles(Section):
    """A vocabulary as fairseq keeps RoBERTa's: GPT-2's files, and a dictionary that says which id a token has."""

    encoder: str
    """`encoder.json`: token -> GPT-2's id."""
    merges: str
    """`vocab.bpe`: a merge a line."""
    dictionary: str
    """`dict.txt`: GPT-2's ids and their counts; line n (from 0) has id n + 4."""


def folder_or_files(value: Any) -> str:
    """Tells pydantic which of the two a page gives: the path of a folder, or files by their names."""
    return "Files" if isinstance(value, Mapping | FairseqFiles) else "Folder"


_Imported = Annotated[
    Annotated[str, Field(min_length=1), Tag("Folder")] | Annotated[FairseqFiles, Tag("Files")],
    Discriminator(folder_or_files),
]


class Tokenizer(Section):
    """The byte-level BPE tokenizer: trained on the corpus, or imported."""

    vocab_size: Annotated[int, Field(le=2**31)]
    """Entries in all: 4 special tokens, 256 bytes, merges, `special_tokens`, <mask>."""
    min_frequency: Annotated[int, Field(ge=1)]
    """A pair seen less often than this is never merged."""
    special_tokens: Annotated[list[str], Field(max_length=2**16)] = Field(default_factory=list)
    """Further special tokens, such as [ENT]; their ids are the last before that of <mask>."""
    count_by: Literal["document", "line"] = "document"
    """What words are counted in: a whole document, or each of its lines with its line feed (as `tokenizers` reads
    files). Where white space runs over line feeds the words differ."""
    normalization: Literal["nfc"] | None = None
    """nfc: text is brought to Unicode's NFC before words are counted and whenever it is encoded. Default: it is not."""
    min_word_count: Annotated[int, Field(ge=1, le=MAX_MIN_WORD_COUNT)] = 1
    """Words that occur less often in the whole corpus are left out of training: to save memory."""
    max_token_length: Annotated[int, Field(ge=3)] | None = None
    """Tokens stay shorter than this many bytes; as in `tokenizers`, for the same merges from the same number."""
    accept_fewer: bool = False
    """Take what the corpus gives where that is less than `vocab_size`; default: that is an error."""
    imported: Annotated[_Imported | None, Field(alias="import")] = None
    """An existing vocabulary instead of training: the folder of a Hugging Face tokenizer, or fairseq's three files.
    `vocab_size` must be its size. Relative paths are looked up beside the page, then in the working directory."""

    @property
    def fixed_entries(self) -> int:
        """Entries that are there without any merge."""
        return MIN_VOCAB_SIZE + len(self.special_tokens)

    @field_validator("vocab_size")
    @classmethod
    def _room_for_bytes(cls, value: int) -> int:
        if value < MIN_VOCAB_SIZE:
            raise ValueError(f"expected at least {MIN_VOCAB_SIZE}: 4 special tokens, 256 bytes and <mask>")
        return value

    @field_validator("special_tokens")
    @classmethod
    def _cannot_be_learned(cls, value: list[str]) -> list[str]:
        from tokenizer.vocabulary import could_be_learned

        for token in value:
            if token in (*SPECIAL_TOKENS, MASK_TOKEN) or value.count(token) > 1:
                raise ValueError(f"{token!r} is there already: name each further token once")
            if not token or token != token.strip() or "\0" in token:
                raise ValueError(f"{token!r}: expected a name without white space around it, such as [ENT] or <url>")
            if could_be_learned(token):
                raise ValueError(
                    f"{token!r} could be learned from the text: expected a name that mixes letters with other "
                    "characters, such as [ENT] or <url>"
                )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.vocab_size < self.fixed_entries:
            raise ValueError(
                f"vocab_size = {self.vocab_size}: expected at least {self.fixed_entries}, since special_tokens has "
                f"{len(self.special_tokens)} beside the {MIN_VOCAB_SIZE} that are always there"
            )
        if self.imported is not None and (training := sorted(_TRAINING & self.model_fields_set)):
            raise ValueError(f"import takes a vocabulary as it is; remove {', '.join(training)}")
        return self

    def recipe(self) -> dict[str, Any]:
        """As every section's, but for the paths of an import: what lies there is an input of the stage."""
        if self.imported is None:
            return super().recipe()
        return {"vocab_size": self.vocab_size, "import": True}


_TRAINING = {"special_tokens", "count_by", "normalization", "min_word_count", "max_token_length", "accept_fewer"}


PROCESS_BYTES = 160 * 2**20
COUNTING_BYTES = 512 * 2**20
MIN_COUNTING_BYTES = 16 * 2**20

Executor = Literal["local", "slurm", "ray"]


_SBATCH_OPTIONS = {
    **dict.fromkeys(("array", "chdir", "error", "export", "job-name", "nodes", "ntasks", "output"), "this program"),
    **{name: f"run.slurm.{name}" for name in ("account", "partition", "qos", "time")},
    "cpus-per-task": "run.slurm.cpus_per_task",
    "mem": "run.slurm.memory_gb",
}


_Word = Annotated[str, Field(coerce_numbers_to_str=True)]


class Slurm(Section):
    """What each task of the job asks of Slurm, for run.executor slurm."""

    partition: str | None = None
    """Default: the cluster's."""
    time: _Word = "24:00:00"
    """Time limit of a task, as sbatch takes it: 60 are minutes."""
    cpus_per_task: PositiveInt = 1
    """Cores of a task; it uses one, and more are a way to more memory where the cluster deals that out by cores."""
    memory_gb: PositiveFloat | None = None
    """Memory of a task, in GiB; default: the cluster's."""
    account: str | None = None
    qos: str | None = None
    max_jobs: PositiveInt | None = None
    """Tasks that run at once; default: as many as the cluster lets."""
    options: dict[str, _Word] = Field(default_factory=dict)
    """Further options of sbatch by their long names, such as {constraint: icelake, exclusive: ""}."""

    @field_validator("options")
    @classmethod
    def _leaves_ours_alone(cls, value: dict[str, str]) -> dict[str, str]:
        if owned := sorted(value.keys() & _SBATCH_OPTIONS.keys()):
            raise ValueError("; ".join(f"{name} is set by {_SBATCH_OPTIONS[name]}" for name in owned))
        return value


@dataclass(frozen=True)
class Processing:
    """Who works on the parts of a corpus; no byte of what is made depends on it."""

    workers: int
    """Processes at once on this machine, or in the Ray cluster."""
    memory_gb: float | None = None
    """Memory for counting words, over all workers of this machine; None: `COUNTING_BYTES` for each of them."""
    executor: Executor = "local"
    slurm: Slurm = field(default_factory=Slurm)

    @property
    def counting_bytes(self) -> int:
        """Memory for the counts of one process: its share of `memory_gb`, less what Python and its libraries take.

        Raises UserError if that is next to nothing.
        """
        processes = 1 if self.executor == "slurm" else self.workers  # Slurm gives each task memory of its own
        key, total = "run.memory_gb", self.memory_gb
        if self.executor == "slurm" and self.slurm.memory_gb:
            key, total = "run.slurm.memory_gb", self.slurm.memory_gb
        if total is None:
            return COUNTING_BYTES
        own = PROCESS_BYTES * (processes + (processes > 1))
        if (share := int(total * 2**30 - own) // processes) < MIN_COUNTING_BYTES:
            least = (own + MIN_COUNTING_BYTES * processes) / 2**30
            raise UserError(
                f"{key} = {total:g}: too little for run.workers = {processes}, which take {least:.2f} with the least "
                "that counting needs; raise it, or lower run.workers"
            )
        return share
