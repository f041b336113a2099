"""From raw text to a published folder through the command line, as a user would."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import ROBUSTLY, ROOT, robustly, working_directory

from robustly.strict_json import sealed
from tests import warm

pytestmark = pytest.mark.pipeline
REPEATED = ("update", "epoch", "loss", "lr", "grad_norm", "masked_tokens", "tokens")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return working_directory(tmp_path)


def metrics(train: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (train / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in REPEATED} for line in lines]


def weights_of(train: Path) -> str:
    (state,) = sorted(train.glob("checkpoints/update-*/state.json"))[-1:]
    return json.loads(state.read_text())["files"]["weights.safetensors"]["sha256"]


def test_raw_text_to_a_published_folder(finished: tuple[Path, dict[str, Any]]) -> None:
    work, manifests = finished
    assert list(manifests) == ["tokenizer", "data", "train", "published"]
    root = work / "runs" / "small"
    for stage in manifests:
        written = json.loads((root / stage / "manifest.json").read_text())
        assert written == sealed(manifests[stage])

    assert len(metrics(root / "train")) == 30
    assert manifests["published"]["counts"]["max_logit_difference"] <= 1e-5


def test_the_same_command_again_does_nothing(finished: tuple[Path, dict[str, Any]]) -> None:
    work, manifests = finished
    files = [path for path in (work / "runs").rglob("*") if path.is_file() and path.name != ".lock"]
    stamps = {path: path.stat().st_mtime_ns for path in files}
    again = robustly(
        "run", "config.yaml", "run.micro_batch=3", "--json", cwd=work
    )  # `run` is no part of the recipe
    assert json.loads(again.stdout) == manifests
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_packages_import_inside_a_run_folder(finished: tuple[Path, dict[str, Any]]) -> None:
    """It holds folders of their names."""
    imports = (
        "import tokenizer, data_prep, robustly.pretrain.loop, publish.publish, launch;"
        " print(tokenizer.__file__)"
    )
    inside = subprocess.run(
        [sys.executable, "-c", imports],
        cwd=finished[0] / "runs" / "small",
        capture_output=True,
        text=True,
    )
    assert inside.stdout.strip() == str(ROOT / "tokenizer" / "__init__.py"), inside.stderr


def test_plain_transformers_loads_what_was_published(finished: tuple[Path, dict[str, Any]]) -> None:
    """In a process of its own, without our code."""
    work, _ = finished
    published = work / "runs" / "small" / "published"
    program = """
import sys, json
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
folder = sys.argv[1]
model, loading = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
guesses = pipeline("fill-mask", model=folder)("The <mask> was here.")
print(json.dumps({
    "class": type(model).__name__, "left": sorted(str(k) for found in loading.values() for k in found),
    "fast": tokenizer.is_fast, "ids": tokenizer("Hello <mask>")["input_ids"], "max": tokenizer.model_max_length,
    "mask": tokenizer.mask_token_id, "guesses": len(guesses), "eps": model.config.layer_norm_eps,
    "positions": model.config.max_position_embeddings, "types": model.config.type_vocab_size,
    "tied": model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight,
    "dtype": str(next(model.parameters()).dtype),
}))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", program, str(published)],
        cwd=work,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ids = found.pop("ids")
    assert ids[0] == 0 and ids[-2:] == [499, 2]  # <mask> took the space on its left
    assert found == {
        "class": "RobertaForMaskedLM", "left": [], "fast": True, "max": 64, "mask": 499, "guesses": 5, "eps": 1e-5,
        "positions": 66, "types": 1, "tied": True, "dtype": "torch.float32",
    }  # fmt: skip
    card = (published / "README.md").read_text()
    assert card.startswith("---\n") and "pipeline_tag: fill-mask" in card and "perplexity" in card
    assert (published / "config.yaml").exists() and (published / "metrics.jsonl").exists()


def test_a_folder_that_is_not_the_trained_model_is_not_published(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(warm.commands() / "python"))
    import torch
    from transformers import RobertaForMaskedLM

    from robustly.publish.proof import prove
    from robustly.tokenizer import load_tokenizer

    root = finished[0] / "runs" / "small"
    model = RobertaForMaskedLM.from_pretrained(root / "published").eval()
    encoder = load_tokenizer(root / "tokenizer")
    view = {"block_length": 64, "format": "full_sentences"}
    copy = tmp_path / "copy"
    shutil.copytree(root / "published", copy)
    proof = prove(copy, model, encoder, root / "data", view)
    assert not proof.faults and proof.counts["max_logit_difference"] <= 1e-5
    held_out = finished[1]["data"]["counts"]["validation_documents"]
    assert proof.counts["documents_with_equal_ids"] == min(held_out, 64)

    with torch.no_grad():
        model.roberta.encoder.layer[1].output.dense.bias[0] += (
            0.1  # of one unit: LayerNorm removes a shift of all
        )

    (fault,) = prove(copy, model, encoder, root / "data", view).faults
    assert fault.startswith("logits differ by")
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": False}))
    faults = prove(copy, model, encoder, root / "data", view).faults
    assert faults[0].startswith("missing or unexpected weights: ")


def test_a_model_that_fails_its_proof_is_kept_apart(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustly import Unproven, manifest
    from robustly.cli.common import ending
    from robustly.publish.config import PublishConfig
    from robustly.publish.proof import Proof
    from robustly.publish.publish import publish

    root = finished[0] / "runs" / "small"
    folders = root / "train", root / "data", root / "tokenizer", tmp_path / "published"
    found = {"transformers": "5", "max_logit_difference": 0.0, "documents_with_equal_ids": 9}
    failed = Proof({}, {}, ["the tokenizer does not load or encode: why", "logits differ"], [])
    proofs = [failed, failed, Proof(found, {}, [], ["2 of 11 documents are left out"])]
    monkeypatch.setattr("robustly.publish.publish.prove", lambda *_: proofs.pop(0))

    with pytest.raises(Unproven, match="logits differ") as raised:
        publish(PublishConfig(), "small", *folders)

    assert ending(raised.value) == (1, str(raised.value))
    assert "does not load or encode: why" in str(raised.value)
    apart = tmp_path / "published-unproven"
    assert str(apart) in str(raised.value)
    assert {"model.safetensors", "README.md", "tokenizer.json"} < {p.name for p in apart.iterdir()}
    assert "**Not proven to be the trained model:**" in (apart / "README.md").read_text()
    assert json.loads((apart / "proof.json").read_text())["faults"][1] == "logits differ"
    assert manifest.read(folders[-1]) is None and not (folders[-1] / "model.safetensors").exists()

    accepted = publish(PublishConfig(accept_unproven=True), "small", *folders)
    assert accepted.counts["not_proven"] == failed.faults and not apart.exists()
    assert "**Not proven to be the trained model:**" in (folders[-1] / "README.md").read_text()
    shutil.rmtree(folders[-1])

    made = publish(PublishConfig(), "small", *folders)  # the same again, once it can be proven
    assert made.counts["not_proven"] == ["2 of 11 documents are left out"]
    assert made.counts["documents_with_equal_ids"] == 9 and not apart.exists()
    assert "* 2 of 11 documents are left out" in (folders[-1] / "README.md").read_text()


def test_only_the_checkpoint_that_the_run_ended_with_is_published(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(finished[0], work)
    root = work / "runs" / "small"
    shutil.rmtree(root / "published")
    weights = root / "train" / "checkpoints" / "update-00000030" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    refused = robustly(
        "publish", "config.yaml", cwd=work, code=2
    )  # not: update 27 under the name of 30
    assert (
        "update-00000030/weights.safetensors: missing, cut off or changed since the run finished"
        in refused.stderr
    )
    assert not (root / "published" / "model.safetensors").exists()


def test_a_changed_recipe_is_refused_and_a_sibling_reuses_what_fits(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(finished[0], work)
    root = work / "runs" / "small"
    refused = robustly("run", "config.yaml", "optim.peak_lr=1e-3", cwd=work, code=2)
    assert (
        "optim.peak_lr: 0.002 there, 0.001 now" in refused.stderr
        and "Traceback" not in refused.stderr
    )
    other_vocabulary = robustly(
        "tokenizer", "config.yaml", "tokenizer.vocab_size=400", cwd=work, code=2
    )
    assert "tokenizer.vocab_size: 500 there, 400 now" in other_vocabulary.stderr
    again = robustly("pretrain", "config.yaml", "--new-run", "small", cwd=work, code=2)
    assert "expected the name of another folder" in again.stderr
    sibling = robustly(
        "pretrain", "config.yaml", "schedule.updates=4", "--new-run", "sibling", "--json", cwd=work
    )
    assert json.loads(sibling.stdout)["counts"]["updates"] == 4
    assert sorted(path.name for path in (work / "runs" / "sibling").iterdir()) == ["train"]
    assert len(metrics(root / "train")) == 30


@pytest.mark.full
def test_sigkill_at_random_moments_changes_nothing(
    work: Path, finished: tuple[Path, dict[str, Any]]
) -> None:
    straight = finished[0] / "runs" / "small"
    for updates in (0, 0, 16):  # 0: in the first seconds, during tokenizer, data or start
        with subprocess.Popen(
            [str(ROBUSTLY), "run", "config.yaml", "paths.root=killed"],
            cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            while updates and len(metrics_so_far(work / "killed" / "train")) < updates:
                assert process.poll() is None
                time.sleep(0.01)

            time.sleep(random.uniform(0, 0.3 if updates else 8))
            process.send_signal(signal.SIGKILL)  # the parent alone: its ranks must not outlive it

    assert list((work / "killed" / "train" / "checkpoints").glob("update-*"))
    robustly("run", "config.yaml", "paths.root=killed", cwd=work)
    assert metrics(work / "killed" / "train") == metrics(straight / "train")
    assert weights_of(work / "killed" / "train") == weights_of(straight / "train")
    for name in ("tokenizer/vocab.json", "tokenizer/merges.txt"):
        assert (work / "killed" / name).read_bytes() == (straight / name).read_bytes()

    for shard in (straight / "data").glob("*.npy"):
        assert (work / "killed" / "data" / shard.name).read_bytes() == shard.read_bytes()


def test_ctrl_c_stops_with_a_checkpoint_and_the_same_command_goes_on(work: Path) -> None:
    robustly("prepare", "config.yaml", cwd=work, code=2)  # says what comes first
    robustly("tokenizer", "config.yaml", cwd=work)
    robustly("prepare", "config.yaml", cwd=work)

    with subprocess.Popen(
        [str(ROBUSTLY), "pretrain", "config.yaml", "schedule.updates=5000", "run.checkpoint_every=100000"],
        cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        # a shell's background jobs ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        train = work / "runs" / "small" / "train"
        while not (train / "metrics.jsonl").exists() or len(metrics_so_far(train)) < 3:
            assert process.poll() is None
            time.sleep(0.2)

        process.send_signal(signal.SIGINT)
        _, messages = process.communicate()

    assert process.returncode == 130
    assert "stopped after update" in messages and "Traceback" not in messages
    (saved,) = train.glob("checkpoints/update-*")
    done = int(saved.name.removeprefix("update-"))
    assert metrics_so_far(train)[-1]["update"] == done


def metrics_so_far(train: Path) -> list[dict[str, Any]]:
    from robustly.metrics import read_metrics

    return read_metrics(train / "metrics.jsonl")
