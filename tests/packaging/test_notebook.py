"""The notebook runs from its first cell to its last, with smaller sizes."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests import warm

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs/notebook/from_text_to_delta.ipynb"
SIZES = {"TEXT_BYTES": "300_000", "UPDATES": "10", "RANKS": "1", "SEEDS": "1"}


def read() -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_it_is_kept_without_outputs() -> None:
    for cell in read().cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_its_links_lead_somewhere() -> None:
    text = "".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links and all((NOTEBOOK.parent / link).exists() for link in links)


@pytest.mark.pipeline
def test_it_runs(tmp_path: Path) -> None:
    """A cell that fails, or a command in one, fails the test."""
    notebook = read()
    (sizes,) = [cell for cell in notebook.cells if cell.source.startswith("TEXT_BYTES =")]
    for name, value in SIZES.items():
        sizes.source, replaced = re.subn(
            rf"^{name} = \w+", f"{name} = {value}", sizes.source, flags=re.M
        )
        assert replaced == 1, name

    (config,) = [cell for cell in notebook.cells if "base: delta/lora.yaml" in cell.source]
    config.source = config.source.replace("name: requests", "name: requests\noptim: {{epochs: 1}}")

    # its commands are those of the environment; from there on, without the seconds of their imports
    faster = f"""
import shutil
assert Path(shutil.which("robustly")).parent == Path(sys.executable).parent
os.environ["PATH"] = {str(warm.commands())!r} + os.pathsep + os.environ["PATH"]
"""
    notebook.cells.insert(notebook.cells.index(sizes), nbformat.v4.new_code_cell(faster))

    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()

    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    printed = "".join(output.text for output in last.outputs if output.output_type == "stream")
    assert re.search(r"^pretrained: [\d.]+%", printed, re.M) and "untrained: " in printed
