"""Bottleneck adapters: a narrow network after every attention and every MLP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankscope.training.draws import gaussian
from rankscope.training.methods.method import Method
from rankscope.training.model import GPT

if TYPE_CHECKING:
    from rankscope.training.config import TrainingConfig

__all__ = ["Bottleneck", "BottleneckLayer"]


class BottleneckLayer(nn.Module):
    """x ↦ h + U GELU(D h + b) + c with h the output of the wrapped sublayer.

    U, b and c begin at zero, so that the layer begins as the sublayer; D is normal with variance
    1/width.

    Attributes
    ----------
    down : (rank, width) and (rank,) Parameters of a linear layer
    up : (width, rank) and (width,) Parameters of a linear layer
    """

    def __init__(self, base: nn.Module, *, width: int, rank: int, seed: int, name: str) -> None:
        super().__init__()
        self.base = base
        with torch.device("meta"):  # no initial numbers are drawn only to be thrown away
            self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        narrowing = gaussian((rank, width), width**-0.5, seed=seed, name=f"{name}.down")
        self.down.weight = nn.Parameter(narrowing)
        self.down.bias = nn.Parameter(torch.zeros(rank))
        self.up.weight = nn.Parameter(torch.zeros(width, rank))
        self.up.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape."""
        out: Tensor = self.base(x)
        added: Tensor = self.up(functional.gelu(self.down(out)))
        return out + added


class Bottleneck(Method):
    """Trains adapters of `rank` hidden units, 2 (2 d r + r + d) weights a block.

    Houlsby et al. 2019, arXiv:1902.00751, without training the norms.
    """

    name = "bottleneck"
    size = "number"
    lr = 1e-3
    reason = (
        "set before any run: the paper's range is 3e-5 to 3e-3 (arXiv:1902.00751), and a run here "
        "is short; near LoRA's, because one factor begins at zero here too"
    )

    def prepare(self, model: GPT, config: TrainingConfig) -> None:
        """Freeze the model and wrap its sublayers."""
        model.requires_grad_(False)
        size = {"width": model.architecture.width, "rank": int(config.rank or 0)}
        for index, block in enumerate(model.blocks):
            for part in ("attn", "mlp"):
                layer = BottleneckLayer(
                    block.get_submodule(part),
                    **size,
                    seed=config.init_seed,
                    name=f"blocks.{index}.{part}",
                )
                setattr(block, part, layer)
