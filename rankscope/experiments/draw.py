"""Everything that is drawn from saved runs, again and again, without training."""

from __future__ import annotations

from pathlib import Path

from rankscope.experiments.index import index
from rankscope.io.write import replacing

__all__ = ["draw"]


def draw(out: str | Path) -> None:
    """Write the tables, figures and claims of the finished runs in `out`.

    Raises
    ------
    SourceError
        If there is no experiment in `out`.
    OutputError
        If something cannot be written.
    """
    out = Path(out)
    with replacing(out / "tables" / "index.csv") as temporary:
        index(out).drop(columns="folder").to_csv(temporary, index=False)
