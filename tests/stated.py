"""Sections whose relative paths start in a folder, as if a config file there stated them."""

from pathlib import Path
from typing import TypeVar

from robustly.config import Section, stated_in

SectionType = TypeVar("SectionType", bound=Section)


def stated(folder: Path, section: SectionType) -> SectionType:
    raw = section.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return type(section).model_validate(stated_in(folder, raw))
