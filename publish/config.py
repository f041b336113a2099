"""Schema of the page's `publish` section: what the model card says beyond the run's own records."""

from pydantic import Field

from robustly.config import Section


class Publish(Section):
    """Facts that only the author knows. Nothing here changes the weights."""

    title: str | None = None
    """Name of the model in its card; default: the page's name."""
    language: list[str] = Field(default_factory=list)
    """ISO 639-1 codes of the corpus."""
    license: str | None = None
    """Licence of the weights, as an SPDX identifier."""
    description: str | None = None
    """One paragraph on what the corpus is and what the model is for."""
