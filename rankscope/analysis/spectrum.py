"""The singular values of every update of one source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import pandas as pd

from rankscope.analysis.costs import cost
from rankscope.analysis.devices import resolve_device
from rankscope.analysis.engine import How, Row, Study, Task, run
from rankscope.analysis.subject import open_subjects, read_subject
from rankscope.io.sources import Source
from rankscope.io.updateset import UpdateSet
from rankscope.results import SpectrumResult, provenance

__all__ = ["finish", "spectrum", "spectrum_study"]

_COLUMNS = {
    "module": "str",
    "layer": "Int64",
    "kind": "str",
    "expert": "Int64",
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
    **how: Unpack[How],
) -> SpectrumResult:
    """Compute the singular values of every update of a source.

    Parameters
    ----------
    source, base, alpha, of, seed, device, **how
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
    study = spectrum_study(open_subjects(of, source, base, alpha), of=of, seed=seed, device=device)
    result = run(study, how)
    assert isinstance(result, SpectrumResult)
    return result


def spectrum_study(
    updates: UpdateSet, *, of: str = "update", seed: int = 0, device: str = "cpu"
) -> Study:
    """Return what `spectrum` does with opened subjects, module by module."""
    device = resolve_device(device)
    options = {"of": of, "alpha": updates.alpha, "split": updates.split, "seed": seed}
    about = {
        "provenance": provenance(
            "spectrum",
            {"source": list(updates.inputs)},
            options | {"modules": updates.names},
            device,
        ),
        "notes": list(updates.notes),
    }
    tasks = [
        Task(site.module, _rows, (updates.only(site.module), seed), device=device, **cost(site))
        for site in updates.sites
    ]
    return Study("spectrum", tasks, about, finish)


def finish(
    rows: list[Row], failures: list[dict[str, Any]], about: Mapping[str, Any]
) -> SpectrumResult:
    """Return the result of all rows."""
    table = pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
    return SpectrumResult(table, about["provenance"], tuple(about["notes"]), tuple(failures))


def _rows(module: str, updates: UpdateSet, seed: int, *, device: str) -> Iterator[Row]:
    subject = read_subject(updates, module, device, seed)
    result = subject.spectrum()
    yield {
        "module": module,
        "layer": subject.site.layer,
        "kind": subject.site.kind,
        "expert": subject.site.expert,
        "singular_values": result.values.numpy(),
        "noise_edge": None if subject.noise is None else subject.noise.edge,
        "energy": result.energy,
        "method": result.method,
        "error_bound": result.error_bound,
    }
