"""Estimate the memory of a rank, part by part, as the engine has DeepSpeed 0.19.8 hold it.

Plain arithmetic, without torch; docs/budget.md compares each formula with what was measured.
Symbols: V entries of the vocabulary, H hidden units, F units of the feed-forward, A heads, L tokens
of a block, N blocks of a micro-batch, M masked tokens of it, P parameters, R ranks."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from robustly.preflight.teacher import teacher_of
from robustly.pretrain.checkpoints.disk_space import checkpoint_bytes
from robustly.pretrain.config import ModelConfig, RunConfig
from robustly.pretrain.flops import parameters
from robustly.pretrain.score_chunks import ELEMENTS, chunk_scores
from robustly.pretrain.stage import PretrainingConfig

Device = Literal["cuda", "cpu"]

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
REDUCE_BUCKET = 500_000_000
"""Elements of the buffer in which DeepSpeed gathers gradients (zero/config.py there), unless
run.deepspeed says it."""
OVERHEAD: dict[Device, int] = {"cuda": 1_500_000_000, "cpu": 600_000_000}
"""Bytes of a rank that is not yet training. GPU: CUDA's context, NCCL's and cuBLAS's buffers: an
assumption, 0.5 to 1.5 GB are usual. CPU: the interpreter with torch and DeepSpeed, measured 0.5
GB."""
LARGE = 80_000_000_000
"""Bytes of a GPU's memory, where nobody says how many it has."""
FRAGMENTATION = 1.1
"""Bytes that torch's caching allocator holds on a GPU for one that is used by activations: an
assumption."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank. `peak` is not their plain sum: activations are gone when the update's end
    needs its own."""

    weights: int
    """What the forward pass reads."""
    optimizer: int
    """The rank's share of both moments and, under ZeRO, of fp32 weights."""
    gradients: int
    """As they add up over the micro-batches."""
    bucket: int
    """DeepSpeed's buffer for gradients on their way, held from the first gradient of a backward
    pass on."""
    activations: int
    """What autograd keeps of a micro-batch from the forward pass to the backward pass."""
    teacher: int
    """Of a distillation: its weights, and what it and its losses hold of a micro-batch."""
    logits: int
    """Of the output matrix and the cross-entropy: their gradients in fp32, and the scores of a
    chunk of rows."""
    update: int
    """At the end of an update, when activations and logits are gone: gradients of the tied
    embeddings, flat copies."""
    copies: int
    """Of rank 0: weights and moments of a checkpoint while it is written. None on a GPU: they lie
    in the machine's memory."""
    overhead: int
    offloaded: int = 0
    """Of the machine's memory, not the device's, where `run.deepspeed` offloads the optimizer: its
    states, and the gradients that it makes the step with."""

    @property
    def peak(self) -> int:
        held = self.weights + self.optimizer + self.gradients + self.bucket + self.copies
        held += self.overhead + self.teacher
        return held + max(self.activations + self.logits, self.update)


def activation_bytes(
    model: ModelConfig,
    blocks: int,
    block_length: int,
    masked: float,
    precision: str,
    device: Device,
    padded: bool,
    checkpointing: bool = False,
    eager: bool = False,
) -> int:
    """Bytes that autograd keeps of N blocks between the forward and the backward pass, without the
    logits.

    A layer keeps 8 H + 2 F numbers of a token: its input, queries, keys, values, what attention
    gives, the sums before both LayerNorms, what the first gives, and the feed-forward before and
    after GELU. With F = 4 H and dropout on a GPU this is the 34 H bytes of Korthikanti et al. 2022,
    section 4.1, less the L x L scores, which torch's fused attention does not keep. On CPU it has
    no kernel with dropout: there attention dropout costs three (A x L x L) tensors of a layer in
    fp32, and in bf16 fp32 copies of queries, keys and values. `eager`: attention is written out,
    and keeps its probabilities, with dropout also its mask and what it leaves of them; without, a
    layer at a time holds one more while it is computed. `padded`: a mask of L is kept for each
    layer and block. `checkpointing`: layers keep their inputs, and all of the rest is there for one
    layer at a time."""
    size = DTYPE_BYTES[precision]
    h, f, heads, tokens = model.hidden, model.feed_forward, model.heads, blocks * block_length
    # masks of dropout: torch keeps booleans on a GPU, factors on CPU
    dropout = (1 if device == "cuda" else size) * h if model.dropout else 0
    layer = (8 * h + 2 * f) * size + 2 * dropout + 16  # 16: mean and deviation of two LayerNorms
    scores, passing = heads * block_length, 0
    if eager and model.attention_dropout:
        layer += scores * (2 * size + (1 if device == "cuda" else size))
    elif eager:
        layer, passing = layer + scores * size, scores * size
    elif device == "cpu" and model.attention_dropout:
        layer += 3 * scores * 4 + 3 * h * (4 - size)
    else:
        layer += 4 * heads + (size if padded else 0)

    embeddings = h * size + dropout + 8 + 3 * 8  # one LayerNorm; ids of tokens, positions and types
    head = 3 * h * size + 8  # dense, GELU and LayerNorm keep their inputs; mean and deviation
    layers = model.layers * h * size + layer if checkpointing else model.layers * layer
    return round(tokens * (layers + passing + embeddings + masked * head))


def logits_bytes(
    model: ModelConfig,
    vocab_size: int,
    masked_tokens: float,
    precision: str,
    device: Device,
    elements: int = ELEMENTS,
) -> int:
    """Bytes of the output matrix and the cross-entropy (pretrain/cross_entropy.py) at their peak;
    `elements`: scores of a chunk.

    Kept from the forward to the backward pass: the gradients of the matrix, its bias and the hidden
    states, in fp32. Beside them in fp32: a chunk's scores and log-probabilities; or in the backward
    pass, the gradients that are handed on. In 16 bits: a chunk's scores, with a copy and the
    log-probabilities in fp32; or its probabilities in both, with what they add to the matrix's
    gradient, which a CPU first copies into fp32."""
    matrix = vocab_size * model.hidden
    kept = 4 * (matrix + vocab_size + masked_tokens * model.hidden)
    chunk = min(masked_tokens, max(1, elements // vocab_size)) * vocab_size
    if precision == "fp32":
        beside = max(8 * chunk, kept)
    else:
        beside = max(10 * chunk, 6 * chunk + (2 if device == "cuda" else 6) * matrix)

    return round(kept + beside)


def rank_memory(
    config: PretrainingConfig,
    ranks: int,
    device: Device,
    micro_batch: int | None = None,
    there_is: int | None = None,
) -> RankMemory:
    """Bytes of a rank at its peak, as the engine has DeepSpeed 0.19.8 hold them. The largest rank
    is rank 0, which writes the checkpoints.

    Bytes of a parameter, R ranks (measured; tests/unit/preflight/test_preflight_estimates.py):

        stage 0 fp32   weights 4, moments 8,               gradients 4,
                       flat copy of them 4 (one rank: none)
        stage 1 fp32   weights 4, fp32 copy and moments 12/R, gradients 4,        bucket
        stage 2 fp32   weights 4, fp32 copy and moments 12/R, gradients 4 + 4/R,  bucket
        stage 1 bf16   weights 2, fp32 copy and moments 12/R, gradients 4,        no bucket; in
                       bf16 on their way, with run.reduce_dtype bf16: 2
        stage 2 bf16   weights 2, fp32 copy and moments 12/R, gradients 2 + 4/R,  bucket,
                       at the end its fp32 copy

        stage 3        as stage 2, and the parts of the weights beside them: 4/R or 2/R

    Stage 3 gives no weights back between the passes where they are fewer than 10^9 (its
    `stage3_max_reuse_distance`). Not measured: fp16, taken for bf16 with a bucket; an offloaded
    optimizer, whose states lie in the machine's memory (`offloaded`), as do gradients on their way.
    `micro_batch`: blocks; default: the config's. `there_is`: bytes of the device's memory; default:
    a GPU's is taken to be large. What `run.deepspeed` changes is not followed, but for the bucket's
    size. Blocks are taken to be padded."""
    model, vocab_size = config.model, config.tokenizer.vocab_size
    run = config.run.settled(device, computes_in_bf16=device == "cuda")
    block_length, masked = config.data.block_length, config.masking.highest_probability
    blocks = micro_batch or run.micro_batch
    count = parameters(model, vocab_size)
    size, share = DTYPE_BYTES[run.precision], math.ceil(count / ranks)
    average = 4 if config.optim.average else 0
    stage, plain, on_gpu = run.zero_stage_for(ranks), run.precision == "fp32", device == "cuda"

    # the tied matrix gets a gradient as output and another as input, and they are added
    tied = 3 * size * vocab_size * model.hidden
    bucket, reduced = _bucket(run, stage, count, on_gpu)
    offloaded = offloads_optimizer(run)
    if stage == 0:
        flat_copy = 4 * count if ranks > 1 else 0
    elif (stage, run.precision) == (1, "bf16") and not offloaded:
        flat_copy = 2 * count if ranks > 1 and run.reduce_dtype == "bf16" else 0
    else:
        flat_copy = 4 * share if plain else max(size * count, reduced)

    activations = activation_bytes(
        model,
        blocks,
        block_length,
        masked,
        run.precision,
        device,
        padded=True,
        checkpointing=run.activation_checkpointing,
        eager=is_eager(run, device),
    )
    states = (12 + average) * share if stage else (8 + average) * count
    elements = chunk_scores(there_is or LARGE if on_gpu else None)
    return RankMemory(
        weights=size * (count + share if stage == 3 else count),
        optimizer=0 if offloaded else states,
        gradients=_gradients(count, share, stage, plain),
        bucket=bucket,
        activations=round(activations * (FRAGMENTATION if on_gpu else 1)),
        teacher=_teacher(config, run, blocks * block_length, elements, is_eager(run, device)),
        logits=logits_bytes(
            model,
            vocab_size,
            blocks * block_length * masked,
            run.precision,
            device,
            elements,
        ),
        update=max(tied, flat_copy),
        copies=0 if on_gpu else checkpoint_bytes(count, config.optim.average),
        overhead=OVERHEAD[device],
        offloaded=states + 4 * share if offloaded else 0,
    )


def _teacher(
    config: PretrainingConfig, run: RunConfig, tokens: int, elements: int, eager: bool
) -> int:
    """Bytes that a teacher adds: its weights; its hidden states, in fp32 too for their cosine, and
    what a layer of it holds at a time; and of the soft loss the gradients of matrix and hidden
    states, once more, and of all tokens, if it is over those, with three tensors of a chunk of
    `elements` scores."""
    teacher = teacher_of(config)
    if teacher is None:
        return 0

    assert config.distillation
    model, vocab_size, size = config.model, config.tokenizer.vocab_size, DTYPE_BYTES[run.precision]
    h, f = model.hidden, model.feed_forward
    over_all = config.distillation.soft_over == "tokens"
    compared = tokens * (1.0 if over_all else config.masking.highest_probability)
    weights = size * parameters(teacher.model(model), vocab_size)
    # a layer's: input, queries, keys, values, with scores before and after the softmax where
    # attention is written out; or the feed-forward on both sides of GELU
    scores = 2 * model.heads * config.data.block_length if eager else 0
    states = tokens * (size * (h + max(4 * h + scores, h + 2 * f)) + 8 * h)
    soft = 4 * (vocab_size * (h + 1) + compared * h) + (compared * 3 * h * size if over_all else 0)
    chunk = min(compared, max(1, elements // vocab_size)) * vocab_size
    return round(weights + states + soft + 3 * 4 * chunk)


def is_eager(run: RunConfig, device: Device) -> bool:
    """Whether attention is written out: where the config says so, and by `auto` on a CPU in bf16
    (robustly.pretrain.attention, which needs torch)."""
    if run.attention == "auto":
        return device == "cpu" and run.precision == "bf16"
    return run.attention == "eager"


def offloads_optimizer(run: RunConfig) -> bool:
    """Whether `run.deepspeed` has the optimizer's states and work elsewhere than on the device."""
    zero: Any = run.deepspeed.get("zero_optimization")
    offload = zero.get("offload_optimizer") if isinstance(zero, dict) else None
    return isinstance(offload, dict) and offload.get("device", "cpu") != "none"


def _gradients(count: int, share: int, stage: int, plain: bool) -> int:
    """Bytes of the gradients as they add up; `share`: parameters of one rank."""
    if stage == 0:
        return 4 * count
    if plain:
        return 4 * count + (4 * share if stage >= 2 else 0)
    return 2 * count + 4 * share if stage >= 2 else 4 * count


def _bucket(run: RunConfig, stage: int, count: int, on_gpu: bool) -> tuple[int, int]:
    """Bytes of the bucket, and of the copy of its content that is reduced in fp32 where it is bf16.

    Only stage 0 and BF16_Optimizer (stage 1, bf16) have none. A GPU gives the whole buffer, a CPU
    the memory pages that are written."""
    if stage == 0 or (stage, run.precision) == (1, "bf16"):
        return 0, 0

    zero: Any = run.deepspeed.get("zero_optimization")
    elements = REDUCE_BUCKET
    if isinstance(zero, dict):
        elements = int(zero.get("reduce_bucket_size", REDUCE_BUCKET))

    used = min(elements, count)
    reduced = 0 if run.precision == "fp32" else 4 * used
    return DTYPE_BYTES[run.precision] * (elements if on_gpu else used), reduced


def largest_micro_batch(config: PretrainingConfig, ranks: int, device: Device, limit: int) -> int:
    """The most blocks of a micro-batch whose peak is at most `limit` bytes; 0 if not even one
    fits."""

    def fits(blocks: int) -> bool:
        return rank_memory(config, ranks, device, blocks, limit).peak <= limit

    if not fits(1):
        return 0

    above = 2
    while fits(above) and above < 2**20:
        above *= 2

    below = above // 2
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (middle, above) if fits(middle) else (below, middle)

    return below
