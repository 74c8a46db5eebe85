"""The singular values of every update of one source."""

from __future__ import annotations

from typing import Any

import pandas as pd

from rankscope.analysis.engine import map_modules, resolve_device
from rankscope.analysis.subject import open_subjects, read_subject
from rankscope.io.sources import Source
from rankscope.io.updateset import UpdateSet
from rankscope.results import SpectrumResult, provenance

__all__ = ["spectrum"]

_COLUMNS = {
    "module": "str",
    "layer": "Int64",
    "kind": "str",
    "singular_values": "object",
    "noise_edge": "float64",
    "energy": "float64",
    "method": "str",
    "error_bound": "float64",
}


def spectrum(
    source: Source | UpdateSet,
    *,
    base: Source | None = None,
    alpha: float | None = None,
    of: str = "update",
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> SpectrumResult:
    """Compute the singular values of every update of a source.

    Parameters
    ----------
    source, base, alpha, of, seed, device, progress
        As for `rank`.

    Returns
    -------
    SpectrumResult
        A row per module: `singular_values`, descending, float64, in the unit of the weight;
        `energy` is ‖ΔW‖_F²; `error_bound` is the absolute error of each value. `noise_edge`
        is the largest singular value that the rounding of the storage alone makes in the
        difference of two checkpoints; undefined for any other update.

    Raises
    ------
    SourceError, AdapterError, UpdateError
        As for `rank`.

    Examples
    --------
    >>> import torch
    >>> import rankscope as rs
    >>> base = {"w.weight": torch.zeros(2, 2)}
    >>> tuned = {"w.weight": torch.diag(torch.tensor([1.0, 3.0]))}
    >>> rs.spectrum(tuned, base=base).table.singular_values[0].tolist()
    [3.0, 1.0]
    """
    updates, device = open_subjects(of, source, base, alpha), resolve_device(device)
    rows, failures = map_modules(
        updates.names, lambda module: [_row(module, updates, device, seed)], progress=progress
    )
    return SpectrumResult(
        table=pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS),
        provenance=provenance(
            "spectrum",
            {"source": list(updates.inputs)},
            {"of": of, "alpha": updates.alpha, "modules": updates.names, "seed": seed},
            device,
        ),
        notes=updates.notes,
        failures=tuple(failures),
    )


def _row(module: str, updates: UpdateSet, device: str, seed: int) -> dict[str, Any]:
    subject = read_subject(updates, module, device, seed)
    result = subject.spectrum()
    return {
        "module": module,
        "layer": subject.site.layer,
        "kind": subject.site.kind,
        "singular_values": result.values.numpy(),
        "noise_edge": None if subject.noise is None else subject.noise.edge,
        "energy": result.energy,
        "method": result.method,
        "error_bound": result.error_bound,
    }
