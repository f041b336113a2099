"""Bases in half precision: a delta knows its base after a cast, and is served on it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attached import batch, new_model, scores, train
from transformers import PreTrainedModel

from robustly import UserError, delta
from robustly.delta.attachment import attach
from robustly.delta.base_model import Base
from robustly.delta.conformance import EVERY_METHOD
from robustly.delta.fingerprint import HALVES, fingerprint, rounded
from robustly.delta.predictor import Predictor
from robustly.delta.storage.saving import RECORD, reload, save
from robustly.delta.tasks.config import ClassificationTask
from robustly.delta.tasks.data import TaskData
from robustly.strict_json import sealed

SMALL: dict[str, dict[str, Any]] = {
    "prefix": {"tokens": 3, "hidden": 16},
    "p_tuning": {"tokens": 4},
    "prompt": {"tokens": 4},
    "p_tuning_v2": {"tokens": 3},
}
METHODS = [method | SMALL.get(method["name"], {}) for method in EVERY_METHOD]


def by_hand(encoder: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        if not name.startswith("pooler."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(bytes(tensor.view(torch.uint8).flatten().tolist()))

    return digest.hexdigest()


def test_the_fingerprint_of_full_precision_is_as_ever() -> None:
    encoder = new_model("choice").roberta
    assert fingerprint(encoder) == by_hand(encoder)
    expected = {name: by_hand(new_model().roberta.to(dtype)) for name, dtype in HALVES.items()}
    assert rounded(encoder) == expected
    assert len({fingerprint(encoder), *expected.values()}) == 3
    assert rounded(encoder.half()) == {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a delta that was trained in full precision."""
    place = tmp_path_factory.mktemp("own")
    model = attach(new_model(), ["lora", "bitfit"], seed=1)
    train(model, batch(labels=True))
    delta.save(model, place)
    return place


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
def test_a_cast_base_is_the_same_base(folder: Path, dtype: torch.dtype, tmp_path: Path) -> None:
    expected = scores(delta.load_into(new_model(), folder), batch())
    served = delta.load_into(new_model().to(dtype), folder)
    found = scores(served, batch())
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0)
    # back in full precision, as a file in half precision is opened
    torch.testing.assert_close(
        scores(delta.load_into(new_model().to(dtype).float(), folder), batch()),
        expected,
        atol=0.05,
        rtol=0,
    )
    # saved from there, it still knows the base in full precision
    delta.save(served, tmp_path)
    assert delta.load_into(new_model(), tmp_path)
    # trained on a base in half precision
    own = attach(new_model().to(dtype), "lora")
    delta.save(own, tmp_path / "half")
    for model in (new_model(), new_model().to(dtype), new_model().to(dtype).float()):
        assert delta.load_into(model, tmp_path / "half")


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
def test_another_base_is_another_in_half_precision(folder: Path, dtype: torch.dtype) -> None:
    def changed(model: PreTrainedModel, by: float) -> PreTrainedModel:
        with torch.no_grad():
            model.roberta.encoder.layer[1].output.LayerNorm.weight[3] += by

        return model

    for model in (changed(new_model(), 0.1).to(dtype), changed(new_model().to(dtype), 0.1)):
        with pytest.raises(UserError, match="on other weights it would mean nothing"):
            delta.load_into(model, folder)

    # rounded, it would be the same
    near = changed(new_model(), 1e-6)
    assert rounded(near.roberta) == rounded(new_model().roberta)
    with pytest.raises(UserError, match="on other weights it would mean nothing"):
        delta.load_into(near, folder)


def test_a_delta_of_before_half_precision_was_known(folder: Path, tmp_path: Path) -> None:
    delta.save(delta.load_into(new_model(), folder), tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    del record["seal"], record["base"]["rounded"]
    (tmp_path / RECORD).write_text(json.dumps(sealed(record)))
    assert delta.load_into(new_model(), tmp_path)
    with pytest.raises(
        UserError, match="load it onto the base in full precision and save it again"
    ):
        delta.load_into(new_model().bfloat16(), tmp_path)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_every_method_serves_in_half_precision(
    method: dict[str, Any], base: Base, place: Path, data: TaskData, tmp_path: Path
) -> None:
    """On a base that was opened in half precision, where the delta's own weights stay in full
    precision, and with everything cast. Nothing is trained in half precision: what is stored is
    exact."""
    task = ClassificationTask(kind="classification", train="a", test="a", max_length=40)
    texts = [example.texts[0] for example in data.test[:8]]
    predictor = Predictor.attached(base, task, data.labels, [method], 1)
    ids = torch.tensor([[0, 9, 14, 31, 2], [0, 11, 5, 45, 2]])
    optimizer = torch.optim.SGD([p for p in predictor.model.parameters() if p.requires_grad], 0.05)
    predictor.model(ids, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    save(predictor, base, task, {}, 0, 1, tmp_path)
    expected = torch.stack(predictor.logits(texts))

    for dtype in HALVES.values():
        half = reload(Base.load(place / "base", dtype), tmp_path)
        cast = reload(base, tmp_path)
        cast.model.to(dtype)
        for served in (half, cast):
            found = torch.stack(served.logits(texts))
            torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
            assert not torch.equal(found, expected)
