"""Dealing files among ranks: each once, and to all about as many bytes."""

from hypothesis import given
from hypothesis import strategies as st

from robustly.pretrain.integrity import deal

SIZES = st.dictionaries(
    st.text("abc", min_size=1), st.integers(0, 3) | st.integers(0, 10**11), max_size=40
)


@given(sizes=SIZES, hands=st.integers(1, 9))
def test_every_file_is_dealt_once(sizes: dict[str, int], hands: int) -> None:
    dealt = deal(sizes, hands)
    assert len(dealt) == hands
    assert sorted(name for hand in dealt for name in hand) == sorted(sizes)


@given(sizes=SIZES, hands=st.integers(1, 9))
def test_no_hand_would_be_better_off_without_its_last_file(
    sizes: dict[str, int], hands: int
) -> None:
    dealt = deal(sizes, hands)
    held = [sum(sizes[name] for name in hand) for hand in dealt]
    for hand, size in zip(dealt, held, strict=True):
        assert not hand or size - sizes[hand[-1]] <= min(held)


@given(sizes=SIZES, hands=st.integers(1, 9))
def test_the_largest_comes_first_and_every_rank_deals_the_same(
    sizes: dict[str, int], hands: int
) -> None:
    dealt = deal(sizes, hands)
    for hand in dealt:
        assert [sizes[name] for name in hand] == sorted(
            (sizes[name] for name in hand), reverse=True
        )

    assert deal(dict(reversed(sizes.items())), hands) == dealt
