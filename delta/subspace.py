"""The first stage of intrinsic prompt tuning: a space of few numbers in which the prompts of several tasks lie.

An auto-encoder is trained on prompts that were trained one by one; its decoder is kept, in a folder of its own, and
`intrinsic_prompt` tunes the decoder's input on further tasks (Qin et al. 2021).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from delta.attachment import is_head
from delta.folder import TENSORS
from delta.methods.intrinsic_prompt import DECODER, RECORD, Record, decode
from delta.methods.soft_tokens import TABLE
from robustly import UserError, log, manifest
from robustly.manifest import Manifest, Stage, write_atomic, write_json
from robustly.rng import Purpose, seed64

RECONSTRUCTION = 200.0
"""Weight of the mean squared error beside a task's loss (the default of the authors' code)."""


@dataclass(frozen=True)
class Fitted:
    """A decoder and how well it gives back the prompts that it was found on."""

    decoder: dict[str, Tensor]
    error: float
    """Mean squared error of the prompts, after training."""
    variance: float
    """The same for what knows nothing: their mean in the place of each."""


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

    The encoder is a linear map, the decoder linear-tanh-linear through `width`, as in the paper's section 3.2. Each
    update of Adam is over all prompts, its rate falls to 0 along a line. The result is a function of the arguments on
    one machine.

    The paper trains on the tasks' own loss through the decoded prompts as well. `task_loss(task, prompt)` is that loss,
    of the task's number for its decoded prompt (tokens x hidden); its mean over the tasks is added to 200 times the
    mean squared error. Without it the error alone is trained on, which the paper does not do.
    """
    tasks, tokens, hidden = prompts.shape
    flat = prompts.detach().float().flatten(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed64(seed, Purpose.INIT, 0, 0))
        encoder = nn.Linear(tokens * hidden, dimension).to(flat.device)
        inner, outer = (nn.Linear(*sizes).to(flat.device) for sizes in ((dimension, width), (width, tokens * hidden)))
    decoder: dict[str, Tensor] = {
        "inner_weight": inner.weight, "inner_bias": inner.bias, "outer_weight": outer.weight, "outer_bias": outer.bias,
    }  # fmt: skip
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.values()], lr=peak_lr, fused=True)
    with log.progress("subspace", updates, "updates") as advance:
        for update in range(updates):
            decoded = decode(decoder, encoder(flat))
            loss = RECONSTRUCTION * nn.functional.mse_loss(decoded, flat)
            if task_loss:
                losses = [task_loss(task, decoded[task].view(tokens, hidden)) for task in range(tasks)]
                loss = loss + torch.stack(losses).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = peak_lr * (1 - update / updates)
            optimizer.step()
            advance(1)
    with torch.no_grad():
        error = nn.functional.mse_loss(decode(decoder, encoder(flat)), flat).item()
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in decoder.items()}
    return Fitted(kept, error, flat.var(dim=0, correction=0).mean().item())


def make_subspace(
    deltas: list[Path],
    folder: Path,
    dimension: int,
    width: int = 768,
    updates: int = 1000,
    peak_lr: float = 1e-3,
    seed: int = 1,
) -> Manifest:
    """Find a decoder on the prompts of finished deltas, one for each task, and save it into a folder, without the
    tasks' own loss (see `fit`). What is there already is not made again.

    `deltas`: folders of deltas with the method `prompt` or `p_tuning`, of one base and one number of tokens. Raises
    UserError if there are fewer than two, if one is something else, or if the folder holds another subspace.
    """
    _check(deltas, dimension, width)
    names = [delta.resolve().name for delta in deltas]
    prompts, sources = zip(*(_prompt(delta) for delta in deltas), strict=True)
    for delta, prompt, source in zip(deltas, prompts, sources, strict=True):
        if source.inputs["base"] != sources[0].inputs["base"]:
            raise UserError(f"{delta}: of another base than {deltas[0]}; expected deltas of one base")
        if len(prompt) != len(prompts[0]):
            raise UserError(f"{delta}: {len(prompt)} tokens, {deltas[0]} has {len(prompts[0])}; expected one number")
    recipe = {"dimension": dimension, "width": width, "updates": updates, "peak_lr": peak_lr, "seed": seed}
    inputs = {f"delta {name}": source.hash for name, source in zip(names, sources, strict=True)}
    stage = Stage(folder, "subspace", recipe, inputs)
    if finished := stage.finished():
        return finished
    with stage.begin():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        fitted = fit(torch.stack(prompts).to(device), dimension, width, updates, peak_lr, seed)
        tokens, hidden = prompts[0].shape
        record = Record(dimension, tokens, hidden, width, sources[0].inputs["base"], names)
        write_atomic(folder / DECODER, save(fitted.decoder))
        write_json(folder / RECORD, asdict(record))
        counts = {
            "prompts": len(deltas),
            "prompt_parameters": prompts[0].numel(),
            "dimension": dimension,
            "decoder_parameters": sum(tensor.numel() for tensor in fitted.decoder.values()),
            "squared_error": fitted.error,
            "squared_error_of_the_mean_prompt": fitted.variance,
        }
        return stage.finish([folder / DECODER, folder / RECORD], counts)


def _check(deltas: list[Path], dimension: int, width: int) -> None:
    if len(deltas) < 2:
        raise UserError(f"expected deltas of two tasks or more, found {len(deltas)}: a subspace is what tasks share")
    names = [delta.resolve().name for delta in deltas]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"two deltas are named {twice.pop()!r}; expected another name for each")
    for name, value in (("dimension", dimension), ("width", width)):
        if value < 1:
            raise UserError(f"{name} = {value}: expected 1 or more")


def _prompt(folder: Path) -> tuple[Tensor, Manifest]:
    """The prompt of a finished delta, tokens x hidden."""
    done = manifest.require(folder, "delta", "robustly delta CONFIG")
    if TENSORS not in done.outputs:
        raise UserError(f"{folder}: holds no {TENSORS}; make the delta anew with this release")
    manifest.verify(folder, done, TENSORS)
    try:
        with safe_open(folder / TENSORS, framework="pt") as file:
            if (ours := [name for name in file.keys() if not is_head(name)]) != [TABLE]:  # noqa: SIM118 - no mapping
                raise UserError(
                    f"{folder}: expected a prompt and a head alone, found {', '.join(ours[:3]) or 'a head'}; give "
                    "deltas with the one method `prompt` or `p_tuning`"
                )
            return file.get_tensor(TABLE), done
    except SafetensorError as error:
        raise UserError(f"{folder / TENSORS}: damaged ({error}); make the delta anew") from None
