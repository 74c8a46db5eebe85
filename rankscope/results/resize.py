"""What cutting updates down returns."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from rankscope.io.write import check_empty, is_folder
from rankscope.results.base import Result
from rankscope.tables import short

if TYPE_CHECKING:
    from rankscope.io.updateset import UpdateSet

__all__ = ["ExtractResult", "ResizeResult"]


@dataclass(frozen=True, eq=False, repr=False)
class ResizeResult(Result):
    """Updates of smaller rank and their errors; columns as in ``rankscope.resize/1``.

    Attributes
    ----------
    updates : UpdateSet
        The new factors, in memory, as they will be written.
    total : dict
        Of all rows together: `parameters`, `bytes`, `energy_kept`, `relative_error`.
    left_out : tuple of str
        Modules of rank 0, which the adapter does not hold.
    not_covered : tuple of str
        Tensors of the source that no adapter of this kind can hold, such as biases and norms.
    """

    schema: ClassVar[str] = "rankscope.resize/1"
    hidden: ClassVar[tuple[str, ...]] = ("layer", "frobenius")

    updates: UpdateSet = field(kw_only=True)
    total: dict[str, Any] = field(kw_only=True)
    left_out: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()

    def save(self, path: str | os.PathLike[str], **look: str) -> None:
        """Write the adapter where `path` has no suffix, otherwise the table, as every result.

        The folder must be new or empty. What follows a last dot counts as a suffix unless it
        is a number, as in ``runs/energy-0.95``.

        Raises
        ------
        OutputError
            If the folder holds anything, or something cannot be written.
        AdapterError
            If there is no module to write.
        """
        if is_folder(path):
            check_empty(path)
            self.updates.save(path)
        else:
            super().save(path, **look)

    def to_text(self, width: int | None = None) -> str:
        """Return the table and a line of totals."""
        kept, error = self.total["energy_kept"], self.total["relative_error"]
        size = f"{self.total['parameters']:,} parameters, {self.total['bytes']:,} bytes"
        totals = f"total: {size}, energy kept {short(kept)}, relative error {short(error)}"
        return f"{super().to_text(width)}\n{totals}"

    def folded(self) -> dict[str, pd.DataFrame]:
        """Return the totals."""
        return {"total": pd.DataFrame([self.total])} | super().folded()

    def extra(self) -> dict[str, Any]:
        """Return the totals and what the adapter does not hold."""
        return {
            "total": self.total,
            "left_out": list(self.left_out),
            "not_covered": list(self.not_covered),
        }


@dataclass(frozen=True, eq=False, repr=False)
class ExtractResult(ResizeResult):
    """Adapters out of a full fine-tune; columns as in ``rankscope.extract/1``."""

    schema: ClassVar[str] = "rankscope.extract/1"
