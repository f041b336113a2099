"""Damage to a file, as hypothesis strategies: to its bytes, to the structure of its JSON or YAML, to the
header of an array."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from hypothesis import strategies as st

Form = Literal["bytes", "json", "jsonl", "yaml", "npy"]


@dataclass(frozen=True)
class Damage:
    """What was done to a file, and what it holds now."""

    kind: str
    content: bytes

    def __repr__(self) -> str:  # a bomb is not printed whole
        return f"Damage({self.kind!r}, {self.content[:200]!r} ... {len(self.content)} bytes)"


ODD_JSON = (
    *("null", "true", "false", "0", "-1", "1", "3", "2147483648", "18446744073709551616", "1" * 5000),
    *("-0.0", "0.5", "1e308", "1e999", "NaN", "-Infinity"),
    *('""', '"x"', '"0"', '"\\u0000"', '"\\ud800"', '"/"', '"../x"', '"[/red]"', f'"{"a" * 300}"'),
    *("[]", "{}", "[[]]", '[null, "x"]', '{"": null}', '{"name": 3}', "[" * 5000, '{"a":' * 5000),
)  # fmt: skip
"""Values of other types, at the limits of theirs, or such as no file system or terminal takes."""
ODD_YAML = (
    *("!!int x", "!!float []", "!!bool 7", "!!timestamp x", "!!binary x", "!!set {a}", "!!omap [a]"),
    *("!!python/object/apply:os.system [true]", "!!python/name:os.system", "!other x", "!<tag:x> y"),
    *("&a [*a]", "*b", "{<<: 3}", "&a {<<: *a}", "{[a]: b}", "{{a: b}: c}", "{? : }", "{a: 1, a: 2}"),
    *("0x", "0o9", "1_0", ".inf", ".nan", "2024-01-01", '"\\x00"', '"\\uD800"', "|2\n", "? a", "%YAML 9"),
    "[&a [x,x,x,x,x,x,x,x], &b [*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b,*b,*b], &d"
    " [*c,*c,*c,*c,*c,*c,*c,*c], &e [*d,*d,*d,*d,*d,*d,*d,*d], &f [*e,*e,*e,*e,*e,*e,*e,*e], &g"
    " [*f,*f,*f,*f,*f,*f,*f,*f], &h [*g,*g,*g,*g,*g,*g,*g,*g], [*h,*h,*h,*h,*h,*h,*h,*h]]",
)  # fmt: skip
ODD_BYTES = (
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\n",
    b"\r\n",
    b"\t",
    b'"',
    b"\\",
    b"[",
    b"{",
    b"1",
)
HEADER = 400
"""Bytes at both ends of a file that are damaged more often than others."""
ODD_DTYPES = (
    "<u8",
    ">u4",
    "<i2",
    "|O",
    "|S3",
    "<U1",
    "<f4",
    "|V8",
    "<M8[s]",
    "|b1",
    [("a", "<i4")],
    "x",
    3,
    "<u2,",
)
ODD_SHAPES = (
    (),
    (0,),
    (1,),
    (3,),
    (-1,),
    (2**31,),
    (2**62,),
    (2**70,),
    (3, 3),
    (1.5,),
    ("x",),
    None,
)


def damages(content: bytes, form: Form = "bytes") -> st.SearchStrategy[Damage]:
    """Damage of all kinds that fit the form of the file."""
    of_structure = {
        "bytes": lambda: None,
        "json": lambda: _of_json(content, ODD_JSON),
        "jsonl": lambda: _of_lines(content),
        "yaml": lambda: _of_json(content, (*ODD_JSON, *ODD_YAML)),
        "npy": lambda: _of_header(content),
    }[form]()
    of_bytes = _of_bytes(content)
    return of_bytes if of_structure is None else of_bytes | of_structure


# -------------------------------------------------------------------------------------------- bytes


@st.composite
def _of_bytes(draw: st.DrawFn, content: bytes) -> Damage:
    kinds = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(
            st.sampled_from(
                ["flip", "cut", "insert", "run twice", "run lost", "run of one byte", "emptied"]
            )
        )
        last = max(0, len(content) - 1)
        # anywhere, or where headers and directories are
        at = draw(
            st.integers(0, last)
            | st.integers(0, min(last, HEADER))
            | st.integers(max(0, last - HEADER), last)
        )
        end = min(len(content), at + draw(st.integers(1, 64)))
        match kind:
            case "flip" if content:
                flipped = content[at] ^ 1 << draw(st.integers(0, 7))
                content = content[:at] + bytes([flipped]) + content[at + 1 :]
            case "cut":
                content = content[:at]
            case "insert":
                content = content[:at] + draw(st.sampled_from(ODD_BYTES)) + content[at:]
            case "run twice":
                content = content[:end] + content[at:end] * draw(st.integers(1, 4)) + content[end:]
            case "run lost":
                content = content[:at] + content[end:]
            case "run of one byte":
                byte = draw(st.sampled_from([b"\0", b"\xff", b"9"]))
                content = content[:at] + byte * (end - at) + content[end:]
            case "emptied":
                content = b""
        kinds.append(kind)

    return Damage(" + ".join(sorted(set(kinds))), content)


# ---------------------------------------------------------------------------------------- structure


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value within a value, itself first."""
    yield place
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in pairs:
        yield from _places(part, (*place, key))


@st.composite
def _of_json(draw: st.DrawFn, content: bytes, odd: tuple[str, ...]) -> Damage:
    value = [json.loads(content)]
    raw: dict[str, str] = {}
    kinds = []

    for number in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from([*_places(value)][1:] or [(0,)]))
        holder: Any = value
        for key in place[:-1]:
            holder = holder[key]

        kind = draw(
            st.sampled_from(
                ["another value", "another value", "key lost", "key more", "key twice", "exchanged"]
            )
        )
        text = odd[draw(st.integers(0, len(odd) - 1))]
        mark = f"@{number}@"
        raw[json.dumps(mark)] = text
        match kind:
            case "another value":
                holder[place[-1]] = mark
            case "key lost" if len(place) > 1:
                del holder[place[-1]]
            case "key more" if isinstance(holder, dict):
                holder[draw(st.sampled_from(["", "x", "name", "update", "\0"]))] = mark
            case "key twice" if isinstance(holder, dict):
                name, old = json.dumps(place[-1]), json.dumps(holder[place[-1]])
                raw[json.dumps(mark)] = f"{old}, {name}: {text}"
                holder[place[-1]] = mark
            case "exchanged":
                other = draw(st.sampled_from([*_places(value)][1:] or [(0,)]))
                found: Any = value
                for key in other:
                    found = found[key]
                holder[place[-1]] = json.loads(json.dumps(found))
        kinds.append(kind)
        if not value:
            break

    content = json.dumps(value[0] if value else None).encode()
    for mark, text in raw.items():
        content = content.replace(mark.encode(), text.encode())

    return Damage(" + ".join(sorted(set(kinds))), content)


@st.composite
def _of_lines(draw: st.DrawFn, content: bytes) -> Damage:
    lines = content.splitlines() or [b"{}"]
    number = draw(st.integers(0, len(lines) - 1))
    found = draw(_of_json(lines[number], ODD_JSON))
    lines[number] = found.content
    return Damage(f"line: {found.kind}", b"\n".join(lines) + b"\n")


@st.composite
def _of_header(draw: st.DrawFn, content: bytes) -> Damage:
    size = int.from_bytes(content[8:10], "little")
    header = eval(content[10 : 10 + size])  # a literal that numpy wrote
    key = draw(st.sampled_from(["descr", "shape", "fortran_order", "more", "less"]))
    match key:
        case "descr":
            header[key] = draw(st.sampled_from(ODD_DTYPES))
        case "shape":
            header[key] = draw(st.sampled_from(ODD_SHAPES))
        case "fortran_order":
            header[key] = draw(st.sampled_from([True, 1, None, "x"]))
        case "more":
            header["x"] = 1
        case "less":
            del header[draw(st.sampled_from(["descr", "shape", "fortran_order"]))]

    written = repr(header).encode()
    return Damage(
        f"header: {key}", content[:10] + written.ljust(size - 1) + b"\n" + content[10 + size :]
    )
