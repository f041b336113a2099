"""Several deltas on one base at once: what each alone answers, by one run of the encoder a batch."""

import copy
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor
from transformers import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaEncoder
from typer.testing import CliRunner, Result

from robustly import UserError
from robustly.cli.commands import app
from robustly.delta.answering.together import Together
from robustly.delta.attachment import trained
from robustly.delta.base_model import Base
from robustly.delta.config import load_delta
from robustly.delta.methods import METHODS, name_of
from robustly.delta.methods.intrinsic_prompt import DECODER, RECORD, Subspace
from robustly.delta.predictor import Predictor
from robustly.delta.stage import make_delta
from robustly.delta.tasks.config import Task
from robustly.files import write_json
from robustly.manifest import Stage
from robustly.pretrain.objective import new_model
from robustly.tokenizer.merges import train_merges
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import lay_out
from robustly.tokenizer.words import split_words

Methods = list[dict[str, Any]]
PAIRS: dict[str, tuple[Methods, Methods]] = {
    "lora": ([{"name": "lora", "rank": 2}], [{"name": "lora", "rank": 5, "targets": ["key", "output.dense"]}]),
    "dora": ([{"name": "dora", "rank": 2}], [{"name": "dora", "rank": 3, "targets": ["query"]}]),
    "ia3": ([{"name": "ia3"}], [{"name": "ia3"}, {"name": "lora", "targets": ["value", "output.dense"]}]),
    "adalora": ([{"name": "adalora", "rank": 2, "initial_rank": 4}], [{"name": "adalora", "rank": 1, "initial_rank": 3, "targets": ["value", "output.dense"]}, {"name": "ia3"}]),
    "adapter": ([{"name": "adapter", "size": 8}], [{"name": "adapter", "size": 3, "place": "parallel", "scale": 4.0, "layer_norms": False}]),
    "prompt": ([{"name": "prompt", "tokens": 3}], [{"name": "prompt", "tokens": 5}]),
    "p_tuning": ([{"name": "p_tuning", "tokens": 3}], [{"name": "p_tuning", "tokens": 2}]),
    "intrinsic_prompt": ([{"name": "intrinsic_prompt"}], [{"name": "intrinsic_prompt"}, {"name": "lora"}]),
    "prefix": ([{"name": "prefix", "tokens": 3, "hidden": 16}], [{"name": "prefix", "tokens": 6, "hidden": 8}]),
    "p_tuning_v2": ([{"name": "p_tuning_v2", "tokens": 3}], [{"name": "p_tuning_v2", "tokens": 4}, {"name": "prompt", "tokens": 4}, {"name": "adapter", "place": "pfeiffer"}]),
    "bitfit": ([{"name": "bitfit"}], [{"name": "bitfit"}, {"name": "dora"}]),
    "head": ([{"name": "head"}], [{"name": "head"}]),
}  # fmt: skip
"""Method -> two deltas that have it, of different sizes or with others beside it."""
APART: Methods = [{"name": "full"}]
TEXTS = ["a", "bcd efg hij", "it was great " * 9, "k l m n o p", "The quick brown fox", "e"]
HIDDEN = 32


@pytest.fixture(scope="module")
def base() -> Base:
    """Its vocabulary has "great" and "bad"; random, and nothing is near 0 in it."""
    words = split_words(" great bad great bad it was" * 5)
    vocabulary = lay_out(train_merges(Counter(words).items(), 20, 1).merges)
    config = RobertaConfig(
        vocab_size=len(vocabulary.ids), hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=62, type_vocab_size=1, initializer_range=0.2,
    )  # fmt: skip
    return Base("base", new_model(config, 1), True, Tokenizer(vocabulary))


@pytest.fixture(scope="module")
def subspace(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of prompts of 3 tokens by 2 numbers."""
    stage = Stage(tmp_path_factory.mktemp("subspace"), "subspace", {}, {})
    with stage.begin():
        draw = torch.Generator().manual_seed(1)
        shapes = {"inner_weight": (8, 2), "inner_bias": (8,), "outer_weight": (3 * HIDDEN, 8), "outer_bias": (3 * HIDDEN,)}  # fmt: skip
        save_file(
            {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()},
            stage.folder / DECODER,
        )
        write_json(
            stage.folder / RECORD, asdict(Subspace(2, 3, HIDDEN, 8, base.fingerprint, tasks=[]))
        )
        stage.finish([stage.folder / DECODER, stage.folder / RECORD], {})

    return stage.folder


def made(
    base: Base,
    methods: Methods,
    seed: int,
    labels: tuple[str, ...] = ("bad", "great", "so"),
    **task: Any,
) -> Predictor:
    """A delta, all of whose parameters are away from where they started."""
    keys = {"kind": "classification", "train": "a", "test": "b", "max_length": 40, **task}
    read = TypeAdapter[Any](Task).validate_python(keys)
    predictor = Predictor.attached(base, read, labels, methods, seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained(predictor.model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)

    return predictor


def alone(predictors: dict[str, Predictor], rows: list[tuple[str, Any]]) -> list[Tensor]:
    return [predictors[task].logits([given])[0] for task, given in rows]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    """What stands behind an input's tokens or choices depends on the batch, and means nothing."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one[tuple(map(slice, other.shape))], other, rtol=1e-5, atol=1e-5)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many inputs each run of an encoder had."""
    found = []
    forward = RobertaEncoder.forward

    def counted(self: Any, states: Tensor, *given: Any, **named: Any) -> Any:
        found.append(len(states))
        return forward(self, states, *given, **named)

    monkeypatch.setattr(RobertaEncoder, "forward", counted)
    return found


@pytest.mark.parametrize("method", PAIRS)
def test_each_method_by_one_run(base: Base, subspace: Path, runs: list[int], method: str) -> None:
    """Two deltas of it, and one that is the head alone."""
    pair = [
        [each | ({"subspace": str(subspace)} if each["name"] == "intrinsic_prompt" else {}) for each in methods]
        for methods in PAIRS[method]
    ]  # fmt: skip
    predictors = {"one": made(base, pair[0], 1), "other": made(base, pair[1], 2), "bare": made(base, [{"name": "head"}], 3)}  # fmt: skip
    rows = [(task, text) for text in TEXTS for task in predictors]
    expected = alone(predictors, rows)
    together = Together(base, predictors)
    runs.clear()
    assert_equal(together.logits(rows), expected)
    assert runs == [len(rows)]
    for task, predictor in predictors.items():  # they stay as they are
        assert torch.equal(predictor.logits(TEXTS[:1])[0], expected[rows.index((task, TEXTS[0]))])


def test_every_method_that_works_by_row_is_tested_here() -> None:
    assert PAIRS.keys() == {name_of(method) for method in METHODS if method.by_row}


def test_all_methods_and_all_kinds_of_task_at_once(
    base: Base, subspace: Path, runs: list[int]
) -> None:
    """Also a delta that cannot share a run, and a cloze with a prompt in its template."""
    text, words = {"text": "text"}, {"bad": "bad", "great": "great"}
    pair = {"text": "text", "text_pair": "other"}
    predictors = {
        "classes": made(base, PAIRS["lora"][0], 1),
        "more": made(base, PAIRS["p_tuning_v2"][1], 2, ("a", "b", "c", "d", "e")),
        "number": made(base, PAIRS["adapter"][0], 3, (), kind="regression", **pair),
        "tags": made(base, [*PAIRS["prompt"][1], {"name": "ia3"}], 4, ("B-X", "I-X", "O"), kind="tokens"),
        "choice": made(base, [*PAIRS["prefix"][0], *PAIRS["bitfit"][1]], 5, (), kind="multiple_choice"),
        "cloze": made(base, PAIRS["p_tuning"][0], 6, ("bad", "great"), kind="cloze", template="{prompt:2} {text} {prompt} It was<mask>.", words=words, **text),
        "plain cloze": made(base, PAIRS["prompt"][0], 7, ("bad", "great"), kind="cloze", template="{text} It was<mask>.", words=words),
        "labels": made(base, PAIRS["lora"][1], 8, kind="multi_label"),
        "span": made(base, [{"name": "bitfit"}, {"name": "prompt", "tokens": 2}], 9, (), kind="span_qa", stride=4),
        "windows": made(base, PAIRS["prompt"][0], 11, long="windows", max_length=16),
        "full": made(base, APART, 10),
    }  # fmt: skip
    given: dict[str, list[Any]] = {
        "number": [("a b", "c"), ("it was bad " * 9, "d e f " * 9)],
        "tags": [["a", "great", "bcd"], ["was"] * 50, ["e"]],
        "choice": [("a b", ["c", "it was great", "d e f"]), ("g", ["h", "i j"])],
        "span": [("was it", "it was great bad " * 9), ("a", "bcd")],
    }
    rows = [(task, each) for task in predictors for each in given.get(task, TEXTS)]
    rows = [*rows[::3], *rows[1::3], *rows[2::3]] * 2
    expected = alone(predictors, rows)
    together = Together(base, predictors)
    runs.clear()
    assert_equal(together.logits(rows), expected)
    assert len(runs) == 4  # three batches of all, and `full`
    answers = [predictors[task].predict([each])[0] for task, each in rows]
    assert together.predict(rows) == [
        pytest.approx(each) if isinstance(each, float) else each for each in answers
    ]


def test_on_a_base_in_half_precision(base: Base) -> None:
    """As near as bf16, of 8 bits, is to itself in another order of sums."""
    half = replace(base, model=copy.deepcopy(base.model).to(torch.bfloat16))
    predictors = {name: made(half, pair[1], 1) for name, pair in PAIRS.items() if name != "intrinsic_prompt"}  # fmt: skip
    rows = [(task, text) for task in predictors for text in TEXTS[:2]]
    found = Together(half, predictors).logits(rows)
    for one, other in zip(found, alone(predictors, rows), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=8 * 2**-8)


def test_answers_several_threads(base: Base) -> None:
    predictors = {"one": made(base, PAIRS["lora"][0], 1), "other": made(base, PAIRS["prompt"][0], 2), "full": made(base, APART, 3)}  # fmt: skip
    together = Together(base, predictors)
    rows = [(task, text) for text in TEXTS for task in predictors]
    expected = together.logits(rows)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(together.logits, [rows] * 12):
            assert_equal(found, expected)


def test_rows_that_cannot_be_answered(base: Base) -> None:
    together = Together(base, {"one": made(base, PAIRS["lora"][0], 1)})
    assert together.logits([]) == together.predict([]) == []
    with pytest.raises(UserError, match="other: no such task; there are one"):
        together.predict([("one", "a"), ("other", "b")])
    with pytest.raises(UserError, match="expected a text"):
        together.predict([("one", 3)])
    other = Base("other", new_model(base.model.config, 2), True, base.tokenizer)
    with pytest.raises(
        UserError, match=r"one: on a base with weights \w{16}; expected that of other"
    ):
        Together(other, {"one": made(base, PAIRS["lora"][0], 1)})


# -------------------------------------------------------------------------------------- from a shell


def robustly(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["delta", *map(str, arguments)])
    assert done.exit_code == code, f"{done.exit_code}: {done.stderr}{done.exception}"
    return done


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def folders(place: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two deltas of some updates. Left as they are by the tests."""
    folder = tmp_path_factory.mktemp("deltas")
    for name, methods in (("one", "[{name: lora}]"), ("other", "[{name: prompt, tokens: 3}]")):
        keys = [f"paths.published={place / 'base'}", f"paths.delta={folder / name}", f"delta.methods={methods}"]  # fmt: skip
        make_delta(load_delta(place / "letters.yaml", [*keys, "delta.seeds=1", "optim.epochs=0.5"]))

    return [folder / "one", folder / "other"]


def test_predict_with_several_deltas(folders: list[Path], tmp_path: Path) -> None:
    """A row is for the delta that it names, or for all."""
    texts = ["abc d", "wxyz", "jklm jkl"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    alone = {
        folder.name: objects(robustly("predict", folder, tmp_path / "texts.txt").stdout)
        for folder in folders
    }
    both = ",".join(map(str, folders))
    found = objects(robustly("predict", "--deltas", both, tmp_path / "texts.txt").stdout)
    for number, line in enumerate(found):
        assert [*line["answers"]] == ["one", "other"]
        for name, answer in line["answers"].items():
            assert answer == {**alone[name][number], "scores": pytest.approx(alone[name][number]["scores"], abs=1e-5)}  # fmt: skip

    rows = [{"text": text, "delta": ["other", "one"][n % 2], "id": n} for n, text in enumerate(texts)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = robustly("predict", "--deltas", both, tmp_path / "rows.jsonl", "--keep", "id")
    for row, number, line in zip(rows, range(3), objects(named.stdout), strict=True):
        assert line.pop("input") == {"id": number} and line.pop("delta") == row["delta"]
        assert line == found[number]["answers"][row["delta"]]


def test_deltas_that_cannot_answer_together(
    folders: list[Path], place: Path, tmp_path: Path
) -> None:
    both, rows = ",".join(map(str, folders)), tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "a", "delta": "third"}))
    done = robustly("predict", "--deltas", both, rows, code=2)
    assert "rows.jsonl: line 1: delta: 'third'; expected one of one, other" in done.stderr
    done = robustly("predict", "--deltas", f"{folders[0]},{folders[0]}", rows, code=2)
    assert "one twice; expected folders of different names" in done.stderr
    done = robustly("predict", "--deltas", both, rows, "--base", place / "other", code=2)
    assert "on other weights it would mean nothing" in done.stderr
    assert "expected the folder of a delta, or --deltas" in robustly("predict", code=2).stderr
