"""Config files: YAML parsed into frozen, typed sections; every fault is reported at once.

A config is a mapping of sections (`optim`, `schedule`, ...). `base: other.yaml` takes another one
as the start and states only the differences; `a.b=value` on the command line has the last word.
Each stage owns the schema of its section (a `Section` subclass in its `config.py`);
`robustly.experiment` composes them.
"""

import contextlib
import difflib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializationInfo,
    ValidationError,
    create_model,
    field_validator,
)
from pydantic_core import core_schema

from robustly import UserError, files
from robustly.stages import RUN_STAGES
from robustly.strict_yaml import parse_yaml

SHIPPED_CONFIGS = (Path(__file__).parent / "configs").resolve()


class Section(BaseModel):
    """A part of a config: immutable, refuses keys that it does not know, documents each field below
    it.

    A field without a default is part of the recipe: every shipped config states it and every hash
    covers it. A field that is added later gets a default that means "as before"; at that value it
    stays out of the hash, so that old configs keep working and keep their hash."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        populate_by_name=True,
    )

    def recipe(self) -> dict[str, Any]:
        """The section as plain data for hashing: recipe fields always, others only off their
        default."""
        return self.model_dump(mode="json", exclude_defaults=True, by_alias=True)

    def off_default(self, keys: Iterable[str]) -> list[str]:
        """Which of these optional keys are at another value than their default. A config that was
        written down whole states them all, so that stating one says nothing."""
        fields = type(self).model_fields
        return [
            key
            for key in sorted(keys)
            if getattr(self, key) != fields[key].get_default(call_default_factory=True)
        ]


LOCATED = "located"
"""Context of a dump (pydantic's `context`) whose paths can be stated in another folder's file."""
SETTLED = "settled"
"""Context of one whose paths are stated as they were, each with the folder of its config file."""


class InputPath(str):
    """A path to read from, as a config states it.

    A relative one is looked up beside the config file that states it (for a key on the command
    line: beside the config file that is named there), then in the working directory. Recipes and
    dumps hold the text alone, but for dumps with `LOCATED`.
    """

    base_dir: Path
    """Folder of the config file."""

    def __new__(cls, text: str, base_dir: Path | None = None) -> Self:
        path = super().__new__(cls, text)
        path.base_dir = base_dir or Path.cwd()
        return path

    def __getnewargs__(self) -> tuple[str, Path]:  # type: ignore[override]  # for pickling
        return str(self), self.base_dir

    @property
    def candidates(self) -> list[Path]:
        """Where it may lie, the preferred place first."""
        path = Path(self)
        with contextlib.suppress(RuntimeError):  # no such user: then `~name` is a name like others
            path = path.expanduser()
        if path.is_absolute():
            return [path]
        return list(dict.fromkeys([self.base_dir / path, Path.cwd() / path]))

    @property
    def located(self) -> str:
        """The path as it may be stated everywhere: the first candidate where something lies or that
        is a glob of something; the text itself where there is none, as for a name on the Hub."""
        found = (
            str(path)
            for path in self.candidates
            if os.path.lexists(path) or any(files.matching(path))
        )
        return next(found, str(self))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        def validate(value: Any, as_text: Callable[[Any], str]) -> InputPath:
            return cls(as_text(value), getattr(value, "base_dir", None))

        def dump(value: InputPath, info: SerializationInfo) -> str | dict[str, str]:
            if info.context is SETTLED:
                return {"path": str(value), "beside": str(value.base_dir)}
            return value.located if info.context is LOCATED else str(value)

        return core_schema.no_info_wrap_validator_function(
            validate,
            core_schema.str_schema(min_length=1),
            serialization=core_schema.plain_serializer_function_ser_schema(dump, info_arg=True),
        )


def is_folder_name(text: str) -> bool:
    """Whether a text names one folder: not a path, nor this folder or the one above."""
    return bool(text.strip(". ")) and "/" not in text


class _Paths(Section):
    """Where an experiment lies. `root` holds one folder per stage; any of them can be another's."""

    root: Path | None = None
    """Folder of the experiment; default: runs/<name> under the working directory."""
    delta: Path | None = None
    """Folder of one delta; default: `deltas/<name>` in the root."""

    @field_validator("*")
    @classmethod
    def _home(cls, value: Path | None) -> Path | None:
        # a shell leaves the ~ of `paths.root=~/runs` as it is
        return value.expanduser() if value else value


_folders: Any = {stage.name: (Path | None, None) for stage in RUN_STAGES}
Paths = create_model("Paths", __base__=_Paths, **_folders)


class Config(Section):
    """What every composed config has besides the stages' sections."""

    schema_version: int
    """Version of the config format (key `schema`); this release reads version 1."""
    name: str
    """Name of the experiment; its folder is runs/<name> unless `paths.root` says otherwise."""
    paths: Paths = Paths()

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        if not is_folder_name(value):
            raise ValueError("expected the name of a folder, without /")
        return value

    @property
    def root(self) -> Path:
        return self.paths.root or Path("runs") / self.name

    def folder(self, stage: str) -> Path:
        """The folder of a stage: the one that `paths` names, else `<root>/<stage>`."""
        return getattr(self.paths, stage) or self.root / stage

    def located(self) -> dict[str, Any]:
        """The whole config as plain data that means the same in a file that lies anywhere: every
        key, all paths absolute."""
        return self._anywhere(LOCATED)

    def settled(self) -> dict[str, Any]:
        """As `located`, for programs: read again it is this very config, its input paths in the
        words in which they were stated."""
        return self._anywhere(SETTLED)

    def _anywhere(self, context: str) -> dict[str, Any]:
        paths = {"root": self.root, **{name: path for name, path in self.paths if path}}
        return {
            **self.model_dump(mode="json", by_alias=True, context=context, exclude={"paths"}),
            "paths": {name: str(path.absolute()) for name, path in paths.items()},
        }


ConfigType = TypeVar("ConfigType", bound=Config)


# ------------------------------------------------------------------------------------------ reading


def locate(key: str, path: InputPath, *, file: bool = False, advice: str = "") -> Path:
    """The input that a config names under `key`: the first of its candidates that is there.

    With `file`, folders do not count. Raises UserError, which ends with `advice`, if it is nowhere.
    """
    candidates = path.candidates
    found = next((each for each in candidates if (each.is_file() if file else each.exists())), None)
    if found is None:
        what = "no file there" if file else "not there"
        message = f"{key}: {path}: {what}; looked at {', '.join(map(str, candidates))}"
        raise UserError(f"{message}. {advice}" if advice else message)

    return found


def read_config(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a config file and the ones that it is based on into one mapping.

    Raises UserError when a file is missing, is not YAML, or is its own base.
    """
    path = path.resolve()
    if path in seen:
        raise UserError(
            f"{path}: this config is its own base ({' -> '.join(p.name for p in (*seen, path))})"
        )

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = sorted(SHIPPED_CONFIGS.rglob("*.yaml"))
        shipped = ", ".join(
            each.relative_to(SHIPPED_CONFIGS).with_suffix("").as_posix() for each in names
        )
        raise UserError(
            f"{path}: no such config file. Shipped ones, in {SHIPPED_CONFIGS}: {shipped}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None

    try:
        raw = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None

    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping of sections, found {type(raw).__name__}")
    raw = stated_in(path.parent, raw)
    if (base := raw.pop("base", None)) is None:
        return raw

    if not isinstance(base, InputPath):
        raise UserError(f"{path}: base: {base!r}: expected the path of a config file")
    return merge(read_config(find_config(f"{path}: base", base), (*seen, path)), raw)


def stated_in(base_dir: Path, value: Any) -> Any:
    """YAML data whose strings remember the folder of the config file that states them, or the
    one that they are stated with. A string that is no path loses this again when its section is
    validated."""
    match value:
        case str():
            return InputPath(value, base_dir)
        case {"path": str(path), "beside": str(beside), **others} if not others:
            return InputPath(path, Path(beside))
        case dict():
            return {key: stated_in(base_dir, each) for key, each in value.items()}
        case list():
            return [stated_in(base_dir, each) for each in value]
    return value


def find_config(key: str, name: InputPath) -> Path:
    """A config file that another one names under `key`: one of its candidates, or a shipped one.

    Raises UserError where there is none.
    """
    candidates = [*name.candidates, SHIPPED_CONFIGS / name]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise UserError(f"{key}: {name} not found; looked at " + ", ".join(map(str, candidates)))
    return found


def merge(start: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`start` with `changes` laid over it, section by section; lists and scalars are replaced
    whole."""
    result = dict(start)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = (
            merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )

    return result


def override(raw: dict[str, Any], assignment: str, base_dir: Path) -> dict[str, Any]:
    """Lay one `a.b=value` over a config. The value is read as YAML; its paths are looked up in
    `base_dir`, too. Raises UserError on another form."""
    key, equals, text = assignment.partition("=")
    key = key.strip()
    shown = repr(assignment if len(assignment) <= 80 else f"{assignment[:77]}...")
    if not equals or not all(key.split(".")):
        raise UserError(f"{shown}: expected KEY=VALUE, such as optim.peak_lr=6e-4")

    try:
        value = parse_yaml(text) if text.strip() else None
    except yaml.YAMLError as error:
        raise UserError(f"{shown}: the value is not valid YAML: {error}") from None

    return laid(raw, key, stated_in(base_dir, value))


def laid(raw: Any, key: str, value: Any) -> Any:
    """A config with one key set: `a.b`, or `a.0.b` in the first place of a list that stands there.
    Sections are merged. Raises UserError if the list is shorter."""
    first, _, rest = key.partition(".")
    if isinstance(raw, list) and first.isdecimal():
        if (place := int(first)) >= len(raw):
            raise UserError(f"{key}: the list there has {len(raw)}, counted from 0")

        new = laid(raw[place], rest, value) if rest else value
        return [*raw[:place], new, *raw[place + 1 :]]

    section = raw if isinstance(raw, dict) else {}
    if rest:
        return {**section, first: laid(section.get(first), rest, value)}
    return merge(section, {first: value})


def file_of(path: Path | str) -> Path:
    """The config file that a path or the name of a shipped one means."""
    path = Path(path)
    if not path.is_file() and not path.suffix and (SHIPPED_CONFIGS / f"{path}.yaml").exists():
        return SHIPPED_CONFIGS / f"{path}.yaml"
    return path


def load(path: Path | str, overrides: Sequence[str], schema: type[ConfigType]) -> ConfigType:
    """Read a config file, lay the overrides over it and check it whole. Raises UserError as `check`
    does."""
    path = file_of(path)
    raw = read_config(path)
    for assignment in overrides:
        raw = override(raw, assignment, path.resolve().parent)

    return check(raw, schema, str(path))


def check(raw: Mapping[str, Any], schema: type[ConfigType], title: str) -> ConfigType:
    """The config that a mapping states. Raises UserError that lists every fault: key, value found,
    what was expected, the nearest right key."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        faults = described(error, raw, schema)
        noun = "fault" if len(faults) == 1 else "faults"
        raise UserError(
            f"{title}: {len(faults)} {noun}\n" + "\n".join(f"  {fault}" for fault in faults)
        ) from None


def described(error: ValidationError, raw: Any, schema: type[BaseModel]) -> list[str]:
    """The faults of a config in the user's words: key, value found, what was expected, the nearest
    right key."""
    return sorted({_describe(fault, raw, schema) for fault in error.errors()})


def _describe(fault: Mapping[str, Any], raw: Any, schema: type[BaseModel]) -> str:
    key = ".".join(map(str, _keys_of(fault, raw)))
    value = fault["input"]
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    if fault["type"] == "extra_forbidden":
        kinds = [str(part) for part in fault["loc"][-2:-1]]
        return f"{key}: unknown key (value {shown}){_nearest(key, schema, *kinds)}"
    if fault["type"] == "missing":
        return (
            f"{key}: missing; a config states every key of its recipe (start from another one by"
            " `base:`)"
        )

    # the key that says which kind of a union it is; the name of a function of ours has no quotes
    named = re.fullmatch(r"'(\w+)'", fault.get("ctx", {}).get("discriminator", ""))
    if named and fault["type"] == "union_tag_not_found":
        if isinstance(value, dict):
            return f"{key}.{named[1]}: missing; it says which kind this is, found {shown}"
        return f"{key} = {shown}: expected a mapping of keys"
    if named and fault["type"] == "union_tag_invalid":
        tag, expected = fault["ctx"]["tag"], fault["ctx"]["expected_tags"]
        meant = closest(tag, re.findall(r"'([^']*)'", expected))
        advice = f"; did you mean {meant}?" if meant else ""
        return f"{key}.{named[1]} = {tag!r}: expected {expected}{advice}"

    message = fault["msg"].removeprefix("Value error, ")
    message = re.sub(r"^Input should be", "expected", message)
    message = message.replace(
        "a valid dictionary or object to extract fields from", "a mapping of keys"
    )
    if isinstance(value, dict):  # a fault between the keys of a section: the message names them
        return f"{key}: {message}" if key else message

    return f"{key} = {shown}: {message}"


def _keys_of(fault: Mapping[str, Any], raw: Any) -> Iterator[str | int]:
    """Where a fault is, without pydantic's names for types and for the kinds of a union, which are
    no keys."""
    *location, last = fault["loc"] or ("",)
    for part in location:
        if _is_tag(part) or (isinstance(raw, dict) and part not in raw):
            continue

        yield part
        try:
            raw = raw[part]
        except (
            TypeError,
            KeyError,
            IndexError,
        ):  # a short form, such as a path in the place of a list
            raw = None

    no_key = _is_tag(last) or (
        isinstance(raw, dict) and last not in raw and fault["type"] != "missing"
    )
    if fault["type"] == "extra_forbidden" or not no_key:
        yield last


def _is_tag(part: str | int) -> bool:
    """Whether a part of a fault's location is pydantic's name for a type instead of a key."""
    return isinstance(part, str) and ("[" in part or part[:1].isupper())


def closest(word: str, known: Sequence[str]) -> str | None:
    """The known word that is most likely meant by another one: one that begins with it, that is a
    part of it between underscores, or that is the most alike."""
    begin = [each for each in known if each.startswith(word)]
    parts = [each for each in known if each in word.split("_")]
    alike = difflib.get_close_matches(word, known, n=1) if len(word) > 2 else []
    return next(iter([*begin, *parts, *alike]), None)


def _nearest(key: str, schema: type[BaseModel], kind: str = "") -> str:
    """`kind`: of the key's section, where that is one of several."""
    section, _, leaf = key.rpartition(".")
    plain = re.sub(r"\.\d+\b", "", section)  # without places in lists
    known = [name for name in keys(schema) if plain not in (name, name.rpartition(".")[0])]
    if len(leaf) < 3:  # nearly any word is like it
        known = [name for name in known if name.rpartition(".")[2] == leaf]

    there = [each for path, each in _sections_of(schema) if path == plain]
    there = [each for each in there if _is_kind(each, kind)] or there
    siblings = [name for each in there for name in _names(each)]
    if meant := closest(leaf, siblings):
        return f"; did you mean {section}.{meant}?" if section else f"; did you mean {meant}?"

    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if not close:  # right word, wrong section
        leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
        alike = difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.7)
        close = [leaves[name] for name in alike]

    if close:
        return f"; did you mean {close[0]}?"

    return f"; known here: {', '.join(siblings)}" if siblings else ""


def keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key that a config of this schema may set, as `a.b`; also those of list entries and of a
    union's kinds."""
    found: dict[str, None] = {}
    for name, field in schema.model_fields.items():
        key = prefix + (field.alias or name)
        found[key] = None
        for section in _sections(field.annotation):
            found |= dict.fromkeys(keys(section, key + "."))

    yield from found


def _sections_of(schema: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section of a schema with its path, also those of list entries and of a union's
    kinds."""
    yield path, schema
    for name, field in zip(_names(schema), schema.model_fields.values(), strict=True):
        for section in _sections(field.annotation):
            yield from _sections_of(section, f"{path}.{name}" if path else name)


def _names(schema: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in schema.model_fields.items()]


def _is_kind(schema: type[BaseModel], kind: str) -> bool:
    """Whether a section is this kind of a union, which one of its keys says."""
    return any(
        kind in get_args(field.annotation)
        for field in schema.model_fields.values()
        if get_origin(field.annotation) is Literal
    )


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The schemas within an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def fingerprint(value: Any) -> str:
    """sha256 of a JSON-like value, the same whatever the order of its keys."""
    canonical = json.dumps(
        value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """What two recipes disagree on, a line per key: `optim.peak_lr: 0.001 there, 0.002 now`."""
    for name, there, now in differing(old, new, key):
        yield f"{name}: {shortened(there)} there, {shortened(now)} now"


def differing(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The keys that two values of plain data disagree on, as `a.b`, and what each has there; None
    where it has nothing."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            inner = f"{key}.{name}" if key else str(name)
            yield from differing(old.get(name), new.get(name), inner)
    elif _rows(old) and _rows(new) and len(old) == len(new):
        for place, pair in enumerate(zip(old, new, strict=True)):
            yield from differing(*pair, f"{key}.{place}")
    elif old != new:
        yield key, old, new


def usual(values: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Of each key, which of several values of plain data is the first to have what most have there;
    where nothing is more common, the first of all."""
    found = {}
    for key in {key: None for own in values for key in own}:
        texts = [json.dumps(own.get(key), sort_keys=True, default=str) for own in values]
        ((most, _),) = Counter(texts).most_common(1)
        found[key] = texts.index(most)

    return found


def _rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def shortened(value: Any) -> str:
    if value is None:
        return "absent"
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 60 else text[:57] + "..."
