"""How many parameters each method trains in an encoder, by the equations of its paper: what the
counts of what is attached are compared with."""

from transformers import PreTrainedConfig

from robustly.delta.methods import (
    AdaLora,
    Adapter,
    BitFit,
    Dora,
    Full,
    HeadOnly,
    Ia3,
    Lora,
    Prefix,
    Prompt,
    PTuning,
    PTuningV2,
    Routed,
)
from robustly.delta.methods.lora import LowRank
from robustly.delta.methods.method import Method


def parameter_count(method: Method, config: PreTrainedConfig) -> int:
    h, f, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    match method:
        case HeadOnly():
            return 0
        case Full():
            rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
            maps = 4 * (h * h + h) + (h * f + f) + (f * h + h)
            return rows * h + 2 * h + layers * (maps + 4 * h)
        case BitFit():  # queries, keys, values; what follows them; two LayerNorms; the feed-forward
            return layers * (3 * h + h + 2 * h + f + h) + h
        case Ia3():
            return layers * (2 * h + f)
        case Lora():
            return sum(method.rank * (i + o) for i, o in _maps(method, config))
        case Dora():  # and a length of each column
            return sum(method.rank * (i + o) + o for i, o in _maps(method, config))
        case AdaLora():  # P, L, Q
            return sum(method.initial_rank * (i + o + 1) for i, o in _maps(method, config))
        case Adapter():
            places = 2 if method.place == "houlsby" else 1
            norms = 2 * h * (2 * layers + 1) if method.layer_norms else 0
            return layers * places * (2 * h * method.size + method.size + h) + norms
        case Prompt():
            return method.tokens * h
        case PTuning():  # inputs, two layers of h / 2 each way with four gates, two linear maps
            lstm = 2 * 2 * 4 * (h // 2) * (h + h // 2 + 2)
            return method.tokens * h + lstm + 2 * (h * h + h)
        case PTuningV2():
            return method.tokens * 2 * layers * h
        case Prefix():  # rows of an embedding, two linear maps
            n, out = method.hidden, 2 * layers * h
            return method.tokens * h + (h * n + n) + (n * out + out)

        case Routed():  # a key for each expert
            return sum(h + parameter_count(expert, config) for expert in method.of)

    raise NotImplementedError(method.name)


def _maps(method: LowRank, config: PreTrainedConfig) -> list[tuple[int, int]]:
    """Inputs and outputs of every linear map that the targets name."""
    h, f = config.hidden_size, config.intermediate_size
    sizes = {
        "attention.self.query": (h, h),
        "attention.self.key": (h, h),
        "attention.self.value": (h, h),
        "attention.output.dense": (h, h),
        "intermediate.dense": (h, f),
        "output.dense": (f, h),
    }
    return [
        size
        for layer in range(config.num_hidden_layers)
        for name, size in sizes.items()
        if any(f".encoder.layer.{layer}.{name}".endswith(f".{each}") for each in method.targets)
    ]
