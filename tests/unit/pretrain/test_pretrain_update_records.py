"""Records of updates: durable lines, read to the letter, and refused where they are damaged."""

from pathlib import Path

import pytest

from robustly import UserError
from robustly.pretrain.bad_updates.update_records import append, cut, read, skipped


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "skipped.jsonl"


def test_what_is_appended_is_read(record: Path) -> None:
    assert read(record) == []
    lines = [{"update": update, "blocks": [update, 1]} for update in (3, 5, 9)]
    for line in lines:
        append(record, line)

    assert read(record) == lines
    assert skipped(record, 6, [5, 3]) == {3, 5, 9}


@pytest.mark.parametrize("text", ['{"upd', "", "{}", '{"update": 4.5}'])
def test_a_last_line_that_was_cut_off_is_left_out_and_cut_away(record: Path, text: str) -> None:
    append(record, {"update": 3})
    whole = record.read_text(encoding="utf-8")
    record.write_text(whole + text, encoding="utf-8")
    assert skipped(record, 9, [3]) == {3}
    assert record.read_text(encoding="utf-8") == whole
    append(record, {"update": 4})
    assert [line["update"] for line in read(record)] == [3, 4]


def test_a_line_that_was_added_by_hand_needs_no_line_feed(record: Path) -> None:
    append(record, {"update": 3})
    record.write_text(record.read_text(encoding="utf-8") + '{"update": 7}', encoding="utf-8")
    assert skipped(record, 3, [3]) == {3, 7}
    append(record, {"update": 8})
    assert [line["update"] for line in read(record)] == [3, 7, 8]


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"update": "4"}', '{"update": true}'])
def test_a_damaged_line_is_named(record: Path, text: str) -> None:
    record.write_text(f'{text}\n{{"update": 3}}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"skipped.jsonl, line 1: damaged"):
        read(record)


@pytest.mark.parametrize(
    ("without", "said"),
    [([3, 4], "lists updates 3, and the checkpoint of update 9 was trained without updates 3, 4"),
     ([], "lists updates 3, and the checkpoint of update 9 was trained with every one")],
)  # fmt: skip
def test_a_record_and_a_checkpoint_must_agree(record: Path, without: list[int], said: str) -> None:
    append(record, {"update": 3})
    with pytest.raises(UserError, match=said):
        skipped(record, 9, without)


def test_what_is_made_again_is_cut_away_but_for_what_is_skipped(record: Path) -> None:
    for update in (3, 5, 7):
        append(record, {"update": update})

    cut(record, 4, {7})
    assert [line["update"] for line in read(record)] == [3, 7]
