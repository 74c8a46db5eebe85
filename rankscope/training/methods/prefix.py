"""Prefixes: learned keys and values that every position of every layer may look at."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rankscope.training.draws import gaussian
from rankscope.training.methods.method import Method
from rankscope.training.model import GPT, HEADS

if TYPE_CHECKING:
    from rankscope.training.config import TrainingConfig

__all__ = ["Prefix", "PrefixLayer"]


class PrefixLayer(nn.Module):
    """q ↦ softmax(q Kᵀ / √d) V for each head, which attention adds to what the text gives.

    In one softmax with the text, as Li and Liang (2021, arXiv:2101.00190) have it, a prefix takes
    weight from the text at once, and no beginning leaves the model as it is. The softmax of its
    own is LLaMA-Adapter's (Zhang et al. 2023, arXiv:2303.16199), whose gate is part of V here: V
    begins at zero. K is standard normal, as keys of the text are about.

    Attributes
    ----------
    keys, values : (rank, width) Parameters
    """

    def __init__(self, *, width: int, rank: int, seed: int, name: str) -> None:
        super().__init__()
        self.keys = nn.Parameter(gaussian((rank, width), 1.0, seed=seed, name=f"{name}.keys"))
        self.values = nn.Parameter(torch.zeros(rank, width))

    def forward(self, q: Tensor) -> Tensor:
        """Map (batch, heads, length, width/heads) to the same shape."""
        keys, values = (
            rows.view(len(rows), HEADS, -1).transpose(0, 1) for rows in (self.keys, self.values)
        )
        scores = (q / math.sqrt(q.shape[-1])) @ keys.transpose(1, 2)
        mixed: Tensor = scores.softmax(-1) @ values
        return mixed


class Prefix(Method):
    """Trains `rank` keys and values a block, 2 d r weights."""

    name = "prefix"
    size = "number"
    lr = 1e-2
    reason = (
        "set before any run: LLaMA-Adapter's 9e-3 (arXiv:2303.16199), rounded, because values "
        "begin at zero beside those of the text, which are about one"
    )

    def prepare(self, model: GPT, config: TrainingConfig) -> None:
        """Freeze the model and give its attention prefixes."""
        model.requires_grad_(False)
        for index, block in enumerate(model.blocks):
            block.get_submodule("attn").prefix = PrefixLayer(
                width=model.architecture.width,
                rank=int(config.rank or 0),
                seed=config.init_seed,
                name=f"blocks.{index}.attn.prefix",
            )
