"""Estimate what a run leaves on disk, in bytes."""

TOKENIZER_BYTES = 100
"""Of the tokenizer's files for an entry of the vocabulary: 93 in runs/tiny/published."""


def checkpoint_bytes(parameters: int) -> int:
    """fp32 weights and both moments (pretrain/checkpoint.py)."""
    return 12 * parameters


def published_bytes(parameters: int, vocab_size: int) -> int:
    """fp32 weights and the tokenizer's files."""
    return 4 * parameters + TOKENIZER_BYTES * vocab_size


def store_bytes(tokens: float, units: float, documents: float, vocab_size: int) -> float:
    """The token store: ids in 2 bytes, 4 above 65,536 entries; 4 for the end of a unit, 4 and about
    1 for the white space before it, 12 for a document."""
    return (2 if vocab_size <= 2**16 else 4) * tokens + 9 * units + 12 * documents


def gigabytes(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e7 or not count else f"{count / 1e6:,.2f} MB"
