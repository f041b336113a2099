"""The layers of an adapter: a bottleneck, and the output of a sublayer that holds one."""

from torch import Tensor, nn
from transformers.models.roberta.modeling_roberta import RobertaOutput, RobertaSelfOutput


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
        """`x`: ... x hidden, of the base's type; the adapter has its own."""
        inner = nn.functional.gelu(self.down(x.to(self.down.weight.dtype)))
        added: Tensor = self.scale * self.up(inner)
        return added.to(x.dtype)


class AdaptedOutput(nn.Module):
    """The output of attention or of the feed-forward, with an adapter before the sum and its
    LayerNorm. Its other parts are the base's own, under the names that they have there."""

    def __init__(
        self, output: RobertaSelfOutput | RobertaOutput, size: int, scale: float, parallel: bool
    ):
        super().__init__()
        self.dense: nn.Module = output.dense
        self.dropout: nn.Module = output.dropout
        self.LayerNorm: nn.Module = output.LayerNorm
        gains = output.LayerNorm.weight
        self.adapter = Bottleneck(len(gains), size, scale).to(gains.device)
        self.parallel = parallel

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """`hidden_states`: what attention or the feed-forward has made so far, inputs x tokens x
        its width; `input_tensor`: what went into it, inputs x tokens x hidden. Returns what the
        layer hands on, of that shape."""
        hidden_states = self.dropout(self.dense(hidden_states))
        # Under one name, so that what was added up is free while the LayerNorm runs.
        hidden_states = hidden_states + self.adapter(
            input_tensor if self.parallel else hidden_states
        )
        normed: Tensor = self.LayerNorm(hidden_states + input_tensor)
        return normed
