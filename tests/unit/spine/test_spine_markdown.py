"""Tables of cards, read by another Markdown reader."""

from markdown_it import MarkdownIt

from robustly import markdown


def cells(text: str) -> list[list[str]]:
    """The rows that a reader shows, header first."""
    rows: list[list[str]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            shown = (
                part.content if part.type in ("text", "text_special") else f"[{part.type}]"
                for part in token.children
            )
            rows[-1].append("".join(shown))

    return rows


def test_a_reader_shows_every_character() -> None:
    hard = ["The <mask> is", "a|b", "*_[x](y)_*", "back\\slash", "C:\\|"]
    assert cells(markdown.table(["text", "b", "c", "d", "e"], [hard, hard])) == [
        ["text", "b", "c", "d", "e"],
        hard,
        hard,
    ]


def test_line_breaks_do_not_end_a_row() -> None:
    assert cells(markdown.table(["a", "b"], [["one\ntwo", 12_345]])) == [
        ["a", "b"],
        ["one two", "12,345"],
    ]


def test_facts_have_no_header() -> None:
    assert cells(markdown.facts({"tokens_seen": 1000, "name": "x"})) == [
        ["", ""],
        ["tokens seen", "1,000"],
        ["name", "x"],
    ]


def test_keys_of_records_are_the_header() -> None:
    assert cells(markdown.records([{"": "x", "tokens_seen": 1}, {"": "y", "tokens_seen": 2}])) == [
        ["", "tokens seen"],
        ["x", "1"],
        ["y", "2"],
    ]
