"""Adapters that were not trained: the singular values of a run, directions drawn at random."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rankscope.io.sources import Source, open_updates
from rankscope.io.updateset import UpdateSet
from rankscope.linalg.chance import random_subspace
from rankscope.spectra import svd
from rankscope.updates import Update

__all__ = ["random_adapter"]


def random_adapter(updates: UpdateSet, base: Source | None = None, *, seed: int) -> UpdateSet:
    """Return updates with the same singular values, and so norms, along random directions.

    Parameters
    ----------
    updates : UpdateSet
        Of low rank, such as an adapter's.
    base : source, optional
        The base weights, where the control is to be measured against them.
    seed : int
        Every module draws from a stream of its own.

    Returns
    -------
    UpdateSet
        In memory.

    Examples
    --------
    >>> one = {"h.q.lora_A.weight": torch.ones(1, 4), "h.q.lora_B.weight": torch.ones(4, 1)}
    >>> drawn = random_adapter(open_updates(one, alpha=1), seed=0)
    >>> round(drawn["h.q"].norm(), 5)
    4.0
    """
    tensors: dict[str, Tensor] = {}
    for name, update in updates.items():
        up, down = _turned(update, np.random.default_rng([seed, *name.encode()]))
        tensors[f"{name}.lora_A.weight"] = down
        tensors[f"{name}.lora_B.weight"] = up
    return open_updates(tensors, base, alpha=1.0)


def _turned(update: Update, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    s = svd(update).values[: update.ceiling]
    left, right = (torch.from_numpy(random_subspace(d, len(s), rng)) for d in update.shape)
    # At alpha 1 the scale is 1/r.
    return left * s * len(s), right.T.contiguous()
