"""Results: a tidy table, where it came from, and how it is shown, drawn and saved."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch

from rankscope.errors import OutputError, UpdateError, printable
from rankscope.io.write import check_empty, is_folder, replacing
from rankscope.tables import as_latex, as_markdown, as_text, plain, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rankscope.io.updateset import UpdateSet

__all__ = [
    "Advice",
    "ExtractResult",
    "InfoResult",
    "RankResult",
    "ResizeResult",
    "Result",
    "SimilarityResult",
    "SpectrumResult",
    "provenance",
]

TABLE_SUFFIXES = (".json", ".csv", ".parquet", ".tex", ".md")
FIGURE_SUFFIXES = (".svg", ".pdf", ".png")


def provenance(
    command: str, inputs: Mapping[str, Any], options: Mapping[str, Any], device: str
) -> dict[str, Any]:
    """Return what another person needs to compute the same numbers again.

    No time and no host: equal inputs and options give equal bytes.
    """
    packages = ("rankscope", "torch", "numpy", "scipy")
    return {
        "command": command,
        "inputs": dict(inputs),
        "options": dict(options),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in packages},
        },
        "device": device,
        "threads": torch.get_num_threads(),
    }


@cache
def _version(package: str) -> str:
    return version(package)


@dataclass(frozen=True, eq=False)
class Result:
    """What an analysis returns.

    Attributes
    ----------
    table : DataFrame
        Tidy, one row per module (and side). Undefined is NaN or ``<NA>``.
    provenance : dict
        Inputs with their hashes, options, versions, device, threads.
    notes : tuple of str
        What a reader of the numbers must know.
    failures : tuple of dict
        Updates that could not be measured, with the reason.
    """

    schema: ClassVar[str]
    # Long columns that a printed table leaves out.
    hidden: ClassVar[tuple[str, ...]] = ()

    table: pd.DataFrame
    provenance: dict[str, Any]
    notes: tuple[str, ...] = ()
    failures: tuple[dict[str, Any], ...] = ()

    def plot(self, **options: Any) -> Figure:
        """Return the figure of this result; `options` go to its ``figure_*`` function."""
        raise UpdateError(
            "this result has no figure",
            where=type(self).__name__,
            expected="a result of similarity, rank or spectrum",
            got=self.schema,
            fix=f"save it as one of {', '.join(TABLE_SUFFIXES)}",
        )

    def long(self) -> pd.DataFrame:
        """Return the form that CSV and Parquet hold: one number per row where a cell is a list."""
        return self.table

    def extra(self) -> dict[str, Any]:
        """Return what stands beside the rows in the JSON form."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: schema, provenance, rows and what stands beside them.

        Undefined numbers are None.
        """
        content = {
            "schema": self.schema,
            "provenance": self.provenance,
            "rows": self.table.to_dict(orient="records"),
            **self.extra(),
            "notes": list(self.notes),
            "failures": list(self.failures),
        }
        form: dict[str, Any] = plain(content)
        return form

    def shown(self) -> pd.DataFrame:
        """Return the part of the table that is printed: without the long columns."""
        return _without_experts(self.table.drop(columns=list(self.hidden), errors="ignore"))

    def to_text(self) -> str:
        """Return the printed table, all rows of it."""
        return as_text(self.shown())

    def to_details(self) -> str:
        """Return what is printed under the table on request; nothing for most results."""
        return ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result; the suffix chooses the form.

        Tables are ``.json`` (everything), ``.csv`` and ``.parquet`` (rows), ``.tex`` and
        ``.md`` (the printed table); figures are ``.svg``, ``.pdf`` and ``.png``. The file
        appears whole or not at all.

        Raises
        ------
        OutputError
            If the suffix is another one, or the file cannot be written.
        """
        target = Path(path)
        writer = _WRITERS.get(target.suffix.lower())
        if writer is None:
            raise unknown_suffix(target)
        with replacing(target) as temporary:
            writer(self, temporary)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}: {len(self.table)} rows", as_text(self.shown().head(20))]
        if len(self.table) > 20:
            lines.append(f"… and {len(self.table) - 20} more rows in .table")
        lines.extend(f"note: {note}" for note in self.notes)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        html: str = self.shown().to_html(max_rows=20, index=False, float_format=short, na_rep="–")
        return html


@dataclass(frozen=True, eq=False, repr=False)
class SimilarityResult(Result):
    """Subspace similarity of two sources; columns as in ``rankscope.similarity/1``.

    Attributes
    ----------
    names : (str, str)
        Short names of A and B, for axes.
    unmatched_a, unmatched_b : tuple of str
        Modules that only one side has.
    random : DataFrame
        φ of two random subspaces of the same dimensions, drawn once per size: what chance
        looks like. Columns ``side dimension rank_a rank_b phi``.
    verdicts : tuple of dict
        In words what the rows say, for all modules of a side and kind: ``side kind modules
        above_chance verdict``.
    """

    schema: ClassVar[str] = "rankscope.similarity/1"
    hidden: ClassVar[tuple[str, ...]] = (
        "phi",
        "cosines",
        "layer",
        "ambiguous_a",
        "ambiguous_b",
        "floor_error",
        "ceiling_error",
        "shuffled",
        "init_residue_a",
        "init_residue_b",
        "shared_init_suspected",
        "verdict",
    )
    # Shown only where they were asked for.
    asked: ClassVar[tuple[str, ...]] = (
        "reference_rank",
        "phi_reference",
        "floor",
        "ceiling",
        "placed",
        "shuffled_mean",
        "shuffled_95",
        "p_shuffled",
    )

    names: tuple[str, str] = ("A", "B")
    unmatched_a: tuple[str, ...] = ()
    unmatched_b: tuple[str, ...] = ()
    random: pd.DataFrame = field(default_factory=pd.DataFrame)
    verdicts: tuple[dict[str, Any], ...] = ()

    def shown(self) -> pd.DataFrame:
        """Return the printed columns; of references and other layers only where there are any."""
        table = super().shown()
        return table.drop(columns=[name for name in self.asked if table[name].isna().all()])

    def to_details(self) -> str:
        """Return the verdict of every module and side, then of every kind."""
        rows = self.table
        lines = [f"{row.module}, {row.side}: {row.verdict}" for row in rows.itertuples()]
        lines += [f"all {one['kind']}, {one['side']}: {one['verdict']}" for one in self.verdicts]
        if rows.floor.isna().all() and any(one["above_chance"] for one in self.verdicts):
            lines.append(
                "unrelated tasks on one base are above chance too: a floor tells how much"
            )
        return "\n".join(map(printable, lines))

    def grid(self, module: str, side: str = "right") -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return φ(i, j) of one module and side, (rank_a, rank_b), cell ``[i-1, j-1]``.

        Raises
        ------
        UpdateError
            If the result has no such module or side.
        """
        rows = self.table[(self.table.module == module) & (self.table.side == side)]
        if rows.empty:
            raise UpdateError(
                "no such module and side in this result",
                where="SimilarityResult.grid",
                expected=f"one of {', '.join(self.table.module.unique()[:3])} …, left or right",
                got=f"{module!r}, {side!r}",
                fix="look at .table",
            )
        grid: np.ndarray[Any, np.dtype[np.float64]] = rows.iloc[0].phi
        return grid

    def plot(self, **options: Any) -> Figure:
        """Return heat maps like figures 3 and 4 of the LoRA paper, see `figure_similarity`."""
        from rankscope.plots import figure_similarity

        options.setdefault("names", self.names)
        return figure_similarity(self.table, random=self.random, **options)

    def long(self) -> pd.DataFrame:
        """Return one row per cell: module, side, i, j, phi and its chance level."""
        parts = [_cells(row) for row in self.table.itertuples()]
        columns = ["module", "side", "i", "j", "phi", "chance"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def extra(self) -> dict[str, Any]:
        """Return the names, what was not matched, and the random control."""
        return {
            "names": list(self.names),
            "unmatched_a": list(self.unmatched_a),
            "unmatched_b": list(self.unmatched_b),
            "verdicts": list(self.verdicts),
            "random": self.random.to_dict(orient="records"),
        }


@dataclass(frozen=True, eq=False)
class Advice:
    """Which rank every module needs, rule by rule, and the ranks that are advised.

    Attributes
    ----------
    table : DataFrame
        A row per module and rule: ``module rule rank relative_error parameters bytes``.
        `relative_error` is ‖ΔW − ΔW_k‖ / ‖ΔW‖ at that rank, `parameters` and `bytes` are of
        the two factors. A rule that does not apply has no rank.
    rule : str
        The rule that is advised.
    dtype : str
        Of the factors whose bytes are counted.
    """

    table: pd.DataFrame
    rule: str
    dtype: str

    @property
    def chosen(self) -> pd.DataFrame:
        """The rows of the rule that is advised."""
        return self.table[self.table.rule == self.rule]

    @property
    def rank_pattern(self) -> dict[str, int]:
        """The advised rank of every module that needs one, as PEFT's ``rank_pattern``."""
        kept = self.chosen[self.chosen["rank"] > 0]
        return {module: int(rank) for module, rank in zip(kept.module, kept["rank"], strict=True)}

    @property
    def left_out(self) -> list[str]:
        """The modules that need none."""
        return [module for module in self.chosen.module if module not in self.rank_pattern]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: what is advised, then the row of every module and rule."""
        return {
            "rule": self.rule,
            "dtype": self.dtype,
            "parameters": int(self.chosen.parameters.sum()),
            "bytes": int(self.chosen.bytes.sum()),
            "rank_pattern": self.rank_pattern,
            "left_out": self.left_out,
            "rows": self.table.to_dict(orient="records"),
        }

    def to_text(self) -> str:
        """Return the ranks of a module side by side, the advised one's cost, and the pattern."""
        wide = self.table.pivot(index="module", columns="rule", values="rank")
        costs = self.chosen.set_index("module")[["relative_error", "parameters", "bytes"]]
        order = list(dict.fromkeys(self.table.module))
        wide = wide[list(dict.fromkeys(self.table.rule))].join(costs).loc[order]
        size = f"{self.chosen.parameters.sum():,} parameters, {self.chosen.bytes.sum():,} bytes"
        pattern = json.dumps({"rank_pattern": self.rank_pattern}, ensure_ascii=False)
        return f"{as_text(wide.reset_index())}\n{self.rule}: {size} in {self.dtype}\n{pattern}"


@dataclass(frozen=True, eq=False, repr=False)
class RankResult(Result):
    """Rank measures of every update; columns as in ``rankscope.rank/1``.

    Attributes
    ----------
    advice : Advice or None
        Which rank every module needs, if asked for.
    """

    schema: ClassVar[str] = "rankscope.rank/1"
    shown_columns: ClassVar[tuple[str, ...]] = (
        "module",
        "kind",
        "rows",
        "columns",
        "ceiling",
        "frobenius",
        "relative_norm",
        "numerical_rank",
        "stable_rank",
        "participation_rank",
        "effective_rank",
        "energy_rank_90",
        "rank_above_noise",
        "noise_share",
        "state",
    )

    advice: Advice | None = None

    def plot(self, **options: Any) -> Figure:
        """Return a rank measure against depth, see `figure_rank`."""
        from rankscope.plots import figure_rank

        return figure_rank(self.table, **options)

    def long(self) -> pd.DataFrame:
        """Return the table with the names of the measures that noise affects in one cell."""
        named = self.table.noise_affected.map(" ".join, na_action="ignore")
        return self.table.assign(noise_affected=named.astype("string"))

    def shown(self) -> pd.DataFrame:
        """Return the columns that are printed; of the noise only where there is any."""
        shown = self.table[list(self.shown_columns)]
        noise = ["rank_above_noise", "noise_share"]
        return shown if shown.noise_share.notna().any() else shown.drop(columns=noise)

    def to_text(self) -> str:
        """Return the table, then the advice where it was asked for."""
        parts = [super().to_text()] + ([] if self.advice is None else [self.advice.to_text()])
        return "\n\n".join(parts)

    def extra(self) -> dict[str, Any]:
        """Return the advice, where it was asked for."""
        return {} if self.advice is None else {"advice": self.advice.to_dict()}


@dataclass(frozen=True, eq=False, repr=False)
class SpectrumResult(Result):
    """Singular values of every update; columns as in ``rankscope.spectrum/1``."""

    schema: ClassVar[str] = "rankscope.spectrum/1"
    hidden: ClassVar[tuple[str, ...]] = ("layer", "method", "error_bound")

    def plot(self, **options: Any) -> Figure:
        """Return the singular values on a logarithmic axis, see `figure_spectrum`."""
        from rankscope.plots import figure_spectrum

        return figure_spectrum(self.table, **options)

    def shown(self) -> pd.DataFrame:
        """Return the table with the first six singular values of each update."""
        firsts = [
            " ".join(map(short, row[:6])) + (" …" if len(row) > 6 else "")
            for row in self.table.singular_values
        ]
        return super().shown().assign(singular_values=firsts)

    def long(self) -> pd.DataFrame:
        """Return one row per singular value: module, layer, kind, index (from 1), value."""
        table = self.table[["module", "layer", "kind", "singular_values"]].assign(
            index=self.table.singular_values.map(lambda s: list(range(1, len(s) + 1)))
        )
        long = table.explode(["index", "singular_values"]).dropna(subset="index")
        return long.rename(columns={"singular_values": "singular_value"}).reset_index(drop=True)


@dataclass(frozen=True, eq=False, repr=False)
class InfoResult(Result):
    """What sources hold; columns as in ``rankscope.info/1``.

    Attributes
    ----------
    modules : DataFrame or None
        Columns ``source module expert shape rank scale format``, if asked for.
    tensors : DataFrame or None
        Columns ``source tensor shape dtype role``, if asked for.
    metadata : dict or None
        What each source says of itself, header and configuration, if asked for.
    """

    schema: ClassVar[str] = "rankscope.info/1"

    modules: pd.DataFrame | None = None
    tensors: pd.DataFrame | None = None
    metadata: dict[str, Any] | None = None

    def to_text(self) -> str:
        """Return the table, then the lists and the metadata where they were asked for."""
        parts = [super().to_text()]
        for table in map(_without_experts, self._lists().values()):
            for source, rows in table.groupby("source", sort=False):
                # A path in every line would push what counts out of the window.
                parts.append(f"{source}\n{as_text(rows.drop(columns='source'))}")
        if self.metadata is not None:
            parts.append(json.dumps(plain(self.metadata), indent=1))
        return "\n\n".join(parts)

    def extra(self) -> dict[str, Any]:
        """Return the lists and the metadata, where they were asked for."""
        lists = {name: table.to_dict("records") for name, table in self._lists().items()}
        return lists | ({} if self.metadata is None else {"metadata": self.metadata})

    def _lists(self) -> dict[str, pd.DataFrame]:
        lists = {"modules": self.modules, "tensors": self.tensors}
        return {name: table for name, table in lists.items() if table is not None}

    def shown(self) -> pd.DataFrame:
        """Return the table with the number of unread tensors in place of their names."""
        return self.table.assign(unread=[len(names) for names in self.table.unread])


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

    def save(self, path: str | os.PathLike[str]) -> None:
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
            super().save(path)

    def to_text(self) -> str:
        """Return the table and a line of totals."""
        kept, error = self.total["energy_kept"], self.total["relative_error"]
        size = f"{self.total['parameters']:,} parameters, {self.total['bytes']:,} bytes"
        totals = f"total: {size}, energy kept {short(kept)}, relative error {short(error)}"
        return f"{super().to_text()}\n{totals}"

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


def unknown_suffix(
    path: Path, suffixes: tuple[str, ...] = TABLE_SUFFIXES + FIGURE_SUFFIXES
) -> OutputError:
    """Return the error for a suffix that no writer serves."""
    return OutputError(
        "this kind of output is not known",
        where=str(path),
        expected=f"one of {' '.join(suffixes)}",
        got=path.suffix or "no suffix",
        fix="choose the form by the file's suffix",
    )


def _without_experts(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table without the column of experts where there are none."""
    empty = "expert" in table and bool(table.expert.isna().all())
    return table.drop(columns="expert") if empty else table


def _cells(row: Any) -> pd.DataFrame:
    rows, columns = row.phi.shape
    i, j = np.indices((rows, columns)) + 1
    return pd.DataFrame(
        {
            "module": row.module,
            "side": row.side,
            "i": i.ravel(),
            "j": j.ravel(),
            "phi": row.phi.ravel(),
            "chance": np.maximum(i, j).ravel() / row.dimension,
        }
    )


def _write_json(result: Result, path: Path) -> None:
    path.write_text(json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n")


def _write_csv(result: Result, path: Path) -> None:
    result.long().to_csv(path, index=False)


def _write_parquet(result: Result, path: Path) -> None:
    try:
        result.long().to_parquet(path, index=False)
    except ImportError as error:
        raise OutputError(
            "Parquet needs another package",
            where=str(path),
            expected="pyarrow",
            got="not installed",
            fix="pip install 'rankscope[parquet]', or write .csv",
        ) from error


def _write_latex(result: Result, path: Path) -> None:
    path.write_text(as_latex(result.shown()))


def _write_markdown(result: Result, path: Path) -> None:
    path.write_text(as_markdown(result.shown()))


def _write_figure(result: Result, path: Path) -> None:
    from rankscope.plots import save_figure

    save_figure(result.plot(), path)


_WRITERS: dict[str, Callable[[Result, Path], None]] = {
    ".json": _write_json,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".tex": _write_latex,
    ".md": _write_markdown,
    **dict.fromkeys(FIGURE_SUFFIXES, _write_figure),
}
