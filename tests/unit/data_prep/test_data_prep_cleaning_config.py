"""What a config may say of cleaning, and what it is told of mistakes."""

import pytest
from pydantic import ValidationError

from robustly.data_prep.cleaning.config import CleaningConfig


def parse(**keys):
    return CleaningConfig.model_validate(keys)


def test_off_is_the_default_and_stays_out_of_the_recipe():
    assert not CleaningConfig().on and CleaningConfig().recipe() == {}
    assert not parse(exact_duplicates=False, near_duplicates=False, quality=[]).on


@pytest.mark.parametrize(
    "keys",
    [
        {"min_words": 5}, {"max_characters": 9}, {"quality": "gopher_quality"}, {"exact_duplicates": True},
        {"near_duplicates": True}, {"near_duplicates": {}}, {"language": {"model": "m", "keep": "en"}},
        {"contamination": {"files": "a.txt"}}, {"language": {"keep": "en"}}, {"personal_data": "drop"},
    ],
)  # fmt: skip
def test_each_rule_turns_the_stage_on(keys):
    assert parse(**keys).on


def test_paths_are_no_part_of_the_recipe_and_parameters_are():
    def recipe(folder, **changes):
        language = {"model": f"{folder}/lid.bin", "keep": ["fi", "en"]}
        contamination = {"files": [f"{folder}/tests"], **changes}
        return parse(
            language=language, contamination=contamination, near_duplicates={"seed": 1}
        ).recipe()

    assert recipe("here") == recipe("there") == {
        "language": {"keep": ["en", "fi"], "threshold": 0.65},
        "contamination": {"keys": None, "n_grams": 13},
        "near_duplicates": {},
    }  # fmt: skip
    assert recipe("here", n_grams=8) != recipe("here")
    assert parse(near_duplicates={"seed": 2}).recipe() == {"near_duplicates": {"seed": 2}}


def test_personal_data_by_a_word_or_with_keys():
    assert parse(personal_data="replace").recipe() == {"personal_data": {"action": "replace"}}
    assert parse(personal_data="replace").replacements == {
        kind: f"<{kind}>" for kind in ("mail", "phone", "ip", "card", "iban")
    }
    given = {"action": "replace", "kinds": ["ip", "mail"], "placeholders": {"mail": ""}}
    assert parse(personal_data=given).replacements == {"mail": "", "ip": "<ip>"}
    assert parse(personal_data=given).recipe()["personal_data"]["kinds"] == ["mail", "ip"]
    assert parse(personal_data="drop").replacements == parse().replacements == {}


def test_languages_alone():
    assert parse(language="en") == parse(language=["en"]) == parse(language={"keep": "en"})
    assert parse(language=["fi", "en"]).language.keep == ["fi", "en"]


def test_quality_rules_by_name_or_with_parameters():
    given = {"gopher_quality": {"min_doc_words": None}, "fineweb_quality": None}
    assert parse(quality=given).quality == {
        "gopher_quality": {"min_doc_words": None},
        "fineweb_quality": {},
    }
    named = parse(quality=["gopher_repetition", "c4_quality"])
    assert named.recipe() == {"quality": {"gopher_repetition": {}, "c4_quality": {}}}
    pairs = parse(quality={"gopher_repetition": {"top_n_grams": [[2, 0.1]], "dup_line_frac": 0.5}})
    assert pairs.recipe()["quality"]["gopher_repetition"]["top_n_grams"] == [[2, 0.1]]
    assert parse(
        quality={"fineweb_quality": {"stop_chars": ["."], "line_punct_exclude_zero": True}}
    ).on


@pytest.mark.parametrize(
    ("quality", "message"),
    [
        (["gofer_quality"], "no rules called 'gofer_quality'; did you mean gopher_quality?"),
        (["url"], "known are gopher_quality, gopher_repetition, c4_quality, fineweb_quality"),
        ({"gopher_quality": {"min_doc_word": 3}}, "has no parameter 'min_doc_word'; did you mean min_doc_words?"),
        ({"gopher_quality": {"language": "en"}}, "gopher_quality has no parameter 'language'"),
        ({"gopher_quality": {"exclusion_writer": 1}}, "no parameter 'exclusion_writer'"),
        ({"gopher_quality": {"min_doc_words": "many"}}, "quality.min_doc_words = 'many': expected a number or null"),
        ({"fineweb_quality": {"line_punct_thr": None}}, "expected a value such as 0.12"),
        ({"fineweb_quality": {"line_punct_exclude_zero": 1}}, "expected true or false"),
        ({"gopher_quality": {"stop_words": "the"}}, "expected a list of strings"),
        ({"gopher_repetition": {"top_n_grams": [2, 0.1]}}, "expected a list of pairs such as [[2, 0.2], [3, 0.18]]"),
        ({"c4_quality": {"min_num_sentences": True}}, "expected a number"),
    ],
)  # fmt: skip
def test_wrong_quality_rules_have_the_nearest_right_ones(quality, message):
    with pytest.raises(ValidationError) as refused:
        parse(quality=quality)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"min_words": 6, "max_words": 5}, "min_words = 6, max_words = 5"),
        ({"min_words": 0}, "greater than 0"),
        ({"language": {"model": "m", "keep": []}}, "at least 1 item"),
        ({"personal_data": "remove"}, "'replace' or 'drop'"),
        ({"personal_data": True}, "valid dictionary"),
        (
            {"personal_data": {"action": "drop", "kinds": "name"}},
            "'mail', 'phone', 'ip', 'card' or 'iban'",
        ),
        (
            {"personal_data": {"action": "drop", "placeholders": {"ip": "x"}}},
            "only for action: replace",
        ),
        (
            {"personal_data": {"action": "replace", "kinds": "ip", "placeholders": {"mail": "x"}}},
            "mail is not among",
        ),
        ({"personal_data": {"action": "replace", "phone_countries": "us"}}, "pattern"),
        ({"language": {"model": "m", "keep": "en", "threshold": 1}}, "less than 1"),
        ({"contamination": {"files": []}}, "at least 1 item"),
        ({"near_duplicates": {"n_gram": 3}}, "Extra inputs are not permitted"),
    ],
)
def test_other_mistakes(keys, message):
    with pytest.raises(ValidationError) as refused:
        parse(**keys)
    assert message in str(refused.value)
