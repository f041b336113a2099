"""Text without spaces under masks of whole words, from the raw text to the blocks: nearly all have
targets, and a config whose blocks have too few is told."""

import json
import random
import re
import sys
from pathlib import Path

import pytest

from robustly import UserError
from robustly.experiment import Experiment, data_work, load_experiment
from robustly.preflight.machine import Machine
from robustly.preflight.plan import plan
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.targets import (
    ENOUGH,
    FEWEST,
    TargetShare,
    check_targets,
    open_blocks,
    share_with_targets,
)
from robustly.stages import STAGES
from robustly.tokenizer import load_tokenizer
from synthetic import masking

TINY = Path(__file__).parents[3] / "configs" / "tiny.yaml"
WORDS = ["我们", "今天", "天气", "很好", "去", "公园", "学习", "中文", "明天", "也", "在", "家"]


def dna(draw: random.Random) -> str:
    genes = ["".join(draw.choices("ACGT", k=9)) for _ in range(40)]
    return "\n".join("".join(draw.choices(genes, k=200)) for _ in range(40))


def protein(draw: random.Random) -> str:
    return "\n".join("".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=900)) for _ in range(60))


def smiles(draw: random.Random) -> str:
    rings = ["c1ccccc1", "C(=O)", "N", "O", "[C@@H]", "CC", "(F)", "Cl", "C#N", "C1CCNCC1", "S"]
    return "\n".join("".join(draw.choices(rings, k=600)) for _ in range(40))


def chinese(draw: random.Random) -> str:
    return "\n".join("".join(draw.choices(WORDS, k=300)) + "。" for _ in range(60))


TEXTS = {"dna": dna, "protein": protein, "smiles": smiles, "chinese": chinese}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Experiment]:
    """A config of each kind of text, with its finished tokenizer and data folders."""
    found = {}
    for name, make in TEXTS.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "text.txt").write_text(make(random.Random(1)), encoding="utf-8")
        (folder / "words.txt").write_text("\n".join(WORDS), encoding="utf-8")
        (folder / "config.yaml").write_text(
            f"""
base: {TINY}
name: {name}
paths: {{root: {folder}/run}}
corpus: {{sources: text.txt, documents: line, validation: 0.1}}
tokenizer: {{vocab_size: 400}}
data: {{unit: line, block_length: 64}}
model: {{positions: 66}}
masking: {{probability: 0.15}}
run: {{workers: 1}}
"""
        )
        experiment = load_experiment(folder / "config.yaml")
        for stage in ("tokenizer", "data"):
            experiment.work(STAGES[stage]).make()

        found[name] = experiment

    return found


def with_masks(experiment: Experiment, **changes: object) -> Experiment:
    """A config with other masks, on the same folders."""
    path = experiment.root.parent / "config.yaml"
    return load_experiment(
        path, [f"masking.{key}={json.dumps(value)}" for key, value in changes.items()]
    )


def share(experiment: Experiment) -> float:
    tokenizer = load_tokenizer(experiment.folder("tokenizer"))
    blocks = open_blocks(experiment, "train", tokenizer)
    found = share_with_targets(blocks, experiment.masking, SpecialTokens.of(tokenizer), 1)
    assert found.tried == len(blocks) > 20
    return found.share


@pytest.mark.parametrize("words", ["whitespace", "characters", "icu", "words.txt"])
@pytest.mark.parametrize("text", TEXTS)
def test_nearly_all_blocks_have_targets(
    prepared: dict[str, Experiment], text: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    experiment = with_masks(prepared[text], whole_words=True, words=words)
    assert share(experiment) > 0.98
    experiment.work(STAGES["data"]).make()
    said = re.search(r"masking: ([\d.]+)% of \d+ training blocks have", capfd.readouterr().err)
    assert said and float(said[1]) > 98


@pytest.mark.parametrize("text", TEXTS)
def test_a_word_of_any_length_leaves_blocks_without_and_is_refused(
    prepared: dict[str, Experiment], text: str
) -> None:
    """As 60 to 70% of the blocks were left before."""
    experiment = with_masks(prepared[text], whole_words=True, longest_word=None)
    assert share(experiment) < 0.5
    with pytest.raises(UserError, match=r"masking: \d+% of .* have a target .*masking\.words"):
        experiment.work(STAGES["data"]).make()


def test_a_plan_tells_the_share_of_a_prepared_store(prepared: dict[str, Experiment]) -> None:
    here = Machine("cpu", None, "not looked at")
    for longest, told in ((10, False), (None, True)):
        experiment = with_masks(prepared["dna"], whole_words=True, longest_word=longest)
        found = plan(experiment, 1, here, None).warnings
        assert any("training blocks have a target" in line for line in found) is told


def test_a_share_between_is_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    words, tokens = masking(whole_words=True), masking()
    check_targets(TargetShare(1000, ENOUGH), words)
    check_targets(TargetShare(0, 1.0), words)
    assert not capfd.readouterr().err

    check_targets(TargetShare(1000, FEWEST), words)
    said = " ".join(capfd.readouterr().err.split())
    assert "warning: masking: 50% of 1,000 training blocks have a target" in said
    assert "masking.words: characters, icu, or a list" in said
    with pytest.raises(UserError, match="too few words"):
        check_targets(TargetShare(1000, FEWEST - 0.01), words)
    with pytest.raises(UserError, match=r"data\.format = full_sentences"):
        check_targets(TargetShare(1000, 0.1), tokens)


def test_a_list_of_words_is_an_input_of_training(
    prepared: dict[str, Experiment], tmp_path: Path
) -> None:
    experiment = with_masks(prepared["chinese"], whole_words=True, words="words.txt")
    before = experiment.stage()
    assert before.recipe["masking"]["words"] == "list" and len(before.inputs["words"]) == 64
    assert before.hash != with_masks(prepared["chinese"], whole_words=True).stage().hash

    other = tmp_path / "others.txt"
    other.write_text("今天\n")
    changed = with_masks(prepared["chinese"], whole_words=True, words=str(other)).stage()
    assert changed.hash != before.hash

    for wrong in ("charcters", "nowhere.txt"):
        with pytest.raises(
            UserError,
            match=rf"masking\.words: {wrong}: no file there.*Expected whitespace, characters, icu",
        ):
            with_masks(prepared["chinese"], whole_words=True, words=wrong).stage()


def test_a_segmenter_that_is_not_there_is_told_before_the_data_stage(
    prepared: dict[str, Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "icu4py.breakers", None)
    for words, said in (("icu", "icu4py is not installed"), ("jieba", "jieba: no file there")):
        experiment = with_masks(prepared["chinese"], whole_words=True, words=words)
        paths = experiment.paths.model_copy(update={"data": tmp_path / "data"})
        with pytest.raises(UserError, match=said):
            data_work(experiment.model_copy(update={"paths": paths})).make()
        assert not (tmp_path / "data").exists()


def test_masks_off_are_not_touched(prepared: dict[str, Experiment]) -> None:
    stage = prepared["dna"].stage()
    assert stage.recipe["masking"].keys() == {"probability", "mask", "random", "style"}
    assert "words" not in stage.inputs
