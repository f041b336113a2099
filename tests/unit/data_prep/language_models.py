"""A fastText model that knows a few words of some languages, written as fastText writes one."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

MAGIC, VERSION = 793712314, 12
SUPERVISED, SOFTMAX = 3, 3


def write_model(path: Path, languages: Mapping[str, Sequence[str]]) -> Path:
    """Language -> its words. The probabilities of a text are the softmax of 10 x the share of each
    language's words among those that are known."""
    dim = len(languages)
    entries = [(word, 0) for words in languages.values() for word in words]
    entries += [(f"__label__{name}", 1) for name in languages]
    vectors = [
        [float(place == own) for place in range(dim)]
        for own, words in enumerate(languages.values())
        for _ in words
    ]
    # dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn, lrUpdateRate, t
    data = struct.pack("<2i", MAGIC, VERSION)
    data += struct.pack("<12id", dim, 5, 1, 1, 5, 1, SOFTMAX, SUPERVISED, 0, 0, 0, 100, 1e-4)
    data += struct.pack("<3i2q", len(entries), len(vectors), dim, len(vectors), -1)
    for text, kind in entries:
        data += text.encode() + b"\0" + struct.pack("<qb", 1, kind)

    data += _matrix(vectors)
    data += _matrix([[10.0 * (row == column) for column in range(dim)] for row in range(dim)])
    path.write_bytes(data)
    return path


def _matrix(rows: Sequence[Sequence[float]]) -> bytes:
    """Not quantized; rows, columns, values."""
    values = [value for row in rows for value in row]
    return struct.pack("<b2q", 0, len(rows), len(rows[0])) + struct.pack(
        f"<{len(values)}f", *values
    )
