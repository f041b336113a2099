"""Every shipped page loads through the real entry point, and the recipe says what the paper says."""

from pathlib import Path

import pytest
import yaml

from robustly.config import SHIPPED_PAGES
from robustly.experiment import Experiment, load_experiment

PAGES = sorted(SHIPPED_PAGES.glob("*.yaml"))
RECIPE = ("corpus", "tokenizer", "data", "model", "masking", "optim", "schedule")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_shipped_page_loads(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # from anywhere
    experiment = load_experiment(page)
    assert experiment.name == page.stem
    assert experiment.root == Path("runs") / page.stem


def test_the_recipe_is_complete_on_its_page() -> None:
    """A reader of roberta_base.yaml sees every number that shapes the result; nothing comes from a default."""
    raw = yaml.safe_load((SHIPPED_PAGES / "roberta_base.yaml").read_text(encoding="utf-8"))
    for name in RECIPE:
        section = Experiment.model_fields[name].annotation
        assert section is not None
        required = {key for key, field in section.model_fields.items() if field.is_required()}
        assert required <= raw[name].keys(), name
        assert set(raw[name]) - {"sources"} <= set(section.model_fields), name


def test_every_number_of_the_recipe_has_its_source_on_the_line() -> None:
    lines = (SHIPPED_PAGES / "roberta_base.yaml").read_text(encoding="utf-8").splitlines()
    bare: list[str] = []
    section_source = False
    for line in lines:
        if line and not line.startswith((" ", "#")):
            section_source = "#" in line  # "model:  # Table 9" speaks for its keys
        if line.startswith("  ") and ":" in line and "#" not in line and not section_source:
            bare.append(line)
    assert not bare


def test_roberta_base_is_the_papers_table_9() -> None:
    page = load_experiment(SHIPPED_PAGES / "roberta_base.yaml")
    assert page.optim.model_dump() == {
        "batch_size": 8192, "peak_lr": 6e-4, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01, "decay": "all",
        "clip_norm": 0.0,
    }  # fmt: skip
    assert page.schedule.model_dump() == {"updates": 500_000, "warmup": 24_000, "decay": "linear"}
    assert (page.data.block_length, page.data.format, page.model.positions) == (512, "full_sentences", 514)
    assert (page.model.dropout, page.model.attention_dropout) == (0.1, 0.1)
    assert (page.model.layer_norm_eps, page.model.token_types) == (1e-5, 1)
    assert page.tokenizer.vocab_size == 50_265
    masking = page.masking
    assert (masking.probability, masking.mask, masking.random, masking.style) == (0.15, 0.8, 0.1, "fairseq")


def test_roberta_large_differs_as_in_table_9() -> None:
    base, large = (load_experiment(SHIPPED_PAGES / f"roberta_{size}.yaml") for size in ("base", "large"))
    assert (large.model.layers, large.model.hidden, large.model.heads, large.model.feed_forward) == (24, 1024, 16, 4096)
    assert (large.optim.peak_lr, large.schedule.warmup) == (4e-4, 30_000)
    same = {"peak_lr": base.optim.peak_lr}
    assert large.optim.model_copy(update=same) == base.optim
    assert large.schedule.model_copy(update={"warmup": base.schedule.warmup}) == base.schedule
    assert (large.corpus, large.tokenizer, large.data, large.masking) == (
        base.corpus, base.tokenizer, base.data, base.masking,
    )  # fmt: skip
