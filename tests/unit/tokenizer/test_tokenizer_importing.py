"""Imports: RoBERTa's vocabulary from fairseq's files, Hugging Face folders, and refusals that say
why."""

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from robustly import UserError, manifest
from robustly.corpus.config import Processing
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.added_tokens import AddedToken
from robustly.tokenizer.build import TokenizerStage
from robustly.tokenizer.config import TokenizerConfig
from robustly.tokenizer.reading import read_vocabulary
from robustly.tokenizer.special_tokens import byte_symbols
from stated import stated

ROBERTA = Path(__file__).resolve().parents[4] / "shared" / "data" / "tokenizer"
ONE = Processing(workers=1)
SYMBOLS = byte_symbols()
MERGES = [("a", "b"), ("Ġ", "ab"), ("c", "d")]


@pytest.fixture
def fairseq(tmp_path):
    """GPT-2's files in small: bytes, three merges, and a dictionary in an order of its own."""
    tokens = [*SYMBOLS, *(left + right for left, right in MERGES), "<|endoftext|>"]
    (tmp_path / "encoder.json").write_text(
        json.dumps({token: number for number, token in enumerate(tokens)})
    )
    (tmp_path / "vocab.bpe").write_text(
        "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in MERGES)
    )
    numbers = [*range(len(tokens))][::-1]
    lines = [f"{number} {10 * number}\n" for number in numbers] + [
        "madeupword0000 0\n",
        "madeupword0001 0\n",
    ]
    (tmp_path / "dict.txt").write_text("".join(lines))
    return {"encoder": "encoder.json", "merges": "vocab.bpe", "dictionary": "dict.txt"}


def settings(imported, vocab_size=267, **keys):
    return TokenizerConfig.model_validate(
        {"vocab_size": vocab_size, "min_frequency": 2, "import": imported, **keys}
    )


@pytest.fixture
def text(tmp_path, corpus_of):
    (tmp_path / "a.txt").write_text("ab ab cd <mask> <|endoftext|> é\n")
    return corpus_of(tmp_path / "a.txt")


def test_fairseq_files(fairseq, text, tmp_path):
    done = TokenizerStage(
        stated(tmp_path, text), stated(tmp_path, settings(fairseq)), tmp_path / "t", ONE
    ).make()
    assert (done.counts["entries"], done.counts["merges"]) == (267, 3)
    ids = read_vocabulary(tmp_path / "t").ids
    first = ["<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>", "cd", "Ġab", "ab", SYMBOLS[255]]
    assert [ids[token] for token in first] == list(range(9))
    assert (ids["madeupword0000"], ids["madeupword0001"], ids["<mask>"]) == (264, 265, 266)
    tokenizer = load_tokenizer(tmp_path / "t")
    assert tokenizer.encode_documents(["ab abcd"])[0].tolist() == [7, 6, 5]
    assert tokenizer.decode(tokenizer.encode_documents(["<|endoftext|>"])[0]) == "<|endoftext|>"
    assert str(tmp_path) not in json.dumps([done.recipe, done.inputs])


def test_an_import_is_done_once_and_refused_for_another(fairseq, text, tmp_path):
    done = TokenizerStage(
        stated(tmp_path, text), stated(tmp_path, settings(fairseq)), tmp_path / "t", ONE
    ).make()
    assert (
        TokenizerStage(
            stated(tmp_path, text), stated(tmp_path, settings(fairseq)), tmp_path / "t", ONE
        ).make()
        == done
    )
    lines = (tmp_path / "dict.txt").read_text().splitlines(keepends=True)
    (tmp_path / "dict.txt").write_text("".join([*lines[1::-1], *lines[2:]]))
    with pytest.raises(UserError, match="import"):
        TokenizerStage(
            stated(tmp_path, text), stated(tmp_path, settings(fairseq)), tmp_path / "t", ONE
        ).make()

    assert manifest.read(tmp_path / "t") == done


def test_roberta_itself(corpus_of, tmp_path):
    if not (ROBERTA / "roberta_dict.txt").exists():
        pytest.skip(f"RoBERTa's files are not at {ROBERTA}")

    files = {key: str(ROBERTA / name) for key, name in
             {"encoder": "encoder.json", "merges": "vocab.bpe", "dictionary": "roberta_dict.txt"}.items()}  # fmt: skip
    (tmp_path / "a.txt").write_text("Hello world\n")
    TokenizerStage(
        stated(tmp_path, corpus_of(tmp_path / "a.txt")),
        stated(tmp_path, settings(files, 50265)),
        tmp_path / "t",
        ONE,
    ).make()
    assert read_vocabulary(tmp_path / "t").ids == json.loads(
        (ROBERTA / "roberta_vocab.json").read_text()
    )
    tokenizer = load_tokenizer(tmp_path / "t")
    for line in (ROBERTA / "roberta_golden_ids.jsonl").read_text().splitlines():
        case = json.loads(line)
        assert tokenizer.encode_documents([case["text"]])[0].tolist() == case["ids"]

    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert fast("A, <mask> AllenNLP sentence.")["input_ids"] == [
        0,
        250,
        6,
        50264,
        3823,
        487,
        21992,
        3645,
        4,
        2,
    ]
    assert fast("Hello world! cécé herlolip 418")["input_ids"][-3:] == [1588, 42928, 2]
    assert fast("<|endoftext|>")["input_ids"] == [
        0,
        *tokenizer.encode_documents(["<|endoftext|>"])[0].tolist(),
        2,
    ]


@pytest.mark.parametrize("files", [["tokenizer.json"], ["vocab.json", "merges.txt"]])
def test_a_folder(trained, corpus_of, prose_file, prose, tmp_path, files):
    source = tmp_path / "from elsewhere"
    source.mkdir()
    for name in files:
        (source / name).write_bytes((trained / name).read_bytes())

    done = TokenizerStage(
        stated(tmp_path, corpus_of(prose_file)),
        stated(tmp_path, settings("from elsewhere", 1000)),
        tmp_path / "t",
        ONE,
    ).make()
    assert (done.counts["entries"], done.counts["merges"]) == (1000, 739)
    assert read_vocabulary(tmp_path / "t") == read_vocabulary(trained)
    ours, theirs = load_tokenizer(tmp_path / "t"), load_tokenizer(trained)
    assert ours.fingerprint == theirs.fingerprint


def test_an_import_does_not_need_the_corpus(fairseq, corpus_of, tmp_path, capsys):
    done = TokenizerStage(
        stated(tmp_path, corpus_of("nowhere.txt")),
        stated(tmp_path, settings(fairseq)),
        tmp_path / "t",
        ONE,
    ).make()
    assert done.counts["entries"] == 267
    assert (
        "the vocabulary is not tried on the corpus: corpus.sources: nowhere.txt"
        in capsys.readouterr().err
    )


def test_merges_that_are_cut_off(fairseq, text, trained, corpus_of, tmp_path):
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\n")
    with pytest.raises(
        UserError,
        match=r"vocab\.bpe: 2 tokens of the vocabulary are made by no merge, such as 'cd'",
    ):
        TokenizerStage(
            stated(tmp_path, text), stated(tmp_path, settings(fairseq)), tmp_path / "t", ONE
        ).make()

    (tmp_path / "there").mkdir()
    stored = json.loads((trained / "tokenizer.json").read_text())
    stored["model"]["merges"] = stored["model"]["merges"][:10]
    (tmp_path / "there" / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="there: 729 tokens of the vocabulary are made by no merge"):
        TokenizerStage(
            stated(tmp_path, text), stated(tmp_path, settings("there", 1000)), tmp_path / "t", ONE
        ).make()


@pytest.fixture
def plain_folder(trained, tmp_path):
    """A folder without tokenizer.json, whose tokenizer_config.json adds a special token."""
    folder = tmp_path / "there"
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((trained / name).read_bytes())
    return folder


def test_added_special_tokens_beside_a_vocabulary(plain_folder, text, tmp_path):
    (plain_folder / "added_tokens.json").write_text('{"[X1]": 1000}')
    (plain,) = read_vocabulary(plain_folder).added
    assert plain == AddedToken("[X1]", normalized=True)
    named = {"__type": "AddedToken", "content": "[X1]", "lstrip": True, "normalized": False}
    (plain_folder / "tokenizer_config.json").write_text(
        json.dumps({"additional_special_tokens": [named]})
    )
    assert read_vocabulary(plain_folder).added == (AddedToken("[X1]", special=True, lstrip=True),)
    decoder = {"1000": {"content": "[X1]", "special": True}}
    (plain_folder / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": decoder})
    )
    TokenizerStage(
        stated(tmp_path, text), stated(tmp_path, settings("there", 1001)), tmp_path / "t", ONE
    ).make()
    found = read_vocabulary(tmp_path / "t")
    assert (found.ids["[X1]"], found.ids["<mask>"]) == (1000, 999)
    assert found.added == (AddedToken("[X1]", special=True),)


def test_settings_beside_a_vocabulary(plain_folder, text, tmp_path):
    (plain_folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match="expected an object"):
        TokenizerStage(
            stated(tmp_path, text), stated(tmp_path, settings("there", 1000)), tmp_path / "t", ONE
        ).make()


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.json"])
def test_ids_must_be_numbers(trained, plain_folder, text, tmp_path, file):
    if file == "tokenizer.json":
        (plain_folder / file).write_bytes((trained / file).read_bytes())

    changed = re.sub(r'"<pad>": 1\b', '"<pad>": "1"', (plain_folder / file).read_text())
    assert '"<pad>": "1"' in changed
    (plain_folder / file).write_text(changed.replace('"id": 1,', '"id": "1",'))
    with pytest.raises(UserError, match=r"one of the ids 0, 1, 2|not a file of `tokenizers`"):
        TokenizerStage(
            stated(tmp_path, text), stated(tmp_path, settings("there", 1000)), tmp_path / "t", ONE
        ).make()


@pytest.mark.parametrize(
    ("imported", "message"),
    [
        (5, "tokenizer.import = 5: .*valid string"),
        ([1], "valid string"),
        ("", "at least 1 character"),
        ({"encoder": "a", "merges": "b"}, r"tokenizer\.import\.dictionary"),
        ({"encoder": "a", "merges": "b", "dictionary": "c", "x": 1}, r"tokenizer\.import\.x"),
    ],
)
def test_an_import_that_is_none_of_both(tmp_path, imported, message):
    from robustly.experiment import load_experiment

    with pytest.raises(UserError, match=message) as fault:
        load_experiment("tiny", [f"tokenizer.import={json.dumps(imported)}"])
    assert ": 1 fault\n" in str(fault.value) and "FairseqFiles" not in str(fault.value)


def test_counts_do_not_go_with_an_import(fairseq, corpus_of, tmp_path):
    with pytest.raises(UserError, match=r"corpus\.counts train one; remove either"):
        TokenizerStage(
            stated(tmp_path, corpus_of(counts="a.tsv")),
            stated(tmp_path, settings(fairseq)),
            tmp_path / "t",
            ONE,
        ).make()


def test_the_size_on_the_page_must_be_right(fairseq, text, tmp_path):
    with pytest.raises(
        UserError, match=r"vocab_size = 266, but .* has 267 entries; set tokenizer\.vocab_size: 267"
    ):
        TokenizerStage(
            stated(tmp_path, text), stated(tmp_path, settings(fairseq, 266)), tmp_path / "t", ONE
        ).make()
    assert not (tmp_path / "t" / "recipe.json").exists()


def change(file, old, new):
    def apply(folder):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: (folder / "dict.txt").unlink(),
            "tokenizer.import.dictionary: dict.txt: not there",
        ),
        (change("dict.txt", "259 2590\n", ""), None),
        (
            change("dict.txt", "258 2580\n", ""),
            "1 tokens of .*vocab.bpe have no line there, such as 'cd' ",
        ),
        (
            change("dict.txt", "258 2580\n", "9999 2\n"),
            "line 2: '9999' is neither an id of .*encoder.json",
        ),
        (change("dict.txt", "258 2580\n", "257 2\n"), "line 3: '257' .* stands there twice"),
        (
            change("dict.txt", "258 2580\n", "258\n"),
            "line 2: expected an id and its count, found '258'",
        ),
        (change("vocab.bpe", "c d\n", "c e\n"), "vocab.bpe: line 4: 'c e' is not a merge"),
        (
            lambda folder: (folder / "encoder.json").write_text("[]"),
            "expected GPT-2's encoder.json",
        ),
        (lambda folder: (folder / "encoder.json").write_text("{"), "not JSON"),
    ],
)
def test_fairseq_files_that_do_not_belong_together(fairseq, text, tmp_path, spoil, message):
    spoil(tmp_path)
    if message is None:  # <|endoftext|> is no part of any text
        assert (
            TokenizerStage(
                stated(tmp_path, text),
                stated(tmp_path, settings(fairseq, 266)),
                tmp_path / "t",
                ONE,
            )
            .make()
            .counts["entries"]
            == 266
        )
        return

    with pytest.raises(UserError, match=message):
        TokenizerStage(
            stated(tmp_path, text), stated(tmp_path, settings(fairseq)), tmp_path / "t", ONE
        ).make()


# -------------------------------------------------------------------------------------- other kinds


def word_piece(folder):
    fast = Fast(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.save(str(folder / "tokenizer.json"))


def unigram(folder):
    fast = Fast(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.save(str(folder / "tokenizer.json"))


def byte_level(
    pre_tokenizer=None,
    normalizer=None,
    specials=("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    **model,
):
    def make(folder):
        fast = Fast(models.BPE(**model))
        fast.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
        if normalizer:
            fast.normalizer = normalizer

        fast.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=270,
            special_tokens=list(specials),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        fast.train_from_iterator(["ab ab cd cd"], trainer)
        fast.save(str(folder / "tokenizer.json"))

    return make


SPLIT = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(r"\d+", "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (word_piece, "its model is WordPiece, as BERT's"),
        (unigram, "its model is Unigram (SentencePiece's), as XLM-RoBERTa's"),
        (byte_level(SPLIT), "its pre-tokenizer is Sequence, so another regex"),
        (byte_level(pre_tokenizers.Metaspace()), "its pre-tokenizer is Metaspace"),
        (
            byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
            "does not use GPT-2's regex",
        ),
        (
            byte_level(normalizer=normalizers.Lowercase()),
            "changes the text first (normalizer Lowercase)",
        ),
        (byte_level(byte_fallback=True), "byte_fallback = True, as SentencePiece's"),
        (byte_level(dropout=0.1), "dropout = 0.1"),
        (byte_level(ignore_merges=True), "takes whole words without merging"),
        (byte_level(specials=["<|endoftext|>"]), "without <s> <pad> </s> <unk> <mask>"),
        (
            byte_level(specials=["<pad>", "<s>", "</s>", "<unk>", "<mask>"]),
            "<s> has the id 1; RoBERTa's layout",
        ),
        (
            lambda folder: (folder / "vocab.txt").write_text("[PAD]\n"),
            "vocab.txt: a WordPiece vocabulary, as BERT's",
        ),
        (
            lambda folder: (folder / "spiece.model").write_bytes(b"\n"),
            "spiece.model: a SentencePiece model",
        ),
        (lambda folder: None, "vocab.json: cannot be read"),
        (
            lambda folder: (folder / "tokenizer.json").write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
            ),
            "tokenizer.json: cannot be read (a pointer of Git LFS",
        ),
    ],
)
def test_other_kinds_are_refused_with_the_reason(make, message, text, tmp_path):
    (tmp_path / "there").mkdir()
    make(tmp_path / "there")
    with pytest.raises(UserError, match=re.escape(message)):
        TokenizerStage(
            stated(tmp_path, text), stated(tmp_path, settings("there", 270)), tmp_path / "t", ONE
        ).make()
    assert not (tmp_path / "t" / "recipe.json").exists()


def test_nfc_and_further_special_tokens_are_taken_along(text, tmp_path):
    (tmp_path / "there").mkdir()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "[X1]"]
    byte_level(normalizer=normalizers.NFC(), specials=specials)(tmp_path / "there")
    size = len(json.loads((tmp_path / "there" / "tokenizer.json").read_text())["model"]["vocab"])
    TokenizerStage(
        stated(tmp_path, text), stated(tmp_path, settings("there", size)), tmp_path / "t", ONE
    ).make()
    found = read_vocabulary(tmp_path / "t")
    assert (found.nfc, found.ids["[X1]"], found.ids["<mask>"]) == (True, 5, 4)
    assert found.added == (AddedToken("[X1]", special=True),)


def test_merges_that_no_training_finds_are_refused(text, tmp_path):
    """tiktoken would make abc of a and bc, `tokenizers` leaves them apart."""
    (tmp_path / "there").mkdir()
    byte_level()(tmp_path / "there")
    stored = json.loads((tmp_path / "there" / "tokenizer.json").read_text())
    vocab = {token: n for token, n in stored["model"]["vocab"].items() if n < 261}
    merges = [["b", "c"], ["a", "b"], ["ab", "c"]]
    for left, right in merges:
        vocab[left + right] = len(vocab)

    stored["model"].update(vocab=vocab, merges=merges)
    (tmp_path / "there" / "tokenizer.json").write_text(json.dumps(stored))
    (tmp_path / "a.txt").write_text("abc")

    with pytest.raises(
        UserError, match="the merges are not in an order in which training finds them: 'abc'"
    ):
        TokenizerStage(
            stated(tmp_path, text), stated(tmp_path, settings("there", 264)), tmp_path / "t", ONE
        ).make()

    assert not (tmp_path / "t" / "recipe.json").exists()


@pytest.mark.parametrize(
    "key", [{"special_tokens": ["[X1]"]}, {"accept_fewer": True}, {"normalization": "nfc"}]
)
def test_keys_of_training_do_not_go_with_an_import(key):
    with pytest.raises(
        ValueError, match=f"import takes a vocabulary as it is; remove {next(iter(key))}"
    ):
        settings("there", **key)
