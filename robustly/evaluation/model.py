"""A model and its tokenizer, ready to score text: one of ours, or any encoder with a masked-LM head
that transformers opens (RoBERTa, BERT, ModernBERT, ...)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoTokenizer

from robustly import UserError
from robustly.evaluation.scoring import scores_at
from robustly.log import quiet_transformers
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.start.model_files import find_folder
from robustly.pretrain.start.open_model import check_tokens, first_line, open_model
from robustly.resources import check_memory
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.added_tokens import probes
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
        if ours:  # which words its tokens begin, too
            self.special = SpecialTokens.of(ours)

        self.longest = longest_input(model)
        """Tokens of the longest input, <s> and </s> included."""

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """The tokens of each text. Names of special tokens with a part of their own (_CONTROL) are
        plain text in it, as are all others beside them; only a SentencePiece vocabulary, which
        holds them among its pieces, reads them as the tokens."""
        if self.tokenizer:
            return [
                Encoded(ids.astype(np.int64), np.diff(self.tokenizer.byte_offsets(ids)))
                for ids in self.tokenizer.encode_documents(texts)
            ]

        return [
            Encoded(np.array(ids, np.int64), _token_bytes(text, offsets))
            for text, (ids, offsets) in zip(texts, _encode(self.hf_tokenizer, texts), strict=True)
        ]


def open_masked_lm(folder: Path, device: torch.device) -> MaskedLM:
    """Open a folder's model and tokenizer on a device. Nothing is downloaded.

    Raises UserError, saying what was found, unless it is a folder with an encoder for masked
    language modeling that can be scored (`_check_scores`), all of its weights, and a fast tokenizer
    with a mask token."""
    model = open_model(find_folder(folder)).model
    _check_encoder(folder, model)
    hf_tokenizer = _open_tokenizer(folder)
    highest = max(hf_tokenizer.cls_token_id, hf_tokenizer.sep_token_id, hf_tokenizer.mask_token_id)
    check_tokens(str(folder), model, max(len(hf_tokenizer), highest + 1), hf_tokenizer.pad_token_id)
    lm = MaskedLM(model, hf_tokenizer, _our_tokenizer(folder, hf_tokenizer))
    _check_scores(folder, lm)
    model.to(device)
    return lm


def longest_input(model: Any) -> int:
    """Tokens of the longest input, special ones included: the rows of the position table, less
    those before the first position where it counts from the padding id + 1 as RoBERTa's does; what
    the config says where there is no table."""
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    rows = getattr(table, "num_embeddings", None)
    longest = int(getattr(model.config, "max_position_embeddings", None) or rows or LONGEST)
    if rows is not None:
        longest = min(longest, rows)

    counted_from = getattr(table, "padding_idx", None)
    return longest if counted_from is None else longest - counted_from - 1


_EXPECTED = (
    "expected an encoder that takes an attention mask and whose head scores each position by its"
    " hidden state (RoBERTa, BERT, ModernBERT and their like)"
)


def _check_encoder(folder: Path, model: Any) -> None:
    words = model.get_input_embeddings()
    if (
        model.config.is_encoder_decoder
        or model.base_model is model
        or not isinstance(words, nn.Embedding)
    ):
        name = type(model).__name__
        raise UserError(f"{folder}: {name} cannot be evaluated here; {_EXPECTED}")


_SHORT, _LONG = 7, 12  # tokens of the two inputs that a model is tried with
_SOME = 5  # of their positions that its head is given at a time
_CLOSE = 1e-3  # logits have magnitude 10; they differ by rounding


@torch.no_grad()
def _check_scores(folder: Path, lm: MaskedLM) -> None:
    """Raises UserError unless the model's scores are those of each token in its own input: the same
    beside a longer one, and from the head at some positions alone; and it takes its longest input.
    """
    name, special = type(lm.model).__name__, lm.special
    count = min(_LONG, lm.longest)
    ids = torch.arange(2 * count).reshape(2, count) % special.size
    ids[ids == special.pad] = special.mask
    mask = torch.ones_like(ids)
    mask[1, _SHORT:], ids[1, _SHORT:] = 0, special.pad
    targets = mask.bool()
    longest = torch.full((1, min(lm.longest, LONGEST)), special.mask)
    first = torch.arange(longest.shape[1])[None] == 0

    try:
        alone = lm.model(input_ids=ids[1:, :_SHORT]).logits[0].float()
        together = lm.model(input_ids=ids, attention_mask=mask).logits[targets].float()
        some = (slice(begin, begin + _SOME) for begin in range(0, len(together), _SOME))
        found = torch.cat([*map(scores_at(lm.model, ids, mask, targets), some)])
        scores_at(lm.model, longest, torch.ones_like(longest), first)(slice(1))
    except Exception as error:  # each model raises its own
        check_memory(error, folder)
        raise UserError(
            f"{folder}: {name} cannot be evaluated here ({first_line(error)}); {_EXPECTED}"
        ) from error

    scale = max(1.0, float(together.abs().max()))
    same = found.shape == together.shape and (found - together).abs().max() <= _CLOSE * scale
    if not same or (together[-len(alone) :] - alone).abs().max() > _CLOSE * scale:
        what = "of an input beside a longer one" if same else "of some positions alone"
        raise UserError(
            f"{folder}: {name} cannot be evaluated here: its scores {what} are others; {_EXPECTED}"
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
            f"{folder}: its tokenizer has no {', '.join(missing)} token; expected a token that"
            " begins each input, one that ends it, padding and a mask (<s>, </s>, <pad>, <mask>; or"
            " [CLS], [SEP], [PAD], [MASK])"
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

    texts = [*_PROBES, *probes(ours.vocabulary.added)]
    expected = [ids for ids, _ in _encode(hf_tokenizer, texts)]
    found = [ids.tolist() for ids in ours.encode_documents(texts)]
    return ours if found == expected and ours.mask_id == hf_tokenizer.mask_token_id else None


_CONTROL = ("bos", "eos", "cls", "sep", "pad", "mask", "unk")


def _encode(
    hf_tokenizer: Any, texts: Sequence[str]
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """The ids of each text, and where each token stands in it.

    transformers takes all names of special tokens for text, or none: it is asked for the former
    where a control token's name stands in the text."""
    names = [getattr(hf_tokenizer, f"{name}_token") for name in _CONTROL]
    controls = [name for name in names if name]
    result: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}

    for plain in (False, True):
        places = [
            place
            for place, text in enumerate(texts)
            if any(name in text for name in controls) == plain
        ]
        if not places:
            continue

        found = hf_tokenizer(
            [texts[place] for place in places],
            add_special_tokens=False,
            split_special_tokens=plain,
            return_offsets_mapping=True,
            truncation=False,
            verbose=False,
        )
        result |= zip(
            places, zip(found["input_ids"], found["offset_mapping"], strict=True), strict=True
        )

    return [result[place] for place in range(len(texts))]


def _token_bytes(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """UTF-8 bytes from the end of one token to the end of the next; `offsets` count characters.

    Tokens that share a character, as bytes of it do, leave it to the first of them.
    """
    ends = np.maximum.accumulate(np.array([end for _, end in offsets] or [0], np.int64))
    before_each = np.cumsum([0, *(len(character.encode()) for character in text)])
    return np.diff(before_each[ends], prepend=0)[: len(offsets)]
