"""A vocabulary of one's own on a model whose tokenizer is of another kind: each token starts from
the rows of what that tokenizer makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import (
    CamembertConfig,
    CamembertForMaskedLM,
    CamembertTokenizer,
    PreTrainedTokenizerFast,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaTokenizer,
)

from robustly import UserError
from robustly.config import InputPath
from robustly.pretrain.config import ModelConfig
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.objective import new_model, roberta_config
from robustly.pretrain.start.init_from import start_from
from robustly.pretrain.start.model_files import find_model
from robustly.tokenizer.importing import read_imported
from robustly.tokenizer.special_tokens import byte_symbols
from robustly.tokenizer.tokenizer import Tokenizer as OurTokenizer
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary
from tests import small_checkpoints
from tests.small_checkpoints import NAMES

OWN = lay_out(
    [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "g"), ("Ã", "©"), ("g", "a")], ("[ENT]",)
)
PIECES = ["▁the", "▁", "th", "e", "g", "a", "é", "▁g", "t", "h", "1"]
UNKNOWN = "<unk>"


def section(**changes: Any) -> ModelConfig:
    return ModelConfig(
        **{
            "layers": 2, "hidden": 32, "heads": 2, "feed_forward": 64, "positions": 42,
            "token_types": 1, "dropout": 0.0, "attention_dropout": 0.0, "layer_norm_eps": 1e-5,
            "init_std": 0.02, **changes,
        }
    )  # fmt: skip


def config_of(size: int, **changes: Any) -> dict[str, Any]:
    settings = small_checkpoints.config(size, **changes).to_dict()
    return {key: value for key, value in settings.items() if key != "model_type"}


def xlm_roberta(folder: Path) -> Any:
    vocab = [(t, 0.0) for t in ("<s>", "<pad>", "</s>", UNKNOWN)] + [(t, -2.0) for t in PIECES]
    tokenizer = XLMRobertaTokenizer(vocab=[*vocab, ("<mask>", 0.0)])
    return saved(folder, tokenizer, XLMRobertaForMaskedLM, XLMRobertaConfig)


def camembert(folder: Path) -> Any:
    """<s> is 5, </s> 6, as in camembert-base; 0 and 2 are of no use."""
    names = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", UNKNOWN, "<unk>NOTUSED", "<s>", "</s>")
    vocab = [(t, 0.0) for t in names] + [(t, -2.0) for t in PIECES]
    tokenizer = CamembertTokenizer(vocab=[*vocab, ("<mask>", 0.0)])
    return saved(folder, tokenizer, CamembertForMaskedLM, CamembertConfig)


def saved(folder: Path, tokenizer: Any, model: Any, config: Any) -> Any:
    folder.mkdir()
    tokenizer.save_pretrained(folder)
    settings = config(**config_of(len(tokenizer), bos_token_id=tokenizer.bos_token_id))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = model(settings).eval()

    with torch.no_grad():
        made.lm_head.bias.copy_(torch.randn(len(tokenizer)))

    made.save_pretrained(folder)
    return made


def started(folder: Path, settings: ModelConfig, vocabulary: Any = OWN) -> RobertaForMaskedLM:
    made = new_model(roberta_config(settings, SpecialTokens.of(OurTokenizer(vocabulary))), 7)
    start_from(made, find_model(InputPath(str(folder))), settings, vocabulary)
    return made.eval()


@pytest.mark.parametrize("make", [xlm_roberta, camembert])
def test_sentencepiece_gives_its_rows_to_tokens_of_bytes(make: Any, tmp_path: Path) -> None:
    source = make(tmp_path / "there")
    ids = json.loads((tmp_path / "there" / "tokenizer.json").read_text())
    names = [token for token, _ in ids["model"]["vocab"]]
    theirs = source.roberta.embeddings.word_embeddings.weight
    found = started(tmp_path / "there", section())
    ours = found.roberta.embeddings.word_embeddings.weight
    expected = {
        "<s>": ["<s>"], "<pad>": ["<pad>"], "</s>": ["</s>"], "<mask>": ["<mask>"],
        "Ġthe": ["▁the"], "the": ["th", "e"], "Ġg": ["▁g"], "ga": ["g", "a"], "Ã©": ["é"],
        "z": [UNKNOWN], "Ã": [UNKNOWN], "Ġ": ["▁"], "[ENT]": [UNKNOWN],
    }  # fmt: skip
    for token, pieces in expected.items():
        rows = [names.index(piece) for piece in pieces]
        assert torch.allclose(ours[OWN.ids[token]], theirs[rows].mean(0), atol=1e-7), token
        bias = source.lm_head.decoder.bias[rows].mean()
        assert torch.allclose(found.lm_head.bias[OWN.ids[token]], bias), token

    # a text of whole pieces: the very same numbers that transformers computes there
    text = [("<s>", "<s>"), ("Ġthe", "▁the"), ("Ġg", "▁g"), ("<mask>", "<mask>"), ("</s>", "</s>")]
    here = logits(found, [OWN.ids[token] for token, _ in text])
    there = logits(source, [names.index(piece) for _, piece in text])
    for token, piece in text:
        ours, theirs = here[:, OWN.ids[token]], there[:, names.index(piece)]
        assert torch.allclose(ours, theirs, atol=1e-5)


def logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def bytewise(
    folder: Path,
    specials: tuple[str, ...] = ("<s>", "<pad>", "</s>", UNKNOWN, "<mask>"),
    alphabet: str = "".join(byte_symbols()),
    pad: int = 1,
    normalizer: Any = None,
) -> RobertaForMaskedLM:
    """A byte-level BPE with another regex; `pad` is where <pad> is among the special tokens."""
    tokens = [*specials, *alphabet, "th", "the", "Ġthe"]
    ids = {token: number for number, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(ids, [("t", "h"), ("th", "e"), ("Ġ", "the")], dropout=0.5))
    made.add_special_tokens([AddedToken(token, special=True) for token in specials])
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s?\w+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if normalizer:
        made.normalizer = normalizer

    made.decoder = decoders.ByteLevel()
    folder.mkdir()
    PreTrainedTokenizerFast(tokenizer_object=made, **NAMES).save_pretrained(folder)
    positions = 40 + pad + 1
    source = small_checkpoints.model(
        len(tokens), pad_token_id=pad, max_position_embeddings=positions
    ).eval()
    source.save_pretrained(folder)
    return source


@pytest.mark.parametrize(
    "kind",
    [
        {"normalizer": normalizers.Lowercase()},
        {"specials": ("<pad>", "<s>", "</s>", UNKNOWN, "<mask>"), "pad": 0},
        {"specials": ("<mask>", UNKNOWN, "</s>", "<pad>", "<s>"), "pad": 3},
        {"alphabet": "Ġathe"},
    ],
    ids=["another regex, lower case", "<pad> is 0", "<pad> is 3", "few bytes"],
)
def test_special_ids_and_bytes_may_be_others(kind: dict[str, Any], tmp_path: Path) -> None:
    source = bytewise(tmp_path / "there", **kind)
    names = json.loads((tmp_path / "there" / "tokenizer.json").read_text())["model"]["vocab"]
    found = started(tmp_path / "there", section())
    text = ["<s>", "Ġthe", "a", "<mask>", "e", "the", "</s>"]
    here = logits(found, [OWN.ids[token] for token in text])
    there = logits(source, [names[token] for token in text])
    for token in text:
        ours, theirs = here[:, OWN.ids[token]], there[:, names[token]]
        assert torch.allclose(ours, theirs, atol=1e-5)

    unknown = found.roberta.embeddings.word_embeddings.weight[OWN.ids["é"]]
    expected = names.get("é", names[UNKNOWN])
    assert torch.equal(unknown, source.roberta.embeddings.word_embeddings.weight[expected])
    with pytest.raises(UserError, match=r"leave tokenizer.import out"):
        read_imported(InputPath(str(tmp_path / "there")))


def test_more_rows_than_tokens(tmp_path: Path) -> None:
    """Tables are often padded to a multiple of 64; what no token has is left out."""
    source = small_checkpoints.model(320).eval()
    source.save_pretrained(tmp_path / "there")
    save_vocabulary(OWN, tmp_path / "there")
    size = len(OWN.ids)
    assert size < 320
    found = started(tmp_path / "there", section())
    text = [0, 30, 100, OWN.ids["Ġthe"], 2]
    assert found.config.vocab_size == size
    assert torch.equal(logits(found, text), logits(source, text)[:, :size])


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"type_vocab_size": 2}, {"token_types": 2}),
        ({"layer_norm_eps": 1e-12}, {"layer_norm_eps": 1e-12}),
        ({"max_position_embeddings": 130}, {"positions": 130}),
    ],
)
def test_other_dimensions(changes: dict[str, Any], keys: dict[str, Any], tmp_path: Path) -> None:
    source = small_checkpoints.model(len(OWN.ids), **changes).eval()
    source.save_pretrained(tmp_path / "there")
    save_vocabulary(OWN, tmp_path / "there")
    found = started(tmp_path / "there", section(**keys))
    text = [0, 30, 100, OWN.ids["Ġthe"], 2]
    assert torch.equal(logits(found, text), logits(source, text))


# ----------------------------------------------------------------------------------------- refusals


def word_piece(folder: Path) -> None:
    tokens = [*NAMES.values(), "a", "##b"]
    ids = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    made = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN))
    PreTrainedTokenizerFast(tokenizer_object=made, **NAMES).save_pretrained(folder)


def other_names(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<pad>", "[PAD]"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (word_piece, r"tokenizer|neither in symbols of bytes nor SentencePiece's"),
        (other_names, r"its tokenizer has no <pad>; expected RoBERTa's special tokens"),
        (
            lambda folder: (folder / "tokenizer.json").write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
            ),
            "tokenizer.json: .* a pointer of Git LFS",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{}"),
            "tokenizer.json: not a file of `tokenizers`",
        ),
    ],
)
def test_tokens_that_cannot_be_read_are_refused(spoil: Any, message: str, tmp_path: Path) -> None:
    small_checkpoints.ours(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        started(tmp_path, section())


def test_sentencepiece_alone_is_told_how_to_become_a_file_of_tokenizers(tmp_path: Path) -> None:
    xlm_roberta(tmp_path / "there")
    (tmp_path / "there" / "tokenizer.json").unlink()
    for path in (tmp_path / "there").glob("tokenizer_config.json"):
        path.unlink()

    (tmp_path / "there" / "sentencepiece.bpe.model").write_bytes(b"\n")
    with pytest.raises(UserError, match=r"a SentencePiece model.*Save its tokenizer.json"):
        started(tmp_path / "there", section())
