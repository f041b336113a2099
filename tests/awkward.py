"""Forty inputs that are legal and awkward, each with the documents that it holds.

Line ends, scripts, compressions, tables of foreign writers, rows that give no text, names of files.
All of it is made here."""

import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import zstandard

ENTITY, LINK = "[ENT]", "<url>"
"""Further special tokens of the tokenizer, which some of the texts hold."""
BAD_ROWS = 7
"""In all inputs together."""


@dataclass(frozen=True)
class Input:
    """A file or folder by its name, and the documents that are read from it, in order."""

    name: str
    write: Callable[[Path], object]
    documents: Sequence[str]


def write_all(folder: Path) -> list[str]:
    """Writes every input; returns the documents of all."""
    documents: list[str] = []
    for one in INPUTS:
        path = folder / one.name
        path.parent.mkdir(parents=True, exist_ok=True)
        one.write(path)
        documents += one.documents

    return documents


def write_saved(folder: Path) -> list[str]:
    """A dataset as `datasets` saves it; returns its documents."""
    from datasets import Dataset

    documents = [f"{text} Saved." for text in PROSE]
    Dataset.from_dict({"text": documents}).save_to_disk(folder)
    return documents


# ----------------------------------------------------------------------------------------- writers

PROSE = (
    "The ferry left at noon. Nobody had asked why it was late, and the crew did not say.",
    "A second text: it has two lines.\nThe other one ends here, without more ado!",
    "Costs rose by 3.5% in 2021 (see table 4); e.g. flour, oil, and sugar.",
)


def _raw(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _blank_lines(*documents: str, ends: str = "\n") -> bytes:
    """Documents with a blank line between them."""
    return (ends + ends).join(documents).encode() + ends.encode()


def _text(name: str, *documents: str) -> Input:
    return Input(name, _raw(_blank_lines(*documents)), documents)


def _rows(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _texts(documents: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": number, "text": text} for number, text in enumerate(documents)]


def _table(name: str, documents: Sequence[str | None], kind: Any) -> Input:
    """A parquet file whose texts are of a type of Arrow."""

    def write(path: Path) -> None:
        column = pyarrow.array(documents, pyarrow.string()).cast(kind)
        table = pyarrow.table({"id": list(range(len(documents))), "text": column})
        pyarrow.parquet.write_table(table, path)

    return Input(name, write, [text for text in documents if text is not None])


def _arrow(name: str, documents: Sequence[str], new: Callable[..., Any]) -> Input:
    def write(path: Path) -> None:
        table = pyarrow.table({"text": documents})
        with new(str(path), table.schema) as writer:
            writer.write_table(table)

    return Input(name, write, documents)


def _csv(documents: Sequence[str]) -> bytes:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ["id", "text"])
    writer.writeheader()
    writer.writerows(_texts(documents))
    return table.getvalue().encode()


def _long_window(content: bytes) -> bytes:
    """As `zstd --long=31` writes it: a window of 2 GB, of which the text takes little."""
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=31)
    stream = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return stream.compress(content) + stream.flush()


def _small_files(documents: Sequence[str]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        folder.mkdir()
        for number, text in enumerate(documents):
            (folder / f"{number:03}.txt").write_text(text + "\n", encoding="utf-8", newline="")

    return write


def _linked(content: bytes) -> Callable[[Path], object]:
    """A link to a file that is hidden, and so is read once."""

    def write(path: Path) -> None:
        aside = path.with_name(".aside.txt")
        aside.write_bytes(content)
        path.symlink_to(aside.name)

    return write


# ------------------------------------------------------------------------------------------ inputs

CODE = 'def area(width, height):\n    """Of a box."""\n\tif width < 0:\n        return None   # odd\n    return width * height'
CHINESE = "船在中午离开了港口。没有人问为什么晚点,船员也没有说。天气很好,海面平静。"
JAPANESE = "船は正午に港を出た。誰も遅れた理由を尋ねなかった。カタカナとひらがなと漢字。"
THAI = "เรือออกจากท่าตอนเที่ยง ไม่มีใครถามว่าทำไมจึงช้า ลูกเรือก็ไม่ได้บอก"
HINDI = "नाव दोपहर को निकली। किसी ने नहीं पूछा कि देर क्यों हुई। नाविकों ने भी कुछ नहीं बताया।"
TAMIL = "படகு நண்பகலில் புறப்பட்டது. ஏன் தாமதம் என்று யாரும் கேட்கவில்லை."
BURMESE = "သင်္ဘောသည် မွန်းတည့်ချိန်တွင် ထွက်ခွာခဲ့သည်။ ဘယ်သူမှ မမေးခဲ့ပါ။"
ARABIC = "غادرت العبّارة عند الظهر. \u200fلم يسأل أحد\u200e عن السبب، ولم يقل الطاقم شيئًا."
HEBREW = "הַמַּעְבֹּרֶת יָצְאָה בַּצָּהֳרַיִם. אִישׁ לֹא שָׁאַל מַדּוּעַ."
KOREAN = "배는 정오에 떠났다. 아무도 왜 늦었는지 묻지 않았다."

INPUTS = [
    # line ends and white space
    Input("line_ends/crlf.txt", _raw(_blank_lines(*PROSE, ends="\r\n").replace(b"lines.\n", b"lines.\r\n")),
          [text.replace("\n", "\r\n") + "\r" for text in PROSE]),
    Input("line_ends/mark.txt", _raw(b"\xef\xbb\xbf" + _blank_lines(*PROSE)), PROSE),
    Input("line_ends/no_end.txt", _raw(PROSE[0].encode()), PROSE[:1]),
    Input("line_ends/many_blank_lines.txt", _raw(b"\n \n\t\n\n" + _blank_lines(*PROSE).replace(b"\n\n", b"\n\n \x0b\n\x0c\n") + b"\n\n"), PROSE),
    _text("line_ends/unicode_ends.txt", "One line\u2028and not\u0085another\x0b,\x0c nor\x1c this.", "A paragraph\u2029goes on."),
    _text("line_ends/spaces.txt", "  indented\u00a0text with\u3000wide   spaces\t\tand tabs  ", "a" + " " * 70_000 + "b"),
    # scripts
    _text("scripts/chinese.txt", CHINESE, CHINESE[::-1]),
    _text("scripts/japanese.txt", JAPANESE),
    _text("scripts/thai.txt", THAI),
    _text("scripts/hindi.txt", HINDI),
    _text("scripts/tamil.txt", TAMIL),
    _text("scripts/burmese.txt", BURMESE),
    _text("scripts/arabic.txt", ARABIC),
    _text("scripts/hebrew.txt", HEBREW),
    _text("scripts/korean.txt", KOREAN, "".join(map(chr, (0x1112, 0x1161, 0x11AB, 0x1100, 0x1173, 0x11AF)))),
    _text("scripts/emoji.txt", "Fine 👩‍👩‍👧‍👦 family 🏳️‍🌈 and 👍🏽, ☎\ufe0e or ☎\ufe0f; 🇫🇷🇩🇪."),
    _text("scripts/marks.txt", "e\u0301te\u0301 is été, a\u0308\u0323 has two, \u0301 one stands alone.", "Zalgo " + "o" + "\u0336\u0322\u033c" * 400),
    _text("scripts/unassigned.txt", "Private \ue000, none \uffff\ufffe, last \U0010ffff, replaced \ufffd."),
    _text("scripts/controls.txt", "bell \x07, escape \x1b[31mred\x1b[0m, delete \x7f, \x01\x02.", "zero\u200bwidth\u200dand\ufeffmark"),
    # long and odd texts
    _text("odd/dna.txt", "GATTACACCGT" * 8_000),
    _text("odd/repeat.txt", "x" * 300_000),
    _text("odd/digits.txt", "3" * 20_000 + ".14159", "-" * 20_000),
    _text("odd/protein.txt", "MKVLAAGIVGLLLAQWERTYPSDFGHKLCNM" * 300, "CC(=O)OC1=CC=CC=C1C(=O)O"),
    _text("odd/code.txt", CODE.replace("\n\n", "\n"), "\\begin{equation} \\sum_{i=0}^{n} x_i^2 \\end{equation}"),
    _text("odd/special_names.txt", f"Ask {ENTITY} or{ENTITY}{ENTITY}, see {LINK}.", f"{LINK} first, last {ENTITY}", "Html <s>struck</s>, <mask>, <pad> and <unk>."),
    # rows
    Input("rows/bad.jsonl", _raw(_rows(*_texts(PROSE)) + b'{"text": "half \\ud800 of a pair"}\n{"text": "nul \\u0000"}\n{"text": null}\n{"content": "x"}\nnot json\n[1]\n' + _rows({"text": "pair 😀 written out"})),
          [*PROSE, "pair 😀 written out"]),
    Input("rows/escaped.jsonl", _raw(b'{"text": "pair \\ud83d\\ude00, tab \\t, \\u00e9, quote \\" \\/"}\r\n\r\n{"text": "second\\nline"}'),
          ['pair 😀, tab \t, é, quote " /', "second\nline"]),
    Input("rows/array.json", _raw(json.dumps(_texts(PROSE), indent=2).encode()), PROSE),
    Input("rows/lines.json.gz", lambda path: path.write_bytes(gzip.compress(_rows(*_texts(PROSE)))), PROSE),
    Input("rows/quoted.csv", _raw(_csv([*PROSE, 'He said "no", twice.\n\nThen left.'])), [*PROSE, 'He said "no", twice.\n\nThen left.']),
    _table("rows/strings.parquet", [*PROSE, None], pyarrow.string()),
    _table("rows/large.parquet", PROSE, pyarrow.large_string()),
    _table("rows/views.parquet", PROSE, pyarrow.string_view()),
    _table("rows/dictionary.parquet", [*PROSE, *PROSE], pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
    _arrow("rows/file.arrow", PROSE, pyarrow.ipc.new_file),
    _arrow("rows/stream.arrow", PROSE, pyarrow.ipc.new_stream),
    # compressions
    Input("packed/members.txt.gz", lambda path: path.write_bytes(b"".join(gzip.compress(_blank_lines(text) + b"\n") for text in PROSE)), PROSE),
    Input("packed/frames.txt.zst", lambda path: path.write_bytes(b"".join(zstandard.compress(_blank_lines(text) + b"\n") for text in PROSE)), PROSE),
    Input("packed/long_window.txt.zst", lambda path: path.write_bytes(_long_window(_blank_lines(*PROSE))), PROSE),
    Input("packed/prose.txt.xz", lambda path: path.write_bytes(lzma.compress(_blank_lines(*PROSE))), PROSE),
    # names of files
    _text("names/[brackets] (and) {braces}*/a b ü 船.txt", *PROSE),
    _text("names/UPPER.TXT", *PROSE),
    Input("names/linked.txt", _linked(_blank_lines(*PROSE)), PROSE),
    Input("names/many", _small_files([f"Small file {number} of many, {number * 7919} words." for number in range(200)]),
          [f"Small file {number} of many, {number * 7919} words." for number in range(200)]),
    Input("names/empty.txt", _raw(b""), []),
    Input("names/blank.txt", _raw(b" \n\n\t\r\n"), []),
]  # fmt: skip
