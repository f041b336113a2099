"""Act, while a delta is tuned, on what `watching` decides: go back, lower a rate, switch a method
off and let another one grow."""

import dataclasses

from robustly import log
from robustly.delta.methods.method import Method
from robustly.delta.tasks.metrics import gain
from robustly.delta.tuning import watching
from robustly.delta.tuning.trainer import DeltaTrainer
from robustly.delta.tuning.watching import Look
from robustly.log import show


def begin(trainer: DeltaTrainer) -> None:
    """Look at the delta before training, which is the first state to go back to."""
    look = trainer.look()
    trainer.take(look)
    trainer.course.looks.append(look)
    trainer.course.moved = 1


def watch(trainer: DeltaTrainer, look: Look) -> None:
    """Act on what was seen after an epoch."""
    course = trainer.course
    course.looks.append(look)
    move = watching.move(
        course.looks, course.moved, len(trainer.methods), trainer.per_epoch, trainer.baseline
    )
    match move:
        case "back":
            best = watching.best_of(course.looks)
            go_back(
                trainer,
                _to_blame(trainer),
                f"{_score(trainer, look)} on dev, {_score(trainer, best)} after epoch"
                f" {show(best.epoch)}; the loss {show(look.loss)} and {show(best.loss)}",
            )
        case "lower":
            _lower(trainer)
        case "weigh":
            _weigh(trainer)


def go_back(trainer: DeltaTrainer, parts: list[str], why: str) -> bool:
    """Restore the best epoch and lower the rates of some parts: by a half, and by a quarter, an
    eighth, ... more where training falls from that epoch again. Returns False where they are as low
    as they get."""
    course = trainer.course
    course.falls += 1
    shares = {part: watching.lowered(course.shares.get(part, 1.0), course.falls) for part in parts}
    lowered = {part: share for part, share in shares.items() if share is not None}
    if not lowered:
        return False

    trainer.go_back()
    course.shares.update(lowered)
    rates = ", ".join(f"{part} at {show(share)} of its rate" for part, share in lowered.items())
    _note(
        trainer, "back", ", ".join(lowered), f"back to epoch {show(course.epoch)}, {rates}: {why}"
    )
    return True


def _to_blame(trainer: DeltaTrainer) -> list[str]:
    """The method whose return to the best epoch helps most. All parts, the head too, where there is
    but one method, or nothing is learnt yet by which they could be told apart."""
    names = [method.name for method in trainer.methods if method.name in trainer.parts]
    looks = trainer.course.looks
    if len(names) < 2 or not watching.learnt(looks[0], watching.best_of(looks)):
        return trainer.parts
    return [watching.to_blame({name: trainer.returned(name).loss for name in names})]


def _lower(trainer: DeltaTrainer) -> None:
    """Halve the rate of the part that went too far since the best epoch."""
    course = trainer.course
    losses = {part: trainer.returned(part).loss for part in trainer.parts}
    part = watching.to_blame(losses)
    share = watching.lowered(course.shares.get(part, 1.0))
    if share is None:
        return

    course.shares[part] = share
    why = (
        f"no better {trainer.data.metric} for {course.waited} epochs, and without what it learnt in"
        f" them the loss on dev would be {show(losses[part])}, not {show(course.looks[-1].loss)}"
    )
    _note(trainer, "rate", part, f"{show(share)} of its rate from here on: {why}")


def _weigh(trainer: DeltaTrainer) -> None:
    """Switch off a method that counts for nothing, and let the one that counts most have its
    parameters."""
    course = trainer.course
    course.moved = len(course.looks)
    without = {method.name: trainer.without(method.name) for method in trainer.methods}
    off = watching.to_switch_off(course.looks, without)
    if off is None:
        return

    now = course.looks[-1]
    gained = watching.gains(now, without)
    freed = trainer.size(off)
    left = [method for method in trainer.methods if method.name != off]
    left.sort(key=lambda method: gained[method.name], reverse=True)
    grown = _grown(left, {method.name: freed / trainer.size(method.name) for method in left})
    trainer.go_on_with([grown if grown and m.name == grown.name else m for m in left])

    # What is left is the best state so far, and stands in its place.
    course.looks[-1] = dataclasses.replace(without[off], gradients=now.gradients)
    course.score = without[off].score
    trainer.keep()
    why = (
        f"{_score(trainer, without[off])} on dev without it, {_score(trainer, now)} with it; the"
        f" loss {show(without[off].loss)} and {show(now.loss)}"
    )
    _note(trainer, "off", off, f"switched off, {freed:,} parameters: {why}")
    if grown:
        sizes = grown.model_dump(mode="json", exclude_defaults=True, exclude={"name", "lr"})
        now_has = ", ".join(f"{key} {value}" for key, value in sizes.items())
        more = f"grows to {trainer.size(grown.name):,} parameters ({now_has})"
        why = f"of what is left the loss rises most without it, by {show(gained[grown.name])}"
        _note(trainer, "grow", grown.name, f"{more}: {why}")


def _grown(methods: list[Method], shares: dict[str, float]) -> Method | None:
    """The first of the methods that can be larger, with so many times more of its parameters; twice
    as many as it has at most."""
    for method in methods:
        if larger := method.grown(min(1.0, shares[method.name])):
            return larger
    return None


def _score(trainer: DeltaTrainer, look: Look) -> str:
    metric = trainer.data.metric
    return f"{metric} {show(gain(metric, look.score))}"


def _note(trainer: DeltaTrainer, kind: str, part: str, text: str) -> None:
    course = trainer.course
    course.moved = len(course.looks)
    epoch = round(course.updates / trainer.per_epoch, 3)
    course.decisions.append(
        {"update": course.updates, "epoch": epoch, "decision": kind, "part": part, "text": text}
    )
    log.say(f"seed {trainer.seed}  epoch {show(epoch)}  {part}: {text}")
