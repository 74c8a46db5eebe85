"""Figures 2, 3, 4, 6, 7 and 8 of the LoRA paper, from the runs, each with the numbers in it.

Input side and singular vectors of ΔW throughout. The grids are means over the pairs of runs with
different seeds, of which the paper shows one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rankscope.experiments.measured import Pair, Runs, across_seeds
from rankscope.experiments.tables import parameters_table
from rankscope.experiments.update_tables import middle_layer
from rankscope.plots.alignments import figure_alignments, mean_alignment
from rankscope.plots.layers import figure_layers, phi_cells
from rankscope.plots.scores import figure_scores
from rankscope.plots.style import notice_figure
from rankscope.plots.tables import as_vector

__all__ = ["FIGURES", "Drawn", "figure2", "figure3", "figure4", "figure6", "figure7", "figure8"]

_DIGITS = 4
_ABSENT = "these runs were not trained"


class Drawn(NamedTuple):
    """A figure and the numbers that it shows."""

    figure: Figure
    table: pd.DataFrame


def figure2(runs: Runs) -> Drawn:
    """Return token accuracy against trained parameters, a line per method and targets."""
    table = parameters_table(runs)
    series = [
        f"{method} {targets.replace(',', '')}" if method == "LoRA" else method
        for method, targets in zip(table.method, table.targets, strict=True)
    ]
    hard = table.difficulty.isna() | (table.difficulty == 2) | (table.task != "slots")
    table = table.assign(series=series)[hard.to_numpy()]
    return Drawn(figure_scores(table), table)


def figure3(runs: Runs) -> Drawn:
    """Return φ of the small and the large rank on the middle layer, with the zooms."""
    return _ranks(runs, middle_only=True)


def figure4(runs: Runs) -> Drawn:
    """Return φ of two seeds of the large rank on the middle layer, with a random panel."""
    return _seeds(runs, middle_only=True)


def figure6(runs: Runs) -> Drawn:
    """Return figure 3 for all layers."""
    return _ranks(runs, middle_only=False)


def figure7(runs: Runs) -> Drawn:
    """Return figure 4 for all layers, without the random panel."""
    return _seeds(runs, middle_only=False)


def figure8(runs: Runs, kind: str = "q") -> Drawn:
    """Return φ of W's first i and ΔW's first j directions, by rank and for a random update."""
    tables: dict[str, pd.DataFrame] = {}
    for rank, names in _by_rank(runs).items():
        some = [runs.amplification(name, [rank]) for name in names]
        tables[f"r = {rank}"] = _of_kind(pd.concat(some), kind)
    if not tables:
        return _absent()
    rank, names = max(_by_rank(runs).items())
    drawn = runs.amplification(runs.drawn(names[0], 0), [rank])
    tables["random"] = _of_kind(drawn, kind)
    layers = tables["random"].layer.nunique()
    caption = (
        f"φ of the input directions of W{kind} and ΔW{kind}, mean over {layers} layers and the "
        f"seeds; random: directions drawn at random, of r = {rank}'s singular values. "
        "Below: over the chance level max(i, j)/d."
    )
    cells = [_alignment_cells(name, table) for name, table in tables.items()]
    return Drawn(figure_alignments(tables, caption=caption), pd.concat(cells, ignore_index=True))


FIGURES: Mapping[str, Callable[[Runs], Drawn]] = MappingProxyType(
    {
        "figure2": figure2,
        "figure3": figure3,
        "figure4": figure4,
        "figure6": figure6,
        "figure7": figure7,
        "figure8": figure8,
    }
)


# --- parts -----------------------------------------------------------------------------------


def _ranks(runs: Runs, *, middle_only: bool) -> Drawn:
    if runs.ranks is None:
        return _absent()
    low, high = runs.ranks
    rows = runs.adapters()
    pairs = across_seeds(rows[rows["rank"] == low], rows[rows["rank"] == high])
    return _grids(runs, pairs, (f"ΔW, r = {low}", f"ΔW, r = {high}"), middle_only)


def _seeds(runs: Runs, *, middle_only: bool) -> Drawn:
    if runs.ranks is None:
        return _absent()
    rank = runs.ranks[1]
    rows = runs.adapters()
    rows = rows[rows["rank"] == rank]
    names = (f"ΔW, r = {rank}, one seed", "another seed")
    return _grids(
        runs, across_seeds(rows, rows), names, middle_only, control=middle_only, abreast=2
    )


def _grids(
    runs: Runs,
    pairs: Sequence[Pair],
    names: tuple[str, str],
    middle_only: bool,
    control: bool = False,
    abreast: int = 1,
) -> Drawn:
    if not pairs:
        return _absent()
    results = [runs.similarity(pair) for pair in pairs]
    table = pd.concat([result.table for result in results], ignore_index=True)
    table = table[table.side == "right"]
    layers = int(table.layer.max()) + 1
    if middle_only:
        table = table[table.layer == middle_layer(table)]
    random = results[0].random
    mean = f"mean of {len(pairs)} pairs" if len(pairs) > 1 else "one pair"
    caption = (
        f"φ(i, j) on the input side, of {layers} layers counted from 0; {mean} of runs with "
        "different seeds. Chance is max(i, j)/d at the last cell."
    )
    figure = figure_layers(
        table,
        random=random[random.side == "right"] if control else None,
        names=names,
        abreast=abreast,
        caption=caption,
    )
    return Drawn(figure, phi_cells(table, _DIGITS))


def _by_rank(runs: Runs) -> dict[int, list[str]]:
    """Return the runs of the ranks that figure 8 shows: about the paper's 4, 8 and 64."""
    rows = runs.adapters()
    ranks = sorted({int(rank) for rank in rows["rank"] if rank < runs.width})[-3:]
    return {rank: list(rows.name[rows["rank"] == rank]) for rank in ranks}


def _of_kind(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    return table[table.kind == kind]


def _alignment_cells(name: str, table: pd.DataFrame) -> pd.DataFrame:
    phi = mean_alignment(table, "right").round(_DIGITS)
    i = as_vector(table.alignment_i.iloc[0]).astype(np.int64)
    dimension = float(table["columns"].iloc[0])
    columns = [f"j{j}" for j in range(1, phi.shape[1] + 1)]
    chance = np.maximum(i, phi.shape[1]) / dimension
    first = pd.DataFrame({"update": name, "i": i, "chance": chance})
    return pd.concat([first, pd.DataFrame(phi, columns=columns)], axis=1)


def _absent() -> Drawn:
    return Drawn(notice_figure(_ABSENT), pd.DataFrame())
