"""How the patterns of the tokenizer fit the scripts of the world, and what cutting by ICU changes.

    python benchmarks/scripts.py FILE ENGLISH      # the project's figures: multilingual.jsonl.xz and
    dev_wikipedia_en.txt.xz

The first file holds JSON lines with keys `lang` and `text`. Of each language a vocabulary is trained and
measured on the same text, by either pattern: as good as so many entries can be for it. "At best"
is the number of words that the pattern cuts for one between white space: no vocabulary gives fewer
tokens. Tokens a word say nothing where no spaces stand between words. Of the second file, plain text,
the first 12 million characters are trained on and the next 2 million measured. The tables are printed and
written to benchmarks/results/scripts-<date>.md."""

import json
import os
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path

import numpy as np
from beside import main, plain

from robustly.tokenizer.merges import train_merges
from robustly.tokenizer.segmenters import segmenter, split_finer
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import lay_out
from robustly.tokenizer.words import PATTERNS, PatternName, split_words

ENTRIES = 1000
KNOWN, NEW = 12_000_000, 2_000_000  # characters of English
LANGUAGES = [
    ("Latin", "English", "eng"),
    ("Cyrillic", "Russian", "rus"),
    ("Greek", "Greek, polytonic", "ell_polytonic"),
    ("Hebrew", "Yiddish", "ydd"),
    ("Arabic", "Persian", "pes_1"),
    ("Devanagari", "Hindi", "hin"),
    ("Bengali", "Bengali", "ben"),
    ("Gujarati", "Gujarati", "guj"),
    ("Tamil", "Tamil", "tam"),
    ("Kannada", "Kannada", "kan"),
    ("Malayalam", "Malayalam", "mal"),
    ("Thaana", "Dhivehi", "div"),
    ("Hangul", "Korean", "kor"),
    ("Burmese", "Burmese", "mya"),
    ("Khmer", "Khmer", "khm"),
    ("Lao", "Lao", "lao"),
    ("Thai", "Thai", "tha"),
    ("Tibetan", "Tibetan", "bod"),
    ("Ethiopic", "Amharic", "amh"),
    ("Han", "Chinese", "cmn_hans"),
    ("Kana and Han", "Japanese", "jpn"),
]
UNSPACED = {"khm", "lao", "tha", "bod", "amh", "cmn_hans", "jpn"}
ICU = {"mya", "khm", "lao", "tha", "cmn_hans", "jpn"}
CUT = [
    ("Chinese, Wikipedia", "zh", 8000),
    *((name, code, ENTRIES) for _, name, code in LANGUAGES if code in ICU),
]


def trained(
    text: str, entries: int, pattern: PatternName, split: Callable[[str], list[str]]
) -> tuple[Tokenizer, int]:
    """The tokenizer, and how many different words it was trained on."""
    words = Counter(split(text))
    merges = train_merges(words.items(), entries - 261, 2).merges
    return Tokenizer(lay_out(merges, pattern=pattern)), len(words)


def fit(script: str, name: str, code: str, text: str) -> str:
    words, size = len(text.split()), len(text.encode())
    best, entries, per_word, per_token = [], [], [], []
    for pattern in PATTERNS:
        tokenizer, _ = trained(text, ENTRIES, pattern, partial(split_words, pattern=pattern))
        tokens = len(tokenizer.encode_documents([text])[0])
        entries.append(f"{tokenizer.vocab_size:,}")
        best.append(len([word for word in split_words(text, pattern) if word.strip()]) / words)
        per_word.append(tokens / words)
        per_token.append(size / tokens)

    shown = best, per_word, per_token
    cells = [[f"{figure:.2f}" for figure in figures] for figures in shown]
    if code in UNSPACED:
        cells[0] = cells[1] = ["–", "–"]

    ratios = " | ".join(" → ".join(pair) for pair in (entries, *cells))
    return f"| {script} ({name}) | {size / 1000:.0f} | {ratios} |"


def cutting(name: str, entries: int, text: str) -> str:
    segment = segmenter("icu", "the benchmark")
    split: Callable[[str], list[str]] = partial(split_words, pattern="unicode")
    finer = partial(split_finer, pattern="unicode", segment=segment)
    ends = np.fromiter(accumulate(len(word.encode()) for word in finer(text)), np.int64)
    cells = []
    for way in (split, finer):
        tokenizer, distinct = trained(text, entries, "unicode", way)
        ids = tokenizer.encode_documents([text])[0]
        offsets = tokenizer.byte_offsets(ids)
        first, last = (
            np.searchsorted(ends, offsets[:-1], "right"),
            np.searchsorted(ends, offsets[1:]),
        )
        cells.append((distinct, len(text.encode()) / len(ids), float(np.mean(first != last))))

    (distinct, size, both), (words, less, few) = cells
    return (
        f"| {name} | {len(text.encode()) / 1000:.0f} | {entries:,} | {distinct:,} → {words:,} |"
        f" {size:.2f} → {less:.2f} | {both:.0%} → {few:.1%} |"
    )


def on_new_text(text: str) -> str:
    known, new = text[:KNOWN], text[KNOWN : KNOWN + NEW]
    rows = []
    for pattern in PATTERNS:
        tokenizer, distinct = trained(known, 16_000, pattern, partial(split_words, pattern=pattern))
        tokens = len(tokenizer.encode_documents([new])[0])
        rows.append(
            f"| {pattern} | {distinct:,} | {tokens / len(new.split()):.3f} |"
            f" {len(new.encode()) / tokens:.3f} |"
        )

    return "\n".join(rows)


def measure(given: list[str], scratch: Path) -> str:
    file, english = plain(given, scratch)
    texts: dict[str, list[str]] = defaultdict(list)
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts[row["lang"]] += [part.strip() for part in row["text"].splitlines() if part.strip()]

    whole = {code: "\n".join(lines) for code, lines in texts.items()}
    rows = [fit(script, name, code, whole[code]) for script, name, code in LANGUAGES]
    cut = [cutting(name, entries, whole[code]) for name, code, entries in CUT]
    rest = on_new_text(Path(english).read_text(encoding="utf-8"))
    versions = ", ".join(f"{library} {version(library)}" for library in ("tiktoken", "icu4py"))

    return f"""# Scripts

{time.strftime("%Y-%m-%d")}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}.

From `tokenizer.pattern: gpt2` to `unicode`: up to {ENTRIES:,} entries (of pairs that occur twice at least), trained and
measured on the same text; KB of UTF-8.

| script | KB | entries | tokens a word at best | tokens a word | bytes a token |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

`tokenizer.segmenter: icu` with `tokenizer.pattern: unicode`, from without it to with it.

| language | KB | entries | different words counted | bytes a token | tokens of more than one word |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(cut)}

{Path(english).name}: 16,000 entries, on text that they were not trained on.

| pattern | different words counted | tokens a word | bytes a token |
| --- | --- | --- | --- |
{rest}
"""


if __name__ == "__main__":
    main(__doc__, {}, measure, "scripts")
