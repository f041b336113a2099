"""Delta methods, a file each: its keys in a config, how it attaches, its parameter count, default
learning rate, merging, and its form in peft.

`METHODS` is the registry. A method's start is drawn by its place in it: a new one goes to the end,
unless it must be attached before another one."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    conlist,
    create_model,
)

from robustly import UserError
from robustly.config import described
from robustly.delta.methods.adalora import AdaLora
from robustly.delta.methods.adapter import Adapter
from robustly.delta.methods.baselines import Full, HeadOnly
from robustly.delta.methods.bitfit import BitFit
from robustly.delta.methods.ia3 import Ia3
from robustly.delta.methods.intrinsic_prompt import IntrinsicPrompt
from robustly.delta.methods.lora import Dora, Lora
from robustly.delta.methods.method import Method, listed
from robustly.delta.methods.p_tuning import PTuning
from robustly.delta.methods.prefix import Prefix, PTuningV2
from robustly.delta.methods.prompt import Prompt
from robustly.delta.methods.routed import Routed

METHODS: tuple[type[Method], ...] = (
    Lora,  # peft's come first: they replace linear maps by name, and must not find those of others
    Dora,
    Ia3,
    AdaLora,
    Adapter,
    Prompt,  # before prefixes: a prefix stands before all tokens, a prompt's too
    PTuning,
    IntrinsicPrompt,
    Prefix,
    PTuningV2,
    BitFit,
    HeadOnly,
    Full,
    Routed,  # finds linear maps, by the names that they have under other methods, too
)
"""In the order in which they are attached."""


def _each_once(value: list[Method]) -> list[Method]:
    names = [method.name for method in value]
    if len(set(names)) != len(names):
        raise ValueError(f"expected each method once, found {', '.join(names)}")
    return value


def _list_of(methods: Iterable[type[Method]]) -> Any:
    """The type of a list of these methods, told apart by their names."""
    one: Any = Annotated[reduce(or_, methods), Field(discriminator="name")]
    several: Any = conlist(one, min_length=1)
    return Annotated[several, BeforeValidator(listed), AfterValidator(_each_once)]


if TYPE_CHECKING:
    Methods = list[Method]
else:
    Methods = _list_of(METHODS)


def parse(methods: object) -> list[Method]:
    """Methods as in a config, or as made already. Raises UserError with what is wrong."""
    given, schema = {"methods": methods}, _given(METHODS)
    try:
        return schema.model_validate(given).methods  # type: ignore[attr-defined]
    except ValidationError as error:
        raise UserError("\n".join(described(error, given, schema))) from None


@cache
def _given(methods: tuple[type[Method], ...]) -> type[BaseModel]:
    return create_model("Given", methods=(_list_of(methods), ...))


def name_of(method: type[Method]) -> str:
    """What a method is called in a config."""
    return str(get_args(method.model_fields["name"].annotation)[0])


def label(methods: Sequence[Method]) -> str:
    """Methods for people: their names, with what is not the default, such as `lora (rank 4) +
    bitfit`; equal ones are counted."""
    counts = Counter(_label(method) for method in methods)
    return " + ".join(one if count == 1 else f"{count} x {one}" for one, count in counts.items())


def _label(method: Method) -> str:
    own = method.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
    stated = [f"{key} {_stated(getattr(method, key))}" for key in own]
    return f"{method.name} ({', '.join(stated)})" if stated else method.name


def _stated(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return label(value) if isinstance(value[0], Method) else " ".join(map(str, value))
