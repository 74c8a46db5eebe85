"""Small integers packed into 32-bit words, the lowest bits first."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["unpacked"]


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Return the unsigned integers of each word, along the last dimension.

    Element j of a word is ``(word >> j * bits) & (2 ** bits - 1)``.

    Examples
    --------
    >>> unpacked(torch.tensor([0x76543210], dtype=torch.int32), 4).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    # The sign bit that the shift drags along is masked away.
    fields: Tensor = (words[..., None] >> shifts) & (2**bits - 1)
    return fields.flatten(-2)
