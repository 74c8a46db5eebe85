"""LoRA and its relatives, written as PEFT writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rankscope.io.write import write_adapter
from rankscope.training.lora import adapter_config, adapter_tensors, add_lora
from rankscope.training.methods.method import Method
from rankscope.training.model import GPT

if TYPE_CHECKING:
    from rankscope.training.config import TrainingConfig

__all__ = ["LoRA"]


class LoRA(Method):
    """Trains B and A of ΔW = (alpha/r) B A."""

    name = "LoRA"
    size = "number"
    scaled = True
    lr = 8e-4
    reason = (
        "chosen for LoRA at alpha = rank: several times that of full fine-tuning, because B "
        "begins at zero and few weights move; ranks 8 and 64 both learn the task and end with a "
        "relative norm of the update of about 0.1 to 0.3, at 1e-3 beyond"
    )
    file = "adapter_model.safetensors"

    def prepare(self, model: GPT, config: TrainingConfig) -> None:
        """Put adapters in the place of the targets."""
        add_lora(
            model,
            rank=int(config.rank or 0),
            alpha=config.alpha,
            targets=config.targets,
            seed=config.init_seed,
            dropout=config.dropout,
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
