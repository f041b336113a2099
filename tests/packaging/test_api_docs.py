"""The API reference is made of every module that it names, without a warning."""

import importlib.util
import re
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_is_made_without_a_warning(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("api", ROOT / "docs" / "api.py")
    assert spec and spec.loader
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="pdoc")
        api.write(tmp_path)

    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    assert made == {"index.html", *(name.replace(".", "/") + ".html" for name in api.PUBLIC)}

    # names in docstrings are links where they can be, and <s> is text
    assert (
        'href="delta/predictor.html#Predictor"'
        in (tmp_path / "robustly" / "delta.html").read_text()
    )
    words = re.sub(r"<[^>]*>", "", (tmp_path / "robustly/evaluation/scoring.html").read_text())
    assert "&lt;s> and &lt;/s>" in words
