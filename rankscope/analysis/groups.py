"""Groups of sources, such as the seeds of one run, within and between."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, combinations_with_replacement
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankscope.errors import UpdateError
from rankscope.linalg.chance import adjusted_p_values
from rankscope.measures.distances import DISTANCES
from rankscope.measures.replicates import (
    group_mean,
    mean_interval,
    pair_values,
    seed_interval,
    shuffle_p_value,
)

__all__ = ["Groups", "checked_groups", "group_table", "shuffle_notes"]

_COLUMNS = {
    "measure": "str",
    "side": "str",
    "a": "str",
    "b": "str",
    "pairs": "int64",
    "modules": "int64",
    "mean": "float64",
    "sd": "float64",
    "chance": "float64",
    "seeds_low": "float64",
    "seeds_high": "float64",
    "modules_low": "float64",
    "modules_high": "float64",
    "p_shuffled": "float64",
    "p_adjusted": "float64",
    "arrangements": "Int64",
}
# From a measure to the columns of a pair that hold it, a to b and b to a.
_WAYS = {"containment": ("containment_a", "containment_b")}
_CHANCE = {"phi": ("chance", "chance"), "containment": ("chance_a", "chance_b")}
# What a pair of another number of directions does not change.
_ANY_RANK = ("cosine",)

Groups = Mapping[str, Sequence[str]]
_Array = NDArray[np.float64]


def checked_groups(groups: Groups, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the groups, each source once.

    Raises
    ------
    UpdateError
        If a member is no source, is in two groups, or a group has none.
    """
    members = [member for group in groups.values() for member in group]
    unknown = [member for member in members if member not in names]
    twice = [member for n, member in enumerate(members) if member in members[:n]]
    if unknown or twice or not all(groups.values()):
        raise UpdateError(
            "these groups cannot be made of the sources",
            where=", ".join(groups),
            expected=f"each of the sources in one group at most: {', '.join(names)}",
            got=f"{unknown[0]!r}, which is none of them"
            if unknown
            else f"{twice[0]!r} twice"
            if twice
            else "a group without a source",
            fix="name the sources as they were named: --group seeds=first,second",
        )
    return {name: tuple(group) for name, group in groups.items()}


def group_table(
    table: pd.DataFrame,
    updates: pd.DataFrame,
    names: Sequence[str],
    groups: Groups,
    measures: Sequence[str],
) -> pd.DataFrame:
    """Return a row per measure, side and pair of groups.

    Parameters
    ----------
    table, updates : DataFrame
        Of a `CompareResult`, whose `groups` this is.
    names : sequence of str
        The sources in their order.
    groups : mapping
        From the group's name to its sources.
    measures : sequence of str
        Those that `table` holds.
    """
    sizes = _sizes(updates, names)
    placed = {name: _places(names, group) for name, group in groups.items()}
    found = [
        row
        for side in dict.fromkeys(table.side)
        for measure in measures
        for row in _rows(_Values(table[table.side == side], names, measure, sizes), placed)
    ]
    made = pd.DataFrame(found, columns=list(_COLUMNS)).astype(_COLUMNS)
    if len(made):
        tested = made.groupby(["measure", "side"], sort=False).p_shuffled
        made["p_adjusted"] = tested.transform(adjusted_p_values)
    return made


def shuffle_notes(
    updates: pd.DataFrame, names: Sequence[str], groups: Groups, measures: Sequence[str]
) -> list[str]:
    """Return why groups were not tested by shuffling, or in some of their modules alone."""
    sizes, notes = _sizes(updates, names), []
    for one, other in combinations(groups, 2):
        mine = sizes.iloc[_places(names, [*groups[one], *groups[other]])]
        shared = _shared(mine)
        any_module = int(mine.notna().any().sum())
        if _unequal(shared) and not all(measure in _ANY_RANK for measure in measures):
            notes.append(
                f"groups {one} and {other} have other numbers of directions: shuffling their "
                "sources would test that alone, so p_shuffled is undefined"
            )
        elif shared.shape[1] < any_module:
            tested = f"is of the {shared.shape[1]} of {any_module} that all their sources update"
            notes.append(
                f"groups {one} and {other} do not update the same modules: p_shuffled "
                + (tested if shared.shape[1] else "is undefined, for none is common to all")
            )
    return notes


def _sizes(updates: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return the numbers of directions, sources by modules; NaN where there are none."""
    found = updates.pivot(index="name", columns="module", values="directions")
    sizes = found.reindex(list(names)).astype("float64")
    return sizes.where(sizes > 0)


def _shared(sizes: pd.DataFrame) -> pd.DataFrame:
    """Return the modules that every source updates."""
    return sizes.dropna(axis="columns")


def _unequal(sizes: pd.DataFrame) -> bool:
    return bool((sizes.nunique() > 1).any())


def _places(names: Sequence[str], group: Sequence[str]) -> list[int]:
    return [list(names).index(member) for member in group]


class _Values:
    """One measure on one side: sources by sources by modules, NaN where there is none."""

    def __init__(
        self, rows: pd.DataFrame, names: Sequence[str], measure: str, sizes: pd.DataFrame
    ) -> None:
        self.measure, self.sizes = measure, sizes
        self.modules = pd.Index(rows.module.unique())
        self.side = str(rows.side.iloc[0])
        self.cube = _cube(rows, names, _WAYS.get(measure, (measure, measure)))
        chance = _CHANCE.get(measure)
        self.chance = None if chance is None else _mean(_cube(rows, names, chance))
        self.square = _mean(self.cube)

    def by_module(self, a: list[int], b: list[int]) -> _Array:
        """Return each module's mean over the pairs."""
        each = np.moveaxis(self.cube, 2, 0)
        return np.array([group_mean(square, a, b) for square in each])

    def shuffled(self, a: list[int], b: list[int]) -> dict[str, Any]:
        """Return the seed-shuffle test, where the sources have equally many directions.

        It is of the modules that all of them update: which modules those are is no similarity.
        """
        shared = _shared(self.sizes.iloc[[*a, *b]])
        if shared.empty or (self.measure not in _ANY_RANK and _unequal(shared)):
            return {}
        square = _mean(self.cube[:, :, self.modules.isin(shared.columns)])
        sign = -1.0 if self.measure in DISTANCES else 1.0
        p, arrangements = shuffle_p_value(square, a, b, sign=sign)
        return {"p_shuffled": p, "arrangements": arrangements}


def _cube(rows: pd.DataFrame, names: Sequence[str], ways: tuple[str, str]) -> _Array:
    modules, known = pd.factorize(rows.module)
    places = {name: n for n, name in enumerate(names)}
    a, b = (rows[column].map(places).to_numpy(dtype=np.int64) for column in ("a", "b"))
    cube = np.full((len(names), len(names), len(known)), np.nan)
    for way, (first, second) in zip(ways, ((a, b), (b, a)), strict=True):
        cube[first, second, modules] = rows[way].to_numpy(dtype=np.float64, na_value=np.nan)
    return cube


def _mean(cube: _Array) -> _Array:
    """Return the mean over modules; NaN where none is defined."""
    there = ~np.isnan(cube)
    count = there.sum(axis=2)
    total = np.where(there, cube, 0.0).sum(axis=2)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _rows(values: _Values, groups: Mapping[str, list[int]]) -> Iterator[dict[str, Any]]:
    for one, other in combinations_with_replacement(groups, 2):
        a, b = groups[one], groups[other]
        row = _row(values, a, b) | {"a": one, "b": other}
        yield row if one == other else row | values.shuffled(a, b)
        if one != other and values.measure in _WAYS:
            yield _row(values, b, a) | {"a": other, "b": one}


def _row(values: _Values, a: list[int], b: list[int]) -> dict[str, Any]:
    pairs, modules = pair_values(values.square, a, b), values.by_module(a, b)
    seeds_low, seeds_high = seed_interval(values.square, a, b)
    modules_low, modules_high = mean_interval(modules)
    return {
        "measure": values.measure,
        "side": values.side,
        "pairs": len(pairs),
        "modules": int((~np.isnan(modules)).sum()),
        "mean": group_mean(values.square, a, b),
        "sd": float(pairs.std(ddof=1)) if len(pairs) > 1 else math.nan,
        "chance": math.nan if values.chance is None else group_mean(values.chance, a, b),
        "seeds_low": seeds_low,
        "seeds_high": seeds_high,
        "modules_low": modules_low,
        "modules_high": modules_high,
    }
