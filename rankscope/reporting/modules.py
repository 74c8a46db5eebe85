"""The drill-down: all that is known of each module, by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd

from rankscope.io.names import layer_of, natural_key
from rankscope.reporting.definitions import definition
from rankscope.reporting.document import Cell, Chart, Grid, Group, Module
from rankscope.reporting.drawing import chart, png
from rankscope.reporting.finding import Finding, Names, of_command
from rankscope.reporting.nulls import with_random
from rankscope.reporting.numbers import rounded, short_name
from rankscope.reporting.tabular import SIDES, cell

__all__ = ["Directory", "directory", "groups_of"]

_MOST_CELLS = 400_000  # of all φ grids together; larger ones are drawn every second cell
_FACTS = {
    "rank": (
        "ceiling", "effective_rank", "random_effective", "stable_rank", "participation_rank",
        "energy_entropy_rank", "nuclear_rank", "energy_rank_90", "energy_rank_95",
        "energy_rank_99", "top1_energy", "numerical_rank", "rank_above_noise", "noise_share",
        "noise_gain", "unchanged_fraction", "bulk_edge_rank", "hard_threshold_rank", "frobenius",
        "spectral", "relative_norm", "base_cosine", "relative_rank_1", "rank_above_base",
        "stored_dtype", "state",
    ),
    "amplification": ("excess", "z", "amplification", "amplification_random"),
    "intruders": ("intruders", "below_chance", "intruder_energy_share"),
    "resize": ("rank_before", "rank_after", "energy_kept", "relative_error"),
    "extract": ("rank_after", "energy_kept", "relative_error"),
}  # fmt: skip


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
        owner, alone = one.sources[0], len(one.sources) == 1
        for module in dict.fromkeys(one.result.table.get("module", ())):
            if (owner, module) not in taken and (alone or module not in known):
                taken.add((owner, module))
                known.setdefault(module, {})[owner] = module
    ordered = {name: known[name] for name in sorted(known, key=natural_key)}
    return Directory(ordered, tuple(dict.fromkeys(s for one in findings for s in one.sources)))


def groups_of(findings: Sequence[Finding], where: Directory) -> Iterator[Group]:
    """Yield the modules of every layer, those outside of all layers last."""
    rows = [(one, _rows(one)) for one in findings if one.command != "info"]
    step, shared = _step(findings), _shared(findings)
    described = [
        _Described(name, own, f"m{n}", rows, where.sources, step, shared).module()
        for n, (name, own) in enumerate(where.names.items(), 1)
    ]
    layers = sorted(described, key=lambda module: _layer(module.name))
    for number, members in groupby(layers, key=lambda module: _layer(module.name)):
        title = f"Layer {int(number)}" if math.isfinite(number) else "Outside the layers"
        yield Group(title, list(members))


def _layer(name: str) -> float:
    number = layer_of(name)
    return math.inf if number is None else float(number)


def _rows(one: Finding) -> dict[str, list[Any]]:
    """Return the rows of every module, as tuples with names: frames of one row are slow."""
    table = one.result.table
    if "module" not in table:
        return {}
    table = with_random(table) if one.command == "rank" else table
    found: dict[str, list[Any]] = {}
    listed: Iterable[Any] = table.itertuples(index=False)
    for row in listed:
        found.setdefault(row.module, []).append(row)
    return found


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
    rows: Sequence[tuple[Finding, Mapping[str, list[Any]]]]
    sources: Sequence[str]
    step: int
    shared: Mapping[str, list[Any]]

    def module(self) -> Module:
        grids = [_grid(row, self.step) for row in self._similarities() if row.phi.size]
        facts = [fact for fact in self._facts() if any(c.text != "–" for c in fact[1])]
        words = list(self._words())
        return Module(self.anchor, self.name, self._brief(), facts, self._chart(), grids, words)

    def _of(self, command: str) -> Iterator[tuple[Finding, list[Any]]]:
        """Yield this module's rows in every finding of a command."""
        for one, rows in self.rows:
            alone = len(one.sources) == 1
            name = self.own.get(one.sources[0]) if alone else self.name
            if one.command == command and name is not None and name in rows:
                yield one, rows[name]

    def _similarities(self) -> Iterator[Any]:
        return (row for _, rows in self._of("similarity") for row in rows)

    def _facts(self) -> Iterator[tuple[str, list[Cell]]]:
        for command, columns in _FACTS.items():
            found = {one.source: _labelled(rows) for one, rows in self._of(command)}
            labels = dict.fromkeys(label for rows in found.values() for label in rows)
            for label in labels:
                mine = {source: rows[label] for source, rows in found.items() if label in rows}
                yield from (self._fact(command, column, mine, label) for column in columns)

    def _fact(
        self, command: str, column: str, rows: Mapping[str, Any], label: str
    ) -> tuple[str, list[Cell]]:
        found = definition(command, column)
        assert found is not None  # every fact that is listed is defined
        form = "norm" if found.form == "text" else found.form
        values = (getattr(rows.get(source), column, None) for source in self.sources)
        return f"{found.label}{label}", [cell(value, form) for value in values]

    def _chart(self) -> Chart | None:
        spectra = {
            self.sources.index(one.source): rows[0].singular_values
            for one, rows in self._of("spectrum")
        }
        return chart(spectra, short_name(self.name, 60)) if spectra else None

    def _words(self) -> Iterator[str]:
        for row in self._similarities():
            yield f"{SIDES[row.side].capitalize()} side: {row.verdict}."
        yield from map(_common, self.shared.get(self.name, ()))

    def _brief(self) -> str:
        ranks = [rows[0] for _, rows in self._of("rank")]
        levels = [f"{rounded(row.effective_rank, '1')} of {row.ceiling}" for row in ranks]
        briefs = [f"effective rank {' / '.join(levels)}"] if 0 < len(levels) <= 2 else []
        sides = [f"{SIDES[r.side]} {rounded(r.phi_full, '2')}" for r in self._similarities()]
        return " · ".join([*briefs, *([f"φ {', '.join(sides)}"] if sides else [])])


def _shared(findings: Sequence[Finding]) -> dict[str, list[Any]]:
    """Return what all sources share in every module."""
    found: dict[str, list[Any]] = {}
    for one in of_command(findings, "compare"):
        listed: Iterable[Any] = getattr(one.result, "shared", pd.DataFrame()).itertuples()
        for row in listed:
            found.setdefault(row.module, []).append(row)
    return found


def _labelled(rows: Sequence[Any]) -> dict[str, Any]:
    """Return the rows of one module by what tells them apart: side, k, ε."""
    several = len({getattr(row, "epsilon", None) for row in rows}) > 1
    labelled = {}
    for row in rows:
        side, k = getattr(row, "side", None), getattr(row, "k", None)
        words = [f"{SIDES[side]} side"] if side else []
        words += [f"k = {k}"] if k is not None else []
        words += [f"ε = {row.epsilon:g}"] if several else []
        labelled["".join(f", {word}" for word in words)] = row
    return labelled


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
        f"{side} side: {number} directions are common to more of the {row.sources} sources than "
        f"chance allows; the first lies in all of them to {rounded(row.common[0], 'share')}."
    )
