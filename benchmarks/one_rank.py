"""One rank in training, ours or transformers' Trainer as run_mlm.py uses it, on the same random
blocks: what `pretrain.py` and `gpu.py` time."""

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from random_text import RandomBlocks, save_tokenizer, vocabulary_of

from robustly.data_prep.sampler import EpochSampler
from robustly.experiment import Experiment
from robustly.pretrain.attention import attention_for
from robustly.pretrain.batches import Batches, layout_for
from robustly.pretrain.model_setup import set_up_model
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.schedule import UpdateSizes

MOST_UPDATES = 1000


class Figures(NamedTuple):
    """What a timed training gives."""

    tokens_per_second: float
    """Without padding."""
    seconds: float
    """Of an update."""
    allocated: int | None
    """Peak of the bytes that torch gives out on a GPU, less those that were out before."""
    reserved: int | None
    """Peak of the bytes that its allocator holds."""


class Clock:
    """The time of the updates after the first `warm_up`: as many as are asked for, or as begin
    within `seconds`."""

    def __init__(self, warm_up: int, updates: int = MOST_UPDATES, seconds: float = float("inf")):
        self.warm_up, self.most, self.seconds = warm_up, warm_up + updates, seconds
        self.updates, self.tokens, self.before = 0, 0, 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()

        self.start = self.now()

    def tick(self, tokens: int) -> bool:
        """An update of so many tokens has ended; returns whether it was the last."""
        self.updates += 1
        if self.updates <= self.warm_up:
            self.start = self.now()
            return False

        self.tokens += tokens
        return self.updates >= self.most or self.now() - self.start >= self.seconds

    @staticmethod
    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def figures(self) -> Figures:
        seconds = self.now() - self.start
        each = seconds / (self.updates - self.warm_up)
        if not torch.cuda.is_available():
            return Figures(self.tokens / seconds, each, None, None)

        allocated = torch.cuda.max_memory_allocated() - self.before
        reserved = torch.cuda.max_memory_reserved()
        return Figures(self.tokens / seconds, each, allocated, reserved)


@contextlib.contextmanager
def alone() -> Iterator[torch.device]:
    """The process group of one rank: NCCL on a GPU. Needs DeepSpeed."""
    import robustly.pretrain.engine  # noqa: F401 (where DeepSpeed is missing, nothing is begun)
    from robustly.pretrain.process_group import start_ranks, stop_ranks

    os.environ.update(variables())
    device = start_ranks(0)
    try:
        yield device
    finally:
        stop_ranks()


def variables() -> dict[str, str]:
    """What tells a process that it is the only rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


class Ours:
    """The engine (DeepSpeed), the head on the masked positions, masks made ahead; `train` makes
    updates as the training's loop does, but for what ranks tell each other."""

    def __init__(self, page: Experiment, device: torch.device, padded: bool = True):
        """`padded`: blocks of whole sentences, which leave some padding; else full ones."""
        from robustly.pretrain.engine import Engine

        vocabulary = vocabulary_of(page.tokenizer.vocab_size)
        model = new_model(roberta_config(page.model, vocabulary), page.seed)
        objective = MaskedLanguageModel(model).train()
        attention = attention_for(page.run, page.model, device)
        blocks: Any = RandomBlocks(vocabulary, page.data.block_length, padded=padded)
        order, batch = EpochSampler(blocks, page.seed), page.optim.batch_size
        on_gpu, in_rows = device.type == "cuda", attention.in_rows
        fixed = page.run.compile or (on_gpu and in_rows)
        layout = layout_for(order, batch, 1, page.run.micro_batch, in_rows, fixed)
        usual = layout.positions(page.data.block_length), page.masking.probability
        set_up_model(objective, page.run, attention, usual=usual)
        masks = page.masking, vocabulary
        self.batches = Batches(order, UpdateSizes(batch), *masks, 0, 1, layout, pinned=on_gpu)
        self.engine = Engine(objective, page.optim, page.run, self.batches.accumulation, device)
        self.rate, self.device = page.optim.peak_lr / 100, device

    def train(self, clock: Clock) -> Figures:
        with contextlib.closing(self.batches.ahead(1, MOST_UPDATES)) as ahead:
            for share in ahead:
                found = []
                self.engine.begin(len(share.micro_batches))
                for batch in share.micro_batches:
                    one = batch.to(self.device)
                    sums = self.engine(one.inputs, one.attention, one.positions, one.labels)
                    self.engine.backward(sums.sum() / share.masked_tokens)
                    found.append(sums.detach())

                torch.stack(found).double().tolist()  # as for a line of metrics.jsonl
                self.engine.step(self.rate)
                if clock.tick(share.tokens):
                    break

        return clock.figures()


def theirs(page: Experiment, clock: Clock, compiled: bool = False, workers: int = 0) -> Figures:
    """transformers' Trainer with what run_mlm.py gives it: texts joined and cut into blocks without
    padding (its `group_texts`), with their masks of attention and of special tokens; a collator
    that masks; the fused AdamW and torch's fused attention, which are the defaults; bf16 by
    autocast. `workers`: processes that make its batches; run_mlm.py's default is none."""
    from transformers import (
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    vocabulary = vocabulary_of(page.tokenizer.vocab_size)
    model = new_model(roberta_config(page.model, vocabulary), page.seed)
    length, batch = page.data.block_length, page.optim.batch_size
    ids = RandomBlocks(vocabulary, length, 16 * batch).ids
    special = [1, *[0] * (length - 2), 1]

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        """Lists, as `datasets` gives them."""

        def __len__(self) -> int:
            return len(ids)

        def __getitem__(self, row: int) -> dict[str, list[int]]:
            return {
                "input_ids": ids[row].tolist(),
                "attention_mask": [1] * length,
                "special_tokens_mask": special,
            }

    class Ticking(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, arguments: Any, state: Any, control: Any, **rest: Any) -> None:
            control.should_training_stop |= clock.tick(batch * length)

    on_gpu = torch.cuda.is_available()

    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(vocabulary.size, Path(folder, "tokenizer"))
        tokenizer = AutoTokenizer.from_pretrained(Path(folder, "tokenizer"))
        arguments = TrainingArguments(
            folder, max_steps=clock.most, per_device_train_batch_size=page.run.micro_batch,
            gradient_accumulation_steps=batch // page.run.micro_batch,
            learning_rate=page.optim.peak_lr / 100, lr_scheduler_type="constant",
            adam_beta1=page.optim.betas[0], adam_beta2=page.optim.betas[1], adam_epsilon=page.optim.eps,
            weight_decay=page.optim.weight_decay, max_grad_norm=page.optim.clip_norm,
            bf16=page.run.precision == "bf16", use_cpu=not on_gpu, report_to=[], torch_compile=compiled,
            dataloader_num_workers=workers, save_strategy="no", logging_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=on_gpu,
        )  # fmt: skip
        collator = DataCollatorForLanguageModeling(
            tokenizer, mlm_probability=page.masking.probability
        )
        Trainer(model, arguments, collator, train_dataset=Rows(), callbacks=[Ticking()]).train()

    return clock.figures()


def matmul_tflops(precision: str, size: int) -> float:
    """What this device reaches on square matrices of so many rows, 10^12 operations a second."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left = torch.randn(size, size, dtype=kind, device=device)
    for _ in range(3):
        left @ left

    start, count = Clock.now(), 20
    for _ in range(count):
        left @ left

    return 2 * size**3 * count / (Clock.now() - start) / 1e12
