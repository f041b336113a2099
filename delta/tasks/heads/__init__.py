"""Heads of tasks, a file for each kind: encode examples into ids, batch them, compute logits, loss,
answers and scores.

The same loop trains every kind of task: `batch = head.batch(rows, device)`, then
`head.loss(head.logits(model, batch, rows), rows)`. In shapes N stands for the rows of a batch: its
encoded examples, each of which has one input or several."""

from robustly.delta.tasks.config import Task
from robustly.delta.tasks.heads.classification import ClassificationHead
from robustly.delta.tasks.heads.cloze import ClozeHead
from robustly.delta.tasks.heads.head import EncodedExample, TaskHead, Wanted
from robustly.delta.tasks.heads.multi_label import MultiLabelHead
from robustly.delta.tasks.heads.multiple_choice import MultipleChoiceHead
from robustly.delta.tasks.heads.regression import RegressionHead
from robustly.delta.tasks.heads.span_qa import SpanHead
from robustly.delta.tasks.heads.tokens import TokensHead
from robustly.tokenizer.tokenizer import Tokenizer

__all__ = ["EncodedExample", "TaskHead", "Wanted", "task_head"]

HEADS: dict[str, type[TaskHead]] = {
    "classification": ClassificationHead,
    "multi_label": MultiLabelHead,
    "regression": RegressionHead,
    "tokens": TokensHead,
    "multiple_choice": MultipleChoiceHead,
    "span_qa": SpanHead,
    "cloze": ClozeHead,
}


def task_head(
    task: Task, labels: tuple[str, ...], tokenizer: Tokenizer, longest: int, first_pseudo_id: int
) -> TaskHead:
    """The head of a task.

    `labels`: `TaskData.labels`. `longest`: tokens of the longest input that the base can take.
    `first_pseudo_id`: the model's vocabulary size, from which on pseudo-tokens are numbered. Raises
    UserError if a base is too short, or if a cloze does not fit the tokenizer."""
    longest = min(task.max_length or longest, longest)
    return HEADS[task.kind](task, labels, tokenizer, longest, first_pseudo_id)
