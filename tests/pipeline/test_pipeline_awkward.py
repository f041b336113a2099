"""Forty awkward inputs from raw text to an evaluation, in one run."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, robustly

from robustly.data_prep.sentences import units
from robustly.data_prep.store import SPLITS, Store
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.special_tokens import MASK_TOKEN, SPECIAL_TOKENS
from tests import awkward

pytestmark = pytest.mark.pipeline

CONFIG = """
base: {base}
name: awkward
corpus: {{sources: [inputs, saved], validation: 0.1, max_bad_lines: 10}}
tokenizer: {{vocab_size: 700, special_tokens: ["{entity}", "{link}"], accept_fewer: true}}
data: {{unit: sentence, block_length: 64}}
model: {{layers: 1, hidden: 16, heads: 2, feed_forward: 32, positions: 66}}
optim: {{batch_size: 8}}
schedule: {{updates: 2, warmup: 1}}
run: {{micro_batch: 4, evaluate_every: 2, evaluate_blocks: 8, checkpoint_every: 2, workers: 2}}
report: {{delta: null}}
"""


@pytest.mark.parametrize(
    "settings",
    [(), ("tokenizer.pattern=unicode", "data.unit=raw")],
    ids=["sentences", "raw, unicode pattern"],
)
def test_awkward_inputs_from_text_to_an_evaluation(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    documents = [text for text in awkward.write_all(tmp_path / "inputs") if text.strip()]
    documents += awkward.write_saved(tmp_path / "saved")
    (tmp_path / "config.yaml").write_text(
        CONFIG.format(
            base=ROOT / "configs" / "tiny.yaml", entity=awkward.ENTITY, link=awkward.LINK
        ),
        encoding="utf-8",
    )
    done = robustly("run", "config.yaml", *settings, "--json", cwd=tmp_path)
    counts = json.loads(done.stdout)["data"]["counts"]
    assert counts["bad_lines"] == awkward.BAD_ROWS
    root = tmp_path / "runs" / "awkward"

    # bytes back
    robustly("inspect", f"{root}/data", "--decode-documents", "back.jsonl", cwd=tmp_path)
    back = [json.loads(line)["text"] for line in (tmp_path / "back.jsonl").open(encoding="utf-8")]
    assert Counter(back) == Counter(documents)

    # ids equal
    unit = "raw" if "data.unit=raw" in settings else "sentence"
    _same_ids_in_transformers(root, unit)

    # the same tokens once more, by the published folder
    evaluated = json.loads(
        robustly(
            *("evaluate", f"{root}/published", "--text", "inputs", "--text", "saved"),
            *("--max-bad-lines", "10", "--json"),
            cwd=tmp_path,
        ).stdout
    )
    total = evaluated["text"]["total"]
    assert total["documents"] == len(documents)
    assert total["tokens"] == counts["train_tokens"] + counts["validation_tokens"]


def _same_ids_in_transformers(root: Path, unit: str) -> None:
    """The store's ids are those that transformers' tokenizer of the published folder gives, for
    every document but those with the name of a control token, which it reads as the token."""
    from transformers import AutoTokenizer

    published = AutoTokenizer.from_pretrained(root / "published")
    tokenizer = load_tokenizer(root / "tokenizer")
    control = (*SPECIAL_TOKENS, MASK_TOKEN)
    compared = 0

    for split in SPLITS:
        store = Store(root / "data", split)
        stored = [
            ids[:-1].tolist()  # without </s>
            for shard in store.shards
            for ids in _units_of(store, shard)
        ]
        texts = [
            text[start:end]
            for text in store.texts(tokenizer)
            for start, end in units(text, unit, "en")
        ]
        assert len(texts) == len(stored)

        for text, ids in zip(texts, stored, strict=True):
            if not any(name in text for name in control):
                assert published(text, add_special_tokens=False)["input_ids"] == ids, text[:200]
                compared += 1

    assert compared > 200


def _units_of(store: Store, shard) -> list[np.ndarray]:
    tokens, unit_ends = store.tokens(shard), store.unit_ends(shard).astype(np.int64)
    documents = np.append(np.zeros(1, np.int64), store.document_ends(shard)[:-1])
    starts = np.append(np.zeros(1, np.int64), unit_ends[:-1])
    starts[documents[1:]] += 1  # the lone </s> that ends the document before
    return [tokens[start:end] for start, end in zip(starts, unit_ends, strict=True)]
