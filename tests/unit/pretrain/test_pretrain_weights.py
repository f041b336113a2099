"""Weights as others save them: whatever their names, files and dtypes, the model is the one that
plain transformers opens."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor
from transformers import AutoModelForMaskedLM, RobertaForMaskedLM

from robustly import UserError
from robustly.config import InputPath
from robustly.delta.base_model import Base
from robustly.evaluation.model import open_masked_lm
from robustly.pretrain.start.model_files import find_model
from robustly.pretrain.start.open_model import open_model
from robustly.tokenizer.vocabulary import lay_out, save_vocabulary
from tests.small_checkpoints import model

VOCABULARY = lay_out([("t", "h"), ("th", "e")])
WORDS = "roberta.embeddings.word_embeddings.weight"
OUTPUT, BIAS, OUTPUT_BIAS = "lm_head.decoder.weight", "lm_head.bias", "lm_head.decoder.bias"
TIED = (OUTPUT, OUTPUT_BIAS)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def source() -> RobertaForMaskedLM:
    """A model none of whose parameters is 0 or 1."""
    made = model(len(VOCABULARY.ids)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)

    return made


@pytest.fixture
def folder(source: RobertaForMaskedLM, tmp_path: Path) -> Path:
    """Settings and vocabulary, still without weights."""
    source.config.save_pretrained(tmp_path)
    save_vocabulary(VOCABULARY, tmp_path)
    return tmp_path


def state_of(source: RobertaForMaskedLM, without: tuple[str, ...] = ()) -> State:
    """Each tensor with memory of its own, the tied ones twice."""
    return {
        name: x.detach().clone() for name, x in source.state_dict().items() if name not in without
    }


def renamed(state: State, *changes: tuple[str, str]) -> State:
    for old, new in changes:
        state = {re.sub(old, new, name): x for name, x in state.items()}
    return state


def into_safetensors(folder: Path, state: State, **metadata: str) -> None:
    save_file(state, folder / "model.safetensors", metadata=metadata or None)


def into_bin(folder: Path, state: State) -> None:
    torch.save(state, folder / "pytorch_model.bin")


def into_shards(folder: Path, state: State, kind: str, index: bool) -> list[str]:
    """Three files, each of every third tensor; returns their names."""
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = [f"{stem}-{number:05d}-of-00003.{kind}" for number in (1, 2, 3)]
    where = {tensor: names[place % 3] for place, tensor in enumerate(sorted(state))}
    for name in names:
        part = {tensor: state[tensor] for tensor, file in where.items() if file == name}
        save_file(part, folder / name) if kind == "safetensors" else torch.save(part, folder / name)

    if index:
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": where}))

    return names


def logits_of(opened: Any) -> Tensor:
    ids = torch.tensor([[0, 8, 100, 260, 261, 30, 2]])
    with torch.no_grad():
        return opened.eval()(input_ids=ids).logits


Save = Callable[[Path, RobertaForMaskedLM], Any]
WAYS: dict[str, Save] = {
    "plain": lambda f, m: into_safetensors(f, state_of(m, TIED), format="pt"),
    "the output alone": lambda f, m: into_safetensors(f, state_of(m, (WORDS, OUTPUT_BIAS))),
    "the output and its bias alone": lambda f, m: into_safetensors(f, state_of(m, (WORDS, BIAS))),
    "the embeddings and the output's bias": lambda f, m: into_safetensors(
        f, state_of(m, (OUTPUT, BIAS))
    ),
    "tied tensors twice": lambda f, m: into_safetensors(f, state_of(m)),
    "safetensors' save_model": lambda f, m: save_model(m, str(f / "model.safetensors")),
    "the output alone, as a pickle": lambda f, m: into_bin(f, state_of(m, (WORDS, BIAS))),
    "no prefix": lambda f, m: into_bin(f, renamed(state_of(m, TIED), (r"^roberta\.", ""))),
    "no prefix, the output alone": lambda f, m: into_safetensors(
        f, renamed(state_of(m, (WORDS, BIAS)), (r"^roberta\.", ""))
    ),
    "data parallel": lambda f, m: into_bin(f, renamed(state_of(m), ("^", "module."))),
    "compiled, a part of a module": lambda f, m: into_bin(
        f, renamed(state_of(m), ("^", "model._orig_mod."))
    ),
    "old names of norms": lambda f, m: into_bin(
        f,
        renamed(
            state_of(m),
            (r"(LayerNorm|layer_norm)\.weight", r"\1.gamma"),
            (r"(LayerNorm|layer_norm)\.bias", r"\1.beta"),
        ),
    ),
    "fp64": lambda f, m: into_safetensors(f, {n: x.double() for n, x in state_of(m, TIED).items()}),
    "buffers": lambda f, m: into_bin(
        f,
        {
            **state_of(m),
            "roberta.embeddings.position_ids": torch.arange(42)[None],
            "roberta.embeddings.token_type_ids": torch.zeros(1, 42, dtype=torch.long),
        },
    ),
    "no prefix, with a pooler": lambda f, m: into_safetensors(
        f,
        {
            **renamed(state_of(m, TIED), (r"^roberta\.", "")),
            "pooler.dense.weight": torch.zeros(32, 32),
            "pooler.dense.bias": torch.zeros(32),
        },
    ),
    "other metadata": lambda f, m: into_safetensors(f, state_of(m, TIED), format="mlx", step="9"),
    "shards": lambda f, m: into_shards(f, state_of(m, TIED), "safetensors", index=True),
    "shards, the output alone": lambda f, m: into_shards(
        f, state_of(m, (WORDS, BIAS)), "safetensors", index=True
    ),
    "shards without an index": lambda f, m: into_shards(
        f, state_of(m, TIED), "safetensors", index=False
    ),
    "pickled shards": lambda f, m: into_shards(f, state_of(m), "bin", index=True),
    "pickled shards without an index": lambda f, m: into_shards(f, state_of(m), "bin", index=False),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_model_however_it_was_saved(
    folder: Path, source: RobertaForMaskedLM, way: str
) -> None:
    WAYS[way](folder, source)
    found = open_model(find_model(InputPath(str(folder))), ["roberta"])
    assert torch.equal(logits_of(found.model), logits_of(source))
    assert (found.has_head, found.unknown) == (True, [])


@pytest.mark.parametrize(
    "way", ["the output and its bias alone", "pickled shards without an index"]
)
def test_evaluation_and_deltas_read_as_a_continued_run_does(
    folder: Path, source: RobertaForMaskedLM, way: str
) -> None:
    WAYS[way](folder, source)
    device = torch.device("cpu")
    for opened in (Base.load(folder).model, open_masked_lm(folder, device).model):
        assert torch.equal(logits_of(opened), logits_of(source))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_widened(folder: Path, source: RobertaForMaskedLM, dtype: torch.dtype) -> None:
    into_safetensors(folder, {name: x.to(dtype) for name, x in state_of(source, TIED).items()})
    reference = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    opened = open_model(find_model(InputPath(str(folder)))).model
    assert torch.equal(logits_of(opened), logits_of(reference))


def test_of_several_files_the_one_that_transformers_takes(
    folder: Path, source: RobertaForMaskedLM
) -> None:
    other = model(len(VOCABULARY.ids), initializer_range=0.1)
    into_bin(folder, state_of(other))
    into_shards(folder, state_of(other, TIED), "safetensors", index=True)
    into_safetensors(folder, state_of(source, TIED), format="pt")
    reference = AutoModelForMaskedLM.from_pretrained(folder)
    opened = open_model(find_model(InputPath(str(folder)))).model
    assert torch.equal(logits_of(opened), logits_of(reference))
    assert torch.equal(logits_of(opened), logits_of(source))


# ----------------------------------------------------------------------------------------- refusals


def drop(folder: Path, name: str) -> None:
    (folder / name).unlink()


REFUSED: dict[str, tuple[Save, str]] = {
    "a shard is missing": (
        lambda f, m: drop(f, into_shards(f, state_of(m), "bin", index=False)[1]),
        "looked for pytorch_model-00002-of-00003.bin",
    ),
    "an indexed shard is missing": (
        lambda f, m: drop(f, into_shards(f, state_of(m, TIED), "safetensors", index=True)[0]),
        "looked for model-00001-of-00003.safetensors",
    ),
    "DeepSpeed's shards": (
        lambda f, m: (f / "global_step20").mkdir(),
        r"global_step20 is there: shards of DeepSpeed's ranks; .*zero_to_fp32",
    ),
    "FSDP's shards": (
        lambda f, m: (f / "pytorch_model_fsdp_0").mkdir(),
        r"shards of FSDP's ranks; merge them: accelerate merge-weights .*/pytorch_model_fsdp_0 ",
    ),
    "whole weights of FSDP": (
        lambda f, m: torch.save(state_of(m), f / "pytorch_model_fsdp.bin"),
        "rename it to pytorch_model.bin",
    ),
    "checkpoints of a Trainer": (
        lambda f, m: [(f / f"checkpoint-{n}").mkdir() for n in (500, 1000)],
        "checkpoint-1000 is there: a checkpoint of transformers' Trainer; give that folder",
    ),
    "an adapter": (
        lambda f, m: (f / "adapter_config.json").write_text("{}"),
        "an adapter of peft; merge it into its model",
    ),
    "a variant": (
        lambda f, m: save_file(state_of(m, TIED), f / "model.fp16.safetensors"),
        "rename it to model.safetensors",
    ),
    "TensorFlow": (
        lambda f, m: (f / "tf_model.h5").write_bytes(b"x"),
        "weights of TensorFlow; save them with transformers as model.safetensors",
    ),
    "nothing": (lambda f, m: None, "its weights are not there; looked for model.safetensors, "),
    "a name of one's own": (
        lambda f, m: save_file(state_of(m, TIED), f / "best.safetensors"),
        "best.safetensors is there: if it holds the whole model, rename it to model.safetensors",
    ),
    "Lightning": (
        lambda f, m: torch.save({"state_dict": state_of(m)}, f / "last.ckpt"),
        "last.ckpt is there: a checkpoint of Lightning",
    ),
    "Git LFS": (
        lambda f, m: (f / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        ),
        r"model.safetensors: cannot be read: a pointer of Git LFS, .*git lfs pull",
    ),
    "a training's own state": (
        lambda f, m: torch.save({"epoch": 3, "net": state_of(m)}, f / "pytorch_model.bin"),
        "a dict where epoch is int, net is dict; save the weights on their own",
    ),
    "empty tensors": (
        lambda f, m: into_safetensors(
            f, {n: x if x.dim() < 2 else torch.zeros(0) for n, x in state_of(m, TIED).items()}
        ),
        r"some empty, as ZeRO's stage 3 and FSDP leave them on a rank: .*\n.*\[0\] there",
    ),
    "an encoder alone": (
        lambda f, m: into_safetensors(
            f, {n: x for n, x in state_of(m).items() if not n.startswith("lm_head.")}
        ),
        r"missing \(lm_head.bias, .*not an encoder alone",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named_with_what_to_do(
    folder: Path, source: RobertaForMaskedLM, case: str
) -> None:
    spoil, message = REFUSED[case]
    spoil(folder, source)
    with pytest.raises(UserError, match=message):
        open_model(find_model(InputPath(str(folder))))


def test_a_folder_without_settings_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(UserError, match=r"no model here; .*checkpoint-7 is there"):
        find_model(InputPath(str(tmp_path)))

    (tmp_path / "hub/snapshots/0123").mkdir(parents=True)
    with pytest.raises(UserError, match=r"snapshots is there: a cache of the Hub; give a folder"):
        find_model(InputPath(str(tmp_path / "hub")))


def test_settings_of_an_output_of_its_own_without_its_weights(
    folder: Path, source: RobertaForMaskedLM
) -> None:
    into_safetensors(folder, state_of(source, TIED))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": False}))
    with pytest.raises(UserError, match=r"or tie_word_embeddings: true in config.json"):
        open_model(find_model(InputPath(str(folder))))


def test_a_cloze_scores_with_an_output_of_its_own(folder: Path, source: RobertaForMaskedLM) -> None:
    """Although config.json calls it tied, as plain transformers does."""
    into_safetensors(folder, {**state_of(source), OUTPUT: state_of(source)[OUTPUT] + 1})
    reference = AutoModelForMaskedLM.from_pretrained(folder)
    cloze = Base.load(folder).with_head("masked_lm", 1, 0)
    assert torch.equal(logits_of(cloze), logits_of(reference))
    assert not torch.equal(logits_of(cloze), logits_of(source))


def test_an_encoder_alone_will_do_for_a_delta(folder: Path, source: RobertaForMaskedLM) -> None:
    source.roberta.save_pretrained(folder)
    assert not any("lm_head" in name for name in load_file(folder / "model.safetensors"))
    base = Base.load(folder)
    assert not base.has_lm_head
    ids = torch.tensor([[0, 8, 100, 2]])
    with torch.no_grad():
        ours, theirs = (m(ids).last_hidden_state for m in (base.model.roberta, source.roberta))

    assert torch.equal(ours, theirs)
