"""The contract between a base and the delta methods: what must hold for every method on every
base."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import RobertaConfig, RobertaPreTrainedModel

from robustly.delta.attachment import attach, fingerprint, parameters, trained
from robustly.delta.base_model import Base
from robustly.delta.saving import load_model, save_model
from robustly.delta.specs import Method, parse

EVERY_METHOD: tuple[dict[str, Any], ...] = tuple(
    {"name": name}
    for name in (
        "lora", "dora", "ia3", "adalora", "adapter", "prefix", "p_tuning_v2", "prompt", "p_tuning", "bitfit", "head",
        "full",
    )
)  # fmt: skip
"""With their default sizes; an intrinsic prompt needs a subspace that fits the base."""


class Kept(NamedTuple):
    """A method that keeps the contract."""

    methods: str
    trained: int
    """Parameters of the delta while it is trained."""
    stored: int
    """Afterwards."""
    moved: float
    """Largest change of a logit after two updates."""


def contract(
    folder: Path | str | Base,
    methods: Sequence[Sequence[dict[str, Any]] | dict[str, Any]] = EVERY_METHOD,
) -> Iterator[Kept]:
    """Hold each method, or list of methods together, to its contract on the base in a folder, one
    at a time.

    It attaches; as many parameters are trained as its equations say (`expected_count`); after two
    updates gradients have reached all of them and logits have moved; the base is equal to the bit;
    the delta alone, saved and loaded onto the base under another random head, gives the same logits
    to the bit. Raises AssertionError if one of these fails, UserError if a method does not fit the
    base."""
    base = folder if isinstance(folder, Base) else Base.load(folder)
    before = base.fingerprint
    ids, mask, labels = _batch(base)

    for each in methods:
        specs = parse([each] if isinstance(each, dict) else list(each))
        name = " + ".join(spec.name for spec in specs)
        model = attach(base.with_head("sequence", 2, seed=1), specs, 1, before)
        count = parameters(model)["delta"]
        expected = sum(expected_count(spec, model.config) for spec in specs)
        assert count == expected, f"{name}: {count:,} parameters, expected {expected:,}"
        first = _logits(model, ids, mask)
        reached = _two_updates(model, ids, mask, labels)
        untouched = sorted(trained(model).keys() - reached)
        assert not untouched, (
            f"{name}: no gradient in {len(untouched)} parameters, such as {untouched[0]}"
        )
        after = _logits(model, ids, mask)
        moved = float((after - first).abs().max())
        assert moved > 0, f"{name}: training does not change the logits"
        assert fingerprint(base.model.roberta) == before, f"{name}: training changed the base"
        with tempfile.TemporaryDirectory() as place:
            save_model(model, Path(place))
            again = load_model(base.with_head("sequence", 2, seed=2), Path(place))

        assert torch.equal(_logits(again, ids, mask), after), f"{name}: other logits after loading"
        yield Kept(name, count, parameters(again)["delta"], moved)


def expected_count(spec: Method, config: RobertaConfig) -> int:
    """Parameters that a method trains, by the equations of its paper."""
    layers, h, f = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    maps = {
        "query": 2 * h,
        "key": 2 * h,
        "value": 2 * h,
    }  # what goes in and what comes out of a linear map
    biases = layers * (3 * h + h + f + h + 2 * h) + h
    match spec.name:
        case "lora" | "dora":
            if not set(spec.targets) <= maps.keys():
                raise ValueError(
                    f"targets: expected some of {', '.join(maps)}, found {', '.join(spec.targets)}"
                )
            lengths = h if spec.name == "dora" else 0
            return layers * sum(spec.rank * maps[target] + lengths for target in spec.targets)
        case "adalora":
            return layers * sum(spec.initial_rank * (maps[target] + 1) for target in spec.targets)
        case "ia3":
            return layers * (2 * h + f)
        case "adapter":
            places = 2 if spec.place == "houlsby" else 1
            norms = 2 * h * (2 * layers + 1) if spec.layer_norms else 0
            return layers * places * (2 * h * spec.size + spec.size + h) + norms
        case "prefix":  # rows of an embedding, then two layers
            out = 2 * layers * h
            return spec.tokens * h + h * spec.hidden + spec.hidden + spec.hidden * out + out
        case "p_tuning_v2":
            return spec.tokens * 2 * layers * h
        case "prompt":
            return spec.tokens * h
        case "p_tuning":  # rows, a BiLSTM of two layers of h/2 each way, two layers
            lstm = 2 * 2 * 4 * (h // 2) * (h + h // 2 + 2)
            return spec.tokens * h + lstm + 2 * (h * h + h)
        case "intrinsic_prompt":
            raise ValueError("the count of an intrinsic prompt is its subspace's")
        case "bitfit":
            return biases
        case "head":
            return 0
        case "full":
            rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size + 2
            return rows * h + layers * (4 * h * h + 2 * h * f + 4 * h + f + h + 4 * h)


def _batch(base: Base) -> tuple[Tensor, Tensor, Tensor]:
    """Four inputs of two lengths, their mask, their labels."""
    encoder = base.tokenizer
    draw = torch.Generator().manual_seed(1)
    length = (
        min(12, base.longest_input - 20) if base.longest_input > 24 else base.longest_input // 2
    )
    ids = torch.randint(4, encoder.vocab_size - 1, (4, length), generator=draw)
    ids[:, 0], ids[:, -1] = encoder.bos_id, encoder.eos_id
    ids[2:, length // 2], ids[2:, length // 2 + 1 :] = encoder.eos_id, encoder.pad_id
    return ids, (ids != encoder.pad_id).long(), torch.tensor([0, 1, 0, 1])


def _two_updates(
    model: RobertaPreTrainedModel, ids: Tensor, mask: Tensor, labels: Tensor
) -> set[str]:
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
            name for name, p in trained(model).items() if p.grad is not None and bool(p.grad.abs().max() > 0)
        }  # fmt: skip
        optimizer.step()
        for act in model.delta.after_update:
            act(update, 2)

        optimizer.zero_grad()

    return reached


def _logits(model: RobertaPreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=mask).logits
