"""QLoRA: LoRA on a base whose weights are kept in four bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankscope.errors import RankscopeError
from rankscope.training.layers import replace_linears
from rankscope.training.methods.adapters import LoRA
from rankscope.training.model import GPT

if TYPE_CHECKING:
    from rankscope.training.config import TrainingConfig

__all__ = ["NF4Linear", "QLoRA"]


class NF4Linear(nn.Module):
    """x ↦ W x with W in NF4: four bits a weight, and scales that are quantised once more.

    W is unpacked for every product, so that memory is saved and time is not. A gradient goes to
    x alone.

    Parameters
    ----------
    linear : nn.Linear
        Without a bias.

    Raises
    ------
    RankscopeError
        If bitsandbytes is not installed.
    """

    packed: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Flat: on a CPU, bitsandbytes unpacks rows wrongly that are no whole number of its blocks.
        packed, self._state = _functional().quantize_4bit(
            linear.weight.detach().flatten(), quant_type="nf4", compress_statistics=True
        )
        self.register_buffer("packed", packed, persistent=False)

    @torch.no_grad()
    def unpacked(self) -> Tensor:
        """Return the weight that the four bits stand for, (out, in) float32."""
        weight: Tensor = _functional().dequantize_4bit(self.packed, self._state)
        return weight.view(self.out_features, self.in_features)

    @property
    def weight(self) -> Tensor:
        """There is none to change: what adds to it, as merging does, is refused."""
        raise RankscopeError(
            "a weight of four bits cannot take an update",
            where="a layer of a run with --method QLoRA",
            expected="adapters beside it",
            got="a merge",
            fix="merge the adapter into the base that the run began from",
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        return functional.linear(x, self.unpacked())


def _functional() -> Any:
    try:
        from bitsandbytes import functional as bitsandbytes
    except ImportError as error:
        raise RankscopeError(
            "QLoRA needs bitsandbytes",
            where="--method QLoRA",
            expected="bitsandbytes, which holds the four-bit format",
            got=str(error),
            fix="pip install 'rankscope[quantized]'",
        ) from error
    return bitsandbytes


class QLoRA(LoRA):
    """Trains B and A beside a base in NF4 with double quantisation.

    Dettmers et al. 2023, arXiv:2305.14314. As there, all linear layers are quantised but the
    head; embeddings and norms are not. The run begins as the quantised base. The adapter
    is written without that base, so that its ΔW = (alpha/r) B A is measured against the original
    weights; against what the run itself began from, W + ΔW differs by the quantisation as well.
    """

    name = "QLoRA"
    reason = "set before any run: LoRA's, because only the storage of the base differs"

    def prepare(self, model: GPT, config: TrainingConfig) -> None:
        """Put adapters in the place of the targets and the base's layers in four bits."""
        super().prepare(model, config)
        replace_linears(
            model, lambda name: name.startswith("blocks."), lambda _, linear: NF4Linear(linear)
        )
