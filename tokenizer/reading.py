"""Read a vocabulary: of a folder of ours, a published one, or any Hugging Face tokenizer of
RoBERTa's kind, told from those of other kinds."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.files import check_fetched
from robustly.strict_json import Kind, parse_json
from robustly.tokenizer.added_tokens import AddedToken, special_tokens
from robustly.tokenizer.special_tokens import (
    CONTROL_TOKENS,
    MASK_TOKEN,
    SPECIAL_TOKENS,
    byte_symbols,
)
from robustly.tokenizer.vocabulary import FILLER, ROBERTA_MASK, Vocabulary
from robustly.tokenizer.words import PATTERNS, PatternName


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary in a folder: ours, a published one, or any Hugging Face tokenizer of RoBERTa's
    kind.

    `tokenizer.json` says most and is read where it is there, else `vocab.json` and `merges.txt`.
    Raises UserError if a file is missing or is not what it should be, and for a tokenizer of
    another kind with what makes it one."""
    path = folder / "tokenizer_config.json"
    settings = _read_typed(path, _Settings) if path.exists() else _Settings()
    if (path := folder / "tokenizer.json").exists():
        vocabulary = _read_fast_tokenizer(path)
        _check_agreement(vocabulary, folder)
        if vocabulary.pattern == "gpt2" and settings.decides(folder):
            vocabulary = replace(vocabulary, prefix_space=bool(settings.add_prefix_space))

        _check_added(vocabulary, path)
        return vocabulary

    if not (path := folder / "vocab.json").exists():
        for name, kind in _OTHER_KINDS.items():
            if (folder / name).exists():
                raise UserError(f"{folder / name}: {kind}; {_KIND}")

    added = _added_beside(folder, settings)
    beside = {token.content: number for number, token in added.items()}
    vocab = read_json_object(path)
    ids = _checked_ids({**vocab, **beside}, path)
    _check_ids_of_added(vocab, dict(sorted(added.items())), path)
    merges = read_merges(folder / "merges.txt", ids)
    prefix_space, mask = bool(settings.add_prefix_space), _mask_among(added, ids)
    vocabulary = Vocabulary(ids, merges, _further(added), False, "gpt2", prefix_space, mask)
    _check_added(vocabulary, path)
    return vocabulary


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
    _check_ids_of_added(model["vocab"], tokens, path)
    for merge in merges:
        if not _merges_tokens(merge, ids):
            raise UserError(f"{path}: {merge!r} is not a merge of two of its tokens into a third")

    words = _alone(stored["pre_tokenizer"])
    pattern = _pattern(words) if words else None
    assert words and pattern, "of another kind"
    nfc = _alone(stored["normalizer"]) is not None
    prefix_space = words.get("add_prefix_space", False)
    mask = _mask_among(tokens, ids)
    return Vocabulary(ids, merges, _further(tokens), nfc, pattern, prefix_space, mask)


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


def _mask_among(added: Mapping[int, AddedToken], ids: Mapping[str, int]) -> AddedToken:
    return replace(added.get(ids[MASK_TOKEN], ROBERTA_MASK), special=True)


def _check_added(vocabulary: Vocabulary, path: Path) -> None:
    """Raises UserError if the name of an added token is written as other bytes are, whose id it
    then has: a text with that name would be lost."""
    of_bytes = {*byte_symbols(), *(left + right for left, right in vocabulary.merges)}
    for token in vocabulary.added:
        if not token.content.isascii() and token.content in of_bytes:
            raise UserError(
                f"{path}: {token.content!r} is an added token, and the same entry stands for other"
                " bytes, so that neither can be told from the other; give it another name"
            )


def _check_ids_of_added(
    vocab: Mapping[str, int], added: Mapping[int, AddedToken], path: Path
) -> None:
    """Raises UserError if an added token has another id than `tokenizers` gives it, whatever the
    file says: the model's, or the next one."""
    last = -1  # of the added tokens before it
    for number, token in added.items():
        given = vocab.get(token.content, max(len(vocab), last + 1))
        if number != given:
            raise UserError(
                f"{path}: {token.content!r} has the id {number}, but `tokenizers` gives it {given},"
                " whatever the file says, so that transformers gives other ids than the file; load"
                " and save it with transformers, and see that the model has its row there"
            )
        last = max(last, number)


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
    model = stored["model"]
    normalizer, words = _alone(stored["normalizer"]), _alone(stored["pre_tokenizer"])
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

    return "its pre-tokenizer does not use GPT-2's regex"


def _alone(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer out of the sequence in which it is the only one; None for an
    empty sequence."""
    match step:
        case {"type": "Sequence", "normalizers": [] | [_] as steps}:
            return _alone(steps[0]) if steps else None
        case {"type": "Sequence", "pretokenizers": [] | [_] as steps}:
            return _alone(steps[0]) if steps else None

    return step


def _pattern(words: dict[str, Any]) -> PatternName | None:
    """The pattern of a pre-tokenizer as `fast_tokenizer` makes it, None for any other."""
    match words:
        case {"type": "ByteLevel", "add_prefix_space": True | False}:
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

    tokenizer_class: str | None = None
    add_prefix_space: bool | None = False
    added_tokens_decoder: dict[int, AddedToken] | None = None
    extra_special_tokens: list[str | AddedToken] | dict[str, Any] | None = None
    additional_special_tokens: list[str | AddedToken] | None = None

    def decides(self, folder: Path) -> bool:
        """Whether transformers, which opens the folder, takes the space before a text from here and
        not from tokenizer.json: its classes for one kind of tokenizer do. Where none is named, the
        model's kind tells the class."""
        if self.tokenizer_class is None:
            return (folder / "config.json").exists()
        return self.tokenizer_class not in ("PreTrainedTokenizerFast", "TokenizersBackend")


def _added_beside(folder: Path, settings: _Settings) -> dict[int, AddedToken]:
    """The tokens that `tokenizer_config.json` and `added_tokens.json` add where there is no
    tokenizer.json, by their ids."""
    added = dict(settings.added_tokens_decoder or {})
    special = {token.content: token for token in special_tokens(CONTROL_TOKENS)}
    for names in (settings.extra_special_tokens, settings.additional_special_tokens):
        tokens = (AddedToken(each) if isinstance(each, str) else each for each in names or ())
        special |= {token.content: replace(token, special=True) for token in tokens}

    if (path := folder / "added_tokens.json").exists():
        for name, number in _read_typed(path, dict[str, int]).items():
            added.setdefault(number, special.get(name, AddedToken(name, normalized=True)))

    return {
        number: replace(token, special=token.special or token.content in special)
        for number, token in added.items()
    }


def _checked_ids(ids: dict[str, Any], path: Path) -> dict[str, int]:
    """The ids with a name for each that no token has, as fairseq names those that fill its
    dictionary up. Raises UserError if they are not ids, or not of a byte-level vocabulary."""
    numbers = {number for number in ids.values() if type(number) is int and number >= 0}
    if len(numbers) < len(ids) or max(numbers, default=0) >= 2 * len(ids):
        raise UserError(
            f"{path}: expected an object that gives each token one of the ids 0, 1, 2, ..., each of"
            " them once"
        )

    missing = [
        token for token in (*SPECIAL_TOKENS, MASK_TOKEN, *byte_symbols()) if token not in ids
    ]
    if missing:
        raise UserError(
            f"{path}: not a byte-level vocabulary in RoBERTa's layout: without"
            f" {' '.join(missing[:8])}"
        )

    names = (name for n in itertools.count() if (name := f"{FILLER}{n:04d}") not in ids)
    holes = sorted(set(range(max(numbers))) - numbers)
    return {**ids, **dict(zip(names, holes, strict=False))} if holes else ids


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
        check_fetched(path)
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); expected the folder of a finished tokenizer stage,"
            " of a published model or of a Hugging Face tokenizer"
        ) from None
