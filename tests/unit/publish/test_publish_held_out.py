"""What is told of a tokenizer on held-out documents, and the model card that tells it."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from robustly import UserError
from robustly.data_prep.store import ShardWriter, Store, split_of, write_store
from robustly.manifest import Manifest
from robustly.pretrain.config import ModelConfig
from robustly.pretrain.sessions import Session
from robustly.publish import tokenizer_fit
from robustly.publish.card import StageManifests, model_card
from robustly.publish.config import PublishConfig
from robustly.publish.proof import Proof
from robustly.publish.tokenizer_fit import held_out_fit, held_out_texts
from robustly.tokenizer import load_tokenizer

CORPUS_TEXTS = {
    "wiki": ["The man and the woman went there.", "A house."],
    "news": ["It was him — «so» 日本.", "| a |"],
}


def figures(folder: Path, texts: list[str]) -> dict[str, Any]:
    """By `tokenizers` and plain counting."""
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = [
        token for text in texts for token in reference.encode(text, add_special_tokens=False).tokens
    ]
    size, words = (
        sum(len(text.encode()) for text in texts),
        sum(len(text.split()) for text in texts),
    )

    return {
        "documents": len(texts),
        "bytes": size,
        "bytes_per_token": round(size / len(tokens), 4),
        "tokens_per_word": round(len(tokens) / words, 4),
        "single_byte_share": round(sum(len(token) == 1 for token in tokens) / size, 4),
    }


def test_a_source_s_held_out_documents(prepared: Path) -> None:
    encoder = load_tokenizer(prepared / "tokenizer")
    corpus = (prepared / "corpus.txt").read_text(encoding="utf-8").strip("\n").split("\n\n")
    texts = [text for text in corpus if split_of(text, 0.2) == "validation"]
    assert 2 < len(texts) < len(corpus) / 2
    fit = held_out_fit(prepared / "data", encoder)
    (row,) = fit["rows"]
    assert row.items() > {"source": "corpus.txt", **figures(prepared / "tokenizer", texts)}.items()
    assert 0.2 < row["words_in_one_token"] < 0.9
    assert len(fit["cuts"]) == min(4, len(texts))

    for cut in fit["cuts"]:
        assert (
            any(cut["cut"].replace("|", "") in " ".join(text.split()) for text in texts)
            or "\\x" in cut["cut"]
        )

    assert fit == held_out_fit(prepared / "data", encoder) == json.loads(json.dumps(fit))


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Path:
    """A store with two sources, the first in two shards."""
    encoder = load_tokenizer(prepared / "tokenizer")
    shards = []
    parts = [(0, text) for text in CORPUS_TEXTS["wiki"]] + [(1, CORPUS_TEXTS["news"])]

    for number, (source, texts) in enumerate(parts):
        with ShardWriter(
            tmp_path, f"validation-{number:05d}", source, encoder.eos_id, encoder.dtype
        ) as writer:
            for text in [texts] if isinstance(texts, str) else texts:
                writer.append(*encoder.encode_lines([text]), ["", ""])

        assert writer.shard
        shards.append(writer.shard)

    write_store(
        tmp_path,
        tmp_path,
        "0" * 64,
        encoder,
        list(CORPUS_TEXTS),
        {"train": [], "validation": shards},
    )
    return tmp_path


def test_by_source(prepared: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_tokenizer(prepared / "tokenizer")
    rows = {row["source"]: row for row in held_out_fit(store, encoder)["rows"]}
    every = {**CORPUS_TEXTS, "total": [text for texts in CORPUS_TEXTS.values() for text in texts]}
    assert list(rows) == list(every)
    for source, texts in every.items():
        assert rows[source].items() > figures(prepared / "tokenizer", texts).items()

    monkeypatch.setattr(tokenizer_fit, "DOCUMENTS", 1)
    found = held_out_texts(store, encoder)
    assert found and list(found.named) == [
        (source, texts[0]) for source, texts in CORPUS_TEXTS.items()
    ]
    monkeypatch.setattr(tokenizer_fit, "DOCUMENTS", 9)
    monkeypatch.setattr(tokenizer_fit, "BYTES", 20)
    found = held_out_texts(store, encoder)
    assert found and list(found.named) == [
        (source, texts[0]) for source, texts in CORPUS_TEXTS.items()
    ]


def test_sources_of_one_name_and_none_at_all(prepared: Path, store: Path) -> None:
    encoder = load_tokenizer(prepared / "tokenizer")
    facts = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps({**facts, "sources": ["text", "text"]}))
    assert [row["source"] for row in held_out_fit(store, encoder)["rows"]] == [
        "text (1)",
        "text (2)",
        "total",
    ]
    (store / "store.json").write_text(json.dumps({**facts, "vocabulary": "0" * 64}))
    with pytest.raises(UserError, match="its tokens are of another tokenizer"):
        held_out_texts(store, encoder)

    (store / "store.json").write_text(
        json.dumps({**facts, "splits": {"train": [], "validation": []}})
    )
    assert (
        held_out_fit(store, encoder) == {"rows": [], "cuts": []}
        and not Store(store, "validation").documents
    )


# ----------------------------------------------------------------------------------------- the card

MODEL = ModelConfig(
    layers=2, hidden=32, heads=2, feed_forward=64, positions=66, token_types=1, dropout=0, attention_dropout=0,
    layer_norm_eps=1e-5, init_std=0.02,
)  # fmt: skip


def made(
    stage: str, recipe: dict[str, Any], inputs: dict[str, str], counts: dict[str, Any]
) -> Manifest:
    return Manifest(
        stage=stage, hash="0" * 64, recipe=recipe, inputs=inputs, version="0", commit="", outputs={}, counts=counts,
        seconds=1.0, finished="2026", notes={},
    )  # fmt: skip


PROVEN = Proof(
    {"transformers": "5.0", "max_logit_difference": 2e-6, "documents_with_equal_ids": 64},
    {},
    [],
    [],
)


def card(
    fit: dict[str, Any],
    sessions: Sequence[Session] = (),
    proof: Proof = PROVEN,
    notes: dict[str, Any] | None = None,
    **tokenizer_inputs: str,
) -> str:
    """`notes`: of the data stage."""
    recipe = {"optim": {"peak_lr": 1e-3}, "schedule": {"warmup": 1}, "data": {"block_length": 64}}
    counted = ("parameters", "updates", "blocks_per_update", "tokens", "training_seconds")
    train = made("train", recipe, {}, dict.fromkeys(counted, 1))
    documents = dict.fromkeys(("train_tokens", "train_documents", "validation_documents"), 1)
    data = replace(made("data", {}, {"corpus": "the corpus"}, documents), notes=notes or {})
    vocabulary = made("tokenizer", {}, tokenizer_inputs, {"entries": 1000})
    return model_card(
        PublishConfig(),
        "name",
        MODEL,
        StageManifests(vocabulary, data, train),
        sessions,
        {},
        [],
        fit,
        proof,
    )


def tables(page: str) -> list[list[list[str]]]:
    """The cells of each table; `\\|` is not the end of a cell."""
    found: list[list[list[str]]] = [[]]
    for line in page.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])

    return found[:-1]


def test_the_card_has_a_table_of_the_tokenizer(prepared: Path, store: Path) -> None:
    fit = held_out_fit(store, load_tokenizer(prepared / "tokenizer"))
    page = card(fit, corpus="the corpus")
    section = page[page.index("## Tokenizer") : page.index("## Training")]
    assert "Byte-level BPE with 1,000 entries" in section and "these documents included" in section
    table, cuts = tables(section)
    assert table[0][:1] == ["source"] and [row[0] for row in table[2:]] == ["wiki", "news", "total"]

    for row, source in zip(table[2:], fit["rows"], strict=True):
        assert dict(zip(table[0], row, strict=True)) == {
            name.replace("_", " "): f"{value:,.4g}" if isinstance(value, float) else str(value)
            for name, value in source.items()
        }

    assert [row[1].replace("\\|", "|").replace("\\\\", "\\") for row in cuts[2:]] == [
        " ".join(cut["cut"].split()) for cut in fit["cuts"]
    ]


@pytest.mark.parametrize(
    "inputs", [{"corpus": "another"}, {"import": "files"}, {"counts": "files"}]
)
def test_the_card_of_a_tokenizer_from_elsewhere(
    prepared: Path, store: Path, inputs: dict[str, str]
) -> None:
    page = card(held_out_fit(store, load_tokenizer(prepared / "tokenizer")), **inputs)
    assert "comes from elsewhere" in page and "these documents included" not in page


def test_without_held_out_documents_the_card_has_no_such_table() -> None:
    assert "## Tokenizer" not in card({"rows": [], "cuts": []}, corpus="the corpus")


def test_the_card_tells_what_cleaning_did() -> None:
    dropped = {"dropped by language": 7, "dropped by min_words": 0, "dropped by x: y": 2}
    replaced = {"replaced mail": 1200, "replaced ip": 0, "replaced card": 1}
    page = card({"rows": [], "cuts": []}, notes={"cleaned": dropped, "replaced": replaced})
    assert "| documents left out by cleaning | 9 (language: 7, x: y: 2) |" in page
    assert "| personal data replaced | 1,201 (mail: 1,200, card: 1) |" in page
    assert "cleaning" not in card({"rows": [], "cuts": []}, notes={"cleaned": {}, "replaced": {}})


SESSION = Session(
    started="2026-01-01T00:00:00+0000", hosts=("a",), devices={"CPU": 2}, ranks=2, precision="fp32",
    zero_stage=1, micro_batch=8, commit="0" * 40, versions={"torch": "2.13.0", "numpy": "2.4.6"},
    from_update=0, to_update=1000,
)  # fmt: skip
NO_FIT: dict[str, Any] = {"rows": [], "cuts": []}


def test_sessions_that_were_alike_are_counted_alone() -> None:
    again = replace(SESSION, hosts=("b",), from_update=1000, to_update=2000)
    page = card(NO_FIT, [SESSION, again])
    assert "| sessions | 2 |" in page and "| ranks | 2 |" in page and "| precision | fp32 |" in page
    assert "not the same" not in page and "lost" not in page
    assert "sessions" not in card(NO_FIT, [SESSION])


def test_what_changed_between_sessions_is_told() -> None:
    second = replace(SESSION, from_update=1000, to_update=2000)
    third = replace(
        SESSION, ranks=4, devices={"NVIDIA H200": 4}, precision="bf16", from_update=2000, to_update=2500,
        versions={"torch": "2.14.0", "numpy": "2.4.6"}, lost_metrics=("metrics.jsonl",),
    )  # fmt: skip
    page = card(NO_FIT, [SESSION, second, third])
    assert "| sessions | 3 |" in page and "| ranks | 2, then 4 |" in page
    assert "| precision | fp32, then bf16 |" in page
    (table,) = [table for table in tables(page) if table and table[0][0] == "updates"]
    assert table[0] == ["updates", "ranks", "devices", "precision", "torch"]
    assert table[2:] == [
        ["1 to 2,000", "2", "2 x CPU", "fp32", "2.13.0"],
        ["2,001 to 2,500", "4", "4 x NVIDIA H200", "bf16", "2.14.0"],
    ]
    assert "Lines were lost in training, of metrics.jsonl." in page


def test_the_card_says_what_is_proven() -> None:
    page = card(NO_FIT)
    assert "at most 2e-06" in page and "64 documents become the ids" in page
    assert "Not proven" not in page
    limited = card(NO_FIT, proof=replace(PROVEN, limits=["of <s>, *one* thing", "another"]))
    assert "Not proven:\n\n* of \\<s>, \\*one\\* thing\n* another\n" in limited
    faulty = card(NO_FIT, proof=replace(PROVEN, counts={}, faults=["logits differ"]))
    assert "**Not proven to be the trained model:**" in faulty and "* logits differ\n" in faulty
    assert faulty.index("Not proven") < faulty.index("```python") and "## Proof" not in faulty
