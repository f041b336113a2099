"""Find near duplicates by MinHash (Broder 1997): datatrove's steps, on groups of partitions.

Signatures of each group's documents, pairs of equal ones bucket by bucket, clusters of the pairs.
Of a cluster, the first document in the order of the corpus stays; datatrove's own choice of the one
that stays is not used."""

import contextlib
import functools
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.logging import logger
from numpy.typing import NDArray

from robustly import npy
from robustly.data_prep.cleaning.config import NearDuplicatesConfig
from robustly.data_prep.cleaning.shingles import HASHING, WORD_SPLITTER

AT_ONCE = 2**14  # n-grams whose hashes are made at a time: 15 MB for each array of them
BUFFERED = 2**12  # signatures that are read at a time from each file
MEMBER = np.dtype([("document", "<u4"), ("cluster", "<u4")])


class ChunkedSignature(MinhashDedupSignature):
    """datatrove's step, in bounded memory for a document of any length."""

    def get_signature(self, shingles: NDArray[np.uint64]) -> list[list[int]]:
        """The least hash of each hash function over all n-grams, some of them at a time."""
        signatures = (
            np.array(super(ChunkedSignature, self).get_signature(shingles[at : at + AT_ONCE]))
            for at in range(0, len(shingles), AT_ONCE)
        )

        return [
            [int(value) for value in bucket] for bucket in functools.reduce(np.minimum, signatures)
        ]


def sign(texts: Iterable[str], folder: Path, near: NearDuplicatesConfig, group: int) -> None:
    """Write the signatures of a group's documents, in order; one with fewer words than an n-gram
    has none."""
    step = ChunkedSignature(str(folder / "signatures"), _config(near), WORD_SPLITTER)
    with _quiet():
        step.run((Document(text=text, id="") for text in texts), rank=group)


def match(folder: Path, near: NearDuplicatesConfig, bucket: int, _: Any = None) -> None:
    """Write the pairs of documents whose signatures are equal in a bucket."""
    step = MinhashDedupBuckets(
        str(folder / "signatures"),
        str(folder / "pairs"),
        config=_config(near),
        lines_to_buffer=BUFFERED,
    )
    with _quiet():
        step.run(rank=bucket, world_size=near.num_buckets)


def cluster(folder: Path, near: NearDuplicatesConfig, groups: int, *_: Any) -> None:
    """Write, for each group, its documents that are not the first of their cluster."""
    step = MinhashDedupCluster(
        str(folder / "pairs"),
        str(folder / "clusters"),
        _config(near),
        save_cluster_id=True,
        lines_to_buffer=BUFFERED,
    )
    with _quiet(), contextlib.redirect_stderr(io.StringIO()):  # a bar of its own
        step.run()

    newest = -1  # clusters are numbered in the order of their first documents

    for group in range(groups):
        path = folder / "clusters" / f"{group:06d}.clusters"
        pairs = np.fromfile(path, MEMBER) if path.exists() else np.empty(0, MEMBER)
        before = np.maximum.accumulate(
            np.concatenate([[newest], pairs["cluster"].astype(np.int64)])
        )
        npy.write(
            _dropped_file(folder, group),
            pairs["document"][pairs["cluster"] <= before[:-1]].astype(np.uint32),
        )
        newest = int(before[-1])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without datatrove's log, some lines a step: `process` shows the progress."""
    logger.disable("datatrove")
    try:
        yield
    finally:
        logger.enable("datatrove")


def dropped_in(folder: Path, group: int) -> NDArray[np.uint32]:
    """The documents of a group that are dropped, by their places among those that were signed."""
    return npy.read(_dropped_file(folder, group), np.uint32)


def _dropped_file(folder: Path, group: int) -> Path:
    return folder / f"near-{group:05d}.npy"


def _config(near: NearDuplicatesConfig) -> MinhashConfig:
    return MinhashConfig(
        n_grams=near.n_grams,
        num_buckets=near.num_buckets,
        hashes_per_bucket=near.hashes_per_bucket,
        seed=near.seed,
        hash_config=HASHING,
    )
