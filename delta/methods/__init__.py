"""Delta methods, a file each: its keys in a config, how it attaches, its parameter count, default
learning rate, merging, and its form in peft.

`METHODS` is the registry. A method's start is drawn by its place in it: a new one goes to the end,
unless it must be attached before another one."""

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import Field, TypeAdapter, ValidationError, conlist

from robustly import UserError
from robustly.delta.methods.adalora import AdaLora
from robustly.delta.methods.adapter import Adapter
from robustly.delta.methods.baselines import Full, HeadOnly
from robustly.delta.methods.bitfit import BitFit
from robustly.delta.methods.ia3 import Ia3
from robustly.delta.methods.intrinsic_prompt import IntrinsicPrompt
from robustly.delta.methods.lora import Dora, Lora
from robustly.delta.methods.method import Method
from robustly.delta.methods.p_tuning import PTuning
from robustly.delta.methods.prefix import Prefix, PTuningV2
from robustly.delta.methods.prompt import Prompt

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
)
"""In the order in which they are attached."""


def _one_of(methods: Iterable[type[Method]]) -> Any:
    """The type of a section that is one of these methods, told apart by its name."""
    return Annotated[reduce(or_, methods), Field(discriminator="name")]


if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = _one_of(METHODS)


def parse(methods: object) -> list[Method]:
    """Methods as mappings, as in a config, or as made already. Raises UserError with what is
    wrong."""
    adapter: TypeAdapter[list[Method]] = TypeAdapter(conlist(_one_of(METHODS), min_length=1))
    try:
        return adapter.validate_python(methods)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"methods: {faults}") from None


def name_of(method: type[Method]) -> str:
    """What a method is called in a config."""
    return str(get_args(method.model_fields["name"].annotation)[0])


def label(methods: Sequence[Method]) -> str:
    """Methods for people: their names, with what is not the default, such as `lora (rank 4) +
    bitfit`."""
    return " + ".join(_label(method) for method in methods)


def _label(method: Method) -> str:
    own = method.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
    stated = [
        f"{key} {' '.join(value) if isinstance(value, list) else value}"
        for key, value in own.items()
    ]
    return f"{method.name} ({', '.join(stated)})" if stated else method.name
