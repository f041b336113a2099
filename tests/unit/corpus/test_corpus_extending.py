"""The examples of CONTRIBUTING.md work: an input format and an executor are a file and a line each."""

import gzip
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from robustly import UserError
from robustly.corpus import executors, formats
from robustly.corpus.config import CorpusConfig, Processing
from robustly.corpus.documents import documents
from robustly.corpus.partitions import partitions
from robustly.pretrain.config import RunConfig

CONTRIBUTING = Path(__file__).parents[3] / "CONTRIBUTING.md"


def example(title: str) -> ModuleType:
    """The program under a heading, as a module."""
    section = CONTRIBUTING.read_text(encoding="utf-8").partition(f"## {title}\n")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found
    module = ModuleType("example")
    exec(found[1], module.__dict__)
    return module


def test_an_input_format(
    tmp_path: Path, corpus_of: Callable[..., CorpusConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = b">one\nACGT\nAC\n>two\nGG\n"
    (tmp_path / "a.fasta").write_bytes(rows)
    (tmp_path / "b.fasta.gz").write_bytes(gzip.compress(rows))
    corpus = corpus_of(tmp_path)
    with pytest.raises(UserError, match=r"a\.fasta: unknown kind of file: expected \.txt, \.jsonl"):
        partitions(corpus)

    monkeypatch.setitem(formats.DOCUMENTS, ".fasta", example("Adding an input format").FASTA)
    read = [text for part in partitions(corpus) for text in documents(part, corpus, [])]
    assert read == ["ACGTAC", "GG"] * 2
    (tmp_path / "c.pdf").write_text("")
    with pytest.raises(UserError, match=r"\.tsv, \.fasta \(plain, .*\) or \.parquet"):
        partitions(corpus)


def note(folder: Path, number: int, part: str) -> None:
    (folder / part).write_text(str(number))


def test_an_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected 'local', 'slurm' or 'ray'"):
        RunConfig(executor="threads")

    monkeypatch.setitem(executors.EXECUTORS, "threads", example("Adding an executor").run)
    executor = RunConfig(executor="threads").executor
    work = partial(note, tmp_path)
    executors.process(work, "abc", tmp_path / "tasks", Processing(2, executor=executor), "testing")
    assert [(tmp_path / part).read_text() for part in "abc"] == ["0", "1", "2"]
    assert len(list((tmp_path / "tasks/completions").iterdir())) == 3
