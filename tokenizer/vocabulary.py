"""The vocabulary: which token has which id, which pairs merge in which order, and the files that say so.

Layout, as fairseq numbers RoBERTa's special tokens and as `tokenizers` numbers the rest when it trains with the four
special tokens and `ByteLevel.alphabet()`: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, the 256 bytes (by the code point of
their symbol), the merges in order, `<mask>` last.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustly import UserError
from robustly.config import fingerprint
from robustly.manifest import write_atomic, write_json
from tokenizer.config import MASK_TOKEN, SPECIAL_TOKENS

MODEL_MAX_LENGTH = 512  # RoBERTa's; publishing writes the model's own


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte 0..255 in vocabulary files (GPT-2's `bytes_to_unicode`).

    Printable Latin-1 characters stand for themselves, the other 68 bytes for the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in byte-level symbols. Every part and every result of a merge is a token, and so is every byte."""

    ids: dict[str, int]
    """Token -> id; the ids are 0 .. size - 1."""
    merges: list[tuple[str, str]]
    """Pairs in the order in which they merge."""

    @property
    def fingerprint(self) -> str:
        """The same for two vocabularies that encode every text to the same ids."""
        return fingerprint({"ids": self.ids, "merges": self.merges})


def lay_out(merges: list[tuple[str, str]]) -> Vocabulary:
    """The vocabulary of a trained tokenizer: special tokens, bytes, merges, <mask>."""
    tokens = [*SPECIAL_TOKENS, *sorted(byte_symbols()), *(left + right for left, right in merges), MASK_TOKEN]
    ids = {token: number for number, token in enumerate(tokens)}
    assert len(ids) == len(tokens), "two merges made the same token, or one that looks like a special token"
    return Vocabulary(ids, merges)


# ------------------------------------------------------------------------------------------------------ files


def save(vocabulary: Vocabulary, folder: Path) -> list[Path]:
    """Write the vocabulary as GPT-2, `tokenizers` and transformers read it; returns the files."""
    merges = "".join(f"{left} {right}\n" for left, right in vocabulary.merges)
    write_atomic(folder / "vocab.json", json.dumps(vocabulary.ids, ensure_ascii=False))
    write_atomic(folder / "merges.txt", "#version: 0.2\n" + merges)
    write_atomic(folder / "tokenizer.json", fast_tokenizer(vocabulary).to_str(pretty=True) + "\n")
    write_json(folder / "special_tokens_map.json", _SPECIAL_TOKENS_MAP)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "RobertaTokenizer",
            "add_prefix_space": False,
            "trim_offsets": True,
            "errors": "replace",
            "model_max_length": MODEL_MAX_LENGTH,
            "clean_up_tokenization_spaces": False,
            **_SPECIAL_TOKENS_MAP,
            "added_tokens_decoder": {
                str(vocabulary.ids[token]): _added_token(token) for token in (*SPECIAL_TOKENS, MASK_TOKEN)
            },
        },
    )
    names = ["vocab.json", "merges.txt", "tokenizer.json", "special_tokens_map.json", "tokenizer_config.json"]
    return [folder / name for name in names]


def _added_token(token: str) -> dict[str, Any]:
    # <mask> takes the space on its left, as in RoBERTa: "a <mask>" is two tokens
    return {
        "content": token, "lstrip": token == MASK_TOKEN, "rstrip": False, "single_word": False,
        "normalized": False, "special": True,
    }  # fmt: skip


_SPECIAL_TOKENS_MAP = {
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
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    ids = vocabulary.ids
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=vocabulary.merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), trim_offsets=True, add_prefix_space=False
    )
    tokenizer.add_special_tokens([AddedToken(**_added_token(token)) for token in (*SPECIAL_TOKENS, MASK_TOKEN)])
    return tokenizer


def read(folder: Path) -> Vocabulary:
    """The vocabulary in a folder with `vocab.json` and `merges.txt`: ours, a published one, or RoBERTa's own; else the
    one in `tokenizer.json`, all that transformers 5 saves.

    Raises UserError if a file is missing or is not what it should be.
    """
    path = folder / "tokenizer.json"
    if path.exists() and not (folder / "vocab.json").exists():
        return _read_fast_tokenizer(path)
    path = folder / "vocab.json"
    ids = _checked_ids(_read_json(path), path)
    return Vocabulary(ids, _read_merges(folder / "merges.txt", ids))


def _read_fast_tokenizer(path: Path) -> Vocabulary:
    """The inverse of `fast_tokenizer`, from its file; special tokens may stand beside the model."""
    stored = _read_json(path)
    try:
        model, added, splits = stored["model"], stored["added_tokens"], stored["pre_tokenizer"]
        known = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
        # as "left right" before tokenizers 0.20
        merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        byte_level = splits["type"] == "ByteLevel" and splits.get("use_regex", True) and not splits["add_prefix_space"]
        plain = byte_level and stored["normalizer"] is None
    except (KeyError, TypeError, AttributeError):
        plain = False
    if not plain:
        raise UserError(
            f"{path}: not a byte-level BPE in RoBERTa's layout (pre-tokenizer ByteLevel, without a prefix space or a "
            "normalizer)"
        )
    ids = _checked_ids(known, path)
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= ids.keys():
            raise UserError(f"{path}: {merge!r} is not a merge of two of its tokens into a third")
    return Vocabulary(ids, merges)


def _checked_ids(ids: Any, path: Path) -> dict[str, int]:
    if not isinstance(ids, dict) or sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        raise UserError(f"{path}: expected an object that gives each token one of the ids 0, 1, 2, ...")
    missing = [token for token in (*SPECIAL_TOKENS, MASK_TOKEN, *byte_symbols()) if token not in ids]
    if missing:
        raise UserError(f"{path}: not a byte-level vocabulary in RoBERTa's layout: without {' '.join(missing[:8])}")
    return ids


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def _read_merges(path: Path, ids: dict[str, int]) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= ids.keys():
            raise UserError(f"{path}: line {number}: {line!r} is not a merge of two tokens of vocab.json into a third")
        merges.append((left, right))
    return merges


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); expected the folder of a finished tokenizer stage or a published model"
        ) from None
