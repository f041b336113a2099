"""Every shipped page loads through the real entry point, and the recipe says what the paper
says."""

from pathlib import Path

import pytest
import yaml

from robustly.config import SHIPPED_CONFIGS
from robustly.corpus.files import corpus_files
from robustly.experiment import Experiment, load_experiment
from robustly.preflight.corpus_size import BYTES_PER_TOKEN
from robustly.preflight.machine import Machine
from robustly.preflight.plan import Plan, plan
from robustly.strict_yaml import dump_yaml

PAGES = sorted(SHIPPED_CONFIGS.glob("*.yaml"))
RECIPE = ("corpus", "tokenizer", "data", "model", "masking", "optim", "schedule")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_shipped_page_loads(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # from anywhere
    experiment = load_experiment(page)
    assert experiment.name == page.stem
    assert experiment.root == Path("runs") / page.stem


def test_the_recipe_is_complete_on_its_page() -> None:
    """A reader of roberta_base.yaml sees every number that shapes the result; nothing comes from a
    default."""
    raw = yaml.safe_load((SHIPPED_CONFIGS / "roberta_base.yaml").read_text(encoding="utf-8"))
    for name in RECIPE:
        section = Experiment.model_fields[name].annotation
        assert section is not None
        required = {key for key, field in section.model_fields.items() if field.is_required()}
        assert required <= raw[name].keys(), name
        assert set(raw[name]) - {"sources"} <= set(section.model_fields), name


def test_every_number_of_the_recipe_has_its_source_on_the_line() -> None:
    lines = (SHIPPED_CONFIGS / "roberta_base.yaml").read_text(encoding="utf-8").splitlines()
    bare: list[str] = []
    section_source = False

    for line in lines:
        if line and not line.startswith((" ", "#")):
            section_source = "#" in line  # "model:  # Table 9" speaks for its keys

        if line.startswith("  ") and ":" in line and "#" not in line and not section_source:
            bare.append(line)

    assert not bare


def test_roberta_base_is_the_papers_table_9() -> None:
    page = load_experiment(SHIPPED_CONFIGS / "roberta_base.yaml")
    assert page.optim.model_dump(exclude_defaults=True) == {
        "batch_size": 8192, "peak_lr": 6e-4, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01, "decay": "all",
        "clip_norm": 0.0,
    }  # fmt: skip
    assert page.schedule.recipe() == {"updates": 500_000, "warmup": 24_000, "decay": "linear"}
    assert (page.data.block_length, page.data.format, page.model.positions) == (
        512,
        "full_sentences",
        514,
    )
    assert (page.model.dropout, page.model.attention_dropout) == (0.1, 0.1)
    assert (page.model.layer_norm_eps, page.model.token_types) == (1e-5, 1)
    assert page.tokenizer.vocab_size == 50_265
    masking = page.masking
    assert (masking.probability, masking.mask, masking.random, masking.style) == (
        0.15,
        0.8,
        0.1,
        "fairseq",
    )


def test_roberta_large_differs_as_in_table_9() -> None:
    base, large = (
        load_experiment(SHIPPED_CONFIGS / f"roberta_{size}.yaml") for size in ("base", "large")
    )
    assert (
        large.model.layers,
        large.model.hidden,
        large.model.heads,
        large.model.feed_forward,
    ) == (24, 1024, 16, 4096)
    assert (large.optim.peak_lr, large.schedule.warmup) == (4e-4, 30_000)
    same = {"peak_lr": base.optim.peak_lr}
    assert large.optim.model_copy(update=same) == base.optim
    assert large.schedule.model_copy(update={"warmup": base.schedule.warmup}) == base.schedule
    assert (large.corpus, large.tokenizer, large.data, large.masking) == (
        base.corpus, base.tokenizer, base.data, base.masking,
    )  # fmt: skip


# --------------------------------------------------------------------------------- the budget pages

DAY, WEEK = 86_400, 7 * 86_400
BUDGETS = {
    "gpu_24gb_day": ("RTX 4090", 24e9, DAY),
    "gpu_80gb_day": ("A100", 80e9, DAY),
    "node_week": ("A100", 80e9, WEEK),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without runs: a plan would take the speed of one."""
    monkeypatch.chdir(tmp_path)


def budget_plan(name: str) -> Plan:
    page = load_experiment(name)
    gpu = Machine("cuda", round(BUDGETS[name][1]), "said")
    return plan(page, page.run.ranks, gpu, None)


@pytest.mark.parametrize("name", BUDGETS)
def test_a_budget_page_fits_its_memory_and_its_time(name: str) -> None:
    card, memory, seconds = BUDGETS[name]
    found = budget_plan(name)
    (on_card,) = [entry for entry in found.time if card in entry["source"]]
    assert (
        0.8 * seconds < on_card["seconds"] < 0.9 * seconds
    )  # room for evaluations, checkpoints and a wrong guess
    assert found.memory["peak"] < 0.6 * memory  # not tried on the card yet
    assert not found.warnings


@pytest.mark.parametrize("name", BUDGETS)
def test_the_head_of_a_budget_page_says_what_plan_says(name: str) -> None:
    text = (SHIPPED_CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    head = " ".join(
        line.removeprefix("#").strip() for line in text[: text.index("base:")].splitlines()
    )
    found = budget_plan(name)
    (on_card,) = [entry for entry in found.time if BUDGETS[name][0] in entry["source"]]

    for said in (
        "Not run yet.",
        f"{found.model['parameters'] / 1e6:.1f} million parameters",
        f"{found.work['tokens'] / 1e9:.2f} billion tokens",
        f"{on_card['seconds'] / 3600:.1f} hours at {on_card['tokens_per_second']:,.0f} tokens/s",
        f"40% of {'eight times' if name == 'node_week' else 'the card'}",
        f"{found.memory['peak'] / 1e9:.1f} GB of memory",
    ):
        assert said in head, said


@pytest.mark.parametrize("name", BUDGETS)
def test_an_epoch_of_a_budget_page_is_as_much_text_as_it_says(name: str) -> None:
    text = (SHIPPED_CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    needed = budget_plan(name).work["tokens"] * BYTES_PER_TOKEN
    said = f"{needed / 1e12:.1f} TB" if needed > 1e12 else f"{needed / 1e9:.0f} GB"
    assert f"your own text here: {said} of it are one epoch" in text


@pytest.mark.parametrize("name", BUDGETS)
def test_every_number_of_a_budget_page_has_its_reason_on_the_line(name: str) -> None:
    lines = (SHIPPED_CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    bare = [line for line in lines if line.startswith("  ") and ":" in line and "#" not in line]
    assert bare in ([], ["  ranks: 8"])


def test_a_config_elsewhere_finds_the_corpus_of_its_base(tmp_path: Path) -> None:
    """Its own paths start at itself, those of its base at the base, wherever the command is
    given."""
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "mine.yaml"
    mine.write_text("base: tiny.yaml\nname: mine\nreport: {delta: lora.yaml}\n", encoding="utf-8")
    experiment = load_experiment(mine)
    shipped = load_experiment("tiny")
    assert corpus_files(experiment.corpus) == corpus_files(shipped.corpus) != []
    assert experiment.report.delta is not None
    assert experiment.report.delta.candidates[0] == tmp_path / "mine" / "lora.yaml"
    assert experiment.resolved()["corpus"] == shipped.resolved()["corpus"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_config_that_was_written_down_is_the_same_from_anywhere(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    experiment = load_experiment(page)
    written = tmp_path / "config.yaml"
    written.write_text(dump_yaml(experiment.located()), encoding="utf-8")
    root = experiment.root.absolute()
    monkeypatch.chdir(tmp_path)
    again = load_experiment(written)
    assert again.located() == experiment.located() and again.root == root
    for name in RECIPE[1:]:
        assert getattr(again, name) == getattr(experiment, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_config_that_was_settled_is_this_very_config(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From anywhere; its input paths in the words in which they were stated, so that no hash and no
    card is another."""
    stated = [] if "model" in page.read_text() else ["model.init_from=here"]
    experiment = load_experiment(page, stated)
    root = experiment.root.absolute()
    (tmp_path / "settled.yaml").write_text(dump_yaml(experiment.settled()), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    again = load_experiment("settled.yaml")
    assert again.resolved() == experiment.resolved() and again.root == root
    assert again.located() == experiment.located()
    for name in RECIPE[1:]:
        assert getattr(again, name) == getattr(experiment, name)
        if hasattr(getattr(again, name), "recipe"):
            assert getattr(again, name).recipe() == getattr(experiment, name).recipe()


def test_all_paths_of_a_config_that_was_written_down_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Relative to the config, to its base or to the working directory, globs and folders; a name
    that lies nowhere stays a name."""
    for name in ("b/texts/1.txt", "b/texts/2.txt", "mine/dev.txt", "cwd/encoder.json", "cwd/vocab.bpe",
                 "cwd/dict.txt", "mine/lora.yaml"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    (tmp_path / "mine" / "model").mkdir()
    (tmp_path / "b" / "base.yaml").write_text(
        "base: tiny.yaml\ncorpus:\n  sources: [texts/*.txt, {hub: owner/name, split: test}]\n"
    )
    (tmp_path / "mine" / "mine.yaml").write_text(
        "base: ../b/base.yaml\nname: '1e3'\nreport: {delta: lora.yaml}\n"
        "cleaning: {contamination: {files: [dev.txt]}}\nmodel: {init_from: model}\n"
        "paths: {tokenizer: ../shared}\n"
        "tokenizer: {vocab_size: 300, import: {encoder: encoder.json, merges: vocab.bpe, dictionary: dict.txt}}\n"
    )
    monkeypatch.chdir(tmp_path / "cwd")
    experiment = load_experiment("../mine/mine.yaml")
    located = dump_yaml(experiment.located())
    (tmp_path / "config.yaml").write_text(located)
    (tmp_path / "settled.yaml").write_text(dump_yaml(experiment.settled()))
    monkeypatch.chdir("/")
    again = load_experiment(tmp_path / "config.yaml")
    texts = [tmp_path / "b" / "texts" / name for name in ("1.txt", "2.txt")]
    first, second = again.corpus.sources
    assert first.path and corpus_files(again.corpus.model_copy(update={"sources": [first]})) == [
        (0, text) for text in texts
    ]
    assert (first.title, second.hub, second.split) == ("*.txt", "owner/name", "test")
    assert again.cleaning.contamination and again.report.delta
    assert again.cleaning.contamination.files == [str(tmp_path / "mine" / "dev.txt")]
    assert again.report.delta == str(tmp_path / "mine" / "lora.yaml")
    assert again.model.init_from == str(tmp_path / "mine" / "model")
    assert again.tokenizer.imported.encoder == str(tmp_path / "cwd" / "encoder.json")  # type: ignore[union-attr]
    assert again.folder("tokenizer") == tmp_path / "cwd" / ".." / "shared"
    assert again.folder("train") == tmp_path / "cwd" / "runs" / "1e3" / "train"
    assert again.tokenizer.recipe() == experiment.tokenizer.recipe()
    settled = load_experiment(tmp_path / "settled.yaml")
    assert settled.resolved() == experiment.resolved() and settled.resolved() != again.resolved()
    assert settled.model.init_from == "model" and settled.corpus.sources[1].hub == "owner/name"
    monkeypatch.chdir(tmp_path / "cwd")
    assert settled.located() == again.located()
