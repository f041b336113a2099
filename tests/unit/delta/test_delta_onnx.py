"""ONNX: a base, a merged delta and a delta on its base, by onnxruntime as by transformers and torch."""

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM
from typer.testing import CliRunner, Result

from robustly import Unproven, delta
from robustly.cli.commands import app
from robustly.delta.base_model import Base
from robustly.delta.config import load_delta
from robustly.delta.methods import METHODS, name_of
from robustly.delta.publishing.merged import write_merged
from robustly.delta.stage import make_delta
from robustly.publish import onnx

TEXTS = ["abcd", "wxyz wx yz w", "jklm " * 4, "a"]


def robustly(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, f"{done.exit_code}: {done.stderr}{done.exception}"
    return done


def made(place: Path, folder: Path, methods: str) -> Path:
    keys = [
        f"paths.published={place / 'base'}",
        f"paths.delta={folder}",
        f"delta.methods={methods}",
    ]
    make_delta(load_delta(place / "letters.yaml", [*keys, "delta.seeds=1", "optim.epochs=0.5"]))
    return folder


def by_onnxruntime(folder: Path, texts: list[str]) -> np.ndarray[Any, Any]:
    """What the files in the folder alone make of texts: the first output."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
    session = InferenceSession(folder / "model.onnx")
    given = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    found: np.ndarray[Any, Any] = session.run(None, given)[0]
    return found


def assert_as_the_delta(place: Path, folder: Path, exported: Path, texts: list[str]) -> None:
    expected = delta.load(place / "base", folder).logits(texts)
    found = torch.from_numpy(by_onnxruntime(exported, texts))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_a_base(place: Path, tmp_path: Path) -> None:
    done = robustly("export", place / "base", "--into", tmp_path / "base", "--json")
    facts = json.loads(done.stdout)
    assert facts["outputs"] == ["logits"] and facts["max_difference"] < 1e-4
    model = AutoModelForMaskedLM.from_pretrained(place / "base").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "base")

    for texts in (TEXTS, TEXTS[:1]):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).logits
        found = torch.from_numpy(by_onnxruntime(tmp_path / "base", texts))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    robustly("export", place / "base", "--into", tmp_path / "base", code=2)  # it is there


def test_a_delta_of_many_methods(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a prompt and a prefix; a long text is cut as in training; the card's program runs."""
    methods = "[{name: lora}, {name: adapter}, {name: p_tuning_v2, tokens: 3}, {name: prompt, tokens: 4}, {name: bitfit}]"
    folder = made(place, tmp_path / "delta", methods)
    exported = tmp_path / "onnx"
    robustly("export", folder, "--into", exported)
    assert_as_the_delta(place, folder, exported, [*TEXTS, "xyz " * 50])
    labels = json.loads((exported / "config.json").read_text())["id2label"]
    assert [*labels.values()] == ["early", "late", "middle"]

    card = (exported / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    assert "Labels, in the order of the logits: early, late, middle." in card
    assert str(tmp_path) not in card

    found = onnx._open(folder, None)
    other = copy.deepcopy(found.model)
    with torch.no_grad():
        other.classifier.out_proj.bias += 0.01
    with pytest.raises(Unproven, match="onnxruntime gives other logits"):
        onnx._prove(found._replace(model=other), exported / "model.onnx", ["logits"])


@pytest.mark.full
def test_a_merged_delta(place: Path, base: Base, tmp_path: Path) -> None:
    folder = made(place, tmp_path / "delta", "[{name: lora}, {name: ia3}]")
    write_merged(delta.load(base, folder), base, tmp_path / "merged")
    robustly("export", tmp_path / "merged", "--into", tmp_path / "onnx")
    assert_as_the_delta(place, folder, tmp_path / "onnx", TEXTS)


@pytest.mark.full
@pytest.mark.parametrize("method", [name_of(each) for each in METHODS if each.conformance_tested])
def test_every_method(place: Path, tmp_path: Path, method: str) -> None:
    size = (
        ", tokens: 3"
        if "tokens" in METHODS[[*map(name_of, METHODS)].index(method)].model_fields
        else ""
    )
    folder = made(place, tmp_path / "delta", f"[{{name: {method}{size}}}]")
    onnx.export(folder, tmp_path / "onnx")
    assert_as_the_delta(place, folder, tmp_path / "onnx", TEXTS)


def test_what_cannot_be_exported(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = ("--into", tmp_path / "onnx")
    done = robustly("export", place / "base", "--base", place / "other", *into, code=2)
    assert "for a delta, and" in done.stderr
    BertForMaskedLM(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")  # fmt: skip
    done = robustly("export", tmp_path / "bert", *into, code=2)
    assert "BertForMaskedLM; expected a RoBERTa" in done.stderr
    assert "no model here" in robustly("export", place, *into, code=2).stderr
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = robustly("export", place / "base", *into, code=2)
    assert "onnxruntime is not installed; `pip install 'robustly[onnx]'`" in done.stderr
    assert not (tmp_path / "onnx").exists()
