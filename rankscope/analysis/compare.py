"""Many adapters against each other: every pair, module by module, from one reading of each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import numpy as np
import pandas as pd
from torch import Tensor

from rankscope.analysis.aligned import Aligned, aligned
from rankscope.analysis.costs import cost
from rankscope.analysis.devices import resolve_device
from rankscope.analysis.engine import How, Row, Study, Task, run
from rankscope.analysis.selection import opened
from rankscope.analysis.stacks import MEASURES, Stack, joint_interference, pair_rows, whole_cosines
from rankscope.errors import UpdateError
from rankscope.io.sources import Source
from rankscope.io.updateset import UpdateSet
from rankscope.linalg.chance import adjusted_p_values
from rankscope.measures.distances import DISTANCES
from rankscope.results import Result, provenance
from rankscope.spectra import Spectrum, svd
from rankscope.updates import DenseUpdate, Update

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MEASURES", "CompareResult", "compare", "compare_study", "finish"]

_FIXED = {
    "module": "str",
    "layer": "Int64",
    "kind": "str",
    "expert": "Int64",
    "side": "str",
    "a": "str",
    "b": "str",
}
DENSE_LIMIT = 64
_SIMILARITIES = ("phi", "cosine", "mean_cosine", "cka")
DEFAULT = ("phi", "cosine", "containment")


@dataclass(frozen=True, eq=False, repr=False)
class CompareResult(Result):
    """Many adapters; columns as in ``rankscope.compare/1``.

    Attributes
    ----------
    names : tuple of str
        Of the sources, in the order they were given.
    unmatched : dict
        From every name to the modules that this source alone updates.
    shared : DataFrame
        A row per module and side: ``module side dimension sources common edge directions
        interference``: how common the most common directions of all sources are (1 in all),
        what chance passes once in a thousand times, how many directions lie above it
        (undefined where any subspaces of these sizes meet), and how much the sources would
        interfere if they were added (`task_interference`, in units of what as many equal ones
        would have: 0 for orthogonal ones; directions that share in part can pass 1).
    """

    schema: ClassVar[str] = "rankscope.compare/1"
    hidden: ClassVar[tuple[str, ...]] = ("layer", "rank_a", "rank_b", "p_adjusted")

    names: tuple[str, ...] = ()
    unmatched: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shared: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures that the table holds."""
        return tuple(name for name in MEASURES if MEASURES[name][0] in self.table)

    def plot(self, **options: Any) -> Figure:
        """Return the matrices of all measures in the order of their clusters.

        See `figure_compare`; `drift` is for a series.
        """
        from rankscope.plots import figure_compare

        sides = list(dict.fromkeys(self.table.side))
        squares = {side: {m: self.matrix(m, side) for m in self.measures} for side in sides}
        chance = {side: self._chance(side) for side in sides}
        return figure_compare(squares, chance=chance, shared=self.shared, **options)

    def drift(self, **options: Any) -> Figure:
        """Return each source against the one before it and the last, see `figure_drift`."""
        from rankscope.plots import figure_drift

        return figure_drift(self.table, names=self.names, **options)

    def _chance(self, side: str) -> list[float]:
        """Return the chance levels of φ, pair by pair, the mean over modules."""
        if "chance" not in self.table:
            return []
        rows = self.table[self.table.side == side]
        levels = rows.groupby(["a", "b"], sort=False).chance.mean().dropna()
        return sorted(set(levels.round(6)))

    def matrix(self, measure: str = "phi", side: str = "right") -> pd.DataFrame:
        """Return the mean over modules as a square table, sources by sources.

        The diagonal is 1 for similarities, 0 for distances and undefined for all else.
        `containment` has row a's energy in the span of column b.
        """
        rows = self.table[self.table.side == side]
        own = 0.0 if measure in DISTANCES else 1.0 if measure in _SIMILARITIES else np.nan
        square = pd.DataFrame(np.nan, index=list(self.names), columns=list(self.names))
        for name in self.names:
            square.loc[name, name] = own
        ways = (f"{measure}_a", f"{measure}_b") if measure == "containment" else (measure, measure)
        for (a, b), group in rows.groupby(["a", "b"], sort=False):
            square.loc[a, b], square.loc[b, a] = (group[way].mean() for way in ways)
        return square

    def folded(self) -> dict[str, pd.DataFrame]:
        """Return what all sources share."""
        return {"shared by all": self.shared} | super().folded()

    def extra(self) -> dict[str, Any]:
        """Return the names, what only one source has, and what all sources share."""
        return {
            "names": list(self.names),
            "unmatched": {name: list(alone) for name, alone in self.unmatched.items()},
            "shared": self.shared.to_dict(orient="records"),
        }


@dataclass(frozen=True)
class _Options:
    k: int | None
    measures: tuple[str, ...]
    device: str


def compare(
    *sources: Source | UpdateSet | Mapping[str, Any],
    base: Source | None = None,
    k: int | None = None,
    measures: Sequence[str] = DEFAULT,
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
        If there are fewer than two sources, or a measure is not known.

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
    result = run(compare_study(sets, k=k, measures=measures, device=device), how)
    assert isinstance(result, CompareResult)
    return result


def compare_study(
    sets: Mapping[str, UpdateSet],
    *,
    k: int | None = None,
    measures: Sequence[str] = DEFAULT,
    device: str = "cpu",
) -> Study:
    """Return what `compare` does, module by module."""
    _two_or_more(len(sets))
    options = _Options(_at_least_one(k), _known(measures), resolve_device(device))
    found = aligned(sets)
    sets = found.sets
    said = {
        "names": list(sets),
        "k": k,
        "measures": list(options.measures),
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
            options.device,
        ),
        "notes": [*found.notes, *notes, *_missing_notes(found)],
        "names": list(sets),
        "unmatched": found.unmatched,
        "measures": list(options.measures),
    }
    tasks = [_task(module, found, options) for module in found.modules]
    return Study("compare", tasks, about, finish)


def finish(
    rows: list[Row], failures: list[dict[str, Any]], about: Mapping[str, Any]
) -> CompareResult:
    """Return the result of all rows: of pairs, and of what all sources share."""
    columns = dict(_FIXED) | {
        column: "Int64" if column.startswith("rank_") else "float64"
        for measure in about["measures"]
        for column in MEASURES[measure]
    }
    pairs = [row for row in rows if "a" in row]
    table = pd.DataFrame(pairs, columns=list(columns)).astype(columns)
    if "p" in table:
        groups = table.groupby(["side", "a", "b"], sort=False).p
        table["p_adjusted"] = groups.transform(adjusted_p_values)
    return CompareResult(
        table,
        about["provenance"],
        tuple(about["notes"]),
        tuple(failures),
        names=tuple(about["names"]),
        unmatched={name: tuple(alone) for name, alone in about["unmatched"].items()},
        shared=pd.DataFrame([row for row in rows if "a" not in row]),
    )


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


def _at_least_one(k: int | None) -> int | None:
    if k is not None and k < 1:
        raise UpdateError(
            "no direction was asked for",
            where="k",
            expected="at least 1",
            got=str(k),
            fix="leave k out for all directions",
        )
    return k


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


def _task(module: str, found: Aligned, options: _Options) -> Task:
    mine = {name: found.sets[name].only(own) for name, own in found.modules[module].items()}
    reordered = frozenset(found.reordered.get(module, ()))
    sites = [one.sites[0] for one in mine.values()]
    return Task(module, _rows, (mine, reordered, options), **cost(*sites))


def _rows(
    module: str, sets: Mapping[str, UpdateSet], reordered: frozenset[str], options: _Options
) -> Iterator[Row]:
    sites = {name: one.sites[0] for name, one in sets.items()}
    _check_shapes(module, {name: site.shape for name, site in sites.items()})
    updates = [site.recipe.build().to(options.device) for site in sites.values()]
    spectra = [_spectrum(update, options) for update in updates]
    site = next(iter(sites.values()))
    fixed = {"module": module, "layer": site.layer, "kind": site.kind, "expert": site.expert}
    for row in _sides(list(sets), updates, spectra, reordered, options.measures):
        yield fixed | row


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
