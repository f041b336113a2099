"""Documents that are encoded together: what each becomes alone."""

import itertools
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustly.data_prep import encoding
from robustly.data_prep.sentences import units
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import lay_out

TOKENIZER = Tokenizer(lay_out([("a", "b"), ("Ġ", "ab")], ["[ENT]"]))
SPACED = Tokenizer(replace(TOKENIZER.vocabulary, prefix_space=True))


@pytest.mark.parametrize("unit", ["line", "sentence", "raw"])
@settings(max_examples=40)
@given(
    documents=st.lists(
        st.tuples(
            st.sampled_from("xy"), st.text("ab .A[ENT]\né\u3000\xa0😀", min_size=1, max_size=60)
        ),
        max_size=8,
    ),
    prefix_space=st.booleans(),
)
def test_documents_are_encoded_as_each_alone(unit, documents, prefix_space):
    tokenizer = SPACED if prefix_space else TOKENIZER

    def encoded(together):
        with mock.patch.object(encoding, "TOGETHER", together):
            found = [*encoding.encode(tokenizer, iter(documents), unit, "en")]
        return {label: [one for each, some in found if each == label for one in apart(some)]
                for label in "xy"}  # fmt: skip

    alone, some, all_at_once = (encoded(together) for together in (1, 40, 2**20))
    assert alone == some == all_at_once

    for label in "xy":
        texts = [text for each, text in documents if each == label and text.strip()]
        for text, (ids, between) in zip(texts, alone[label], strict=True):
            decoded = [tokenizer.decode_text(unit) for unit in ids]
            spans = units(text, unit, "en")
            if not (unit == "raw" and prefix_space and text.startswith(" ")):
                assert decoded == [text[start:end] for start, end in spans]
            pieces = [gap + unit for gap, unit in zip(between, [*decoded, ""], strict=True)]
            assert "".join(pieces) == text


def apart(documents):
    """Of each document, the ids of its units and the white space."""
    eos, at, gap_at, unit = TOKENIZER.eos_id, 0, 0, 0
    assert documents.gap_ends.size == documents.unit_ends.size + documents.document_ends.size
    gap_ends = iter(documents.gap_ends.tolist())

    for last in documents.document_ends.tolist():
        ids, between = [], []
        for end in documents.unit_ends[unit:last].tolist():
            assert documents.tokens[end - 1] == eos
            ids.append(documents.tokens[at : end - 1].tolist())
            at = end

        assert documents.tokens[at] == eos
        for end in itertools.islice(gap_ends, last - unit + 1):
            between.append(documents.gaps[gap_at:end].decode())
            gap_at = end

        yield ids, between
        at, unit = at + 1, last

    assert at == documents.tokens.size and gap_at == len(documents.gaps)
