"""Find the files and datasets of a corpus, and hash what they hold."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustly import UserError, manifest
from robustly.config import fingerprint
from robustly.corpus import foreign, hub, saved_datasets
from robustly.corpus.config import CorpusConfig, SourceConfig
from robustly.corpus.formats import COUNTS, DOCUMENTS, Format, formats_of, listed
from robustly.corpus.reading import readable, suffixes
from robustly.files import hashed, matching, sha256, write_atomic
from robustly.log import progress

FILES = "files.json"
"""What a stage knows of the files that it read; safe to delete, they are hashed anew then."""


def corpus_files(corpus: CorpusConfig) -> list[tuple[int, Path]]:
    """The files of a corpus, each with the number of its source: sources as in the config, their
    files by name.

    Those of a dataset's folder are all that lie there, whatever they are; a dataset on the Hub has
    none on this machine. Raises UserError if a source matches no file, one whose suffix is not
    known, a link to nothing, or a folder that `path` does not take."""
    formats = formats_of(corpus)
    found = []

    for number, source in enumerate(corpus.sources):
        if source.path is None:
            folder = hub.folder_of(source)
            below = sorted(_below(folder), key=Path.as_posix) if folder else []
            found += [(number, path) for path in below]
            continue

        candidates = source.path.candidates
        matches = next((some for path in candidates if (some := _matches(path, formats))), None)
        if matches is None:
            raise UserError(
                f"{corpus.key}: {source.path}: no file there; looked at"
                f" {', '.join(map(str, candidates))}. Give a file, a folder or a glob"
                f" ({_expected(formats)}){_hint(source.path, candidates)}"
            )

        for path in matches:
            _check_kind(path, formats, corpus.key)
        found += [(number, path) for path in matches]

    return found


def _matches(path: Path, formats: Mapping[str, Format]) -> list[Path]:
    """The files that a path stands for: itself, those below the folder but hidden ones, or what the
    glob matches; without what commonly lies beside data (README, _SUCCESS, sums)."""
    if path.is_file():
        return [path]

    if path.is_dir() and foreign.is_hub_folder(path):
        raise UserError(
            f"{path}: a dataset of the Hub, as its README.md says, with subsets and splits; give it"
            f" as `hub: {path}`, or name its files by a glob"
        )

    below = _below(path) if path.is_dir() else _globbed(path)
    return sorted((file for file in below if not foreign.lies_beside(file.name)), key=Path.as_posix)


def _globbed(glob: Path) -> Iterator[Path]:
    """The files that a glob matches. Raises UserError for a link to nothing."""
    for path in matching(glob):
        _check_link(path)
        if path.is_file():
            yield path


def _below(folder: Path, within: tuple[str, ...] = ()) -> Iterator[Path]:
    """The files below a folder but hidden ones, links followed; of a dataset that `save_to_disk`
    wrote, its own. `within`: the real paths of the folders above.

    Raises UserError for a link to nothing."""
    if saved_datasets.is_saved(folder):
        yield from saved_datasets.files(folder)
        return

    within = (*within, os.path.realpath(folder))
    try:
        with os.scandir(folder) as listing:  # which knows what a file is without asking the disk
            entries = list(listing)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror or error}") from None

    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_symlink():
            _check_link(Path(entry))
        if entry.is_dir():
            if os.path.realpath(entry) not in within:
                yield from _below(Path(entry), within)
        elif entry.is_file():
            yield Path(entry)


def _check_link(path: Path) -> None:
    """Raises UserError for a link to nothing, which one to itself is, too."""
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{path}: a link to {path.readlink()}, where nothing is; mend it or remove it"
        )


def _hint(path: str, candidates: Iterable[Path]) -> str:
    """What may be wrong with a path where nothing is."""
    if "://" in path:
        return "; an address is not fetched: `hub` reads datasets of the Hub, others are downloaded"
    if "{" in path:
        return "; braces are not expanded: list what they stand for"
    globs = (candidate for candidate in candidates if not candidate.is_dir())
    if any(each.is_dir() for glob in globs for each in matching(glob)):
        return "; it matches folders: end it with /** for all that is below"
    return "; in a glob, [[] stands for a bracket" if "[" in path else ""


def _check_kind(path: Path, formats: Mapping[str, Format], key: str) -> None:
    """Raises UserError for a file that no format reads, or that no manifest can name."""
    if not _utf8(str(path)):
        raise UserError(f"{os.fsencode(path)!r}: a name that is not UTF-8; rename it")

    suffix, compression = suffixes(path)
    if suffix in formats and (formats[suffix].compressible or not compression):
        return

    if suffix in formats:
        way = f"decompress it: a {suffix} file is compressed within"
    elif formats is COUNTS and suffix in DOCUMENTS:
        way = "text goes to corpus.sources"
    elif not suffix and compression:
        way = f"say what it holds, such as NAME.txt{compression}"
    else:
        way = foreign.way_round(suffix)
    raise UserError(
        f"{path}: unknown kind of file: {_expected(formats)}. {way[0].upper()}{way[1:]}, or let"
        f" {key} pick files by a glob"
    )


def _utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _expected(formats: Mapping[str, Format]) -> str:
    return f"expected {'word counts: ' if formats is COUNTS else ''}{listed(formats)}"


def remember_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Write what a stage knows of the files that it read (`Hashes.files`) beside its output;
    returns the note of its manifest that tells whether that is still so. It is no part of the
    manifest, which is read often: of 100,000 files it has 20 MB."""
    content = json.dumps(files).encode()
    write_atomic(folder / FILES, content)
    return {"files": hashlib.sha256(content).hexdigest()}


def remembered_files(folder: Path) -> dict[str, dict[str, Any]]:
    """What the finished stage in a folder, if there is one, knows of the files that it read;
    nothing where that is not what it wrote."""
    if not (earlier := manifest.read(folder)):
        return {}

    try:
        content = (folder / FILES).read_bytes()
    except OSError:
        return {}

    if earlier.notes.get("files") != hashlib.sha256(content).hexdigest():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(content)
    return found


@dataclass(frozen=True)
class Hashes:
    """What the files and datasets of a corpus hold."""

    corpus: str
    """Fingerprint of the sources' names and their files' kinds and contents, in order; paths do not
    enter it. A dataset is its commit (in a folder: the files and their places there), subset and
    split."""
    files: dict[str, dict[str, Any]]
    """Path -> bytes, mtime_ns, sha256; name of a dataset -> commit (None: a folder). To be
    `remembered` next time."""
    training: str
    """As `corpus`, without the sources that are held out."""
    found: list[tuple[int, Path]]
    """The files as `corpus_files` lists them, which takes a second for 100,000."""


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

    trained_on = [
        content
        for source, content in zip(corpus.sources, contents, strict=True)
        if not source.held_out
    ]
    return Hashes(fingerprint(contents), facts, fingerprint(trained_on), found)


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

    new = [Path(path) for path, fact in facts.items() if "sha256" not in fact]

    with progress(what, sum(facts[str(path)]["bytes"] for path in new), "bytes") as advance:
        for path, digest in hashed(new, _sha256):
            facts[str(path)]["sha256"] = digest
            advance(facts[str(path)]["bytes"])

    return facts


def _sha256(path: Path) -> str:
    with readable(str(path)):
        return sha256(path)


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
