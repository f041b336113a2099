"""The vocabulary, ids of tokens and the order of merges, and the files that hold it.

Layout, as fairseq numbers RoBERTa's special tokens and as `tokenizers` numbers the rest when it
trains with the four special tokens and `ByteLevel.alphabet()`: `<s>` 0, `<pad>` 1, `</s>` 2,
`<unk>` 3, the 256 bytes (by the code point of their symbol), the merges in order, further special
tokens, `<mask>` last. A vocabulary that is read or imported keeps the ids that it has: RoBERTa's
own are in the order of fairseq's dictionary, by frequency."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.config import fingerprint
from robustly.files import write_atomic, write_json
from robustly.strict_json import Kind, parse_json
from robustly.tokenizer.added_tokens import AddedToken, special_tokens
from robustly.tokenizer.special_tokens import (
    CONTROL_TOKENS,
    MASK_TOKEN,
    SPECIAL_TOKENS,
    byte_symbols,
)
from robustly.tokenizer.words import PATTERNS, PatternName

MODEL_MAX_LENGTH = 512  # RoBERTa's; publishing writes the model's own


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in byte-level symbols. Both sides and the result of a merge are tokens, and so is
    every byte."""

    ids: dict[str, int]
    """Token -> id; the ids are 0 .. size - 1."""
    merges: list[tuple[str, str]]
    """Pairs in the order in which they merge."""
    added: tuple[AddedToken, ...] = ()
    """Tokens beside RoBERTa's five that are cut out of a text, in the order of their ids."""
    nfc: bool = False
    """Whether text is brought to Unicode's NFC before it is encoded."""
    pattern: PatternName = "gpt2"
    """What cuts text into words, which no merge crosses."""

    @property
    def named(self) -> tuple[AddedToken, ...]:
        """All tokens that are written as their names, RoBERTa's five among them, in the order of a
        trained vocabulary's ids."""
        control = [AddedToken(token, special=True) for token in SPECIAL_TOKENS]
        # it takes the space on its left, as in RoBERTa: "a <mask>" is two tokens
        mask = AddedToken(MASK_TOKEN, special=True, lstrip=True)
        return (*control, *self.added, mask)

    @property
    def fingerprint(self) -> str:
        """The same for two vocabularies that encode every text to the same ids."""
        hashed: dict[str, Any] = {"ids": self.ids, "merges": self.merges}
        if self.nfc:
            hashed["nfc"] = True
        if self.pattern != "gpt2":
            hashed["pattern"] = self.pattern
        if self.added:
            hashed["added"] = [asdict(token) for token in self.added]

        return fingerprint(hashed)


def lay_out(
    merges: list[tuple[str, str]],
    further: Sequence[str] = (),
    nfc: bool = False,
    pattern: PatternName = "gpt2",
) -> Vocabulary:
    """The vocabulary of a trained tokenizer: special tokens, bytes, merges, further special tokens,
    <mask>."""
    learned = [left + right for left, right in merges]
    tokens = [*SPECIAL_TOKENS, *sorted(byte_symbols()), *learned, *further, MASK_TOKEN]
    ids = {token: number for number, token in enumerate(tokens)}
    assert len(ids) == len(tokens), (
        "two merges made the same token, or one that looks like a special token"
    )
    return Vocabulary(ids, merges, special_tokens(further), nfc, pattern)


# -------------------------------------------------------------------------------------------- files


def save_vocabulary(vocabulary: Vocabulary, folder: Path) -> list[Path]:
    """Write the vocabulary as GPT-2, `tokenizers` and transformers read it; returns the files."""
    merges = "".join(f"{left} {right}\n" for left, right in vocabulary.merges)
    write_atomic(folder / "vocab.json", json.dumps(vocabulary.ids, ensure_ascii=False))
    write_atomic(folder / "merges.txt", "#version: 0.2\n" + merges)
    write_atomic(folder / "tokenizer.json", fast_tokenizer(vocabulary).to_str(pretty=True) + "\n")
    named: dict[str, Any] = dict(_ROLES)
    # transformers 4 knows them by this name; 5 takes it for its own, `extra_special_tokens`
    if further := [token.content for token in vocabulary.added if token.special]:
        named["additional_special_tokens"] = further

    write_json(folder / "special_tokens_map.json", named)
    write_json(
        folder / "tokenizer_config.json",
        {
            # transformers builds a RobertaTokenizer from vocabulary and merges alone, which would
            # lose the normalizer and the pattern
            "tokenizer_class": "RobertaTokenizer"
            if vocabulary.pattern == "gpt2" and not vocabulary.nfc
            else "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "trim_offsets": True,
            "errors": "replace",
            "model_max_length": MODEL_MAX_LENGTH,
            "clean_up_tokenization_spaces": False,
            **named,
            "added_tokens_decoder": {
                str(vocabulary.ids[token.content]): asdict(token) for token in vocabulary.named
            },
        },
    )
    names = [
        "vocab.json",
        "merges.txt",
        "tokenizer.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
    ]
    return [folder / name for name in names]


_ROLES = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": MASK_TOKEN,
}


def fast_tokenizer(vocabulary: Vocabulary) -> Any:
    """The same vocabulary as a `tokenizers.Tokenizer` that adds <s> and </s>, as RoBERTa's does."""
    import tokenizers
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    ids = vocabulary.ids
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=vocabulary.merges))
    if vocabulary.nfc:
        tokenizer.normalizer = normalizers.NFC()

    if vocabulary.pattern == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PATTERNS[vocabulary.pattern]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), trim_offsets=True, add_prefix_space=False
    )
    tokenizer.add_tokens([tokenizers.AddedToken(**asdict(token)) for token in vocabulary.named])
    return tokenizer


# ------------------------------------------------------------------------------------------ reading


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary in a folder: ours, a published one, or any Hugging Face tokenizer of RoBERTa's
    kind.

    `tokenizer.json` says most and is read where it is there, else `vocab.json` and `merges.txt`.
    Raises UserError if a file is missing or is not what it should be, and for a tokenizer of
    another kind with what makes it one."""
    if (path := folder / "tokenizer.json").exists():
        vocabulary = _read_fast_tokenizer(path)
        _check_agreement(vocabulary, folder)
        return vocabulary

    if not (path := folder / "vocab.json").exists():
        for name, kind in _OTHER_KINDS.items():
            if (folder / name).exists():
                raise UserError(f"{folder / name}: {kind}; {_KIND}")

    added = _added_beside(folder)
    beside = {token.content: number for number, token in added.items()}
    ids = _checked_ids({**read_json_object(path), **beside}, path)
    merges = read_merges(folder / "merges.txt", ids)
    return Vocabulary(ids, merges, _further(added))


_KIND = (
    "expected a byte-level BPE in RoBERTa's layout (GPT-2's pre-tokenizer, <s> <pad> </s> <unk>"
    " <mask>)"
)
_OTHER_KINDS = {
    "vocab.txt": "a WordPiece vocabulary, as BERT's",
    "spiece.model": "a SentencePiece model",
    "sentencepiece.bpe.model": "a SentencePiece model, as XLM-RoBERTa's",
    "tokenizer.model": "a SentencePiece or tiktoken model",
}
_NEUTRAL = {
    "dropout": None,
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "byte_fallback": False,
}


def _read_fast_tokenizer(path: Path) -> Vocabulary:
    """The inverse of `fast_tokenizer`, from its file; special tokens may stand beside the model."""
    stored = read_json(path)
    try:
        model, added = stored["model"], stored["added_tokens"]
        if reason := _another_kind(stored):
            raise UserError(f"{path}: {reason}; {_KIND}")

        known = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
        # as "left right" before tokenizers 0.20
        merges = [
            tuple(merge.split(" ") if isinstance(merge, str) else merge)
            for merge in model["merges"]
        ]
        tokens = {token["id"]: _added_token(token) for token in added}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not a file of `tokenizers`; {_KIND}") from None

    ids = _checked_ids(known, path)
    for merge in merges:
        if not _merges_tokens(merge, ids):
            raise UserError(f"{path}: {merge!r} is not a merge of two of its tokens into a third")

    if plain := [token.content for token in tokens.values() if not token.special]:
        raise UserError(
            f"{path}: {plain[0]!r} is an added token, cut out of the text before words are; {_KIND}"
        )

    pattern = _pattern(stored["pre_tokenizer"])
    assert pattern, "of another kind"
    return Vocabulary(ids, merges, _further(tokens), stored["normalizer"] is not None, pattern)


def _added_token(stored: dict[str, Any]) -> AddedToken:
    """Raises KeyError or TypeError for what is none."""
    token = AddedToken(
        stored["content"],
        *(stored[flag] for flag in ("special", "lstrip", "rstrip", "single_word", "normalized")),
    )
    if not isinstance(token.content, str):
        raise TypeError(token.content)
    return token


def _further(added: Mapping[int, AddedToken]) -> tuple[AddedToken, ...]:
    """Of the added tokens of a vocabulary by their ids, those beside RoBERTa's five."""
    return tuple(token for _, token in sorted(added.items()) if token.content not in CONTROL_TOKENS)


def _check_agreement(vocabulary: Vocabulary, folder: Path) -> None:
    """Raises UserError if `vocab.json` or `merges.txt`, where they are there too, say other than
    `tokenizer.json`."""
    if (path := folder / "vocab.json").exists():
        ids = read_json(path)
        # special tokens may stand in tokenizer.json alone
        if not isinstance(ids, dict) or not ids.items() <= vocabulary.ids.items():
            raise UserError(
                f"{path}: other ids than in tokenizer.json beside it; delete the one that is not"
                " right"
            )

    path = folder / "merges.txt"
    if path.exists() and read_merges(path, vocabulary.ids) != vocabulary.merges:
        raise UserError(
            f"{path}: other merges than in tokenizer.json beside it; delete the one that is not"
            " right"
        )


def _another_kind(stored: dict[str, Any]) -> str | None:
    """What makes the file of a tokenizer one of another kind than RoBERTa's, if anything does."""
    model, normalizer, words = stored["model"], stored["normalizer"], stored["pre_tokenizer"]
    if (kind := model.get("type", "BPE")) != "BPE":
        family = {
            "WordPiece": ", as BERT's",
            "Unigram": " (SentencePiece's), as XLM-RoBERTa's",
        }.get(kind, "")
        return f"its model is {kind}{family}"

    for name, neutral in _NEUTRAL.items():
        if (value := model.get(name)) not in (neutral, None):
            return f"its BPE has {name} = {value!r}" + (
                ", as SentencePiece's" if name == "byte_fallback" else ""
            )

    if model.get("ignore_merges"):
        return "its BPE takes whole words without merging (ignore_merges)"
    if normalizer is not None and normalizer.get("type") != "NFC":
        return f"it changes the text first (normalizer {normalizer.get('type')})"
    if words is None:
        return "it does not cut text into words (no pre-tokenizer)"
    if _pattern(words):
        return None
    if words["type"] != "ByteLevel":
        regex = ", so another regex" if words["type"] in ("Sequence", "Split") else ""
        return f"its pre-tokenizer is {words['type']}{regex}"

    if not words.get("use_regex", True):
        return "its pre-tokenizer does not use GPT-2's regex"
    return "it puts a space before the text (add_prefix_space)"


def _pattern(words: dict[str, Any]) -> PatternName | None:
    """The pattern of a pre-tokenizer as `fast_tokenizer` makes it, None for any other."""
    match words:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "gpt2" if words.get("use_regex", True) else None

        case {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": regex},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return next((name for name, known in PATTERNS.items() if known == regex), None)

    return None


@dataclass(frozen=True)
class _Settings:
    """What counts of a `tokenizer_config.json`."""

    add_prefix_space: bool | None = False
    added_tokens_decoder: dict[int, AddedToken] | None = None
    extra_special_tokens: list[str | AddedToken] | dict[str, Any] | None = None
    additional_special_tokens: list[str | AddedToken] | None = None


def _added_beside(folder: Path) -> dict[int, AddedToken]:
    """The special tokens that `tokenizer_config.json` and `added_tokens.json` add where there is no
    tokenizer.json, by their ids.

    Raises UserError if they say what makes it a tokenizer of another kind.
    """
    added: dict[int, AddedToken] = {}
    named: set[str] = set(CONTROL_TOKENS)
    if (path := folder / "tokenizer_config.json").exists():
        settings = _read_typed(path, _Settings)
        if settings.add_prefix_space:
            raise UserError(f"{path}: it puts a space before the text (add_prefix_space); {_KIND}")

        added |= settings.added_tokens_decoder or {}
        for names in (settings.extra_special_tokens, settings.additional_special_tokens):
            named |= {each if isinstance(each, str) else each.content for each in names or ()}

    if (path := folder / "added_tokens.json").exists():
        for name, number in _read_typed(path, dict[str, int]).items():
            added.setdefault(number, AddedToken(name))

    added = {
        number: replace(token, special=token.special or token.content in named)
        for number, token in added.items()
    }
    if plain := sorted(token.content for token in added.values() if not token.special):
        raise UserError(
            f"{folder}: {plain[0]!r} is an added token, cut out of the text before words are;"
            f" {_KIND}"
        )

    return added


def _checked_ids(ids: dict[str, Any], path: Path) -> dict[str, int]:
    if not all(type(number) is int for number in ids.values()) or sorted(ids.values()) != [
        *range(len(ids))
    ]:
        raise UserError(
            f"{path}: expected an object that gives each token one of the ids 0, 1, 2, ..."
        )

    missing = [
        token for token in (*SPECIAL_TOKENS, MASK_TOKEN, *byte_symbols()) if token not in ids
    ]
    if missing:
        raise UserError(
            f"{path}: not a byte-level vocabulary in RoBERTa's layout: without"
            f" {' '.join(missing[:8])}"
        )

    return ids


def read_json(path: Path) -> Any:
    """Raises UserError if the file cannot be read or is not JSON."""
    return _read_typed(path, Any)


def _read_typed(path: Path, kind: type[Kind]) -> Kind:
    try:
        return parse_json(read_text(path), kind)
    except ValueError as fault:
        raise UserError(f"{path}: not JSON of a tokenizer ({fault})") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """As `read_json`; raises UserError, too, unless it is an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object, found {type(value).__name__}")
    return value


def read_merges(path: Path, ids: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges in GPT-2's `vocab.bpe` or a `merges.txt`. Raises UserError unless all are of
    tokens that have ids."""
    merges = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue

        left, _, right = line.partition(" ")
        if not _merges_tokens((left, right), ids):
            raise UserError(
                f"{path}: line {number}: {line[:60]!r} is not a merge of two tokens of the"
                " vocabulary into a third"
            )

        merges.append((left, right))

    return merges


def _merges_tokens(merge: tuple[Any, ...], ids: Mapping[str, Any]) -> bool:
    """Whether a merge is of two tokens into a third; asked 50,000 times for each process, so
    without detours."""
    try:
        left, right = merge
        return left in ids and right in ids and left + right in ids
    except (TypeError, ValueError):
        return False


def read_text(path: Path) -> str:
    """Raises UserError if the file cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); expected the folder of a finished tokenizer stage,"
            " of a published model or of a Hugging Face tokenizer"
        ) from None
