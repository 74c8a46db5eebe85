"""A small decoder-only transformer over characters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankscope.training import vocabulary
from rankscope.training.draws import gaussian

__all__ = ["CONTEXT", "GPT", "HEADS", "Architecture", "model_of", "new_model", "weight_shapes"]

CONTEXT = 128  # positions; the longest text that can be predicted
HEADS = 4  # whatever the width, so that the shapes of the weights tell all about a model


@dataclass(frozen=True, slots=True)
class Architecture:
    """The size of a model: `layers` blocks of `width` channels, which four heads share.

    Examples
    --------
    >>> Architecture(layers=4, width=256).parameters
    3230464
    """

    layers: int = 4
    width: int = 256

    @property
    def parameters(self) -> int:
        """The number of weights of the whole model."""
        linear = 12 * self.width**2
        norms = (2 * self.layers + 1) * self.width
        return self.layers * linear + norms + (2 * vocabulary.SIZE + CONTEXT) * self.width


class GPT(nn.Module):
    """Predicts the next character from the ones before it.

    Pre-norm blocks of attention and a GELU MLP four times as wide, learned positions, no biases
    in the linear layers, so that every update is one matrix. Modules are named
    ``blocks.0.attn.q`` (k, v, o), ``blocks.0.mlp.up`` (down), ``embed``, ``positions``, ``norm``
    and ``head``.

    Parameters
    ----------
    architecture : Architecture
        `width` is a multiple of four.

    Examples
    --------
    >>> GPT(Architecture(layers=1, width=8))(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 97])
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        width = architecture.width
        self.embed = nn.Embedding(vocabulary.SIZE, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(architecture.layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocabulary.SIZE, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (batch, length, vocabulary) of `tokens` (batch, length)."""
        x = self.embed(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class Block(nn.Module):
    """Attention, then an MLP, each added to the residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(width, bias=False)
        self.attn = Attention(width)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape."""
        x = x + self.attn(self.attn_norm(x))
        x = x + self.mlp(self.mlp_norm(x))
        return x


class Attention(nn.Module):
    """Causal self-attention with separate q, k, v and o."""

    mask: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.prefix: nn.Module | None = None  # what a method lets queries see beside the text
        future = torch.full((CONTEXT, CONTEXT), -math.inf, device="cpu").triu(1)
        self.register_buffer("mask", future, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape; position i sees positions 0 to i."""
        batch, length, width = x.shape
        q, k, v = (
            layer(x).view(batch, length, HEADS, -1).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        # Written out: at 128 positions the fused kernel is slower than this in bfloat16 on a CPU.
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(2, 3)
        scores = scores + self.mask[:length, :length].to(scores.dtype)
        mixed = scores.softmax(-1) @ v
        if self.prefix is not None:
            mixed = mixed + self.prefix(q)
        out: Tensor = self.o(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class MLP(nn.Module):
    """Up to four times the width, GELU, and down again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape."""
        out: Tensor = self.down(functional.gelu(self.up(x)))
        return out


def new_model(architecture: Architecture, *, seed: int) -> GPT:
    """Return an untrained model whose weights depend on `architecture` and `seed` only.

    Linear layers are normal with variance 1/in; those that write to the residual stream (o and
    down) are divided by √(2·layers), so that its variance does not grow with depth.
    """
    weights = {
        name: torch.ones(shape)
        if len(shape) == 1
        else gaussian(shape, _initial_std(name, shape, architecture.layers), seed=seed, name=name)
        for name, shape in weight_shapes(architecture).items()
    }
    return model_of(architecture, weights)


def weight_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every weight, in the model's order."""
    return {name: tuple(weight.shape) for name, weight in _empty(architecture).named_parameters()}


def model_of(architecture: Architecture, weights: Mapping[str, Tensor]) -> GPT:
    """Return the model that has exactly these `weights`."""
    model = _empty(architecture)
    model.load_state_dict(weights, assign=True)
    return model


def _empty(architecture: Architecture) -> GPT:
    with torch.device("meta"):  # no initial numbers are drawn only to be thrown away
        return GPT(architecture)


def _initial_std(name: str, shape: tuple[int, ...], layers: int) -> float:
    if name in ("embed.weight", "positions.weight"):
        return 0.1
    std = 1 / math.sqrt(shape[1])
    return std / math.sqrt(2 * layers) if name.endswith(("o.weight", "down.weight")) else std
