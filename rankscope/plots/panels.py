"""Which grids of a similarity table one page shows, before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankscope.plots.tables import (
    TableError,
    as_floats,
    count,
    kinds_in_order,
    left_out,
    require_columns,
)

SIDES = {"right": "input side (right)", "left": "output side (left)"}
RANDOM = "random Gaussian"
AUTO_MODULES = 4
PER_PAGE, PER_PAGE_ENLARGED = 12, 6


@dataclass(frozen=True)
class Panel:
    """One grid with its words: `grid[i - 1, j - 1]` is φ(i, j), NaN where nothing is drawn."""

    name: str
    detail: str
    grid: NDArray[np.float64]
    chance: float
    enlarged: bool = False
    cropped: bool = False

    def triangle(self) -> Panel:
        """Return the panel's cells with j ≤ i, enlarged."""
        k = min(self.grid.shape)
        below = np.tri(k, dtype=bool)
        grid = np.where(below, self.grid[:k, :k], np.nan)
        return Panel(self.name, "enlarged: j ≤ i", grid, self.chance, enlarged=True)


@dataclass(frozen=True)
class Page:
    """The panels of each side, right first, and the sentence under them."""

    sides: dict[str, list[Panel]]
    caption: str


def with_grids(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with their grids as arrays (lists become arrays) and `drawn` beside."""
    grids = [_as_grid(phi) for phi in table["phi"]]
    phi = pd.Series(grids, index=table.index, dtype=object)
    return table.assign(phi=phi, drawn=[grid.size > 0 for grid in grids])


def mean_panel(rows: pd.DataFrame, name: str, detail: str = "") -> Panel:
    """Return the mean grid of the rows over the leading block that all of them have."""
    shapes = {grid.shape for grid in rows["phi"]}
    high, wide = (min(sizes) for sizes in zip(*shapes, strict=True))
    grid = np.mean([grid[:high, :wide] for grid in rows["phi"]], axis=0)
    dimensions = rows["dimension"].to_numpy(dtype=np.float64)
    chance = float(np.mean(max(high, wide) / dimensions))
    return Panel(name, detail, grid, chance, cropped=len(shapes) > 1)


def arrange(table: pd.DataFrame, *, random: pd.DataFrame | None, by: str, page: int) -> Page:
    """Choose the groups, the page and the panels of a similarity figure."""
    require_columns(table, "module", "layer", "kind", "side", "dimension", "phi")
    table = with_grids(table)
    rows = table[table["drawn"]]
    column = _grouping(rows, by)
    shown, note = _page_of(rows, column, page)
    sides = {
        side: _side_panels(shown[shown["side"] == side], column, random)
        for side in SIDES
        if (shown["side"] == side).any()
    }
    zero = [name for name in table["module"].unique() if name not in set(rows["module"])]
    said = [note, _how(sides), _other_layers(shown), left_out(zero, "rank 0")]
    return Page(sides, " ".join(filter(None, said)))


def count_pages(table: pd.DataFrame, *, by: str = "auto") -> int:
    """Return how many pages `figure_similarity` makes of a table.

    Parameters
    ----------
    table : DataFrame
        A similarity table.
    by : {"auto", "kind", "module"}
        As in `figure_similarity`.

    Returns
    -------
    int
        1 for ``by="kind"``; otherwise twelve modules a page, six where triangles are enlarged.

    Examples
    --------
    >>> rows = {"module": [f"m{n:02}" for n in range(24)], "layer": pd.NA, "kind": "other",
    ...         "side": "right", "dimension": 4, "phi": [np.eye(2)] * 24}
    >>> count_pages(pd.DataFrame(rows), by="module"), count_pages(pd.DataFrame(rows))
    (2, 1)
    """
    require_columns(table, "module", "layer", "kind", "side", "dimension", "phi")
    table = with_grids(table)
    rows = table[table["drawn"]]
    if _grouping(rows, by) == "kind":
        return 1
    return -(-rows["module"].nunique() // _per_page(rows)) or 1


def _as_grid(phi: Any) -> NDArray[np.float64]:
    grid = np.zeros((0, 0)) if phi is None else np.asarray(phi, dtype=np.float64)
    return grid if grid.ndim == 2 else np.zeros((0, 0))


def _grouping(rows: pd.DataFrame, by: str) -> str:
    if by == "auto":
        return "module" if rows["module"].nunique() <= AUTO_MODULES else "kind"
    if by not in {"kind", "module"}:
        raise TableError(
            "similarity figures cannot be arranged this way",
            where="by",
            expected="auto, kind or module",
            got=repr(by),
            fix="use by='kind' for means, by='module' for one panel per module",
        )
    return by


def _per_page(rows: pd.DataFrame) -> int:
    oblong = any(grid.shape[0] != grid.shape[1] for grid in rows["phi"])
    return PER_PAGE_ENLARGED if oblong else PER_PAGE


def _page_of(rows: pd.DataFrame, column: str, page: int) -> tuple[pd.DataFrame, str]:
    """Return the rows of one page and the sentence that says which they are."""
    modules = list(rows["module"].unique())
    size = _per_page(rows) if column == "module" else max(len(modules), 1)
    pages = -(-len(modules) // size) or 1
    if not 1 <= page <= pages:
        raise TableError(
            "the figure has no such page",
            where=f"page, with one panel per {column}",
            expected=f"a page from 1 to {pages}",
            got=str(page),
            fix="choose a page in that range, or by='kind' for one page of means",
        )
    if column == "kind":
        return rows, _means(rows)
    chosen = modules[(page - 1) * size : page * size]
    if pages == 1:
        return rows, ""
    first = (page - 1) * size + 1
    last = first + len(chosen) - 1
    return rows[rows["module"].isin(chosen)], (
        f"Page {page} of {pages}: modules {first} to {last} of {len(modules)}, in their order."
    )


def _means(rows: pd.DataFrame) -> str:
    sizes = rows.groupby("kind", observed=True)["module"].nunique()
    kinds = kinds_in_order(sizes.index)
    if len(kinds) == 1:
        return f"Mean φ over the {count(sizes.iloc[0], 'module')} of kind {kinds[0]}."
    return "Mean φ over the modules of each kind: " + (
        ", ".join(f"{kind} {sizes[kind]}" for kind in kinds) + "."
    )


def _side_panels(rows: pd.DataFrame, column: str, random: pd.DataFrame | None) -> list[Panel]:
    names = rows[column].unique()
    ordered = kinds_in_order(names) if column == "kind" else list(names)
    full = [_group_panel(rows[rows[column] == name], name, column) for name in ordered]
    oblong = [panel for panel in full if panel.grid.shape[0] != panel.grid.shape[1]]
    control = [] if random is None else _random_panel(random, rows)
    return full + control + [panel.triangle() for panel in oblong]


def _group_panel(rows: pd.DataFrame, name: str, column: str) -> Panel:
    if column == "module":
        return mean_panel(rows, name)
    layers = rows["layer"].dropna()
    noun = "layer" if layers.nunique() == len(rows) else "module"
    return mean_panel(rows, name, f"mean of {count(len(rows), noun)}")


def _random_panel(random: pd.DataFrame, rows: pd.DataFrame) -> list[Panel]:
    """Return the control at the sizes of `rows`, or nothing where it has no grid of that side."""
    require_columns(random, "side", "dimension", "phi")
    control = with_grids(random)
    control = control[control["drawn"] & control["side"].isin(rows["side"])]
    fitting = control[control["dimension"].isin(rows["dimension"])]
    control = control if fitting.empty else fitting
    if control.empty:
        return []
    detail = f"mean of {len(control)} draws" if len(control) > 1 else ""
    return [mean_panel(control, RANDOM, detail)]


def _how(sides: dict[str, list[Panel]]) -> str:
    """Return what a reader must know about the panels: blocks cut to one size, and chance."""
    panels = [panel for panels in sides.values() for panel in panels]
    if not panels:
        return ""
    blocks = dict.fromkeys(_size(panel.grid) for panel in panels if panel.cropped)
    said = [
        f"Grids differ in size: means are over the leading {' or '.join(blocks)} block."
        if blocks
        else "",
        "Enlarged: the cells of the full grid with j ≤ i, under grey steps."
        if any(panel.enlarged for panel in panels)
        else "",
        "Chance is max(i, j)/d at the last cell.",
    ]
    return " ".join(filter(None, said))


def _other_layers(rows: pd.DataFrame) -> str:
    """Return the sentence that gives the null of other layers of B, where it was asked for."""
    columns = ["phi_full", "shuffled_mean", "shuffled_95"]
    if not set(columns) <= set(rows.columns) or rows["shuffled_mean"].isna().all():
        return ""
    known = rows[rows["shuffled_mean"].notna()]
    means = as_floats(known, columns).groupby(known["side"]).mean()
    parts = [
        f"{here:.2g} on the {SIDES[str(side)]}, {mean:.2g} between other layers (95 % of them "
        f"below {most:.2g})"
        for side, (here, mean, most) in means.reindex(list(SIDES)).dropna().T.items()
    ]
    return f"φ of all directions, means over modules: {'; '.join(parts)}."


def _size(grid: NDArray[np.float64]) -> str:
    return f"{grid.shape[0]} × {grid.shape[1]}"


def page_columns(counts: Sequence[tuple[int, int]], most: int = 6) -> int:
    """Return the number of columns for sides with (full, enlarged) panels each.

    Up to `most` panels stand in one row. More are wrapped, enlarged ones on rows of their own,
    into the fewest rows, then the fewest blanks.

    Examples
    --------
    >>> page_columns([(3, 2)]), page_columns([(8, 7)]), page_columns([(13, 0)])
    (5, 4, 5)
    """
    widest = max(full + enlarged for full, enlarged in counts)
    if widest <= most:
        return widest

    def cost(columns: int) -> tuple[int, int]:
        parts = [part for pair in counts for part in pair]
        rows = sum(-(-part // columns) for part in parts)
        return rows, rows * columns - sum(parts)

    return min(range(4, most + 1), key=cost)
