"""Names and codes of languages: those that a config takes, and the nearest to what it says."""

import difflib
import locale
import re
from collections.abc import Sequence

_TABLE = """
aa aar Afar; ab abk Abkhazian; ae ave Avestan; af afr Afrikaans; ak aka Akan; am amh Amharic; an
arg Aragonese; ar ara Arabic; as asm Assamese; av ava Avar; ay aym Aymara; az aze Azerbaijani; ba
bak Bashkir; be bel Belarusian/Belorussian; bg bul Bulgarian; bi bis Bislama; bm bam Bambara; bn
ben Bengali/Bangla; bo bod tib Tibetan; br bre Breton; bs bos Bosnian; ca cat Catalan; ce che
Chechen; ch cha Chamorro; co cos Corsican; cr cre Cree; cs ces cze Czech; cu chu Church Slavic; cv
chv Chuvash; cy cym wel Welsh; da dan Danish; de deu ger German; dv div Divehi; dz dzo Dzongkha;
ee ewe Ewe; el ell gre Greek; en eng English; eo epo Esperanto; es spa Spanish/Castilian; et est
Estonian; eu eus baq Basque; fa fas per Persian/Farsi; ff ful Fulah; fi fin Finnish; fj fij
Fijian; fo fao Faroese; fr fra fre French; fy fry Frisian; ga gle Irish; gd gla Scottish
Gaelic/Gaelic; gl glg Galician; gn grn Guarani; gu guj Gujarati; gv glv Manx; ha hau Hausa; he heb
Hebrew; hi hin Hindi; ho hmo Hiri Motu; hr hrv Croatian; ht hat Haitian; hu hun Hungarian; hy hye
arm Armenian; hz her Herero; ia ina Interlingua; id ind Indonesian; ie ile Interlingue; ig ibo
Igbo; ii iii Sichuan Yi; ik ipk Inupiaq; io ido Ido; is isl ice Icelandic; it ita Italian; iu iku
Inuktitut; ja jpn Japanese; jv jav Javanese; ka kat geo Georgian; kg kon Kongo; ki kik Kikuyu; kj
kua Kuanyama; kk kaz Kazakh; kl kal Greenlandic; km khm Khmer/Cambodian; kn kan Kannada; ko kor
Korean; kr kau Kanuri; ks kas Kashmiri; ku kur Kurdish; kv kom Komi; kw cor Cornish; ky kir
Kyrgyz; la lat Latin; lb ltz Luxembourgish; lg lug Ganda; li lim Limburgish; ln lin Lingala; lo
lao Lao/Laotian; lt lit Lithuanian; lu lub Luba-Katanga; lv lav Latvian; mg mlg Malagasy; mh mah
Marshallese; mi mri mao Maori; mk mkd mac Macedonian; ml mal Malayalam; mn mon Mongolian; mr mar
Marathi; ms msa may Malay; mt mlt Maltese; my mya bur Burmese/Myanmar; na nau Nauru; nb nob
Bokmål; nd nde North Ndebele; ne nep Nepali; ng ndo Ndonga; nl nld dut Dutch/Flemish; nn nno
Nynorsk; no nor Norwegian; nr nbl South Ndebele; nv nav Navajo; ny nya Chichewa; oc oci Occitan;
oj oji Ojibwa; om orm Oromo; or ori Odia/Oriya; os oss Ossetian; pa pan Punjabi; pi pli Pali; pl
pol Polish; ps pus Pashto; pt por Portuguese; qu que Quechua; rm roh Romansh; rn run Rundi; ro ron
rum Romanian/Moldavian; ru rus Russian; rw kin Kinyarwanda; sa san Sanskrit; sc srd Sardinian; sd
snd Sindhi; se sme Sami; sg sag Sango; sh hbs Serbo-Croatian; si sin Sinhala/Sinhalese; sk slk slo
Slovak; sl slv Slovenian/Slovene; sm smo Samoan; sn sna Shona; so som Somali; sq sqi alb Albanian;
sr srp Serbian; ss ssw Swati; st sot Southern Sotho; su sun Sundanese; sv swe Swedish; sw swa
Swahili; ta tam Tamil; te tel Telugu; tg tgk Tajik; th tha Thai; ti tir Tigrinya; tk tuk Turkmen;
tl tgl Tagalog; tn tsn Tswana; to ton Tonga; tr tur Turkish; ts tso Tsonga; tt tat Tatar; tw twi
Twi; ty tah Tahitian; ug uig Uyghur; uk ukr Ukrainian; ur urd Urdu; uz uzb Uzbek; ve ven Venda; vi
vie Vietnamese; vo vol Volapük; wa wln Walloon; wo wol Wolof; xh xho Xhosa; yi yid Yiddish; yo yor
Yoruba; za zha Zhuang; zh zho chi Chinese/Mandarin; zu zul Zulu; bh bih Bihari; mo mol Moldovan
"""
"""ISO 639-1: the code, those of ISO 639-2 for the same language, and its English names; the last
two are withdrawn."""

_CODES: dict[str, str] = {}  # every code of the table -> the two letters of its language
_NAMES: dict[str, str] = {}  # every name in small letters -> likewise
for _entry in " ".join(_TABLE.split()).split("; "):
    _codes = re.match(r"(?:[a-z]{2,3} )+", _entry)
    assert _codes
    _two, *_three = _codes[0].split()
    _CODES |= dict.fromkeys([_two, *_three], _two)
    _NAMES |= dict.fromkeys(_entry[_codes.end() :].lower().split("/"), _two)

_VARIANTS = """
aeb-arab bat-smg be-tarask be-x-old cbk-zam crh-cyrl crh-latn de-at de-ch de-formal es-formal
fiu-vro gan-hans gan-hant gom-deva gom-latn hif-latn hu-formal ike-cans ike-latn kk-arab
kk-cn kk-cyrl kk-kz kk-latn kk-tr ko-kp ks-arab ku-arab ku-latn map-bms ms-arab nds-nl
nl-informal pt-br roa-rup roa-tara ruq-cyrl ruq-latn se-fi se-no se-se sh-cyrl sh-latn
shi-latn shy-latn skr-arab sr-cyrl sr-ec sr-el sr-latn tg-cyrl tg-latn tt-cyrl ug-arab
wuu-hans wuu-hant yue-hans yue-hant zh-classical zh-cn zh-hans zh-hant zh-hk zh-min-nan
zh-mo zh-my zh-sg zh-tw zh-yue
"""
"""Codes with a script or a country for which sentencex names the rules to fall back to."""


def is_code(text: str) -> bool:
    """Whether a text is a code that rules for sentences are asked by: two letters of ISO 639-1,
    three of ISO 639-3 for a language without such, or one of sentencex's variants. Small letters
    alone: sentencex knows no others, and takes English rules for what it does not know."""
    if text in _CODES:
        return _CODES[text] == text
    return text in _VARIANTS.split() or re.fullmatch("[a-z]{3}", text) is not None


def nearest_code(text: str) -> str | None:
    """The code for another writing of it (`EN`, `eng`, `zh-CN`, `en_US.UTF-8`) or for the name of
    its language (`english`, `Deutsch`); None where nothing is near."""
    wanted = text.strip().lower()
    first = re.split(r"[^\w]|_", wanted)[0]
    if code := _CODES.get(first) or _NAMES.get(wanted) or _NAMES.get(first):
        return code
    if re.fullmatch("[a-z]{3}", first):
        return first

    from datatrove.utils.typeshelper import Languages  # cebuano -> ceb

    if code := vars(Languages).get(re.sub(r"\W+", "_", wanted)):
        return str(code)

    alias = locale.locale_alias.get(wanted, "")[:2]  # some languages' own names
    if alias in _CODES:
        return alias

    close = difflib.get_close_matches(wanted, _NAMES, n=1, cutoff=0.75)
    return _NAMES[close[0]] if close else None


def nearest_language(name: str, known: Sequence[str]) -> str | None:
    """The known code of the language that a name, misspelt or not, or a code of another standard
    most likely means: en for `English`, `EN`, `eng` or `en_US`; eng_Latn for `en`. None where
    nothing is near."""
    code = nearest_code(name)
    same = {each for each, two in _CODES.items() if two == code} | {code}
    return next((each for each in known if each.lower().split("_")[0] in same), None)
