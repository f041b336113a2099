"""The masked-LM head and its loss, forward and backward, beside transformers': seconds and memory;
and what an evaluation computes.

    python benchmarks/cross_entropy.py

All take the hidden states of the same 8 blocks of 512 tokens, 15% of them masked (614), and give
the loss and the gradients of the hidden states and of the head of RoBERTa-base. "All positions" is
what RobertaForMaskedLM does with the labels that run_mlm gives it; "masked positions" is the same
on these alone. "Compiled" is `run.compile`. Of an evaluation: the loss and the best guess of the
same number of masked tokens, from their hidden states, by the head of RoBERTa-base and by that of a
vocabulary as large as XLM-R's. Memory is what torch gives out more than there was before, at its most. On the GPU
if there is one, in bf16 too; else on one core. The table is printed and written to
benchmarks/results/cross_entropy-<date>.md."""

import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

sys.path.append(
    sys.path.pop(0)
)  # this folder last: a file in it has the name of one of our packages

import torch
from torch import Tensor
from torch.nn import functional
from transformers import RobertaConfig, RobertaForMaskedLM
from transformers.models.roberta.modeling_roberta import RobertaLMHead

from robustly.evaluation.scoring import rows_of_chunk, scores_at
from robustly.pretrain.cross_entropy import guesses, summed_cross_entropy
from robustly.pretrain.objective import MaskedLanguageModel
from robustly.pretrain.score_chunks import ELEMENTS

RESULTS = Path(__file__).parent / "results"
TOKENS, MASKED, SIZE, HIDDEN, ROUNDS = 8 * 512, 614, 50_265, 768, 2
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_all_positions(
    head: RobertaLMHead, hidden: Tensor, positions: Tensor, labels: Tensor
) -> Tensor:
    targets = torch.full((TOKENS,), -100, device=DEVICE).index_copy(0, positions, labels)
    return functional.cross_entropy(head(hidden), targets)


def on_masked_positions(
    head: RobertaLMHead, hidden: Tensor, positions: Tensor, labels: Tensor
) -> Tensor:
    return functional.cross_entropy(head(hidden[positions]).float(), labels)


def by_objective(
    objective: MaskedLanguageModel,
    head: RobertaLMHead,
    hidden: Tensor,
    positions: Tensor,
    labels: Tensor,
) -> Tensor:
    objective.model.lm_head = head
    rows = objective.rows
    scores = objective.scores(hidden[None], positions, rows)
    return summed_cross_entropy(scores, labels, rows, objective.compiled) / MASKED


def objective_of(elements: int, compiled: bool = False) -> MaskedLanguageModel:
    """Without an encoder to speak of."""
    config = RobertaConfig(vocab_size=SIZE, hidden_size=HIDDEN, num_hidden_layers=0)
    made = MaskedLanguageModel(RobertaForMaskedLM(config))
    made.chunk = elements
    if compiled:
        made.compile_head((TOKENS, MASKED / TOKENS))

    return made


def seconds(once: Callable[[], None]) -> float:
    """On a CPU, of one core's time: what else runs on the machine does not count."""
    clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time
    start = clock()
    once()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()

    return clock() - start


def peak(once: Callable[[], None]) -> int:
    """Bytes that torch gives out more than it takes back, at their most."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once()
        return torch.cuda.max_memory_allocated() - before

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        once()

    held = most = 0
    events = profile.profiler.kineto_results.events()

    for _, change in sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    ):
        held += change
        most = max(most, held)

    return most


def measure(dtype: torch.dtype) -> dict[str, tuple[float, int]]:
    """Seconds, the least of some rounds of all in turn, and bytes of each way."""
    torch.manual_seed(0)
    head = RobertaLMHead(RobertaConfig(vocab_size=SIZE, hidden_size=HIDDEN)).to(DEVICE, dtype)
    torch.nn.init.normal_(head.decoder.weight, std=0.02)
    hidden = torch.randn(TOKENS, HIDDEN, device=DEVICE, dtype=dtype, requires_grad=True)
    positions = torch.randperm(TOKENS)[:MASKED].sort().values.to(DEVICE)
    labels = torch.randint(0, SIZE, (MASKED,)).to(DEVICE)
    wanted = [
        hidden,
        *(each for name, each in head.named_parameters() if name != "bias"),
    ]  # tied to the decoder's

    def once(loss: Callable[..., Tensor]) -> None:
        torch.autograd.grad(loss(head, hidden, positions, labels), wanted)

    ways: dict[str, Callable[..., Tensor]] = {
        "transformers, all positions": on_all_positions,
        "transformers, masked positions": on_masked_positions,
        "robustly": partial(by_objective, objective_of(ELEMENTS)),
        "robustly, compiled": partial(by_objective, objective_of(ELEMENTS, compiled=True)),
        **{
            f"robustly, chunks of {elements // SIZE:,} rows": partial(
                by_objective, objective_of(elements)
            )
            for elements in (2**23, 2**24, 2**25)
            if elements != ELEMENTS
        },
    }
    once(ways["robustly, compiled"])  # compiles
    held = {name: peak(partial(once, loss)) for name, loss in ways.items()}
    times = {name: seconds(partial(once, loss)) for name, loss in ways.items()}
    for _ in range(ROUNDS - 1):
        for name, loss in ways.items():
            if loss is not on_all_positions:  # it is far behind
                times[name] = min(times[name], seconds(partial(once, loss)))

    return {name: (times[name], held[name]) for name in ways}


def evaluations() -> str:
    """All scores at once, as it was, beside chunks."""
    rows = []
    for entries in (SIZE, 250_002):
        config = RobertaConfig(
            vocab_size=entries,
            hidden_size=HIDDEN,
            num_hidden_layers=0,
            max_position_embeddings=514,
        )
        model = RobertaForMaskedLM(config).to(DEVICE).eval()
        inputs = torch.randint(4, entries, (8, 512)).to(DEVICE)
        targets = torch.rand(8, 512).argsort(1).to(DEVICE) < round(0.15 * 512)
        labels = inputs[targets]
        computed = scores_at(model, inputs, torch.ones_like(inputs), targets)
        with torch.no_grad():
            computed(slice(1))  # runs the encoder
            found = {}
            for at_once in (len(labels), rows_of_chunk(model)):
                pass_ = partial(guesses, computed, labels, at_once)
                found[at_once] = peak(pass_), seconds(pass_), pass_().losses

        (all_held, all_time, losses), (held, taken, ours) = found.values()
        apart = float((ours - losses).abs().max())
        rows.append(
            f"| {entries:,} | {len(labels):,} | {all_time * 1000:,.0f} | {all_held / 1e6:,.0f} |"
            f" {rows_of_chunk(model)} | {taken * 1000:,.0f} | {held / 1e6:,.0f} | {apart:.0e} |"
        )

    table = "\n".join(rows)
    return f"""
Evaluation, float32:

| vocabulary | masked tokens | all at once, ms | MB | rows of a chunk | in chunks, ms | MB | losses apart, nats |
| --- | --- | --- | --- | --- | --- | --- | --- |
{table}
"""


def table(dtype: torch.dtype) -> str:
    found = measure(dtype)
    first = found["transformers, masked positions"][0]
    rows = "\n".join(
        f"| {name} | {time_ * 1000:,.0f} | {first / time_:.2f} | {held / 1e6:,.0f} |"
        for name, (time_, held) in found.items()
    )

    return f"""
| {str(dtype).removeprefix("torch.")} | ms | speed | MB |
| --- | --- | --- | --- |
{rows}
"""


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "one core"
    text = f"""# Head and cross-entropy

{time.strftime("%Y-%m-%d")}, {where}, {platform.machine()}, Python {platform.python_version()},
torch {torch.__version__}, transformers {version("transformers")}.
{TOKENS:,} tokens, {MASKED} masked, {SIZE:,} entries of the vocabulary, {HIDDEN} hidden units.
Forward and backward; "speed" against transformers on masked positions; chunks of {ELEMENTS // SIZE} rows unless said.
{table(torch.float32)}{table(torch.bfloat16) if DEVICE.type == "cuda" else ""}{evaluations()}"""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"cross_entropy-{time.strftime('%Y-%m-%d')}.md").write_text(text)
    print(text)
