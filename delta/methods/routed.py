"""Routed: several prompts, prefixes or LoRAs, and a router that mixes them for each input by its
features (Wang et al. 2022, Learning to Prompt; Wu et al. 2022, instance-dependent prompts)."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from robustly.delta.methods.lora import Lora
from robustly.delta.methods.method import Method, Network, listed
from robustly.delta.methods.prefix import Prefix, PTuningV2
from robustly.delta.methods.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Expert = Annotated[Prompt | Prefix | PTuningV2 | Lora, Field(discriminator="name")]
_EQUAL = ("name", "tokens", "targets", "dropout")
"""Keys that all experts of a router share."""


def _four_prompts() -> list[Any]:
    """With their keys, as many parameters as one prompt of 20 tokens has."""
    return [Prompt(name="prompt", tokens=4) for _ in range(4)]


class Routed(Method):
    """Several prompts, prefixes or LoRAs, of which each input has a mixture of its own, or one: the
    share of each is by the cosine of its key to the input's features, which the encoder without
    them has in a first pass (Wang et al. 2022, section 4; Wu et al. 2022, section 3)."""

    name: Literal["routed"]
    of: Annotated[
        list[Expert],
        BeforeValidator(listed),
        Field(min_length=2, default_factory=_four_prompts),
    ]
    """The experts, all of one method: `prompt`, `prefix`, `p_tuning_v2` or `lora`."""
    top: Literal["soft", 1] = "soft"
    """soft: a mixture of all; 1: the best alone."""

    why_not_merged: ClassVar[str | None] = "what it does depends on the input"

    @model_validator(mode="after")
    def _of_one_shape(self) -> Self:
        for key in _EQUAL:
            found = [getattr(expert, key, None) for expert in self.of]
            if any(value != found[0] for value in found):
                shown = ", ".join(map(str, found))
                raise ValueError(f"of: expected one `{key}` for all of them, found {shown}")

        if any(expert.lr is not None for expert in self.of):
            raise ValueError("of: `lr` is for all of them: give it beside `of`")
        return self

    def attach(self, model: "PreTrainedModel") -> None:
        """A router on the encoder, which then runs twice, and the experts where their method has
        them. Raises UserError as their method does."""
        from robustly.delta.layers import prefix, routing, soft_tokens

        router = routing.attach(model, len(self.of), self.top == 1)
        prompts = [expert for expert in self.of if isinstance(expert, Prompt)]
        loras = [expert for expert in self.of if isinstance(expert, Lora)]
        prefixes = [expert for expert in self.of if isinstance(expert, Prefix | PTuningV2)]
        if prompts:
            tables = [expert.start_of(model) for expert in prompts]
            mixed = routing.PromptExperts(tables, router)
            soft_tokens.attach(model, mixed, prompts[0].tokens)

        if loras:
            ranks = [expert.rank for expert in loras]
            scales = [expert.alpha / expert.rank for expert in loras]
            for name in loras[0].targeted(model.base_model):
                linear = model.base_model.get_submodule(name)
                experts = routing.LowRankExperts(linear, ranks, scales, loras[0].dropout)
                model.base_model.set_submodule(name, experts)

        if prefixes:
            # what is a network is trained, and its output stored
            training = isinstance(prefixes[0], Prefix) and not model.delta.finished
            each = [
                prefix.KeysAndValues(
                    replace(expert.peft_config(model.config), prefix_projection=training)
                )
                for expert in prefixes
            ]
            prefix.place(model.base_model, routing.PrefixExperts(each, router).to(model.device))
            if training:
                model.delta.networks += [Network(one, "encoder", one.table) for one in each]

    def scaled_lr(self, width: int) -> float:
        """That of the experts' method."""
        return self.of[0].scaled_lr(width)
