"""(IA)^3: learned scales of keys, values and feed-forward activations (Liu et al. 2022). By
peft."""

from typing import TYPE_CHECKING, ClassVar, Literal

from robustly.delta.methods.method import PeftLayers

if TYPE_CHECKING:
    from peft import IA3Config
    from transformers import RobertaConfig

_FEED_FORWARD = r".*layer\.\d+\.output\.dense"
_TARGETS = rf".*attention\.self\.(key|value)|{_FEED_FORWARD}"


class Ia3(PeftLayers):
    """Learned scales of keys, values and the feed-forward's inner activations (Liu et al. 2022,
    section 3.3). They start at 1, so the model starts as it is without them."""

    name: Literal["ia3"]

    default_lr: ClassVar[float] = 3e-3  # section 3.3
    by_row: ClassVar[bool] = True

    def peft_config(self, config: "RobertaConfig") -> "IA3Config":
        """The paper's places: keys, values, and the feed-forward's inner activations, which are the
        input of its second map. peft's own choice for RoBERTa, the ending `output.dense`, also
        scales what goes into attention's last map."""
        from peft import IA3Config

        return IA3Config(target_modules=_TARGETS, feedforward_modules=_FEED_FORWARD)
