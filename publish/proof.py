"""Prove that a published folder is the trained model: plain transformers reloads it in a fresh
process, and its logits and token ids are compared."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import RobertaForMaskedLM

from robustly.data_prep.blocks import Blocks
from robustly.tokenizer.special_tokens import MASK_TOKEN, SPECIAL_TOKENS
from robustly.tokenizer.tokenizer import Tokenizer

TOLERANCE = 1e-5  # logits have magnitude 10; in fp32, on one machine, they differ by rounding

# Runs in a process that imports nothing of ours, in an empty folder and without PYTHON* variables.
_RELOAD = """
import json, sys
from safetensors.torch import load_file
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
folder, given = sys.argv[1:]
sent = load_file(given + "/probes.safetensors")
asked = json.load(open(given + "/texts.json", encoding="utf-8"))
model, loading = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
model.eval()
with torch.no_grad():
    logits = model(input_ids=sent["ids"], attention_mask=sent["attention"]).logits
tokenizer = AutoTokenizer.from_pretrained(folder)
fill = pipeline("fill-mask", model=folder, tokenizer=folder, top_k=5)
real = sent["attention"].bool()
json.dump({
    "difference": float((logits - sent["logits"])[real].abs().max()),
    "keys": sorted(str(key) for found in loading.values() for key in found),
    "ids": [tokenizer(text)["input_ids"] for text in asked["texts"]],
    "filled": {text: [guess["token_str"] for guess in fill(text)] for text in asked["blanks"]},
    "ours": sorted(name for name in sys.modules if name.split(".")[0] == "robustly"),
}, sys.stdout)
"""


@dataclass(frozen=True)
class Proof:
    """What the fresh process found."""

    max_logit_difference: float
    texts_with_equal_ids: int
    filled: dict[str, list[str]]
    """A text with a blank -> the five best guesses."""

    def counts(self) -> dict[str, Any]:
        """For a manifest, without what was filled in."""
        return {
            "max_logit_difference": self.max_logit_difference,
            "texts_with_equal_ids": self.texts_with_equal_ids,
        }


def prove(
    folder: Path,
    model: RobertaForMaskedLM,
    tokenizer: Tokenizer,
    data_folder: Path,
    packing: dict[str, Any],
    blanks: list[str] | None = None,
) -> Proof:
    """Reload `folder` in a fresh process and compare logits (padded and full blocks, length 1) and
    token ids; fill `blanks`, texts with a <mask>, there too.

    Raises AssertionError if anything differs: that is our fault, never the user's.
    """
    blocks = Blocks(data_folder, "train", packing["block_length"], packing["format"])
    ids, lengths = blocks.gather(np.arange(min(4, len(blocks)), dtype=np.int64))
    ids = np.concatenate([ids, ids[:1], ids[:1]]).astype(np.int64)
    lengths = np.concatenate([lengths, [1, max(1, int(lengths[0]) // 2)]])
    attention = np.arange(ids.shape[1]) < lengths[:, None]
    ids[~attention] = tokenizer.pad_id
    probes = {
        "ids": torch.from_numpy(ids),
        "attention": torch.from_numpy(attention.astype(np.int64)),
    }
    with torch.no_grad():
        logits = model(input_ids=probes["ids"], attention_mask=probes["attention"]).logits

    # as text, without the names of special tokens: transformers would read them as the tokens
    texts = [tokenizer.decode(row[:length]) for row, length in zip(ids, lengths, strict=True)]
    for name in (*SPECIAL_TOKENS, MASK_TOKEN):
        texts = [text.replace(name, " ") for text in texts]

    texts += ["Hello world", " two  spaces\n", "naïve café 日本 🙂"]

    with tempfile.TemporaryDirectory() as given:
        save_file({**probes, "logits": logits.contiguous()}, Path(given) / "probes.safetensors")
        Path(given, "texts.json").write_text(
            json.dumps({"texts": texts, "blanks": blanks or []}), encoding="utf-8"
        )
        command = [sys.executable, "-W", "ignore", "-c", _RELOAD, str(folder.resolve()), given]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(command, capture_output=True, text=True, cwd=given, env=clean)

    assert done.returncode == 0, f"the published folder does not load:\n{done.stderr}"
    found = json.loads(done.stdout)
    ours = [
        [tokenizer.bos_id, *encoded.tolist(), tokenizer.eos_id]
        for encoded in tokenizer.encode_documents(texts)
    ]
    assert not found["ours"], f"the fresh process imported our code: {found['ours']}"
    assert not found["keys"], f"missing or unexpected weights: {found['keys']}"
    assert found["difference"] <= TOLERANCE, f"logits differ by {found['difference']}"
    assert found["ids"] == ours, "the published tokenizer gives other ids"
    return Proof(found["difference"], len(texts), found["filled"])
