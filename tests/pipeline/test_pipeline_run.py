"""From raw text to a published folder through the command line, as a user would."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.pipeline
ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "data_prep" / "corpora" / "prose_cc0.txt"
ROBUSTLY = Path(sys.executable).with_name("robustly")
REPEATED = ("update", "epoch", "loss", "lr", "grad_norm", "masked_tokens", "tokens")


def robustly(*arguments: str, cwd: Path, code: int = 0, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(ROBUSTLY), *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
    )
    assert done.returncode == code, f"exit code {done.returncode}, expected {code}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working directory with a small corpus and a page that trains in seconds."""
    text = CORPUS.read_text(encoding="utf-8")
    (tmp_path / "corpus.txt").write_text(text[: text.index("\n\n", 150_000)], encoding="utf-8")
    (tmp_path / "page.yaml").write_text(
        f"""
base: {ROOT}/configs/tiny.yaml
name: small
corpus: {{sources: corpus.txt, validation: 0.1}}
tokenizer: {{vocab_size: 500}}
data: {{block_length: 64}}
model: {{layers: 2, hidden: 32, heads: 2, feed_forward: 64, positions: 66}}
optim: {{batch_size: 24}}
schedule: {{updates: 30, warmup: 3}}
run: {{micro_batch: 4, log_every: 1, evaluate_every: 15, evaluate_blocks: 16, checkpoint_every: 3, workers: 1}}
""",
        encoding="utf-8",
    )
    return tmp_path


def metrics(train: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (train / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in REPEATED} for line in lines]


def weights_of(train: Path) -> str:
    (state,) = sorted(train.glob("checkpoints/update-*/state.json"))[-1:]
    return json.loads(state.read_text())["files"]["weights.safetensors"]["sha256"]


def test_raw_text_to_a_published_folder_and_again(work: Path) -> None:
    before = set(Path("/dev/shm").glob("*"))
    first = robustly("run", "page.yaml", "--json", cwd=work)
    manifests = json.loads(first.stdout)  # nothing else on stdout
    assert list(manifests) == ["tokenizer", "data", "train", "published"]
    root = work / "runs" / "small"
    for stage in manifests:
        assert json.loads((root / stage / "manifest.json").read_text()) == manifests[stage]
    assert len(metrics(root / "train")) == 30
    assert manifests["published"]["counts"]["max_logit_difference"] <= 1e-5
    assert set(Path("/dev/shm").glob("*")) <= before

    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.name != ".lock"}
    started = time.monotonic()
    again = robustly("run", "page.yaml", "--json", cwd=work)
    assert time.monotonic() - started < 60
    assert json.loads(again.stdout) == manifests
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps

    check_published(root / "published", work)
    check_changed_recipe(work, root)
    # the packages import from inside a run folder, which holds folders of their names
    imports = "import tokenizer, data_prep, pretrain.loop, publish.publish, launch; print(tokenizer.__file__)"
    inside = subprocess.run(
        [sys.executable, "-c", imports],
        cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    assert inside.stdout.strip() == str(ROOT / "tokenizer" / "__init__.py"), inside.stderr


def check_published(published: Path, work: Path) -> None:
    """By plain transformers in a process of its own, without our code."""
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
        [sys.executable, "-I", "-W", "ignore", "-c", program, str(published)], cwd=work, capture_output=True, text=True
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


def check_changed_recipe(work: Path, root: Path) -> None:
    refused = robustly("run", "page.yaml", "optim.peak_lr=1e-3", cwd=work, code=2)
    assert "optim.peak_lr: 0.002 there, 0.001 now" in refused.stderr and "Traceback" not in refused.stderr
    other_vocabulary = robustly("tokenizer", "page.yaml", "tokenizer.vocab_size=400", cwd=work, code=2)
    assert "tokenizer.vocab_size: 500 there, 400 now" in other_vocabulary.stderr
    # a sibling run reuses tokenizer and data
    sibling = robustly("pretrain", "page.yaml", "schedule.updates=4", "--new-run", "sibling", "--json", cwd=work)
    manifest = json.loads(sibling.stdout)
    assert manifest["counts"]["updates"] == 4
    assert sorted(path.name for path in (work / "runs" / "sibling").iterdir()) == ["train"]
    assert len(metrics(root / "train")) == 30


def test_sigkill_at_random_moments_changes_nothing(work: Path) -> None:
    robustly("run", "page.yaml", "paths.root=straight", cwd=work)
    started = time.monotonic()
    kills = 0
    while kills < 4:
        process = subprocess.Popen(
            [str(ROBUSTLY), "run", "page.yaml", "paths.root=killed"],
            cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            process.wait(timeout=random.uniform(2, 11))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)  # the parent alone: its ranks must not outlive it
            process.wait()
            kills += 1
    assert kills
    robustly("run", "page.yaml", "paths.root=killed", cwd=work)
    assert metrics(work / "killed" / "train") == metrics(work / "straight" / "train")
    assert weights_of(work / "killed" / "train") == weights_of(work / "straight" / "train")
    for name in ("tokenizer/vocab.json", "tokenizer/merges.txt"):
        assert (work / "killed" / name).read_bytes() == (work / "straight" / name).read_bytes()
    for shard in (work / "straight" / "data").glob("*.npy"):
        assert (work / "killed" / "data" / shard.name).read_bytes() == shard.read_bytes()


def test_ctrl_c_stops_with_a_checkpoint_and_the_same_command_goes_on(work: Path) -> None:
    robustly("prepare", "page.yaml", cwd=work, code=2)  # says what comes first
    robustly("tokenizer", "page.yaml", cwd=work)
    robustly("prepare", "page.yaml", cwd=work)
    with subprocess.Popen(
        [str(ROBUSTLY), "pretrain", "page.yaml", "schedule.updates=5000", "run.checkpoint_every=100000"],
        cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:  # fmt: skip
        train = work / "runs" / "small" / "train"
        while not (train / "metrics.jsonl").exists() or len(metrics_so_far(train)) < 3:
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped after update" in messages and "Traceback" not in messages
    (saved,) = train.glob("checkpoints/update-*")
    done = int(saved.name.removeprefix("update-"))
    assert metrics_so_far(train)[-1]["update"] == done


def metrics_so_far(train: Path) -> list[dict[str, Any]]:
    from robustly.log import read_metrics

    return read_metrics(train / "metrics.jsonl")
