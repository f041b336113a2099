"""What `robustly plan` says before anything runs, and where it has it from."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ranks import run_distributed
from robustly import cli, manifest
from robustly.data_prep.cleaning.clean import CleanStage
from robustly.data_prep.store import Store
from robustly.experiment import Experiment, clean_work, data_work, load_experiment, tokenizer_work
from robustly.gpus import Gpu
from robustly.manifest import Stage
from robustly.preflight import corpus_size, kept_share, measure_speed
from robustly.preflight import machine as machines
from robustly.preflight.corpus_size import BYTES_PER_TOKEN
from robustly.preflight.machine import Machine, machine_for
from robustly.preflight.plan import Plan, plan, show
from robustly.preflight.speed import UTILISATION, Speed, speed_at
from robustly.pretrain.flops import flops_per_token

CORPUS = Path(__file__).resolve().parents[3] / "data_prep" / "corpora" / "prose_cc0.txt"
SMALL = [
    "name=small", "tokenizer.vocab_size=500", "corpus.validation=0.1", "data.block_length=64", "model.layers=2",
    "model.hidden=32", "model.heads=2", "model.feed_forward=64", "model.positions=66", "optim.batch_size=24",
    "schedule.updates=100", "schedule.warmup=6", "run.ranks=2", "run.micro_batch=4", "run.workers=1",
]  # fmt: skip
NO_MEMORY = Machine("cpu", None, "not looked at")


def planned(
    experiment: Experiment, ranks: int = 2, machine: Machine = NO_MEMORY, speed: Speed | None = None
) -> Plan:
    return plan(experiment, ranks, machine, speed)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without runs: a developer's runs/tiny would count."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small corpus; the stages are made by the test that needs them."""
    folder = tmp_path_factory.mktemp("planned")
    text = CORPUS.read_text(encoding="utf-8")
    (folder / "corpus.txt").write_text(text[: text.index("\n\n", 150_000)], encoding="utf-8")
    return folder


def small(place: Path, *changes: str) -> Experiment:
    places = [f"corpus.sources={place / 'corpus.txt'}", f"paths.root={place}"]
    return load_experiment("tiny", [*SMALL, *places, *changes])


def test_smaller_updates_at_the_beginning_are_counted() -> None:
    page = load_experiment(
        "roberta_base",
        [
            "schedule.batch_warmup={start: 4096, updates: 4}",
            "schedule.updates=10",
            "schedule.warmup=0",
        ],
    )
    blocks = 4096 + 5120 + 6144 + 7168 + 6 * 8192
    assert planned(page).work["tokens"] == 512 * blocks


# --------------------------------------------------------------------------------------- the corpus


@pytest.mark.parametrize(
    ("files", "shards", "store", "index"), [(160, 39, 9e10, 0.9e9), (2000, 477, 1.12e12, 11e9)]
)
def test_terabytes_are_planned_by_the_names_of_their_files(
    tmp_path: Path, files: int, shards: int, store: float, index: float
) -> None:
    """Files of a gigabyte, all holes."""
    for number in range(files):
        with (tmp_path / f"{number:04d}.txt").open("wb") as file:
            file.truncate(10**9)

    found = planned(load_experiment("roberta_base", [f"corpus.sources={tmp_path}/*.txt"]))
    assert found.work["corpus_tokens"] == pytest.approx(files * 1e9 / 4.4, rel=0.01)
    assert found.disk["shards"] == pytest.approx(shards, rel=0.2)
    assert found.disk["token_store"] == pytest.approx(store, rel=0.2)
    assert found.disk["packed_index"] == pytest.approx(index, rel=0.2)


def test_a_corpus_that_is_not_there_is_unknown_and_no_error() -> None:
    found = planned(load_experiment("roberta_base"))
    assert (found.work["epochs"], found.work["corpus_tokens"], found.disk["token_store"]) == (
        None,
        None,
        None,
    )
    assert "not found (corpora/bookcorpus_wikipedia/*.txt.zst" in found.work["corpus_source"]
    assert found.work["tokens"] == 8192 * 512 * 500_000


def test_tokens_are_counted_where_that_was_done_and_estimated_elsewhere(place: Path) -> None:
    experiment = small(place)
    size = (place / "corpus.txt").stat().st_size
    estimated = planned(experiment)
    assert estimated.work["corpus_tokens"] == round(size / 4.4 * 0.9)
    assert f"estimated from {size:,} bytes in 1 files" in estimated.work["corpus_source"]

    tokenizer_work(experiment).make()
    from_words = planned(experiment)
    assert (
        "counted in" in from_words.work["corpus_source"]
        and "tokenizer" in from_words.work["corpus_source"]
    )

    data_work(experiment).make()
    counted = planned(experiment)
    truth = Store(place / "data", "train").stream_tokens
    assert counted.work["corpus_tokens"] == truth
    assert from_words.work["corpus_tokens"] == pytest.approx(truth, rel=0.1)
    assert counted.work["corpus_source"] == f"counted in {place / 'data'}"
    assert counted.work["tokens_per_update"] < 24 * 64  # some of a block is padding
    assert counted.work["epochs"] == pytest.approx(counted.work["tokens"] / truth)
    assert counted.disk["token_store"] == pytest.approx(from_words.disk["token_store"], rel=0.15)

    index = list((place / "data/views").glob("*.npy"))
    assert counted.disk["shards"] == from_words.disk["shards"] == 2
    assert counted.disk["packed_index"] == pytest.approx(
        sum(path.stat().st_size for path in index), rel=0.1
    )

    # A page that the folders do not fit: their counts are another corpus's, or another tokenizer's.
    assert (
        "tokens counted in" in planned(small(place, "corpus.validation=0.2")).work["corpus_source"]
    )
    assert "estimated" in planned(small(place, "tokenizer.vocab_size=600")).work["corpus_source"]
    made = manifest.read(place / "tokenizer")
    assert made
    with Stage(
        place / "again", "tokenizer", made.recipe, {**made.inputs, "words": "0"}
    ).begin() as again:
        shutil.copy(place / "tokenizer/files.json", place / "again")
        again.finish([], made.counts, made.notes)

    retrained = planned(small(place, f"paths.tokenizer={place / 'again'}"))
    assert f"tokens counted in {place / 'again'}" in retrained.work["corpus_source"]
    (place / "more.txt").write_text("One more text.\n", encoding="utf-8")
    both = f"corpus.sources=[{place / 'corpus.txt'}, {place / 'more.txt'}]"
    assert "in 2 files" in planned(small(place, both)).work["corpus_source"]


def test_an_epoch_has_each_source_as_often_as_the_page_says(tmp_path: Path) -> None:
    text = CORPUS.read_text(encoding="utf-8")
    cuts = [text.index("\n\n", at) if at else 0 for at in (0, 40_000, 120_000, 160_000)]
    for name, begin, end in zip("abc", cuts, cuts[1:], strict=False):
        (tmp_path / f"{name}.txt").write_text(text[begin:end].strip("\n"), encoding="utf-8")

    bytes_of = {name: (tmp_path / f"{name}.txt").stat().st_size for name in "abc"}

    def page(*changes: str) -> Experiment:
        a, b, c = (str(tmp_path / f"{name}.txt") for name in "abc")
        sources = [
            {"path": a, "repeat": 3},
            {"path": b, "repeat": 0.5},
            {"path": c, "held_out": True},
        ]
        return load_experiment(
            "tiny", [*SMALL, f"corpus.sources={json.dumps(sources)}", f"paths.root={tmp_path}"]
        )

    of_bytes = (3 * bytes_of["a"] + 0.5 * bytes_of["b"]) * 0.9
    assert planned(page()).work["corpus_tokens"] == pytest.approx(of_bytes / 4.4, abs=1)
    tokenizer_work(page()).make()
    from_words = planned(page())
    assert "repeated in proportion to their bytes" in from_words.work["corpus_source"]
    data_work(page()).make()
    counted = planned(page())
    store = Store(tmp_path / "data", "train")
    first, second = (sum(shard.tokens for shard in store.shards_of(source)) for source in (0, 1))
    assert not store.shards_of(2)
    assert counted.work["corpus_tokens"] == round(3 * first + 0.5 * second)
    assert from_words.work["corpus_tokens"] == pytest.approx(
        counted.work["corpus_tokens"], rel=0.15
    )


def test_compressed_files_count_for_more(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(b"x" * 44_000)
    (tmp_path / "b.txt").write_bytes(b"x" * 44_000)
    sources = f"corpus.sources=[{tmp_path / 'a.txt.gz'}, {tmp_path / 'b.txt'}]"
    found = planned(load_experiment("tiny", ["name=none", sources, "corpus.validation=0"]))
    assert found.work["corpus_tokens"] == 40_000
    assert "3 bytes of text for one of .gz" in found.work["corpus_source"]


def test_a_dataset_is_unknown_until_it_is_counted(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    text = CORPUS.read_text(encoding="utf-8")[:150_000]
    rows = "".join(json.dumps({"text": story}) + "\n" for story in text.split("\n\n"))
    (tmp_path / "rows" / "train.jsonl").write_text(rows, encoding="utf-8")

    def on(hub: str) -> Experiment:
        return load_experiment(
            "tiny", [*SMALL, f"corpus.sources=[{{hub: {hub}}}]", f"paths.root={tmp_path / 'run'}"]
        )

    there, elsewhere = on(str(tmp_path / "rows")), on("owner/name")

    for experiment in (there, elsewhere):
        assert (
            "unknown until the tokenizer stage has read"
            in planned(experiment).work["corpus_source"]
        )

    tokenizer_work(there).make()
    assert "tokens counted in" in planned(there).work["corpus_source"]
    assert "unknown until" in planned(elsewhere).work["corpus_source"]


def test_cleaned_text_is_what_counts(tmp_path: Path) -> None:
    documents = CORPUS.read_text(encoding="utf-8")[:150_000].split("\n\n")
    more = tmp_path / "more.txt"
    (tmp_path / "corpus.txt").write_text(
        "\n\n".join([*documents, *documents[:2]]), encoding="utf-8"
    )
    more.write_text("\n\n".join([documents[0], "Words of this source alone."]), encoding="utf-8")
    size = (tmp_path / "corpus.txt").stat().st_size + more.stat().st_size
    sources = json.dumps([str(tmp_path / "corpus.txt"), {"path": str(more), "repeat": 2}])
    cleaning = "cleaning={exact_duplicates: true, language: {keep: en, threshold: 0.1}}"

    def source(*changes: str) -> str:
        """What `plan` says it has the tokens from."""
        found: str = planned(page(*changes)).work["corpus_source"]
        return found

    def page(*changes: str) -> Experiment:
        places = [f"corpus.sources={sources}", "corpus.validation=0", f"paths.root={tmp_path}"]
        return load_experiment("tiny", [*SMALL, *places, *changes])

    plain = planned(page())
    only_duplicates = "cleaning.exact_duplicates=true"
    not_yet = "; duplicates are not counted yet"
    assert source(only_duplicates) == plain.work["corpus_source"] + not_yet
    assert planned(page(only_duplicates)).work["corpus_tokens"] == plain.work["corpus_tokens"]

    made = clean_work(page(cleaning)).make()
    kept, alone = made.counts["kept_bytes"], len("Words of this source alone.")
    assert kept < size * 0.95
    after = planned(page(cleaning))
    assert after.work["corpus_tokens"] == round((kept + alone) / BYTES_PER_TOKEN)
    assert after.work["epochs"] > plain.work["epochs"]
    assert after.work["corpus_source"] == (
        f"estimated from {kept:,} bytes that cleaning keeps of {made.counts['bytes']:,}"
        f" ({tmp_path / 'clean'}): 4.4 bytes for a token assumed"
    )
    renamed = f"corpus.sources={json.dumps([str(tmp_path / 'corpus.txt'), {'path': str(more), 'name': 'other'}])}"
    for other in ("cleaning.min_words=6", "cleaning.language.threshold=0.2", renamed):
        assert source(cleaning, other).endswith(not_yet)

    tokenizer_work(page(cleaning)).make()
    from_words = planned(page(cleaning)).work
    assert "tokens counted in" in from_words["corpus_source"]
    assert "repeated in proportion to their bytes" in from_words["corpus_source"]
    data_work(page(cleaning)).make()
    counted = planned(page(cleaning)).work
    assert counted["corpus_source"] == f"counted in {tmp_path / 'data'}"
    assert from_words["corpus_tokens"] == pytest.approx(counted["corpus_tokens"], rel=0.1)

    # the same files as one source
    whole = json.dumps([{"path": f"{tmp_path}/*.txt", "repeat": 2}])
    assert not source(cleaning, f"corpus.sources={whole}").startswith("counted in")

    # counts of cleaned text are none of the text as it is, or cleaned otherwise
    assert source().startswith("estimated from")
    assert source(cleaning, "cleaning.min_words=6").startswith("estimated from")
    more.write_text("Another text than that.", encoding="utf-8")
    assert source(cleaning).endswith(not_yet)
    more.unlink()  # the corpus is not here: the folders are what is known
    assert planned(page(cleaning)).work["corpus_tokens"] == counted["corpus_tokens"]


def test_what_cleaning_will_keep_is_estimated_by_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two sources, with different shares of documents that a rule drops; each document of the
    second has a mail address, which becomes shorter."""
    monkeypatch.setattr("robustly.corpus.partitions.PARTITION_BYTES", 40_000)
    story = "One more day went by, and nobody came to the house at the river. " * 20
    for name, every in (("a", 4), ("b", 2)):
        documents = (
            "Too short. " * 50
            if number % every == 0
            else f"{number} a.very.long.name@host.org {story}"
            for number in range(400)
        )
        (tmp_path / f"{name}.txt").write_text("\n\n".join(documents), encoding="utf-8")

    sources = json.dumps([str(tmp_path / "a.txt"), {"path": str(tmp_path / "b.txt"), "repeat": 3}])
    cleaning = "cleaning={min_words: 120, personal_data: replace}"

    def page(*changes: str) -> Experiment:
        places = [f"corpus.sources={sources}", "corpus.validation=0", f"paths.root={tmp_path}"]
        return load_experiment("tiny", [*SMALL, *places, *changes])

    monkeypatch.setattr(kept_share, "CHARACTERS", 200_000)  # of 720,000
    plain, before = planned(page()), planned(page(cleaning))
    made = clean_work(page(cleaning)).make()
    after = planned(page(cleaning))
    share = made.counts["kept_bytes"] / made.counts["bytes"]
    assert 0.7 < share < 0.9
    for name in ("corpus_tokens", "epochs"):
        assert before.work[name] == pytest.approx(after.work[name], rel=0.04)
        assert before.work[name] != pytest.approx(plain.work[name], rel=0.1)
    for name in ("token_store", "packed_index"):
        assert before.disk[name] == pytest.approx(after.disk[name], rel=0.04)

    # of all of the text, by what a part of it took
    assert 0 < before.work["cleaning_seconds"] < 60
    assert after.work["cleaning_seconds"] is plain.work["cleaning_seconds"] is None
    show(before)
    told = " ".join(capsys.readouterr().err.split())
    assert "of one core for the rules, as on the sample here" in told

    found = re.search(
        r"assumed; cleaning keeps (\d+)% ± (\d+)% of a sample of (\d+) documents$",
        before.work["corpus_source"],
    )
    assert found and int(found[1]) == pytest.approx(100 * share, abs=4)
    assert 1 <= int(found[2]) <= 4 and 100 < int(found[3]) < 400


def test_cleaning_needs_the_disk_that_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = (f"{n} came to the house at the river {n * n}" for n in range(1500))
    (tmp_path / "a.txt").write_text("\n\n".join(documents), encoding="utf-8")
    changes = [
        "cleaning={exact_duplicates: true, near_duplicates: true}",
        f"corpus.sources={tmp_path}/a.txt",
        f"paths.root={tmp_path}",
    ]
    page = load_experiment("tiny", [*SMALL, *changes])
    held: list[int] = []
    collect = CleanStage._collect

    def look(self: CleanStage, work: Path, decided: Any) -> Any:
        held.append(sum(path.stat().st_size for path in work.rglob("*") if path.is_file()))
        return collect(self, work, decided)

    monkeypatch.setattr(CleanStage, "_collect", look)
    monkeypatch.setattr(corpus_size, "TOKENS_PER_DOCUMENT", 35 / BYTES_PER_TOKEN)
    planned_bytes = planned(page).disk["cleaning"]
    clean_work(page).make()
    assert held[0] == pytest.approx(planned_bytes, rel=0.15)
    assert planned(page).disk["cleaning"] is None


def test_rules_that_cannot_be_applied_here_count_for_nothing(place: Path, tmp_path: Path) -> None:
    shutil.copy(place / "corpus.txt", tmp_path)
    plain = planned(small(tmp_path))
    cleaned = planned(small(tmp_path, f"cleaning.contamination={tmp_path / 'none.jsonl'}"))
    assert cleaned.work["corpus_tokens"] == plain.work["corpus_tokens"]
    assert "cleaning is not counted yet: cleaning.contamination" in cleaned.work["corpus_source"]


# --------------------------------------------------------------------------------------------- time


def test_a_given_speed_is_taken() -> None:
    tiny = load_experiment("tiny")
    (entry,) = planned(tiny, speed=Speed(1000.0, "said")).time
    update = tiny.optim.batch_size * tiny.data.block_length
    assert entry["seconds"] == pytest.approx(tiny.schedule.updates * update / 1000)
    assert entry["source"] == "said"


def test_padding_takes_its_share_of_a_speed_of_full_blocks(place: Path, tmp_path: Path) -> None:
    shutil.copy(place / "corpus.txt", tmp_path)
    experiment = small(tmp_path)
    tokenizer_work(experiment).make()
    padding = data_work(experiment).make().counts["padding"]
    assert padding > 0.1
    full = planned(experiment, speed=Speed(1000.0, "measured", of_full_blocks=True))
    assert full.time[0]["tokens_per_second"] == pytest.approx(1000 * (1 - padding))
    # all positions take time
    assert full.time[0]["seconds"] == pytest.approx(100 * 24 * 64 / 1000, rel=1e-3)
    said = planned(experiment, speed=Speed(1000.0, "said"))
    assert said.time[0]["tokens_per_second"] == 1000
    a100 = next(entry for entry in planned(experiment).time if "A100" in entry["source"])
    per_position = flops_per_token(experiment.model, 500, 64, experiment.masking.probability)
    assert a100["tokens_per_second"] == pytest.approx(
        2 * 0.4 * 19.5e12 / per_position * (1 - padding)
    )
    assert speed_at(1.0, 1, 1.0, "").of_full_blocks


def test_gpu_types_are_estimates_that_say_so() -> None:
    found = planned(load_experiment("roberta_base"), ranks=8)
    per_token = flops_per_token(load_experiment("roberta_base").model, 50_265, 512, 0.15)
    a100 = next(entry for entry in found.time if "A100" in entry["source"])
    assert a100["tokens_per_second"] == pytest.approx(8 * 0.4 * 312e12 / per_token)
    assert all("a guess" in entry["source"] for entry in found.time)
    for entry in found.time:
        fast, slow = entry["seconds_between"]
        assert fast == pytest.approx(entry["seconds"] * 0.4 / 0.5)
        assert slow == pytest.approx(entry["seconds"] * 0.4 / 0.2)


def test_hours_are_so_many_updates(capsys: pytest.CaptureFixture[str]) -> None:
    """As many as the time has room for at each speed; a guess of it gives a range."""
    page = load_experiment("roberta_base", ["schedule.hours=48"])
    for entry in planned(page, ranks=8).time:
        exact = 48 * 3600 * entry["tokens_per_second"] / (8192 * 512)
        assert entry["updates"] == pytest.approx(exact, abs=1) and entry["seconds"] == 48 * 3600
        assert entry["updates_between"] == pytest.approx([exact / 2, exact * 1.25], abs=1)

    given = plan(page, 8, Machine("cuda", None, ""), Speed(8192 * 512 / 2, "given"))
    assert given.time[0]["updates"] == 24 * 3600 and given.time[0]["updates_between"] == []
    show(given)
    assert "about 86,400 updates, at this speed  (given)" in capsys.readouterr().err
    assert planned(load_experiment("roberta_base"), ranks=8).time[0]["updates"] is None


def test_the_speed_of_a_run_counts_if_it_is_of_this_model(tmp_path: Path) -> None:
    experiment = small(tmp_path)
    train = tmp_path / "train"
    train.mkdir()
    (train / "config.yaml").write_text(yaml.safe_dump(experiment.resolved()), encoding="utf-8")
    rates = [10.0, 500.0, 400.0, 600.0]  # the first interval warms up
    lines = [
        json.dumps({"update": 10 * n, "tokens_per_second": rate}) for n, rate in enumerate(rates, 1)
    ]
    (train / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    assert [entry["tokens_per_second"] for entry in planned(experiment).time] == [500.0]
    assert f"measured in {train}" in planned(experiment).time[0]["source"]

    for other in (
        "model.layers=3",
        "data.block_length=24",
        "run.micro_batch=8",
        "tokenizer.vocab_size=600",
    ):
        assert all(
            "a guess" in entry["source"] for entry in planned(small(tmp_path, other)).time
        ), other

    assert all("a guess" in entry["source"] for entry in planned(experiment, ranks=1).time)


def test_a_measured_pass_and_update_make_a_speed() -> None:
    """24 blocks of 64 on 2 ranks: 3 passes of 4 blocks at 0.5 s, and an update of 0.1 s."""
    config = load_experiment("tiny", SMALL)
    assert measure_speed.speed_of(config, 2, 4, 0.5, 0.1, "cpu").tokens_per_second == pytest.approx(
        24 * 64 / 1.6
    )
    assert measure_speed.speed_of(config, 2, 4, 0.5, 0.1, "cpu").of_full_blocks


def measured(rank: int, ranks: int) -> list[Any]:
    measure_speed.SECONDS = 1
    found = measure_speed.measure(load_experiment("tiny", SMALL), 2)
    return [found.tokens_per_second, found.source]


@pytest.mark.processes
def test_this_machine_is_measured() -> None:
    rate, source = run_distributed(1, measured)[0]
    assert rate > 100
    assert (
        source
        == "measured here: one rank on cpu, micro-batches of 4, times 2 ranks without communication"
    )


# ---------------------------------------------------------------------------------- memory and disk


def test_the_largest_micro_batch_is_for_the_memory_that_there_is() -> None:
    page = load_experiment("roberta_base")
    found = planned(page, machine=Machine("cuda", 24 * 10**9, "said"))
    largest = found.memory["largest_micro_batch"]
    assert found.memory["peak"] < 24e9
    assert largest > 32
    above = planned(
        load_experiment("roberta_base", [f"run.micro_batch={largest + 1}"]),
        2,
        Machine("cuda", 24 * 10**9, ""),
    )
    assert above.memory["peak"] > 24e9
    assert f"take run.micro_batch={largest}" in above.warnings[0]


def test_the_best_checkpoint_and_a_new_one_have_to_fit_beside_those_that_are_kept() -> None:
    disk = planned(load_experiment("roberta_base")).disk
    assert disk["checkpoint"] == 12 * 124_697_433
    assert disk["checkpoints"] == (2 + 1 + 1) * disk["checkpoint"]


# ----------------------------------------------------------------------------------------- warnings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["optim.batch_size=100000"], "more tokens than the corpus"),
        (["schedule.updates=100000"], "epochs: the corpus is small"),
        (["run.micro_batch=16"], "a rank's share of an update is 12 blocks"),
        (["optim.batch_size=1", "run.micro_batch=1"], "nothing to do"),
        (["schedule.warmup=0"], "diverge"),
        (["schedule.warmup=60"], "more than half of 100 updates"),
        (["run.micro_batch=11"], "run.micro_batch=6 fills them"),
        (["masking.whole_words=true", "data.language=th"], "masking.words=icu, characters, or a"),
    ],
)
def test_a_warning(changes: list[str], words: str, place: Path) -> None:
    assert not planned(small(place)).warnings
    found = planned(small(place, *changes)).warnings
    assert any(words in warning for warning in found), found


# -------------------------------------------------------------------------------------- the command


PROGRAM = """
import sys
import robustly.cli
try:
    robustly.cli.main(["plan", *sys.argv[1:]])
except SystemExit as leaving:
    assert not leaving.code, leaving.code
assert not {"torch", "transformers", "deepspeed", "datatrove"} & set(sys.modules)
"""


@pytest.mark.processes
def test_the_command_needs_no_torch_and_prints_one_object() -> None:
    arguments = [
        "roberta_base",
        "optim.batch_size=4096",
        "--ranks",
        "8",
        "--memory",
        "80",
        "--tflops",
        "100",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["model"]["parameters"] == 124_697_433
    assert found["work"]["tokens_per_update"] == 4096 * 512
    assert found["memory"]["limit"] == 80e9
    (entry,) = found["time"]
    assert entry["tokens_per_second"] == pytest.approx(
        8 * 100e12 / found["model"]["flops_per_token"], rel=1e-6
    )
    for said in ("parameters", "124,697,433", "largest micro-batch", "(--tflops 100, 8 ranks)"):
        assert said in done.stderr


@pytest.mark.processes
def test_one_speed_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["plan", "tiny", "--tflops", "1", "--measure"])
    assert leaving.value.code == 2
    assert "give one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "gpu", "device", "memory"),
    [
        ([], None, "cpu", 4e9),
        (["run.precision=bf16", "run.zero_stage=1"], None, "cuda", None),
        ([], 24 * 10**9, "cuda", 24e9),
    ],
)
def test_what_a_rank_runs_on(
    changes: list[str],
    gpu: int | None,
    device: str,
    memory: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = [Gpu("Card", gpu, (8, 0), "1")] if gpu else []
    monkeypatch.setattr(machines, "gpus", lambda: here)
    monkeypatch.setattr(machines, "available_memory", lambda: 8 * 10**9)
    run = load_experiment("tiny", changes).run
    machine = machine_for(run, 2, None)
    assert (machine.device, machine.memory) == (device, memory)
    assert machine_for(run, 2, 40.0) == Machine("cuda", 40 * 10**9, "--memory")


def test_the_assumptions_are_named() -> None:
    # as docs/budget.md and the configs of budgets say
    assert (BYTES_PER_TOKEN, UTILISATION) == (4.4, 0.4)


def test_ranks_of_one_cpu_share_its_memory() -> None:
    advice = planned(
        load_experiment("tiny"), ranks=8, machine=Machine("cpu", 10_000_000, "said")
    ).warnings[0]
    assert "take fewer ranks, or a smaller model" in advice
