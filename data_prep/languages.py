"""Names and codes of languages: the nearest of those that are known to what a config says."""

import difflib
from collections.abc import Sequence


def nearest_language(name: str, known: Sequence[str]) -> str | None:
    """The known code that a name, misspelt or not, or a code of another standard most likely means:
    en for `English`, `EN`, `eng` or `en_US`; eng_Latn for `en`. None where nothing is near."""
    from datatrove.utils.typeshelper import Languages  # english -> eng
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE  # english -> en

    tables = (TO_LANGUAGE_CODE, vars(Languages))
    asked = name.lower().replace(" ", "_").replace("-", "_")
    codes = [asked, asked.partition("_")[0]]
    names = [own for table in tables for own, code in table.items() if code in codes]
    if not names:
        every = [own for table in tables for own in table]
        names = difflib.get_close_matches(asked, every, n=1, cutoff=0.85)  # deutsch is not Dutch

    codes += [table[own] for own in names for table in tables if own in table]

    for code in codes:
        for each in known:
            if f"{each}_".lower().startswith(f"{code}_".lower()):
                return each

    return None
