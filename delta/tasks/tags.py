"""The tags of words: schemes that mark entities, or plain tags, such as parts of speech."""

from collections.abc import Iterable

OUTSIDE = "O"
"""The tag of a word of no entity."""
SCHEMES = ("I", "BI", "BIES", "BILU", "BMES", "BMEW")
"""What tags of entities begin with: IO, BIO, BIOES and the other names of its marks. First, within,
last and only word of an entity."""
_IN_BIOES = str.maketrans("LUMW", "ESIS")


def mark_entities(tags: Iterable[str]) -> bool:
    """Whether tags are of entities: some are B- or I- of a kind."""
    return any(tag[:2] in ("B-", "I-") and tag[2:] for tag in tags)


def is_of_entities(tag: str) -> bool:
    """Whether a tag is one of any scheme."""
    return tag == OUTSIDE or (tag[:1] in "BIESLUMW" and tag[1:2] == "-" and tag[2:] != "")


def every_tag(kinds: Iterable[str], seen: Iterable[str]) -> set[str]:
    """The tags of these kinds of entities in the smallest scheme that has the marks of all tags
    that were seen."""
    marks = {tag[0] for tag in seen if tag != OUTSIDE}
    scheme: Iterable[str] = next((s for s in SCHEMES if marks <= set(s)), marks)
    return {OUTSIDE, *(f"{mark}-{kind}" for kind in kinds for mark in scheme)}


def in_bioes(tag: str) -> str:
    """A tag of any scheme with the marks of BIOES, of which BIO and IO are parts."""
    return tag if tag == OUTSIDE else tag[0].translate(_IN_BIOES) + tag[1:]


def outside(labels: Iterable[str]) -> str:
    """The tag of a word that was cut off, or of no entity; empty where tags are plain."""
    return OUTSIDE if mark_entities(labels) else ""
