"""What a rank table would say of updates without structure."""

from __future__ import annotations

import pandas as pd

from rankscope.linalg.unstructured import unstructured_spectrum
from rankscope.measures.rank import effective_rank, energy_rank

__all__ = ["with_random"]


def with_random(table: pd.DataFrame) -> pd.DataFrame:
    """Return a rank table with what random updates of the same forms have.

    Two columns more: `random_effective`, the effective rank, and `random_energy_90`, the
    directions that hold 90 % of the energy.

    Examples
    --------
    >>> row = {"rows": [9], "columns": [9], "factor_rank": [1]}
    >>> with_random(pd.DataFrame(row)).random_effective.tolist()
    [1.0]
    """
    spectra = [
        unstructured_spectrum(int(rows), int(columns), None if pd.isna(rank) else int(rank))
        for rows, columns, rank in zip(
            *(table[name] for name in ("rows", "columns", "factor_rank")), strict=True
        )
    ]
    return table.assign(
        random_effective=[effective_rank(s) for s in spectra],
        random_energy_90=[energy_rank(s, 0.9) for s in spectra],
    )
