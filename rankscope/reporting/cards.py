"""Verdicts: what each result says in one sentence, and what its null would have said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from rankscope.analysis.intruders import IntrudersResult
from rankscope.analysis.verdicts import MOSTLY, summaries
from rankscope.reporting.document import Card
from rankscope.reporting.nulls import with_random
from rankscope.reporting.numbers import rounded, short_name
from rankscope.reporting.tabular import SIDES
from rankscope.results import (
    AmplificationResult,
    CompareResult,
    RankResult,
    Result,
    SimilarityResult,
)

__all__ = ["cards_of"]

_CLEARLY_LOWER = 0.9  # of what a random update has
_CLEARLY_ABOVE = 3.0  # standard deviations


def cards_of(source: str, result: Result) -> Iterator[Card]:
    """Yield the verdicts of one result; `source` names what it is of."""
    if isinstance(result, RankResult):
        yield _rank(source, result.table)
    elif isinstance(result, SimilarityResult):
        yield from _similarity(result)
    elif isinstance(result, CompareResult):
        yield from _compare(result)
    elif isinstance(result, AmplificationResult):
        yield from _amplification(source, result.table)
    elif isinstance(result, IntrudersResult):
        yield from _intruders(source, result.table)


def _rank(source: str, table: pd.DataFrame) -> Card:
    live = table[table.state != "zero"]
    subject = f"Rank of {short_name(source, 40)}"
    if live.empty:
        words = "Every update is zero: this source was not trained."
        return Card(subject, "0", _of(table), words, tone="caution")
    if live.rank_above_noise.notna().any():
        return _above_storage(subject, live[live.rank_above_noise.notna()])
    return _effective(subject, with_random(live))


def _effective(subject: str, live: pd.DataFrame) -> Card:
    low, high = (
        rounded(end, "1") for end in (live.effective_rank.min(), live.effective_rank.max())
    )
    lower = int((live.effective_rank < _CLEARLY_LOWER * live.random_effective).sum())
    directions = _count(live.energy_rank_90.median(), "direction")
    middle = rounded(live.effective_rank.median(), "1")
    verb = "holds" if directions == "1 direction" else "hold"
    words = f"The effective rank is {middle} in the median module ({low} to {high} over all), "
    words += f"and {directions} {verb} 90 % of its energy. "
    words += f"{_some(lower, len(live), 'is', 'are')} clearly lower than a random update of the "
    words += "same form."
    null = f"Random updates: {rounded(live.random_effective.median(), '1')}, with 90 % of the "
    null += f"energy in {_count(live.random_energy_90.median(), 'direction')}."
    tone = "beyond" if 2 * lower > len(live) else "within"
    return Card(subject, middle, _of(live), words, null, tone)


def _above_storage(subject: str, live: pd.DataFrame) -> Card:
    above = live.rank_above_noise.astype(float)
    none = int((above == 0).sum())
    dtypes = " and ".join(dict.fromkeys(live.stored_dtype))
    words = f"In the median module {_count(above.median(), 'direction')} rise above the rounding "
    words += f"of the stored {dtypes} numbers, which holds "
    words += f"{rounded(live.noise_share.median(), 'share')} of the energy. "
    words += f"{_some(none, len(live), 'lies', 'lie')} below it altogether."
    null = "The null is that rounding itself: no direction above it."
    counted = live.numerical_rank.dropna()
    if len(counted):
        null += f" The numerical rank counts it, and says {rounded(counted.median(), 'count')}."
    tone = "beyond" if 2 * none < len(live) else "within"
    return Card(subject, rounded(above.median(), "count"), _of(live), words, null, tone)


def _of(table: pd.DataFrame) -> str:
    low, high = int(table.ceiling.min()), int(table.ceiling.max())
    return f"of {low:,}" if low == high else f"of {low:,} to {high:,}"


def _similarity(result: SimilarityResult) -> Iterator[Card]:
    table = result.table
    for summary in summaries(table.assign(kind="all")):
        rows = table[(table.side == summary["side"]) & table.phi_full.notna()]
        words = _sentence(summary["verdict"])
        for letter, name in zip("AB", result.names, strict=True):
            words = words.replace(f" {letter}'s ", f" {short_name(name, 30)}'s ")
        null = f"Random subspaces of the same sizes: {rounded(rows.chance_full.median(), '2')}."
        unreferenced = rows.floor.isna().all() and summary["above_chance"]
        null += " Unrelated tasks on one base are above that too." if unreferenced else ""
        value = rounded(rows.phi_full.median(), "2")
        tone = "beyond" if 2 * summary["above_chance"] > len(rows) else "within"
        tone = "caution" if _void(rows) else tone
        yield Card(
            f"Shared directions, {SIDES[summary['side']]} side", value, "φ", words, null, tone
        )


def _void(rows: pd.DataFrame) -> bool:
    """Whether most of what a side shows is how the runs began."""
    same = rows.shared_init_suspected.fillna(False).astype(bool)
    start = rows[["init_residue_a", "init_residue_b"]].max(axis=1) >= MOSTLY
    return bool((same | start).mean() > 0.5)


def _compare(result: CompareResult) -> Iterator[Card]:
    if "cosine" in result.table:
        yield from _whole(result)
    if "phi" not in result.table:
        return
    for side, rows in result.table.groupby("side", sort=False):
        pairs = rows.groupby(["a", "b"], sort=False)[["phi", "chance"]].mean().dropna()
        if len(pairs):
            shared = result.shared[result.shared.side == side].directions.dropna()
            yield _pairs(
                f"{len(result.names)} sources in pairs, {SIDES[str(side)]} side", pairs, shared
            )


def _whole(result: CompareResult) -> Iterator[Card]:
    pairs = result.table.groupby(["a", "b"], sort=False).cosine.mean().dropna()
    if pairs.empty:
        return
    words = f"Most alike as whole updates are {_pair(pairs.idxmax())}, with a cosine of "
    words += f"{rounded(pairs.max(), '2')}"
    if len(pairs) > 1:
        words += f"; least {_pair(pairs.idxmin())}, with {rounded(pairs.min(), '2')}"
    subject = f"{len(result.names)} sources in pairs, whole updates"
    null = "Updates that have nothing in common: about 0."
    value = rounded(pairs.mean(), "2")
    yield Card(subject, value, "mean cosine", f"{words}.", null, _tone(pairs.mean() > 0.1))


def _pairs(subject: str, pairs: pd.DataFrame, shared: pd.Series[Any]) -> Card:
    ends: list[Any] = [pairs.iloc[int(pairs.phi.argmin())], pairs.iloc[int(pairs.phi.argmax())]]
    low, high = (
        f"{rounded(end.phi, '2')} ({_pair(end.name)}; by chance {rounded(end.chance, '2')})"
        for end in ends
    )
    words = f"φ lies between {low} and {high}. " if len(pairs) > 1 else f"φ is {high}. "
    if len(shared):
        common = rounded(float(shared.astype(float).median()), "count")
        words += f"In the median module {common} directions are common to more sources than "
        words += "chance allows."
    null = f"Random subspaces of the same sizes: {_range(pairs.chance)}. Of unequal ranks φ is "
    null += "containment: it grows with the larger."
    tone = _tone((pairs.phi > 2 * pairs.chance).mean() > 0.5)
    return Card(subject, rounded(pairs.phi.mean(), "2"), "mean φ", words, null, tone)


def _tone(beyond: bool) -> str:
    return "beyond" if beyond else "within"


def _pair(names: Any) -> str:
    return " and ".join(short_name(str(name), 30) for name in names)


def _amplification(source: str, table: pd.DataFrame) -> Iterator[Card]:
    for k, rows in table[table.excess.notna()].groupby("k", sort=False):
        above = int((rows.z > _CLEARLY_ABOVE).sum())
        words = f"W is {rounded(rows.excess.median(), '2')} times as large along the first "
        words += f"{_count(float(str(k)), 'direction')} of ΔW as along random ones "
        words += f"({_range(rows.excess)} over all modules). "
        words += f"{_some(above, len(rows), 'lies', 'lie')} more than {_CLEARLY_ABOVE:g} standard "
        words += "deviations above chance."
        null = "By chance: 1. The paper's amplification factor is "
        null += f"{rounded(rows.amplification.median(), '1')}, where random directions give "
        null += f"{rounded(rows.amplification_random.median(), '1')}."
        tone = "beyond" if 2 * above > len(rows) else "within"
        subject = f"W along the directions of {short_name(source, 40)}"
        yield Card(subject, rounded(rows.excess.median(), "2"), "× chance", words, null, tone)


def _intruders(source: str, table: pd.DataFrame) -> Iterator[Card]:
    for (k, epsilon), rows in table.groupby(["k", "epsilon"], sort=False):
        hit = rows[rows.intruders > 0].module.nunique()
        of = rows.module.nunique()
        words = f"{_some(hit, of, 'has', 'have')} leading directions of W + ΔW that resemble none "
        words += f"of W's (largest cosine below {epsilon:g}). "
        if hit:
            words += f"{int(rows.below_chance.sum())} of {int(rows.intruders.sum())} such "
            words += "directions are no closer to W than random ones."
        null = f"99 % of random directions stay below {_range(rows.chance_99)}, "
        null += f"1 % below {_range(rows.epsilon_chance)}."
        tone = "beyond" if rows.below_chance.sum() else "within"
        subject = f"New directions of {short_name(source, 40)}"
        value = rounded(rows.intruders.median(), "count")
        yield Card(subject, value, f"of the first {k}", words.strip(), null, tone)


def _range(values: pd.Series[Any]) -> str:
    ends = dict.fromkeys(rounded(float(end), "2") for end in (values.min(), values.max()))
    return " to ".join(ends)


def _count(number: float, noun: str) -> str:
    return f"{rounded(float(number), 'count')} {noun}{'' if number == 1 else 's'}"


def _some(number: int, of: int, one: str, many: str) -> str:
    """Return how many of all modules, as the subject and verb of a sentence."""
    if not number:
        return f"No module {one}"
    if number == of:
        return f"All {of} modules {many}" if of > 1 else f"The one module {one}"
    return f"{number} of {of} modules {one if number == 1 else many}"


def _sentence(clauses: str) -> str:
    """Return clauses between semicolons as one sentence."""
    return f"{clauses[:1].upper()}{clauses[1:]}."
