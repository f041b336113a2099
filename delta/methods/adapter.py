"""Adapters: bottlenecks in the layers (Houlsby et al. 2019; Pfeiffer et al. 2021; parallel ones: He
et al. 2022)."""

from torch import Tensor, nn
from transformers import RobertaPreTrainedModel
from transformers.models.roberta.modeling_roberta import RobertaOutput, RobertaSelfOutput

from robustly.delta.specs import Adapter


class Bottleneck(nn.Module):
    """scale * up(gelu(down(x))). `up` starts at 0: at first it adds nothing. Parameters: 2 hidden x
    size + size + hidden."""

    def __init__(self, hidden: int, size: int, scale: float):
        super().__init__()
        self.down = nn.Linear(hidden, size)
        self.up = nn.Linear(size, hidden)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """`x`: ... x hidden."""
        return self.scale * self.up(nn.functional.gelu(self.down(x)))


class AdaptedOutput(nn.Module):
    """The end of attention or of the feed-forward, with an adapter before the sum and its
    LayerNorm. Its parts are the base's own, under the names that they have there."""

    def __init__(
        self, output: RobertaSelfOutput | RobertaOutput, adapter: Bottleneck, parallel: bool
    ):
        super().__init__()
        self.dense: nn.Module = output.dense
        self.dropout: nn.Module = output.dropout
        self.LayerNorm: nn.Module = output.LayerNorm
        self.adapter = adapter
        self.parallel = parallel

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """`hidden_states`: what attention or the feed-forward has made so far, inputs x tokens x
        its width; `input_tensor`: what went into it, inputs x tokens x hidden. Returns what the
        layer hands on, of that shape."""
        hidden_states = self.dropout(self.dense(hidden_states))
        hidden_states = hidden_states + self.adapter(
            input_tensor if self.parallel else hidden_states
        )
        normed: Tensor = self.LayerNorm(hidden_states + input_tensor)
        return normed


def attach(model: RobertaPreTrainedModel, spec: Adapter) -> None:
    """Bottlenecks in every layer: after attention and after the feed-forward (houlsby), after the
    feed-forward alone (pfeiffer; that paper has a second LayerNorm around it, which is left out),
    or beside the feed-forward (parallel).

    The model starts as it is without them. With `layer_norms`, the base's LayerNorms are trained as
    well, that of the embeddings too. Parameters for RoBERTa-base with them: 2,417,664 for houlsby
    of size 64, 351,936 of size 8."""
    for layer in model.roberta.encoder.layer:
        if spec.place == "houlsby":
            layer.attention.output = _adapted(layer.attention.output, spec)

        layer.output = _adapted(layer.output, spec)

    if spec.layer_norms:
        for module in model.roberta.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)


def _adapted(output: RobertaSelfOutput | RobertaOutput, spec: Adapter) -> AdaptedOutput:
    scales = output.LayerNorm.weight
    adapter = Bottleneck(len(scales), spec.size, spec.scale).to(scales.device, scales.dtype)
    return AdaptedOutput(output, adapter, spec.place == "parallel")
