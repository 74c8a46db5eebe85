"""IA³: learned gains of keys, values and the MLP's hidden units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rankscope.io.write import write_adapter
from rankscope.training.layers import replace_linears
from rankscope.training.methods.method import Method
from rankscope.training.model import GPT

if TYPE_CHECKING:
    from rankscope.training.config import TrainingConfig

__all__ = ["IA3", "ScaledLinear"]

_OUTPUTS, _INPUTS = ("k", "v"), ("down",)


class ScaledLinear(nn.Module):
    """x ↦ l ∘ (W x), or x ↦ W (l ∘ x), with W frozen and l at first one.

    Attributes
    ----------
    gain : (out, 1) or (1, in) Parameter
        l, in the shape that PEFT gives it.

    Examples
    --------
    >>> layer = ScaledLinear(nn.Linear(3, 2, bias=False), on_input=True)
    >>> tuple(layer.gain.shape), layer.delta().abs().max().item()
    ((1, 3), 0.0)
    """

    def __init__(self, base: nn.Linear, *, on_input: bool) -> None:
        super().__init__()
        self.base = base
        self.on_input = on_input
        shape = (1, base.in_features) if on_input else (base.out_features, 1)
        self.gain = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        gain = self.gain.flatten()
        if self.on_input:
            out: Tensor = self.base(x * gain)
            return out
        out = self.base(x)
        return (out * gain).to(out.dtype)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """Return ΔW = (l − 1) ∘ W, (out, in), float64."""
        return (self.gain.double() - 1) * self.base.weight.double()


class IA3(Method):
    """Trains the gains of k, v, and of the MLP's hidden units after their GELU: 6 d a block.

    Liu et al. 2022, arXiv:2205.05638. The hidden units are what ``down`` reads, so that its
    columns are scaled, and ΔW of k, v and down have the rank of W.
    """

    name = "IA3"
    lr = 1e-2
    reason = (
        "set before any run: three times the paper's 3e-3 (arXiv:2205.05638), because a run here "
        "has 400 steps, and a gain begins at one and has to move by a part of that"
    )
    file = "adapter_model.safetensors"

    def prepare(self, model: GPT, config: TrainingConfig) -> None:
        """Freeze the model and put gains on its layers."""

        def scaled(name: str, linear: nn.Linear) -> nn.Module:
            return ScaledLinear(linear, on_input=name.endswith(_INPUTS))

        model.requires_grad_(False)
        replace_linears(model, lambda name: name.rpartition(".")[2] in _OUTPUTS + _INPUTS, scaled)

    def tensors(self, model: GPT) -> Mapping[str, Tensor]:
        """Return the gains under PEFT's names."""
        return {
            f"base_model.model.{name}.ia3_l": layer.gain.detach() for name, layer in _layers(model)
        }

    def write(self, folder: Path, model: GPT, config: TrainingConfig) -> None:
        """Write the gains and PEFT's configuration."""
        settings = {
            "peft_type": "IA3",
            "task_type": None,
            "base_model_name_or_path": config.base,
            "inference_mode": True,
            "target_modules": [*_OUTPUTS, *_INPUTS],
            "feedforward_modules": list(_INPUTS),
            "modules_to_save": None,
            "fan_in_fan_out": False,
            "init_ia3_weights": True,
        }
        write_adapter(folder, self.tensors(model), settings)


def _layers(model: GPT) -> Iterator[tuple[str, ScaledLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, ScaledLinear):
            yield name, module
