"""What the tests here change of the tiny page, so that a run takes seconds."""

from pathlib import Path

CORPUS = Path(__file__).resolve().parents[2] / "data_prep" / "corpora" / "prose_cc0.txt"

SMALL = [
    "tokenizer.vocab_size=500",
    "corpus.validation=0.1",
    "data.block_length=64",
    "model.layers=2",
    "model.hidden=32",
    "model.heads=2",
    "model.feed_forward=64",
    "model.positions=66",
    "model.dropout=0.1",
    "model.attention_dropout=0.1",
    "optim.peak_lr=2e-3",
    "optim.batch_size=24",
    "schedule.updates=12",
    "schedule.warmup=3",
    "run.micro_batch=4",
    "run.log_every=1",
    "run.evaluate_every=6",
    "run.evaluate_blocks=16",
    "run.checkpoint_every=2",
    "run.workers=1",
]
