"""About what the spectrum of one update costs: operations, bytes held, bytes read."""

from __future__ import annotations

from typing import TypedDict

import torch

from rankscope.io.updateset import Site

__all__ = ["Cost", "cost", "weight_cost"]


class Cost(TypedDict):
    """What a `Task` is told of itself."""

    work: float
    memory: int
    size: int


def cost(site: Site) -> Cost:
    """Return the cost of a module's whole spectrum, by its form and its shape.

    A factored update takes two thin QRs and a small core; a dense one its difference in
    float32 and float64 and the Gram matrix of its short side, twice.
    """
    rows, columns = site.shape
    stored = getattr(torch, site.dtype, torch.float32).itemsize
    if site.rank is not None:
        held = (rows + columns) * site.rank
        work = 4.0 * site.rank * held + 20.0 * site.rank**3
        return {"work": work, "memory": 8 * 3 * held, "size": stored * held}
    short, held = min(rows, columns), rows * columns
    return {
        "work": 2.0 * short * held + 10.0 * short**3,
        "memory": 4 * 3 * held + 8 * 2 * short * short,
        "size": 2 * stored * held,
    }


def weight_cost(site: Site) -> Cost:
    """Return the cost of decomposing a module's base weight with all its directions."""
    rows, columns = site.shape
    held = rows * columns
    return {"work": 20.0 * held * min(rows, columns), "memory": 8 * 6 * held, "size": 4 * held}
