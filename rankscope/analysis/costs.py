"""About what the spectra of one module cost: operations, bytes held, bytes read."""

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


def cost(*sites: Site) -> Cost:
    """Return the cost of the whole spectra of one module, by the updates' forms and shapes.

    A factored update takes two thin QRs and a small core; a dense one its difference and what
    stands for its noise, and the Gram matrix of its short side. One after the other is worked
    on, and all stay. The counts are fitted to what was measured on one thread.
    """
    parts = [_one(site) for site in sites]
    kept = [4 * site.shape[0] * site.shape[1] for site in sites if site.rank is None]
    return {
        "work": sum(part["work"] for part in parts),
        "memory": max(part["memory"] for part in parts) + sum(kept[1:]),
        "size": sum(part["size"] for part in parts),
    }


def _one(site: Site) -> Cost:
    rows, columns = site.shape
    stored = getattr(torch, site.dtype, torch.float32).itemsize
    if site.rank is not None:
        held = (rows + columns) * site.rank
        work = 12.0 * site.rank * held + 60.0 * site.rank**3
        return {"work": work, "memory": 8 * 3 * held, "size": stored * held}
    short, held = min(rows, columns), rows * columns
    return {
        "work": 1.2 * short * held + 6.0 * short**3,
        "memory": 8 * 4 * held + 8 * 2 * short * short,
        "size": 2 * stored * held,
    }


def weight_cost(site: Site) -> Cost:
    """Return the cost of decomposing a module's base weight with all its directions."""
    rows, columns = site.shape
    held = rows * columns
    return {"work": 8.0 * held * min(rows, columns), "memory": 8 * 10 * held, "size": 4 * held}
