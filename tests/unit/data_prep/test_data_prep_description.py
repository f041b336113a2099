"""What a data folder says of itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numbered_store import NumberedStore
from small_stores import corpus, describe, train_tokenizer, write_rows

from robustly import UserError, log
from robustly.corpus.config import Processing
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.config import DataConfig
from robustly.data_prep.prepare import DataStage
from robustly.data_prep.store import Store
from robustly.description import show
from robustly.inspection.data import document_lengths, find_tokenizer, unit_lengths
from robustly.tokenizer import load_tokenizer
from stated import stated

TEXTS = [f"The inner thing number {n}. There it is{' again' * (n % 7)}." for n in range(60)]
VIEW = DataConfig(unit="sentence", language="en", block_length=32, format="full_sentences")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with tokenizer/ and data/ of two sources."""
    root = tmp_path_factory.mktemp("described")
    train_tokenizer(root / "tokenizer")
    for name, texts in (("first", TEXTS[:40]), ("second", TEXTS[40:])):
        write_rows(root / f"{name}.jsonl", texts)

    sources = corpus("first.jsonl", "second.jsonl", validation=0.3)
    DataStage(stated(root, sources), VIEW, root / "data", root / "tokenizer", Processing(1)).make()
    return root


def rows(folder: Path) -> dict[str, Any]:
    return {listing.title: listing.rows for listing in describe(folder).examples}


def test_a_data_folder(root: Path) -> None:
    found = describe(root / "data")
    assert json.loads(json.dumps(found.json(), allow_nan=False))["kind"] == "data"
    tokenizer = load_tokenizer(root / "tokenizer")
    assert found.figures["documents"] == 60 and found.figures["units"] == 120
    listings = rows(root / "data")
    by_place = listings["splits and sources"]
    assert [(row["split"], row["source"]) for row in by_place] == [
        (split, f"{source}.jsonl")
        for split in ("train", "validation")
        for source in ("first", "second")
    ]
    assert sum(row["documents"] for row in by_place if row["source"] == "first.jsonl") == 40
    assert sum(row["tokens"] for row in by_place) == found.figures["tokens"]
    train_blocks, validation_blocks = listings["blocks"]
    view = Blocks(root / "data", "train", 32, "full_sentences")
    assert (train_blocks["blocks"], train_blocks["length"]) == (len(view), 32)
    assert train_blocks["padding"] == pytest.approx(
        1 - view.lengths.sum() / (32 * len(view)), abs=1e-4
    )
    assert validation_blocks["split"] == "validation"

    for row, split in zip(listings["blocks as text"], ("train", "validation"), strict=True):
        assert row["split"] == split
        text = row["text"]
        assert text.startswith("<s>") and text.endswith("</s>") and text.count("</s>") > 1
        blocks = Blocks(root / "data", split, 32, "full_sentences")  # type: ignore[arg-type]
        ids, lengths = blocks.gather(np.array([row["block"]]))
        assert text == tokenizer.decode(ids[0, : lengths[0]])


def lengths(of: Any, folder: Path) -> list[int]:
    store = Store(folder, "train")
    return [
        length for shard in store.shards for some in of(store, shard) for length in some.tolist()
    ]


def test_lengths_of_documents_are_those_of_their_tokens(root: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(root / "tokenizer")
    sizes = []
    of_units = []

    for text in Store(root / "data", "train").texts(tokenizer):
        first, second = text.split(". ")
        of_units += (
            found := [len(ids) for ids in tokenizer.encode_documents([first + ".", second])]
        )
        sizes.append(sum(found))

    assert lengths(document_lengths, root / "data") == sizes
    assert lengths(unit_lengths, root / "data") == of_units

    for title, counted, every in (
        ("documents by tokens", "documents", sizes),
        ("units by tokens", "units", of_units),
    ):
        bins = [row for row in rows(root / "data")[title] if row["split"] == "train"]
        assert sum(row[counted] for row in bins) == len(every)
        for row in bins:
            assert row[counted] == sum(row["from"] <= size <= row["to"] for size in every)

    quantiles = rows(root / "data")["tokens per document"][0]
    assert quantiles["mean"] == pytest.approx(np.mean(sizes), abs=0.05) and quantiles[
        "longest"
    ] == max(sizes)
    assert quantiles["50%"] == int(np.median(sizes))
    NumberedStore(tmp_path, [[[3, 1], [7]], [[2, 2, 2]]])
    assert lengths(document_lengths, tmp_path) == [4, 7, 6]
    assert lengths(unit_lengths, tmp_path) == [3, 1, 7, 2, 2, 2]


def test_blocks_of_two_segments_say_whether_the_second_follows(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "data", tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "views")
    view = Blocks(tmp_path / "data", "train", 64, "sentence_pair")
    Blocks(tmp_path / "data", "validation", 64, "sentence_pair")
    tokenizer = load_tokenizer(root / "tokenizer")
    found = {
        listing.title: listing.rows
        for listing in describe(tmp_path / "data", 3, tokenizer).examples
    }
    shown = [row for row in found["blocks as text"] if row["split"] == "train"]
    assert len(shown) == 3
    for row in shown:
        first, second = row["text"].removeprefix("<s>").removesuffix("</s>").split("</s></s>")
        assert row["follows"] == "yes" and f"{first} {second}" in TEXTS

    assert found["blocks"][0]["format"] == "sentence_pair" and found["blocks"][0]["blocks"] == len(
        view
    )


def test_how_full_blocks_are(root: Path) -> None:
    for format, length in (("full_sentences", 32), ("doc_sentences", 24)):
        fills = [
            Blocks(root / "data", split, length, format).lengths / length  # type: ignore[arg-type]
            for split in ("train", "validation")
        ]
        found = rows(root / "data")[f"blocks by fill, {format} {length}"]
        for fill, split in zip(fills, ("train", "validation"), strict=True):
            bins = [row for row in found if row["split"] == split]
            assert sum(row["blocks"] for row in bins) == fill.size
            for row in bins:
                assert row["blocks"] == np.count_nonzero((fill > row["from"]) & (fill <= row["to"]))

    for path in (root / "data" / "views").glob("*-doc_sentences-*"):
        path.unlink()


@pytest.mark.parametrize("wanted", [1, 3, 7, 10_000])
def test_blocks_from_all_over_a_split(root: Path, wanted: int) -> None:
    shown = describe(root / "data", wanted).examples[-1].rows
    assert shown == describe(root / "data", wanted).examples[-1].rows
    tokenizer = load_tokenizer(root / "tokenizer")

    for split in ("train", "validation"):
        view = Blocks(root / "data", split, 32, "full_sentences")  # type: ignore[arg-type]
        mine = [row for row in shown if row["split"] == split]
        numbers = [row["block"] for row in mine]
        assert len(numbers) == min(wanted, len(view)) and len(view) > 7
        steps = np.diff(numbers)
        if len(steps):
            assert steps.min() >= 1 and steps.max() - steps.min() <= 1
            assert abs(numbers[0] - (len(view) - 1 - numbers[-1])) <= 1
        else:
            assert numbers == [len(view) // 2]

        for row in mine:
            ids, sizes = view.gather(np.array([row["block"]]))
            assert row["text"] == tokenizer.decode(ids[0, : sizes[0]])


def test_what_was_dropped(root: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", ["The thing. " * 9, " \n ", "\t", "In the end."])
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"no": "text"}\n')

    config = corpus("a.jsonl").model_copy(update={"max_bad_lines": 5})
    DataStage(
        stated(tmp_path, config), VIEW, tmp_path / "data", root / "tokenizer", Processing(1)
    ).make()
    assert {row["what"]: row["count"] for row in rows(tmp_path / "data")["dropped"]} == {
        "empty_documents": 2,
        "bad_lines": 1,
    }


def test_histograms_fit_60_columns(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log.console, "_width", 60)
    # a path is never folded, and a test's own may be longer than 60 characters
    monkeypatch.chdir(root)
    show(describe(Path("data")))
    shown = capsys.readouterr().err
    histogram = shown[shown.index("units by tokens") :].split("\n\n")[0].splitlines()
    found = rows(root / "data")["units by tokens"]
    assert len(histogram) == 2 + len(found) and max(map(len, shown.splitlines())) <= 60
    most = {
        split: max(row["units"] for row in found if row["split"] == split)
        for split in ("train", "validation")
    }

    for line, row in zip(histogram[2:], found, strict=True):
        bar = line[line.rindex(" ", 0, len(line.rstrip())) :].strip(" 0123456789,")
        assert len(bar) == pytest.approx(12 * row["units"] / most[row["split"]], abs=1)
        assert bool(bar) == bool(row["units"])


def test_without_its_tokenizer_no_block_is_shown_as_text(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "data", tmp_path / "data")
    found = describe(tmp_path / "data")
    assert "needs the tokenizer" in found.notes[0]
    assert not {listing.title: listing.rows for listing in found.examples}["blocks as text"]
    with pytest.raises(UserError, match="--tokenizer FOLDER"):
        find_tokenizer(tmp_path / "data", None)

    elsewhere = describe(
        tmp_path / "data", tokenizer=find_tokenizer(tmp_path / "data", root / "tokenizer")
    )
    assert (
        not elsewhere.notes and elsewhere.examples[-1].rows == rows(root / "data")["blocks as text"]
    )
    train_tokenizer(tmp_path / "tokenizer", ["a b"])
    assert "another tokenizer" in describe(tmp_path / "data").notes[0]


def test_a_damaged_folder(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "data", tmp_path / "data")
    (shard,) = (tmp_path / "data").glob("train-00000.tokens.npy")
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train-00000\.tokens\.npy: .* bytes, expected"):
        describe(tmp_path / "data")

    (tmp_path / "data" / "manifest.json").unlink()
    assert "not finished" in describe(tmp_path / "data").summary
