"""Many adapters against each other: every pair, module by module, from one reading of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar, Unpack

import numpy as np
import pandas as pd
from torch import Tensor

from rankscope.analysis.costs import cost
from rankscope.analysis.devices import resolve_device
from rankscope.analysis.engine import How, Row, Study, Task, run
from rankscope.analysis.selection import opened
from rankscope.analysis.stacks import MEASURES, Stack, cells, joint_interference, whole_cosines
from rankscope.errors import SourceError, UpdateError
from rankscope.io.sources import Source
from rankscope.io.updateset import UpdateSet
from rankscope.linalg.chance import (
    adjusted_p_values,
)
from rankscope.measures.distances import DISTANCES
from rankscope.results import Result, provenance
from rankscope.spectra import Spectrum, svd
from rankscope.updates import DenseUpdate, Update

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
DEFAULT = ("phi", "cosine", "containment")


@dataclass(frozen=True, eq=False, repr=False)
class CompareResult(Result):
    """Many adapters; columns as in ``rankscope.compare/1``.

    Attributes
    ----------
    names : tuple of str
        Of the sources, in the order they were given.
    shared : DataFrame
        A row per module and side: ``module side dimension sources common edge directions
        interference``: how common the most common directions of all sources are (1 in all),
        what chance seldom passes, how many directions lie above it, and how much the sources
        would interfere if they were added (`task_interference` per unit of their singular
        values: 0 for orthogonal ones, 2 for two that are equal).
    """

    schema: ClassVar[str] = "rankscope.compare/1"
    hidden: ClassVar[tuple[str, ...]] = ("layer", "rank_a", "rank_b", "p_adjusted")

    names: tuple[str, ...] = ()
    shared: pd.DataFrame = field(default_factory=pd.DataFrame)

    def matrix(self, measure: str = "phi", side: str = "right") -> pd.DataFrame:
        """Return the mean over modules as a square table, sources by sources.

        A pair's own diagonal is 1 for similarities and 0 for distances. `containment` has row
        a's energy in the span of column b.
        """
        rows = self.table[self.table.side == side]
        own = 0.0 if measure in DISTANCES else 1.0
        square = pd.DataFrame(np.nan, index=list(self.names), columns=list(self.names))
        for name in self.names:
            square.loc[name, name] = own
        ways = (f"{measure}_a", f"{measure}_b") if measure == "containment" else (measure, measure)
        for (a, b), group in rows.groupby(["a", "b"], sort=False):
            square.loc[a, b], square.loc[b, a] = (group[way].mean() for way in ways)
        return square

    def extra(self) -> dict[str, Any]:
        """Return the names, and what all sources share."""
        return {"names": list(self.names), "shared": self.shared.to_dict(orient="records")}


@dataclass(frozen=True)
class _Options:
    names: tuple[str, ...]
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
        A row per module, side and pair of sources that both update it. `containment_a` is how
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
    options = _Options(tuple(sets), _at_least_one(k), _known(measures), resolve_device(device))
    modules = _shared(sets)
    said = {
        "names": list(sets),
        "k": k,
        "measures": list(options.measures),
        "alpha": [one.alpha for one in sets.values()],
        "modules": modules,
    }
    notes = [f"{name}: {note}" for name, one in sets.items() for note in one.notes]
    about = {
        "provenance": provenance(
            "compare",
            {name: list(one.inputs) for name, one in sets.items()},
            said,
            options.device,
        ),
        "notes": notes + list(_left_out(sets, modules)),
        "names": list(sets),
        "measures": list(options.measures),
    }
    tasks = [_task(module, sets, options) for module in modules]
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
        shared=pd.DataFrame([row for row in rows if "a" not in row]),
    )


def _named(sources: Sequence[Any]) -> dict[str, Any]:
    first = sources[0] if sources else None
    if isinstance(first, Mapping) and not any(isinstance(v, Tensor) for v in first.values()):
        named = dict(first)
    else:
        named = {f"{number}": source for number, source in enumerate(sources, 1)}
    if len(named) < 2:
        raise UpdateError(
            "there is nothing to compare",
            where="compare",
            expected="two sources or more",
            got=str(len(named)),
            fix="name several: NAME=SOURCE NAME=SOURCE …",
        )
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


def _shared(sets: Mapping[str, UpdateSet]) -> list[str]:
    """Return the modules that at least two sources update, in natural order."""
    every = [name for one in sets.values() for name in one.names]
    modules = [name for name in dict.fromkeys(every) if every.count(name) > 1]
    if not modules:
        raise SourceError(
            "the sources have no module in common",
            where=", ".join(sets),
            expected="updates of the same modules of one model",
            got="; ".join(f"{name}: {', '.join(one.names[:2])}" for name, one in sets.items()),
            fix="look at them with rankscope info --modules",
        )
    return modules


def _left_out(sets: Mapping[str, UpdateSet], modules: Sequence[str]) -> Iterator[str]:
    for name, one in sets.items():
        lacking = sum(module not in one for module in modules)
        alone = len(one) - (len(modules) - lacking)
        if lacking or alone:
            yield f"{name}: {lacking} modules that others share are missing, {alone} are its own"


def _task(module: str, sets: Mapping[str, UpdateSet], options: _Options) -> Task:
    mine = {name: one.only(module) for name, one in sets.items() if module in one}
    sites = [one.site(module) for one in mine.values()]
    return Task(module, _rows, (mine, options), **cost(*sites))


def _rows(module: str, sets: Mapping[str, UpdateSet], options: _Options) -> Iterator[Row]:
    _check_shapes(module, sets)
    updates = [one[module].to(options.device) for one in sets.values()]
    spectra = [_spectrum(update, options) for update in updates]
    site = next(iter(sets.values())).site(module)
    fixed = {"module": module, "layer": site.layer, "kind": site.kind, "expert": site.expert}
    stacks = [Stack(list(sets), updates, spectra, side) for side in ("right", "left")]
    cosines = whole_cosines(*stacks)
    interference = joint_interference(spectra)
    for stack in stacks:
        yield fixed | {"side": stack.side, **stack.shared(), "interference": interference}
        columns = cells(stack, cosines, options.measures)
        for a, b in combinations(range(len(spectra)), 2):
            row = {name: values(a, b) for name, values in columns.items()}
            yield fixed | {"side": stack.side, "a": stack.names[a], "b": stack.names[b], **row}


def _spectrum(update: Update, options: _Options) -> Spectrum:
    dense = isinstance(update, DenseUpdate)
    return svd(update, options.k or (DENSE_LIMIT if dense else None))


def _check_shapes(module: str, sets: Mapping[str, UpdateSet]) -> None:
    shapes = {name: one.site(module).shape for name, one in sets.items()}
    if len(set(shapes.values())) > 1:
        raise UpdateError(
            "the sources have this module in different shapes",
            where=module,
            expected="one shape",
            got=", ".join(f"{name} {shape}" for name, shape in shapes.items()),
            fix="compare updates of one model",
        )
