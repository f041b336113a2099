"""How much personal data is found in made text, and how often the alarm is wrong; how fast.

    python benchmarks/personal_data.py [FILE ...]

Made text: sentences with an address or number that was drawn by a fixed seed, written as people
write them, and sentences with what only looks like one (dates, versions, ISBNs, sums, hashes, ...).
FILEs (text with a blank line between documents, or JSON lines with a key `text`; plain or .xz) are
looked through for the speed, and for what is found there, which is printed to be read. The tables
are printed and written to benchmarks/results/personal_data-<date>.md."""

import datetime
import json
import lzma
import os
import platform
import random
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import phonenumbers
from stdnum import iban, isbn, luhn

from robustly.data_prep.cleaning.config import PersonalDataConfig
from robustly.data_prep.cleaning.personal_data import PERSONAL_DATA_PACKAGES, Found, finder

EACH = 5_000
"""Sentences of each kind."""
COUNTRIES = ["US", "GB", "DE"]
draw = random.Random(20261129)


def digits(count: int) -> str:
    return "".join(draw.choices("0123456789", k=count))


def number(least: int, most: int) -> str:
    return str(draw.randint(least, most))


def word() -> str:
    return "".join(draw.choices("abcdefghiklmnoprstuvw", k=draw.randint(3, 9)))


# -------------------------------------------------------------------------------------- what there is


def mail() -> str:
    name = draw.choice(["{}", "{}.{}", "{}_{}", "{}+{}", "{}-{}", "{}{}"]).format(word(), word())
    end = draw.choice(["com", "org", "co.uk", "de", "gov", "edu", "io", "info"])
    return f"{draw.choice([name, name, name.title(), name.upper()])}@{word()}.{end}"


def ip() -> str:
    """Of networks that anybody may have."""
    if draw.random() < 0.2:
        groups = [f"{draw.randrange(2**16):x}" for _ in range(7)]
        return ":".join(["2a0" + digits(1), *groups])
    return ".".join([number(11, 99), *(number(0, 255) for _ in range(3))])


def card() -> str:
    beginning, length = draw.choice([("4", 16), ("53", 16), ("2305", 16), ("37", 15), ("6011", 16)])
    body = beginning + digits(length - 1 - len(beginning))
    whole = body + luhn.calc_check_digit(body)
    gap, sizes = draw.choice(["", " ", "-"]), [4, 4, 4, 4] if length == 16 else [4, 6, 5]
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return gap.join(whole[end - size : end] for size, end in zip(sizes, ends, strict=True))


def account() -> str:
    country, length = draw.choice([("DE", 18), ("AT", 16), ("NL", 0), ("GB", 0), ("CH", 17)])
    letters = "".join(draw.choices("ABCDEFGHKLMN", k=4))
    body = digits(length) if length else letters + digits({"NL": 10, "GB": 14}[country])
    whole = f"{country}{iban.calc_check_digits(country + '00' + body)}{body}"
    apart = " ".join(whole[at : at + 4] for at in range(0, len(whole), 4))
    return draw.choice([whole, apart])


def phone(form: int, countries: list[str]) -> str:
    """A country's example with other last digits."""
    while True:
        found = phonenumbers.example_number_for_type(draw.choice(countries), draw.choice([0, 1]))
        if found:
            found.national_number = int(str(found.national_number)[:-4] + digits(4))
            if phonenumbers.is_valid_number(found):
                return phonenumbers.format_number(found, form)


EVERYWHERE = sorted(phonenumbers.SUPPORTED_REGIONS)
FORMS = phonenumbers.PhoneNumberFormat
THERE: dict[str, tuple[str, Callable[[], str]]] = {
    "mail": ("mail", mail),
    "IP address": ("ip", ip),
    "card": ("card", card),
    "IBAN": ("iban", account),
    "phone, +49 30 901820": ("phone", lambda: phone(FORMS.INTERNATIONAL, EVERYWHERE)),
    "phone, +4930901820": ("phone", lambda: phone(FORMS.E164, EVERYWHERE)),
    "phone, national, US GB DE": ("phone", lambda: phone(FORMS.NATIONAL, COUNTRIES)),
}

# ------------------------------------------------------------------------------- what only looks like it


def date() -> str:
    day = datetime.date(1900, 1, 1) + datetime.timedelta(draw.randrange(50_000))
    moment = f" {number(10, 23)}:{number(10, 59)}:{number(10, 59)}" * draw.randint(0, 1)
    return (
        day.strftime(draw.choice(["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%Y%m%d", "%d %m %Y"]))
        + moment
    )


def book() -> str:
    body = "978" + digits(9)
    return isbn.format(
        body + str((10 - sum(int(d) * (3 if n % 2 else 1) for n, d in enumerate(body))) % 10)
    )


def dotted() -> str:
    small = ".".join(number(0, 40) for _ in range(draw.randint(2, 4)))
    named = ".".join([number(0, 12), number(0, 99), number(0, 255), number(0, 255)])
    return draw.choice([small, f"version {named}", f"v{named}", f"Chrome/{named}"])


def sum_of_money() -> str:
    amount = draw.randrange(10**10)
    return draw.choice([f"${amount:,}.{digits(2)}", f"{amount:,}", f"{amount:,}".replace(",", " ")])


LIKE: dict[str, Callable[[], str]] = {
    "dates and times": date,
    "ISBNs": book,
    "versions, sections": dotted,
    "sums": sum_of_money,
    "decimals": lambda: f"{draw.random() * 10 ** draw.randint(-3, 6)}",
    "ranges of years, pages": lambda: f"{number(1000, 1999)}-{number(2000, 2999)}, {digits(3)}-{digits(3)}",
    "10 digits": lambda: number(10**9, 10**10 - 1),
    "16 digits": lambda: number(10**15, 10**16 - 1),
    "16 digits in fours": lambda: " ".join(number(1000, 9999) for _ in range(4)),
    "UUIDs, hashes": lambda: draw.choice([str(uuid.UUID(int=draw.getrandbits(128))), f"{draw.getrandbits(160):040x}"]),
    "coordinates": lambda: f"{draw.uniform(-90, 90):.4f} {draw.uniform(-180, 180):.4f}",
    "private IP addresses": lambda: draw.choice(["10.1.", "192.168.", "127.0."]) + f"{number(0, 255)}.{number(0, 255)}",
    "names with @": lambda: draw.choice([f"icon@{number(2, 3)}x.png", f"{word()}@{digits(1)}.{digits(2)}.{digits(1)}", f"@{word()}.{word()}", "git@host.com:a"]),
    "product numbers": lambda: f"{word().upper()[:2]}{digits(2)}-{digits(4)}-{word().upper()[:4]}-{digits(6)}",
}  # fmt: skip


def main(files: list[str]) -> None:
    at_home = finder(PersonalDataConfig(action="replace", phone_countries=COUNTRIES))
    find = finder(PersonalDataConfig(action="replace"))
    lines = [
        "# Personal data: what is found, and false alarms",
        "",
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, load"
        f" {os.getloadavg()[0]:.0f}, Python"
        f" {platform.python_version()}; "
        + ", ".join(f"{name} {version(name)}" for name in PERSONAL_DATA_PACKAGES),
        "",
        f"{EACH:,} made sentences of each kind. Found: the very characters, under their kind.",
        "",
        "| what | found | with phone_countries US, GB, DE |",
        "| --- | --- | --- |",
    ]
    for name, (kind, make) in THERE.items():
        hits = [0, 0]
        for _ in range(EACH):
            piece = make()
            text = draw.choice(
                ["Write to {}.", "{} is it", "It was ({}), or so", "see: {}, please"]
            ).format(piece)
            start = text.index(piece)
            wanted = Found(start, start + len(piece), kind)
            hits = [
                hit + (wanted in look(text))
                for hit, look in zip(hits, (find, at_home), strict=True)
            ]

        lines.append(f"| {name} | " + " | ".join(f"{hit / EACH:.1%}" for hit in hits) + " |")

    lines += [
        "",
        "| what only looks like it | false alarms | with phone_countries US, GB, DE |",
        "| --- | --- | --- |",
    ]
    for name, make_one in LIKE.items():
        wrong: list[Counter[str]] = [Counter(), Counter()]
        for _ in range(EACH):
            text = f"It says {make_one()} there."
            for own, look in zip(wrong, (find, at_home), strict=True):
                own.update({found.kind for found in look(text)})

        cells = [
            ", ".join(f"{kind} {count / EACH:.2%}" for kind, count in own.items()) or "0"
            for own in wrong
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    if files:
        lines += [
            "",
            "| file | million characters | characters/s of one core | found, with US, GB, DE |",
            "| --- | --- | --- | --- |",
        ]
    for file in files:
        lines.append(_real(Path(file), at_home))

    text = "\n".join(lines) + "\n"
    print(text)
    folder = Path(__file__).parent / "results"
    (folder / f"personal_data-{datetime.date.today()}.md").write_text(text, encoding="utf-8")


def _real(path: Path, find: Callable[[str], list[Found]]) -> str:
    data = path.read_bytes()
    content = (lzma.decompress(data) if path.suffix == ".xz" else data).decode()
    texts = (
        [json.loads(line)["text"] for line in content.splitlines()]
        if ".jsonl" in path.name
        else content.split("\n\n")
    )
    found: dict[str, list[str]] = defaultdict(list)
    begun = time.process_time()
    for text in texts:
        for start, end, kind in find(text):
            found[kind].append(
                f"{text[max(0, start - 30) : start]}[{text[start:end]}]{text[end : end + 10]}".replace(
                    "\n", " "
                )
            )

    seconds = time.process_time() - begun
    for kind, pieces in found.items():
        print(path.name, kind, *draw.sample(pieces, min(40, len(pieces))), sep="\n    ")

    size = sum(map(len, texts))
    counts = ", ".join(f"{kind} {len(pieces):,}" for kind, pieces in found.items()) or "nothing"
    return f"| {path.name} | {size / 1e6:.1f} | {size / seconds / 1e6:.1f} million | {counts} |"


if __name__ == "__main__":
    main(sys.argv[1:])
