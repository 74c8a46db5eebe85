"""DoRA: the rows of W + ΔW have a learned length, and LoRA turns them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankscope.training.lora import LoRALinear, lora_layers
from rankscope.training.methods.adapters import LoRA
from rankscope.training.model import GPT

if TYPE_CHECKING:
    from rankscope.training.config import TrainingConfig

__all__ = ["DoRA", "DoRALinear"]


class DoRALinear(LoRALinear):
    """x ↦ g ∘ (W x + s B A dropout(x)) with g = m / ‖W + s B A‖, row by row.

    m begins as ‖W‖, so that the layer begins as W. As in PEFT, no gradient goes through the
    norm, and W too sees the dropped input where its rows are stretched.

    Attributes
    ----------
    magnitude : (out,) Parameter
        m.

    Examples
    --------
    >>> linear = nn.Linear(2, 1, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    >>> layer = DoRALinear(linear, rank=1, alpha=1, seed=0, name="q")
    >>> layer.magnitude.data *= 2
    >>> layer.delta().tolist()
    [[3.0, 4.0]]
    """

    def __init__(self, base: nn.Linear, **options: Any) -> None:
        super().__init__(base, **options)
        self.magnitude = nn.Parameter(_norms(base.weight.detach()))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        out: Tensor = self.base(x)
        if self.merged:
            return out
        dropped = functional.dropout(x, self.dropout, self.training) if self.dropout else x
        seen = self.base(dropped) if self.dropout else out
        turned = functional.linear(
            self.scale * functional.linear(dropped, self.lora_A), self.lora_B
        )
        gain = self.magnitude / self._turned_norms()
        stretched: Tensor = out + (gain - 1) * seen + gain * turned
        return stretched.to(out.dtype)

    @torch.no_grad()
    def _turned_norms(self) -> Tensor:
        with torch.autocast("cpu", enabled=False):  # a ratio near one needs float32
            return _norms(self.base.weight + self.scale * (self.lora_B @ self.lora_A))

    @torch.no_grad()
    def delta(self) -> Tensor:
        """Return ΔW = g ∘ (W + s B A) − W, (out, in), float64."""
        weight = (self.base.weight if self._original is None else self._original).double()
        turned = weight + super().delta()
        return (self.magnitude.double() / _norms(turned))[:, None] * turned - weight


def _norms(weight: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1)
    return norms


class DoRA(LoRA):
    """Trains B, A and m. Liu et al. 2024, arXiv:2402.09353."""

    name = "DoRA"
    reason = "set before any run: LoRA's, as in the paper (arXiv:2402.09353), m's as well"
    layer = DoRALinear

    def tensors(self, model: GPT) -> Mapping[str, Tensor]:
        """Return factors and magnitudes under PEFT's names."""
        return {
            **super().tensors(model),
            **{
                f"base_model.model.{name}.lora_magnitude_vector": layer.magnitude.detach()
                for name, layer in lora_layers(model)
                if isinstance(layer, DoRALinear)
            },
        }

    def settings(self, config: TrainingConfig) -> Mapping[str, Any]:
        """Return PEFT's configuration."""
        return {**super().settings(config), "use_dora": True}
