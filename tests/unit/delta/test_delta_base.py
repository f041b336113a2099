"""The base: what may be one, its fingerprint, and the classifiers made from it."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from small_checkpoints import word_piece
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

from robustly import UserError
from robustly.delta.attachment import head_names
from robustly.delta.base_model import Base, HeadKind

LABELS = ("a", "b")


def test_the_fingerprint_is_of_the_encoders_weights(
    place: Path, base: Base, tmp_path: Path
) -> None:
    """The same without the language-modeling head and in several files; another for one changed
    bit."""
    model = RobertaModel.from_pretrained(place / "base", add_pooling_layer=False)
    full = RobertaForMaskedLM.from_pretrained(place / "base")
    sharded = shutil.copytree(place / "base", tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    model.save_pretrained(sharded, max_shard_size="20kB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    without = Base.load(sharded)
    assert without.fingerprint == base.fingerprint and base.has_lm_head and not without.has_lm_head
    with pytest.raises(UserError, match="holds no language-modeling head"):
        without.with_head("masked_lm", 261, seed=0)

    changed = Base(base.name, full, True, base.tokenizer)
    assert changed.fingerprint == base.fingerprint
    del changed.__dict__["fingerprint"]
    with torch.no_grad():
        bias = full.roberta.encoder.layer[1].output.LayerNorm.bias
        bias[3] = torch.nextafter(bias[3], torch.tensor(1.0))

    assert changed.fingerprint != base.fingerprint
    assert Base.load(place / "other").fingerprint != base.fingerprint


def test_the_longest_input_is_what_the_positions_hold(base: Base) -> None:
    assert base.longest_input == 40
    classifier = base.with_head("sequence", 2, seed=0)
    assert classifier(torch.full((1, 40), 5)).logits.shape == (1, 2)
    with pytest.raises((IndexError, RuntimeError)):
        classifier(torch.full((1, 41), 5))


def test_the_head_is_a_function_of_the_seed(base: Base) -> None:
    one, again, other = (base.with_head("sequence", 2, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["classifier.out_proj.weight"], other["classifier.out_proj.weight"])
    encoder = base.model.roberta.state_dict()
    assert all(torch.equal(other["roberta." + name], tensor) for name, tensor in encoder.items())
    assert base.with_head("sequence", 2, 1, LABELS).config.id2label == {0: "a", 1: "b"}


@pytest.mark.parametrize("head", ["sequence", "tokens", "choice", "masked_lm"])
def test_models_share_the_weights_of_their_base_in_memory(base: Base, head: HeadKind) -> None:
    model = base.with_head(head, 2, seed=1)
    own = {name: tensor.data_ptr() for name, tensor in base.model.named_parameters()}
    in_head = head_names(model)
    found = {
        name: tensor.data_ptr() for name, tensor in model.named_parameters() if name not in in_head
    }
    for names in (own, found):
        names.pop("lm_head.bias", None)  # transformers ties it anew, to a copy

    assert all(own[name] == place for name, place in found.items())
    assert len(found) == len(own) - (0 if head == "masked_lm" else 4)  # the language-modeling head
    assert found and (
        head != "masked_lm" or model.lm_head.decoder.weight is model.get_input_embeddings().weight
    )


def test_making_a_classifier_leaves_torchs_random_state_alone(base: Base) -> None:
    before = torch.get_rng_state()
    base.with_head("sequence", 2, 1)
    base.untrained(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_untrained_base_shares_the_configuration_alone(base: Base) -> None:
    fresh = base.untrained(seed=1)
    assert (
        fresh.model.config.to_dict() == base.model.config.to_dict()
        and fresh.parameters == base.parameters
    )
    matrix = fresh.model.roberta.encoder.layer[0].intermediate.dense.weight
    assert matrix.std().item() == pytest.approx(base.model.config.initializer_range, rel=0.1)
    assert fresh.fingerprint != base.fingerprint == Base.load(base.name).fingerprint
    assert base.untrained(seed=1).fingerprint == fresh.fingerprint


def changed_copy(place: Path, tmp_path: Path, **changes: object) -> Path:
    copy = shutil.copytree(place / "base", tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    return copy


@pytest.mark.parametrize("config", [BertConfig, ModernBertConfig, DistilBertConfig, ElectraConfig])
def test_another_model_type(config: type[PreTrainedConfig], tmp_path: Path) -> None:
    folder = word_piece(tmp_path, config)
    kind = config.model_type
    with pytest.raises(
        UserError, match=f"model_type = '{kind}'; expected roberta,.*get_peft_model"
    ):
        Base.load(folder)


def test_what_the_refusal_names_works(tmp_path: Path) -> None:
    bert = AutoModelForSequenceClassification.from_pretrained(word_piece(tmp_path, BertConfig))
    with_lora = peft.get_peft_model(bert, peft.LoraConfig(task_type="SEQ_CLS"))
    trained = [name for name, each in with_lora.named_parameters() if each.requires_grad]
    assert any("lora" in name for name in trained) and any("classifier" in name for name in trained)


def test_weights_that_the_encoder_lacks(place: Path, tmp_path: Path) -> None:
    """transformers would fill them with random numbers."""
    with pytest.raises(
        UserError,
        match=r"16 of the model's tensors are missing \(roberta\.encoder\.layer\.2\.attention",
    ):
        Base.load(changed_copy(place, tmp_path, num_hidden_layers=3))


def test_a_tokenizer_of_another_checkpoint(place: Path, tmp_path: Path) -> None:
    copy = changed_copy(place, tmp_path)
    (copy / "tokenizer.json").unlink()  # vocab.json and merges.txt say the same
    ids = json.loads((copy / "vocab.json").read_text())
    (copy / "vocab.json").write_text(json.dumps({**ids, "more": len(ids)}))
    with pytest.raises(UserError, match=r"do not belong together: 262 tokens .* against 261"):
        Base.load(copy)


def test_folders_that_hold_no_base(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^paths.published: .*nowhere: no such folder; expected"):
        Base.load(tmp_path / "nowhere")

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: not a folder"):
        Base.load(tmp_path / "file")

    with pytest.raises(UserError, match=r"no config\.json"):
        Base.load(tmp_path)

    copy = changed_copy(place, tmp_path)
    (copy / "tokenizer.json").unlink()
    (copy / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"merges\.txt: cannot be read"):
        Base.load(copy)


def test_a_cut_off_or_unfinished_base(place: Path, tmp_path: Path) -> None:
    copy = changed_copy(place, tmp_path)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"copy/model\.safetensors: cannot be read"):
        Base.load(copy)

    (copy / "recipe.json").write_text("{}")  # begun by us, never finished
    with pytest.raises(UserError, match="no finished published stage here"):
        Base.load(copy)
