"""Every rank measure of every update of one source."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch

from rankscope.analysis.engine import map_modules, resolve_device
from rankscope.analysis.selection import opened
from rankscope.errors import RankscopeError
from rankscope.io.recipes import Difference
from rankscope.io.sources import Source
from rankscope.io.updateset import UpdateSet
from rankscope.measures import rank as measures
from rankscope.results import RankResult, provenance
from rankscope.spectra import Spectrum, svd
from rankscope.updates import DenseUpdate, Update

__all__ = ["rank"]

COLLAPSED = 0.99

_COLUMNS = {
    "module": "str",
    "layer": "Int64",
    "kind": "str",
    "expert": "Int64",
    "rows": "int64",
    "columns": "int64",
    "ceiling": "int64",
    "frobenius": "float64",
    "spectral": "float64",
    "relative_norm": "float64",
    "numerical_rank": "Int64",
    "stable_rank": "float64",
    "participation_rank": "float64",
    "effective_rank": "float64",
    "energy_entropy_rank": "float64",
    "energy_rank_90": "int64",
    "energy_rank_95": "int64",
    "energy_rank_99": "int64",
    "top1_energy": "float64",
    "noise_edge": "float64",
    "rank_above_noise": "Int64",
    "unchanged_fraction": "float64",
    "stored_dtype": "str",
    "state": "str",
    "method": "str",
    "error_bound": "float64",
}


def rank(
    source: Source | UpdateSet,
    *,
    base: Source | None = None,
    alpha: float | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> RankResult:
    """Measure the rank of every update of a source, by every definition.

    Parameters
    ----------
    source : path, state dict, module or UpdateSet
    base : path, state dict or module, optional
        The base weights: needed for a full checkpoint; gives an adapter its relative norm.
    alpha : float, optional
        LoRA's alpha, for files that do not say it. Ranks do not depend on it, norms do.
    device : str
        ``cpu``, ``cuda``, ``cuda:n`` or ``auto``.
    progress : bool
        Show a bar on a terminal.

    Returns
    -------
    RankResult
        A row per module: `expert` is which of its layer's experts it is, undefined outside;
        `ceiling` is the largest rank that its form can have; `frobenius`,
        `spectral` are norms in the unit of the weight, `relative_norm` is ‖ΔW‖/‖W‖;
        `stable_rank`, `participation_rank`, `energy_entropy_rank`, `effective_rank` are in
        [1, ceiling]; `energy_rank_90` is the number of directions that hold 90 % of the
        energy; `unchanged_fraction` is the share of entries that a checkpoint pair has
        exactly equal. `state` is ``ok``, ``zero`` (to rounding) or ``collapsed`` (of several
        possible directions the first holds more than 99 %). An update that is zero has rank 0
        and undefined ratios. `noise_edge` and `rank_above_noise` are undefined: the storage
        noise of checkpoint pairs is not modelled, and a note says so.

    Raises
    ------
    SourceError, AdapterError
        If the source cannot be read.
    UpdateError
        If no update could be measured.

    Examples
    --------
    The toy matrix of many introductions has two independent rows:

    >>> import rankscope as rs
    >>> W = torch.tensor([[1.0, 2, 3, 4], [2, 4, 6, 8], [5, 3, 9, 7]])
    >>> rs.rank({"w.weight": W}, base={"w.weight": torch.zeros(3, 4)}).table.numerical_rank[0]
    np.int64(2)
    """
    updates, device = opened(source, base, alpha), resolve_device(device)
    rows, failures = map_modules(
        updates.names, lambda module: [_row(module, updates, device)], progress=progress
    )
    table = pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
    return RankResult(
        table=table,
        provenance=provenance(
            "rank",
            {"source": list(updates.inputs)},
            {"alpha": updates.alpha, "split": updates.split, "modules": updates.names},
            device,
        ),
        notes=(*updates.notes, *_notes(updates, table)),
        failures=tuple(failures),
    )


def _row(module: str, updates: UpdateSet, device: str) -> dict[str, Any]:
    site = updates.site(module)
    update = updates[module].to(device)
    measured = _measured(svd(update, vectors=False))
    return {
        "module": module,
        "layer": site.layer,
        "kind": site.kind,
        "expert": site.expert,
        "rows": site.shape[0],
        "columns": site.shape[1],
        "ceiling": update.ceiling,
        **measured,
        "relative_norm": _relative_norm(module, updates, measured["frobenius"]),
        "unchanged_fraction": _unchanged(update, isinstance(site.recipe, Difference)),
        "stored_dtype": site.dtype,
    }


def _notes(updates: UpdateSet, table: pd.DataFrame) -> list[str]:
    notes = []
    zero = int((table.state == "zero").sum())
    if zero:
        notes.append(f"{zero} updates are zero (untrained)")
    pairs = [site for site in updates.sites if isinstance(site.recipe, Difference)]
    if pairs:
        dtypes = ", ".join(dict.fromkeys(site.dtype for site in pairs))
        notes.append(
            f"differences of stored {dtypes} tensors: numerical_rank, and energy ranks of small "
            "updates, count the rounding of the storage"
        )
    if updates.base is not None and table.relative_norm.isna().any():
        notes.append("relative_norm is undefined where the base has no readable weight")
    return notes


def _measured(spectrum: Spectrum) -> dict[str, Any]:
    largest = spectrum.values[0].item() if len(spectrum.values) else 0.0
    zero = largest <= spectrum.error_bound
    # In units of the largest, so that squares neither overflow nor vanish.
    s = spectrum.values[:0] if zero else spectrum.values / largest
    top = measures.top_energy(s)
    collapsed = spectrum.ceiling > 1 and top > COLLAPSED
    rank = measures.numerical_rank(spectrum.values, spectrum.error_bound)
    return {
        "frobenius": largest * torch.linalg.vector_norm(s).item(),
        "spectral": largest,
        "numerical_rank": rank if spectrum.method == "exact" else None,
        "stable_rank": measures.stable_rank(s),
        "participation_rank": measures.participation_rank(s),
        "effective_rank": measures.effective_rank(s),
        "energy_entropy_rank": measures.energy_entropy_rank(s),
        "energy_rank_90": measures.energy_rank(s, 0.90),
        "energy_rank_95": measures.energy_rank(s, 0.95),
        "energy_rank_99": measures.energy_rank(s, 0.99),
        "top1_energy": top,
        "state": "zero" if zero else "collapsed" if collapsed else "ok",
        "method": spectrum.method,
        "error_bound": spectrum.error_bound,
    }


def _relative_norm(module: str, updates: UpdateSet, frobenius: float) -> float:
    """Return ‖ΔW‖/‖W‖; NaN where W is all zero or there is none that can be read."""
    if updates.base is None:
        return math.nan
    try:
        weight = updates.weight(module)
    except RankscopeError:  # ΔW is known all the same; a note says what is missing
        return math.nan
    norm = torch.linalg.vector_norm(weight.double()).item()
    return frobenius / norm if norm else math.nan


def _unchanged(update: Update, is_pair: bool) -> float:
    if not is_pair or not isinstance(update, DenseUpdate):
        return math.nan
    return (update.matrix == 0).double().mean().item()
