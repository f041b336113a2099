"""How often each id stands in arrays of tokens, against numpy, however they are cut."""

import numpy as np
import pytest

from robustly import UserError
from robustly.data_prep import token_counts
from robustly.data_prep.token_counts import count_tokens


@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_it_is_what_numpy_counts(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_counts, "PIECE", 100)
    draw = np.random.default_rng(0)
    arrays = [draw.integers(0, 300, size).astype(kind) for size in (1000, 1, 100, 0, 257)]
    found = count_tokens([lambda own=own: own for own in arrays], [a.size for a in arrays], 300)  # type: ignore[misc]
    assert found.tolist() == np.bincount(np.concatenate(arrays), minlength=300).tolist()
    assert count_tokens([], [], 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_an_id_that_is_not_there_is_told(kind: type) -> None:
    tokens = np.array([0, 1, 2, 300], kind)
    assert count_tokens([lambda: tokens], [4], 301)[300] == 1
    with pytest.raises(UserError, match="an id that is not among the 300 of its tokenizer"):
        count_tokens([lambda: tokens], [4], 300)
