"""Find the subspace of intrinsic prompt tuning: few numbers, and a decoder that makes the prompts
of several tasks out of them.

An auto-encoder is trained on prompts that were trained one by one; its decoder is kept, in a folder
of its own, and `intrinsic_prompt` tunes the decoder's input on further tasks (Qin et al. 2021)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from robustly import UserError, log
from robustly.delta.base_model import Base
from robustly.delta.config import DeltaExperiment
from robustly.delta.layers.soft_tokens import decode
from robustly.delta.methods import Prompt, PTuning
from robustly.delta.methods.intrinsic_prompt import DECODER, RECORD, SourceTask, Subspace
from robustly.delta.stage import make_delta
from robustly.delta.storage import saving
from robustly.delta.tasks.data import draw, read
from robustly.delta.tuning.trainer import batches
from robustly.files import write_atomic, write_json
from robustly.manifest import Manifest, Stage
from robustly.rng import Purpose, seed64

RECONSTRUCTION = 200.0
"""Weight of the mean squared error beside a task's loss (the default of the authors' code)."""


@dataclass(frozen=True)
class Fitted:
    """A decoder, and how well it reproduces the prompts that it was found on."""

    decoder: dict[str, Tensor]
    error: float
    """Mean squared error of the prompts, after training."""
    variance: float
    """The same with the mean prompt in the place of each: what knows nothing has."""
    prompts: Tensor
    """As the decoder makes them, tasks x tokens x hidden."""


def fit(
    prompts: Tensor,
    dimension: int,
    width: int = 768,
    updates: int = 1000,
    peak_lr: float = 1e-3,
    seed: int = 1,
    task_loss: Callable[[int, Tensor], Tensor] | None = None,
) -> Fitted:
    """Find a decoder from `dimension` numbers to prompts. `prompts`: tasks x tokens x hidden.

    The encoder is a linear map, the decoder linear-tanh-linear through `width`, as in the paper's
    section 3.2. Each update of Adam is over all prompts, its rate falls to 0 along a line. The
    result is a function of the arguments on one machine.

    The paper trains on the tasks' own loss through the decoded prompts as well. `task_loss(task,
    prompt)` is that loss, of the task's number for its decoded prompt (tokens x hidden); its mean
    over the tasks is added to 200 times the mean squared error. Without it the error alone is
    trained on, which the paper does not do."""
    tasks, tokens, hidden = prompts.shape
    flat = prompts.detach().float().flatten(1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed64(seed, Purpose.INIT, 0, 0))
        encoder = nn.Linear(tokens * hidden, dimension).to(flat.device)
        inner = nn.Linear(dimension, width).to(flat.device)
        outer = nn.Linear(width, tokens * hidden).to(flat.device)

    decoder: dict[str, Tensor] = {
        "inner_weight": inner.weight,
        "inner_bias": inner.bias,
        "outer_weight": outer.weight,
        "outer_bias": outer.bias,
    }
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.values()], lr=peak_lr, fused=True)

    with log.progress("subspace", updates, "updates") as advance:
        for update in range(updates):
            decoded = decode(decoder, encoder(flat))
            error = RECONSTRUCTION * nn.functional.mse_loss(decoded, flat)
            optimizer.zero_grad()
            _backward(error, decoded, (tokens, hidden), task_loss)
            optimizer.param_groups[0]["lr"] = peak_lr * (1 - update / updates)
            optimizer.step()
            advance(1)

    with torch.no_grad():
        decoded = decode(decoder, encoder(flat))

    return Fitted(
        {name: tensor.detach().cpu().contiguous() for name, tensor in decoder.items()},
        nn.functional.mse_loss(decoded, flat).item(),
        flat.var(dim=0, correction=0).mean().item(),
        decoded.view(tasks, tokens, hidden),
    )


def _backward(
    error: Tensor,
    decoded: Tensor,
    shape: tuple[int, int],
    task_loss: Callable[[int, Tensor], Tensor] | None,
) -> None:
    """Leave the gradients of the error and of the tasks' mean loss; the activations of one task are
    held at a time."""
    if task_loss is None:
        error.backward()
        return

    prompts = decoded.detach().requires_grad_()
    for task, prompt in enumerate(prompts):
        (task_loss(task, prompt.view(shape)) / len(prompts)).backward()

    torch.autograd.backward([error, decoded], [None, prompts.grad])


def make_subspace(
    configs: Sequence[DeltaExperiment],
    folder: Path,
    dimension: int,
    width: int = 768,
    updates: int = 1000,
    peak_lr: float = 1e-3,
    seed: int = 1,
) -> Manifest:
    """Find a decoder on the prompts of several tasks and on their losses, and save it into a
    folder. Deltas of the configs that are not finished are trained first.

    `configs`: one for each task, with the one method `prompt` or `p_tuning`, all of one base and
    one number of tokens. A task's loss is that of a batch of its training examples, through its
    delta's own head, without dropout.

    Raises UserError if there are fewer than two, if one is something else, or if the folder holds
    another subspace."""
    _check(configs, dimension, width)
    made = [make_delta(config) for config in configs]
    recipe = {
        "dimension": dimension,
        "width": width,
        "updates": updates,
        "peak_lr": peak_lr,
        "seed": seed,
    }
    inputs = {f"delta {config.name}": one.hash for config, one in zip(configs, made, strict=True)}
    stage = Stage(folder, "subspace", recipe, inputs)
    if finished := stage.finished():
        return finished

    with stage.begin():
        base = Base.load(configs[0].base)
        tasks = [_PromptedTask(config, base, updates, seed) for config in configs]
        own = torch.stack([task.prompt for task in tasks])

        def task_loss(task: int, prompt: Tensor) -> Tensor:
            return tasks[task].loss(prompt)

        fitted = fit(own, dimension, width, updates, peak_lr, seed, task_loss)
        found = [
            task.compare(one.hash, prompt)
            for task, one, prompt in zip(tasks, made, fitted.prompts, strict=True)
        ]

        _, tokens, hidden = own.shape
        write_atomic(folder / DECODER, save(fitted.decoder))
        record = Subspace(dimension, tokens, hidden, width, base.fingerprint, found)
        write_json(folder / RECORD, asdict(record))
        counts = {
            "prompts": len(configs),
            "prompt_parameters": tokens * hidden,
            "dimension": dimension,
            "decoder_parameters": sum(tensor.numel() for tensor in fitted.decoder.values()),
            "squared_error": fitted.error,
            "squared_error_of_the_mean_prompt": fitted.variance,
        }
        return stage.finish([folder / DECODER, folder / RECORD], counts)


def _check(configs: Sequence[DeltaExperiment], dimension: int, width: int) -> None:
    if len(configs) < 2:
        raise UserError(
            f"expected configs of two tasks or more, found {len(configs)}: a subspace is what"
            " tasks share"
        )

    names = [config.name for config in configs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"two configs are named {twice.pop()!r}; expected another `name` for each")

    for name, value in (("dimension", dimension), ("width", width)):
        if value < 1:
            raise UserError(f"{name} = {value}: expected 1 or more")

    first = _prompt(configs[0])

    for config in configs[1:]:
        if (tokens := _prompt(config)) != first:
            raise UserError(
                f"{config.name}: {tokens} tokens, {configs[0].name} has {first}; expected one"
                " number"
            )
        if config.base.resolve() != configs[0].base.resolve():
            raise UserError(
                f"{config.name}: of the base {config.base}, {configs[0].name} of {configs[0].base};"
                " expected one"
            )


def _prompt(config: DeltaExperiment) -> int:
    """Tokens of a config's prompt. Raises UserError if it has another method."""
    match config.delta.methods:
        case [Prompt() | PTuning() as method]:
            return method.tokens

    found = config.delta.methods
    names = found if isinstance(found, str) else ", ".join(method.name for method in found)
    raise UserError(
        f"{config.name}: delta.methods: expected the one method `prompt` or `p_tuning`, found"
        f" {names}"
    )


class _GivenPrompt(nn.Module):
    """A prompt that is set from outside."""

    rows: Tensor

    def forward(self) -> Tensor:
        return self.rows


class _PromptedTask:
    """The task of a finished delta, to be solved with any prompt in the place of its own."""

    def __init__(self, config: DeltaExperiment, base: Base, updates: int, seed: int):
        self.data = read(config.delta.task)
        self.name, self.metric = config.name, self.data.metric
        self.predictor = saving.reload(base, config.folder("delta"))
        model, head = self.predictor.model, self.predictor.head
        model.to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_(False)
        words = model.roberta.embeddings.word_embeddings
        self.prompt = words.rows().detach().clone()
        """The delta's own, tokens x hidden."""
        self.given = words.prompt = _GivenPrompt()
        self.rows = head.encode(draw(self.data, config.delta.task.examples, config.seed))
        lengths = [head.length(row) for row in self.rows]
        self.batches = batches(lengths, config.optim.batch_size, updates, seed)

    def loss(self, prompt: Tensor) -> Tensor:
        """Of the next batch."""
        self.given.rows = prompt
        model, head = self.predictor.model, self.predictor.head
        batch = [self.rows[place] for place in next(self.batches)]
        inputs = head.batch(batch, model.device)
        return head.loss(head.logits(model, inputs, batch), batch)

    def score(self, prompt: Tensor) -> float:
        """The main score on the test file."""
        self.given.rows = prompt
        return self.predictor.judge(self.data.test).scores[self.metric]

    def compare(self, delta: str, decoded: Tensor) -> SourceTask:
        """Score the delta's own prompt and the decoded one. `delta`: its hash."""
        before, after = self.score(self.prompt), self.score(decoded)
        log.say(
            f"{self.name}  {self.metric}: own prompt {log.show(before)}, decoded {log.show(after)}"
        )
        return SourceTask(self.name, delta, self.metric, before, after)
