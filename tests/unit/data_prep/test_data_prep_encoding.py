"""Documents that are encoded together: what each becomes alone."""

from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustly.data_prep import encoding
from robustly.data_prep.sentences import units
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import lay_out

TOKENIZER = Tokenizer(lay_out([("a", "b"), ("Ġ", "ab")], ["[ENT]"]))


@pytest.mark.parametrize("unit", ["line", "sentence", "raw"])
@settings(max_examples=40)
@given(texts=st.lists(st.text("ab .A[ENT]\né\u3000😀", min_size=1, max_size=60), max_size=8))
def test_documents_are_encoded_as_each_alone(unit, texts):
    spans = [(text, units(text, unit, "en")) for text in texts]
    documents = [(place, text, found) for place, (text, found) in enumerate(spans) if found]

    def encoded(together):
        with mock.patch.object(encoding, "TOGETHER", together):
            return [
                (each.label, each.ids.tolist(), each.ends.tolist(), each.between)
                for each in encoding.encode(TOKENIZER, iter(documents), unit)
            ]

    alone, some, all_at_once = (encoded(together) for together in (1, 40, 2**20))
    assert alone == some == all_at_once
    assert [label for label, *_ in alone] == [place for place, *_ in documents]

    for (_, text, found), (_, ids, ends, between) in zip(documents, alone, strict=True):
        starts = [0, *ends[:-1]]
        decoded = [
            TOKENIZER.decode(ids[start : end - 1]) for start, end in zip(starts, ends, strict=True)
        ]
        assert decoded == [text[start:end] for start, end in found]
        assert [ids[end - 1] for end in ends] == [TOKENIZER.eos_id] * len(ends)
        pieces = [gap + unit for gap, unit in zip(between, [*decoded, ""], strict=True)]
        assert "".join(pieces) == text
