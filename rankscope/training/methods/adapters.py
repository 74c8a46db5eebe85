"""LoRA, and its relatives of another scale or other rates, written as PEFT writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from rankscope.io.write import write_adapter
from rankscope.training.lora import (
    LoRALinear,
    adapter_config,
    adapter_tensors,
    add_lora,
    lora_layers,
)
from rankscope.training.methods.method import Method, MethodName
from rankscope.training.model import GPT

if TYPE_CHECKING:
    from rankscope.training.config import TrainingConfig

__all__ = ["LoRA", "LoRAPlus", "RsLoRA"]


class LoRA(Method):
    """Trains B and A of ΔW = (alpha/r) B A."""

    name: ClassVar[MethodName] = "LoRA"
    size = "number"
    scaled = True
    lr = 8e-4
    reason = (
        "chosen for LoRA at alpha = rank: several times that of full fine-tuning, because B "
        "begins at zero and few weights move; ranks 8 and 64 both learn the task and end with a "
        "relative norm of the update of about 0.1 to 0.3, at 1e-3 beyond"
    )
    file = "adapter_model.safetensors"
    layer: ClassVar[type[LoRALinear]] = LoRALinear

    def prepare(self, model: GPT, config: TrainingConfig) -> None:
        """Put adapters in the place of the targets."""
        add_lora(
            model,
            rank=int(config.rank or 0),
            alpha=config.alpha,
            targets=config.targets,
            seed=config.init_seed,
            dropout=config.dropout,
            layer=self.layer,
        )

    def tensors(self, model: GPT) -> Mapping[str, Tensor]:
        """Return the factors under PEFT's names."""
        return adapter_tensors(model)

    def settings(self, config: TrainingConfig) -> Mapping[str, Any]:
        """Return PEFT's configuration."""
        return adapter_config(
            rank=int(config.rank or 0),
            alpha=config.alpha,
            dropout=config.dropout,
            targets=config.targets,
            base=config.base,
        )

    def write(self, folder: Path, model: GPT, config: TrainingConfig) -> None:
        """Write the factors and PEFT's configuration."""
        write_adapter(folder, self.tensors(model), self.settings(config))


class RsLoRA(LoRA):
    """LoRA with the scale alpha/√r, which keeps activations alike over ranks at one alpha.

    Kalajdzievski 2023, arXiv:2312.03732. With alpha equal to the rank, as for LoRA, the scale
    would be √r and grow; here alpha is 8 at every rank unless it is given.
    """

    name = "rsLoRA"
    reason = (
        "set before any run: LoRA's, because only the scale differs, and that is what is compared"
    )

    def alpha(self, rank: int) -> float:
        """Return 8, whatever the rank."""
        return 8.0

    def prepare(self, model: GPT, config: TrainingConfig) -> None:
        """Put adapters in the place of the targets, at alpha/√r."""
        super().prepare(model, config)
        for _, layer in lora_layers(model):
            layer.scale = config.alpha / math.sqrt(int(config.rank or 0))

    def settings(self, config: TrainingConfig) -> Mapping[str, Any]:
        """Return PEFT's configuration."""
        return {**super().settings(config), "use_rslora": True}


class LoRAPlus(LoRA):
    """LoRA whose B learns 16 times as fast as its A.

    Hayou, Ghosh and Yu 2024, arXiv:2402.12354, whose recommended ratio is 16.
    """

    name = "LoRA+"
    lr = 2e-4
    reason = (
        "set before any run: A's rate; B's is 16 times that, the ratio of the paper "
        "(arXiv:2402.12354), and their geometric mean is LoRA's 8e-4"
    )

    def rate(self, name: str) -> float:
        """Return 16 for B and 1 for A."""
        return 16.0 if name.endswith("lora_B") else 1.0
