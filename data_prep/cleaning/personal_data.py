"""Find personal data in a text: mail addresses, phone numbers, IP addresses, card and IBAN numbers.

Patterns find what may be one, and a library decides: datatrove's pattern of mail addresses (that of
its PIIFormatter), phonenumbers (Google's libphonenumber), Python's ipaddress, and python-stdnum for
check digits. What is nobody's is left alone: addresses of private, reserved and documentation
networks, names under example.com and its like. Where form alone cannot tell (four small numbers
with dots are most often a version or a section), the text is left as it is; docs/data_format.md has
what is missed, and measured figures."""

import bisect
import ipaddress
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import regex

from robustly import UserError
from robustly.data_prep.cleaning.config import INSTALL, Kind, PersonalDataConfig

PERSONAL_DATA_PACKAGES = ("datatrove", "phonenumbers", "python-stdnum")


class Found(NamedTuple):
    """A piece of personal data."""

    start: int
    end: int
    """Places in the text, in characters."""
    kind: Kind


Spans = Iterator[tuple[int, int]]
Finder = Callable[[str], list[Found]]


def finder(personal: PersonalDataConfig) -> Finder:
    """A function that finds what a config asks for in a text, in order and without overlap.

    Raises UserError if a library is not installed, or does not know a country."""
    _libraries()
    # the surest first: an IBAN may look like a phone number
    rules: dict[Kind, Callable[[str], Spans]] = {
        "mail": _mail,
        "iban": _iban,
        "card": _card,
        "ip": _ip,
        "phone": _phone(personal.phone_countries),
    }

    def find(text: str) -> list[Found]:
        found: list[Found] = []
        for kind, rule in rules.items():
            if kind in personal.kinds:
                for start, end in rule(text):
                    _add(found, Found(start, end, kind))

        return found

    return find


def _add(found: list[Found], new: Found) -> None:
    """Put it in its place, unless it overlaps with what is there."""
    at = bisect.bisect(found, new)
    after_last = at == 0 or found[at - 1].end <= new.start
    if after_last and (at == len(found) or new.end <= found[at].start):
        found.insert(at, new)


@cache
def _libraries() -> tuple[Any, Any, Any, Any]:
    """datatrove's pattern; phonenumbers; check digits of cards; IBANs."""
    from datatrove.pipeline.formatters.pii import PIIFormatter

    try:
        import phonenumbers
        from stdnum import iban, luhn
    except ImportError as error:
        raise UserError(f"cleaning.personal_data: {error}; {INSTALL}") from None

    return PIIFormatter().emails_replacer.regex, phonenumbers, luhn, iban


# --------------------------------------------------------------------------------------------- mail

# Of the lengths that RFC 5321 allows. A path before a name is not part of it.
_MAY_BE_MAIL = regex.compile(r"(?<![\w.+'-])[\w.+'-]{1,64}+@[a-zA-Z0-9.-]{1,255}+", regex.ASCII)
_FILES = frozenset(
    ["png", "jpg", "jpeg", "gif", "webp", "svg", "avif", "ico", "bmp", "pdf", "css", "js"]
)
"""Of names such as icon@2x.png."""
_NOBODYS = frozenset(["example", "invalid", "test", "localhost"])
"""Ends of names that RFC 2606 reserves, and second-level names that it does."""


def _mail(text: str) -> Spans:
    if "@" not in text:
        return

    pattern, *_ = _libraries()
    for candidate in _MAY_BE_MAIL.finditer(text):
        if found := pattern.search(text, *candidate.span()):
            name, _, domain = found[0].rpartition("@")
            if name != "git" and _somebodys(domain.lower().split(".")):
                yield found.span()


def _somebodys(labels: Sequence[str]) -> bool:
    """Whether a domain may be one of the public network."""
    end = labels[-1]
    a_name = (end.isalpha() and len(end) > 1) or end.startswith("xn--")
    return a_name and end not in _FILES | _NOBODYS and "example" not in labels[-2:-1]


# ------------------------------------------------------------------------------------------ numbers

_MAY_BE_IBAN = regex.compile(r"(?<![\w-])[A-Z]{2}\d{2}(?:[ \xa0-]?[A-Z0-9]){11,30}", regex.ASCII)


def _iban(text: str) -> Spans:
    *_, iban = _libraries()
    for candidate in _MAY_BE_IBAN.finditer(text):
        start, end = candidate.span()
        while end - start >= 15:  # the shortest (Norway); capitals may follow it
            whole_word = not text[end : end + 1].isalnum() or text[end - 1 : end].isspace()
            if whole_word and text[end - 1].isalnum() and iban.is_valid(text[start:end]):
                yield start, end
                break
            end -= 1


_MAY_BE_CARD = regex.compile(
    r"""(?<![\w./\#+-]|\d[ ])   # not a piece of a longer number, a path, a row of figures
        (?:\d{4}(?P<gap>[ \xa0-]?)\d{4}(?P=gap)\d{4}(?P=gap)\d{4}
          |3\d{3}(?P<gap>[ \xa0-]?)\d{6}(?P=gap)\d{4,5})
        (?!\w|[.,/-]\d|[ ]\d)""",
    regex.ASCII | regex.VERBOSE,
)
_ISSUED = regex.compile(
    r"""4\d{15}                                     # Visa
       |(?:5[1-5]|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d+   # Mastercard
       |3[47]\d{13}                                 # American Express
       |3(?:0[0-5]|[689]\d)\d{11}                   # Diners Club
       |(?:6011|64[4-9]|65|62|35(?:2[89]|[3-8]\d))\d+   # Discover, UnionPay, JCB
    """,
    regex.ASCII | regex.VERBOSE,
)


def _card(text: str) -> Spans:
    _, _, luhn, _ = _libraries()
    for candidate in _MAY_BE_CARD.finditer(text):
        digits = regex.sub(r"\D", "", candidate[0])
        if _ISSUED.fullmatch(digits) and luhn.is_valid(digits):
            yield candidate.span()


# ------------------------------------------------------------------------------------- IP addresses

_MAY_BE_IP = regex.compile(
    r"""(?<![\w.]|(?<!\d)-|(?<!/)/)(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\w)
       |(?<![\w.:])[23][0-9a-f]{3}:(?:[0-9a-f]{0,4}:){1,6}[0-9a-f]{1,4}(?![\w:])""",
    regex.ASCII | regex.VERBOSE | regex.IGNORECASE,
)
_OF_A_VERSION = regex.compile(
    r"\b(?:v|ver|version|release|build|kernel|firmware|section|sec|chapter)\W{0,3}$", regex.I
)
SMALL = 64
"""Four numbers below this are taken for a version or a section."""


def _ip(text: str) -> Spans:
    for candidate in _MAY_BE_IP.finditer(text):
        start, end = candidate.span()
        try:
            address = ipaddress.ip_address(candidate[0])
        except ValueError:
            continue

        numbered = address.version == 4 and (
            max(address.packed) < SMALL or _OF_A_VERSION.search(text[max(0, start - 16) : start])
        )
        if address.is_global and not address.is_multicast and not numbered:
            yield start, end


# ------------------------------------------------------------------------------------------- phones

_WRITTEN_AS_NUMBER = regex.compile(
    r"""(?!\D*\d+\.\d+\s+\d+\.\d+$|0-)   # not two decimal numbers, not an ISBN
        \D*\d+(?:[ ()/-]+\d|\.\d+[./-]\d)""",
    regex.ASCII | regex.VERBOSE,
)
"""National numbers have gaps: ten digits in a row, or around a decimal point, are more often
something else."""
_OF_A_BOOK = regex.compile(r"\bIS[BS]N\b[^\n]{0,12}$", regex.I)
NATIONAL_DIGITS = 7


def _phone(countries: Sequence[str]) -> Callable[[str], Spans]:
    """Numbers with + and the country's code; and those that are written as in one of the
    `countries`."""
    _, phonenumbers, *_ = _libraries()
    if unknown := sorted(set(countries) - phonenumbers.SUPPORTED_REGIONS):
        known = ", ".join(sorted(phonenumbers.SUPPORTED_REGIONS))
        raise UserError(
            f"cleaning.personal_data.phone_countries: {unknown[0]}: no country that phonenumbers"
            f" knows; expected codes of ISO 3166: {known}"
        )

    def find(text: str) -> Spans:
        valid, strict = phonenumbers.Leniency.VALID, phonenumbers.Leniency.STRICT_GROUPING
        for country, leniency in (("ZZ", valid), *((each, strict) for each in countries)):
            matcher = phonenumbers.PhoneNumberMatcher(text, country, leniency, max_tries=len(text))
            for found in matcher:
                raw = found.raw_string
                digits = sum(each.isdigit() for each in raw)
                national = (
                    digits >= NATIONAL_DIGITS
                    and _WRITTEN_AS_NUMBER.match(raw)
                    and not _OF_A_BOOK.search(text, max(0, found.start - 20), found.start)
                )
                if country == "ZZ" or national:
                    yield found.start + (raw[0] == "(" and ")" not in raw), found.end

    return find
