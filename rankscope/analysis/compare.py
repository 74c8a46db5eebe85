"""Many adapters against each other: every pair, module by module, from one reading of each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import pandas as pd
from torch import Tensor

from rankscope.analysis.aligned import Aligned, aligned
from rankscope.analysis.costs import cost
from rankscope.analysis.devices import resolve_device
from rankscope.analysis.engine import How, Row, Study, Task, run
from rankscope.analysis.groups import Groups, checked_groups, group_table, shuffle_notes
from rankscope.analysis.overlap import at_least_one
from rankscope.analysis.selection import opened
from rankscope.analysis.series import series_table
from rankscope.analysis.stacks import MEASURES, Stack, joint_interference, pair_rows, whole_cosines
from rankscope.errors import UpdateError
from rankscope.io.sources import Source
from rankscope.io.updateset import UpdateSet
from rankscope.linalg.chance import adjusted_p_values
from rankscope.measures.rank import energy_rank_bracket, stable_rank
from rankscope.results import CompareResult, provenance
from rankscope.spectra import Spectrum, svd
from rankscope.updates import DenseUpdate, Update

__all__ = ["MEASURES", "compare", "compare_study", "finish"]

_FIXED = {
    "module": "str",
    "layer": "Int64",
    "kind": "str",
    "expert": "Int64",
    "side": "str",
    "a": "str",
    "b": "str",
}
# Of one source's update of a module.
_UPDATE = {
    "module": "str",
    "layer": "Int64",
    "kind": "str",
    "expert": "Int64",
    "name": "str",
    "directions": "int64",
    "norm": "float64",
    "spectral": "float64",
    "stable_rank": "float64",
    "energy_rank_90": "Int64",
}
DENSE_LIMIT = 64
DEFAULT = ("phi", "cosine", "containment")


@dataclass(frozen=True)
class _Options:
    k: int | None
    measures: tuple[str, ...]


def compare(
    *sources: Source | UpdateSet | Mapping[str, Any],
    base: Source | None = None,
    k: int | None = None,
    measures: Sequence[str] = DEFAULT,
    groups: Groups | None = None,
    series: bool = False,
    alpha: float | None = None,
    device: str = "cpu",
    **how: Unpack[How],
) -> CompareResult:
    r"""Compare many sources, every pair of them, module by module.

    Parameters
    ----------
    *sources : mapping of str to sources, or sources
        Two or more; one mapping names them: ``{"r8": …, "r64": …}``.
    base : path, state dict or module, optional
        Serves those that are full checkpoints.
    k : int, optional
        The most directions of each that are used; all unless given, 64 of a dense update.
    measures : sequence of str
        Of ``phi`` (with its chance level, z and p), ``cosine`` ⟨ΔW₁, ΔW₂⟩/(‖ΔW₁‖‖ΔW₂‖),
        ``containment`` (the share of one's whole energy in the span of the other, both ways; by
        chance k/d), ``mean_cosine`` (of the principal angles), ``cka``, and the distances
        ``geodesic chordal projection procrustes spectral asimov binet_cauchy fubini_study
        martin``.
    groups : mapping of str to sequences of str, optional
        Names of sources that are replicates of each other, such as the seeds of one run:
        `CompareResult.groups` then holds how alike they are within and between, with
        intervals over sources and over modules and a test by shuffling.
    series : bool
        Whether the sources are a series in the order given, such as the checkpoints of one
        run: `CompareResult.series` then holds how rank, norm and subspace drift.
    alpha : float, optional
        LoRA's alpha, for files that do not say it.
    device : str
        ``cpu``, ``cuda``, ``cuda:n`` or ``auto``.
    **how
        As `How`: jobs, threads, journal and so on.

    Returns
    -------
    CompareResult
        A row per module, side and pair of sources that both update it, under the first
        source's names; notes say how others were matched, and q and k whose rows stand in
        Meta's rotary order in some sources only have no row for the output side.
        `containment_a` is how
        much of a's energy lies in the span of b's directions, beside `chance_a`. The cosine is
        of whole updates, whatever `k`, and stands on both sides. `p` are adjusted over the
        modules of a side (Benjamini-Hochberg), pair by pair.

    Raises
    ------
    SourceError, AdapterError
        If a source cannot be read, or no module is shared.
    UpdateError
        If there are fewer than two sources, a measure is not known, or a group names what is
        no source or one twice.

    Examples
    --------
    >>> import torch
    >>> import rankscope as rs
    >>> one = {"h.0.q.lora_A.weight": torch.eye(9)[:1], "h.0.q.lora_B.weight": torch.ones(9, 1)}
    >>> two = {**one, "h.0.q.lora_A.weight": torch.eye(9)[1:2]}
    >>> rs.compare({"one": one, "two": two, "again": one}).matrix().round(9).values.tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """
    named = _named(sources)
    sets = {name: opened(source, base, alpha) for name, source in named.items()}
    study = compare_study(
        sets, k=k, measures=measures, groups=groups, series=series, device=device
    )
    result = run(study, how)
    assert isinstance(result, CompareResult)
    return result


def compare_study(
    sets: Mapping[str, UpdateSet],
    *,
    k: int | None = None,
    measures: Sequence[str] = DEFAULT,
    groups: Groups | None = None,
    series: bool = False,
    device: str = "cpu",
) -> Study:
    """Return what `compare` does, module by module."""
    _two_or_more(len(sets))
    options, device = _Options(at_least_one("k", k), _known(measures)), resolve_device(device)
    groups = checked_groups(groups or {}, list(sets))
    found = aligned(sets)
    sets = found.sets
    said = {
        "names": list(sets),
        "k": k,
        "measures": list(options.measures),
        "groups": {name: list(group) for name, group in groups.items()},
        "series": series,
        "alpha": [one.alpha for one in sets.values()],
        "split": [one.split for one in sets.values()],
        "modules": list(found.modules),
    }
    notes = [f"{name}: {note}" for name, one in sets.items() for note in one.notes]
    about = {
        "provenance": provenance(
            "compare",
            {name: list(one.inputs) for name, one in sets.items()},
            said,
            device,
        ),
        "notes": [*found.notes, *notes, *_missing_notes(found)],
        "names": list(sets),
        "unmatched": found.unmatched,
        "measures": list(options.measures),
        "groups": said["groups"],
        "series": series,
    }
    tasks = [_task(module, found, options, device) for module in found.modules]
    return Study("compare", tasks, about, finish)


def finish(
    rows: list[Row], failures: list[dict[str, Any]], about: Mapping[str, Any]
) -> CompareResult:
    """Return the result of all rows: of pairs, of what all share, and of each source."""
    names, measures, groups = about["names"], about["measures"], about["groups"]
    table = _pairs([row for row in rows if "a" in row], measures)
    updates = pd.DataFrame([row for row in rows if "name" in row], columns=list(_UPDATE))
    updates = updates.astype(_UPDATE)
    unlike = shuffle_notes(updates, names, groups, measures)
    return CompareResult(
        table,
        about["provenance"],
        (*about["notes"], *unlike),
        tuple(failures),
        names=tuple(names),
        unmatched={name: tuple(alone) for name, alone in about["unmatched"].items()},
        shared=pd.DataFrame([row for row in rows if "sources" in row]),
        updates=updates,
        measures=tuple(measures),
        groups=group_table(table, updates, names, groups, measures),
        series=series_table(table, updates, names, measures)
        if about["series"]
        else pd.DataFrame(),
    )


def _pairs(rows: list[Row], measures: Sequence[str]) -> pd.DataFrame:
    columns = dict(_FIXED) | {
        column: "Int64" if column.startswith("rank_") else "float64"
        for measure in measures
        for column in MEASURES[measure]
    }
    table = pd.DataFrame(rows, columns=list(columns)).astype(columns)
    if "p" in table:
        groups = table.groupby(["side", "a", "b"], sort=False).p
        table["p_adjusted"] = groups.transform(adjusted_p_values)
    return table


def _named(sources: Sequence[Any]) -> dict[str, Any]:
    first = sources[0] if sources else None
    if isinstance(first, Mapping) and not any(isinstance(v, Tensor) for v in first.values()):
        named = dict(first)
    else:
        named = {f"{number}": source for number, source in enumerate(sources, 1)}
    return named


def _known(measures: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in measures if name not in MEASURES]
    if unknown or not measures:
        raise UpdateError(
            "this measure is not known",
            where="measures",
            expected=f"some of {', '.join(MEASURES)}",
            got=", ".join(unknown) or "none",
            fix="choose among these",
        )
    return tuple(dict.fromkeys(measures))


def _two_or_more(count: int) -> None:
    if count < 2:
        raise UpdateError(
            "there is nothing to compare",
            where="compare",
            expected="two sources or more",
            got=str(count),
            fix="name several: NAME=SOURCE NAME=SOURCE …",
        )


def _missing_notes(found: Aligned) -> Iterator[str]:
    for name, alone in found.unmatched.items():
        lacking = sum(name not in owners for owners in found.modules.values())
        if lacking or alone:
            own = f"{len(alone)} are its own"
            yield f"{name}: {lacking} modules that others share are missing, {own}"


def _task(module: str, found: Aligned, options: _Options, device: str) -> Task:
    mine = {name: found.sets[name].only(own) for name, own in found.modules[module].items()}
    reordered = frozenset(found.reordered.get(module, ()))
    sites = [one.sites[0] for one in mine.values()]
    return Task(module, _rows, (mine, reordered, options), device=device, **cost(*sites))


def _rows(
    module: str,
    sets: Mapping[str, UpdateSet],
    reordered: frozenset[str],
    options: _Options,
    *,
    device: str,
) -> Iterator[Row]:
    sites = {name: one.sites[0] for name, one in sets.items()}
    _check_shapes(module, {name: site.shape for name, site in sites.items()})
    updates = [site.recipe.build().to(device) for site in sites.values()]
    spectra = [_spectrum(update, options) for update in updates]
    site = next(iter(sites.values()))
    fixed = {"module": module, "layer": site.layer, "kind": site.kind, "expert": site.expert}
    for name, spectrum in zip(sets, spectra, strict=True):
        yield fixed | {"name": name} | _size(spectrum)
    for row in _sides(list(sets), updates, spectra, reordered, options.measures):
        yield fixed | row


def _size(spectrum: Spectrum) -> Row:
    """Return how large an update is, and of which rank."""
    used, energy = spectrum.values[: spectrum.directions], spectrum.energy
    low, high = energy_rank_bracket(used, 0.9, energy, spectrum.ceiling) if energy else (0, 0)
    return {
        "directions": len(used),
        "norm": math.sqrt(energy),
        "spectral": float(used[0]) if len(used) else 0.0,
        "stable_rank": stable_rank(used, energy) if len(used) else math.nan,
        # Directions that were not looked for may be needed.
        "energy_rank_90": low if low == high else None,
    }


def _sides(
    names: list[str],
    updates: list[Update],
    spectra: list[Spectrum],
    reordered: frozenset[str],
    measures: Sequence[str],
) -> Iterator[Row]:
    right, left = (Stack(names, updates, spectra, side) for side in ("right", "left"))
    cosines = whole_cosines(right, left)
    interference = math.nan if reordered else joint_interference(right, left)
    kept = [n for n, name in enumerate(names) if name not in reordered]
    if reordered:
        # Their rows mean other outputs: nothing that reads the output side holds.
        out = [name in reordered for name in names]
        cosines[out] = cosines[:, out] = math.nan
        others = [updates[n] for n in kept], [spectra[n] for n in kept]
        left = Stack([names[n] for n in kept], *others, "left")
    for stack, whole in ((right, cosines), (left, cosines[kept][:, kept])):
        if len(stack.names) > 1:
            yield {"side": stack.side, **stack.shared(), "interference": interference}
            yield from pair_rows(stack, whole, measures)


def _spectrum(update: Update, options: _Options) -> Spectrum:
    dense = isinstance(update, DenseUpdate)
    return svd(update, options.k or (DENSE_LIMIT if dense else None))


def _check_shapes(module: str, shapes: Mapping[str, tuple[int, int]]) -> None:
    if len(set(shapes.values())) > 1:
        raise UpdateError(
            "the sources have this module in different shapes",
            where=module,
            expected="one shape",
            got=", ".join(f"{name} {shape}" for name, shape in shapes.items()),
            fix="compare updates of one model",
        )
