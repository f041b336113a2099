"""The vocabulary, ids of tokens and the order of merges, and the files that are written of it.

Layout, as fairseq numbers RoBERTa's special tokens and as `tokenizers` numbers the rest when it
trains with the four special tokens and `ByteLevel.alphabet()`: `<s>` 0, `<pad>` 1, `</s>` 2,
`<unk>` 3, the 256 bytes (by the code point of their symbol), the merges in order, further special
tokens, `<mask>` last. A vocabulary that is read or imported keeps the ids that it has: RoBERTa's
own are in the order of fairseq's dictionary, by frequency."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robustly.config import fingerprint
from robustly.files import write_atomic, write_json
from robustly.tokenizer.added_tokens import AddedToken, special_tokens
from robustly.tokenizer.special_tokens import (
    MASK_TOKEN,
    SPECIAL_TOKENS,
    byte_symbols,
)
from robustly.tokenizer.words import PATTERNS, PatternName

FILLER = "madeupword"  # fairseq fills its dictionary up with these to a multiple of 8
# takes the space on its left, as in RoBERTa: "a <mask>" is two tokens
ROBERTA_MASK = AddedToken(MASK_TOKEN, special=True, lstrip=True)
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
    prefix_space: bool = False
    """Whether a text that does not begin with a space gets one before it is encoded, so that its
    first word is the token that it is elsewhere; the same after each added token."""
    mask: AddedToken = ROBERTA_MASK
    """<mask> as transformers cuts it out of a text; to us its name is plain text."""

    @property
    def named(self) -> tuple[AddedToken, ...]:
        """All tokens that are written as their names, RoBERTa's five among them, in the order of a
        trained vocabulary's ids."""
        control = [AddedToken(token, special=True) for token in SPECIAL_TOKENS]
        return (*control, *self.added, self.mask)

    @property
    def is_roberta_tokenizer(self) -> bool:
        """Whether transformers' RobertaTokenizer gives its ids: built from tokens, merges and added
        tokens alone, it knows no normalizer and no other pattern."""
        return self.pattern == "gpt2" and not self.nfc

    @property
    def keeps_bytes(self) -> bool:
        """Whether the ids of any text stand for its very bytes."""
        return not (self.nfc or self.prefix_space or self.added)

    @property
    def fingerprint(self) -> str:
        """The same for two vocabularies that encode every text to the same ids."""
        hashed: dict[str, Any] = {"ids": self.ids, "merges": self.merges}
        if self.nfc:
            hashed["nfc"] = True
        if self.pattern != "gpt2":
            hashed["pattern"] = self.pattern
        if self.prefix_space:
            hashed["prefix_space"] = True
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
            "tokenizer_class": "RobertaTokenizer"
            if vocabulary.is_roberta_tokenizer
            else "PreTrainedTokenizerFast",
            "add_prefix_space": vocabulary.prefix_space,
            "trim_offsets": True,
            "errors": "replace",
            "model_max_length": MODEL_MAX_LENGTH,
            "clean_up_tokenization_spaces": False,
            # RobertaTokenizer's; transformers 4 would give PreTrainedTokenizerFast token types
            "model_input_names": ["input_ids", "attention_mask"],
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
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(vocabulary.prefix_space)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PATTERNS[vocabulary.pattern]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]),
        ("<s>", ids["<s>"]),
        trim_offsets=True,
        add_prefix_space=vocabulary.prefix_space,
    )
    tokenizer.add_tokens([tokenizers.AddedToken(**asdict(token)) for token in vocabulary.named])
    return tokenizer
