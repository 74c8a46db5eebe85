"""Adapters out of full fine-tunes."""

from __future__ import annotations

from dataclasses import replace

import torch

from rankscope.analysis.selection import opened
from rankscope.analysis.truncation import Precision, Size, cut_down
from rankscope.errors import SourceError
from rankscope.io.names import kind_of
from rankscope.io.recipes import Difference
from rankscope.io.sources import Source
from rankscope.io.updateset import Site, UpdateSet
from rankscope.results import ExtractResult, ResizeResult

__all__ = ["extract"]

_MERGE = "merge the adapter, PEFT without merging adds it to the embedding alone"


def extract(
    tuned: Source | UpdateSet,
    base: Source | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    budget: int | str | None = None,
    dtype: Precision = "float32",
    device: str = "cpu",
    progress: bool | None = None,
) -> ResizeResult:
    """Make an adapter out of a full fine-tune: its ΔW, matrix by matrix, at a smaller rank.

    Matrices are read one at a time and only their factors are kept. Embeddings and
    convolutions become such layers' adapters; a convolution in groups looks like another in a
    file and will not load. Biases, norms and all else that is no matrix stay as they are in
    the base: those that the fine-tune changed are listed as `not_covered`.

    Parameters
    ----------
    tuned : path, state dict, module or UpdateSet
        A full checkpoint; or a set that was opened with its base.
    base : path, state dict or module
        What it was tuned from.
    rank, energy, budget, dtype, device, progress
        As for `resize`.

    Returns
    -------
    ExtractResult
        As `resize` returns.

    Raises
    ------
    SourceError
        If a source cannot be read, or `tuned` is an adapter.
    AdapterError
        If PEFT could wrap none of the modules.
    UpdateError
        If not exactly one of `rank`, `energy` and `budget` is given, or it is out of range.

    Examples
    --------
    >>> import torch
    >>> import rankscope as rs
    >>> base = {"w.weight": torch.eye(3)}
    >>> tuned = {"w.weight": torch.eye(3) + torch.tensor([[0.0], [0.0], [2.0]])}
    >>> update = rs.extract(tuned, base, energy=0.99).updates["w"]
    >>> update.ceiling, [round(x, 6) for x in update.dense()[2].tolist()]
    (1, [2.0, 2.0, 2.0])
    """
    size = Size(rank, energy, budget)
    updates = opened(tuned, base, None, split="none")
    if updates.format != "pair":
        raise SourceError(
            "there is no full fine-tune to extract from",
            where=updates.source,
            expected="a full checkpoint and its base",
            got=f"updates of the format {updates.format}",
            fix="use resize for an adapter",
        )
    return cut_down(
        ExtractResult, _untied(updates), size, dtype=dtype, device=device, progress=progress
    )


def _untied(updates: UpdateSet) -> UpdateSet:
    """Return the set without heads that are their embedding again, and say what ties mean.

    PEFT would add both adapters to the one matrix when it merges them.
    """
    heads = [site for site in updates.sites if site.kind == "head"]
    embeddings = [site for site in updates.sites if site.kind == "embed"]
    tied = {head.module: e.module for head in heads for e in embeddings if _same(head, e)}
    notes = [
        f"{head} is {embedding} again and left out; {_MERGE}" for head, embedding in tied.items()
    ]
    if embeddings and not any(map(_has_head, embeddings)):
        notes.append(f"the checkpoint has no head of its own; where the model ties it, {_MERGE}")
    kept = [name for name in updates.names if name not in tied]
    return replace(updates.select(names=kept), notes=(*updates.notes, *notes))


def _has_head(site: Site) -> bool:
    """Whether the checkpoint of a site stores a head, selected or not."""
    recipe = site.recipe
    names = recipe.tuned.tensors if isinstance(recipe, Difference) else ()
    return any(kind_of(name.removesuffix(".weight")) == "head" for name in names)


def _same(one: Site, other: Site) -> bool:
    a, b = one.recipe, other.recipe
    if one.shape != other.shape or not (isinstance(a, Difference) and isinstance(b, Difference)):
        return False
    return all(
        torch.equal(first.read(a.name), second.read(b.name))
        for first, second in ((a.tuned, b.tuned), (a.base, b.base))
    )
