"""The stage: what was planted is found and nothing else, the same bytes for any number of workers
and after any kill, and the later stages see the kept documents only."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
from language_models import write_model
from small_stores import VIEW, corpus, train_tokenizer, write_rows

from robustly import UserError, manifest
from robustly.corpus import decisions
from robustly.corpus import partitions as partitioning
from robustly.corpus.config import CorpusConfig, Processing
from robustly.corpus.documents import documents
from robustly.corpus.files import remembered_files
from robustly.corpus.partitions import partitions
from robustly.data_prep.cleaning import sample, showing, steps
from robustly.data_prep.cleaning.clean import CleanStage
from robustly.data_prep.cleaning.config import CleaningConfig
from robustly.data_prep.cleaning.dropped import write_dropped
from robustly.data_prep.cleaning.showing import excerpt, show_rules
from robustly.data_prep.prepare import DataStage
from robustly.data_prep.store import Store
from robustly.inspection.describe import describe_folder
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.build import TokenizerStage
from robustly.tokenizer.config import TokenizerConfig
from stated import stated

WORDS = [
    "the",
    "and",
    "of",
    "that",
    *(f"{a}{b}{c}" for a in "bdfgkl" for b in "aeiou" for c in ("m", "nt", "r", "st")),
]
ONE = Processing(1)


def story(seed: int, words: int = 70) -> str:
    """Sentences of seven words."""
    draw = random.Random(seed)
    return " ".join(
        " ".join(draw.choices(WORDS, k=7)).capitalize() + "." for _ in range(words // 7)
    )


QUESTION = "Why did the second of the three brothers leave the old house by the lake so early?"
INNOCENT = [story(n) for n in range(24)]
PLANTED = {
    "min_words": "Too short.",
    "language": "der und " * 40,
    "gopher_repetition: dup_line_frac": "\n".join(
        ["The same line comes again, and that of all lines."] * 9
    ),
    "contamination": f"{story(90, 35)} {QUESTION} {story(91, 35)}",
    "exact_duplicates": INNOCENT[3],
    "near_duplicates": INNOCENT[10] + " Also.",
}
EVERYTHING = {
    "min_words": 5,
    "language": {"model": "lid.bin", "keep": ["en"]},
    "quality": {"gopher_repetition": {}},
    "contamination": {"files": "questions.jsonl"},
    "exact_duplicates": True,
    "near_duplicates": True,
}
CHEAP = CleaningConfig(
    min_words=5,
    exact_duplicates=True,
    near_duplicates=True,
    personal_data={"action": "replace", "kinds": "mail"},
)
"""What loads no large library in a worker."""


def planted_corpus(folder: Path):
    """Three files, two of which hold what is planted after the innocent; a blank document in the
    third."""
    write_model(folder / "lid.bin", {"en": WORDS, "de": ["der", "und"]})
    (folder / "questions.jsonl").write_text(
        json.dumps({"question": QUESTION, "answers": ["yes", "no"]}) + "\n"
    )
    bad = list(PLANTED.values())
    write_rows(folder / "a.jsonl", [*INNOCENT[:12], *bad[:2]])
    write_rows(folder / "b.jsonl", [*bad[2:4], *INNOCENT[12:20], bad[4]])
    write_rows(folder / "c.jsonl", [*INNOCENT[20:], " \n", bad[5]])
    return corpus("a.jsonl", "b.jsonl", "c.jsonl")


def seen_by_later_stages(config, folder: Path, cleaned: Path) -> list[str]:
    pieces = decisions.attach(partitions(stated(folder, config)), cleaned)
    return [text for part in pieces for text in documents(part, config, [])]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("verdicts*")}


def test_two_at_once_make_it_once(tmp_path):
    """The second waits for the first and sees that all is done."""
    config, trained = planted_corpus(tmp_path), train_tokenizer(tmp_path / "tokenizer")

    def at_once(make):
        with ThreadPoolExecutor(2) as pool:
            one, two = (each.result() for each in [pool.submit(make), pool.submit(make)])
        assert one == two
        return one

    made = at_once(
        lambda: CleanStage(
            stated(tmp_path, config), stated(tmp_path, CHEAP), "en", tmp_path / "clean", ONE
        ).make()
    )
    at_once(
        lambda: DataStage(
            stated(tmp_path, config), VIEW, tmp_path / "data", trained, ONE, tmp_path / "clean"
        ).make()
    )
    settings = TokenizerConfig(vocab_size=270, min_frequency=2)
    at_once(
        lambda: TokenizerStage(
            stated(tmp_path, config),
            stated(tmp_path, settings),
            tmp_path / "other",
            ONE,
            tmp_path / "clean",
        ).make()
    )
    assert made.counts["kept_documents"] < made.counts["documents"]
    assert not list(tmp_path.glob("*/work"))


def test_sources_of_one_name_are_told_apart(tmp_path, capfd):
    for name, texts in ("a", [story(1), "short"]), ("b", [story(2), story(3)]):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "web.jsonl", texts)

    config = corpus("a/web.jsonl", "b/web.jsonl")
    made = CleanStage(
        stated(tmp_path, config), stated(tmp_path, CHEAP), "en", tmp_path / "clean", ONE
    ).make()
    assert "INFO" not in capfd.readouterr().err  # datatrove's own log of its steps
    assert [(row["source"], row["documents"]) for row in made.counts["sources"]] == [
        ("web.jsonl (1)", 1), ("web.jsonl (1)", 1), ("web.jsonl (2)", 2)
    ]  # fmt: skip
    write_dropped(stated(tmp_path, config), tmp_path / "clean", tmp_path / "dropped.jsonl")
    assert json.loads((tmp_path / "dropped.jsonl").read_text())["source"] == "web.jsonl (1)"
    DataStage(
        stated(tmp_path, config),
        VIEW,
        tmp_path / "data",
        train_tokenizer(tmp_path / "tokenizer"),
        ONE,
        tmp_path / "clean",
    ).make()
    assert Store(tmp_path / "data", "train").sources == ("web.jsonl (1)", "web.jsonl (2)")


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory):
    """A folder with a corpus and its clean stage, with every kind of rule."""
    folder = tmp_path_factory.mktemp("cleaned")
    config = planted_corpus(folder)
    made = CleanStage(
        stated(folder, config),
        stated(folder, CleaningConfig(**EVERYTHING)),
        "en",
        folder / "clean",
        ONE,
    ).make()
    return folder, config, made


def test_what_is_planted_is_found_and_innocents_stay(cleaned):
    folder, config, made = cleaned
    assert seen_by_later_stages(config, folder, folder / "clean") == [*INNOCENT, " \n"]
    counts = made.counts
    dropped = {name: number for name, number in counts.items() if name.startswith("dropped")}
    assert dropped == {f"dropped by {reason}": 1 for reason in PLANTED}
    total = [*INNOCENT, " \n", *PLANTED.values()]
    assert (counts["documents"], counts["kept_documents"]) == (31, 25)
    assert counts["bytes"] == sum(len(text.encode()) for text in total)
    assert counts["kept_bytes"] == sum(len(text.encode()) for text in total[:25])
    assert (counts["evaluation_texts"], counts["short_evaluation_texts"], counts["bad_lines"]) == (
        3,
        2,
        0,
    )
    assert counts["sources"][0] == {
        "source": "a.jsonl", "reason": None, "documents": 12, "bytes": sum(len(text) for text in INNOCENT[:12]),
    }  # fmt: skip
    assert [(row["source"], row["reason"]) for row in counts["sources"] if row["reason"]] == [
        ("a.jsonl", "min_words"), ("a.jsonl", "language"),
        ("b.jsonl", "gopher_repetition: dup_line_frac"), ("b.jsonl", "contamination"), ("b.jsonl", "exact_duplicates"),
        ("c.jsonl", "near_duplicates"),
    ]  # fmt: skip
    summary = decisions.Summary(format=2, verdicts=["kept", *PLANTED], documents=[14, 11, 6])
    assert decisions.read_summary(folder / "clean") == summary
    assert not (folder / "clean" / "work").exists()
    assert set(made.outputs) == {"verdicts.json", "verdicts.npy"}


@pytest.mark.parametrize(
    ("key", "reasons"),
    [
        ("min_words", {"min_words": 1}),
        ("language", {"language": 2}),  # of "Too short." it knows no word
        ("quality", {"gopher_repetition: top_2_gram": 2, "gopher_repetition: dup_line_frac": 1}),
        ("contamination", {"contamination": 1}),
        ("exact_duplicates", {"exact_duplicates": 1}),
        ("near_duplicates", {"near_duplicates": 2}),
    ],
)
def test_each_rule_by_itself(cleaned, tmp_path, key, reasons):
    folder, config, _ = cleaned
    made = CleanStage(
        stated(folder, config),
        stated(folder, CleaningConfig(**{key: EVERYTHING[key]})),
        "en",
        tmp_path / "clean",
        ONE,
    ).make()
    dropped = Counter()
    for row in made.counts["sources"]:
        dropped[row["reason"]] += row["documents"]

    assert dropped == {None: 31 - sum(reasons.values()), **reasons}


def test_a_dropped_document_has_no_duplicates(tmp_path):
    """Only what is kept so far is compared: of texts that come again, the first that no rule drops
    stays."""
    write_rows(tmp_path / "a.jsonl", ["short", "short", INNOCENT[0], INNOCENT[1]])
    write_rows(
        tmp_path / "b.jsonl", [INNOCENT[1], "short", INNOCENT[0], INNOCENT[1].upper(), INNOCENT[2]]
    )
    made = CleanStage(
        stated(tmp_path, corpus("a.jsonl", "b.jsonl")),
        stated(tmp_path, CHEAP),
        "en",
        tmp_path / "clean",
        ONE,
    ).make()
    summary = decisions.read_summary(tmp_path / "clean")
    each = decisions.decisions_in(tmp_path / "clean", summary)
    found = [decisions.read(rows).tolist() for rows in each]
    assert found == [[1, 1, 0, 0], [2, 1, 2, 3, 0]]
    assert made.counts["dropped by near_duplicates"] == 1


# -------------------------------------------------------------------------------- workers and kills


ONE_FILE = 2_500
"""Bytes of a partition, so that each of `many` is one."""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Ten files, some of whose documents come again or nearly again in others, and their clean
    stage."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(10):
        again = [INNOCENT[number], INNOCENT[(number * 7) % 10].replace("of", "off", 1)]
        write_rows(
            folder / f"{number}.jsonl",
            [*INNOCENT[number : number + 3], "short: jo@host.org", *again],
        )

    config = corpus("*.jsonl")
    with mock.patch.object(partitioning, "PARTITION_BYTES", ONE_FILE):
        made = CleanStage(
            stated(folder, config), stated(folder, CHEAP), "en", folder / "clean", ONE
        ).make()

    return folder, config, made


@pytest.fixture
def small_partitions(monkeypatch):
    monkeypatch.setattr(partitioning, "PARTITION_BYTES", ONE_FILE)


@pytest.mark.processes
@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(many, small_partitions, tmp_path, workers):
    folder, config, alone = many
    made = CleanStage(
        stated(folder, config), stated(folder, CHEAP), "en", tmp_path / "clean", Processing(workers)
    ).make()
    assert made.counts == alone.counts and made.hash == alone.hash and made.outputs == alone.outputs
    assert files_of(tmp_path / "clean") == files_of(folder / "clean")
    assert made.counts["kept_documents"] == 12 and made.counts["dropped by near_duplicates"] > 3


def test_groups_of_parts_change_nothing(many, small_partitions, tmp_path, monkeypatch):
    folder, config, alone = many
    monkeypatch.setattr(steps, "GROUPS", 3)
    assert (
        CleanStage(stated(folder, config), stated(folder, CHEAP), "en", tmp_path / "clean", ONE)
        .make()
        .outputs
        == alone.outputs
    )


STEPS = ["find_personal_data", "apply_rules", "sign", "match", "write_decisions"]
DIES = """
import os, signal, sys
from pathlib import Path
from robustly.corpus import partitions
from robustly.data_prep.cleaning import clean, near_duplicates
from robustly.data_prep.cleaning.steps import PartitionCleaner
from stated import stated
from test_data_prep_clean import CHEAP, ONE, ONE_FILE, corpus

def dies(work, when):
    def instead(*arguments):
        if when(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*arguments)
    return instead

partitions.PARTITION_BYTES = ONE_FILE
place = sys.argv[2]
if place == "match":
    near_duplicates.match = dies(near_duplicates.match, lambda folder, near, bucket, _=None: bucket == 5)
else:
    setattr(PartitionCleaner, place, dies(getattr(PartitionCleaner, place), lambda *arguments: arguments[-2] == 6))
clean.CleanStage(stated(Path(sys.argv[3]), corpus("*.jsonl")), CHEAP, "en", Path(sys.argv[1]), ONE).make()
"""


@pytest.mark.processes
@pytest.mark.parametrize("place", STEPS)
def test_after_a_kill_only_the_rest_is_made(many, small_partitions, tmp_path, place, monkeypatch):
    folder, config, whole = many
    killed = subprocess.run(
        [sys.executable, "-c", DIES, tmp_path / "clean", place, folder],
        env={"PYTHONPATH": os.pathsep.join(sys.path)}, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert manifest.read(tmp_path / "clean") is None
    done = {step: [] for step in STEPS if step != "match"}

    for name, numbers in done.items():
        original = getattr(steps.PartitionCleaner, name)

        def recorded(self, *arguments, numbers=numbers, original=original):
            numbers.append(arguments[-2])
            original(self, *arguments)

        monkeypatch.setattr(steps.PartitionCleaner, name, recorded)

    made = CleanStage(
        stated(folder, config), stated(folder, CHEAP), "en", tmp_path / "clean", ONE
    ).make()
    assert made.outputs == whole.outputs and made.counts == whole.counts
    for name, numbers in done.items():
        rest = {-1: [], 0: [6, 7, 8, 9], 1: list(range(10))}
        assert (
            numbers
            == rest[
                (STEPS.index(name) > STEPS.index(place)) - (STEPS.index(name) < STEPS.index(place))
            ]
        )

    assert not (tmp_path / "clean" / "work").exists()


def test_the_same_again_does_nothing_and_another_recipe_is_refused(cleaned):
    folder, config, made = cleaned
    before = {
        path: path.stat().st_mtime_ns for path in (folder / "clean").iterdir() if path.is_file()
    }
    assert (
        CleanStage(
            stated(folder, config),
            stated(folder, CleaningConfig(**EVERYTHING)),
            "en",
            folder / "clean",
            Processing(2),
        ).make()
        == made
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before

    for changes, language, message in (
        ({"min_words": 6}, "en", r"cleaning\.min_words: 5 there, 6 now"),
        (
            {"quality": {"gopher_repetition": {"dup_line_frac": 0.2}}},
            "en",
            r"dup_line_frac: absent there, 0\.2 now",
        ),
        ({}, "de", r"data\.language: en there, de now"),
    ):
        with pytest.raises(UserError, match=message):
            CleanStage(
                stated(folder, config),
                stated(folder, CleaningConfig(**{**EVERYTHING, **changes})),
                language,
                folder / "clean",
                ONE,
            ).make()


def test_files_that_the_stage_knows_are_not_hashed_anew(cleaned, monkeypatch):
    folder, config, made = cleaned
    assert remembered_files(folder / "clean").keys() == {
        str(folder / name)
        for name in ("a.jsonl", "b.jsonl", "c.jsonl", "lid.bin", "questions.jsonl")
    }
    for where in ("robustly.corpus.files.sha256", "robustly.files.sha256"):
        monkeypatch.setattr(where, lambda path: f"hashed {path.name} anew")

    assert (
        CleanStage(
            stated(folder, config),
            stated(folder, CleaningConfig(**EVERYTHING)),
            "en",
            folder / "clean",
            ONE,
        )
        .stage()
        .hash
        == made.hash
    )
    other = CleanStage(
        stated(folder, config),
        stated(folder, CleaningConfig(**EVERYTHING)),
        "en",
        folder / "other",
        ONE,
    ).stage()
    assert other.inputs["language_model"] == "hashed lid.bin anew"


def test_files_are_inputs_by_what_they_hold(cleaned, tmp_path):
    folder, config, made = cleaned
    for name in ("a.jsonl", "b.jsonl", "c.jsonl", "lid.bin", "questions.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())

    assert (
        CleanStage(
            stated(tmp_path, config),
            stated(tmp_path, CleaningConfig(**EVERYTHING)),
            "en",
            tmp_path / "clean",
            ONE,
        )
        .stage()
        .hash
        == made.hash
    )
    hashes = {made.hash}

    for name in ("lid.bin", "questions.jsonl", "c.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write(b"\n")

        hashes.add(
            CleanStage(
                stated(tmp_path, config),
                stated(tmp_path, CleaningConfig(**EVERYTHING)),
                "en",
                tmp_path / "clean",
                ONE,
            )
            .stage()
            .hash
        )

    assert len(hashes) == 4


# ------------------------------------------------------------------------------------- later stages


def test_the_tokenizer_counts_the_kept_documents_only(cleaned, tmp_path):
    folder, config, _ = cleaned
    settings = TokenizerConfig(vocab_size=300, min_frequency=1)
    write_rows(tmp_path / "kept.jsonl", [*INNOCENT, " \n"])
    expected = TokenizerStage(
        stated(tmp_path, corpus("kept.jsonl")),
        stated(tmp_path, settings),
        tmp_path / "expected",
        ONE,
    ).make()
    made = TokenizerStage(
        stated(folder, config),
        stated(folder, settings),
        tmp_path / "tokenizer",
        ONE,
        folder / "clean",
    ).make()
    assert made.outputs == expected.outputs and made.counts == expected.counts
    assert made.inputs["clean"] == manifest.read(folder / "clean").hash
    uncleaned = TokenizerStage(
        stated(folder, config), stated(folder, settings), tmp_path / "uncleaned", ONE
    ).make()
    assert "clean" not in uncleaned.inputs and uncleaned.counts["documents"] == 31


def test_the_store_holds_exactly_the_kept_documents_in_order(cleaned, tmp_path):
    folder, config, _ = cleaned
    trained = train_tokenizer(tmp_path / "tokenizer")
    made = DataStage(
        stated(folder, config), VIEW, tmp_path / "data", trained, ONE, folder / "clean"
    ).make()
    assert list(Store(tmp_path / "data", "train").texts(load_tokenizer(trained))) == INNOCENT
    assert made.counts["empty_documents"] == 1
    assert made.inputs["clean"] == manifest.read(folder / "clean").hash
    reasons = {
        name: n
        for name, n in manifest.read(folder / "clean").counts.items()
        if name.startswith("dropped by")
    }
    (listing,) = (
        listing
        for listing in describe_folder(tmp_path / "data", "data").examples
        if listing.title == "dropped"
    )
    found = {row["reason"]: row["count"] for row in listing.rows if row["what"] == "documents"}
    assert {f"dropped by {reason}": count for reason, count in found.items()} == reasons and sum(
        reasons.values()
    ) > 5
    plain = DataStage(stated(folder, config), VIEW, tmp_path / "data", trained, ONE).stage()
    assert "clean" not in plain.inputs and plain.hash != made.hash
    with pytest.raises(UserError, match=r"input\.clean: .* there, absent now"):
        plain.refuse_other_work()


def test_later_stages_want_the_stage_finished_on_this_corpus(cleaned, tmp_path):
    folder, config, _ = cleaned
    settings, trained = (
        TokenizerConfig(vocab_size=300, min_frequency=1),
        train_tokenizer(tmp_path / "trained"),
    )
    for missing in (
        lambda: TokenizerStage(
            stated(folder, config),
            stated(folder, settings),
            tmp_path / "tokenizer",
            ONE,
            tmp_path / "clean",
        ).make(),
        lambda: DataStage(
            stated(folder, config), VIEW, tmp_path / "data", trained, ONE, tmp_path / "clean"
        ).make(),
    ):
        with pytest.raises(
            UserError, match=r"no finished clean stage here .* run `robustly clean CONFIG` first"
        ):
            missing()

    write_rows(tmp_path / "a.jsonl", INNOCENT)

    for changed in (
        lambda: TokenizerStage(
            stated(tmp_path, corpus("a.jsonl")),
            stated(tmp_path, settings),
            tmp_path / "tokenizer",
            ONE,
            folder / "clean",
        ).make(),
        lambda: DataStage(
            stated(tmp_path, corpus("a.jsonl")),
            VIEW,
            tmp_path / "data",
            trained,
            ONE,
            folder / "clean",
        ).make(),
    ):
        with pytest.raises(
            UserError, match="the corpus is another than the one that was cleaned here"
        ):
            changed()


# ------------------------------------------------------------------------------------------- people


# ------------------------------------------------------------------------------------ personal data


def with_mail(text: str, number: int) -> str:
    words = text.split(" ")
    return " ".join([*words[:20], f"jo{number}@host{number}.org", *words[20:]])


@pytest.fixture(scope="module")
def personal(tmp_path_factory):
    """Two files: texts that differ from each other only by an address, and one with two kinds."""
    folder = tmp_path_factory.mktemp("personal")
    write_rows(
        folder / "a.jsonl", [*INNOCENT[:5], with_mail(INNOCENT[5], 1), with_mail(INNOCENT[6], 1)]
    )
    last = INNOCENT[7] + " From 93.184.216.119 and 93.184.216.120, jo@host.org."
    write_rows(folder / "b.jsonl", [with_mail(INNOCENT[5], 2), last, " \n", "ж🦊 jo@host.org"])
    return folder, corpus("a.jsonl", "b.jsonl")


def clean_stage(folder: Path, config, to: Path, workers: int = 1, **keys) -> CleanStage:
    rules = stated(folder, CleaningConfig(**keys))
    return CleanStage(stated(folder, config), rules, "en", to, Processing(workers))


def test_replaced_text_is_what_all_rules_and_stages_see(personal, tmp_path):
    folder, config = personal
    rules = {"personal_data": "replace", "exact_duplicates": True, "near_duplicates": True}
    made = clean_stage(folder, config, tmp_path / "clean", **rules, min_words=2).make()
    counts = {name: made.counts[name] for name in ("documents", "kept_documents")}
    assert counts == {"documents": 11, "kept_documents": 10}
    assert made.counts["dropped by exact_duplicates"] == 1  # the address was all that was different
    assert {name: count for name, count in made.counts.items() if name.startswith("replaced ")} == {
        "replaced mail": 4, "replaced phone": 0, "replaced ip": 2, "replaced card": 0, "replaced iban": 0,
    }  # fmt: skip
    replaced = INNOCENT[5].split(" ")
    expected = [
        *INNOCENT[:5],
        *(with_mail(INNOCENT[n], 1).replace("jo1@host1.org", "<mail>") for n in (5, 6)),
        INNOCENT[7] + " From <ip> and <ip>, <mail>.",
        " \n",
        "ж🦊 <mail>",
    ]
    assert seen_by_later_stages(config, folder, tmp_path / "clean") == expected
    assert " ".join([*replaced[:20], "<mail>", *replaced[20:]]) in expected
    assert made.counts["kept_bytes"] == sum(len(text.encode()) for text in expected)
    assert made.notes["packages"].keys() == {"datatrove", "phonenumbers", "python-stdnum"}

    write_dropped(stated(folder, config), tmp_path / "clean", tmp_path / "dropped.jsonl")
    dropped = json.loads((tmp_path / "dropped.jsonl").read_text())
    assert dropped == {"text": expected[5], "source": "b.jsonl", "reason": "exact_duplicates"}

    plain = clean_stage(
        folder, config, tmp_path / "plain", min_words=2, exact_duplicates=True
    ).make()
    assert plain.counts["dropped by exact_duplicates"] == 0
    assert not any(name.startswith("replaced") for name in plain.counts)
    assert not list((tmp_path / "plain").glob("replacements*"))
    assert "placeholders" not in json.loads((tmp_path / "plain" / decisions.SUMMARY).read_text())


def test_tokenizer_and_store_hold_the_replaced_text(personal, tmp_path):
    """The split, too, is by the hash of the text that is trained on: texts that differ by a name
    alone are on one side."""
    folder, config = personal
    placeholders = {"mail": "nobody@example.org"}
    rules = {"personal_data": {"action": "replace", "placeholders": placeholders}}
    clean_stage(folder, config, tmp_path / "clean", **rules).make()
    seen = seen_by_later_stages(config, folder, tmp_path / "clean")
    assert sum("nobody@example.org" in text for text in seen) == 5
    whole = stated(folder, config).model_copy(update={"validation": 0.5})
    settings = TokenizerConfig(vocab_size=300, min_frequency=1)
    trained = TokenizerStage(
        whole, settings, tmp_path / "tokenizer", ONE, tmp_path / "clean"
    ).make()
    assert trained.counts["bytes"] == sum(len(text.encode()) for text in seen)

    view = VIEW.model_copy(update={"block_length": 16})
    store = DataStage(
        whole, view, tmp_path / "data", tmp_path / "tokenizer", ONE, tmp_path / "clean"
    )
    assert store.make().notes["replaced"]["replaced mail"] == 5
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    train, held_out = (
        list(Store(tmp_path / "data", split).texts(tokenizer)) for split in ("train", "validation")
    )
    assert train and held_out and not set(train) & set(held_out)
    assert sorted([*train, *held_out]) == sorted(text for text in seen if text.strip())


def test_documents_with_personal_data_may_be_dropped(personal, tmp_path):
    folder, config = personal
    rules = {"personal_data": "drop", "exact_duplicates": True}
    made = clean_stage(folder, config, tmp_path / "clean", **rules).make()
    assert {name: n for name, n in made.counts.items() if name.startswith(("dropped", "replaced"))} == {
        "dropped by personal_data: ip": 1, "dropped by personal_data: mail": 4, "dropped by exact_duplicates": 0,
    }  # fmt: skip
    assert seen_by_later_stages(config, folder, tmp_path / "clean") == [*INNOCENT[:5], " \n"]
    ips = {"personal_data": {"action": "drop", "kinds": "ip"}}
    assert clean_stage(folder, config, tmp_path / "ip", **ips).make().counts["kept_documents"] == 10


# ------------------------------------------------------------------------------------------ showing


SHOWN = {
    "min_words": ("2 words", "Too short."),
    "language": ("de 1.00, en 0.00", "der und der und"),
    "gopher_repetition: dup_line_frac": ("dup_line_frac", "The same line comes again, and that of all lines. ⏎ The"),
    "contamination": ("why did the second of the three brothers leave the old house by", QUESTION),
    "exact_duplicates": ("equal to one before", INNOCENT[3][:60]),
    "near_duplicates": ("similar to one before", INNOCENT[10][:60]),
}  # fmt: skip


def test_examples_of_what_is_dropped(cleaned, tmp_path):
    """Before the corpus is cleaned a sample, without duplicates; after that, what was decided.
    Neither makes anything."""
    folder, config, _ = cleaned
    by_rules = [reason for reason in SHOWN if not reason.endswith("duplicates")]
    before = show_rules(clean_stage(folder, config, tmp_path / "new", **EVERYTHING), 2)
    assert not (tmp_path / "new").exists()
    assert before.summary.startswith("A sample of 31 documents")
    assert "duplicates are looked for in the whole corpus alone" in before.notes

    after = show_rules(clean_stage(folder, config, folder / "clean", **EVERYTHING), 2)
    assert after.summary == "Decisions on 31 documents." and not after.notes

    for found, reasons in ((before, by_rules), (after, list(SHOWN))):
        counts, *listings = found.examples
        assert [listing.title for listing in listings] == reasons
        assert {f"dropped by {reason}" for reason in reasons} < {row["what"] for row in counts.rows}
        for listing in listings:
            (row,) = listing.rows
            why, text = SHOWN[listing.title]
            assert row["why"] == why and text in row["text"], row
            assert len(row["text"]) < 250

    others = {**EVERYTHING, "min_words": 6}  # a page that the folder does not fit
    assert show_rules(
        clean_stage(folder, config, folder / "clean", **others), 1
    ).summary.startswith("A sample")
    with pytest.raises(UserError, match="the config asks for none"):
        show_rules(clean_stage(folder, config, tmp_path / "new"), 1)


def test_examples_of_what_is_replaced(personal, tmp_path):
    folder, config = personal
    stage = clean_stage(
        folder, config, tmp_path / "clean", personal_data="replace", exact_duplicates=True
    )
    before = show_rules(stage, 5)
    stage.make()
    after = show_rules(stage, 5)

    for found, mails in ((before, 5), (after, 4)):
        counts = {row["what"]: row["count"] for row in found.examples[0].rows}
        assert (counts["replaced mail"], counts["replaced ip"]) == (mails, 2)
        rows = {listing.title: listing.rows for listing in found.examples[1:]}
        assert len(rows["replaced mail"]) == mails
        assert "jo1@host1.org" in rows["replaced mail"][0]["before"]
        assert "<mail>" in rows["replaced mail"][0]["after"]
        (row,) = rows["replaced ip"]  # a document's first
        assert "From 93.184.216.119 and 93.184.216.120, jo@host.org." in row["before"]
        assert "From <ip> and <ip>, <mail>." in row["after"]

    (row,) = after.examples[1].rows
    assert after.examples[1].title == "exact_duplicates" and "jo2" not in row["text"]
    assert [len(listing.rows) for listing in show_rules(stage, 1).examples[1:]] == [1, 1, 1]

    dropping = clean_stage(folder, config, tmp_path / "drop", personal_data="drop")
    told = show_rules(dropping, 1).examples[2]
    assert told.title == "personal_data: mail" and told.rows[0]["why"] == "mail: jo1@host1.org"
    assert "jo1@host1.org" in told.rows[0]["text"]


def test_a_sample_is_spread_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "PLACES", 3)
    monkeypatch.setattr(sample, "DOCUMENTS", 7)
    monkeypatch.setattr("robustly.corpus.partitions.PARTITION_BYTES", 2500)  # a file each
    for number in range(7):
        write_rows(tmp_path / f"{number}.jsonl", [f"{number} {story(number)}"] * 5)

    found = show_rules(
        clean_stage(tmp_path, corpus("*.jsonl"), tmp_path / "clean", min_words=900), 9
    )
    assert [row["text"][0] for row in found.examples[1].rows] == [*"000", *"666", *"333"]
    monkeypatch.setattr(showing, "CHARACTERS", 3 * 300)
    found = show_rules(
        clean_stage(tmp_path, corpus("*.jsonl"), tmp_path / "clean", min_words=900), 9
    )
    assert [row["text"][0] for row in found.examples[1].rows] == ["0", "6", "3"]


def test_a_sample_of_many_large_files_cuts_few_of_them(tmp_path, monkeypatch):
    """But one of each source; behind small ones, the next."""
    monkeypatch.setattr(sample, "PLACES", 4)
    monkeypatch.setattr(sample, "PARTITION_BYTES", 30_000)
    monkeypatch.setattr("robustly.corpus.partitions.PARTITION_BYTES", 30_000)
    cut = []
    monkeypatch.setattr(
        "robustly.corpus.partitions.entries", lambda path, _: cut.append(path.name) or []
    )
    for name, files, rows in (("large", 40, 60), ("small", 39, 1), ("other", 1, 60)):
        (tmp_path / name).mkdir()
        for number in range(files):
            text = "\n\n".join(
                f"{name} {number} {row} {story(number + row)}" for row in range(rows)
            )
            with gzip.open(tmp_path / name / f"{number:02d}.txt.gz", "wt", 1) as file:
                file.write(text)

    config = stated(tmp_path, corpus("large", "small", "other"))
    judge = sample.Judge(CleaningConfig(min_words=5), "en")
    judged = list(judge.sample(config, 10**6))
    assert {each.source for each in judged} == set(config.names)
    assert len({each.text.split()[1] for each in judged if each.source == "small"}) > 10
    assert len(cut) <= 4


def test_examples_are_spread_over_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr("robustly.corpus.partitions.PARTITION_BYTES", 600)  # a file each
    for number in range(5):
        write_rows(
            tmp_path / f"{number}.jsonl", [*(f"{number}{n}" for n in range(4)), story(number)]
        )

    stage = clean_stage(tmp_path, corpus("*.jsonl"), tmp_path / "clean", min_words=5)
    stage.make()
    found = show_rules(stage, 3)
    assert [row["text"] for row in found.examples[1].rows] == ["00", "21", "43"]
    assert len(show_rules(stage, 99).examples[1].rows) == 20


def test_excerpts():
    text = "a" * 100 + "MATCH" + "\n \tb\n" + "c" * 200
    assert excerpt(text, 100, 105) == f"…{'a' * 70}MATCH ⏎ b ⏎ {'c' * 65}…"
    assert excerpt("short", 0, 0) == "short"
    assert len(excerpt("x" * 10**6, 10, 10**6 - 10)) < 230


@pytest.mark.parametrize("name", ["dropped.jsonl", "dropped.jsonl.gz"])
def test_dropped_documents_are_written_out(cleaned, tmp_path, name):
    folder, config, _ = cleaned
    assert write_dropped(stated(folder, config), folder / "clean", tmp_path / name) == 6
    data = (tmp_path / name).read_bytes()
    text = gzip.decompress(data).decode() if name.endswith(".gz") else data.decode()
    sources = ["a.jsonl"] * 2 + ["b.jsonl"] * 3 + ["c.jsonl"]
    assert [json.loads(line) for line in text.splitlines()] == [
        {"text": text, "source": source, "reason": reason}
        for (reason, text), source in zip(PLANTED.items(), sources, strict=True)
    ]
    with pytest.raises(UserError, match=r"--dropped .*is there already and was left as it is"):
        write_dropped(stated(folder, config), folder / "clean", tmp_path / name)

    with pytest.raises(UserError, match=r"ends in \.jsonl or \.jsonl\.gz"):
        write_dropped(stated(folder, config), folder / "clean", tmp_path / "texts.txt")

    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_a_clean_folder_says_of_itself(cleaned, tmp_path):
    folder, _, made = cleaned
    found = describe_folder(folder / "clean", "clean")
    assert json.loads(json.dumps(found.json()))["kind"] == "clean"
    assert found.summary == "Filter decisions on 31 documents: 25 kept, 6 dropped."
    sources, dropped = found.examples
    assert [(row["source"], row["documents"], row["kept"]) for row in sources.rows] == [
        ("a.jsonl", 14, 12), ("b.jsonl", 11, 8), ("c.jsonl", 6, 5),
    ]  # fmt: skip
    assert sum(row["bytes"] for row in sources.rows) == made.counts["bytes"]
    assert [row["reason"] for row in dropped.rows] == list(PLANTED)
    (tmp_path / "clean" / "work").mkdir(parents=True)
    assert "not finished" in describe_folder(tmp_path / "clean", "clean").summary
    copy = tmp_path / "cut"
    copy.mkdir()
    for path in (folder / "clean").glob("*.*"):
        (copy / path.name).write_bytes(path.read_bytes()[: -1 if path.suffix == ".npy" else None])

    with pytest.raises(UserError, match="cut off or changed"):
        describe_folder(copy, "clean")


# ----------------------------------------------------------------------------------------- mistakes


def test_mistakes(tmp_path):
    write_rows(tmp_path / "a.jsonl", ["one", "two"])

    def refused(message, cleaning, language="en", sources=("a.jsonl",)):
        with pytest.raises(UserError, match=message):
            CleanStage(
                stated(tmp_path, corpus(*sources)),
                stated(tmp_path, cleaning),
                language,
                tmp_path / "clean",
                ONE,
            ).make()
        assert not (
            tmp_path / "clean" / manifest.RECIPE
        ).exists()  # the mended config is not refused

    refused("the config asks for none, and the corpus is taken as it is", CleaningConfig())
    refused(
        r"none of the 2 documents in a\.jsonl is left \(dropped: 2 by min_words\)",
        CleaningConfig(min_words=9, exact_duplicates=True),
    )
    write_rows(tmp_path / "b.jsonl", ["short"])
    refused(
        r"none of the 3 documents in a\.jsonl, b\.jsonl is left \(dropped: 3 by min_words\)",
        CleaningConfig(min_words=9),
        sources=("a.jsonl", "b.jsonl"),
    )
    write_rows(tmp_path / "long.jsonl", [story(n) for n in range(5)])

    for short, held_out in ("long.jsonl", "a.jsonl"), ("a.jsonl", "long.jsonl"):
        sources = (
            {"path": short, "held_out": True},
            held_out,
        )  # either way round, that of short texts is empty
        refused(
            r"none of the 2 documents in a\.jsonl is left \(dropped: 2 by",
            CleaningConfig(min_words=9),
            sources=sources,
        )

    refused(
        r"cleaning\.language\.model: lid\.bin: no file there",
        CleaningConfig(language={"model": "lid.bin", "keep": "en"}),
    )
    refused(
        r"cleaning\.contamination\.files: no: no file",
        CleaningConfig(contamination={"files": "no"}),
    )
    refused(
        r"data\.language = qq, and datatrove has none",
        CleaningConfig(quality="gopher_quality"),
        "qq",
    )
    (tmp_path / "empty.jsonl").touch()

    for rules in (
        CleaningConfig(min_words=1),
        CleaningConfig(exact_duplicates=True),
        CleaningConfig(near_duplicates=True),
    ):
        refused(r"no document in empty\.jsonl", rules, sources=("empty.jsonl",))

    for name in ("b.jsonl", "c.jsonl"):  # too many in all, not in either
        (tmp_path / name).write_text("no JSON\n" * 60 + '{"text": "good"}\n')

    refused(
        "120 broken rows, more than .*= 100",
        CleaningConfig(min_words=1),
        sources=("b.jsonl", "c.jsonl"),
    )
    counts_alone = CorpusConfig(counts=["words.tsv"], documents="line", text_key="", validation=0)
    with pytest.raises(UserError, match=r"only corpus\.counts; cleaning needs the text itself"):
        CleanStage(
            stated(tmp_path, counts_alone), stated(tmp_path, CHEAP), "en", tmp_path / "clean", ONE
        ).make()
