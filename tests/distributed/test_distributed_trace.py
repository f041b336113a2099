"""What `robustly trace` lists is what ranks were trained on."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ranks import run_distributed
from robustly.cli import main
from robustly.pretrain.batches import RankBatch
from robustly.pretrain.loop import pretrain
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.updates import Updates

pytestmark = pytest.mark.distributed
Fed = list[list[list[Any]]]


def go(rank: int, ranks: int, config: PretrainingConfig) -> Fed:
    """Train; returns of each update and micro-batch the tokens of each block and its targets."""
    torch.set_num_threads(1)
    original, fed = Updates.make, []

    def update_and_note(self: Updates, batch: RankBatch, *rest: Any) -> Any:
        fed.append([shown(one) for one in batch.micro_batches])
        return original(self, batch, *rest)

    Updates.make = update_and_note  # type: ignore[method-assign]
    pretrain(config, rank, rank, ranks)
    return fed


def shown(micro_batch: Any) -> list[Any]:
    """Of each block: its length, and the positions of its targets; of an empty micro-batch, one
    block of a lone <s>."""
    width = micro_batch.inputs.shape[1]
    lengths = [width] * len(micro_batch.inputs)
    if micro_batch.attention is not None:
        lengths = micro_batch.attention.sum(1).tolist()
    positions = micro_batch.positions.tolist()
    return [
        [length, [p % width for p in positions if p // width == row]]
        for row, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    "masks",
    [
        [],
        pytest.param(["masking.whole_words=true", "masking.words=icu"], marks=pytest.mark.full),
    ],
)
def test_a_trace_of_a_run_s_folder_is_what_its_ranks_were_fed(
    make_pretraining: Callable[..., PretrainingConfig],
    capfd: pytest.CaptureFixture[str],
    masks: list[str],
) -> None:
    name = f"traced{len(masks)}"
    config = make_pretraining(name, "schedule.updates=3", "run.ranks=2", *masks)
    fed = run_distributed(2, go, config)
    data = [f"paths.{name}={config.folder(name)}" for name in ("data", "tokenizer")]
    arguments = [str(config.folder("train")), *data]
    for update in (1, 2, 3):
        for rank, of_rank in enumerate(fed):
            capfd.readouterr()
            wanted = ["--update", str(update), "--rank", str(rank), "--json"]
            with pytest.raises(SystemExit, match="0"):
                main(["trace", *arguments, *wanted])

            blocks = json.loads(capfd.readouterr().out)["blocks"]
            found: list[list[Any]] = [[] for _ in of_rank[update - 1]]
            for block in blocks:
                assert block["rank"] == rank and block["row"] == len(found[block["micro_batch"]])
                found[block["micro_batch"]].append([block["tokens"], block["masked"]])

            assert found == of_rank[update - 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected either --update K or --document D"),
        (["--update", "1", "--document", "2"], "expected either --update K or --document D"),
        (["--update", "0"], "update 0: expected one of 1 to 12"),
        (["--update", "13"], "update 13: expected one of 1 to 12"),
        (["--update", "1", "--rank", "2", "--ranks", "2"], "--rank 2: expected one of 0 to 1"),
        (["--document", "999999"], "document 999999: the train split has"),
    ],
)
def test_what_cannot_be_traced(
    pretraining: Callable[..., PretrainingConfig],
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    arguments = pretraining()._arguments  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as leaving:
        main(["trace", *arguments, *words])

    assert leaving.value.code == 2
    assert said in capfd.readouterr().err


def test_a_document_s_updates_and_what_it_was_read_from(
    pretraining: Callable[..., PretrainingConfig], capfd: pytest.CaptureFixture[str]
) -> None:
    config = pretraining()
    arguments = config._arguments  # type: ignore[attr-defined]
    with pytest.raises(SystemExit, match="0"):
        main(["trace", *arguments, "--document", "3", "--json"])

    found = json.loads(capfd.readouterr().out)
    size = (config.folder("data").parent / "corpus.txt").stat().st_size
    assert found["read_from"].endswith(f"corpus.txt[0:{size}]") and found["number"] == 3
    for line in found["seen"]:
        wanted = ["--update", str(line["update"]), "--json"]
        with pytest.raises(SystemExit, match="0"):
            main(["trace", *arguments, *wanted])

        blocks = json.loads(capfd.readouterr().out)["blocks"]
        (block,) = (block for block in blocks if block["position"] == line["position"])
        assert 3 in [piece["document"] for piece in block["pieces"]]
