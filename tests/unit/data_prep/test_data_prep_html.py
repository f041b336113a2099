"""A data folder as one HTML page."""

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from small_stores import corpus, describe, train_tokenizer, write_rows

from robustly.corpus.config import Processing
from robustly.data_prep.config import DataConfig
from robustly.data_prep.prepare import DataStage
from robustly.description import Description
from robustly.inspection.html import html_page
from stated import stated

EVIL = '<script src="https://example.org/x.js"></script> <img onerror=a> & "quoted" </td>'


class Reader(HTMLParser):
    """Collects tags and text; nothing may close what is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Description:
    root = tmp_path_factory.mktemp("paged")
    train_tokenizer(root / "tokenizer")
    write_rows(root / "<b>.jsonl", [f"{EVIL} {n}" for n in range(40)])
    view = DataConfig(unit="line", language="en", block_length=128, format="doc_sentences")
    DataStage(
        stated(root, corpus("<b>.jsonl", validation=0.3)),
        view,
        root / "data",
        root / "tokenizer",
        Processing(1),
    ).make()
    return describe(root / "data", 3)


def test_the_page_holds_everything_escaped(described: Description) -> None:
    written = html_page(described)
    reader = Reader()
    reader.feed(written)
    assert not reader.open
    assert (
        EVIL not in written
        and "<b>" not in written
        and EVIL in reader.text
        and "<b>.jsonl" in reader.text
    )

    for listing in described.examples:
        assert listing.rows and listing.title in reader.text
        for row in listing.rows:
            for value in row.values():
                assert not isinstance(value, str) or value in reader.text

    texts = next(
        listing.rows for listing in described.examples if listing.title == "blocks as text"
    )
    assert len(texts) == 6 and all(row["text"].startswith("<s>") for row in texts)

    for name, value in described.figures.items():
        assert name.replace("_", " ") in reader.text and (
            not isinstance(value, int) or f"{value:,}" in reader.text
        )

    json.dumps(described.json(), allow_nan=False)


def test_the_page_needs_nothing_else(described: Description) -> None:
    reader = Reader()
    reader.feed(html_page(described))
    assert {tag for tag, _ in reader.tags}.isdisjoint({"script", "link", "iframe", "object", "svg"})
    links = [
        value or ""
        for _, attributes in reader.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "style", "action") or name.startswith("on")
    ]
    assert len(links) == 3 and all(link.startswith("data:image/png;base64,") for link in links)
    assert "url(" not in html_page(described) and "@import" not in html_page(described)
    alternatives = [attributes["alt"] for tag, attributes in reader.tags if tag == "img"]
    assert alternatives == [
        "documents by tokens",
        "units by tokens",
        "blocks by fill, doc_sentences 128",
    ]

    for link in links:
        picture = imread(io.BytesIO(base64.b64decode(link.split(",")[1])))
        assert (
            picture.shape[1] > 500
            and len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 10
        )


def test_a_page_without_blocks_as_text_says_why(tmp_path: Path) -> None:
    train_tokenizer(tmp_path / "elsewhere")
    write_rows(tmp_path / "a.jsonl", ["The thing.", "In the end there is another."])
    view = DataConfig(unit="line", language="en", block_length=8, format="full_sentences")
    DataStage(
        stated(tmp_path, corpus("a.jsonl")),
        view,
        tmp_path / "data",
        tmp_path / "elsewhere",
        Processing(1),
    ).make()
    written = html_page(describe(tmp_path / "data"))  # a split without documents, too
    assert "--tokenizer FOLDER" in written and "blocks as text" not in written
