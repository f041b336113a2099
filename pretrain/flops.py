"""How many parameters a model has and how many floating-point operations a token takes, by
arithmetic."""

from robustly.pretrain.config import ModelConfig


def embedding_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Weights of the three embedding tables; a tied head's output matrix is the first of them."""
    return (vocab_size + model.positions + model.token_types) * model.hidden


def parameters(model: ModelConfig, vocab_size: int) -> int:
    """Weights of transformers' RobertaForMaskedLM, head included: 124,697,433 for RoBERTa-base."""
    h, f = model.hidden, model.feed_forward
    layer_norm = 2 * h
    attention = 4 * (h * h + h)  # queries, keys, values, output
    feed_forward = (h * f + f) + (f * h + h)
    output = vocab_size if model.tied_head else vocab_size * (h + 1)  # bias; matrix of its own
    head = (h * h + h) + layer_norm + output  # dense, LayerNorm
    layers = model.layers * (attention + feed_forward + 2 * layer_norm)
    return embedding_parameters(model, vocab_size) + layer_norm + layers + head


def flops_per_token(model: ModelConfig, vocab_size: int, block_length: int, masked: float) -> float:
    """Floating-point operations of one position of a full block, forward and backward: its matrix
    products.

    A product of (m x k) by (k x n) is 2 m k n operations, and its backward pass is two products of
    that size (Kaplan et al. 2020, section 2.1). Attention's scores and their use are counted whole,
    since an encoder looks both ways. The head counts for the fraction `masked` of positions, as the
    objective runs it. Not counted: elementwise work, and the scores that a fused attention kernel
    computes anew in its backward pass; so it is what the model needs, the numerator of "model FLOPs
    utilization" (Chowdhery et al. 2022, appendix B)."""
    head = _dense(model) + _output(model, vocab_size)
    return 3 * (model.layers * _layer(model, block_length) + masked * head)


def teaching_flops_per_token(
    model: ModelConfig,
    teacher_layers: int,
    vocab_size: int,
    block_length: int,
    masked: float,
    soft_over_all: bool,
) -> float:
    """What learning from a teacher of the same width adds to these: the teacher's forward pass, and
    the head of both at the tokens whose probabilities are compared (`distillation.soft_over`), the
    student's forward and backward. At the masked ones alone, the student computes its scores
    twice."""
    dense, output = _dense(model), _output(model, vocab_size)
    encoder = teacher_layers * _layer(model, block_length)
    if soft_over_all:
        return encoder + 4 * (dense + output)
    return encoder + masked * (dense + 4 * output)


def _layer(model: ModelConfig, block_length: int) -> float:
    """Operations of one position of a full block in a layer, forward."""
    h, f = model.hidden, model.feed_forward
    matrices = 2 * (4 * h * h + 2 * h * f)
    return matrices + 2 * 2 * block_length * h  # attention's scores, and their sum over values


def _dense(model: ModelConfig) -> float:
    return 2 * model.hidden * model.hidden


def _output(model: ModelConfig, vocab_size: int) -> float:
    return 2 * model.hidden * vocab_size
