"""All ranks train the same thing: before training they compare config, code and inputs, and at each
checkpoint the bits of their weights. A rank that differs is named with its host, and with what
differs."""

import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from robustly import StartAgain, UserError
from robustly.config import differing, shortened, usual
from robustly.pretrain.ranks import FailedOnAnotherRank, gather_over_ranks


def agree(stated: Mapping[str, Any], rank: int) -> None:
    """Go on only if all ranks state the same, as nested plain data. Every rank calls it; it needs
    no more than the process group.

    Raises UserError on rank 0, which names all that differs, and FailedOnAnotherRank on the
    others."""
    of_ranks = gather_over_ranks((socket.gethostname(), dict(stated)))
    hosts, values = zip(*of_ranks, strict=True)
    found = disagreements(hosts, values)
    if not found:
        return

    if rank:
        raise FailedOnAnotherRank
    raise UserError(
        "the ranks would not train the same thing; nothing was changed\n"
        + "\n".join(f"  {line}" for line in found)
        + "\nGive all of them the same config, code and inputs: only `paths` may differ"
    )


def disagreements(hosts: Sequence[str], values: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each key and host where ranks have another value than most do (of two, than rank
    0)."""
    lines: dict[tuple[str, str], list[int]] = {}
    for name, like in usual(values).items():
        for rank, (host, own) in enumerate(zip(hosts, values, strict=True)):
            for key, expected, found in differing(values[like].get(name), own.get(name), name):
                line = f"{key} = {shortened(found)}, rank {like} has {shortened(expected)}"
                lines.setdefault((host, line), []).append(rank)

    return [
        f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} on {host}: {line}"
        for (host, line), ranks in lines.items()
    ]


# ----------------------------------------------------------------------------------------- weights


def agree_on_weights(sums: Mapping[str, int], rank: int, update: int) -> None:
    """Go on only if all ranks hold the same weights, of which they pass a checksum each, by name
    (`ShardedTensors.checksums`). Every rank calls it.

    Raises StartAgain on the first rank that holds others than most do, and FailedOnAnotherRank on
    all others."""
    of_ranks = gather_over_ranks((socket.gethostname(), dict(sums)))
    hosts, values = zip(*of_ranks, strict=True)
    odd = odd_ranks(values)
    if not odd:
        return

    if rank != odd[0]:
        raise FailedOnAnotherRank
    where = "there" if 2 * len(odd) < len(values) else "on either side (which, so few cannot tell)"
    raise StartAgain(
        f"update {update}: the ranks hold different weights; no checkpoint was written\n"
        + "\n".join(f"  {line}" for line in other_weights(hosts, values))
        + f"\nA bit may have flipped {where}, in memory or on the way. The same command goes on"
        " from the newest checkpoint; leave that machine out if it happens again. (With"
        " run.zero_stage=0, GPUs of different kinds may round differently: take 1)"
    )


def odd_ranks(sums: Sequence[Mapping[str, int]]) -> list[int]:
    """The ranks whose checksums are others than those of most ranks; where no sort is most common,
    others than the first such rank's."""
    kinds = [tuple(sorted(own.items())) for own in sums]
    ((usual, _),) = Counter(kinds).most_common(1)
    return [rank for rank, kind in enumerate(kinds) if kind != usual]


def other_weights(hosts: Sequence[str], sums: Sequence[Mapping[str, int]]) -> list[str]:
    """A line for each odd rank: how many of its tensors differ, and the first of them."""
    odd = odd_ranks(sums)
    usual = next(rank for rank in range(len(sums)) if rank not in odd)
    lines = []
    for rank in odd:
        names = [name for name, value in sums[rank].items() if value != sums[usual].get(name)]
        lines.append(
            f"rank {rank} on {hosts[rank]}: {len(names)} of {len(sums[rank])} tensors, such as"
            f" {names[0]}, differ from those of rank {usual} on {hosts[usual]}"
        )

    return lines
