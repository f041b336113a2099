"""A corpus of several sources: repeated as the config says, one held out as a whole, the held-out
loss of each."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_config import CORPUS, SMALL, last_checkpoint
from transformers import RobertaForMaskedLM

from ranks import run_distributed
from robustly import UserError, manifest
from robustly import experiment as experiments
from robustly.corpus.documents import documents
from robustly.corpus.partitions import partitions
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.sampler import EpochSampler
from robustly.data_prep.store import Store
from robustly.experiment import data_work, tokenizer_work
from robustly.metrics import read_metrics
from robustly.pretrain.loop import pretrain
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.objective import roberta_config
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.validation import masked_batches
from robustly.tokenizer import load_tokenizer
from stated import stated

pytestmark = pytest.mark.distributed
REPEATS = (1.5, 0.5, 1.0)
MakePretraining = Callable[..., PretrainingConfig]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources of 60 kB each of the bundled corpus, the last of them held out; tokenizer and
    data made of them."""
    root = tmp_path_factory.mktemp("mixture")
    text = CORPUS.read_text(encoding="utf-8")
    cuts = [text.index("\n\n", at) if at else 0 for at in (0, 60_000, 120_000, 180_000)]
    for name, begin, end in zip("abc", cuts, cuts[1:], strict=False):
        (root / f"{name}.txt").write_text(text[begin:end].strip("\n"), encoding="utf-8")

    experiment = experiments.load_experiment("configs/tiny.yaml", changes(root))
    tokenizer_work(experiment).make()
    data_work(experiment).make()
    return root


def changes(root: Path, repeats: tuple[float, ...] = REPEATS, held_out: str = "c") -> list[str]:
    sources = [
        {
            "path": str(root / f"{name}.txt"),
            "name": name,
            "repeat": times,
            "held_out": name == held_out,
        }
        for name, times in zip("abc", repeats, strict=True)
    ]
    others = [
        "model.dropout=0.0",
        "model.attention_dropout=0.0",
        "corpus.validation=0.3",
        "run.evaluate_blocks=60",
    ]
    return [*SMALL, *others, f"corpus.sources={json.dumps(sources)}", f"paths.root={root}"]


def make(
    root: Path, name: str, *more: str, repeats: tuple[float, ...] = REPEATS
) -> PretrainingConfig:
    settings = [*changes(root, repeats), f"paths.train={root / name}", *more]
    return experiments.load_experiment("configs/tiny.yaml", settings)


def go(rank: int, ranks: int, config: PretrainingConfig) -> None:
    torch.set_num_threads(1)
    pretrain(config, rank, rank, ranks)


@pytest.fixture(scope="module")
def trained(root: Path) -> PretrainingConfig:
    config = make(root, "train")
    run_distributed(2, go, config)
    return config


def test_the_source_that_is_held_out_is_the_validation_text_and_no_other_eye_sees_it(
    root: Path,
) -> None:
    config = experiments.load_experiment("configs/tiny.yaml", changes(root))
    texts = {name: [] for name in range(3)}  # type: ignore[var-annotated]
    for part in partitions(stated(root, config.corpus)):
        texts[part.source] += documents(part, config.corpus, [])

    encoder = load_tokenizer(root / "tokenizer")
    train, validation = (Store(root / "data", split) for split in ("train", "validation"))
    assert list(validation.texts_of(2, encoder)) == texts[2] and len(texts[2]) > 2
    assert not list(train.texts_of(2, encoder))
    shares = [
        len(list(validation.texts_of(source, encoder))) / len(texts[source]) for source in (0, 1)
    ]
    assert all(0 < share < 0.7 for share in shares)
    counted = manifest.require(root / "tokenizer", "tokenizer").counts["documents"]
    assert counted == len(texts[0]) + len(texts[1])


def test_the_held_out_loss_of_each_source(trained: PretrainingConfig) -> None:
    line = read_metrics(trained.folder("train") / "evaluations.jsonl")[-1]
    sources = line["validation_sources"]
    assert "c" in sources and set(sources) <= {"a", "b", "c"} and len(sources) > 1
    masked = sum(score["masked_tokens"] for score in sources.values())
    assert masked == line["validation_masked_tokens"]
    for figure in ("loss", "accuracy"):
        mean = sum(score[figure] * score["masked_tokens"] for score in sources.values()) / masked
        assert line[f"validation_{figure}"] == pytest.approx(mean)

    # the same by transformers' own loss, block by block
    vocabulary = SpecialTokens.of(load_tokenizer(trained.folder("tokenizer")))
    model = RobertaForMaskedLM(roberta_config(trained.model, vocabulary)).eval()
    model.load_state_dict(last_checkpoint(trained.folder("train")).weights(), strict=False)
    blocks = Blocks(trained.folder("data"), "validation", 64, trained.data.format)
    sums = dict.fromkeys("abc", 0.0)

    for batch, of_tokens in masked_batches(
        blocks, trained.run.evaluate_blocks, trained.masking, vocabulary, 1
    ):
        labels = torch.full((batch.inputs.numel(),), -100).index_copy(
            0, batch.positions, batch.labels
        )
        with torch.no_grad():
            loss = model(
                batch.inputs, attention_mask=batch.attention, labels=labels.view_as(batch.inputs)
            ).loss

        if len(batch.labels):
            (source,) = of_tokens.unique().tolist()
            sums["abc"[source]] += float(loss) * len(batch.labels)

    for name, score in sources.items():
        assert score["loss"] == pytest.approx(sums[name] / score["masked_tokens"], rel=1e-4)


def test_a_mixture_does_not_depend_on_the_ranks(root: Path, trained: PretrainingConfig) -> None:
    alone = make(root, "alone")
    run_distributed(1, go, alone)
    one, two = (
        read_metrics(config.folder("train") / "metrics.jsonl") for config in (alone, trained)
    )
    assert [line["masked_tokens"] for line in one] == [line["masked_tokens"] for line in two]
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], rel=1e-4)


def test_an_epoch_is_the_repeated_sources(root: Path, trained: PretrainingConfig) -> None:
    blocks = Blocks(root / "data", "train", 64, trained.data.format)
    begin, middle, end, _ = blocks.source_starts.tolist()
    size = round(1.5 * (middle - begin)) + round(0.5 * (end - middle))
    assert EpochSampler(blocks, trained.seed, trained.corpus.repeats).size == size
    last = read_metrics(trained.folder("train") / "metrics.jsonl")[-1]
    assert last["epoch"] == pytest.approx(12 * 24 / size)
    made = manifest.read(trained.folder("train"))
    assert made and made.notes["mixture"] == "a x 1.5, b x 0.5"


def test_repeats_are_of_the_recipe_of_the_training_and_not_of_the_store(root: Path) -> None:
    plain = make(root, "train", repeats=(1.0, 1.0, 1.0))
    assert plain.corpus.repeats == () and "repeats" not in plain.stage().recipe["data"]
    other = make(root, "other")
    assert other.stage().recipe["data"]["repeats"] == list(REPEATS)
    assert other.stage().inputs == plain.stage().inputs
    with pytest.raises(UserError, match=r"data.repeats: \[1.5, 0.5, 1.0\] there, absent now"):
        plain.stage().finished()


def test_pairs_train_with_a_next_sentence_loss_on_any_number_of_ranks(root: Path) -> None:
    pairs = ("data.format=segment_pair", "optim.batch_size=8")
    config = make(root, "pairs", *pairs)
    experiment = experiments.load_experiment("configs/tiny.yaml", [*changes(root), *pairs])
    assert data_work(experiment).make().counts["format"] == "segment_pair"
    run_distributed(2, go, config)
    alone = make(root, "pairs_alone", *pairs, "run.micro_batch=3")
    run_distributed(1, go, alone)
    one, two = (read_metrics(each.folder("train") / "metrics.jsonl") for each in (config, alone))

    for figure in ("loss", "next_sentence_loss", "grad_norm"):
        assert [line[figure] for line in one] == pytest.approx(
            [line[figure] for line in two], rel=1e-3
        )

    assert 0.6 < one[0]["next_sentence_loss"] < 0.8  # near ln 2
    assert last_checkpoint(config.folder("train")).weights()[
        "next_sentence.output.weight"
    ].shape == (2, 32)

    # the evaluation, by hand: 12 updates teach nothing, but the figures must be those of the labels
    # that are shown
    line = read_metrics(config.folder("train") / "evaluations.jsonl")[0]
    blocks = Blocks(config.folder("data"), "validation", 64, "segment_pair")
    vocabulary = SpecialTokens.of(load_tokenizer(config.folder("tokenizer")))
    shown = masked_batches(blocks, config.run.evaluate_blocks, config.masking, vocabulary, 16)
    follows = torch.cat([batch.follows for batch, _ in shown if batch.follows is not None])
    share = float((follows == 1).sum() / (follows >= 0).sum())
    accuracy = line["validation_next_sentence_accuracy"]
    assert min(share, 1 - share) - 0.1 < accuracy < max(share, 1 - share) + 0.1
    assert line["validation_next_sentence_loss"] == pytest.approx(0.693, abs=0.02)
