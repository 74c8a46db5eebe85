"""What a report says of each command's results: lead, tables, figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from rankscope.reporting.document import Chart, Figure, Map, Part, Section, Table
from rankscope.reporting.drawing import band
from rankscope.reporting.finding import Finding, of_command
from rankscope.reporting.modules import Directory
from rankscope.reporting.nulls import with_random
from rankscope.reporting.numbers import rounded, short_name
from rankscope.reporting.pictures import figure_of, map_of
from rankscope.reporting.tabular import MANY, SIDES, by_kind, frame_table

__all__ = ["sections_of"]

_LEADS = {
    "similarity": (
        "Which directions are shared",
        "φ is the mean squared cosine between the directions of two updates: 1 where the smaller "
        "span lies in the larger, 0 where they are orthogonal. Random subspaces have max(i, j)/d "
        "already, so every φ stands beside that level.",
    ),
    "compare": (
        "Every pair of sources",
        "Means over the modules that both update. φ stands beside what random subspaces of the "
        "same sizes have.",
    ),
    "rank": (
        "How low the rank is",
        "Rank has several definitions, and they answer different questions; none of them is "
        "larger than the ceiling that the form of the update allows. Beside them stands what an "
        "update of random entries in the same form has.",
    ),
    "amplification": (
        "What of W the update amplifies",
        "How much of the base weight lies along the update's first directions. The paper's "
        "amplification factor is large for few directions by chance alone: the excess over "
        "chance is the number to read.",
    ),
    "intruders": (
        "New directions",
        "Leading directions of W + ΔW that no direction of W resembles. In large matrices random "
        "directions resemble none either, so the cosines of random ones stand beside.",
    ),
}
_RANK_SUMMARY = (
    "ceiling", "effective_rank", "random_effective", "energy_rank_90", "random_energy_90",
    "stable_rank", "rank_above_noise", "noise_share", "relative_norm",
)  # fmt: skip
_RANK_COLUMNS = (
    "module", "kind", "shape", "ceiling", "frobenius", "relative_norm", "effective_rank",
    "stable_rank", "participation_rank", "energy_rank_90", "numerical_rank", "rank_above_noise",
    "noise_share", "state",
)  # fmt: skip
_SIMILARITY_SUMMARY = (
    "phi_first", "phi_full", "chance_full", "z_full", "shared_directions", "floor", "ceiling",
)  # fmt: skip
_SIMILARITY_COLUMNS = (
    "module", "kind", "side", "directions", "phi_first", "phi_full", "chance_full", "z_full",
    "p_adjusted", "shared_directions", "floor", "ceiling", "placed", "shuffled_95",
)  # fmt: skip
_PAIR_COLUMNS = (
    "side", "a", "b", "phi", "chance", "cosine", "containment_a", "chance_a", "containment_b",
    "chance_b",
)  # fmt: skip
_STEPS = (0.1, 0.2, 0.5, 1.0)  # where the scale of a map of φ may end
_PLAIN = 3  # clauses of a verdict that no reference and no random start enters
_HIDDEN = {
    "amplification": ("layer", "expert"),
    "intruders": ("layer", "expert"),
}


def sections_of(findings: Sequence[Finding], where: Directory) -> Iterator[Section]:
    """Yield a section per command, comparisons first."""
    for command in ("similarity", "compare", "rank", "amplification", "intruders"):
        mine = list(of_command(findings, command))
        if mine or (command == "rank" and any(of_command(findings, "spectrum"))):
            title, lead = _LEADS[command]
            yield Section(command, title, lead, list(_PARTS[command](findings, where)))
    for one in findings:
        if one.command not in (*_LEADS, "info", "spectrum") and len(one.result.table):
            tables = [_shown(one, where)]
            yield Section(one.command, one.command.capitalize(), "", [Part("", tables)])


def _similarity(findings: Sequence[Finding], where: Directory) -> Iterator[Part]:
    for one in of_command(findings, "similarity"):
        table = one.result.table
        directions = [f"{a} and {b}" for a, b in zip(table.rank_a, table.rank_b, strict=True)]
        table = table.assign(directions=directions)
        title = "By side and kind: median and range"
        sides = table.sort_values("side", ascending=False, kind="stable")  # input first
        summary = by_kind(sides, "similarity", _SIMILARITY_SUMMARY, title, "side")
        tables = [summary, *_in_words(getattr(one.result, "verdicts", ()))]
        yield Part("", tables, _figures(one), _phi_maps(table, where))
        yield Part("", [_full(table, _SIMILARITY_COLUMNS, "similarity", where, None)])


def _in_words(verdicts: Sequence[dict[str, Any]]) -> list[Table]:
    """Return the verdicts of each kind where they say more than the numbers beside them."""
    said = pd.DataFrame([one for one in verdicts if one["verdict"].count(";") != _PLAIN - 1])
    if said.empty:
        return []
    shown = said[["side", "kind", "verdict"]]
    return [frame_table(shown, "similarity", "In words, by kind", folded=len(shown) > 4)]


def _phi_maps(table: pd.DataFrame, where: Directory) -> list[Map]:
    if table.module.nunique() <= MANY:
        return []
    most = next(step for step in _STEPS if step >= table.phi_full.max() or step == 1.0)
    maps = []
    for side, rows in table.groupby("side", sort=False):
        ends = dict.fromkeys(rounded(end, "2") for end in rows.chance_full.agg(["min", "max"]))
        title = f"φ of all directions, {SIDES[str(side)]} side; by chance {' to '.join(ends)}"
        maps.append(map_of(rows, "phi_full", title, where.anchors(), most=most))
    return [one for one in maps if one is not None]


def _compare(findings: Sequence[Finding], where: Directory) -> Iterator[Part]:
    for one in of_command(findings, "compare"):
        table = one.result.table
        means = table.groupby(["side", "a", "b"], sort=False).mean(numeric_only=True).reset_index()
        shown = means[[name for name in _PAIR_COLUMNS if name in means]]
        pairs = frame_table(shown, "compare", "Every pair: means over the modules")
        shared = getattr(one.result, "shared", pd.DataFrame())
        tables = [pairs]
        if len(shared):
            columns = ("sources", "directions", "interference")
            title = "What the sources share: median and range over the modules"
            tables.append(by_kind(shared, "compare", columns, title, "side"))
        yield Part("", tables, _figures(one))
        full = table.drop(columns=["layer", "expert", "rank_a", "rank_b"], errors="ignore")
        yield Part("", [_folded(frame_table(full, "compare", "Every module and pair",
                                            anchors=where.anchors()), always=True)])  # fmt: skip


def _rank(findings: Sequence[Finding], where: Directory) -> Iterator[Part]:
    ranks = list(of_command(findings, "rank"))
    if len(ranks) > 1:
        together = pd.concat(
            [with_random(one.result.table).assign(source=one.source) for one in ranks]
        )
        title = "By source and kind: median and range"
        yield Part("", [by_kind(together, "rank", _RANK_SUMMARY, title, "source")])
    spectra = {one.source: one for one in of_command(findings, "spectrum")}
    for one in ranks:
        yield _of_source(one, spectra.pop(one.source, None), where, len(ranks))
    for alone in spectra.values():
        yield Part("", [_shown(alone, where)], _figures(alone))


def _of_source(one: Finding, spectrum: Finding | None, where: Directory, of: int) -> Part:
    table = with_random(one.result.table)
    sizes = table[["rows", "columns"]].itertuples(index=False)
    table = table.assign(shape=[f"{m:,} × {n:,}" for m, n in sizes])
    summary = by_kind(table, "rank", _RANK_SUMMARY, "By kind: median and range")
    many = len(table) > MANY
    charts = list(_bands(spectrum.result.table)) if spectrum and many else []
    anchors = where.anchors(one.source)
    maps = []
    if many:
        title = "Effective rank, as a share of the ceiling"
        found = map_of(table, "effective_rank", title, anchors, most=table.ceiling.astype(float))
        maps = [found] if found is not None else []
    # Figures take seconds each: of several large sources the maps say the same.
    figures = [] if maps and of > 1 else _figures(one)
    figures += _figures(spectrum) if spectrum and not many else []
    full = _full(table, _RANK_COLUMNS, "rank", where, one.source)
    tables = [full] if of > 1 else [summary, full]
    return Part(short_name(one.source) if of > 1 else "", tables, figures, maps, charts, of > 2)


def _bands(table: pd.DataFrame) -> Iterator[Chart]:
    """Yield the spectra of every kind in one chart: a figure of them all would be a thicket."""
    for kind, rows in table.groupby("kind", sort=False):
        drawn = band(list(rows.singular_values), f"{kind}, {len(rows)} modules")
        if drawn is not None:
            yield drawn


def _plain(command: str) -> Any:
    def parts(findings: Sequence[Finding], where: Directory) -> Iterator[Part]:
        mine = list(of_command(findings, command))
        for one in mine:
            title = short_name(one.source) if len(mine) > 1 else ""
            yield Part(title, [_shown(one, where)], _figures(one), folded=len(mine) > 2)

    return parts


def _shown(one: Finding, where: Directory) -> Table:
    """Return what the command prints."""
    table = one.result.shown().drop(columns=list(_HIDDEN.get(one.command, ())), errors="ignore")
    source = one.source if len(one.sources) == 1 else None
    full = frame_table(table, one.command, "Every module", anchors=where.anchors(source))
    return _folded(full)


def _full(
    table: pd.DataFrame, columns: Sequence[str], command: str, where: Directory, source: str | None
) -> Table:
    present = table[[name for name in columns if name in table]]
    return _folded(frame_table(present, command, "Every module", anchors=where.anchors(source)))


def _folded(table: Table, *, always: bool = False) -> Table:
    folded = always or len(table.rows) > MANY
    title = f"{table.caption} ({len(table.rows):,} rows)" if folded else table.caption
    return Table(title, table.columns, table.rows, folded)


def _figures(one: Finding) -> list[Figure]:
    figure = figure_of(one)
    return [] if figure is None else [figure]


_PARTS = {
    "similarity": _similarity,
    "compare": _compare,
    "rank": _rank,
    "amplification": _plain("amplification"),
    "intruders": _plain("intruders"),
}
