"""Open a folder as a masked language model: one of ours, or any RoBERTa-like checkpoint of Hugging
Face."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForMaskedLM, AutoTokenizer

from robustly import UserError, manifest, tokenizer
from robustly.log import quiet_transformers
from robustly.pretrain.masking import SpecialTokens
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
    """A model with its tokenizer, ready to score text."""

    def __init__(self, model: Any, tokens: Any, encoder: Tokenizer | None):
        self.model = model
        self.tokens = tokens
        """transformers' tokenizer."""
        self.encoder = encoder
        """Ours, faster, where it gives the same ids."""
        self.vocabulary = SpecialTokens(
            len(tokens),
            tokens.cls_token_id,
            tokens.pad_token_id,
            tokens.sep_token_id,
            tokens.mask_token_id,
        )
        rows = model.base_model.embeddings.position_embeddings.num_embeddings
        self.longest = rows - self.vocabulary.pad - 1
        """Tokens of the longest input, <s> and </s> included."""
        sizes = (
            [len(encoder.decode_bytes([number])) for number in range(encoder.vocab_size)]
            if encoder
            else []
        )
        self._bytes = np.array(sizes, np.int64)  # of each token

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """The tokens of each text. Names of special tokens in it are plain text; only a
        SentencePiece vocabulary, which holds them among its pieces, reads them as the tokens."""
        if self.encoder:
            return [
                Encoded(ids.astype(np.int64), self._bytes[ids])
                for ids in self.encoder.encode_documents(texts)
            ]

        found = _encode(self.tokens, texts, return_offsets_mapping=True)

        return [
            Encoded(np.array(ids, np.int64), _token_bytes(text, offsets))
            for text, ids, offsets in zip(
                texts, found["input_ids"], found["offset_mapping"], strict=True
            )
        ]


def open_folder(folder: Path, device: torch.device) -> MaskedLM:
    """Load a checkpoint's model and tokenizer onto a device. Nothing is downloaded.

    Raises UserError, saying what was found, unless it is a folder with a masked language model, all
    of its weights, a position table that counts from the padding id + 1, and a fast tokenizer with
    <mask>."""
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise UserError(
            f"{folder}: {what}; expected a published folder or a Hugging Face checkpoint on this"
            " machine. Names on the Hugging Face Hub are not downloaded: fetch the model first"
            " (`hf download NAME --local-dir FOLDER`)"
        )

    if (folder / manifest.RECIPE).exists():
        manifest.require(folder, "published")

    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no model here (no config.json); expected a published folder or a checkpoint"
        )

    with quiet_transformers():
        model = _load_model(folder)
        tokens = _load_tokenizer(folder)

    _check(folder, model, tokens)
    return MaskedLM(model.eval().to(device), tokens, _fast_encoder(folder, tokens))


def _load_model(folder: Path) -> Any:
    try:
        model, loading = AutoModelForMaskedLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except Exception as error:  # safetensors, torch, transformers and json each raise their own
        raise UserError(
            f"{folder}: cannot be opened as a masked language model: {_first_line(error)}. Expected"
            " config.json of a RoBERTa-like model and its weights, whole"
        ) from error

    if missing := sorted(map(str, loading["missing_keys"])):
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise UserError(
            f"{folder}: {len(missing)} of the model's tensors are not in the checkpoint ({shown}),"
            " and random ones in their place would be scored. Expected a masked language model"
            " with its head, not an encoder alone or one that was fine-tuned for another task"
        )

    return model


def _load_tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"{folder}: its tokenizer cannot be opened: {_first_line(error)}. Expected"
            " tokenizer.json, or the files of a tokenizer that transformers knows"
        ) from error


def _check(folder: Path, model: Any, tokens: Any) -> None:
    """Raises UserError unless the parts are what scoring takes them for."""
    kind = type(model).__name__
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if not hasattr(model, "lm_head") or table is None or table.padding_idx is None:
        raise UserError(
            f"{folder}: {kind} is not RoBERTa-like; expected an encoder with a head `lm_head` and a"
            " table of positions that counts from the padding id + 1 (RoBERTa, XLM-RoBERTa,"
            " CamemBERT and their like)"
        )

    special = {name: getattr(tokens, f"{name}_token_id") for name in ("cls", "pad", "sep", "mask")}
    if missing := [name for name, number in special.items() if number is None]:
        raise UserError(
            f"{folder}: its tokenizer has no {', '.join(missing)} token; expected <s>, <pad>, </s>,"
            " <mask>"
        )
    if not tokens.is_fast:
        raise UserError(
            f"{folder}: its tokenizer ({type(tokens).__name__}) gives no offsets; expected a"
            " tokenizer.json"
        )

    rows = model.get_input_embeddings().num_embeddings
    if len(tokens) > rows or max(special.values()) >= rows or special["pad"] != table.padding_idx:
        raise UserError(
            f"{folder}: tokenizer and model do not belong together: {len(tokens):,} tokens and"
            f" <pad> {special['pad']} against {rows:,} embeddings and padding id"
            f" {table.padding_idx}"
        )


def _fast_encoder(folder: Path, tokens: Any) -> Tokenizer | None:
    """Our encoder of the folder's vocabulary, if it has one and encodes as transformers does."""
    try:
        encoder = tokenizer.load(folder)
    except (
        UserError
    ):  # no byte-level vocabulary in RoBERTa's layout: transformers' tokenizer does it
        return None

    reference = _encode(tokens, _PROBES)["input_ids"]
    ours = [ids.tolist() for ids in encoder.encode_documents(_PROBES)]
    return encoder if ours == reference and encoder.mask_id == tokens.mask_token_id else None


def _encode(tokens: Any, texts: Sequence[str], **more: Any) -> Any:
    return tokens(
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
    before = np.cumsum(
        [0, *(len(character.encode()) for character in text)]
    )  # bytes before each character
    return np.diff(before[ends], prepend=0)[: len(offsets)]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
