"""Starting from a checkpoint: the same logits, rows for other tokens, longer positions; what does
not fit is named."""

import argparse
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

from robustly import UserError, manifest
from robustly.config import InputPath
from robustly.files import sha256
from robustly.manifest import Stage
from robustly.pretrain.config import FairseqCheckpoint, ModelConfig
from robustly.pretrain.flops import parameters
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.objective import MaskedLanguageModel, new_model, roberta_config
from robustly.pretrain.start import init_from
from robustly.pretrain.start.init_from import longer, mean_rows, start_from
from robustly.pretrain.start.model_files import ModelFiles, find_model
from robustly.pretrain.start.source_tokens import SourceTokens
from robustly.tokenizer.special_tokens import byte_symbols
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import Vocabulary, fast_tokenizer, lay_out, save_vocabulary

SECTION = ModelConfig(
    layers=2, hidden=16, heads=2, feed_forward=24, positions=12, token_types=1, dropout=0.0, attention_dropout=0.0,
    layer_norm_eps=1e-5, init_std=0.02,
)  # fmt: skip
OLD = lay_out([("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ã", "¤")])
NEW = lay_out(
    [("i", "n"), ("in", "g"), ("t", "h"), ("Ġ", "th"), ("th", "in"), ("Ã", "¤"), ("Ã¤", "Ã¤")],
    ("[ENT]",),
)


def model_of(
    section: ModelConfig, vocabulary: Vocabulary, seed: int, std: float = 0.02
) -> RobertaForMaskedLM:
    """A model whose parameters are all different from their neighbours', biases included."""
    config = roberta_config(
        section.model_copy(update={"init_std": std}), SpecialTokens.of(Tokenizer(vocabulary))
    )
    model = new_model(config, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)

    return model


@pytest.fixture
def source() -> RobertaForMaskedLM:
    return model_of(SECTION, OLD, 1)


@pytest.fixture
def folder(source: RobertaForMaskedLM, tmp_path: Path) -> Path:
    """The checkpoint as a Hugging Face folder."""
    source.save_pretrained(tmp_path / "hf")
    save_vocabulary(OLD, tmp_path / "hf")
    return tmp_path / "hf"


def test_a_run_that_keeps_its_best_checkpoint_too_starts_from_its_last(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    words = Stage(tmp_path / "tokenizer", "tokenizer", {}, {})
    words.finish(save_vocabulary(OLD, tmp_path / "tokenizer"), {})
    train = Stage(tmp_path / "train", "train", {}, {"tokenizer": words.hash})

    with train.begin():
        files = [
            tmp_path / f"train/checkpoints/update-{update:08d}/weights.safetensors"
            for update in (4, 12, 8)
        ]
        for file in files:
            file.parent.mkdir(parents=True)
            file.write_bytes(b"weights")

        train.finish(files, {})

    assert find_model(InputPath(str(tmp_path), tmp_path)).weights == (files[1],)


def start(
    files: ModelFiles, section: ModelConfig = SECTION, vocabulary: Vocabulary = OLD
) -> RobertaForMaskedLM:
    model = new_model(roberta_config(section, SpecialTokens.of(Tokenizer(vocabulary))), 7).eval()
    start_from(model, files, section, vocabulary)
    return model


def start_from_path(
    path: Path | FairseqCheckpoint, section: ModelConfig = SECTION, vocabulary: Vocabulary = OLD
) -> RobertaForMaskedLM:
    found = find_model(
        path if isinstance(path, FairseqCheckpoint) else InputPath(str(path), Path("/nowhere"))
    )
    return start(found, section, vocabulary)


def logits(model: RobertaForMaskedLM) -> torch.Tensor:
    ids = torch.tensor([[0, 8, 100, 260, 263, 264, 265, 30, 2, 1]])
    objective = MaskedLanguageModel(model.eval())
    with torch.no_grad():
        hidden = objective.encode(ids, (ids != 1).long())
        return objective.scores(hidden, torch.arange(9)).computed()


# ------------------------------------------------------------------------------------- Hugging Face


@pytest.mark.parametrize("kind", ["safetensors", "pytorch_model.bin", "shards", "half", "pooler"])
def test_a_hugging_face_folder_gives_the_same_logits(
    folder: Path, source: RobertaForMaskedLM, kind: str
) -> None:
    if (
        kind == "pytorch_model.bin"
    ):  # as transformers wrote it until 2023: tied tensors twice, a buffer
        (folder / "model.safetensors").unlink()
        state = {**source.state_dict(), "roberta.embeddings.position_ids": torch.arange(12)[None]}
        assert "lm_head.decoder.weight" in state
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif kind == "shards":
        (folder / "model.safetensors").unlink()
        source.save_pretrained(folder, max_shard_size="10KB")
        assert (folder / "model.safetensors.index.json").exists() and not (
            folder / "model.safetensors"
        ).exists()
    elif kind == "half":
        source.to(torch.bfloat16).save_pretrained(folder)
        source.float()
    elif kind == "pooler":
        from safetensors.torch import load_file, save_file

        state = load_file(folder / "model.safetensors")
        save_file(
            {**state, "roberta.pooler.dense.bias": torch.zeros(16)}, folder / "model.safetensors"
        )

    assert torch.equal(logits(start_from_path(folder)), logits(source))
    assert not torch.equal(logits(model_of(SECTION, OLD, 2)), logits(source))


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_dimension_that_differs_is_named(folder: Path) -> None:
    page = SECTION.model_copy(
        update={
            "layers": 3, "hidden": 32, "heads": 4, "feed_forward": 48, "positions": 10, "token_types": 2,
            "layer_norm_eps": 1e-12,
        }
    )  # fmt: skip
    with pytest.raises(UserError) as found:
        start_from_path(folder, page)

    for line in (
        "model.layers: 2 there, 3 in the config", "model.hidden: 16 there, 32 in the config",
        "model.heads: 2 there, 4 in the config", "model.feed_forward: 24 there, 48 in the config",
        "model.positions: 12 there, 10 in the config", "model.token_types: 1 there, 2 in the config",
        "model.layer_norm_eps: 1e-05 there, 1e-12 in the config",
    ):  # fmt: skip
        assert line in str(found.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "bert"}, "model_type = 'bert'; expected roberta"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"pad_token_id": 0}, "do not belong together: .* padding id 0"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
    ],
)
def test_another_kind_of_model_is_refused(
    folder: Path, settings: dict[str, Any], message: str
) -> None:
    rewrite(folder / "config.json", **settings)
    with pytest.raises(UserError, match=message):
        start_from_path(folder)


def test_other_folders_are_refused_with_what_they_are(folder: Path, tmp_path: Path) -> None:
    bert = tmp_path / "bert"
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    BertForMaskedLM(BertConfig(vocab_size=300, **small)).save_pretrained(bert)
    with pytest.raises(UserError, match="model_type = 'bert'"):
        start_from_path(bert)

    sentencepiece = tmp_path / "xlm"
    sentencepiece.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, sentencepiece / name)

    rewrite(sentencepiece / "config.json", model_type="xlm-roberta")
    (sentencepiece / "sentencepiece.bpe.model").write_bytes(b"\n")
    with pytest.raises(UserError, match="a SentencePiece model, as XLM-RoBERTa's"):
        start_from_path(sentencepiece)

    encoder = tmp_path / "encoder"
    RobertaModel(RobertaConfig.from_pretrained(folder)).save_pretrained(encoder)
    save_vocabulary(OLD, encoder)
    with pytest.raises(
        UserError, match=r"tensors are missing \(lm_head.bias, .*not an encoder alone"
    ):
        start_from_path(encoder)

    with pytest.raises(UserError, match=r"not there; looked at .*hf download"):
        start_from_path(tmp_path / "nothing")

    with pytest.raises(UserError, match=r"a file; expected a Hugging Face folder"):
        start_from_path(folder / "config.json")

    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"model.safetensors: cannot be read"):
        start_from_path(folder)

    (folder / "model.safetensors").unlink()

    with pytest.raises(
        UserError,
        match=r"its weights are not there; looked for model.safetensors, .*, pytorch_model.bin",
    ):
        start_from_path(folder)


@pytest.mark.parametrize("saved", ["untied", "as transformers 4 saved it", "tied in config.json"])
def test_an_output_layer_of_its_own_stays_one(folder: Path, saved: str) -> None:
    """Its bias is kept once or twice; the tensors decide, not what config.json says of them."""
    untied = SECTION.model_copy(update={"tied_head": False})
    source = model_of(untied, OLD, 3)
    source.config.save_pretrained(folder)
    if saved == "tied in config.json":
        rewrite(folder / "config.json", tie_word_embeddings=True)

    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    if saved == "as transformers 4 saved it":
        del state["lm_head.decoder.bias"]

    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.tied_head: False there, True in the config"):
        start_from_path(folder)

    started = start_from_path(folder, untied)
    assert torch.equal(logits(started), logits(source))
    if saved != "as transformers 4 saved it":  # where version 5 takes 0 for the bias
        reference = RobertaForMaskedLM.from_pretrained(folder)
        assert torch.equal(logits(started), logits(reference))

    other = start_from_path(folder, untied, NEW)
    old = OLD.ids["Ġthe"]
    rows = [OLD.ids[piece] for piece in ("Ġ", "th")]
    for table, theirs in (
        (other.lm_head.decoder.weight, source.lm_head.decoder.weight),
        (other.get_input_embeddings().weight, source.get_input_embeddings().weight),
    ):
        assert torch.allclose(table[NEW.ids["Ġth"]], theirs[rows].mean(0))
        assert not torch.equal(table[NEW.ids["Ġth"]], theirs[old])

    trained = {name for name, _ in started.named_parameters() if name.startswith("lm_head.")}
    assert "lm_head.decoder.weight" in trained and "lm_head.decoder.bias" not in trained


def test_an_output_layer_of_its_own_counts() -> None:
    untied = SECTION.model_copy(update={"tied_head": False})
    for section in (SECTION, untied):
        made = model_of(section, OLD, 1)
        size = len(OLD.ids)
        assert parameters(section, size) == sum(p.numel() for p in made.parameters())

    assert "tied_head" not in SECTION.recipe() and untied.recipe()["tied_head"] is False


def test_content_counts_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    digest = find_model(InputPath(str(folder), tmp_path)).digest()
    shutil.copytree(folder, tmp_path / "copy")
    assert find_model(InputPath("copy", tmp_path)).digest() == digest
    model_of(SECTION, OLD, 2).save_pretrained(tmp_path / "copy")
    assert find_model(InputPath("copy", tmp_path)).digest() != digest


def test_weights_of_ours_are_hashed_once_and_damage_is_seen(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    with Stage(folder, "published", {}, {}).begin() as stage:
        stage.finish([folder / "config.json", weights], {})

    found = find_model(InputPath(str(folder), tmp_path))
    with mock.patch.object(manifest, "sha256", wraps=sha256) as hashing:
        found.digest()
        start(found)

    assert [call.args[0] for call in hashing.call_args_list].count(weights) == 1
    whole, before = weights.read_bytes(), weights.stat().st_ctime_ns
    while weights.stat().st_ctime_ns == before:  # the clock of a file system may be coarse
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    for use in (
        found.digest,
        lambda: start(found),
    ):  # before the run begins, and if it happens after that
        with pytest.raises(
            UserError, match=r"model\.safetensors: sha256 .* damaged since it was written"
        ):
            use()


# ------------------------------------------------------------------------------------------ pickles


class Malicious:
    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("call", ["exec", "os.mkdir", "Path.touch", "shutil.copy"])
def test_nothing_in_a_pickle_is_run(
    folder: Path, tmp_path: Path, call: str, new_format: bool
) -> None:
    import os

    marker = tmp_path / "marker"
    calls: dict[str, Malicious] = {
        "exec": Malicious(exec, f"open({str(marker)!r}, 'w')"),
        "os.mkdir": Malicious(os.mkdir, str(marker)),
        "Path.touch": Malicious(Path.touch, marker),
        "shutil.copy": Malicious(shutil.copy, str(folder / "config.json"), str(marker)),
    }
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save({"x": calls[call]}, path, _use_new_zipfile_serialization=new_format)

    with pytest.raises(
        UserError, match=r"pytorch_model.bin: (cannot be read|expected tensors by name)"
    ):
        start_from_path(folder)

    assert not marker.exists()
    torch.load(path, weights_only=False)  # it would have been
    assert marker.exists()


def test_a_file_that_is_no_checkpoint_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for content in (
        b"",
        b"version https://git-lfs.github.com/spec/v1\n",
        pickle.dumps([1]),
        b"PK\x03\x04" + bytes(40),
    ):
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(UserError, match=r"pytorch_model.bin: cannot be read as tensors"):
            start_from_path(folder)


# ------------------------------------------------------------------------------------------ fairseq

FAIRSEQ_LAYER = {
    "self_attn.k_proj": "attention.self.key", "self_attn.v_proj": "attention.self.value",
    "self_attn.q_proj": "attention.self.query", "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.output.LayerNorm", "fc1": "intermediate.dense", "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}  # fmt: skip


def fairseq_state(
    model: RobertaForMaskedLM, norm: str, prefix: str, packed: bool
) -> dict[str, torch.Tensor]:
    """A model's weights by the names that fairseq's RobertaModel.state_dict() has, in its order."""
    given = model.state_dict()
    body = f"{prefix}.sentence_encoder"
    state = {
        f"{body}.version": torch.tensor([3.0]),
        f"{body}.embed_tokens.weight": given["roberta.embeddings.word_embeddings.weight"],
        f"{body}.embed_positions.weight": given["roberta.embeddings.position_embeddings.weight"],
    }
    for kind in ("weight", "bias"):
        state[f"{body}.{norm}.{kind}"] = given[f"roberta.embeddings.LayerNorm.{kind}"]

    for layer in range(model.config.num_hidden_layers):
        for theirs, ours in FAIRSEQ_LAYER.items():
            for kind in ("weight", "bias"):
                state[f"{body}.layers.{layer}.{theirs}.{kind}"] = given[
                    f"roberta.encoder.layer.{layer}.{ours}.{kind}"
                ]

        if packed:
            for kind in ("weight", "bias"):
                parts = [
                    state.pop(f"{body}.layers.{layer}.self_attn.{part}_proj.{kind}")
                    for part in "qkv"
                ]
                state[f"{body}.layers.{layer}.self_attn.in_proj_{kind}"] = torch.cat(parts)

    state[f"{prefix}.lm_head.weight"] = given["roberta.embeddings.word_embeddings.weight"]
    state[f"{prefix}.lm_head.bias"] = given["lm_head.bias"]
    for part in ("dense", "layer_norm"):
        for kind in ("weight", "bias"):
            state[f"{prefix}.lm_head.{part}.{kind}"] = given[f"lm_head.{part}.{kind}"]

    state["classification_heads.mnli.dense.weight"] = torch.zeros(16, 16)
    return state


ARGS = {
    "arch": "roberta_base",
    "encoder_attention_heads": 2,
    "activation_fn": "gelu",
    "max_positions": 10,
}


@pytest.fixture
def fairseq(source: RobertaForMaskedLM, tmp_path: Path) -> FairseqCheckpoint:
    """A checkpoint as the published ones of 2019 are, and GPT-2's files of its vocabulary, in an
    order of their own."""
    with torch.no_grad():
        source.roberta.embeddings.token_type_embeddings.weight.zero_()  # fairseq has none

    numbers = {
        token: number
        for number, token in enumerate([*byte_symbols(), "th", "the", "Ġthe", "in", "Ã¤"])
    }
    (tmp_path / "encoder.json").write_text(json.dumps(numbers), encoding="utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in OLD.merges)
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    named = {token.content for token in OLD.named}
    lines = [token for token in OLD.ids if token not in named]
    (tmp_path / "dict.txt").write_text(
        "".join(f"{numbers[token]} 1\n" for token in lines), encoding="utf-8"
    )
    state = fairseq_state(source, "emb_layer_norm", "decoder", packed=True)
    torch.save({"model": state, "args": argparse.Namespace(**ARGS)}, tmp_path / "model.pt")

    return FairseqCheckpoint(
        weights=str(tmp_path / "model.pt"), encoder=str(tmp_path / "encoder.json"),
        merges=str(tmp_path / "vocab.bpe"), dictionary=str(tmp_path / "dict.txt"),
    )  # fmt: skip


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("prefix", ["decoder", "encoder", "roberta.encoder"])
@pytest.mark.parametrize("norm", ["emb_layer_norm", "layernorm_embedding"])
def test_fairseqs_checkpoint_gives_the_same_logits(
    source: RobertaForMaskedLM, fairseq: FairseqCheckpoint, norm: str, prefix: str, packed: bool
) -> None:
    state = fairseq_state(source, norm, prefix, packed)
    stored: dict[str, Any] = {
        "model": state,
        "optimizer_history": [{"num_updates": 3}],
        "extra_state": {"epoch": 1},
    }
    stored |= (
        {"args": argparse.Namespace(**ARGS)} if packed else {"args": None, "cfg": {"model": ARGS}}
    )
    torch.save(stored, fairseq.weights, _use_new_zipfile_serialization=not packed)
    assert torch.equal(logits(start_from_path(fairseq)), logits(source))


def test_what_does_not_fit_a_fairseq_checkpoint_is_named(
    fairseq: FairseqCheckpoint, source: RobertaForMaskedLM, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as found:
        start_from_path(
            fairseq, SECTION.model_copy(update={"heads": 4, "layers": 1, "positions": 8})
        )

    for line in (
        "model.heads: 2 there, 4",
        "model.layers: 2 there, 1",
        "model.positions: 12 there, 8",
    ):
        assert line in str(found.value)

    state = fairseq_state(source, "emb_layer_norm", "decoder", packed=False)

    def refused(message: str, state: dict[str, torch.Tensor] = state, **args: Any) -> None:
        torch.save(
            {"model": state, "args": argparse.Namespace(**{**ARGS, **args})}, fairseq.weights
        )
        with pytest.raises(UserError, match=message):
            start_from_path(fairseq)

    refused("activation_fn = 'relu'", activation_fn="relu")
    refused("encoder_normalize_before = True", encoder_normalize_before=True)
    refused(
        "model.tied_head: False there, True in the config",
        {**state, "decoder.lm_head.weight": torch.zeros(266, 16)},
    )
    refused(
        r"1 unknown tensors \(decoder.layers.0.other.weight\)",
        {**state, "decoder.layers.0.other.weight": torch.zeros(1)},
    )
    refused(
        "without roberta.embeddings.word_embeddings.weight",
        {"encoder.embed.weight": torch.zeros(1)},
    )
    lost = {name: tensor for name, tensor in state.items() if "layers.1.fc2.bias" not in name}
    refused(
        r"1 of the model's tensors are missing \(roberta.encoder.layer.1.output.dense.bias\)", lost
    )
    refused("266 tokens and <pad> 1 against 265 embeddings", {
        name: tensor[:265] if "embed_tokens" in name or "lm_head.weight" in name or "lm_head.bias" in name else tensor
        for name, tensor in state.items()
    })  # fmt: skip
    torch.save(state, fairseq.weights)
    with pytest.raises(UserError, match="a dictionary with the key model"):
        start_from_path(fairseq)

    with pytest.raises(UserError, match=r"model.init_from.weights: .*gone.pt: not there"):
        start_from_path(fairseq.model_copy(update={"weights": InputPath("gone.pt")}))


# ------------------------------------------------------------------------------------------ fitting


def test_shared_tokens_keep_their_rows_and_new_ones_are_the_mean_of_their_pieces(
    folder: Path, source: RobertaForMaskedLM
) -> None:
    model = start_from_path(folder, SECTION, NEW)
    old, new = source.get_input_embeddings().weight, model.get_input_embeddings().weight
    bias, new_bias = source.lm_head.bias, model.lm_head.bias
    assert new is model.lm_head.decoder.weight and new.shape[0] == len(NEW.ids)
    for token in NEW.ids.keys() & OLD.ids.keys():
        assert torch.equal(new[NEW.ids[token]], old[OLD.ids[token]])
        assert new_bias[NEW.ids[token]] == bias[OLD.ids[token]]

    # "thin" is th + in for the old vocabulary, " th" the byte of the space and th, [ENT] five bytes
    for token, pieces in {
        "thin": ["th", "in"], "Ġth": ["Ġ", "th"], "ing": ["in", "g"], "Ã¤Ã¤": ["Ã¤", "Ã¤"], "[ENT]": [*"[ENT]"],
    }.items():  # fmt: skip
        numbers = [OLD.ids[piece] for piece in pieces]
        assert torch.allclose(new[NEW.ids[token]], old[numbers].mean(0), atol=1e-7), token
        assert torch.allclose(new_bias[NEW.ids[token]], bias[numbers].mean(), atol=1e-7)


def test_what_was_taken_is_said(folder: Path, tmp_path: Path) -> None:
    section = SECTION.model_copy(update={"positions": 20})
    model = new_model(roberta_config(section, SpecialTokens.of(Tokenizer(NEW))), 7)
    said = start_from(model, find_model(InputPath(str(folder), tmp_path)), section, NEW)
    assert (
        f"{len(NEW.ids) - 5} tokens as they are there, 5 made from their pieces; positions 12"
        " there, 20" in said
    )


@given(st.text(alphabet="theing", min_size=1, max_size=12))
def test_pieces_are_what_the_old_tokenizer_makes_of_the_token(word: str) -> None:
    tokens = fast_tokenizer(OLD)
    source = SourceTokens(tokens.get_vocab(), tokens.model)
    expected = Tokenizer(OLD).encode_documents([word])[0].tolist()
    assert source.pieces_of(word) == expected


def test_longer_positions_repeat_the_learned_ones() -> None:
    table = torch.arange(6.0)[:, None]  # two rows that no token has, four positions
    assert longer(table, 13)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 2, 3, 4]
    assert torch.equal(longer(table, 6), table)


def test_a_longer_model_says_of_short_texts_what_it_said(
    folder: Path, source: RobertaForMaskedLM
) -> None:
    longer_model = start_from_path(folder, SECTION.model_copy(update={"positions": 32}))
    assert torch.equal(logits(longer_model), logits(source))
    ids = torch.full((1, 30), 8)
    assert longer_model(ids).logits.isfinite().all()


def test_a_single_row_is_copied_to_the_bit() -> None:
    table = torch.randn(5, 3)
    assert torch.equal(mean_rows(table, [[4], [0], [2, 2]]), table[[4, 0, 2]])


def test_shapes_that_differ_are_named(folder: Path, source: RobertaForMaskedLM) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["lm_head.dense.bias"] = torch.zeros(3)
    save_file(state, folder / "model.safetensors")

    with pytest.raises(
        UserError, match=r"other shapes\n  lm_head.dense.bias: \[3\] there, \[16\] here"
    ):
        start_from_path(folder)

    assert init_from.FIRST_POSITION == 2
