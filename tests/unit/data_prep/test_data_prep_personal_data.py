"""Personal data in texts: what is found, by kind, and what only looks like it."""

import random
import sys
import time

import phonenumbers
import pytest
from stdnum import iban, luhn

from robustly import UserError
from robustly.data_prep.cleaning import personal_data
from robustly.data_prep.cleaning.config import PersonalDataConfig
from robustly.data_prep.cleaning.personal_data import finder

IBANS = {
    "DE": "370400440532013000",
    "GB": "WEST12345698765432",
    "NO": "86011117947",
    "FR": "20041010050500013M02606",
    "MT": "MALT011000012345MTLCAST001S",
}
"""Country -> an account there, without check digits."""


def find(text, countries=(), **keys):
    look = finder(PersonalDataConfig(action="replace", phone_countries=list(countries), **keys))
    return [(text[start:end], kind) for start, end, kind in look(text)]


def card(beginning, length):
    digits = beginning + "0" * (length - 1 - len(beginning))
    return digits + luhn.calc_check_digit(digits)


def account(country):
    return iban.calc_check_digits(f"{country}00{IBANS[country]}")


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("Write to jo.doe+list@mail.some-host.org.", "jo.doe+list@mail.some-host.org"),
        ("<a href='mailto:jo_d@host.co.uk?subject=x'>", "jo_d@host.co.uk"),
        ("Jo Doe <jo@host.io>,", "jo@host.io"),
        ("https://lists.host.org/list/some-list@host.org/message/", "some-list@host.org"),
        ("mail=jo@host.org&x=1", "jo@host.org"),
        ("JO@HOST.ORG", "JO@HOST.ORG"),
        ("почта: jo@xn--e1afmkfd.xn--p1ai", "jo@xn--e1afmkfd.xn--p1ai"),
        ("给我写信jo@163.com。", None),  # letters of any script before it: not cut out of a word
        ("给我写信 jo@163.com。", "jo@163.com"),
        ("jo@host.org@other.org", "jo@host.org"),
        ("'jo@host.org'", "jo@host.org"),
    ],
)
def test_mail(text, piece):
    assert find(text) == ([(piece, "mail")] if piece else [])


@pytest.mark.parametrize(
    "text",
    [
        "icon@2x.png", "npm install lodash@4.17.21 @angular/core@12.0.0-rc.1", "git@github.com:org/repo.git",
        "@property def f(self): a @ b.T", "jo@example.com jo@mail.example.org jo@host.example", "jo@localhost jo@host",
        "jo@host.c jo@host. @host.org", "10@3.5", "follow @jo.doe", "root@db.test", "jo at host dot org", "a@b",
    ],
)  # fmt: skip
def test_no_mail(text):
    assert find(text) == []


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("from 93.184.216.119.", ["93.184.216.119"]),
        ("http://93.184.216.119:8080/a and 8.131.52.200/24", ["93.184.216.119", "8.131.52.200"]),
        ("(2606:2800:220:6d:26bf:1447:1097:aa7)", ["2606:2800:220:6d:26bf:1447:1097:aa7"]),
        ("at 2A00:1450:4009::200E,", ["2A00:1450:4009::200E"]),
        (
            "IP:93.184.216.119, 93.184.216.1-93.184.216.9",
            ["93.184.216.119", "93.184.216.1", "93.184.216.9"],
        ),
        ("enode://ab12@35.178.210.161:30303", ["35.178.210.161"]),
    ],
)
def test_ip(text, pieces):
    assert find(text) == [(piece, "ip") for piece in pieces]


@pytest.mark.parametrize(
    "text",
    [
        "10.1.2.200 192.168.1.77 127.0.0.1 169.254.1.200 172.16.99.1",  # private
        "192.0.2.77 198.51.100.99 203.0.113.80 2001:db8::1",  # of documentation
        "224.0.0.251 255.255.255.0 0.0.0.0 240.1.2.3",  # nobody's
        "version 1.8.0.292, v93.184.216.11, kernel 2.6.32.71, Chrome/91.0.77.124, section 8.1.2.4",
        "6.1.1.1 and 11.1.6.24 and 3.36.10.0",  # numbered sections and versions
        "1.2.3.4.99 93.184.216.119.5 93.184.216 93.184.216.300 a93.184.216.119 93.184.216.119b",
        "jdk-11.0.99.1 lib_93.184.216.119",
        "12:30:45 2006:: std::vector a::b dead::beef 00:1a:2b:3c:4d:5e 2024:01:02 3000::",
    ],
)
def test_no_ip(text):
    assert find(text) == []


@pytest.mark.parametrize("issuer", [("4", 16), ("51", 16), ("2221", 16), ("37", 15), ("36", 14), ("6011", 16), ("3530", 16), ("62", 16)])  # fmt: skip
@pytest.mark.parametrize("gap", ["", " ", "-", "\xa0"])
def test_cards_with_right_check_digits(issuer, gap):
    digits = card(*issuer)
    sizes = [4, 4, 4, 4] if len(digits) == 16 else [4, 6, len(digits) - 10]
    parts, at = [], 0
    for size in sizes:
        parts.append(digits[at : at + size])
        at += size

    number = gap.join(parts)
    assert find(f"Card: {number}, 05/27") == [(number, "card")]
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
    assert find(f"Card: {wrong}, 05/27") == []
    others = "-" if gap == " " else " "
    assert not gap or find(f"Card: {number.replace(gap, others, 1)}, 05/27") == []


@pytest.mark.parametrize(
    "text",
    [
        "978-3-16-148410-0 ISBN 9783161484100 0-306-40615-2",
        "0.4242424242424242 /status/4242424242424242 4242424242424242.5 x4242424242424242 4242424242424242e",
        "4242424242424242424 1 4242 4242 4242 4242 4242 4242 4242 4242 7",
        "2012 2013 2014 2015 1700000000000000 0000000000000000 9999999999999995",
    ],
)
def test_no_card(text):
    assert find(text) == []


@pytest.mark.parametrize("country", IBANS)
def test_ibans_with_right_check_digits(country):
    check = account(country)
    number = f"{country}{check}{IBANS[country]}"
    apart = " ".join(number[at : at + 4] for at in range(0, len(number), 4))
    for written in (number, apart):
        assert find(f"IBAN {written}.") == [(written, "iban")]
        assert find(f"IBAN: {written} BIC COBADEFF") == [(written, "iban")]

    wrong = f"{country}{(int(check) + 1) % 97:02}{IBANS[country]}"
    assert find(f"IBAN {wrong}.") == []


@pytest.mark.parametrize(
    "text",
    ["AB12 CDEF 3456 7890 1234", "SHA1 DE89 3704 0044 0532 0130 00X", "XX00AAAABBBBCCCCDDDD", "ISO 3166-1 GB82"],
)  # fmt: skip
def test_no_iban(text):
    assert find(text) == []


def test_phones_of_every_country():
    """Google's own example of each country's land lines and mobile phones, in its international
    form, within a sentence."""
    kinds = phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE
    international = phonenumbers.PhoneNumberFormat.INTERNATIONAL
    numbers = [
        phonenumbers.format_number(example, international)
        for country in sorted(phonenumbers.SUPPORTED_REGIONS)
        for kind in kinds
        if (example := phonenumbers.example_number_for_type(country, kind))
    ]
    found = [find(f"Tel.: {number}, from nine.") for number in numbers]
    missed = [
        number for number, own in zip(numbers, found, strict=True) if own != [(number, "phone")]
    ]
    assert len(numbers) > 400 and len(missed) <= 4, missed


def test_national_phones_of_the_countries_that_a_config_names():
    text = "Call (202) 785-2024, 202.853.7680, 1-877-734-4688 or 030 901820-15; 2027852024."
    assert find(text) == []
    assert find(text, ["US"]) == [
        ("(202) 785-2024", "phone"), ("202.853.7680", "phone"), ("1-877-734-4688", "phone"),
    ]  # fmt: skip
    assert ("030 901820-15", "phone") in find(text, ["DE", "US"])
    assert find("line (1-844-872-4681 by day)", ["US"]) == [("1-844-872-4681", "phone")]
    with pytest.raises(UserError, match=r"phone_countries: UK: no country that phonenumbers knows"):
        find("", ["UK"])


@pytest.mark.parametrize(
    "text",
    [
        "2012-01-02 08:00, 12/31/2020, 1991-2001, 31.12.1999, 2024-05-06T07:08:09+0200",
        "1 234 567 890, 3.14159265358979, 0.3333333333, 2147483647, 20250131123059",
        "978-3-16-148410-0, ISBN 0-8130-0869-7, 0-8130-0943-X, ISBN-10: 030 901820-15, ISSN 2049-3630, 12 345 678, $1,234,567.89, 1,000,000,000",
        "550e8400-e29b-41d4-a716-446655440000 da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "52.5200 13.4050 or 30.2345 90.1820, 40-50-60, 1.2.3, pp. 1234-1240, vol. 12 (2004) 345-367, +3 or +15 points",
        "x + 1234567890, 10+20+30+40, 2+2=4, 1+1, C++11, utf+8, UTC+02:00",
    ],
)
def test_no_phone(text):
    assert find(text, ["US", "GB", "DE"]) == []


def test_each_once_and_in_order():
    number = f"GB{account('GB')}{IBANS['GB']}"
    text = f"{card('4', 16)} jo@host.org {number} 93.184.216.119 +49 30 901820"
    assert [kind for _, kind in find(text, ["US", "GB"])] == ["card", "mail", "iban", "ip", "phone"]
    assert find(text, kinds=["ip", "mail"]) == [("jo@host.org", "mail"), ("93.184.216.119", "ip")]


@pytest.mark.parametrize(
    "text",
    [
        "a-" * 6_0000, "a@" * 6_0000, "a.b@c." * 2_0000, "@" * 1_00000, "1234567890" * 12_000, "1." * 6_0000,
        "AB12" * 3_0000, "2a:" * 4_0000, "4242 " * 2_0000, " " * 1_00000, "+/aZ9" * 2_0000, "+1(" * 2_0000,
    ],
)  # fmt: skip
def test_no_text_takes_more_than_its_share_of_time(text):
    look = finder(PersonalDataConfig(action="replace"))
    begun = time.process_time()
    look(text)
    assert time.process_time() - begun < 6  # 0.1 MB; some 1 s for the slowest


def test_a_library_that_is_not_there(monkeypatch):
    personal_data._libraries.cache_clear()
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    with pytest.raises(
        UserError, match=r"personal_data: .*phonenumbers.*pip install 'robustly\[clean\]'"
    ):
        finder(PersonalDataConfig(action="drop"))

    personal_data._libraries.cache_clear()


def test_random_numbers_are_left_alone():
    """Digits without meaning, in groups as people write them: of cards and IBANs, check digits let
    a few pass."""
    draw = random.Random(0)

    def number():
        sizes = draw.choice(
            [[3, 3, 4], [4, 4, 4, 4], [8], [16], [4, 2, 2], [1, 3, 3], [2, 2, 4], [5, 5]]
        )
        return draw.choice(" -.,").join(
            str(draw.randrange(10 ** (size - 1), 10**size)) for size in sizes
        )

    found = [each for _ in range(4000) for each in find(f"It is {number()} now.")]
    assert {kind for _, kind in found} <= {"card"} and len(found) < 40
