"""Cards whose snippets run, and what the Hub gets of a delta: by huggingface_hub's own client, to a
server on this machine."""

import base64
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, RobertaForMaskedLM
from typer.testing import CliRunner

from robustly import UserError, delta
from robustly.cli.commands import app
from robustly.delta.config import DeltaExperiment, load_delta
from robustly.delta.predictor import Predictor
from robustly.delta.publishing import hub
from robustly.delta.stage import make_delta
from robustly.delta.storage import peft_files
from robustly.delta.tasks.data import read
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary

ON_HUB = "delta.base_model=some-org/some-base"
LORA = "{name: lora, rank: 2}"
ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "classification": lambda n: {"text": f"abc {n}", "label": "xy"[n % 2]},
    "multi_label": lambda n: {"text": f"abc {n}", "label": ["x", "y"][n % 2 :]},
    "regression": lambda n: {"text": f"abc {n}", "label": n},
    "tokens": lambda n: {"words": [f"ab{n}", "c"], "tags": ["B-x", "O"]},
    "multiple_choice": lambda n: {"text": f"abc {n}", "choices": ["d", "e"], "answer": n % 2},
    "cloze": lambda n: {"text": f"abc {n}", "label": "xy"[n % 2]},
    "span_qa": lambda n: {
        "question": f"abc {n}",
        "context": "def ghi",
        "answers": {"text": ["ghi"], "answer_start": [4]},
    },
}
"""Kind of task -> a row of its files by number."""


def snippets(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def made(place: Path, folder: Path, *changes: str) -> DeltaExperiment:
    """A delta of one or two updates."""
    keys = [f"paths.published={place / 'base'}", f"paths.delta={folder}", "delta.seeds=1"]
    config = load_delta(place / "letters.yaml", [*keys, "optim.epochs=0.2", *changes])
    make_delta(config)
    return config


# -------------------------------------------------------------------------------------------- cards


@pytest.mark.parametrize(
    "method",
    [LORA, "{name: dora}", "{name: ia3}", "{name: adalora}", "{name: prefix, tokens: 2, hidden: 8}",
     "{name: p_tuning_v2, tokens: 2}", "{name: prompt, tokens: 2}", "{name: p_tuning, tokens: 2}",
     "{name: adapter, size: 2}", "{name: bitfit}"],
)  # fmt: skip
def test_the_snippets_of_every_method_run(
    place: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made(place, tmp_path / "delta", f"delta.methods=[{method}]")
    card = (tmp_path / "delta" / "README.md").read_text()
    runs = peft_files.runs_prefixes() or not re.search("prefix|p_tuning_v2", method)
    by_peft = (tmp_path / "delta" / peft_files.CONFIG).exists()
    assert len(snippets(card)) == 1 + (by_peft and runs)
    assert ("plain peft cannot run a prefix" in card) == (by_peft and not runs)
    for snippet in snippets(card):
        exec(snippet, {})

    assert re.search(r"\['(early|middle|late)'\]\n$", capsys.readouterr().out)


def with_words(base: Path, folder: Path) -> Path:
    """A base with a token each for the words `a` and `b` behind a space."""
    model = RobertaForMaskedLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 2)
    model.save_pretrained(folder)
    save_vocabulary(lay_out([("Ġ", "a"), ("Ġ", "b")]), folder)
    return folder


@pytest.mark.parametrize("kind", ROWS)
def test_the_snippets_of_every_kind_of_task_run(place: Path, tmp_path: Path, kind: str) -> None:
    rows = list(map(ROWS[kind], range(8)))
    for name, some in (("train", rows[:4]), ("test", rows[4:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))

    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    task = {"kind": kind, **files, "max_length": 40}
    base = place / "base"
    if kind == "cloze":
        base = with_words(base, tmp_path / "words")
        task |= {"template": "{text} <mask>", "words": {"x": "a", "y": "b"}}

    page = {
        "schema": 1, "name": "kind", "delta": {"task": task, "methods": [{"name": "lora", "rank": 2}]},
        "optim": {"epochs": 1}, "paths": {"published": str(base), "delta": str(tmp_path / "delta")},
    }  # fmt: skip
    (tmp_path / "page.yaml").write_text(json.dumps(page))
    make_delta(load_delta(tmp_path / "page.yaml"))
    found = snippets((tmp_path / "delta" / "README.md").read_text())
    assert len(found) == (1 if kind in ("multiple_choice", "span_qa") else 2)
    for snippet in found:
        exec(snippet, {})


def test_the_scores_are_smaller_than_the_delta(place: Path, tmp_path: Path) -> None:
    """However many labels there are: no table of labels x labels for each seed."""
    labels = [f"kind {number}" for number in range(60)]
    for name in ("train", "test"):
        rows = [{"text": f"{name} {label}", "label": label} for label in labels]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    config = load_delta(place / "letters.yaml", [
        f"paths.published={place / 'base'}", f"paths.root={tmp_path}", "delta.seeds=5", "optim.epochs=0.1",
        "delta.task.examples=60", *(f"delta.task.{n}={tmp_path / n}.jsonl" for n in ("train", "test")),
    ])  # fmt: skip
    make_delta(config)
    folder = config.folder("delta")
    scores = json.loads((folder / "scores.json").read_text())
    assert len(scores["seeds"]) == 5 and [row["label"] for row in scores["by_label"]] == sorted(
        labels
    )
    assert (folder / "scores.json").stat().st_size < (folder / "delta.safetensors").stat().st_size


# ---------------------------------------------------------------------------------------------- Hub


class Server(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of the Hub to push a folder of small files."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    deleted: list[str]
    asked: list[tuple[str, Any]]
    refuses = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        self.asked.append((self.path, lines))
        if self.refuses:
            self.answer(403, {"error": "you may not write there"})
        elif self.path == "/api/repos/create":
            self.answer(200, {"url": f"http://{self.headers['Host']}/some-org/some-delta"})
        elif self.path.endswith("/preupload/main"):
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer(200, {"files": [{"path": f["path"], **modes} for f in lines[0]["files"]]})
        elif self.path.endswith("/commit/main"):
            for line in lines:
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[line["value"]["path"]] = content
                elif line["key"] == "deletedFile":
                    del self.files[line["value"]["path"]]

            commit = "0" * 40
            url = f"http://{self.headers['Host']}/some-org/some-delta/commit/{commit}"
            self.answer(200, {"success": True, "commitOid": commit, "commitUrl": url})
        else:
            self.answer(200, {"warnings": [], "errors": []})

    def do_GET(self) -> None:
        self.asked.append((self.path, None))
        tree = [{"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in self.files.items()]  # fmt: skip
        self.answer(*((404, {}) if self.refuses else (200, tree)))

    def answer(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    Server.files, Server.deleted, Server.asked, Server.refuses = {}, [], [], False
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            "robustly.delta.publishing.hub.HfApi", partial(HfApi, endpoint=endpoint, token="x")
        )
        yield Server
        running.shutdown()


def fetched(server: type[Server], folder: Path) -> Path:
    folder.mkdir()
    for name, content in server.files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("method", "tensors"),
    [
        (LORA, {peft_files.CONFIG, peft_files.TENSORS}),
        ("{name: adalora}", {peft_files.CONFIG, peft_files.TENSORS}),
        ("{name: prefix, tokens: 2, hidden: 8}", {peft_files.CONFIG, peft_files.TENSORS}),
        ("{name: adapter, size: 2}", {"delta.safetensors"}),
    ],
)
def test_a_push(
    place: Path, tmp_path: Path, server: type[Server], method: str, tensors: set[str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """What arrives has its tensors once, names no folder of this machine, and is a delta."""
    config = made(place, tmp_path / "delta", f"delta.methods=[{method}]", ON_HUB)
    server.files["delta.safetensors"] = b"of an earlier push"
    address = hub.push(config, "some-org/some-delta", private=True)
    assert address.endswith("/some-org/some-delta")
    created = next(lines[0] for path, lines in server.asked if path == "/api/repos/create")
    assert (created["organization"], created["name"]) == ("some-org", "some-delta")
    assert created["visibility"] == "private"
    assert server.files.keys() == {
        "README.md", "delta.json", "manifest.json", "scores.json", *tensors
    }  # fmt: skip
    for name, content in server.files.items():
        assert str(place).encode() not in content and str(tmp_path).encode() not in content, name

    card = server.files["README.md"].decode()
    header = ModelCard(card).data
    assert header.base_model == "some-org/some-base"
    assert header.library_name == ("peft" if peft_files.CONFIG in tensors else None)

    arrived = fetched(server, tmp_path / "arrived")
    texts = ["abcd", "wxyz wxyz", "jklm"]
    here = delta.load(place / "base", tmp_path / "delta").logits(texts)
    there = delta.load(place / "base", arrived).logits(texts)
    assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))

    places = {"some-org/some-base": str(place / "base"), "some-org/some-delta": str(arrived)}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", places.__getitem__)
    exec(snippets(card)[0], {})
    assert re.search(r"\['(early|middle|late)'\]", capsys.readouterr().out)
    if method == LORA:
        bare = AutoModelForSequenceClassification.from_pretrained(place / "base", num_labels=3)
        model = PeftModel.from_pretrained(bare, arrived).eval()
        head = delta.load(place / "base", arrived).head
        assert torch.equal(Predictor(model, head, head.labels).logits(texts)[0], here[0])
        settings = json.loads(server.files[peft_files.CONFIG])
        assert settings["base_model_name_or_path"] == "some-org/some-base"


def test_a_damaged_push_is_noticed(place: Path, tmp_path: Path) -> None:
    config = made(place, tmp_path / "delta", f"delta.methods=[{LORA}]", ON_HUB)
    (tmp_path / "packed").mkdir()
    hub.pack(config, read(config.delta.task), "some-org/some-delta", tmp_path / "packed")
    tensors = bytearray((tmp_path / "packed" / peft_files.TENSORS).read_bytes())
    tensors[-1] ^= 1
    (tmp_path / "packed" / peft_files.TENSORS).write_bytes(tensors)
    with pytest.raises(UserError, match="damaged since it was written"):
        delta.load(place / "base", tmp_path / "packed")


def test_what_cannot_be_pushed(place: Path, tmp_path: Path, server: type[Server]) -> None:
    config = made(place, tmp_path / "delta", f"delta.methods=[{LORA}]")
    with pytest.raises(UserError, match=r"delta\.base_model is not set: expected the base's name"):
        hub.push(config, "some-org/some-delta", private=False)
    with pytest.raises(UserError, match="--push some-delta: expected ORG/NAME"):
        hub.push(config, "some-delta", private=False)

    named = load_delta(place / "letters.yaml", [ON_HUB, f"paths.delta={tmp_path / 'none'}"])
    with pytest.raises(UserError, match="no finished delta stage here"):
        hub.push(named, "some-org/some-delta", private=False)
    with pytest.raises(UserError, match=r"delta\.base_model"):
        load_delta(place / "letters.yaml", ["delta.base_model=/some/path/of/mine"])

    server.refuses = True
    again = made(place, tmp_path / "delta", f"delta.methods=[{LORA}]", ON_HUB)  # no other recipe
    with pytest.raises(
        UserError, match=r"--push some-org/some-delta: .*403.*that you may write there"
    ):
        hub.push(again, "some-org/some-delta", private=False)
    assert not server.files


def test_it_is_refused_before_anything_is_trained(place: Path, tmp_path: Path) -> None:
    arguments = ["delta", str(place / "letters.yaml"), f"paths.delta={tmp_path / 'delta'}"]
    done = CliRunner().invoke(app, [*arguments, "--push", "some-org/some-delta"])
    assert done.exit_code == 2 and "delta.base_model is not set" in done.stderr
    assert not (tmp_path / "delta").exists()
