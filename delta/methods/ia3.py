"""(IA)^3: learned scales of what flows through the layers (Liu et al. 2022). By peft."""

from peft import IA3Config, IA3Model
from transformers import RobertaPreTrainedModel

from robustly.delta.methods.tuner import inject
from robustly.delta.specs import Ia3

_FEED_FORWARD = r".*layer\.\d+\.output\.dense"
_TARGETS = rf".*attention\.self\.(key|value)|{_FEED_FORWARD}"


def peft_config() -> IA3Config:
    """The paper's places (section 3.3): keys, values, and the feed-forward's inner activations,
    which are the input of its second map. peft's own choice for RoBERTa, the ending `output.dense`,
    also scales what goes into attention's last map."""
    return IA3Config(target_modules=_TARGETS, feedforward_modules=_FEED_FORWARD)


def attach(model: RobertaPreTrainedModel, spec: Ia3) -> None:
    """Scales that start at 1, so the model starts as it is without them. Parameters: 2 x hidden +
    inner size for each layer; 55,296 for RoBERTa-base."""
    inject(model.roberta, IA3Model, peft_config(), spec.name)
