"""Whether two runs are the same: recipe hashes, outputs to the byte, losses to the last digit.

    python benchmarks/compare_runs.py BEFORE AFTER

for the run folders of the same config, such as those that `make quickstart` makes at two commits.
Exit code 1 if anything differs. What a run says of the machine and the moment (seconds, tokens a
second, memory, commit, version) is left out, and so are the files that hold it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustly import manifest

OF_THE_MOMENT = {
    "seconds",
    "training_seconds",
    "tokens_per_second",
    "data_wait",
    "memory_gb",
    "mfu",
}
"""Figures of metrics.jsonl and of manifests that no two runs share."""
UNLIKE = (".jsonl", ".png", "README.md", "state.json")
"""Endings of outputs that hold such figures, or drawings and words about them."""


def main(before: Path, after: Path) -> int:
    different = 0
    for name in sorted({path.parent.name for path in before.glob("*/manifest.json")}):
        rows = [*compared_stage(before / name, after / name)]
        different += sum(not same for _, same in rows)
        print(f"{name}: {sum(same for _, same in rows)} of {len(rows)} the same")
        for what, same in rows:
            if not same:
                print(f"  differs: {what}")

    return int(different > 0)


def compared_stage(before: Path, after: Path) -> Iterator[tuple[str, bool]]:
    """(what, whether it is the same) of two folders of a stage."""
    one, two = manifest.read(before), manifest.read(after)
    if one is None or two is None:
        yield "finished", False
        return

    yield "recipe hash", one.hash == two.hash
    yield "inputs", one.inputs == two.inputs
    for key, value in lasting(one.counts).items():
        if key != "bytes" or before.name != "published":  # the model card says how long it took
            yield f"counts: {key}", value == lasting(two.counts).get(key)

    for path in sorted(one.outputs.keys() | two.outputs.keys()):
        if not path.endswith(UNLIKE) and "tensorboard" not in path:
            yield path, one.outputs.get(path) == two.outputs.get(path)

    for path in sorted(before.glob("*.jsonl")):
        lines = [lasting(json.loads(line)) for line in path.read_text().splitlines()]
        others = (after / path.name).read_text().splitlines()
        yield (
            f"{path.name}, {len(lines)} lines",
            lines == [lasting(json.loads(line)) for line in others],
        )


def lasting(value: Any) -> Any:
    """Figures without those of the moment."""
    if isinstance(value, dict):
        return {key: lasting(each) for key, each in value.items() if key not in OF_THE_MOMENT}
    return [lasting(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
