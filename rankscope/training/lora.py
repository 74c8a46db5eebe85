"""Low-rank adapters on the linear layers of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankscope.training.draws import gaussian
from rankscope.training.layers import replace_linears

__all__ = [
    "TARGETS",
    "LoRALinear",
    "adapter_config",
    "adapter_tensors",
    "add_lora",
    "lora_layers",
    "merge_lora",
    "unmerge_lora",
]

TARGETS = ("q", "k", "v", "o", "up", "down")


class LoRALinear(nn.Module):
    """x ↦ W x + (alpha/r) B A dropout(x), with W frozen.

    A is normal with variance 1/in, so that A x is as large as x whatever the rank; B is zero, so
    that the layer begins as W.

    Parameters
    ----------
    base : nn.Linear
        W, of shape (out, in), without a bias. It is frozen.
    rank : int
        r, the number of rows of A.
    alpha : float
        The scale is alpha/r.
    dropout : float
        Probability that an input of A is dropped while training, in [0, 1).
    seed, name
        A depends on these two and on its shape.

    Attributes
    ----------
    lora_A : (r, in) Parameter
    lora_B : (out, r) Parameter

    Examples
    --------
    >>> layer = LoRALinear(nn.Linear(4, 3, bias=False), rank=2, alpha=4, seed=0, name="q")
    >>> layer.scale, tuple(layer.lora_A.shape), tuple(layer.lora_B.shape)
    (2.0, (2, 4), (3, 2))
    >>> layer.delta().abs().max().item()
    0.0
    """

    def __init__(
        self,
        base: nn.Linear,
        *,
        rank: int,
        alpha: float,
        seed: int,
        name: str,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        self.dropout = dropout
        initial = gaussian((rank, base.in_features), base.in_features**-0.5, seed=seed, name=name)
        self.lora_A = nn.Parameter(initial)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        self._original: Tensor | None = None  # W's own bits, while merged

    @property
    def merged(self) -> bool:
        """Whether `base` holds W + ΔW at present."""
        return self._original is not None

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        out: Tensor = self.base(x)
        if self.merged:
            return out
        dropped = functional.dropout(x, self.dropout, self.training) if self.dropout else x
        low = functional.linear(dropped, self.lora_A)
        return out + functional.linear(self.scale * low, self.lora_B)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """Return ΔW = (alpha/r) B A, (out, in), float64."""
        return self.scale * (self.lora_B.double() @ self.lora_A.double())

    @torch.no_grad()
    def merge(self) -> None:
        """Add ΔW to the weight; merging twice changes nothing."""
        if not self.merged:
            self._original = self.base.weight.clone()
            self.base.weight.copy_(self._original.double() + self.delta())

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put W back, bit for bit: subtracting ΔW again would leave its rounding behind."""
        if self._original is not None:
            self.base.weight.copy_(self._original)
            self._original = None


def add_lora(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    seed: int,
    dropout: float = 0.0,
    layer: type[LoRALinear] = LoRALinear,
) -> None:
    """Freeze `model` and put a `LoRALinear` in the place of every linear layer of `targets`.

    Parameters
    ----------
    model : nn.Module
        Changed in place; only ``lora_A`` and ``lora_B`` are left to train.
    targets : sequence of str
        Last parts of module names, such as ``("q", "v")``.
    rank, alpha, seed, dropout
        As for `LoRALinear`.
    layer : type
        `LoRALinear` or a relative of it.
    """

    def adapted(name: str, linear: nn.Linear) -> nn.Module:
        return layer(
            linear, rank=rank, alpha=alpha, seed=seed, name=f"{name}.lora_A", dropout=dropout
        )

    model.requires_grad_(False)
    replace_linears(model, lambda name: name.rpartition(".")[2] in targets, adapted)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Yield each adapted layer with the name that it has in the model without adapters."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def merge_lora(model: nn.Module) -> None:
    """Merge every adapted layer."""
    for _, layer in lora_layers(model):
        layer.merge()


def unmerge_lora(model: nn.Module) -> None:
    """Undo `merge_lora`, bit for bit."""
    for _, layer in lora_layers(model):
        layer.unmerge()


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return A (r, in) and B (out, r) of every adapted layer under PEFT's names."""
    tensors: dict[str, Tensor] = {}
    for name, layer in lora_layers(model):
        tensors[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A.detach()
        tensors[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B.detach()
    return tensors


def adapter_config(
    *, rank: int, alpha: float, dropout: float, targets: Sequence[str], base: str | None
) -> Mapping[str, Any]:
    """Return the content of an ``adapter_config.json`` that PEFT reads."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": dropout,
        "target_modules": list(targets),
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }
