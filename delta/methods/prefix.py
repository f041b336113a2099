"""Prefix tuning and P-Tuning v2: learned keys and values before those of the text, in every layer
(Li and Liang 2021; Liu et al. 2022)."""

from typing import TYPE_CHECKING, ClassVar, Literal

from robustly.delta.methods.method import Method, Network
from robustly.pretrain.config import Positive

if TYPE_CHECKING:
    from peft import PrefixTuningConfig
    from transformers import PreTrainedModel, RobertaConfig


class _OfKeysAndValues(Method):
    why_not_merged: ClassVar[str | None] = "its keys and values are of no token"
    by_row: ClassVar[bool] = True
    peft_note: ClassVar[str] = (
        "peft counts positions of the text from behind the prefix; here they begin where they do"
        " without one: pass `position_ids` that are smaller by the number of tokens.\n"
    )


class Prefix(_OfKeysAndValues):
    """Learned keys and values before those of the text in every layer, made by a small network (Li
    and Liang 2021)."""

    name: Literal["prefix"]
    tokens: Positive = 20
    hidden: Positive = 512
    """Of the network, which is trained and not kept: its output is (Li and Liang 2021, section
    4.3)."""

    default_lr: ClassVar[float] = 1e-4  # He et al. 2022, exps/run_glue.sh: with a network

    def attach(self, model: "PreTrainedModel") -> None:
        """A prefix out of a network, of which tokens x 2 x layers x hidden numbers are kept after
        training. In the form that is stored (`model.delta.finished`) it is a table of these.

        Raises UserError beside p_tuning_v2."""
        from robustly.delta.layers import prefix

        training = not model.delta.finished
        made = prefix.attach(model, self.peft_config(model.config), network=training)
        if training:
            model.delta.networks.append(Network(made, "encoder", made.table))

    def scaled_lr(self, width: int) -> float:
        """As it is: the network that makes a prefix is as wide on any base. At higher rates it gave
        the same answer to all (docs/deltas.md)."""
        return self.default_lr

    def peft_config(self, config: "RobertaConfig") -> "PrefixTuningConfig":
        return _peft_config(self.tokens, self.hidden, config)


class PTuningV2(_OfKeysAndValues):
    """Learned keys and values before those of the text in every layer, directly (Liu et al. 2022,
    P-Tuning v2)."""

    name: Literal["p_tuning_v2"]
    tokens: Positive = 20

    default_lr: ClassVar[float] = 5e-3

    def attach(self, model: "PreTrainedModel") -> None:
        """Raises UserError beside prefix."""
        from robustly.delta.layers import prefix

        prefix.attach(model, self.peft_config(model.config), network=False)

    def peft_config(self, config: "RobertaConfig") -> "PrefixTuningConfig":
        return _peft_config(self.tokens, config.hidden_size, config)


def _peft_config(tokens: int, hidden: int, config: "RobertaConfig") -> "PrefixTuningConfig":
    """Without a network, as it is stored."""
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(
        num_virtual_tokens=tokens,
        token_dim=config.hidden_size,
        num_transformer_submodules=1,
        num_attention_heads=config.num_attention_heads,
        num_layers=config.num_hidden_layers,
        encoder_hidden_size=hidden,
        prefix_projection=False,
    )
