"""What files are that are no text of a corpus, by their names or their first bytes, and what to do
with them."""

import re
import shlex
from pathlib import Path

from robustly import UserError

HEAD = 2**20
"""Bytes at the start of a file that are looked at."""

# ------------------------------------------------------------------------------------------ by name

_WAYS = {
    "unpack it: `unzip FILE -d FOLDER`": ".zip",
    "unpack it: `tar xf FILE`": ".tar .tgz .tbz .tbz2 .txz .tzst",
    "unpack it: `7z x FILE`": ".7z .rar",
    "decompress it: `lz4 -d FILE`": ".lz4",
    "decompress it": ".z .br .lzma .lz .sz .snappy",
    "take the text out: `pdftotext FILE NAME.txt`": ".pdf .ps .djvu",
    "take the text out: `pandoc FILE -t plain -o NAME.txt`": (
        ".doc .docx .odt .rtf .epub .tex .rst .ipynb"
    ),
    "take the text out, for example with trafilatura": ".html .htm .xhtml .mht .warc .wet .wat",
    "take the text out (of a MediaWiki dump: `wikiextractor --json`)": ".xml .sgml .tei",
    "save the sheet as .csv": ".xls .xlsx .ods",
    "write its rows as .jsonl or .parquet": (
        ".db .sqlite .sqlite3 .sql .avro .orc .msgpack .h5 .hdf5 .yaml .yml"
    ),
    "it holds tokens, not text: give the text that it was made of": ".bin .idx .npy .npz .mds",
    "pickle runs code when it is read: write its rows as .jsonl": ".pkl .pickle .pt .pth",
    "Markdown: name a copy .txt, if its marks are to be learned": ".md .markdown .mdx",
    **{
        f"name it {name}": others
        for name, others in (
            (".jsonl", ".jsonlines .ldjson .jl"),
            (".parquet", ".pq .parq"),
            (".arrow", ".ipc .arrows"),
            (".tsv", ".tab"),
            (".zst, and the kind before it", ".zstd"),
            (".gz, and the kind before it", ".gzip"),
            (".bz2, and the kind before it", ".bz .bzip2"),
        )
    },
}
_WAY = {suffix: way for way, suffixes in _WAYS.items() for suffix in suffixes.split()}
_PLAIN = "if it is plain text, name it .txt (JSON lines: .jsonl)"

_BESIDE = re.compile(
    r"_[^.]*"  # marks of Spark and Hadoop: _SUCCESS, _metadata, _committed_123
    r"|(readme|licen[cs]e|notice|copying|citation|changelog|authors)(\.(md|rst|html|cff|bib|json))?"
    r"|(md5|sha\d*)sums?|checksums?|manifest|.*\.(md5|sha1|sha256|sha512|crc|asc|sig|aria2)"
    r"|thumbs\.db|desktop\.ini|dataset_(infos?|dict)\.json",
    re.IGNORECASE,
)
_CARD = re.compile(r"---\s*\n(?:(?!---).*\n)*?(?:configs|dataset_info):")


def way_round(suffix: str) -> str:
    """What to do with files of this suffix, which no format reads."""
    return _WAY.get(suffix, _PLAIN)


def lies_beside(name: str) -> bool:
    """Whether a file by this name commonly lies beside data and is none."""
    return bool(_BESIDE.fullmatch(name))


def is_hub_folder(folder: Path) -> bool:
    """Whether a folder is a dataset of the Hub: its card says what its files are."""
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as card:
            return bool(_CARD.match(card.read(HEAD)))
    except OSError:
        return False


# --------------------------------------------------------------------------------------- by content

_SIGNATURES = {
    rb"\x1f\x8b": "gzip (.gz)",
    rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18": "Zstandard (.zst)",
    rb"\xfd7zXZ\0": "xz (.xz)",
    rb"BZh[1-9]1AY&SY": "bzip2 (.bz2)",
    rb"\x04\x22\x4d\x18": "LZ4 (.lz4)",
    rb"PK\x03\x04": "a ZIP archive (.zip)",
    rb"7z\xbc\xaf\x27\x1c": "a 7-Zip archive (.7z)",
    rb"Rar!\x1a\x07": "a RAR archive (.rar)",
    rb".{257}ustar": "a tar archive (.tar)",
    rb"PAR1.{,64}?[\0-\x08]": "Parquet (.parquet)",
    rb"ARROW1\0|\xff\xff\xff\xff": "Arrow (.arrow or .feather)",
    rb"FEA1.{,64}?[\0-\x08]": "Feather of version 1: write it anew as Parquet, pandas reads it",
    rb"PARE": "encrypted Parquet: write it anew without encryption",
    rb"%PDF-": "PDF (.pdf)",
    rb"SQLite format 3\0": "an SQLite database (.sqlite)",
    rb"\x89HDF\r\n": "HDF5 (.h5)",
    rb"\x93NUMPY": "an array of numpy (.npy)",
    rb"version https://git-lfs": "a pointer of Git LFS: `git lfs pull` fetches the file",
}
_KINDS = [(re.compile(start, re.DOTALL), kind) for start, kind in _SIGNATURES.items()]
_ANY_KIND = re.compile(b"|".join(b"(?:%b)" % start for start in _SIGNATURES), re.DOTALL)
_MARKS = {  # the longer ones first: one begins with another
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def kind_of(head: bytes) -> str | None:
    """What the first bytes say of a file; None: nothing but that it may be text."""
    if not _ANY_KIND.match(head):  # of 100,000 small files, each is asked
        return None
    return next(kind for start, kind in _KINDS if start.match(head))


def as_named(kind: str) -> str:
    """A kind of file that its name does not tell, and what to do."""
    return f"{kind}: name it what it is" if kind.endswith(")") else kind


def encoding_of(head: bytes) -> str | None:
    """UTF-16 or UTF-32 by its mark, or, with the order of its bytes, by the NULs of the first 512;
    None for any other encoding."""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name

    start = head[: min(len(head), 512) // 4 * 4]
    if b"\0" not in start:
        return None

    nul = [start[place::4].count(0) * 4 / (len(start) or 1) for place in range(4)]
    match [share > 0.4 for share in nul]:  # of each byte of four
        case [False, True, True, True] if not nul[0]:
            return "UTF-32LE"
        case [True, True, True, False] if not nul[3]:
            return "UTF-32BE"

    for name, zeros, others in (
        ("UTF-16LE", nul[1::2], nul[::2]),
        ("UTF-16BE", nul[::2], nul[1::2]),
    ):
        if not any(others) and (min(zeros) > 0.4 or _reads_as(name, start)):
            return name

    return None


def _reads_as(encoding: str, start: bytes) -> bool:
    """Whether bytes with some NULs are text in an encoding, and none in UTF-8: another script than
    the Latin one, with its spaces and line ends."""
    if start.count(0) < 3:
        return False
    utf8 = start.replace(b"\0", b"").decode(errors="replace")
    return _is_text(start.decode(encoding, "replace")) and not _is_text(utf8)


def _is_text(text: str) -> bool:
    return all(letter.isprintable() or letter.isspace() for letter in text.replace("\ufffd", "\0"))


_SEEN = 2**16  # bytes in which binary data shows
_ENOUGH = 1024  # bytes that no text has, less of which may be one bad row


def is_binary(head: bytes) -> bool:
    """Whether the first bytes are those of no UTF-8 text at all, as of an image, or of text in an
    encoding of another script: nine of ten lines hold what no text does, together 3 bytes of 10."""
    start = head[:_SEEN]
    if b"\0" not in start and _is_utf8(start):
        return False

    lines = [line for line in start.split(b"\n") if line.strip()]
    bad = [line.count(0) + len(line) - len(line.decode(errors="ignore").encode()) for line in lines]
    of_bytes = sum(bad) >= max(_ENOUGH, 0.3 * len(start))
    return of_bytes and sum(map(bool, bad)) >= 0.9 * len(lines)


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def check_text_file(path: str, head: bytes) -> None:
    """Raises UserError if the first bytes of a text file (decompressed) are those of another kind
    of file, of text in UTF-16 or UTF-32, or of no UTF-8 at all."""
    if kind := kind_of(head):
        raise UserError(f"{path}: expected text by its name, found {as_named(kind)}")
    if encoding := encoding_of(head):
        raise UserError(
            f"{path}: text in {encoding}; expected UTF-8: convert it,"
            f" `iconv -f {encoding} -t UTF-8 {shlex.quote(Path(path).name)} > NEW`{_unpacked(path)}"
        )
    if is_binary(head):
        raise UserError(
            f"{path}: binary data, or text in another encoding than UTF-8: convert it, if you know"
            " which (`iconv -f WINDOWS-1251 -t UTF-8`, ...), or leave the file out"
        )


def check_line_ends(path: str, head: bytes) -> None:
    """Raises UserError if the lines at the start of a file end with carriage returns alone, as on
    Macs before 2001: it would be one line."""
    returns = head.count(b"\r") - head.count(b"\r\n") - head.endswith(b"\r")
    if returns > head.count(b"\n"):
        raise UserError(
            f"{path}: lines that end with a carriage return alone, as on old Macs; expected line"
            f" feeds: convert it, `tr '\\r' '\\n' < {shlex.quote(Path(path).name)} > NEW`"
            f"{_unpacked(path)}"
        )


def _unpacked(path: str) -> str:
    return (
        " (decompressed first)"
        if Path(path).suffix.lower() in (".gz", ".xz", ".zst", ".bz2")
        else ""
    )
