"""Rows for several deltas on one base: all at once beside one delta after the other, rows a second.

    python benchmarks/deltas_together.py

Eight deltas of one method answer rows of mixed tasks, as a server gets them: in lots of 8 or 32,
each row for a task by chance. "Switching" answers a lot task by task, with the predictor of each;
"together" by one run of the encoder (`robustly.delta.answering.together`). Longer lots are better for
switching, whose batches grow; so there is a lot of 256 rows, too, which would wait for each other.
Seconds are those of this process on one core, so that others on the machine do not count. The base
is random, of half the layers and width of RoBERTa base. The table is printed and written to
benchmarks/results/deltas_together-cpu-<date>.md."""

import platform
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.append(
    sys.path.pop(0)
)  # this folder last: pretrain.py has the name of one of our packages

import torch
from pydantic import TypeAdapter
from transformers import RobertaConfig, RobertaForMaskedLM

from robustly.delta.answering.together import Together
from robustly.delta.base_model import Base
from robustly.delta.predictor import Predictor
from robustly.delta.tasks.config import Task
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import lay_out

RESULTS = Path(__file__).parent / "results"
DELTAS, ROWS, ROUNDS = 8, 256, 2
LOTS = (8, 32, 256)
LAYERS, WIDTH = 6, 384
METHODS: dict[str, list[dict[str, Any]]] = {
    "lora": [{"name": "lora"}],
    "adapter": [{"name": "adapter"}],
    "ia3": [{"name": "ia3"}],
    "bitfit": [{"name": "bitfit"}],
    "prompt": [{"name": "prompt"}],
    "p_tuning_v2": [{"name": "p_tuning_v2"}],
}


def base() -> Base:
    tokenizer = Tokenizer(lay_out([]))
    config = RobertaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=WIDTH // 64,
        intermediate_size=4 * WIDTH, max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip
    model = RobertaForMaskedLM(config).eval().requires_grad_(False)
    return Base("random", model, True, tokenizer)


def rows(deltas: int) -> list[tuple[str, str]]:
    """Texts of 8 to 48 letters, each a token."""
    draw = random.Random(0)
    return [
        (str(draw.randrange(deltas)), "".join(draw.choices("abcdefgh", k=draw.randint(8, 48))))
        for _ in range(ROWS)
    ]


def switching(predictors: dict[str, Predictor]) -> Callable[[list[tuple[str, str]]], None]:
    def answer(lot: list[tuple[str, str]]) -> None:
        by_task = defaultdict(list)
        for task, text in lot:
            by_task[task].append(text)
        for task, texts in by_task.items():
            predictors[task].logits(texts)

    return answer


def speed(
    answer: Callable[[list[tuple[str, str]]], Any], given: list[tuple[str, str]], lot: int
) -> float:
    """Rows a second; the best round."""
    answer(given[:lot])
    best = 0.0
    for _ in range(ROUNDS):
        begin = time.process_time()
        for start in range(0, len(given), lot):
            answer(given[start : start + lot])
        best = max(best, len(given) / (time.process_time() - begin))

    return best


def main() -> None:
    torch.set_num_threads(1)
    of = base()
    keys = {"kind": "classification", "train": "a", "test": "b", "max_length": 64}
    task: Any = TypeAdapter(Task).validate_python(keys)
    lines = []

    for name, methods in {**METHODS, "one of each": []}.items():
        each = [methods] * DELTAS if methods else [*METHODS.values()]
        predictors = {
            str(seed): Predictor.attached(of, task, ("a", "b", "c"), some, seed)
            for seed, some in enumerate(each)
        }
        together, given = Together(of, predictors), rows(len(predictors))
        for lot in LOTS:
            one = speed(switching(predictors), given, lot)
            all_ = speed(together.logits, given, lot)
            lines.append(f"| {name} | {lot:,} | {one:,.0f} | {all_:,.0f} | {all_ / one:.2f} |")
            print(lines[-1], flush=True)

    head = [
        f"# {DELTAS} deltas on one base",
        "",
        f"`python benchmarks/deltas_together.py` on {platform.processor() or platform.machine()},"
        f" {torch.get_num_threads()} threads; {LAYERS} layers of {WIDTH};"
        f" torch {version('torch')}, transformers {version('transformers')}, peft {version('peft')}.",
        "Rows a second, the best of three rounds.",
        "",
        "| method | rows in a lot | switching | together | times |",
        "| --- | --- | --- | --- | --- |",
    ]
    text = "\n".join([*head, *lines]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"deltas_together-cpu-{time.strftime('%Y-%m-%d')}.md"
    path.write_text(text)
    print(f"{path}\n\n{text}")


if __name__ == "__main__":
    main()
