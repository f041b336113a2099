"""What a tokenizer's folder says of itself."""

import io
import itertools
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_tokenizers import trained_elsewhere
from tokenizers import Tokenizer

from robustly import UserError, log
from robustly.corpus.texts import NamedTexts
from robustly.description import Description, show_listing
from robustly.inspection.describe import describe_folder
from robustly.inspection.folders import folder_kind
from robustly.inspection.tokenizer import SAMPLES, compare, describe_on
from robustly.manifest import Stage
from robustly.tokenizer.fit import excerpt
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary

describe = partial(describe_folder, kind="tokenizer")


def test_a_trained_tokenizer(trained: Path) -> None:
    found = describe(trained)
    assert json.loads(json.dumps(found.json(), allow_nan=False))["kind"] == "tokenizer"
    figures = found.figures
    counts = json.loads((trained / "manifest.json").read_text())["counts"]
    assert (figures["entries"], figures["merges"]) == (1000, 739)
    assert (
        figures["bytes_per_token"] == counts["bytes_per_token"]
        and figures["single_byte_entries"] == 256
    )
    listings = {listing.title: listing.rows for listing in found.examples}
    assert [(row["token"], row["id"]) for row in listings["special tokens"]] == [
        ("<s>", 0), ("<pad>", 1), ("</s>", 2), ("<unk>", 3), ("<mask>", 999),
    ]  # fmt: skip
    lines = (trained / "merges.txt").read_text().splitlines()[1:]
    assert [f"{row['left']} {row['right']}" for row in listings["first merges"]] == lines[:8]
    assert [f"{row['left']} {row['right']}" for row in listings["last merges"]] == lines[-8:]
    vocabulary = json.loads((trained / "vocab.json").read_text())
    # a symbol stands for a byte
    assert listings["longest tokens"][0]["bytes"] == max(
        len(token) for token in vocabulary if token[0] != "<"
    )
    reference = Tokenizer.from_file(str(trained / "tokenizer.json"))
    for text, row in zip(SAMPLES, listings["how sentences are cut"], strict=True):
        ids = reference.encode(text, add_special_tokens=False).ids
        assert row["tokens"] == len(ids) == row["cut"].count("|") + 1

    assert listings["how sentences are cut"][0]["cut"].replace("|", "") == SAMPLES[0]


def test_a_vocabulary_without_merges(tmp_path: Path) -> None:
    Stage(tmp_path, "tokenizer", {}, {}).finish(save_vocabulary(lay_out([]), tmp_path), {})
    listings = {listing.title: listing.rows for listing in describe(tmp_path).examples}
    assert not listings["first merges"] and not listings["last merges"]
    assert all(row["single_bytes"] == 1 for row in listings["how sentences are cut"])


def test_begun_and_damaged_folders(tmp_path: Path) -> None:
    made = Stage(tmp_path, "tokenizer", {}, {})
    with made.begin():
        assert "not finished" in describe(tmp_path).summary

    made.finish(save_vocabulary(lay_out([]), tmp_path), {})
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(UserError, match=r"merges\.txt: 0 bytes, expected"):
        describe(tmp_path)


# --------------------------------------------------------------------------------- on text, and two


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory, prose: list[str]) -> Path:
    return trained_elsewhere(tmp_path_factory.mktemp("english"), prose, 600)


@pytest.fixture(scope="module")
def finnish(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_elsewhere(tmp_path_factory.mktemp("finnish"), [FINNISH], 320)


FINNISH = (
    "Oma tupa, oma lupa. Ei oppi ojaan kaada. Vahinko ei tule kello kaulassa, eikä yö päivättä. "
)
ROWS = [
    ("sv", "Borta bra men hemma bäst.\n\nDet är aldrig för sent att ge upp.\n"),
    ("fi", FINNISH),
    ("zh", "千里之行，始於足下。"),
    ("fi", "Hätä ei lue lakia."),
]
TEXTS = NamedTexts("text", "lang", ROWS, by_name=True)


def rows_of(found: Description, title: str) -> dict[str, dict[str, Any]]:
    json.dumps(found.json(), allow_nan=False)
    (listing,) = [listing for listing in found.examples if listing.title == title]
    return {row["name"]: dict(row) for row in listing.rows}


def tokens_of(folder: Path, text: str) -> list[str]:
    return (
        Tokenizer.from_file(str(folder / "tokenizer.json"))
        .encode(text, add_special_tokens=False)
        .tokens
    )


def test_on_text(english: Path) -> None:
    found = describe_on(english, TEXTS)
    sizes, ratios = (
        rows_of(found, "text, by lang"),
        rows_of(found, "what a token stands for, by lang"),
    )
    assert list(sizes) == list(ratios) == ["fi", "sv", "zh", "total"]
    used = set()

    for name in sizes:
        texts = [text for own, text in ROWS if name in (own, "total")]
        tokens = [token for text in texts for token in tokens_of(english, text)]
        used |= {*tokens}
        size, words = len("".join(texts).encode()), len(" ".join(texts).split())
        assert sizes[name] == {
            "name": name, "documents": len(texts), "bytes": size, "words": words, "tokens": len(tokens),
        }  # fmt: skip
        row = ratios[name]
        assert row["bytes_per_token"] == round(size / len(tokens), 4)
        assert row["tokens_per_word"] == round(len(tokens) / words, 4)
        assert row["characters_per_token"] == round(len("".join(texts)) / len(tokens), 4)
        assert row["single_byte_share"] == round(sum(len(token) == 1 for token in tokens) / size, 4)

    assert ratios["zh"]["bytes_per_token"] == 1 == ratios["zh"]["single_byte_share"]
    assert found.figures["entries_not_in_the_text"] == 600 - 5 - len(used)
    cuts = found.json()["examples"]["how the text is cut"]
    assert [cut["name"] for cut in cuts] == ["sv", "fi", "zh", "fi"]
    assert cuts[0]["cut"].replace("|", "") == "Det är aldrig för sent att ge upp.".replace(
        "ä", "\\xc3\\xa4"
    ).replace("ö", "\\xc3\\xb6")
    assert cuts[0]["tokens"] == len(tokens_of(english, "Det är aldrig för sent att ge upp."))


def test_one_name_needs_no_total(english: Path) -> None:
    found = describe_on(
        english, NamedTexts("text", "file", [("a.txt", "Some words."), ("a.txt", "And more.")])
    )
    assert list(rows_of(found, "text, by file")) == ["a.txt"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \n\n", ""),
        ("A title\n\nThe first line.\nThe second line.", "The first line."),
        ("one " * 30, " ".join(["one"] * 12)),
        ("日" * 60, "日" * 26),  # 80 bytes would end amid a character
        ("ää " + "ä" * 40, "ää"),
    ],
)
def test_excerpts(text: str, expected: str) -> None:
    assert excerpt(text) == expected


def test_two_tokenizers_on_one_text(english: Path, finnish: Path) -> None:
    found = compare(english, finnish, TEXTS)
    assert found.figures["this"] == str(english) and found.figures["other"] == str(finnish)
    sizes, ratios = (
        rows_of(found, "text, by lang"),
        rows_of(found, "what a token stands for, by lang"),
    )
    assert list(sizes) == list(ratios) == ["fi", "sv", "zh", "total"]

    for side, folder in (("this", english), ("other", finnish)):
        alone = describe_on(folder, TEXTS)
        for name, row in rows_of(alone, "what a token stands for, by lang").items():
            for column in ("bytes_per_token", "tokens_per_word", "single_byte_share"):
                assert ratios[name][f"{side}_{column}"] == row[column]

        for name, row in rows_of(alone, "text, by lang").items():
            assert sizes[name][f"{side}_tokens"] == row["tokens"]

        assert (
            found.figures[f"entries_of_{side}_not_in_the_text"]
            == alone.figures["entries_not_in_the_text"]
        )

    assert (
        sizes["fi"]["ratio"]
        == round(sizes["fi"]["this_tokens"] / sizes["fi"]["other_tokens"], 4)
        > 1.5
    )
    assert sizes["zh"]["ratio"] == 1


def test_two_vocabularies(english: Path, finnish: Path) -> None:
    found = compare(english, finnish)
    listings = found.json()["examples"]
    ids = [json.loads((folder / "vocab.json").read_text()).keys() for folder in (english, finnish)]
    merges = [(folder / "merges.txt").read_text().splitlines()[1:] for folder in (english, finnish)]
    assert listings["vocabularies"] == [
        {"what": "entries", "this": 600, "other": 320, "shared": len(ids[0] & ids[1])},
        {"what": "merges", "this": 339, "other": 59, "shared": len({*merges[0]} & {*merges[1]})},
    ]
    assert 261 < len(ids[0] & ids[1]) < 320
    first = next(at for at, (left, right) in enumerate(zip(*merges, strict=False)) if left != right)
    assert found.figures["equal_first_merges"] == first
    assert listings["where the merges first differ"][0] == {
        "merge": first + 1, "this": merges[0][first], "other": merges[1][first],
    }  # fmt: skip
    cuts = listings["how sentences are cut"]
    assert [row["tokenizer"] for row in cuts] == ["this", "other"] * len(SAMPLES)

    for row, (text, folder) in zip(
        cuts, itertools.product(SAMPLES, (english, finnish)), strict=True
    ):
        assert row["tokens"] == len(tokens_of(folder, text))

    assert "text" not in " ".join(listings)
    same = compare(english, english)
    assert (
        same.figures["equal_first_merges"] == 339
        and not same.json()["examples"]["where the merges first differ"]
    )
    assert same.notes == ["Both give the same ids to every text."]


def test_a_list_of_merges_that_goes_on(tmp_path: Path) -> None:
    merges = [("t", "h"), ("th", "e"), ("i", "n")]
    for name, count in (("short", 2), ("long", 3)):
        (tmp_path / name).mkdir()
        save_vocabulary(lay_out(merges[:count]), tmp_path / name)

    found = compare(tmp_path / "short", tmp_path / "long")
    assert found.figures["equal_first_merges"] == 2 and found.notes == []
    assert not found.json()["examples"]["where the merges first differ"]


def test_folders_that_robustly_did_not_make(english: Path, trained: Path, tmp_path: Path) -> None:
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(english / file, tmp_path)

    for folder in (english, tmp_path):
        assert folder_kind(folder) == "tokenizer"
        found = describe(folder)
        assert found.summary == "Byte-level BPE with 600 entries." and "recipe" not in found.figures

    assert "trained on" in describe(trained).summary


def test_a_published_folder_is_a_tokenizers_too(english: Path, tmp_path: Path) -> None:
    """Its counts are the model's: they say nothing of the tokenizer."""
    published = tmp_path / "published"
    shutil.copytree(english, published)
    Stage(published, "published", {}, {}).finish(
        [published / "vocab.json"], {"bytes": 7, "parameters": 8}
    )
    found = describe_on(published, TEXTS)
    assert found.summary == "Byte-level BPE with 600 entries."
    assert "bytes" not in found.figures and "parameters" not in found.figures
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(english, checkpoint)
    (checkpoint / "config.json").write_text("{}")
    assert compare(checkpoint, published, TEXTS).notes[0].startswith("Both give the same ids")
    (published / "vocab.json").write_text("")
    with pytest.raises(UserError, match=r"vocab\.json: 0 bytes, expected"):
        describe_on(published, TEXTS)


def test_folders_without_a_tokenizer(english: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "data").mkdir(parents=True)
    Stage(run / "data", "data", {}, {}).finish([], {})

    with pytest.raises(
        UserError,
        match="data: a data folder, which is not a tokenizer's; --text and --compare take",
    ):
        describe_on(run / "data", TEXTS)

    with pytest.raises(
        UserError, match=f"a run folder.*this run's tokenizer is {run / 'tokenizer'}"
    ):
        compare(english, run)

    with pytest.raises(UserError, match="no such folder"):
        compare(tmp_path / "nowhere", english)

    begun = Stage(run / "tokenizer", "tokenizer", {}, {}).begin()
    with begun, pytest.raises(UserError, match="no finished tokenizer stage here"):
        describe_on(run / "tokenizer", TEXTS)

    other = tmp_path / "wordpiece"
    other.mkdir()
    (other / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')
    with pytest.raises(UserError, match=r"tokenizer\.json: .*byte-level BPE in RoBERTa's layout"):
        compare(english, other)


def test_a_narrow_terminal_shows_every_number(
    english: Path, finnish: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = NamedTexts(
        "held-out documents",
        "source",
        [("a source of a long name.jsonl", "word " * 400_000), *ROWS],
    )
    for found in (describe_on(english, long), compare(english, finnish, long)):
        written = io.StringIO()
        monkeypatch.setattr(
            log, "console", Console(file=written, width=60, soft_wrap=True, highlight=False)
        )
        for listing in found.examples:
            show_listing(listing)
            for row in listing.rows:
                for value in row.values():
                    assert (
                        not isinstance(value, int | float) or log.show(value) in written.getvalue()
                    )

        lines = written.getvalue().splitlines()
        assert max(map(len, lines)) <= 60
        # all numbers of a row stand on its line
        assert re.search(
            r"\d[\d,.]* +[\d,.]+ +[\d,.]+ +[\d,.]+ *$",
            next(line for line in lines if "total" in line),
        )
