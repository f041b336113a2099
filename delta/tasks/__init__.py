"""Tasks: where their examples are, what is drawn of them, and how a model answers them.

`config` is their section of the page, `template` what a cloze is written in; `files` reads rows and
`data` makes checked examples of them; `forms` is between examples and a model; `metrics` are the
scores."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustly.delta.tasks.data import Example, TaskData, draw, read
    from robustly.delta.tasks.heads import EncodedExample, TaskHead, task_head

__all__ = ["EncodedExample", "Example", "TaskData", "TaskHead", "draw", "read", "task_head"]

_MODULES = {
    **dict.fromkeys(("Example", "TaskData", "draw", "read"), "robustly.delta.tasks.data"),
    **dict.fromkeys(("TaskHead", "EncodedExample", "task_head"), "robustly.delta.tasks.heads"),
}


def __getattr__(name: str) -> Any:
    """What is asked for is imported then: a page is read without torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
