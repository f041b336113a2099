"""A packed index that is not what its manifest says is made anew, and never trained on."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numbered_store import NumberedStore

from robustly import UserError
from robustly.data_prep import derived, packed_index
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.config import Format
from robustly.strict_json import sealed

SHARDS = [[[4, 7], [3, 3], [1, 1, 12, 30]], [[2] * 20, [9, 9]]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    NumberedStore(tmp_path, SHARDS)
    return tmp_path


def ids(folder: Path) -> list[list[int]]:
    blocks = Blocks(folder, "train", 9, "full_sentences")
    return blocks.gather(np.arange(len(blocks)))[0].tolist()  # type: ignore[no-any-return]


def index(folder: Path) -> Path:
    (path,) = (folder / "views").glob("*.npy")
    return path


def flip_a_bit(path: Path) -> None:
    """In the last block, and leave size and time of modification as they were."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-12] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lose_the_manifest(path: Path) -> None:
    path.with_suffix(".json").unlink()


def write_manifest(text: str) -> Callable[[Path], None]:
    return lambda path: path.with_suffix(".json").write_text(text) and None


def make_by_other_code(path: Path) -> None:
    """An index whose manifest fits, but for the version of the code."""
    flip_a_bit(path)
    manifest = json.loads(path.with_suffix(".json").read_text())
    manifest["made_of"]["packing"] = packed_index.PACKING - 1
    manifest |= {"sha256": derived.sha256(path), "changed_ns": path.stat().st_ctime_ns}
    del manifest["seal"]
    path.with_suffix(".json").write_text(json.dumps(sealed(manifest)))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_bit, "damaged"),
        (cut, "damaged"),
        (lose_the_manifest, "its manifest is missing or not one"),
        (write_manifest("[1]"), "its manifest is missing or not one"),
        (write_manifest('{"made_of": {}, "sha256": 1}'), "its manifest is missing or not one"),
        (write_manifest("\udcff".encode("utf-8", "replace").decode()), "missing or not one"),
        (make_by_other_code, "made of packing 1, expected 2"),
    ],
)
def test_what_does_not_fit_is_made_anew(
    folder: Path,
    damage: Callable[[Path], None],
    reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    right, content = ids(folder), index(folder).read_bytes()
    assert not capfd.readouterr().err
    damage(index(folder))
    assert ids(folder) == right and index(folder).read_bytes() == content
    said = " ".join(capfd.readouterr().err.split())
    assert str(index(folder)) in said and f"{reason}" in said and "made anew" in said
    assert ids(folder) == right and not capfd.readouterr().err


def test_it_is_hashed_again_after_a_change_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    original = derived.sha256
    monkeypatch.setattr(derived, "sha256", lambda path: hashed.append(path) or original(path))
    right = ids(folder)
    assert len(hashed) == 1
    assert ids(folder) == right and len(hashed) == 1
    index(folder).touch()
    for _ in range(2):
        assert ids(folder) == right and len(hashed) == 2


def test_a_folder_that_is_only_read_serves_a_whole_index(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ids(folder)
    index(folder).touch()

    def refuse(path: Path, value: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(derived, "write_json", refuse)
    assert ids(folder) == right
    flip_a_bit(index(folder))
    with pytest.raises(UserError, match=r"neither read nor made: Permission denied"):
        ids(folder)


# Made when PACKING was 1, and the same since. Another hash: blocks have changed, so PACKING must, too.
HASHES: dict[Format, str] = {
    "full_sentences": "5bb5c7dc7bc2bccd",
    "doc_sentences": "9ac6a51a7adc7e9c",
    "segment_pair": "f261480b55836c06",
    "sentence_pair": "07b28e77b9ea7178",
}


@pytest.mark.parametrize("format", HASHES)
def test_other_blocks_need_another_version(folder: Path, format: Format) -> None:
    assert Blocks(folder, "train", 16, format).index_hash[:16] == HASHES[format]
