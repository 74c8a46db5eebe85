"""ΔW against W: the LoRA paper's Table 7 and Figure 8, beside chance."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rankscope.analysis.costs import weight_cost
from rankscope.analysis.decompositions import Decomposition, decomposed
from rankscope.analysis.devices import resolve_device
from rankscope.analysis.engine import How, Row, Study, Task, run
from rankscope.analysis.selection import opened, with_base
from rankscope.errors import UpdateError
from rankscope.io.sources import Source
from rankscope.io.updateset import UpdateSet
from rankscope.linalg.chance import random_subspace
from rankscope.measures import amplification as measures
from rankscope.measures.similarity import phi_grid
from rankscope.results import AmplificationResult, provenance
from rankscope.spectra import Spectrum, svd
from rankscope.updates import Update

__all__ = [
    "amplification",
    "amplification_study",
    "checked_counts",
    "finish",
]

_COLUMNS = {
    "module": "str",
    "layer": "Int64",
    "kind": "str",
    "expert": "Int64",
    "rows": "int64",
    "columns": "int64",
    "k": "int64",
    "norm_weight": "float64",
    "norm_update": "float64",
    "relative_norm": "float64",
    "projection_update": "float64",
    "projection_weight": "float64",
    "projection_random": "float64",
    "projection_drawn": "float64",
    "amplification": "float64",
    "amplification_random": "float64",
    "excess": "float64",
    "z": "float64",
    "left_energy": "float64",
    "left_chance": "float64",
    "right_energy": "float64",
    "right_chance": "float64",
    "reweighting": "float64",
    "rewiring": "float64",
    "new": "float64",
    "factors": "object",
    "cosines": "object",
    "profile_k": "object",
    "profile_top": "object",
    "profile_bottom": "object",
    "alignment_i": "object",
    "alignment_left": "object",
    "alignment_right": "object",
}
_DRAWS = 20
_NOTHING = 1e-13
_POINTS = 48  # of a curve
_HEAD = 0.10  # Figure 8 looks at the first tenth of W's directions


@dataclass(frozen=True)
class _Options:
    ks: tuple[int, ...]
    seed: int
    cache: Path | None


def amplification(
    source: Source | UpdateSet,
    *,
    base: Source | None = None,
    k: int | Sequence[int] = 4,
    alpha: float | None = None,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    **how: Unpack[How],
) -> AmplificationResult:
    r"""Measure how much ΔW amplifies what W has along ΔW's directions.

    Parameters
    ----------
    source : path, state dict, module or UpdateSet
    base : path, state dict or module
        The base weights W.
    k : int or sequence of int
        How many leading directions are used, a row for each.
    alpha : float, optional
        LoRA's alpha, for files that do not say it.
    seed : int
        Of the drawn random directions.
    cache : path, optional
        A folder that keeps W's decompositions by their content.
    device : str
        ``cpu``, ``cuda``, ``cuda:n`` or ``auto``.
    **how
        As `How`: jobs, threads, journal and so on.

    Returns
    -------
    AmplificationResult
        A row per module and k. With U and V the first k directions of ΔW,
        `projection_update` is ‖UᵀWV‖, `projection_weight` the same for W's own directions,
        `projection_random` its root mean square over random ones and `projection_drawn` over 20
        drawn ones. `amplification` is ‖ΔW‖/`projection_update`; since its denominator shrinks
        with k by chance alone, compare it with `amplification_random`, what an update of the
        same norm along random directions would score. `excess` is `projection_update`
        over `projection_random` and `z` says how far its square lies above chance in standard
        deviations. `left_energy` and `right_energy` are the shares of ‖W‖² that ΔW's outputs
        and inputs see, with their chance levels. `reweighting`, `rewiring` and `new` split
        ‖ΔW‖² in W's own directions. `factors` and `cosines` are per direction;
        `profile_top[i]` and `profile_bottom[i]` the share of ‖ΔW‖² in W's first and last
        `profile_k[i]` directions on both sides; ``alignment_right[a][b]`` is φ of W's first
        ``alignment_i[a]`` and ΔW's first b + 1 input directions (Figure 8, chance
        ``max(i, j)/d``). Where ΔW has fewer than k directions, the row is undefined.

    Raises
    ------
    SourceError, AdapterError
        If a source cannot be read or there is no base.
    UpdateError
        If a k is below 1, or no update could be measured.

    References
    ----------
    .. [1] E. Hu et al., "LoRA: Low-rank adaptation of large language models", 2021, section 7.3
       and appendix H.4. arXiv:2106.09685

    Examples
    --------
    >>> import rankscope as rs
    >>> base = {"w.weight": torch.diag(torch.tensor([3.0, 2.0, 1.0]))}
    >>> tuned = {"w.weight": torch.diag(torch.tensor([3.0, 2.0, 6.0]))}
    >>> rs.amplification(tuned, base=base, k=1).table.amplification.tolist()
    [5.0]
    """
    study = amplification_study(
        opened(source, base, alpha), k=k, seed=seed, cache=cache, device=device
    )
    result = run(study, how)
    assert isinstance(result, AmplificationResult)
    return result


def amplification_study(
    updates: UpdateSet,
    *,
    k: int | Sequence[int] = 4,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    device: str = "cpu",
) -> Study:
    """Return what `amplification` does, module by module."""
    with_base(updates, "amplification compares ΔW with the base weights")
    folder = None if cache is None else Path(cache).absolute()
    options, device = _Options(checked_counts(k), seed, folder), resolve_device(device)
    tasks = [
        Task(
            site.module,
            _rows,
            (updates.only(site.module), options),
            device=device,
            **weight_cost(site),
        )
        for site in updates.sites
    ]
    said = {
        "k": list(options.ks),
        "alpha": updates.alpha,
        "split": updates.split,
        "seed": seed,
        "modules": updates.names,
    }
    about = {
        "provenance": provenance("amplification", {"source": list(updates.inputs)}, said, device),
        "notes": list(updates.notes),
    }
    return Study("amplification", tasks, about, finish)


def finish(
    rows: list[Row], failures: list[dict[str, Any]], about: Mapping[str, Any]
) -> AmplificationResult:
    """Return the result of all rows."""
    table = pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
    return AmplificationResult(
        table, about["provenance"], (*about["notes"], *_notes(table)), tuple(failures)
    )


def checked_counts(k: int | Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of directions that were asked for, each once.

    Raises
    ------
    UpdateError
        If there is none, or one is below 1.
    """
    ks = (k,) if isinstance(k, int) else tuple(dict.fromkeys(k))
    if not ks or min(ks) < 1:
        raise UpdateError(
            "no direction was asked for",
            where="k",
            expected="numbers of directions, each at least 1",
            got=str(k),
            fix="give -k 4, or several: -k 4 -k 64",
        )
    return ks


def _rows(module: str, updates: UpdateSet, options: _Options, *, device: str) -> Iterator[Row]:
    weight = updates.weight(module)
    update = updates[module].to(device)
    theirs = decomposed(weight, device, options.cache)
    ours = svd(update, max(options.ks))
    site = updates.site(module)
    shared = {
        "module": module,
        "layer": site.layer,
        "kind": site.kind,
        "expert": site.expert,
        "rows": site.shape[0],
        "columns": site.shape[1],
        **_whole(update, weight, theirs, ours),
        **_curves(update, theirs, ours),
    }
    # Not the stream that weights may have been drawn from.
    rng = np.random.default_rng([options.seed, *module.encode()])
    for k in options.ks:
        yield shared | {"k": k} | _at(k, weight.double(), theirs, ours, shared["norm_update"], rng)


def _whole(update: Update, weight: Tensor, theirs: Decomposition, ours: Spectrum) -> Row:
    norm_weight = float(torch.linalg.vector_norm(weight.double()))
    norm_update = math.sqrt(ours.energy)
    split = measures.rewiring(update.dense().cpu(), theirs.left, theirs.right)
    return {
        "norm_weight": norm_weight,
        "norm_update": norm_update,
        "relative_norm": norm_update / norm_weight if norm_weight else math.nan,
        **dict(zip(("reweighting", "rewiring", "new"), split, strict=True)),
    }


def _at(
    k: int,
    weight: Tensor,
    theirs: Decomposition,
    ours: Spectrum,
    norm_update: float,
    rng: np.random.Generator,
) -> Row:
    m, n = ours.shape
    norm = float(torch.linalg.vector_norm(weight))
    own = theirs.values[:k]
    random = measures.random_projection(norm, ours.shape, min(k, m, n))
    row: Row = {
        "projection_weight": float(torch.linalg.vector_norm(own)),
        "projection_random": random,
        "projection_drawn": _drawn(weight, min(k, m, n), rng),
        "amplification_random": norm_update / random if random else math.nan,
        "left_chance": min(k / m, 1.0),
        "right_chance": min(k / n, 1.0),
    }
    if k > ours.directions or ours.left is None or ours.right is None:
        return row
    left, right = ours.left[:, :k], ours.right[:, :k]
    projected = measures.projected_norm(weight, left, right)
    factors, cosines = measures.direction_amplification(weight, left, ours.values[:k], right)
    return row | {
        "projection_update": projected,
        # What is left of W there is round-off: it has nothing along these directions.
        "amplification": norm_update / projected if projected > _NOTHING * norm else math.inf,
        "excess": projected / random if random else math.nan,
        "z": measures.projected_z(projected, theirs.values, ours.shape, k),
        "left_energy": measures.captured_energy(weight, left, "left"),
        "right_energy": measures.captured_energy(weight, right, "right"),
        "factors": factors.numpy(),
        "cosines": cosines.numpy(),
    }


def _drawn(weight: Tensor, k: int, rng: np.random.Generator) -> float:
    m, n = weight.shape
    squares = [
        measures.projected_norm(
            weight,
            torch.from_numpy(random_subspace(m, k, rng)),
            torch.from_numpy(random_subspace(n, k, rng)),
        )
        ** 2
        for _ in range(_DRAWS)
    ]
    return math.sqrt(sum(squares) / _DRAWS)


def _curves(update: Update, theirs: Decomposition, ours: Spectrum) -> Row:
    count = len(theirs.values)
    if not count:
        return {}
    ks = _grid(count)
    row: Row = {"profile_k": ks, "alignment_i": _grid(max(1, round(_HEAD * count)))}
    if not ours.directions or ours.left is None or ours.right is None:
        return row
    middle = theirs.left.T @ update.matmul(theirs.right).cpu()
    energies = middle.square() / ours.energy
    top, bottom = (
        e.cumsum(0).cumsum(1).diagonal()[ks - 1].numpy() for e in (energies, energies.flip(0, 1))
    )
    own = ours.directions
    left, right = (
        phi_grid(basis.T @ vectors[:, :own])[row["alignment_i"] - 1].numpy()
        for basis, vectors in ((theirs.left, ours.left), (theirs.right, ours.right))
    )
    return row | {
        "profile_top": top.clip(0, 1),
        "profile_bottom": bottom.clip(0, 1),
        "alignment_left": left,
        "alignment_right": right,
    }


def _grid(count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return up to 48 numbers from 1 to `count`, evenly spread."""
    return np.unique(np.linspace(1, count, min(count, _POINTS)).round().astype(np.int64))


def _notes(table: pd.DataFrame) -> Iterator[str]:
    above = table[table.projection_update.isna()]
    if len(above):
        ks = ", ".join(map(str, sorted(above.k.unique())))
        yield f"{len(above)} rows are undefined: the update has fewer directions than k ({ks})"
    if np.isinf(table.amplification).any():
        yield "an infinite amplification: W has nothing along those directions of ΔW"
    yield (
        "an amplification of a small k is large by chance alone: read it beside "
        "amplification_random, and excess and z beside both"
    )
