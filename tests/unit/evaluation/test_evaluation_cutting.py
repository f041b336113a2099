"""Text is cut and masked as the model was trained: on a run's own held-out documents, blocks and
loss are those of the run's own evaluation."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_checkpoints import byte_level, ours
from torch import distributed
from transformers import AutoTokenizer

from robustly import UserError
from robustly.corpus.texts import corpus_from_options
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.decoding import decode_documents
from robustly.evaluation.cutting import TextOptions, cutting
from robustly.evaluation.evaluate import evaluate_folder
from robustly.evaluation.model import open_masked_lm
from robustly.evaluation.text_store import SPLIT, write_texts
from robustly.experiment import data_work, load_experiment, tokenizer_work
from robustly.files import sha256, write_atomic
from robustly.manifest import Stage
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.targets import open_blocks
from robustly.pretrain.validation import ValidationResult, evaluate
from robustly.strict_yaml import dump_yaml
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.segmenters import word_list
from robustly.tokenizer.vocabulary import save_vocabulary

CPU = torch.device("cpu")
LENGTH = 40
FORMATS = ("full_sentences", "doc_sentences", "segment_pair", "sentence_pair", "none")
CUTS = [
    *(("sentence", format) for format in FORMATS),
    ("line", "full_sentences"),
    ("line", "segment_pair"),
    ("raw", "full_sentences"),
    ("raw", "doc_sentences"),
]


def code(number: int) -> str:
    """A document whose white space is a part of it."""
    rows = [
        f"    if x[{n}] > {number * n % 7}:\n        y += {n}  # naïve\n" for n in range(number)
    ]
    return f"def f{number}(x):\n    y = 0\n\n" + "".join(rows) + "    return y\n"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory, prose: list[str]) -> Path:
    """A folder of two files, and code.jsonl: three files in two sources."""
    folder = tmp_path_factory.mktemp("corpora")
    (folder / "tales").mkdir()
    prose = [text[at : at + 1500] for text in prose for at in range(0, 6000, 1500)]
    (folder / "tales" / "a.txt").write_text("\n\n".join(prose[::2]), encoding="utf-8")
    (folder / "tales" / "b.txt").write_text("\n\n".join(prose[1::2]), encoding="utf-8")
    rows = [json.dumps({"text": code(number)}) + "\n" for number in range(3, 40)]
    (folder / "code.jsonl").write_text("".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    """A training of one rank, whose evaluation sums over ranks."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Run:
    """The stages before a training; an untrained model, published as a trained one would be; and
    what the training's own evaluation finds of it."""

    def __init__(self, root: Path, corpora: Path, **changes: Any):
        given = {
            "corpus.sources": [str(corpora / "tales"), str(corpora / "code.jsonl")], "corpus.validation": 0.3,
            "tokenizer.vocab_size": 400, "data.block_length": LENGTH, "model.positions": LENGTH + 2,
            "model.layers": 2, "model.hidden": 32, "model.heads": 2, "model.feed_forward": 64, "model.init_std": 0.3,
            "paths.root": str(root), "run.workers": 1, **changes,
        }  # fmt: skip
        self.experiment = load_experiment(
            "tiny", [f"{key}={json.dumps(value)}" for key, value in given.items()]
        )
        tokenizer_work(self.experiment).make()
        data_work(self.experiment).make()
        self.tokenizer = load_tokenizer(root / "tokenizer")
        self.special = SpecialTokens.of(self.tokenizer)
        self.blocks = open_blocks(self.experiment, "validation", self.tokenizer)
        self.model = new_model(roberta_config(self.experiment.model, self.special), 1).eval()
        self.published = self.publish(root / f"published-{self.experiment.data.format}")

    def publish(self, folder: Path) -> Path:
        if (folder / "manifest.json").exists():
            return folder

        with Stage(folder, "published", {}, {}).begin() as stage:
            self.model.save_pretrained(folder)
            save_vocabulary(self.tokenizer.vocabulary, folder)
            write_atomic(folder / "config.yaml", dump_yaml(self.experiment.resolved()))
            outputs = [path for path in folder.iterdir() if path.name[0] != "."]
            listed = word_list(self.experiment.masking.segmenter, "masking.words")
            stage.finish(outputs, {}, {"words": sha256(listed)} if listed else {})

        return folder

    def own_evaluation(self) -> ValidationResult:
        config = self.experiment
        limit, masking = config.run.evaluate_blocks, config.masking
        model = MaskedLanguageModel(self.model)
        found = evaluate(model, self.blocks, limit, masking, self.special, 8, 0, 1, CPU)
        assert found
        return found

    def held_out(self, folder: Path) -> list[str]:
        """The held-out documents, by the decoder: a file for each source."""
        decode_documents(self.blocks.store.folder, self.tokenizer, folder / "all.jsonl")
        rows = [json.loads(line) for line in (folder / "all.jsonl").read_text().splitlines()]
        paths = []

        for source in self.blocks.store.sources:
            own = [row for row in rows if (row["source"], row["split"]) == (source, "validation")]
            assert len(own) > 5
            paths.append(folder / f"{source}.held-out.jsonl")
            paths[-1].write_text("".join(json.dumps(row) + "\n" for row in own))

        return list(map(str, paths))


def assert_blocks_are_the_runs(run: Run, texts: list[str], folder: Path) -> None:
    lm = open_masked_lm(run.published, CPU)
    data = cutting(run.published, lm, TextOptions()).data
    assert data == run.experiment.data
    folder.mkdir()
    write_texts(lm, corpus_from_options(texts, "blank_line", "text"), data, folder)
    found = Blocks(folder, SPLIT, data.block_length, data.format)
    every = np.arange(len(run.blocks))
    assert len(found) == len(every) > 20
    for evaluated, own in zip(found.gather(every), run.blocks.gather(every), strict=True):
        assert np.array_equal(evaluated, own)


@pytest.mark.parametrize(("unit", "format"), CUTS)
def test_held_out_documents_are_evaluated_as_the_run_does(
    corpora: Path, tmp_path: Path, unit: str, format: str
) -> None:
    run = Run(corpora / unit, corpora, **{"data.unit": unit, "data.format": format})
    texts = run.held_out(tmp_path)
    assert_blocks_are_the_runs(run, texts, tmp_path / "store")

    expected = run.own_evaluation()
    report = evaluate_folder(run.published, texts, [], TextOptions(masking="run"))["text"]
    assert report["evaluated_blocks"] == report["blocks"] == len(run.blocks)
    total = report["total"]
    assert total["masked_tokens"] == expected.total.masked_tokens > 300
    assert total["loss"] == pytest.approx(expected.total.loss, abs=1e-5)
    assert total["accuracy"] == pytest.approx(expected.total.accuracy, abs=1e-9)
    if not format.endswith("pair"):  # a second segment may be of the other source
        for path, score in zip(texts, expected.sources.values(), strict=True):
            assert report["files"][path]["loss"] == pytest.approx(score.loss, abs=1e-5)


RULES = [
    {"masking.whole_words": True, "masking.fixed_masks": 3},
    {"masking.whole_words": True, "masking.words": "characters", "masking.style": "bert"},
]


@pytest.mark.parametrize("rule", RULES)
def test_a_held_out_source_is_evaluated_from_its_own_files(
    corpora: Path, tmp_path: Path, rule: dict[str, Any]
) -> None:
    """Two files, packed together; some of the blocks, and a rule of masks of the run's own."""
    run = Run(
        tmp_path / "run",
        corpora,
        **{
            "corpus.sources": [
                str(corpora / "code.jsonl"),
                {"path": str(corpora / "tales"), "held_out": True},
            ],
            "corpus.validation": 0, "tokenizer.vocab_size": 330, "run.evaluate_blocks": 13,
            "masking.probability": 0.4, "masking.random": 0.3, "masking.mask": 0.5, **rule,
        },
    )  # fmt: skip
    texts = [str(corpora / "tales")]
    assert_blocks_are_the_runs(run, texts, tmp_path / "store")
    expected = run.own_evaluation()
    report = evaluate_folder(run.published, texts, [], TextOptions(masking="run"))["text"]
    assert (report["evaluated_blocks"], report["blocks"]) == (13, len(run.blocks))
    total = report["total"]
    assert total["masked_tokens"] == expected.total.masked_tokens > 100
    assert total["loss"] == pytest.approx(expected.total.loss, abs=1e-5)
    assert len(report["files"]) == 2
    assert (
        sum(figures["masked_tokens"] for figures in report["files"].values())
        == total["masked_tokens"]
    )


@pytest.mark.parametrize("words", ["icu", "words.txt"])
def test_words_are_those_of_the_run(corpora: Path, tmp_path: Path, words: str) -> None:
    (tmp_path / "words.txt").write_text("the\nthere\nwas\nreturn\n")
    words = str(tmp_path / words) if words.endswith("txt") else words
    run = Run(tmp_path, corpora, **{"masking.whole_words": True, "masking.words": words})
    expected = run.own_evaluation()
    texts = run.held_out(tmp_path)
    report = evaluate_folder(run.published, texts, [], TextOptions(masking="run"))["text"]
    assert report["total"]["masked_tokens"] == expected.total.masked_tokens > 300
    assert report["total"]["loss"] == pytest.approx(expected.total.loss, abs=1e-5)
    if words != "icu":  # another list gives other masks
        Path(words).write_text("the\n")
        with pytest.raises(UserError, match=r"words\.txt: it is not the list of words"):
            evaluate_folder(run.published, texts, [], TextOptions(masking="run"))


def test_a_run_from_before_there_was_a_longest_word(corpora: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, corpora, **{"masking.whole_words": True})
    config = run.experiment.resolved()
    del config["masking"]["longest_word"]
    write_atomic(run.published / "config.yaml", dump_yaml(config))
    (run.published / "manifest.json").unlink()
    with Stage(run.published, "published", {}, {}).begin() as stage:
        stage.finish([path for path in run.published.iterdir() if path.name[0] != "."], {})

    found = cutting(run.published, open_masked_lm(run.published, CPU), TextOptions(masking="run"))
    assert found.masking.whole_words and found.masking.longest_word is None


# ---------------------------------------------------------------------------------- other options


def lines_of(text: str) -> list[str]:
    return [stripped for line in text.split("\n") if (stripped := line.strip())]


TEXT = ["The cat\n\n  saw the other one. It ran.\n", "Ich sah die M\u00e4dchen\n\tim Garten."] * 8


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXT))
    return path


@pytest.mark.parametrize("make", [ours, byte_level])
def test_other_models_are_shown_lines(make: Any, tmp_path: Path, text_file: Path) -> None:
    """No line end is shown to a model that was perhaps never shown one; blocks hold what
    transformers' tokenizer gives for each line."""
    folder = make(tmp_path / "model")
    lm = open_masked_lm(folder, CPU)
    data = cutting(folder, lm, TextOptions()).data
    assert data.model_dump() == {
        "unit": "line", "language": "en", "format": "doc_sentences", "block_length": 40,
    }  # fmt: skip
    texts = write_texts(lm, corpus_from_options([str(text_file)], "line", "text"), data, tmp_path)
    blocks = Blocks(tmp_path, SPLIT, data.block_length, data.format)
    ids, lengths = blocks.gather(np.arange(len(blocks)))
    found = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = []
    for text in TEXT:
        block = [tokenizer.cls_token_id]
        for line in lines_of(text):
            own = [*tokenizer(line, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]
            if len(block) + len(own) > 40:
                expected.append(block)
                block = [tokenizer.cls_token_id]
            block += own
        expected.append(block)

    assert found == expected
    assert texts.tokens.sum() + sum(len(lines_of(text)) for text in TEXT) == sum(lengths) - len(
        found
    )


def test_bytes_between_units_are_counted_apart(tmp_path: Path, text_file: Path) -> None:
    """Every byte of a document is a token's, or stands between units, as long as a tokenizer drops
    nothing."""
    folder = ours(tmp_path / "model")
    for unit, between in (
        ("line", sum(len(text.encode()) - sum(len(line.encode()) for line in lines_of(text)) for text in TEXT)),
        ("raw", 0),
    ):  # fmt: skip
        total = evaluate_folder(folder, [str(text_file)], [], TextOptions(unit=unit))["text"][
            "total"
        ]
        assert total["bytes"] == sum(len(text.encode()) for text in TEXT)
        assert total["bytes_between_units"] == between

    lm = open_masked_lm(folder, CPU)
    for slow in (False, True):
        lm.tokenizer = None if slow else lm.tokenizer
        data = cutting(folder, lm, TextOptions()).data
        (tmp_path / str(slow)).mkdir()
        corpus = corpus_from_options([str(text_file)], "line", "text")
        texts = write_texts(lm, corpus, data, tmp_path / str(slow))
        assert texts.token_bytes.sum() + texts.bytes_between.sum() == texts.bytes.sum()


def test_bits_per_byte_are_of_text_alone(corpora: Path, tmp_path: Path) -> None:
    """Where <s> and </s> are targets, as under the run's rule, they cost nothing and stand for
    nothing: to a model that knows nothing a byte costs what a token of a byte does."""
    run = Run(corpora / "line", corpora, **{"data.unit": "line"})
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.zero_()

    folder = run.publish(tmp_path / "published")
    texts = run.held_out(tmp_path)
    total = evaluate_folder(folder, texts, [], TextOptions(masking="run"))["text"]["total"]
    assert total["loss"] == pytest.approx(math.log(run.special.size), rel=1e-5)
    bytes_per_token = total["bits"] / total["bits_per_byte"]
    text_bytes = total["bytes"] - total["bytes_between_units"]
    assert bytes_per_token == pytest.approx(text_bytes / total["tokens"], rel=0.1)


def test_options_say_otherwise(corpora: Path, text_file: Path) -> None:
    run = Run(corpora / "sentence", corpora, **{"data.unit": "sentence"})

    def cut(**options: Any) -> dict[str, Any]:
        return evaluate_folder(run.published, [str(text_file)], [], TextOptions(**options))["text"]

    as_trained = cut()
    assert as_trained["cut"] == {**run.experiment.data.model_dump(), "as_trained": True}
    shorter = cut(block_length=12, unit="raw", format="doc_sentences", mask_rate=0.3)
    assert not shorter["cut"]["as_trained"]
    assert shorter["cut"]["block_length"] == 12 and shorter["blocks"] > as_trained["blocks"]
    assert shorter["masking"]["probability"] == 0.3
    assert shorter["total"]["bytes_between_units"] == 0 < as_trained["total"]["bytes_between_units"]
    own_masks = cut(masking="run")
    assert own_masks["masking"]["style"] == "fairseq" and own_masks["masking"]["masks"] == "run"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "page"}, "--unit page: expected 'sentence', 'line' or 'raw'"),
        ({"format": "pairs"}, "--format pairs: expected 'full_sentences'"),
        ({"block_length": 7}, "--block-length 7: expected greater than or equal to 8"),
        ({"block_length": 41}, "--block-length 41: the model's longest input is 40"),
        ({"language": "english"}, "--language english: expected a language's code"),
        ({"mask_rate": 1.0}, r"--mask-rate 1\.0: expected a fraction"),
        ({"masking": "whole"}, "--masking whole: expected bert or run"),
        ({"masking": "run"}, "--masking run: .* does not say how its model was trained"),
        ({"unit": "sentence"}, "--unit sentence: .* expected --language CODE"),
        ({"unit": "raw", "format": "segment_pair"}, "raw with .*segment_pair"),
    ],
)
def test_options_that_do_not_serve(
    corpora: Path, text_file: Path, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_folder(ours(tmp_path), [str(text_file)], [], TextOptions(**options))


def test_a_rate_beside_the_runs_own(corpora: Path, text_file: Path) -> None:
    run = Run(corpora / "sentence", corpora, **{"data.unit": "sentence"})
    options = TextOptions(masking="run", mask_rate=0.2)
    with pytest.raises(UserError, match="--mask-rate with --masking run"):
        evaluate_folder(run.published, [str(text_file)], [], options)


def test_a_config_that_was_changed(corpora: Path, text_file: Path, tmp_path: Path) -> None:
    run = Run(corpora / "sentence", corpora, **{"data.unit": "sentence"})
    config = run.publish(tmp_path) / "config.yaml"
    config.write_text(config.read_text().replace("block_length: 40", "block_length: 20"))
    with pytest.raises(UserError, match=r"config\.yaml: sha256"):
        evaluate_folder(tmp_path, [str(text_file)], [], TextOptions())


def test_a_folder_without_its_manifest(corpora: Path, text_file: Path, tmp_path: Path) -> None:
    """As one that is kept apart, or was copied in part."""
    run = Run(corpora / "sentence", corpora, **{"data.unit": "sentence"})
    folder = run.publish(tmp_path)
    for name in ("manifest.json", "recipe.json"):
        (folder / name).unlink()

    found = evaluate_folder(folder, [str(text_file)], [], TextOptions(masking="run"))["text"]
    assert found["cut"] == {**run.experiment.data.model_dump(), "as_trained": True}


@pytest.mark.parametrize(
    "content", ["data: {name: c4}\n", "[1, 2]\n", "model: [", "\x00", "a: &a [*a]\n"]
)
def test_a_config_of_another_program_says_nothing(
    content: str, text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(content)
    found = evaluate_folder(ours(tmp_path), [str(text_file)], [], TextOptions())["text"]
    assert found["cut"]["unit"] == "line" and found["cut"]["as_trained"] is None
