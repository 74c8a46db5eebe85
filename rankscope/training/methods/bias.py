"""Biases alone: the fewest weights that reach every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from rankscope.training.methods.method import Method
from rankscope.training.model import GPT

if TYPE_CHECKING:
    from rankscope.training.config import TrainingConfig

__all__ = ["Bias"]


class Bias(Method):
    """Trains a bias, at first zero, of every linear layer: 9 d a block, 97 of the head.

    BitFit, Ben-Zaken, Ravfogel and Goldberg 2022, arXiv:2106.10199; as the base has no biases,
    they are added to it.
    """

    name = "bias"
    lr = 5e-3
    reason = (
        "set before any run: some six times LoRA's, because a bias begins at zero beside "
        "activations of about one and Adam moves it by the rate a step"
    )

    def prepare(self, model: GPT, config: TrainingConfig) -> None:
        """Freeze the model and give its linear layers biases."""
        model.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.bias = nn.Parameter(torch.zeros(module.out_features))
