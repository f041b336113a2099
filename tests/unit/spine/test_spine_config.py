"""Pages: read, based on each other, overridden, and refused with every fault in the user's
words."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from robustly import UserError, config
from robustly.config import Config, InputPath, Section, locate
from robustly.experiment import Experiment, load_experiment
from robustly.strict_yaml import dump_yaml, parse_yaml


class Oven(Section):
    heat: float
    minutes: Annotated[int, Field(gt=0)]
    mode: Literal["bake", "grill"] = "bake"
    fan: bool = False

    @model_validator(mode="after")
    def _not_burnt(self):
        if self.heat * self.minutes > 1e5:
            raise ValueError(
                f"oven.heat ({self.heat}) for oven.minutes ({self.minutes}) burns the cake"
            )
        return self


class Dough(Section):
    flour: str
    spices: tuple[str, ...] = ()
    ratios: tuple[float, float] = (1.0, 2.0)


class Recipe(Config):
    schema_version: int = Field(alias="schema")
    oven: Oven
    dough: Dough


GOOD = """\
schema: 1
name: cake
oven: {heat: 180, minutes: 40}
dough:
  flour: rye
"""


@pytest.fixture
def page(tmp_path):
    """Write a page; returns its path."""

    def write(text: str, name: str = "page.yaml") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def message(page: Path, *overrides: str) -> str:
    """What the user reads, the page's path left out."""
    with pytest.raises(UserError) as caught:
        config.load(page, overrides, Recipe)
    return str(caught.value).removeprefix(f"{page}: ")


# ------------------------------------------------------------------------------------------ reading


def test_load(page):
    recipe = config.load(page(GOOD), [], Recipe)
    assert (recipe.name, recipe.oven.heat, recipe.oven.minutes, recipe.dough.flour) == (
        "cake",
        180.0,
        40,
        "rye",
    )
    with pytest.raises(ValidationError, match="frozen"):
        recipe.oven.heat = 1.0


def test_folders(page):
    recipe = config.load(page(GOOD), ["paths.data=/elsewhere/data"], Recipe)
    assert recipe.root == Path("runs/cake")
    assert recipe.folder("tokenizer") == Path("runs/cake/tokenizer")
    assert recipe.folder("data") == Path("/elsewhere/data")
    assert config.load(page(GOOD), ["paths.root=/here"], Recipe).folder("train") == Path(
        "/here/train"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6e-4", 6e-4),  # YAML 1.1 and PyYAML: a string
        ("1E3", 1000.0),
        ("-1e+2", -100.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("12", 12),
        ("-3", -3),
        ("no", "no"),  # YAML 1.1 and PyYAML: False
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("'6e-4'", "6e-4"),
        ("[1, 2e-1, no]", [1, 0.2, "no"]),
        ("010", 10),  # YAML 1.1: 8
        ("0o10", 8),
        ("0x1F", 31),
        ("1:30", "1:30"),  # YAML 1.1: 90
        ("2024-01-01", "2024-01-01"),  # YAML 1.1: a date
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_writes_is_read_back(number):
    assert parse_yaml(repr(number)) == number


def test_a_key_that_stands_twice(page):
    text = message(page(GOOD + "dough: {flour: oat}\n"))
    assert "the key 'dough' stands twice (lines 4 and 6)" in text


def test_a_key_that_is_a_mapping_is_a_template_that_was_not_filled_in(page):
    assert "{'flour': None} cannot be a key" in message(page(GOOD.replace("rye", "{{flour}}")))


def test_merge_keys(page):
    text = GOOD.replace(
        "oven: {", "usual: &usual {heat: 180, minutes: 99}\noven: {<<: *usual, "
    ).replace("heat: 180, minutes: 40}", "minutes: 40}")
    assert parse_yaml(text)["oven"] == {"heat": 180, "minutes": 40}


def test_a_shipped_page_is_found_beside_a_folder_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_experiment("tiny").name == "tiny"


def test_home_in_paths(page, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    recipe = config.load(page(GOOD), ["paths.root=~/runs", "paths.data=data"], Recipe)
    assert (recipe.folder("train"), recipe.folder("data")) == (
        Path("/home/me/runs/train"),
        Path("data"),
    )


def test_a_page_that_cannot_be_read(page, tmp_path):
    missing = tmp_path / "cake.yaml"
    with pytest.raises(
        UserError, match=r"cake.yaml: no such config file. Shipped ones, .*roberta_base.*tiny"
    ):
        config.load(missing, [], Recipe)

    assert "not valid YAML" in message(page("a: [1"))
    assert "expected a mapping of sections, found list" in message(page("- 1\n"))
    assert "expected a mapping of sections, found NoneType" in message(page(""))
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    assert "cannot be read" in message(tmp_path / "latin.yaml")


# -------------------------------------------------------------------------------------------- bases


def test_a_page_states_only_what_differs_from_its_base(page):
    page(GOOD, "base.yaml")
    page("base: base.yaml\nname: bun\noven: {minutes: 15}\n", "bun.yaml")
    small = page("base: bun.yaml\ndough: {spices: [anise]}\n", "small.yaml")
    recipe = config.load(small, ["dough.spices=[salt, rose]"], Recipe)
    assert (recipe.name, recipe.oven.heat, recipe.oven.minutes) == ("bun", 180.0, 15)
    assert (recipe.dough.flour, recipe.dough.spices) == (
        "rye",
        ("salt", "rose"),
    )  # lists are replaced whole


def test_a_base_is_also_looked_for_among_the_shipped_pages(page):
    raw = config.read_config(page("base: tiny.yaml\nname: mine\n"))
    assert raw["name"] == "mine"
    assert raw["optim"]["betas"] == [0.9, 0.98]  # from roberta_base.yaml, the base of tiny.yaml


def test_a_base_that_is_missing_or_is_the_page_itself(page, tmp_path):
    text = message(page(GOOD + "base: nowhere.yaml\n"))
    assert f"base: nowhere.yaml not found; looked at {tmp_path}/nowhere.yaml" in text
    page(GOOD + "base: b.yaml\n", "a.yaml")
    page("base: a.yaml\n", "b.yaml")
    with pytest.raises(
        UserError, match=r"a.yaml: this config is its own base \(a.yaml -> b.yaml -> a.yaml\)"
    ):
        config.load(tmp_path / "a.yaml", [], Recipe)


def test_an_input_lies_beside_the_page_or_in_the_working_directory(tmp_path, monkeypatch):
    beside, here = tmp_path / "configs", tmp_path / "work"
    for folder in (beside, here):
        folder.mkdir()
        (folder / "both.bin").touch()

    (here / "here.bin").touch()
    (beside / "mixed.bin").mkdir()
    (here / "mixed.bin").touch()
    monkeypatch.chdir(here)
    assert locate("a.b", InputPath("both.bin", beside)) == beside / "both.bin"
    assert locate("a.b", InputPath("here.bin", beside)) == here / "here.bin"
    assert locate("a.b", InputPath(str(here / "here.bin"), beside)) == here / "here.bin"
    assert locate("a.b", InputPath("mixed.bin", beside)) == beside / "mixed.bin"
    assert locate("a.b", InputPath("mixed.bin", beside), file=True) == here / "mixed.bin"
    with pytest.raises(UserError) as gone:
        locate("a.b", InputPath("gone", beside))

    assert str(gone.value) == f"a.b: gone: not there; looked at {beside}/gone, {here}/gone"
    with pytest.raises(UserError) as folder_only:
        locate("a.b", InputPath(str(beside), here), file=True, advice="Give a file")

    assert (
        str(folder_only.value) == f"a.b: {beside}: no file there; looked at {beside}. Give a file"
    )


nested = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from("abc"), nested, max_size=3)


@given(mappings, mappings)
def test_merge_keeps_what_is_not_changed_and_changes_nothing_in_place(start, changes):
    before = repr(start), repr(changes)
    merged = config.merge(start, changes)
    assert merged.keys() == start.keys() | changes.keys()

    for key in merged:
        if key not in changes:
            assert merged[key] == start[key]
        elif isinstance(changes[key], dict) and isinstance(start.get(key), dict):
            assert merged[key] == config.merge(start[key], changes[key])
        else:
            assert merged[key] == changes[key]

    assert (repr(start), repr(changes)) == before


# ---------------------------------------------------------------------------------------- overrides


def test_overrides(page):
    overrides = [
        "oven.heat=2e2",
        "oven.fan=true",
        "dough.ratios=[3, 4e-1]",
        "dough.flour=no",
        "name=a=b",
    ]
    recipe = config.load(page(GOOD), overrides, Recipe)
    assert recipe.oven == Oven(heat=200.0, minutes=40, fan=True)
    assert recipe.dough == Dough(flour="no", ratios=(3.0, 0.4))
    assert recipe.name == "a=b"
    assert (
        config.load(page(GOOD), ["oven.heat=1", "oven.heat=2"], Recipe).oven.heat == 2.0
    )  # the last has the word


def test_an_override_can_take_a_value_back_to_nothing(page):
    recipe = config.load(page(GOOD + "paths: {root: /here}\n"), ["paths.root="], Recipe)
    assert recipe.root == Path("runs/cake")


@pytest.mark.parametrize(
    "assignment", ["oven.heat", "=3", "oven..heat=3", ".heat=3", "oven.=3", ""]
)
def test_an_override_of_another_form(page, assignment):
    with pytest.raises(
        UserError,
        match=re.escape(f"{assignment!r}: expected KEY=VALUE, such as optim.peak_lr=6e-4"),
    ):
        config.load(page(GOOD), [assignment], Recipe)


def test_an_override_that_is_not_yaml(page):
    with pytest.raises(UserError, match=r"'dough.spices=\[a': the value is not valid YAML"):
        config.load(page(GOOD), ["dough.spices=[a"], Recipe)


# ------------------------------------------------------------------------------------------- faults


def test_all_faults_at_once(page):
    text = message(
        page(GOOD),
        "oven.heat=hot",
        "oven.minutes=0",
        "oven.mode=boil",
        "oven.fann=true",
        "dough.flour=3",
        "temper=red",
    )
    assert text.splitlines() == [
        "6 faults",
        "  dough.flour = 3: expected a valid string",
        "  oven.fann: unknown key (value True); did you mean oven.fan?",
        "  oven.heat = 'hot': expected a valid number, unable to parse string as a number",
        "  oven.minutes = 0: expected greater than 0",
        "  oven.mode = 'boil': expected 'bake' or 'grill'",
        "  temper: unknown key (value 'red'); known here: schema, name, paths, oven, dough",
    ]


def test_a_key_of_the_recipe_that_is_missing(page):
    text = message(page(GOOD.replace(", minutes: 40", "")))
    assert text.startswith(
        "1 fault\n  oven.minutes: missing; a config states every key of its recipe"
    )


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("oven.minuts", "oven.minutes"),
        ("dough.minutes", "oven.minutes"),  # the right word in the wrong section
        ("flour", "dough.flour"),
        ("path.root", "paths"),
        ("Dough", "dough"),
    ],
)
def test_the_nearest_right_key(page, key, meant):
    assert f"did you mean {meant}?" in message(page(GOOD), f"{key}=3")


def test_a_fault_between_keys_is_said_once_in_its_own_words(page):
    assert (
        message(page(GOOD), "oven.heat=1e5")
        == "1 fault\n  oven: oven.heat (100000.0) for oven.minutes (40) burns the cake"
    )


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_numbers_are_finite(page, value):
    assert "oven.heat" in message(page(GOOD), f"oven.heat={value}")


def test_a_long_value_is_shown_short(page):
    text = message(page(GOOD), f"oven.heat={'x' * 500}")
    assert "xxx..." in text
    assert len(text) < 200


def test_keys():
    keys = list(config.keys(Recipe))
    assert keys[:5] == ["schema", "name", "paths", "paths.root", "paths.delta"]
    assert keys[-9:] == [
        "oven", "oven.heat", "oven.minutes", "oven.mode", "oven.fan",
        "dough", "dough.flour", "dough.spices", "dough.ratios",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------ recipes


def test_a_field_at_its_default_stays_out_of_the_recipe():
    """So that a key that is added later, at the value that means `as before`, changes no hash."""
    assert Oven(heat=1, minutes=2).recipe() == {"heat": 1.0, "minutes": 2}
    assert Oven(heat=1, minutes=2, mode="bake").recipe() == {"heat": 1.0, "minutes": 2}
    assert Oven(heat=1, minutes=2, mode="grill").recipe() == {
        "heat": 1.0,
        "minutes": 2,
        "mode": "grill",
    }


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values))
def test_fingerprint_ignores_the_order_of_keys(value):
    assert config.fingerprint(dict(reversed(value.items()))) == config.fingerprint(value)


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (1, True), ("1", 1), ([], {}), (None, "null"), ([1, 2], [2, 1])]
)
def test_fingerprint_tells_values_apart(one, other):
    assert config.fingerprint({"a": one}) != config.fingerprint({"a": other})


def test_fingerprint_is_the_sha256_of_the_shortest_json():
    """A change here makes every folder that users have look like another recipe's."""
    value = {"b": [1, 2.5, "é", None, True], "a": {"d": 6e-4, "c": -1}}
    text = '{"a":{"c":-1,"d":0.0006},"b":[1,2.5,"é",null,true]}'
    assert config.fingerprint(value) == hashlib.sha256(text.encode()).hexdigest()


TRICKY = "01e.-+_: xnoyNullTrueFalse~=<?*&!|>%@`#'\"{}[],\n\t\u00e9\u2028\x85"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(TRICKY, max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(TRICKY), inner, max_size=3),
        max_leaves=8,
    )
)  # fmt: skip
@example(["1e3", "no", "0o12", "2024-01-01", "1:30", "010", "", "~", 1e-5, 1e16, "<<", "="])
def test_what_is_dumped_is_parsed_as_the_same(value):
    assert parse_yaml(dump_yaml({"value": value})) == {"value": value}


def test_differences():
    old = {"optim": {"peak_lr": 1e-3, "betas": [0.9, 0.98]}, "seed": 1, "gone": 2}
    new = {"optim": {"peak_lr": 2e-3, "betas": [0.9, 0.98]}, "seed": 1, "come": {"x": "y" * 100}}
    assert list(config.differences(old, new)) == [
        'come: absent there, {"x": "' + "y" * 50 + "... now",
        "gone: 2 there, absent now",
        "optim.peak_lr: 0.001 there, 0.002 now",
    ]
    assert list(config.differences(old, old)) == []


# ------------------------------------------------------------------------------------ shipped pages


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in config.SHIPPED_CONFIGS.glob("*.yaml"))
)
def test_shipped_pages_are_whole_and_called_by_their_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # a shipped page is found by its name from anywhere
    experiment = load_experiment(name)
    assert experiment.name == name


def test_the_base_page_states_every_key_of_the_recipe():
    """Keys with a default do not change the result, or mean `as before`: only those may be left
    out."""
    raw = config.read_config(config.SHIPPED_CONFIGS / "roberta_base.yaml")
    for section in ("corpus", "tokenizer", "data", "model", "masking", "optim", "schedule"):
        fields = Experiment.model_fields[section].annotation.model_fields
        required = {name for name, field in fields.items() if field.is_required()}
        assert required <= raw[section].keys() <= fields.keys()


def test_the_papers_numbers():
    """Liu et al. 2019, Table 9 and sections 2.3, 4.2, 4.4: RoBERTa-base and -large."""
    base, large = load_experiment("roberta_base"), load_experiment("roberta_large")
    assert [
        (e.model.layers, e.model.hidden, e.model.feed_forward, e.model.heads) for e in (base, large)
    ] == [
        (12, 768, 3072, 12),
        (24, 1024, 4096, 16),
    ]
    assert [(e.schedule.warmup, e.optim.peak_lr) for e in (base, large)] == [
        (24_000, 6e-4),
        (30_000, 4e-4),
    ]

    for e in (base, large):
        assert (e.model.dropout, e.model.attention_dropout, e.optim.batch_size) == (0.1, 0.1, 8192)
        assert (e.optim.weight_decay, e.optim.eps, e.optim.betas, e.optim.clip_norm) == (
            0.01,
            1e-6,
            (0.9, 0.98),
            0.0,
        )
        assert (e.schedule.updates, e.schedule.decay, e.data.block_length) == (
            500_000,
            "linear",
            512,
        )
        assert (e.masking.probability, e.masking.mask, e.masking.random) == (0.15, 0.8, 0.1)
        assert (e.model.positions, e.model.layer_norm_eps, e.model.token_types) == (514, 1e-5, 1)


BOMB = ", ".join(
    ["&a0 [x, x]", *(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]
)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("!!int x", "'x' is not of the type int"),
        ("!!float []", "expected a scalar node"),
        ("!!bool 7", "'7' is not of the type bool"),
        ("!!timestamp 2024-01-01", "could not determine a constructor for the tag"),
        ("!!python/object/apply:os.system [true]", "could not determine a constructor for the tag"),
        ("1" * 5000, "is not of the type int"),
        ('"a\\x00b"', "is not of the type str"),
        ("[" * 5000, "nested too deeply"),
        ("&a [*a]", "an alias within what it stands for"),
        (f"[{BOMB}]", "more than 100,000 values"),
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_values_that_are_no_plain_data(tmp_path: Path, value: str, fault: str) -> None:
    with pytest.raises(UserError, match=f"the value is not valid YAML: (.|\n)*{fault}") as found:
        config.override({}, f"a.b={value}", tmp_path)

    assert len(str(found.value)) < 1000
    (tmp_path / "page.yaml").write_text(f"a: {value}")
    with pytest.raises(UserError, match=rf"page\.yaml: not valid YAML: (.|\n)*{fault}"):
        config.read_config(tmp_path / "page.yaml")
