"""The conformance test of delta methods: what must hold for every method on every base."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from robustly.delta.attachment import attach, count, parameters, trained
from robustly.delta.base_model import Base
from robustly.delta.fingerprint import fingerprint
from robustly.delta.methods import METHODS, name_of, parse
from robustly.delta.storage.saving import load_model, save_model
from robustly.tokenizer.special_tokens import SPECIAL_TOKENS

EVERY_METHOD: tuple[dict[str, Any], ...] = tuple(
    {"name": name_of(method)} for method in METHODS if method.conformance_tested
)
"""With their default sizes."""


class Conformance(NamedTuple):
    """What was seen of a method that passed."""

    methods: str
    trained: int
    """Parameters of the delta while it is trained."""
    stored: int
    """Afterwards."""
    moved: float
    """Largest change of a logit after two updates."""


def check_conformance(
    folder: Path | str | Base,
    methods: Sequence[Sequence[dict[str, Any]] | dict[str, Any]] = EVERY_METHOD,
) -> Iterator[Conformance]:
    """Test each method, or list of methods together, on the base in a folder, one at a time.

    It attaches, and to a model without memory too (`robustly.delta.attachment.count`), with as many
    parameters; after two updates gradients have reached all of them and logits have moved; the base
    is equal to the bit; the delta alone, saved and loaded onto the base under another random head,
    gives the same logits to the bit. Raises AssertionError if one of these fails, UserError if a
    method does not fit the base."""
    base = folder if isinstance(folder, Base) else Base.load(folder)
    before = base.fingerprint
    ids, mask, labels = _batch(base)

    for each in methods:
        given = parse([each] if isinstance(each, dict) else list(each))
        name = " + ".join(method.name for method in given)
        model = attach(base.with_head("sequence", 2, seed=1), given, 1, before)
        first = _logits(model, ids, mask)
        reached = _two_updates(model, ids, mask, labels)
        untouched = sorted(trained(model).keys() - reached)
        assert not untouched, (
            f"{name}: no gradient in {len(untouched)} parameters, such as {untouched[0]}"
        )
        after = _logits(model, ids, mask)
        moved = float((after - first).abs().max())
        assert moved > 0, f"{name}: training does not change the logits"
        assert fingerprint(base.model.base_model) == before, f"{name}: training changed the base"
        with tempfile.TemporaryDirectory() as place:
            save_model(model, Path(place))
            again = load_model(base.with_head("sequence", 2, seed=2), Path(place))

        assert torch.equal(_logits(again, ids, mask), after), f"{name}: other logits after loading"
        sizes = parameters(model)["delta"], parameters(again)["delta"]
        counted = tuple(count(model.config, given, finished) for finished in (False, True))
        assert counted == sizes, f"{name}: parameters {sizes}, counted without memory {counted}"
        yield Conformance(name, *sizes, moved)


def _batch(base: Base) -> tuple[Tensor, Tensor, Tensor]:
    """Four inputs of two lengths, their mask, their labels."""
    own, longest = base.tokenizer, base.longest_input
    length = min(12, longest - 20) if longest > 24 else longest // 2  # prompts have 20 tokens
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(len(SPECIAL_TOKENS), own.vocab_size - 1, (4, length), generator=draw)
    ids[:, 0], ids[:, -1] = own.bos_id, own.eos_id
    ids[2:, length // 2], ids[2:, length // 2 + 1 :] = own.eos_id, own.pad_id
    return ids, (ids != own.pad_id).long(), torch.tensor([0, 1, 0, 1])


def _two_updates(model: PreTrainedModel, ids: Tensor, mask: Tensor, labels: Tensor) -> set[str]:
    """Names of the parameters that gradients reached, in the first update or in the second (where a
    factor starts at 0, the other one has none in the first)."""
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-3)
    reached: set[str] = set()
    model.train()

    for update in (1, 2):
        torch.manual_seed(update)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        (loss + sum(penalty() for penalty in model.delta.penalties)).backward()
        reached |= {
            name
            for name, parameter in trained(model).items()
            if parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        }
        optimizer.step()
        for act in model.delta.after_update:
            act(update, 2)

        optimizer.zero_grad()

    return reached


def _logits(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=mask).logits
