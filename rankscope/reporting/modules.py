"""The drill-down: all that is known of each module, by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd

from rankscope.io.names import layer_of, natural_key
from rankscope.reporting.definitions import definition
from rankscope.reporting.document import Cell, Chart, Grid, Group, Module
from rankscope.reporting.drawing import chart, png
from rankscope.reporting.finding import Finding, Names, of_command
from rankscope.reporting.numbers import rounded, short_name
from rankscope.reporting.tabular import SIDES, cell

__all__ = ["Directory", "directory", "groups_of"]

_MOST_CELLS = 400_000  # of all φ grids together; larger ones are drawn every second cell
_RANK_FACTS = (
    "ceiling", "effective_rank", "stable_rank", "participation_rank", "energy_entropy_rank",
    "nuclear_rank", "energy_rank_90", "energy_rank_95", "energy_rank_99", "top1_energy",
    "numerical_rank", "rank_above_noise", "noise_share", "noise_gain", "unchanged_fraction",
    "bulk_edge_rank", "hard_threshold_rank", "frobenius", "spectral", "relative_norm",
    "base_cosine", "relative_rank_1", "rank_above_base", "stored_dtype", "state",
)  # fmt: skip
_OTHER_FACTS = {
    "amplification": ("excess", "z", "amplification", "amplification_random"),
    "intruders": ("intruders", "below_chance", "intruder_energy_share"),
    "resize": ("rank_before", "rank_after", "energy_kept", "relative_error"),
    "extract": ("rank_after", "energy_kept", "relative_error"),
}


@dataclass(frozen=True)
class Directory:
    """Which modules there are, and where in the page each is described.

    Attributes
    ----------
    names : mapping
        From every module to what each source calls it.
    sources : tuple of str
        In their order.
    """

    names: Names
    sources: tuple[str, ...]

    def anchors(self, source: str | None = None) -> dict[str, str]:
        """Return where every module is described, by what `source` calls it."""
        pairs = ((f"m{n}", module) for n, module in enumerate(self.names, 1))
        if source is None:
            return {module: anchor for anchor, module in pairs}
        return {
            self.names[module][source]: anchor
            for anchor, module in pairs
            if source in self.names[module]
        }


def directory(findings: Sequence[Finding], names: Names | None = None) -> Directory:
    """Return the modules of all findings; those that `names` does not know bear their own."""
    known: dict[str, dict[str, str]] = {name: dict(own) for name, own in (names or {}).items()}
    taken = {(source, own) for owners in known.values() for source, own in owners.items()}
    for one in findings:
        if "module" not in one.result.table:
            continue
        for module in dict.fromkeys(one.result.table.module):
            for source in one.sources if len(one.sources) == 1 else one.sources[:1]:
                if (source, module) not in taken and not (len(one.sources) > 1 and module in known):
                    taken.add((source, module))
                    known.setdefault(module, {})[source] = module
    ordered = {name: known[name] for name in sorted(known, key=natural_key)}
    return Directory(ordered, tuple(dict.fromkeys(s for one in findings for s in one.sources)))


def groups_of(findings: Sequence[Finding], where: Directory) -> Iterator[Group]:
    """Yield the modules of every layer, those outside of all layers last."""
    rows = [(one, _rows(one)) for one in findings if one.command != "info"]
    step = _step(findings)
    described = [
        _Described(name, own, f"m{n}", rows, where.sources, step).module()
        for n, (name, own) in enumerate(where.names.items(), 1)
    ]
    layers = sorted(described, key=lambda module: _layer(module.name))
    for number, members in groupby(layers, key=lambda module: _layer(module.name)):
        title = f"Layer {int(number)}" if math.isfinite(number) else "Outside the layers"
        yield Group(title, list(members))


def _layer(name: str) -> float:
    number = layer_of(name)
    return math.inf if number is None else float(number)


def _rows(one: Finding) -> dict[str, pd.DataFrame]:
    table = one.result.table
    if "module" not in table:
        return {}
    return {str(name): rows for name, rows in table.groupby("module", sort=False)}


def _step(findings: Sequence[Finding]) -> int:
    """Return of how many cells of the φ grids one is drawn, along each side."""
    tables = [one.result.table for one in of_command(findings, "similarity")]
    cells = sum(phi.size for table in tables for phi in table.phi)
    return max(math.ceil(math.sqrt(cells / _MOST_CELLS)), 1)


@dataclass(frozen=True)
class _Described:
    """One module while it is described."""

    name: str
    own: Mapping[str, str]
    anchor: str
    rows: Sequence[tuple[Finding, Mapping[str, pd.DataFrame]]]
    sources: Sequence[str]
    step: int

    def module(self) -> Module:
        grids = list(self._grids())
        facts = [fact for fact in self._facts() if any(c.text != "–" for c in fact[2])]
        words = list(self._words())
        return Module(self.anchor, self.name, self._brief(), facts, self._chart(), grids, words)

    def _of(self, command: str) -> Iterator[tuple[Finding, pd.DataFrame]]:
        """Yield this module's rows in every finding of a command."""
        for one, rows in self.rows:
            if one.command != command:
                continue
            alone = len(one.sources) == 1
            name = self.own.get(one.sources[0]) if alone else self.name
            if name is not None and name in rows:
                yield one, rows[name]

    def _facts(self) -> Iterator[tuple[str, str, list[Cell]]]:
        ranks = {one.source: rows.iloc[0] for one, rows in self._of("rank")}
        for column in _RANK_FACTS if ranks else ():
            yield self._fact("rank", column, column, ranks, "")
        for command, columns in _OTHER_FACTS.items():
            found = {one.source: rows for one, rows in self._of(command)}
            labels = {label for rows in found.values() for label in _labelled(rows)}
            for label in sorted(labels):
                rows = {s: part for s, r in found.items() for k, part in _labelled(r).items() if k == label}
                for column in columns:
                    yield self._fact(command, column, f"{column}", rows, label)

    def _fact(
        self, command: str, column: str, key: str, rows: Mapping[str, Any], label: str
    ) -> tuple[str, str, list[Cell]]:
        found = definition(command, column)
        assert found is not None  # every fact that is listed is defined
        form = "norm" if found.form == "text" else found.form
        cells = [
            cell(rows[source][key], form) if source in rows else Cell("–")
            for source in self.sources
        ]
        return f"{found.label}{label}", "", cells

    def _chart(self) -> Chart | None:
        numbers = {source: n for n, source in enumerate(self.sources)}
        spectra = {
            numbers[one.source]: rows.iloc[0].singular_values
            for one, rows in self._of("spectrum")
        }
        return chart(spectra, short_name(self.name, 60)) if spectra else None

    def _grids(self) -> Iterator[Grid]:
        for _, rows in self._of("similarity"):
            for row in rows.itertuples():
                if row.phi.size:
                    yield _grid(row, self.step)

    def _words(self) -> Iterator[str]:
        for _, rows in self._of("similarity"):
            for row in rows.itertuples():
                yield f"{SIDES[row.side].capitalize()} side: {row.verdict}."
        for one, _ in self._of("compare"):
            shared = getattr(one.result, "shared", pd.DataFrame())
            for row in shared[shared.module == self.name].itertuples():
                yield _common(row)

    def _brief(self) -> str:
        parts = []
        for one, rows in self._of("rank"):
            parts.append(f"{rounded(rows.iloc[0].effective_rank, '1')} of {rows.iloc[0].ceiling}")
        briefs = [f"effective rank {' / '.join(parts)}"] if 0 < len(parts) <= 2 else []
        for _, rows in self._of("similarity"):
            levels = (f"{SIDES[row.side]} {rounded(row.phi_full, '2')}" for row in rows.itertuples())
            briefs.append(f"φ {', '.join(levels)}")
        return " · ".join(briefs)


def _labelled(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the rows of one module by what tells them apart: side, k, ε."""
    keys = [name for name in ("side", "k", "epsilon") if name in rows]
    words = {"side": lambda v: f"{SIDES.get(v, v)} side", "k": lambda v: f"k = {v}",
             "epsilon": lambda v: f"ε = {v:g}"}  # fmt: skip
    several = [name for name in keys if name != "epsilon" or rows[name].nunique() > 1]
    return {
        "".join(f", {words[name](row[name])}" for name in several): row
        for row in rows.to_dict("records")
    }


def _grid(row: Any, step: int) -> Grid:
    rows, columns = row.phi.shape
    words = (
        f"φ(1, 1) = {rounded(row.phi_first, '2')}, "
        f"φ({rows}, {columns}) = {rounded(row.phi_full, '2')}, "
        f"by chance {rounded(row.chance_full, '2')}"
    )
    title = f"{SIDES[row.side].capitalize()} side"
    return Grid(title, png(row.phi, step), rows, columns, words)


def _common(row: Any) -> str:
    number = rounded(row.directions, "count")
    side = SIDES[row.side].capitalize()
    if number == "–":
        return f"{side} side: subspaces of these sizes always meet."
    return (
        f"{side} side: {number} directions common to all {row.sources} sources beyond chance, "
        f"the first in common to {rounded(row.common[0], 'share')}."
    )
