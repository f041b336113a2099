"""Find the files and datasets of a corpus, and hash what they hold."""

import glob
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustly import UserError, manifest
from robustly.config import fingerprint
from robustly.corpus import hub
from robustly.corpus.config import CorpusConfig, CountFiles, SourceConfig
from robustly.corpus.formats import COUNTS, DOCUMENTS, listed
from robustly.corpus.reading import readable, suffixes
from robustly.files import sha256
from robustly.log import progress


def corpus_files(corpus: CorpusConfig) -> list[tuple[int, Path]]:
    """The files of a corpus, each with the number of its source: sources as in the config, their
    files by name.

    Those of a dataset's folder are all that lie there, whatever they are; a dataset on the Hub has
    none on this machine. Raises UserError if a source matches no file, or one whose suffix is not
    known."""
    formats = COUNTS if isinstance(corpus, CountFiles) else DOCUMENTS
    expected = f"expected {'word counts: ' if formats is COUNTS else ''}{listed(formats)}"
    found = []

    for number, source in enumerate(corpus.sources):
        if source.path is None:
            folder = hub.folder_of(source)
            found += [(number, path) for path in _matches(folder)] if folder else []
            continue

        candidates = source.path.candidates
        matches = next((some for some in map(_matches, candidates) if some), None)
        if matches is None:
            raise UserError(
                f"{corpus.key}: {source.path}: no file there; looked at"
                f" {', '.join(map(str, candidates))}. Give a file, a folder or a glob"
                f" ({expected})"
            )

        found += [(number, path) for path in matches]

    for number, path in found:
        suffix, compression = suffixes(path)
        if corpus.sources[number].path is None or (
            suffix in formats and (formats[suffix].compressible or not compression)
        ):
            continue

        counts = "; word counts (.tsv) only for corpus.counts" if suffix in COUNTS else ""
        raise UserError(
            f"{path}: unknown kind of file: {expected}{counts}. {corpus.key} may pick files by a"
            " glob"
        )

    return found


def _matches(path: Path) -> list[Path]:
    """The files that a path stands for: itself, those below the folder but hidden ones, or what the
    glob matches."""
    if path.is_file():
        return [path]

    if path.is_dir():
        below = [
            file
            for file in path.rglob("*")
            if not any(p.startswith(".") for p in file.relative_to(path).parts)
        ]
    else:
        below = [Path(match) for match in glob.iglob(str(path), recursive=True)]  # noqa: PTH207 (may be absolute)

    return sorted((file for file in below if file.is_file()), key=Path.as_posix)


def remembered_files(folder: Path) -> dict[str, dict[str, Any]]:
    """What the finished stage in a folder, if there is one, knows of the files that it read (see
    `Hashes.files`)."""
    earlier = manifest.read(folder)
    return earlier.notes.get("files", {}) if earlier else {}


@dataclass(frozen=True)
class Hashes:
    """What the files and datasets of a corpus hold."""

    corpus: str
    """Fingerprint of the sources' names and their files' kinds and contents, in order; paths do not
    enter it. A dataset is its commit (in a folder: the files and their places there), subset and
    split."""
    files: dict[str, dict[str, Any]]
    """Path -> bytes, mtime_ns, sha256; name of a dataset -> commit (None: a folder). For the notes
    of a manifest, to be `remembered` next time."""


def hash_corpus(corpus: CorpusConfig, remembered: Mapping[str, Mapping[str, Any]]) -> Hashes:
    """Hash every file of the corpus, except those whose size and time of change are as
    `remembered`.

    The Hub is asked at which commit a dataset is, unless the config says so; where it cannot be
    reached, the commit is the one that is `remembered`. Raises UserError as `corpus_files` and
    `hub.hashed` do, or if a file cannot be read."""
    found = corpus_files(corpus)
    facts = file_facts([path for _, path in found], remembered, "hashing the corpus")
    contents: list[list[Any]] = []

    for number, source in enumerate(corpus.sources):
        own = [path for owner, path in found if owner == number]
        if source.path is not None:
            contents.append(
                [source.title, [[suffixes(path)[0], facts[str(path)]["sha256"]] for path in own]]
            )
            continue

        key = _key(source)
        dataset = hub.hashed(source, remembered.get(key, {}).get("commit"))
        facts[key] = {"commit": dataset.commit}
        places = [
            [path.relative_to(dataset.place).as_posix(), facts[str(path)]["sha256"]] for path in own
        ]
        contents.append([source.title, [dataset.commit, dataset.subset, dataset.split, *places]])

    return Hashes(fingerprint(contents), facts)


def file_facts(
    paths: Iterable[Path], remembered: Mapping[str, Mapping[str, Any]], what: str
) -> dict[str, dict[str, Any]]:
    """Path -> bytes, mtime_ns, sha256 of each file; those whose size and time of change are as
    `remembered` are not read. `what` is the title of a progress bar. Raises UserError if a file
    cannot be read."""
    facts: dict[str, dict[str, Any]] = {}
    for path in paths:
        status = path.stat()
        now = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        before = remembered.get(str(path), {})
        facts[str(path)] = dict(before) if now.items() <= before.items() else now

    new = [path for path, fact in facts.items() if "sha256" not in fact]

    with progress(what, sum(facts[path]["bytes"] for path in new), "bytes") as advance:
        for name in new:
            with readable(name):
                facts[name]["sha256"] = sha256(Path(name))
            advance(facts[name]["bytes"])

    return facts


def _key(source: SourceConfig) -> str:
    """A dataset's name among the files of a manifest's notes; two slashes in a row tell it from a
    path."""
    return f"hf://{source.hub}@{source.revision or 'main'}/{source.subset or ''}/{source.split}"


def corpus_sizes(corpus: CorpusConfig) -> dict[str, int | None]:
    """The bytes of everything that `hash_corpus` has facts of, under the same names; of a dataset
    None.

    No network is asked. Raises UserError as `corpus_files` does.
    """
    datasets = {_key(source): None for source in corpus.sources if source.path is None}
    return {**{str(path): path.stat().st_size for _, path in corpus_files(corpus)}, **datasets}
