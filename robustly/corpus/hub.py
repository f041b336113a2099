"""Stream datasets of the Hugging Face Hub, and folders laid out like one, through `datasets`.

What a dataset holds is named by the commit of its repository. It is asked for once, and everything
is read at that commit, by however many processes and however long after. Rows come in batches, and
no data is kept on disk."""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustly import UserError, log
from robustly.corpus import saved_datasets
from robustly.corpus.config import SourceConfig
from robustly.corpus.formats.columns import Keys, check_columns, column_texts, top_columns
from robustly.corpus.formats.format import Text
from robustly.resources import check_memory

ROWS = 256  # of a batch
TIMEOUT = 10.0  # seconds that the Hub has to tell a commit

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}", re.IGNORECASE)
_ACCESS = (
    "for one that is private or gated, ask for access on its page and set HF_TOKEN, or use `hf auth"
    " login`"
)


@dataclass(frozen=True)
class Dataset:
    """One split of a dataset, as it was at a commit."""

    place: str
    """Its name on the Hub, or the absolute path of a folder."""
    subset: str | None
    split: str
    commit: str | None
    """None for a folder."""

    def __str__(self) -> str:
        subset = f", subset {self.subset}" if self.subset else ""
        return f"{self.place}{subset}, split {self.split}"


class Unreachable(UserError):
    """The Hub gave no answer."""


def folder_of(source: SourceConfig) -> Path | None:
    """The folder that `source.hub` names, looked up like any path; None if it is a name on the Hub.

    Raises UserError if it is neither, or a folder with a revision.
    """
    assert source.hub is not None
    candidates = source.hub.candidates
    folder = next((candidate.absolute() for candidate in candidates if candidate.is_dir()), None)
    if folder is None and not _NAME.fullmatch(source.hub):
        raise UserError(
            f"corpus.sources: hub: {source.hub}: no folder there (looked at"
            f" {', '.join(map(str, candidates))}), and not the name of a dataset on the Hub;"
            " expected owner/name, or a folder of data files"
        )
    if folder and source.revision:
        raise UserError(
            f"corpus.sources: hub: {source.hub}: revision = {source.revision}, but {folder} is a"
            " folder, which has no revisions; remove the key"
        )
    if folder and saved_datasets.is_saved(folder):
        raise UserError(
            f"corpus.sources: hub: {source.hub}: a folder that `save_to_disk` wrote; give it as"
            " `path`"
        )

    return folder


# ------------------------------------------------------------------------------------------ commits


# (name, revision) -> the commit by which this process hashed it
_hashed: dict[tuple[str, str | None], str] = {}


def dataset(source: SourceConfig) -> Dataset:
    """What `source` names, at the commit by which it was hashed, to be read now.

    Raises UserError as `folder_of` and `hashed` do. A commit that the config pins is looked for,
    too: the answer takes a moment, where `datasets` would try again and again before giving up."""
    if folder := folder_of(source):
        return Dataset(str(folder), source.subset, source.split, None)
    assert source.hub is not None
    commit = _hashed.get((source.hub, source.revision)) or _ask(source.hub, source.revision)
    return Dataset(source.hub, source.subset, source.split, _ask(source.hub, commit))


def hashed(source: SourceConfig, remembered: str | None) -> Dataset:
    """What `source` names, for hashing. A full commit in the config needs no network; any other
    revision is asked for.

    Where the Hub cannot be reached, it is at the commit that is `remembered` from an earlier time,
    with a warning. Raises UserError if there is none, or if the Hub has no such dataset or
    revision."""
    if folder := folder_of(source):
        return Dataset(str(folder), source.subset, source.split, None)

    name, revision = source.hub, source.revision
    assert name is not None
    if revision and _COMMIT.fullmatch(revision):
        commit = revision.lower()
    else:
        try:
            commit = _ask(name, revision)
        except Unreachable as error:
            if remembered is None:
                raise
            log.warn(f"{error}. Taken to be as before, at commit {remembered}")
            commit = remembered

    _hashed[name, revision] = commit
    return Dataset(name, source.subset, source.split, commit)


@functools.cache
def _ask(name: str, revision: str | None) -> str:
    """The commit that a revision (None: the main branch) stands for, asked for once in a process.

    Raises Unreachable without an answer, UserError if there is no such dataset or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"corpus.sources: hub: {name}"

    try:
        commit = HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT, expand=["sha"]).sha
    except RevisionNotFoundError:
        raise UserError(
            f"{where}: no revision {revision!r} there; expected a branch, a tag or a commit"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{where}: no folder, and no dataset on the Hub that you may read; check the name;"
            f" {_ACCESS}"
        ) from None
    except OfflineModeIsEnabled:
        raise Unreachable(
            f"{where}: no folder of that name, and HF_HUB_OFFLINE is set, so the Hub is not asked;"
            " unset it, or give a folder that holds a copy"
        ) from None
    except (HTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unreachable(
            f"{where}: no folder of that name, and the Hub cannot be reached: {reason}; check the"
            " network (HF_ENDPOINT names another server), or give a folder that holds a copy"
        ) from error

    if commit is None:
        raise Unreachable(f"{where}: the Hub did not say at which commit it is")

    return commit


# --------------------------------------------------------------------------------------------- rows


def shards(dataset: Dataset, keys: Keys) -> int:
    """How many files a dataset is stored in: it depends on the commit alone.

    Raises UserError if it cannot be opened, has no such subset, split or columns.
    """
    count: int = _open(dataset, keys).num_shards
    return count


def texts(dataset: Dataset, shard: int, of: int, keys: Keys) -> Iterator[Text]:
    """The texts at `keys` of one shard `of` so many, by the numbers of their rows.

    Raises UserError as `batches` does.
    """
    row = 0
    for batch in batches(dataset, shard, of, keys):
        with readable(dataset):
            found = list(column_texts(batch, keys, row))
        yield from found
        row += batch.num_rows


def batches(dataset: Dataset, shard: int, of: int, keys: Keys) -> Iterator[Any]:
    """The columns of `keys` of one shard `of` so many, as pyarrow record batches of at most ROWS.

    Raises UserError as `shards` does, or if the rows cannot be read.
    """
    whole = _open(dataset, keys)
    if whole.num_shards != of:
        raise UserError(
            f"{dataset}: it had {of} shards and now has {whole.num_shards}; changed while it was"
            " read?"
        )

    tables = whole.shard(num_shards=of, index=shard).with_format("arrow").iter(batch_size=ROWS)

    while True:
        with readable(dataset):
            table = next(tables, None)

        if table is None:
            return

        check_columns(dataset, keys, table.schema)
        yield from table.combine_chunks().to_batches()


@functools.lru_cache(maxsize=8)
def _open(dataset: Dataset, keys: Keys) -> Any:
    """The datasets.IterableDataset, opened once in a process, of the columns of `keys` alone where
    they are known to be there."""
    builder, whole = opened(dataset)
    if whole.features is None:  # a kind of file that does not say; seen when it is read
        return whole

    with readable(dataset):
        from datasets.packaged_modules.parquet.parquet import Parquet

        check_columns(dataset, keys, whole.features.arrow_schema)
        columns = top_columns(keys, whole.features.arrow_schema)
        if isinstance(builder, Parquet):  # then the other columns are not even fetched
            builder.config.columns, builder.config.batch_size = columns, ROWS
            return builder.as_streaming_dataset(dataset.split)

        return whole.select_columns(columns)


def opened(dataset: Dataset) -> tuple[Any, Any]:
    """The datasets.DatasetBuilder and the datasets.IterableDataset of a split, streamed at the
    dataset's commit.

    Raises UserError if it cannot be opened, or has no such subset or split.
    """
    with readable(dataset):
        import datasets

        datasets.disable_progress_bars()
        builder = datasets.load_dataset_builder(
            dataset.place, dataset.subset, revision=dataset.commit
        )
        # `datasets` falls back on what it finds in its cache
        if dataset.commit and builder.hash != dataset.commit:
            raise UserError(
                f"{dataset}: commit {dataset.commit} cannot be reached; check the network"
            )

        # JSON: a text beside a number would come with its quotes on
        if hasattr(builder.config, "on_mixed_types"):
            builder.config.on_mixed_types = None

        splits = builder.as_streaming_dataset()
        if dataset.split not in splits:
            raise UserError(
                f"corpus.sources: {dataset.place}: no split {dataset.split!r}; its splits:"
                f" {', '.join(splits)}"
            )

        return builder, splits[dataset.split]


@contextmanager
def readable(dataset: Dataset) -> Iterator[None]:
    """Turn what `datasets` raises into UserError.

    It is of many kinds: the readers of ten kinds of file, pyarrow, pandas, fsspec and two network
    libraries raise their own."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        check_memory(error, dataset)
        message = str(error).partition("\nExample of usage")[0].strip().replace("\n", " ")
        remedy = ""
        if "BuilderConfig" in message or "Config name is missing" in message:
            remedy = "; `subset` names one of these"
        elif dataset.commit:
            remedy = f"; check the network; {_ACCESS}"

        raise UserError(
            f"corpus.sources: {dataset}: cannot be read: {message or type(error).__name__}{remedy}"
        ) from error
