"""Intruder dimensions of every tuned weight, beside what random directions give."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import pandas as pd
import torch
from torch import Tensor

from rankscope.analysis.amplification import checked_counts
from rankscope.analysis.costs import weight_cost
from rankscope.analysis.decompositions import decomposed
from rankscope.analysis.devices import resolve_device
from rankscope.analysis.engine import How, Row, Study, Task, run
from rankscope.analysis.selection import opened, with_base
from rankscope.errors import UpdateError
from rankscope.io.sources import Source
from rankscope.io.updateset import UpdateSet
from rankscope.measures.intruders import chance_closeness, closeness, intruder_energy_share
from rankscope.results import Result, drawn, provenance
from rankscope.spectra import svd
from rankscope.updates import DenseUpdate, Update

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["IntrudersResult", "finish", "intruders", "intruders_study", "reach_of"]

_COLUMNS = {
    "module": "str",
    "layer": "Int64",
    "kind": "str",
    "expert": "Int64",
    "side": "str",
    "k": "int64",
    "epsilon": "float64",
    "epsilon_chance": "float64",
    "chance_99": "float64",
    "intruders": "int64",
    "intruders_single": "int64",
    "below_chance": "int64",
    "intruder_energy_share": "float64",
    "max_cosine": "object",
}


@dataclass(frozen=True, eq=False, repr=False)
class IntrudersResult(Result):
    """Intruder dimensions; columns as in ``rankscope.intruders/1``."""

    schema: ClassVar[str] = "rankscope.intruders/1"
    hidden: ClassVar[tuple[str, ...]] = ("layer", "max_cosine")

    def plot(self, **options: Any) -> Figure:
        """Return the largest cosines and the numbers of intruders, see `figure_intruders`."""
        return drawn("figure_intruders", self.table, **options)


@dataclass(frozen=True)
class _Options:
    ks: tuple[int, ...]
    epsilons: tuple[float, ...]
    cache: Path | None


def intruders(
    source: Source | UpdateSet,
    *,
    base: Source | None = None,
    k: int | Sequence[int] = 10,
    epsilon: float | Sequence[float] = 0.5,
    alpha: float | None = None,
    cache: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    **how: Unpack[How],
) -> IntrudersResult:
    r"""Count the leading directions of W + ΔW that no direction of W resembles.

    Parameters
    ----------
    source : path, state dict, module or UpdateSet
    base : path, state dict or module
        The base weights W.
    k : int or sequence of int
        How many leading singular vectors of W + ΔW are looked at.
    epsilon : float or sequence of float
        A direction is an intruder if its largest absolute cosine with any of W's directions,
        on the same side, is below this.
    alpha, cache, device, **how
        As for `amplification`.

    Returns
    -------
    IntrudersResult
        A row per module, side, k and epsilon. `max_cosine` lists each direction's largest
        cosine; where singular values of W are nearly equal, within 1 % and no further apart
        than the update reaches, with the span of all of them, since they mix under it
        (`closeness`). `intruders` counts those below `epsilon`, `intruders_single` those whose
        cosine with every single direction of W is, as the paper counts. At ε = 0.5 every random
        direction of a large matrix is one, so `epsilon_chance` and `chance_99` are the 1 % and
        99 % quantiles of a random direction's largest cosine: below the first there is next to
        nothing, and `below_chance` counts those below the second, no closer to W than random.
        `intruder_energy_share` is the share of the energy of W + ΔW's first k directions that
        the intruders hold.

    Raises
    ------
    SourceError, AdapterError
        If a source cannot be read or there is no base.
    UpdateError
        If k or epsilon is out of range, or no update could be measured.

    References
    ----------
    .. [1] R. Shuttleworth et al., "LoRA vs full fine-tuning: an illusion of equivalence", 2024.
       arXiv:2410.21228

    Examples
    --------
    >>> import torch
    >>> import rankscope as rs
    >>> base = {"w.weight": torch.diag(torch.tensor([3.0, 2.0, 1.0]))}
    >>> rs.intruders({"w.weight": 2 * base["w.weight"]}, base=base, k=2).table.intruders.tolist()
    [0, 0]
    """
    updates = opened(source, base, alpha)
    study = intruders_study(updates, k=k, epsilon=epsilon, cache=cache, device=device)
    result = run(study, how)
    assert isinstance(result, IntrudersResult)
    return result


def intruders_study(
    updates: UpdateSet,
    *,
    k: int | Sequence[int] = 10,
    epsilon: float | Sequence[float] = 0.5,
    cache: str | os.PathLike[str] | None = None,
    device: str = "cpu",
) -> Study:
    """Return what `intruders` does, module by module."""
    with_base(updates, "intruder dimensions are directions that the base weights lack")
    folder = None if cache is None else Path(cache).absolute()
    options, device = (
        _Options(checked_counts(k), _checked(epsilon), folder),
        resolve_device(device),
    )
    said = {
        "k": list(options.ks),
        "epsilon": list(options.epsilons),
        "alpha": updates.alpha,
        "split": updates.split,
        "modules": updates.names,
    }
    about = {
        "provenance": provenance("intruders", {"source": list(updates.inputs)}, said, device),
        "notes": list(updates.notes),
    }
    tasks = [
        Task(
            site.module,
            _rows,
            (updates.only(site.module), options),
            device=device,
            **weight_cost(site),
        )
        for site in updates.sites
    ]
    return Study("intruders", tasks, about, finish)


def finish(
    rows: list[Row], failures: list[dict[str, Any]], about: Mapping[str, Any]
) -> IntrudersResult:
    """Return the result of all rows."""
    table = pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
    return IntrudersResult(table, about["provenance"], tuple(about["notes"]), tuple(failures))


def _checked(epsilon: float | Sequence[float]) -> tuple[float, ...]:
    values = (epsilon,) if isinstance(epsilon, int | float) else tuple(epsilon)
    if not values or not all(0 < value <= 1 for value in values):
        raise UpdateError(
            "this is no threshold for a cosine",
            where="epsilon",
            expected="numbers above 0 and at most 1",
            got=str(epsilon),
            fix="give --epsilon 0.5, or several",
        )
    return values


def _rows(module: str, updates: UpdateSet, options: _Options, *, device: str) -> Iterator[Row]:
    site, weight = updates.site(module), updates.weight(module)
    update = updates[module].to(device)
    base = decomposed(weight, device, options.cache)
    tuned = DenseUpdate(weight.double() + update.dense().cpu()).to(device)
    ours = svd(tuned, max(options.ks))
    assert ours.left is not None  # svd() was asked for vectors
    assert ours.right is not None
    reach = reach_of(update, ours.left, ours.right)
    sides = {"right": (ours.right, base.right), "left": (ours.left, base.left)}
    for side, (own, theirs) in sides.items():
        cosines = closeness(own, theirs, base.values, reach)
        single = closeness(own, theirs, base.values, blocks=False)
        chance = chance_closeness(len(theirs), base.values)
        for k in options.ks:
            for epsilon in options.epsilons:
                yield {
                    "module": module,
                    "layer": site.layer,
                    "kind": site.kind,
                    "expert": site.expert,
                    "side": side,
                    **_counted(cosines[:k], single[:k], ours.values[:k], chance, epsilon),
                }


def reach_of(update: Update, left: Tensor, right: Tensor) -> Tensor:
    """Return what the update does to each of the tuned weight's pairs of directions."""
    sizes = [
        torch.linalg.vector_norm(one.matmul(vectors).cpu(), dim=0)
        for one, vectors in ((update, right), (update.T, left))
    ]
    return torch.maximum(*sizes)


def _counted(
    cosines: Tensor, single: Tensor, s: Tensor, chance: tuple[float, ...], epsilon: float
) -> Row:
    low, high = chance
    found = cosines < epsilon
    return {
        "k": len(cosines),
        "epsilon": epsilon,
        "epsilon_chance": low,
        "chance_99": high,
        "intruders": int(found.sum()),
        "intruders_single": int((single < epsilon).sum()),
        "below_chance": int((cosines < high).sum()),
        "intruder_energy_share": intruder_energy_share(s, found.double()),
        "max_cosine": cosines.numpy(),
    }
