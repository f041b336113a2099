"""Large compressed files are cut: the documents are those of the plain file, whatever it is
compressed by, on any executor, and no more of a file is decompressed than is needed."""

import bz2
import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from robustly import UserError
from robustly.corpus import compressed
from robustly.corpus import partitions as partitioning
from robustly.corpus.compressed import Entry, Text, entries, entry_for, text_file
from robustly.corpus.config import CorpusConfig, Processing
from robustly.corpus.documents import documents
from robustly.corpus.executors import process
from robustly.corpus.feed import Feed
from robustly.corpus.partitions import partitions

Corpus = Callable[..., CorpusConfig]
PROSE = [f"Story {n} begins.\nIt has {n * n} words, " + f"{n} " * (n % 40) for n in range(400)]
DENSE = [hashlib.sha512(f"{n}".encode()).hexdigest() for n in range(200)]
"""Text that does not grow to more than is expected."""
PART = 1500
"""Bytes of a partition in these tests."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitioning, "PARTITION_BYTES", PART)
    monkeypatch.setattr(compressed, "BEHIND", 64)
    monkeypatch.setattr("robustly.corpus.feed.BEHIND", 64)
    monkeypatch.setattr(compressed, "COARSE", 4000)
    monkeypatch.setattr(compressed, "_CHUNK", 100)
    monkeypatch.setattr(compressed, "_SKIPPED", 777)


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def bgzip(data: bytes) -> bytes:
    """As bgzip writes it (the SAM specification, section 4.1)."""
    out = []
    for piece in [*pieces(data, 1000), b""]:
        raw = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = raw.compress(piece) + raw.flush()
        size = 18 + len(body) + 8 - 1
        head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + size.to_bytes(2, "little")
        sums = zlib.crc32(piece).to_bytes(4, "little") + len(piece).to_bytes(4, "little")
        out.append(head + body + sums)
    return b"".join(out)


def xz_in_blocks(data: bytes) -> bytes:
    """Streams of several blocks, as `xz --block-size` writes them: of the blocks of others."""
    streams = []
    for part in pieces(data, 7000):
        blocks, sizes = b"", []
        for piece in pieces(part, 1000):
            whole = lzma.compress(piece, check=lzma.CHECK_CRC64)
            index_size = (int.from_bytes(whole[-8:-4], "little") + 1) * 4
            numbers = compressed._numbers(whole[-12 - index_size + 1 : -16])
            assert next(numbers) == 1
            sizes.append((next(numbers), next(numbers)))
            blocks += whole[12 : -12 - index_size]

        number = compressed._number
        index = b"\0" + number(len(sizes)) + b"".join(number(a) + number(b) for a, b in sizes)
        index += bytes(-len(index) % 4)
        index += zlib.crc32(index).to_bytes(4, "little")
        ending = (len(index) // 4 - 1).to_bytes(4, "little") + whole[6:8]
        footer = zlib.crc32(ending).to_bytes(4, "little") + ending + b"YZ"
        streams.append(whole[:12] + blocks + index + footer)

    assert lzma.decompress(b"".join(streams)) == data  # liblzma takes it for a file
    return bytes(8).join(streams)  # with padding


def zst_of_unknown_size(data: bytes) -> bytes:
    squeezed = zstd.ZstdCompressor()
    return squeezed.compress(data) + squeezed.flush()


IN_PIECES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "zstd frames": (".zst", lambda data: b"".join(map(zstd.compress, pieces(data, 1000)))),
    "xz blocks": (".xz", xz_in_blocks),
    "bgzip": (".gz", bgzip),
}
STREAMS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "zstd": (".zst", zst_of_unknown_size),
    "zstd, one frame": (".zst", zstd.compress),
    "xz": (".xz", lzma.compress),
    "gzip": (".gz", gzip.compress),
    "gzip members": (".gz", lambda data: b"".join(map(gzip.compress, pieces(data, 1000)))),
    "bzip2": (".bz2", bz2.compress),
}
FORMATS: dict[str, tuple[str, Callable[[list[str]], str], str]] = {
    "runs": (".txt", "\n\n".join, "blank_line"),
    "lines": (".txt", lambda texts: "".join(text.replace("\n", " ") + "\n" for text in texts), "line"),
    "jsonl": (
        ".jsonl", lambda texts: "".join(json.dumps({"text": each}) + "\n" for each in texts), "line",
    ),
    "json": (".json", lambda texts: json.dumps([{"text": each} for each in texts], indent=1), "line"),
    "csv": (
        ".csv", lambda texts: "text\n" + "".join(f'"{each}"\n' for each in texts), "line",
    ),
}  # fmt: skip


def read(corpus: CorpusConfig) -> list[str]:
    return [text for part in partitions(corpus) for text in documents(part, corpus, [])]


def keep(corpus: CorpusConfig, folder: Path, number: int, part: Any) -> None:
    texts = list(documents(part, corpus, []))
    (folder / f"{number:05d}.json").write_text(json.dumps(texts))


class Keep:
    """The work on a part, for any process."""

    def __init__(self, corpus: CorpusConfig, folder: Path):
        self.corpus, self.folder = corpus, folder

    def __call__(self, number: int, part: Any) -> None:
        keep(self.corpus, self.folder, number, part)


def processed(corpus: CorpusConfig, folder: Path, workers: int = 1) -> list[str]:
    (folder / "made").mkdir(parents=True, exist_ok=True)
    cut = partitions(corpus)
    process(Keep(corpus, folder / "made"), cut, folder / "step", Processing(workers), "reading")
    files = sorted((folder / "made").iterdir())
    assert len(files) == len(cut)
    return [text for file in files for text in json.loads(file.read_text())]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", [*IN_PIECES, *STREAMS])
def test_the_documents_are_those_of_the_plain_file(
    corpus_of: Corpus, tmp_path: Path, format: str, kind: str
) -> None:
    suffix, write, how = FORMATS[format]
    compression, compress = {**IN_PIECES, **STREAMS}[kind]
    data = write(PROSE).encode()
    (tmp_path / f"plain{suffix}").write_bytes(data)
    (tmp_path / f"packed{suffix}{compression}").write_bytes(compress(data))
    plain = corpus_of(tmp_path / f"plain{suffix}", documents=how)
    packed = corpus_of(tmp_path / f"packed{suffix}{compression}", documents=how)
    expected = read(plain)
    assert len(expected) == 400 and len(partitions(packed)) > 8
    assert processed(packed, tmp_path / "work") == expected
    assert not (tmp_path / "work/step/texts").exists()
    if kind in IN_PIECES:
        assert len(partitions(packed)) == len(partitions(plain))
        assert read(packed) == expected


@pytest.mark.processes
def test_workers_encode_while_one_process_decompresses(corpus_of: Corpus, tmp_path: Path) -> None:
    data = "\n\n".join(PROSE).encode()
    (tmp_path / "a.txt.zst").write_bytes(zst_of_unknown_size(data))
    corpus = corpus_of(tmp_path / "a.txt.zst", documents="blank_line")
    assert processed(corpus, tmp_path / "work", workers=2) == PROSE


def test_a_stream_is_decompressed_once_and_few_segments_lie_on_the_disk(
    corpus_of: Corpus, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt.gz").write_bytes(gzip.compress("\n\n".join(DENSE).encode()))
    corpus = corpus_of(tmp_path, documents="blank_line")
    cut = partitions(corpus)
    texts, most, done = tmp_path / "texts", 0, set()
    opened = 0
    enter = Text._enter

    def entered(self: Text, entry: Entry) -> Any:
        nonlocal opened
        opened += 1
        return enter(self, entry)

    found = []
    with Feed(cut, texts) as feed, mock.patch.object(Text, "_enter", entered):
        for number in feed.ready(range(len(cut)), done.__contains__):
            found += documents(feed.parts[number], corpus, [])
            done.add(number)
            most = max(most, len(list(texts.iterdir())))

    assert found == [*DENSE, *DENSE]
    assert opened == 2  # once for each file
    assert most <= 8
    assert not texts.exists()


def test_after_a_kill_only_what_is_left_is_written(corpus_of: Corpus, tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\n\n".join(PROSE).encode()))
    corpus = corpus_of(tmp_path / "a.txt.gz", documents="blank_line")
    cut = partitions(corpus)
    with Feed(cut, tmp_path / "texts") as feed:
        (number,) = feed.ready([5], lambda _: False)
        there = {path.name for path in (tmp_path / "texts").iterdir()}
        assert there == {f"00000-{number:06d}" for number in (0, 4, 5, 6, 7)} or there == {
            f"00000-{number:06d}" for number in (0, 4, 5, 6)
        }
        assert list(documents(feed.parts[number], corpus, [])) == list(
            documents(cut[5], corpus, [])
        )


def test_a_document_longer_than_the_segments_ahead_is_read_to_its_end(
    corpus_of: Corpus, tmp_path: Path
) -> None:
    texts = ["a " * 300, "b " * 9000, "c " * 400]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\n\n".join(texts).encode(), 0))
    corpus = corpus_of(tmp_path / "a.txt.gz", documents="blank_line")
    assert processed(corpus, tmp_path / "work") == texts


def test_text_beyond_what_was_expected_is_in_the_last_part(
    corpus_of: Corpus, tmp_path: Path
) -> None:
    texts = [f"{n} " + "the same again " * 30 for n in range(600)]
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress("\n\n".join(texts).encode()))
    corpus = corpus_of(tmp_path / "a.txt.xz", documents="blank_line")
    assert 1 < len(partitions(corpus)) < 60
    assert processed(corpus, tmp_path / "work") == texts


@pytest.mark.parametrize("kind", ["xz blocks", "zstd frames", "bgzip", "gzip", "zstd"])
def test_damage_is_named_wherever_it_is(corpus_of: Corpus, tmp_path: Path, kind: str) -> None:
    compression, compress = {**IN_PIECES, **STREAMS}[kind]
    data = bytearray(compress("\n\n".join(PROSE).encode()))
    for at in range(2 * len(data) // 3, 2 * len(data) // 3 + 40):
        data[at] ^= 0x5A
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{path.name}: cannot be read"):
        processed(corpus_of(path, documents="blank_line"), tmp_path / "work")


# ------------------------------------------------------------------------------------- any byte


@given(
    data=st.binary(min_size=1, max_size=5000),
    places=st.lists(st.tuples(st.integers(0, 5200), st.integers(0, 900)), max_size=8),
    kind=st.sampled_from([*IN_PIECES, *STREAMS]),
)
def test_any_bytes_are_those_of_the_text(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    places: list[tuple[int, int]],
    kind: str,
) -> None:
    compression, compress = {**IN_PIECES, **STREAMS}[kind]
    path = tmp_path_factory.mktemp("text") / f"a.txt{compression}"
    path.write_bytes(compress(data))
    found = entries(path, compression)
    if kind in IN_PIECES:
        assert found[-1].text == len(data) and found[0].text == 0
    for place, count in places:
        way = text_file(str(path), entry_for(found, place)) if found else str(path)
        with Text(way, compression) as text:
            text.seek(place)
            seen = b""
            while len(seen) < count and (more := text.read(count - len(seen))):
                seen += more
        assert seen == data[place : place + count]
