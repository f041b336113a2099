"""Ranks that would not train the same thing are named before the first update, on all ranks, and
none waits for another."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from small_config import SMALL, die_after, last_checkpoint

from ranks import run_distributed
from robustly import UserError, exit_codes, manifest, provenance
from robustly.experiment import data_work, load_experiment, tokenizer_work
from robustly.files import sha256, write_json
from robustly.metrics import read_metrics
from robustly.pretrain import loop
from robustly.pretrain.agreement import disagreements
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.loop import pretrain
from robustly.pretrain.ranks import FailedOnAnotherRank
from robustly.pretrain.sessions import Session
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.trace import batches_of
from robustly.pretrain.updates import Updates
from robustly.strict_json import SEAL, sealed
from tests import warm

pytestmark = pytest.mark.distributed
MakePretraining = Callable[..., PretrainingConfig]


def end(rank: int, ranks: int, configs: list[PretrainingConfig]) -> list[str]:
    """How training ends on a rank that is given its own config."""
    torch.set_num_threads(1)
    try:
        pretrain(configs[rank], rank, rank, ranks)
    except (UserError, FailedOnAnotherRank) as fault:
        return [type(fault).__name__, str(fault)]
    return ["trained", ""]


def refusal(*configs: PretrainingConfig) -> str:
    """What rank 0 says where all ranks are refused; a rank that hangs fails the test."""
    ends = run_distributed(len(configs), end, list(configs), timeout=100)
    assert [kind for kind, _ in ends] == [
        "UserError",
        *["FailedOnAnotherRank"] * (len(configs) - 1),
    ]
    return ends[0][1]


def nothing_was_written(config: PretrainingConfig) -> bool:
    folder = config.folder("train")
    return not folder.exists() or not any(folder.iterdir())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("seed=7", "seed = 7, rank 0 has 1"),
        ("optim.peak_lr=1e-3", "optim.peak_lr = 0.001, rank 0 has 0.002"),
        ("model.dropout=0.2", "model.dropout = 0.2, rank 0 has 0.1"),
        ("masking.probability=0.2", "masking.probability = 0.2, rank 0 has 0.3"),
        ("run.zero_stage=3", "run.zero_stage = 3, rank 0 has 0"),
        ("run.checkpoint_every=5", "run.checkpoint_every = 5, rank 0 has 2"),
        ("run.micro_batch=2", "run.micro_batch = 2, rank 0 has 4"),
        ("schedule.updates=10", "schedule.updates = 10, rank 0 has 12"),
        ("data.block_length=32", "data.block_length = 32, rank 0 has 64"),
    ],
)
def test_another_config_on_a_rank_is_named(
    pretraining: MakePretraining, change: str, line: str
) -> None:
    config, other = pretraining(), pretraining("train", change)
    said = refusal(config, other)
    assert said.count("\n") == 2 and "rank 1 on " in said and line in said
    assert nothing_was_written(config)


def test_of_several_ranks_the_odd_one_is_named_first_or_not() -> None:
    own, theirs = {"seed": 2, "code": {"commit": "c"}}, {"seed": 1, "code": {"commit": "c"}}
    other_code = {"seed": 1, "code": {"commit": "d"}}
    hosts = ["a", "a", "b", "b"]
    assert disagreements(hosts, [own, theirs, theirs, other_code]) == [
        "rank 0 on a: seed = 2, rank 1 has 1",
        "rank 3 on b: code.commit = d, rank 0 has c",
    ]
    assert disagreements(hosts[1:3], [own, theirs]) == ["rank 1 on b: seed = 1, rank 0 has 2"]


def test_all_processes_end_with_the_code_of_a_mistake(
    pretraining: MakePretraining, prepared: Path, tmp_path: Path
) -> None:
    """As under a launcher, each told apart by its environment alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
        address |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}

    places = [f"paths.root={prepared}", f"paths.train={tmp_path / 'train'}"]
    command = [str(warm.commands() / "robustly"), "pretrain", "configs/tiny.yaml", *SMALL, *places]
    processes = [
        subprocess.Popen(
            [*command, f"run.zero_stage={rank}"],
            env={**os.environ, **address, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [exit_codes.MISTAKE] * 2
    assert "run.zero_stage = 1, rank 0 has 0" in said[0]
    assert not any("Traceback" in text for text in said)
    # how, and what was said of it, and no more
    assert {path.name for path in (tmp_path / "train").iterdir()} - {"logs"} == {"ends"}


def test_a_resume_with_another_config_on_a_rank_is_refused(pretraining: MakePretraining) -> None:
    config = pretraining()
    run_distributed(2, die_after, config, 4)
    before = (config.folder("train") / "config.yaml").read_bytes()
    said = refusal(config, pretraining("train", "run.checkpoint_every=5"), config)
    assert "rank 1 on " in said and "rank 2" not in said
    assert (config.folder("train") / "config.yaml").read_bytes() == before


def test_it_is_found_also_where_the_run_is_finished(pretraining: MakePretraining) -> None:
    config = pretraining("train", "schedule.updates=4")
    run_distributed(1, end, [config])
    assert "seed = 7, rank 0 has 1" in refusal(
        config, pretraining("train", "schedule.updates=4", "seed=7")
    )


def end_with_other_code(
    rank: int, ranks: int, config: PretrainingConfig, change: dict[str, Any]
) -> list[str]:
    if rank == 1:
        own = provenance.code()
        changed = {**own, **change, "versions": {**own["versions"], **change.get("versions", {})}}
        loop.code = lambda: changed
    return end(rank, ranks, [config] * ranks)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"commit": "0123abc-dirty"}, "code.commit = 0123abc-dirty, rank 0 has "),
        ({"source": "f" * 64}, "code.source = ffff"),
        ({"versions": {"torch": "1.0"}}, "code.versions.torch = 1.0, rank 0 has 2."),
    ],
)
def test_other_code_on_a_rank_is_named(
    pretraining: MakePretraining, change: dict[str, Any], line: str
) -> None:
    config = pretraining()
    ends = run_distributed(2, end_with_other_code, config, change)
    assert ends[0][0] == "UserError" and line in ends[0][1]
    assert ends[1][0] == "FailedOnAnotherRank" and nothing_was_written(config)


@pytest.fixture(scope="module")
def elsewhere(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tokenizer, and data by it."""
    root = tmp_path_factory.mktemp("elsewhere")
    places = [f"corpus.sources={prepared / 'corpus.txt'}", f"paths.root={root}"]
    experiment = load_experiment("configs/tiny.yaml", [*SMALL, *places, "tokenizer.vocab_size=510"])
    tokenizer_work(experiment).make()
    data_work(experiment).make()
    return root


def test_other_data_or_tokenizer_on_a_rank_is_named(
    pretraining: MakePretraining, elsewhere: Path
) -> None:
    config = pretraining()
    paths = (f"paths.{stage}={elsewhere / stage}" for stage in ("tokenizer", "data"))
    said = refusal(config, pretraining("train", *paths))
    assert "rank 1 on " in said and "inputs.data = " in said and "inputs.tokenizer = " in said
    assert nothing_was_written(config)


def test_data_of_the_same_recipe_with_other_files_is_named(
    pretraining: MakePretraining, prepared: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(prepared / "data", tmp_path / "data")
    finished = manifest.read(copy)
    assert finished
    outputs = {name: facts for name, facts in finished.outputs.items() if "validation" not in name}
    made = replace(finished, outputs=outputs)
    write_json(copy / "manifest.json", sealed(asdict(made)))
    config = pretraining()
    assert "files.data = " in refusal(config, pretraining("train", f"paths.data={copy}"))


def test_another_packed_index_on_a_rank_is_named(
    pretraining: MakePretraining, prepared: Path, tmp_path: Path
) -> None:
    """One that fits its manifest, so that its rank finds no fault with it."""
    copy = shutil.copytree(prepared / "data", tmp_path / "data")
    index = next((copy / "views").glob("train-*-64-*.npy"))
    flip_a_bit(index)
    made = json.loads(index.with_suffix(".json").read_text())
    del made[SEAL]
    write_json(index.with_suffix(".json"), sealed({**made, "sha256": sha256(index)}))
    config = pretraining()
    said = refusal(config, pretraining("train", f"paths.data={copy}"))
    assert "packed_index.train = " in said and nothing_was_written(config)


def flip_a_bit(path: Path, block: int = -1) -> None:
    """Move the begin of a block by a token."""
    content = bytearray(path.read_bytes())
    rows = np.load(path)
    content[len(content) - rows.nbytes + block % len(rows) * rows.itemsize] ^= 1
    path.write_bytes(content)


def test_a_packed_index_with_a_flipped_bit_is_never_trained_on(
    pretraining: MakePretraining, prepared: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(prepared / "data", tmp_path / "data")
    straight, healed = pretraining("straight"), pretraining("healed", f"paths.data={copy}")
    run_distributed(1, end, [straight])
    first_block = int(batches_of(healed).last.share(1).samples.block[0])
    flip_a_bit(next((copy / "views").glob("train-*-64-*.npy")), first_block)
    run_distributed(1, end, [healed])
    one, other = (last_checkpoint(config.folder("train")) for config in (straight, healed))
    assert one.files == other.files


def test_ranks_need_not_see_the_runs_folder(
    pretraining: MakePretraining, prepared: Path, tmp_path: Path
) -> None:
    """Only rank 0 reads and writes it, also in a resume; a stale copy elsewhere does not matter."""
    shared, alone = pretraining("shared"), pretraining("alone")
    away = pretraining("away")
    assert run_distributed(2, end, [shared, shared]) == [["trained", ""]] * 2

    def die(rank: int, ranks: int) -> None:
        die_after(rank, ranks, [alone, away][rank], 6)

    run_distributed(2, die)
    assert nothing_was_written(away)
    stale = away.folder("train")
    shutil.copytree(shared.folder("train") / "checkpoints", stale / "checkpoints")
    (stale / "recipe.json").write_text('{"hash": "another"}')
    assert run_distributed(2, end, [alone, away]) == [["trained", ""]] * 2
    assert (
        last_checkpoint(alone.folder("train")).files
        == last_checkpoint(shared.folder("train")).files
    )


def test_a_checkpoint_of_blocks_that_were_packed_otherwise_is_refused(
    pretraining: MakePretraining,
) -> None:
    config = pretraining()
    run_distributed(1, die_after, config, 4)

    def with_other_blocks(rank: int, ranks: int) -> list[str]:
        loop.Inputs.packed_index = property(lambda self: {"train": "other"})  # type: ignore
        return end(rank, ranks, [config])

    ((kind, said),) = run_distributed(1, with_other_blocks)
    assert kind == "UserError" and "its blocks were packed by other code" in said


# ------------------------------------------------------------------------------------------ records


def session_lines(config: PretrainingConfig) -> list[dict[str, Any]]:
    lines = (config.folder("train") / "sessions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_each_session_has_a_line(pretraining: MakePretraining) -> None:
    changes = ("run.precision=bf16", "run.zero_stage=1", "run.micro_batch=2")
    first, second = pretraining(), pretraining("train", *changes)
    run_distributed(2, die_after, first, 4)
    run_distributed(1, die_after, second, 8)
    run_distributed(1, end, [second])
    lines = session_lines(first)
    assert [(line["from_update"], line["to_update"]) for line in lines] == [(0, 4), (4, 8), (8, 12)]
    assert [line["ranks"] for line in lines] == [2, 1, 1]
    assert [line["precision"] for line in lines] == ["fp32", "bf16", "bf16"]
    assert [line["micro_batch"] for line in lines] == [4, 2, 2]
    assert [line["zero_stage"] for line in lines] == [0, 1, 1]
    assert [line["devices"] for line in lines] == [{"CPU": 2}, {"CPU": 1}, {"CPU": 1}]
    for line in lines:
        assert line.keys() == Session.__dataclass_fields__.keys()
        assert line["commit"] == manifest.commit() and line["versions"] == provenance.versions()
        assert line["hosts"] == [os.uname().nodename] and line["started"].startswith("20")

    finished = manifest.require(first.folder("train"), "train")
    assert "sessions.jsonl" in finished.outputs
    best = checkpoint.of_finished(first.folder("train"), 12)
    assert [each.to_update for each in best.progress.sessions] == [4, 8, 12]


def test_a_start_that_left_no_checkpoint_has_no_line(pretraining: MakePretraining) -> None:
    config = pretraining()
    run_distributed(1, die_after, config, 4)
    (config.folder("train") / "sessions.jsonl").write_text("spoilt")  # it is written anew

    def die_at_once(rank: int, ranks: int) -> None:
        Updates.make = None  # type: ignore
        with pytest.raises(TypeError):
            pretrain(config, rank, rank, ranks)

    run_distributed(1, die_at_once)
    assert [line["to_update"] for line in session_lines(config)] == [4, 4]
    run_distributed(1, end, [config])
    assert [line["to_update"] for line in session_lines(config)] == [4, 12]


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b'loss": ') + 7] ^= 1  # a digit: another one
    path.write_bytes(content)


def break_lines(path: Path) -> None:
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*whole[:1], b"42\n", b"\xff\n", *whole[1:], b'{"update": 7, "lo']))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("metrics.jsonl", lose),
        ("evaluations.jsonl", cut),
        ("evaluations.jsonl", change),
        ("metrics.jsonl", break_lines),
    ],
)
def test_lost_metrics_are_refused_unless_that_is_accepted(
    pretraining: MakePretraining, name: str, damage: Callable[[Path], None]
) -> None:
    config = pretraining()
    run_distributed(1, die_after, config, 6)
    file = config.folder("train") / name
    whole = file.read_bytes()
    damage(file)
    damaged = file.read_bytes() if file.exists() else None
    ((kind, said),) = run_distributed(1, end, [config])
    lines = whole.count(b"\n")
    assert kind == "UserError" and str(file) in said and "run.accept_lost_metrics=true" in said
    assert f"expected {lines} lines, {len(whole):,} bytes" in said and "update 6" in said
    assert (file.read_bytes() if file.exists() else None) == damaged

    accepting = pretraining("train", "run.accept_lost_metrics=true")
    assert run_distributed(1, end, [accepting]) == [["trained", ""]]
    assert {line["update"] for line in read_metrics(file)} >= {12}
    assert [line["lost_metrics"] for line in session_lines(config)] == [[], [name]]


def test_lines_after_the_checkpoint_are_cut(pretraining: MakePretraining) -> None:
    config = pretraining()
    run_distributed(1, die_after, config, 6)
    file = config.folder("train") / "metrics.jsonl"
    file.write_bytes(file.read_bytes() + b'{"update": 7, "loss": 1.0}\n{"update": 8, "lo')
    assert run_distributed(1, end, [config]) == [["trained", ""]]
    assert [line["update"] for line in read_metrics(file)] == list(range(1, 13))


# --------------------------------------------------------------------------------------- config.yaml


def test_the_runs_config_is_a_config(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a base, relative paths, and a folder that it starts from: the same stages, from any
    folder."""
    (tmp_path / "mine").mkdir()
    shutil.copyfile(prepared / "corpus.txt", tmp_path / "corpus.txt")
    small = {}
    for assignment in SMALL:
        key, _, value = assignment.partition("=")
        section, _, leaf = key.partition(".")
        small.setdefault(section, {})[leaf] = yaml.safe_load(value)

    base = {
        **small,
        "base": "tiny.yaml",
        "corpus": {**small["corpus"], "sources": "corpus.txt"},
        "schedule": {"updates": 4, "warmup": 1},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "mine" / "first.yaml").write_text("base: ../base.yaml\nname: first\n")
    second = "base: first.yaml\nname: second\nmodel: {init_from: ../runs/first}\n"
    (tmp_path / "mine" / "second.yaml").write_text(second)
    third = "base: first.yaml\nname: third\ndistillation: {teacher: ../runs/first}\n"
    (tmp_path / "mine" / "third.yaml").write_text(third)
    (tmp_path / "away").mkdir()

    for name in ("first", "second", "third"):
        monkeypatch.chdir(tmp_path)
        config = load_experiment(tmp_path / "mine" / f"{name}.yaml")
        tokenizer_work(config).make()
        data_work(config).make()
        assert run_distributed(1, end, [config]) == [["trained", ""]]

        monkeypatch.chdir(tmp_path / "away")
        again = load_experiment(tmp_path / "runs" / name / "train" / "config.yaml")
        assert again.stage().finished() is not None
        for work in (tokenizer_work, data_work):
            made = work(again).stage
            assert made and made().finished() is not None
