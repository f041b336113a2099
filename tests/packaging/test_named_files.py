"""Files, modules and functions that the documentation names in backticks are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "log.md"),  # the past
]
FOLDERS = "|".join(
    path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")
)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(rf"\b(?:{FOLDERS})/[\w./-]*\w(?:: [\w.]+)?|\brobustly(?:\.\w+)+")
YOURS = re.compile(r"\b(runs|mine)\b")  # the reader's own


def defined(name: str, file: Path) -> bool:
    """Whether a function, class, method or variable of a file bears each part of a name."""
    text = file.read_text(encoding="utf-8")
    return all(
        re.search(rf"^\s*(def |class )?{part}\b", text, re.MULTILINE) for part in name.split(".")
    )


def there(named: str) -> bool:
    """`pretrain/masking.py`, `pretrain/masking.py: mask_blocks`, `robustly.rng` or
    `robustly.rng.permutation`; also `delta/lora.yaml`, as a config names a shipped one."""
    if "/" in named:
        path, _, name = named.partition(": ")
        found = next(
            (top / path for top in (ROOT, ROOT / "configs") if (top / path).exists()), None
        )
        return found is not None and (not name or defined(name, found))

    parts = named.split(".")
    for end in range(len(parts), 0, -1):
        module = ROOT.joinpath(*parts[:end])
        for file in (module.with_suffix(".py"), module / "__init__.py"):
            if file.exists():
                return end == len(parts) or defined(".".join(parts[end:]), file)
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_is_named_is_there(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    spans = re.findall(r"`([^`]+)`", text)
    named = {name for span in spans for name in FILE.findall(span) if not YOURS.search(name)}
    assert not [name for name in sorted(named) if not there(name)]
