"""Training of the model's own weights: all of a new one, all or the last of a base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from rankscope.training.methods.method import Method
from rankscope.training.model import GPT

if TYPE_CHECKING:
    from rankscope.training.config import TrainingConfig

__all__ = ["Full", "Last", "PreTraining"]


class _Whole(Method):
    """Writes the whole model, whatever of it is trained."""

    file = "model.safetensors"

    def prepare(self, model: GPT, config: TrainingConfig) -> None:
        """Train every weight."""

    def tensors(self, model: GPT) -> Mapping[str, Tensor]:
        """Return every weight."""
        tensors: Mapping[str, Tensor] = model.state_dict()
        return tensors


class PreTraining(_Whole):
    """Trains a new model."""

    name = "pre-training"
    steps = 600
    batch = 32
    lr = 2e-3
    reason = (
        "chosen for pre-training: at this rate 600 steps suffice to learn copying from the "
        "context, upon which adaptation builds"
    )


class Full(_Whole):
    """Trains every weight of the base."""

    name = "full"
    size = "full"
    steps = 250
    lr = 2.5e-4
    reason = (
        "chosen for full fine-tuning: a third of LoRA's, because every weight moves; the task is "
        "learned to 95 % and the relative norm of the update ends at about 0.05 (q, v) to 0.15 "
        "(down); a tenth of LoRA's would end below that range"
    )


class Last(_Whole):
    """Trains the last block and the head of the base, 12 d² + 2 d + 97 d weights."""

    name = "last"
    lr = 5e-4
    reason = (
        "set before any run: twice full fine-tuning's, because about a quarter of the weights "
        "moves"
    )

    def prepare(self, model: GPT, config: TrainingConfig) -> None:
        """Freeze all but the last block and the head."""
        model.requires_grad_(False)
        model.blocks[-1].requires_grad_(True)
        model.head.requires_grad_(True)
