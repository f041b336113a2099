"""Adapters: bottlenecks in the layers (Houlsby et al. 2019; Pfeiffer et al. 2021; parallel ones: He
et al. 2022)."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from robustly.delta.methods.method import Method, scaled_to_width
from robustly.pretrain.config import Positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Adapter(Method):
    """Bottlenecks within the layers: x + up(gelu(down(x)))."""

    name: Literal["adapter"]
    size: Positive = 64
    """Of the bottleneck."""
    place: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    """houlsby: after attention and after the feed-forward (Houlsby et al. 2019, figure 2);
    pfeiffer: after the feed-forward alone (Pfeiffer et al. 2021); parallel: beside the
    feed-forward, from its input (He et al. 2022)."""
    layer_norms: bool = True
    """Whether the encoder's LayerNorms are trained, too (Houlsby et al. 2019, section 2.1); that of
    the embeddings is one of them, as in the authors' code."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Of what it adds; He et al. 2022 have 4 for parallel ones."""

    default_lr: ClassVar[float] = 5e-4
    why_not_merged: ClassVar[str | None] = "its bottlenecks are not linear"
    by_row: ClassVar[bool] = True

    def attach(self, model: "PreTrainedModel") -> None:
        """A bottleneck in every layer, two for houlsby. (Pfeiffer's second LayerNorm around it is
        left out.) The model starts as it is without them."""
        from torch import nn

        from robustly.delta.layers.adapter import AdaptedOutput

        parallel = self.place == "parallel"
        for layer in model.base_model.encoder.layer:
            for part in (layer.attention, layer) if self.place == "houlsby" else (layer,):
                part.output = AdaptedOutput(part.output, self.size, self.scale, parallel)

        if self.layer_norms:
            for module in model.base_model.modules():
                if isinstance(module, nn.LayerNorm):
                    module.requires_grad_(True)

    def grown(self, share: float) -> Method | None:
        """Wider bottlenecks."""
        size = self.size + int(self.size * share)
        return self.model_copy(update={"size": size}) if size > self.size else None

    def scaled_lr(self, width: int) -> float:
        """What is multiplied by `scale` moves as much faster: at the same rate such adapters gave
        the same answer to all (docs/deltas.md)."""
        return scaled_to_width(self.default_lr / self.scale, width)
