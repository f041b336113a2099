"""Prove that a published folder is the trained model: plain transformers reloads it in a fresh
process, and its logits and token ids are compared.

What is not so is a fault of the folder; what could not be tried, or is not covered, is a limit of
the proof. Both are said by name."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import RobertaForMaskedLM

from robustly.data_prep.blocks import Blocks
from robustly.data_prep.store import Store
from robustly.tokenizer.added_tokens import probes
from robustly.tokenizer.special_tokens import CONTROL_TOKENS
from robustly.tokenizer.tokenizer import Tokenizer

TOLERANCE = 1e-5  # logits have magnitude 10; in fp32, on one machine, they differ by rounding
DOCUMENTS = 64  # whose ids are compared with the token store's
TOKENS = 2**16  # of each of them, in whole units: seconds of work for transformers in all
PROBES = ("Hello world", " two  spaces\n", "naïve café 日本 🙂", "क्षि e\u0301 1234 it's")

# Runs in a process that imports nothing of ours, in an empty folder and without PYTHON* variables.
_RELOAD = """
import json, sys
from safetensors.torch import load_file
import torch, transformers
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
folder, given = sys.argv[1:]
asked = json.load(open(given + "/asked.json", encoding="utf-8"))
found = {"failed": {}, "transformers": transformers.__version__}

def attempt(step):
    try:
        found[step.__name__] = step()
    except Exception as error:
        found["failed"][step.__name__] = f"{type(error).__name__}: {error}"

def logits():
    sent = load_file(given + "/probes.safetensors")
    model, loading = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=sent["ids"], attention_mask=sent["attention"]).logits
    difference = (logits - sent["logits"])[sent["attention"].bool()].abs().max()
    keys = sorted(str(key) for found in loading.values() for key in found)
    return {"difference": float(difference), "keys": keys}

def ids():
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text)["input_ids"] for text in asked["texts"]]

def filled():
    fill = pipeline("fill-mask", model=folder, tokenizer=folder, top_k=5)
    return {text: [guess["token_str"] for guess in fill(text)] for text in asked["blanks"]}

for step in (logits, ids, filled):
    attempt(step)
found["ours"] = sorted(name for name in sys.modules if name.split(".")[0] == "robustly")
json.dump(found, open(given + "/found.json", "w", encoding="utf-8"))
"""


@dataclass(frozen=True)
class Proof:
    """What the fresh process found."""

    counts: Mapping[str, Any]
    """Figures for a manifest."""
    filled: Mapping[str, Sequence[str]]
    """A text with a blank -> the five best guesses."""
    faults: Sequence[str]
    """What is not as it should be. Empty: the folder is the trained model."""
    limits: Sequence[str]
    """What was not tried, or could not be."""


class _Document(NamedTuple):
    units: list[str]
    """Texts that become the ids."""
    ids: list[list[int]]
    """Of each unit, as the token store has them."""
    whole: bool
    """Whether these are all of its units."""


def prove(
    folder: Path,
    model: RobertaForMaskedLM,
    tokenizer: Tokenizer,
    data_folder: Path,
    packing: Mapping[str, Any],
    blanks: Sequence[str] = (),
) -> Proof:
    """Reload `folder` in a fresh process and compare logits (padded and full blocks, length 1) and
    token ids: of probes with ours, of held-out documents, unit by unit, with the token store's;
    fill `blanks`, texts with a <mask>, there too."""
    blocks = _probe_blocks(data_folder, packing, model, tokenizer.pad_id)
    documents, limits = _documents(data_folder, tokenizer)
    texts = [*PROBES, *probes(tokenizer.vocabulary.added)]
    units = [unit for document in documents for unit in document.units]
    found = _reload(folder, blocks, [*texts, *units], blanks)
    if "died" in found:
        return Proof({}, {}, [found["died"]], limits)

    failed = found["failed"]
    faults = [f"{what}: {failed[step]}" for step, what in _NEEDED.items() if step in failed]
    if "filled" in failed:
        limits.append(f"no blanks are filled: {failed['filled']}")
    if found["ours"]:
        faults.append(f"the fresh process imported our code: {', '.join(found['ours'])}")

    counts: dict[str, Any] = {"transformers": found["transformers"]}
    if logits := found.get("logits"):
        counts["max_logit_difference"] = logits["difference"]
        faults += _unequal_logits(logits)

    if "ids" in found:
        ids = iter(found["ids"])
        pairs = zip(texts, tokenizer.encode_documents(texts), ids, strict=False)
        faults += [
            f"{text!r} becomes {theirs}, expected {expected}"
            for text, ours, theirs in pairs
            if theirs != (expected := _enclosed(ours.tolist(), tokenizer))
        ]
        unequal = [fault for document in documents if (fault := _unequal(document, ids, tokenizer))]
        counts["documents_with_equal_ids"] = len(documents) - len(unequal)
        if unequal:
            faults.append(
                f"the ids of {len(unequal)} of {len(documents)} documents are not those that were"
                f" trained on: {unequal[0]}"
            )

    return Proof(counts, found.get("filled", {}), faults, limits)


_NEEDED = {
    "logits": "the model does not load or run",
    "ids": "the tokenizer does not load or encode",
}


def _probe_blocks(
    data_folder: Path, packing: Mapping[str, Any], model: RobertaForMaskedLM, pad_id: int
) -> dict[str, torch.Tensor]:
    """Blocks of the training data, full, half and of length 1, and the logits that they should
    have."""
    blocks = Blocks(data_folder, "train", packing["block_length"], packing["format"])
    ids, lengths = blocks.gather(np.arange(min(4, len(blocks)), dtype=np.int64))
    ids = np.concatenate([ids, ids[:1], ids[:1]]).astype(np.int64)
    lengths = np.concatenate([lengths, [1, max(1, int(lengths[0]) // 2)]])
    attention = np.arange(ids.shape[1]) < lengths[:, None]
    ids[~attention] = pad_id
    given = {
        "ids": torch.from_numpy(ids),
        "attention": torch.from_numpy(attention.astype(np.int64)),
    }
    with torch.no_grad():
        logits = model(input_ids=given["ids"], attention_mask=given["attention"]).logits

    return {**given, "logits": logits.contiguous()}


def _documents(data_folder: Path, tokenizer: Tokenizer) -> tuple[list[_Document], list[str]]:
    """DOCUMENTS documents that are held out, evenly spaced, and what is left out of them. Where
    none are, those of the training."""
    store, limits = Store(data_folder, "validation"), []
    if not store.documents:
        store = Store(data_folder, "train")
        limits.append("no documents are held out: ids are compared on documents of the training")

    if not tokenizer.vocabulary.is_roberta_tokenizer:
        limits.append(
            "words given one by one: transformers does not heed add_prefix_space for a vocabulary"
            " with NFC or another pattern; give each word but the first the space before it"
            " (docs/tokenizer.md)"
        )

    taking = [token.content for token in tokenizer.vocabulary.added if token.lstrip or token.rstrip]
    if taking:
        limits.append(
            f"{', '.join(taking[:8])}: the white space that they take is not in the token store, so"
            " ids are compared on text without it, or with one space"
        )

    places = np.unique(np.linspace(0, store.documents - 1, DOCUMENTS).astype(np.int64))
    found = [_document(store.units_of(place), tokenizer) for place in places.tolist()]
    every = [document for document in found if document]
    if lost := len(found) - len(every):
        limits.append(
            f"{lost} of {len(found)} documents are left out: how their text stood beside added"
            " tokens cannot be told from their ids"
        )

    read = [document for document in every if document.units]
    if huge := len(every) - len(read):
        limits.append(
            f"{huge} of {len(every)} documents are left out: their first unit has more than"
            f" {TOKENS:,} tokens"
        )

    documents = [
        document
        for document in read
        if not any(name in unit for unit in document.units for name in CONTROL_TOKENS)
    ]
    if left_out := len(read) - len(documents):
        limits.append(
            f"{left_out} of {len(every)} documents are left out: they hold the names of"
            f" {', '.join(CONTROL_TOKENS)}, which are text in training and tokens to transformers"
        )

    if cut := sum(not document.whole for document in documents):
        limits.append(
            f"of {cut} of {len(every)} documents, which are long, the first {TOKENS:,} tokens are"
            " compared"
        )

    return documents, limits


def _document(units: Iterator[Any], tokenizer: Tokenizer) -> _Document | None:
    """None where the text of a unit is not found."""
    texts: list[str] = []
    ids: list[list[int]] = []
    left = TOKENS
    for unit in units:
        if (left := left - len(unit)) < 0:
            break
        if (text := _text(unit.tolist(), tokenizer)) is None:
            return None

        texts.append(text)
        ids.append(unit.tolist())

    return _Document(texts, ids, left >= 0)


def _text(ids: list[int], tokenizer: Tokenizer) -> str | None:
    """A text that becomes these ids: theirs, as it is or with a space where an added token may have
    taken some. None where neither does, as where a name stood there that was none before NFC."""
    added = tokenizer.vocabulary.added
    if not added:
        return tokenizer.decode(ids)

    written = {
        tokenizer.vocabulary.ids[token.content]: f"{' ' * token.lstrip}{token.content}"
        f"{' ' * token.rstrip}"
        for token in added
    }
    stretches = itertools.groupby(ids, key=written.get)
    spaced = "".join(
        tokenizer.decode([*some]) if name is None else name * len([*some])
        for name, some in stretches
    )
    return next(
        (
            text
            for text in dict.fromkeys((tokenizer.decode(ids), spaced))
            if tokenizer.encode_documents([text])[0].tolist() == ids
        ),
        None,
    )


def _reload(
    folder: Path, blocks: dict[str, torch.Tensor], texts: Sequence[str], blanks: Sequence[str]
) -> dict[str, Any]:
    """What `_RELOAD` finds; {"died": why} if it ends before that."""
    with tempfile.TemporaryDirectory() as given:
        save_file(blocks, Path(given) / "probes.safetensors")
        asked = json.dumps({"texts": texts, "blanks": list(blanks)})
        Path(given, "asked.json").write_text(asked, encoding="utf-8")
        command = [sys.executable, "-W", "ignore", "-c", _RELOAD, str(folder.resolve()), given]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(command, capture_output=True, text=True, cwd=given, env=clean)
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(
                Path(given, "found.json").read_text(encoding="utf-8")
            )
            return found

    how = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return {"died": f"the fresh process ended with {how}: {last}"}


def _unequal_logits(found: Mapping[str, Any]) -> Iterator[str]:
    if found["keys"]:
        yield f"missing or unexpected weights: {', '.join(found['keys'])}"
    if not found["difference"] <= TOLERANCE:  # nor NaN
        yield f"logits differ by {found['difference']}, more than {TOLERANCE}"


def _unequal(document: _Document, found: Iterator[list[int]], tokenizer: Tokenizer) -> str | None:
    """How the first unit of a document that has other ids is encoded; takes those of all its units
    from `found`."""
    every = list(itertools.islice(found, len(document.units)))
    for ids, theirs in zip(document.ids, every, strict=True):
        expected = _enclosed(ids, tokenizer)
        if theirs != expected:
            pairs = itertools.zip_longest(theirs, expected)
            at = next(place for place, (one, other) in enumerate(pairs) if one != other)
            before = tokenizer.decode(expected[1:at])[-20:]
            after = tokenizer.decode(expected[at:-1])[:60]
            return (
                f"{before + after!r} becomes ..., {theirs[at : at + 8]}, expected"
                f" {expected[at : at + 8]}"
            )

    return None


def _enclosed(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.bos_id, *ids, tokenizer.eos_id]
