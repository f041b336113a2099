"""Exact and near duplicates: the first in the order of the corpus stays."""

import random
import resource
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from robustly.data_prep.cleaning import duplicates, near_duplicates
from robustly.data_prep.cleaning.config import NearDuplicatesConfig
from robustly.data_prep.cleaning.duplicates import (
    buckets_for,
    duplicates_in,
    find_duplicates,
    text_hash,
    write_hashes,
)
from robustly.data_prep.cleaning.near_duplicates import cluster, dropped_in, match, sign
from robustly.data_prep.cleaning.shingles import HASHING, WORD_SPLITTER, ngram_hashes

NEAR = NearDuplicatesConfig()


# -------------------------------------------------------------------------------------------- exact


def dropped_exactly(folder, parts, buckets):
    """(part, document) of every duplicate; of each part, every other document is one that a rule
    has dropped."""
    for number, texts in enumerate(parts):
        write_hashes(folder, number, b"".join(map(text_hash, texts)), np.arange(len(texts)) * 2)

    for bucket in range(buckets):
        find_duplicates(folder, len(parts), buckets, bucket)

    return [
        (n, place)
        for n in range(len(parts))
        for place in sorted(duplicates_in(folder, buckets, n).tolist())
    ]


@settings(max_examples=40)
@given(
    parts=st.lists(
        st.lists(st.text(st.sampled_from("ab"), max_size=3), max_size=12), min_size=1, max_size=4
    ),
    buckets=st.sampled_from([1, 2, 16]),
)
def test_all_but_the_first_of_equal_texts(tmp_path_factory, parts, buckets):
    seen, expected = set(), []
    for number, texts in enumerate(parts):
        for place, text in enumerate(texts):
            if text in seen:
                expected.append((number, place * 2))
            seen.add(text)

    assert dropped_exactly(tmp_path_factory.mktemp("exact"), parts, buckets) == expected


def test_a_corpus_may_have_more_parts_than_files_can_be_open(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path("/dev/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 20, limits[1]))
    try:
        found = dropped_exactly(tmp_path, [["a"]] * 100, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert found == [(number, 0) for number in range(1, 100)]


def test_all_128_bits_count(tmp_path):
    hashes = [
        high.to_bytes(8, "big") + low.to_bytes(8, "big")
        for high, low in ((5, 1), (5, 2), (6, 1), (5, 2))
    ]
    write_hashes(tmp_path, 0, b"".join(hashes), np.arange(4))
    find_duplicates(tmp_path, 1, 1, 0)
    assert duplicates_in(tmp_path, 1, 0).tolist() == [3]


def test_buckets_hold_some_millions_of_documents():
    assert [buckets_for(n) for n in (0, 1, 2**22, 2**22 + 1, 2**23, 2**23 + 1, 10**9)] == [
        1,
        1,
        1,
        2,
        2,
        4,
        256,
    ]


def test_hashes_are_of_the_text():
    assert text_hash("é") == bytes.fromhex(
        "4a99557e4033c3539de2eb65472017ca"
    )  # sha256 of its UTF-8 bytes
    assert duplicates.HASH.itemsize == 20


# --------------------------------------------------------------------------------------------- near


def some_text(seed, words=120):
    return " ".join(
        random.Random(seed).choices(
            [f"w{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(600)], k=words
        )
    )


def changed(text, seed):
    """A few words are others."""
    words, draw = text.split(), random.Random(seed)
    for place in draw.sample(range(len(words)), 2):
        words[place] = "other"
    return " ".join(words)


def planted():
    """Groups of documents; and which of them have a near one before them."""
    originals = [some_text(n) for n in range(30)]
    groups = [
        [
            originals[0],
            originals[1],
            changed(originals[0], 1),
            "too short",
            originals[2].upper() + "!",
        ],
        [changed(originals[2], 2), *originals[3:20], "too short"],
        [],
        [*originals[20:], changed(originals[0], 3), changed(originals[25], 4)],
    ]
    return groups, [[2], [0], [], [10, 11]]


def dropped_nearly(folder, groups, near=NEAR):
    for number, texts in enumerate(groups):
        sign(iter(texts), folder, near, number)
    for bucket in range(near.num_buckets):
        match(folder, near, bucket)
    cluster(folder, near, len(groups))
    return [dropped_in(folder, number).tolist() for number in range(len(groups))]


def test_near_duplicates_are_found_and_innocents_stay(tmp_path, capfd):
    groups, expected = planted()
    assert dropped_nearly(tmp_path, groups) == expected
    assert "dup files" not in capfd.readouterr().err


def test_the_clusters_are_those_of_datatroves_pipeline(tmp_path):
    """Its four steps on all documents at once; it keeps one of each cluster, too, if another than
    the first."""
    groups, expected = planted()
    documents = [
        Document(text=text, id=str(n))
        for n, text in enumerate(text for group in groups for text in group)
    ]
    config = near_duplicates._config(NEAR)
    assert (config.n_grams, config.num_buckets, config.hashes_per_bucket, config.seed) == (
        5,
        14,
        8,
        1,
    )  # its defaults
    assert config.hash_config == HASHING
    MinhashDedupSignature(str(tmp_path / "a"), config, WORD_SPLITTER).run(iter(documents))

    for bucket in range(config.num_buckets):
        MinhashDedupBuckets(str(tmp_path / "a"), str(tmp_path / "b"), config=config).run(
            rank=bucket, world_size=14
        )

    MinhashDedupCluster(
        str(tmp_path / "b"), str(tmp_path / "c"), config, save_cluster_id=True
    ).run()
    kept = MinhashDedupFilter(str(tmp_path / "c")).run(iter(documents))
    assert len(list(kept)) == len(documents) - sum(map(len, expected))

    clusters = {}

    for place, number in np.fromfile(
        tmp_path / "c" / "000000.clusters", near_duplicates.MEMBER
    ).tolist():
        clusters.setdefault(number, []).append(place)

    theirs = sorted(
        place for places in clusters.values() for place in places if place != min(places)
    )
    starts = np.cumsum([0, *map(len, groups)])
    assert theirs == [
        start + place for start, places in zip(starts, expected, strict=False) for place in places
    ]


def test_the_same_signatures_in_pieces(tmp_path, monkeypatch):
    text = some_text(1, 5000)
    steps = [
        kind(str(tmp_path), near_duplicates._config(NEAR), WORD_SPLITTER)
        for kind in (MinhashDedupSignature, near_duplicates.ChunkedSignature)
    ]
    monkeypatch.setattr(near_duplicates, "AT_ONCE", 700)
    shingles = steps[0].get_shingles(text)
    assert shingles.shape == (4996, 1) and np.array_equal(shingles[:, 0], ngram_hashes(text, 5))
    assert steps[1].get_signature(shingles) == steps[0].get_signature(shingles)


def test_nothing_to_compare(tmp_path):
    assert dropped_nearly(tmp_path, [["one"], [], ["one"]]) == [[], [], []]


def test_parameters_are_passed_on(tmp_path):
    groups, _ = planted()
    first = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        strict = NearDuplicatesConfig(n_grams=2, num_buckets=2, hashes_per_bucket=64, seed=seed)
        assert dropped_nearly(folder, groups, strict) == [
            [],
            [18],
            [],
            [],
        ]  # only "too short", which comes twice
        assert sorted(path.name for path in (folder / "signatures").iterdir()) == [
            "bucket_000",
            "bucket_001",
        ]
        first.append((folder / "signatures" / "bucket_000" / "00000.minhash.sig").read_bytes())

    assert len(first[0]) == len(first[1]) == 5 * (64 * 8 + 4) and first[0] != first[1]
