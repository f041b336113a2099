"""A model and its tokenizer, ready to score text: one of ours, or any RoBERTa-like checkpoint of
Hugging Face."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from robustly import UserError
from robustly.log import quiet_transformers
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.start.model_files import find_folder
from robustly.pretrain.start.open_model import check_tokens, first_line, open_model
from robustly.resources import check_memory
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.tokenizer import Tokenizer

LONGEST = 512  # tokens of a block, where the model takes more
_PROBES = ("The cat sat.", " two  spaces\n\n1234 naïve 日本 🙂", "it's <s> I'll\t<mask> </s>")


class Encoded(NamedTuple):
    """A text as tokens, without special ones."""

    ids: NDArray[np.int64]
    """(tokens,)."""
    bytes: NDArray[np.int64]
    """(tokens,): UTF-8 bytes of the text that each token stands for, white space with the token
    that follows."""


class MaskedLM:
    """A model with its tokenizer."""

    def __init__(self, model: Any, hf_tokenizer: Any, ours: Tokenizer | None):
        self.model = model
        self.hf_tokenizer = hf_tokenizer
        """transformers' own."""
        self.tokenizer = ours
        """Ours, faster; None where it would give other ids."""
        self.special = SpecialTokens(
            len(hf_tokenizer),
            hf_tokenizer.cls_token_id,
            hf_tokenizer.pad_token_id,
            hf_tokenizer.sep_token_id,
            hf_tokenizer.mask_token_id,
        )
        rows = model.base_model.embeddings.position_embeddings.num_embeddings
        self.longest = rows - self.special.pad - 1
        """Tokens of the longest input, <s> and </s> included."""
        sizes = [len(ours.decode_bytes([i])) for i in range(ours.vocab_size)] if ours else []
        self._bytes = np.array(sizes, np.int64)  # of each token

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """The tokens of each text. Names of special tokens in it are plain text; only a
        SentencePiece vocabulary, which holds them among its pieces, reads them as the tokens."""
        if self.tokenizer:
            return [
                Encoded(ids.astype(np.int64), self._bytes[ids])
                for ids in self.tokenizer.encode_documents(texts)
            ]

        found = _encode(self.hf_tokenizer, texts, return_offsets_mapping=True)
        return [
            Encoded(np.array(ids, np.int64), _token_bytes(text, offsets))
            for text, ids, offsets in zip(
                texts, found["input_ids"], found["offset_mapping"], strict=True
            )
        ]


def open_masked_lm(folder: Path, device: torch.device) -> MaskedLM:
    """Open a folder's model and tokenizer on a device. Nothing is downloaded.

    Raises UserError, saying what was found, unless it is a folder with a masked language model, all
    of its weights, a position table that counts from the padding id + 1, and a fast tokenizer with
    <mask>."""
    model = open_model(find_folder(folder)).model
    _check_model(folder, model)
    hf_tokenizer = _open_tokenizer(folder)
    highest = max(hf_tokenizer.cls_token_id, hf_tokenizer.sep_token_id, hf_tokenizer.mask_token_id)
    check_tokens(str(folder), model, max(len(hf_tokenizer), highest + 1), hf_tokenizer.pad_token_id)
    return MaskedLM(model.to(device), hf_tokenizer, _our_tokenizer(folder, hf_tokenizer))


def _check_model(folder: Path, model: Any) -> None:
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if not hasattr(model, "lm_head") or table is None or table.padding_idx is None:
        raise UserError(
            f"{folder}: {type(model).__name__} is not RoBERTa-like; expected an encoder with a head"
            " `lm_head` and a table of positions that counts from the padding id + 1 (RoBERTa,"
            " XLM-RoBERTa, CamemBERT and their like)"
        )


def _open_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer. Raises UserError unless it has all special tokens and gives
    offsets."""
    try:
        with quiet_transformers():
            hf_tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # each kind of tokenizer raises its own
        check_memory(error, folder)
        raise UserError(
            f"{folder}: its tokenizer cannot be opened: {first_line(error)}. Expected"
            " tokenizer.json, or the files of a tokenizer that transformers knows"
        ) from error

    special = {
        name: getattr(hf_tokenizer, f"{name}_token_id") for name in ("cls", "pad", "sep", "mask")
    }
    if missing := [name for name, number in special.items() if number is None]:
        raise UserError(
            f"{folder}: its tokenizer has no {', '.join(missing)} token; expected <s>, <pad>, </s>,"
            " <mask>"
        )
    if not hf_tokenizer.is_fast:
        raise UserError(
            f"{folder}: its tokenizer ({type(hf_tokenizer).__name__}) gives no offsets; expected a"
            " tokenizer.json"
        )

    return hf_tokenizer


def _our_tokenizer(folder: Path, hf_tokenizer: Any) -> Tokenizer | None:
    """Our tokenizer of the folder's vocabulary, if it has one and encodes as transformers does."""
    try:
        ours = load_tokenizer(folder)
    except UserError:  # no byte-level vocabulary in RoBERTa's layout
        return None

    expected = _encode(hf_tokenizer, _PROBES)["input_ids"]
    found = [ids.tolist() for ids in ours.encode_documents(_PROBES)]
    return ours if found == expected and ours.mask_id == hf_tokenizer.mask_token_id else None


def _encode(hf_tokenizer: Any, texts: Sequence[str], **more: Any) -> Any:
    return hf_tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        truncation=False,
        verbose=False,
        **more,
    )


def _token_bytes(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """UTF-8 bytes from the end of one token to the end of the next; `offsets` count characters.

    Tokens that share a character, as bytes of it do, leave it to the first of them.
    """
    ends = np.maximum.accumulate(np.array([end for _, end in offsets] or [0], np.int64))
    before_each = np.cumsum([0, *(len(character.encode()) for character in text)])
    return np.diff(before_each[ends], prepend=0)[: len(offsets)]
