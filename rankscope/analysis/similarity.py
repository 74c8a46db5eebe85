"""φ(i, j) of every module that two sources share, beside what chance gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rankscope.analysis.costs import cost
from rankscope.analysis.devices import resolve_device
from rankscope.analysis.engine import How, Row, Study, Task, run
from rankscope.analysis.pairing import Pairing, paired
from rankscope.analysis.selection import opened, short_names
from rankscope.errors import UpdateError
from rankscope.io.fused import split_alike
from rankscope.io.sources import Source
from rankscope.io.updateset import UpdateSet
from rankscope.linalg.chance import (
    adjusted_p_values,
    expected_overlap,
    overlap_p_value,
    overlap_sd,
    random_subspace,
)
from rankscope.linalg.edges import cosine_edge
from rankscope.measures.similarity import (
    ambiguous_cuts,
    phi_grid,
    principal_cosines,
    shared_directions,
)
from rankscope.results import SimilarityResult, provenance
from rankscope.spectra import Spectrum, svd
from rankscope.updates import DenseUpdate, FactoredUpdate, Update

__all__ = ["finish", "similarity", "similarity_study"]

Side = Literal["left", "right"]
SIDES: dict[str, tuple[Side, ...]] = {
    "both": ("right", "left"),
    "right": ("right",),
    "left": ("left",),
}
DENSE_LIMIT = 64
# φ of directions that are this far off, in the sine of an angle, is off in the second digit.
UNRESOLVED = 0.01


@dataclass(frozen=True)
class _Options:
    sides: tuple[Side, ...]
    vectors: str
    max_i: int | None
    max_j: int | None
    seed: int
    device: str


@dataclass(frozen=True)
class _Directions:
    """The directions of one update on one side, strongest first, and where cuts are arbitrary."""

    basis: Tensor
    ambiguous: list[int]

    @property
    def count(self) -> int:
        return self.basis.shape[1]


def similarity(
    a: Source | UpdateSet,
    b: Source | UpdateSet,
    *,
    base: Source | None = None,
    side: Literal["right", "left", "both"] = "both",
    vectors: Literal["delta", "factor"] = "delta",
    max_i: int | None = None,
    max_j: int | None = None,
    alpha: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    **how: Unpack[How],
) -> SimilarityResult:
    r"""Compare the directions of two sources, module by module.

    For every module that both update, by whatever name,
    :math:`\phi(i, j) = \|U_i^\top V_j\|_F^2 / \min(i, j)` of the first i directions of A and
    the first j of B, for all i and j, beside the level, spread and p-value that independent
    random subspaces give.

    Parameters
    ----------
    a, b : path, state dict, module or UpdateSet
        What to compare. A selection compares only its own modules.
    base : path, state dict or module, optional
        Serves whichever of the two is a full checkpoint.
    side : {"right", "left", "both"}
        Right is the input side (the paper's), left the output side.
    vectors : {"delta", "factor"}
        ``delta`` takes the singular vectors of ΔW, the same for every way to factor it;
        ``factor`` those of A alone (right) or B alone (left), as the LoRA paper did.
    max_i, max_j : int, optional
        The most directions of A and of B; 64 for a dense update unless given, otherwise all.
    alpha : float, optional
        LoRA's alpha, for files that do not say it. Similarity does not depend on it.
    seed : int
        Of the random control and of the Monte Carlo p-values in tiny dimensions.
    device : str
        ``cpu``, ``cuda``, ``cuda:n`` or ``auto``; the arithmetic is float64 everywhere.
    **how
        As `How`: jobs, threads, journal, progress and so on.

    Returns
    -------
    SimilarityResult
        A row per module and side: `phi` (rank_a, rank_b), `phi_first` with `p_first`,
        `phi_full` with `chance_full`, `chance_sd`, `z_full`, `p_full` and `p_adjusted`
        (Benjamini-Hochberg over the modules of the side), the principal `cosines` and how
        many of them lie above `shared_edge`, the 99.9 % chance quantile of the largest one
        (beyond the i + j - d that any two subspaces share). Modules bear A's names; notes say
        how others were matched, and q and k whose rows stand in Meta's rotary order on one
        side only have no row for the output side. `ambiguous_a` and `ambiguous_b` list the
        cuts inside a block of singular values that are equal or cannot be told apart, where φ
        means nothing. An
        update that is zero has rank 0 and undefined numbers.

    Raises
    ------
    SourceError
        If a source cannot be read or no module is shared.
    UpdateError
        If no shared module could be measured, or an option is out of range.

    References
    ----------
    .. [1] E. Hu et al., "LoRA: Low-rank adaptation of large language models", 2021,
       section 7.2. arXiv:2106.09685

    Examples
    --------
    >>> import rankscope as rs
    >>> one = {"h.0.q.lora_A.weight": torch.eye(9)[:1], "h.0.q.lora_B.weight": torch.ones(9, 1)}
    >>> two = {**one, "h.0.q.lora_A.weight": torch.eye(9)[1:2]}
    >>> rs.similarity(one, two).table.phi_full.round(9).tolist()  # input side, output side
    [0.0, 1.0]
    """
    # Base and alpha are for what is not open yet; where both are, opening refuses them.
    both_open = isinstance(a, UpdateSet) and isinstance(b, UpdateSet)
    set_a, set_b = (
        opened(s, None, None)
        if isinstance(s, UpdateSet) and not both_open
        else opened(s, base, alpha)
        for s in (a, b)
    )
    study = similarity_study(
        set_a,
        set_b,
        side=side,
        vectors=vectors,
        max_i=max_i,
        max_j=max_j,
        seed=seed,
        device=device,
    )
    result = run(study, how)
    assert isinstance(result, SimilarityResult)
    return result


def similarity_study(
    a: UpdateSet,
    b: UpdateSet,
    *,
    side: str = "both",
    vectors: str = "delta",
    max_i: int | None = None,
    max_j: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Study:
    """Return what `similarity` does with two open sets, module by module."""
    options = _Options(
        _choice("side", side, SIDES),
        _choice("vectors", vectors, {"delta": "delta", "factor": "factor"}),
        _at_least_one("max_i", max_i),
        _at_least_one("max_j", max_j),
        seed,
        resolve_device(device),
    )
    a, b = split_alike(a, b)
    pairing, names = paired(a, b), short_names(a, b)
    said = {
        "side": side,
        "vectors": vectors,
        "max_i": max_i,
        "max_j": max_j,
        "alpha": [a.alpha, b.alpha],
        "split": [a.split, b.split],
        "seed": seed,
        "modules": list(pairing.partners),
    }
    inputs = {"a": list(a.inputs), "b": list(b.inputs)}
    about = {
        "provenance": provenance("similarity", inputs, said, options.device),
        "notes": [*pairing.notes, *_named_notes(zip(names, (a, b), strict=True))],
        "names": list(names),
        "unmatched_a": list(pairing.unmatched_a),
        "unmatched_b": list(pairing.unmatched_b),
    }
    return Study("similarity", _tasks(a, b, pairing, options), about, finish)


def finish(
    rows: list[Row], failures: list[dict[str, Any]], about: Mapping[str, Any]
) -> SimilarityResult:
    """Return the result of all rows."""
    said = about["provenance"]["options"]
    table = _table(rows)
    return SimilarityResult(
        table=table,
        provenance=about["provenance"],
        notes=(*about["notes"], *_caveats(about["names"], said["vectors"], table)),
        failures=tuple(failures),
        names=tuple(about["names"]),
        unmatched_a=tuple(about["unmatched_a"]),
        unmatched_b=tuple(about["unmatched_b"]),
        random=_random_control(table, said["seed"]),
    )


def _named_notes(sets: Iterable[tuple[str, UpdateSet]]) -> list[str]:
    return [f"{name}: {note}" for name, updates in sets for note in updates.notes]


def _tasks(a: UpdateSet, b: UpdateSet, pairing: Pairing, options: _Options) -> list[Task]:
    tasks = []
    for name, other in pairing.partners.items():
        one, two = a.only(name), b.only(other)
        mine = _input_side(options) if name in pairing.reordered else options
        tasks.append(
            Task(
                name,
                _rows,
                (other, one, two, mine),
                **cost(one.sites[0], two.sites[0]),
            )
        )
    return tasks


def _rows(module: str, other: str, a: UpdateSet, b: UpdateSet, options: _Options) -> Iterator[Row]:
    site = a.site(module)
    if not options.sides:
        raise _in_other_order(module)
    updates = [s[name].to(options.device) for s, name in ((a, module), (b, other))]
    _check_shapes(module, updates, options)
    one, two = (
        _directions(update, options, limit)
        for update, limit in zip(updates, (options.max_i, options.max_j), strict=True)
    )
    named = {"module": module, "layer": site.layer, "kind": site.kind, "expert": site.expert}
    for side in options.sides:
        yield named | _compare(side, one[side], two[side], options.seed)


def _input_side(options: _Options) -> _Options:
    """Return the options for updates whose rows stand in different orders."""
    return replace(options, sides=tuple(side for side in options.sides if side == "right"))


def _in_other_order(module: str) -> UpdateError:
    return UpdateError(
        "the rows of the two updates stand in different orders",
        where=module,
        expected="both as Hugging Face stores them",
        got="one of them in Meta's rotary order, as llama.cpp and torchtune have it",
        fix="give a base that tells its heads (--base), or compare the input side",
    )


def _directions(update: Update, options: _Options, limit: int | None) -> dict[Side, _Directions]:
    if limit is None and isinstance(update, DenseUpdate):
        limit = DENSE_LIMIT
    right = left = update
    if options.vectors == "factor":
        if not isinstance(update, FactoredUpdate):
            raise UpdateError(
                "a dense update has no factors",
                where="--vectors factor",
                expected="two adapters",
                got=f"a dense update of shape {update.shape}",
                fix="use --vectors delta",
            )
        left, right = DenseUpdate(update.up), DenseUpdate(update.down)
    if options.vectors == "factor" and not svd(update, vectors=False).directions:
        limit = 0  # an untrained adapter: A alone would still show its initial numbers
    spectra = {"right": svd(right, limit or None)}
    spectra["left"] = spectra["right"] if left is right else svd(left, limit or None)
    found: dict[Side, _Directions] = {}
    for side in options.sides:
        spectrum = spectra[side]
        basis = spectrum.right if side == "right" else spectrum.left
        count = spectrum.directions if limit is None else min(spectrum.directions, limit)
        assert basis is not None  # svd() was asked for vectors
        found[side] = _Directions(basis[:, :count], _ambiguous(spectrum, count))
    return found


def _ambiguous(spectrum: Spectrum, count: int) -> list[int]:
    """Return the cuts, up to `count`, inside blocks that are equal or were not told apart."""
    values = torch.cat([spectrum.values, spectrum.values.new_tensor([spectrum.tail])])
    unresolved = torch.nonzero(spectrum.cut_errors > UNRESOLVED).flatten() + 1
    cuts = {*ambiguous_cuts(values), *unresolved.tolist()}
    # Beyond the last singular value that is not zero nothing is left to be confused with.
    return sorted(cut for cut in cuts if cut <= count and cut < spectrum.ceiling)


def _compare(side: Side, a: _Directions, b: _Directions, seed: int) -> dict[str, Any]:
    i, j, d = a.count, b.count, a.basis.shape[0]
    overlap = a.basis.T @ b.basis
    phi, cosines = phi_grid(overlap).numpy(), principal_cosines(overlap)
    row = {
        "side": side,
        "dimension": d,
        "rank_a": i,
        "rank_b": j,
        "phi": phi,
        "cosines": cosines.numpy(),
        "ambiguous_a": a.ambiguous,
        "ambiguous_b": b.ambiguous,
    }
    if not i or not j:
        return row
    first, full = float(phi[0, 0]), float(phi[-1, -1])
    expected, sd = float(expected_overlap(i, j, d)), float(overlap_sd(i, j, d))
    shared, edge = _shared_directions(cosines, i, j, d)
    return row | {
        "phi_first": first,
        "p_first": overlap_p_value(first, 1, 1, d, seed=seed),
        "phi_full": full,
        "chance_full": expected,
        "chance_sd": sd,
        "z_full": (full - expected) / sd if sd else math.nan,
        "p_full": overlap_p_value(full, i, j, d, seed=seed),
        "shared_directions": shared,
        "shared_edge": edge,
    }


def _shared_directions(cosines: Tensor, i: int, j: int, d: int) -> tuple[int | None, float]:
    """Return the number of cosines above the chance edge, and the edge.

    Any two subspaces share i + j - d directions; the other angles are those between the
    complements. Nothing is left to compare where one of them is the whole space.
    """
    forced = max(i + j - d, 0)
    if d in (i, j):
        return None, math.nan
    edge = cosine_edge(d - i, d - j, d) if forced else cosine_edge(i, j, d)
    return shared_directions(cosines[forced:], edge), edge


_COLUMNS = {
    "module": "str",
    "layer": "Int64",
    "kind": "str",
    "expert": "Int64",
    "side": "str",
    "dimension": "int64",
    "rank_a": "int64",
    "rank_b": "int64",
    "phi": "object",
    "phi_first": "float64",
    "p_first": "float64",
    "phi_full": "float64",
    "chance_full": "float64",
    "chance_sd": "float64",
    "z_full": "float64",
    "p_full": "float64",
    "p_adjusted": "float64",
    "shared_directions": "Int64",
    "shared_edge": "float64",
    "cosines": "object",
    "ambiguous_a": "object",
    "ambiguous_b": "object",
}


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
    for _, group in table.groupby("side"):
        table.loc[group.index, "p_adjusted"] = adjusted_p_values(group.p_full.to_numpy())
    return table


def _random_control(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Draw φ of two independent random subspaces once for every size in the table."""
    sizes = table[(table.rank_a > 0) & (table.rank_b > 0)]
    sizes = sizes[["side", "dimension", "rank_a", "rank_b"]].drop_duplicates()
    grids = []
    for number, (d, i, j) in enumerate(sizes[["dimension", "rank_a", "rank_b"]].to_numpy()):
        rng = np.random.default_rng([seed, number])
        one, two = (random_subspace(int(d), int(k), rng) for k in (i, j))
        grids.append(phi_grid(torch.from_numpy(one.T @ two)).numpy())
    return sizes.assign(phi=pd.Series(grids, index=sizes.index, dtype=object)).reset_index(
        drop=True
    )


def _caveats(names: Sequence[str], vectors: str, table: pd.DataFrame) -> list[str]:
    notes = []
    for name, column in zip(names, ("rank_a", "rank_b"), strict=True):
        zero = table[table[column] == 0].module.unique()
        if len(zero):
            notes.append(
                f"{name}: {len(zero)} updates are zero (untrained), "
                f"their similarity is undefined: {', '.join(zero[:3])}"
            )
    if vectors == "factor":
        notes.append(
            "directions of A and B alone depend on how ΔW is factored, and rows of an A that "
            "hardly moved are its initial numbers"
        )
    tied = sum(1 in a or 1 in b for a, b in zip(table.ambiguous_a, table.ambiguous_b, strict=True))
    if tied:
        notes.append(
            f"in {tied} rows the first singular values are equal: φ(1,1) is arbitrary there"
        )
    return notes


def _check_shapes(module: str, updates: list[Update], options: _Options) -> None:
    (out_a, in_a), (out_b, in_b) = (update.shape for update in updates)
    if ("right" in options.sides and in_a != in_b) or ("left" in options.sides and out_a != out_b):
        raise UpdateError(
            "the two updates have different shapes",
            where=module,
            expected=f"({out_a}, {in_a}) as in A",
            got=f"({out_b}, {in_b}) in B",
            fix="compare adapters of one model, or one side only with --side",
        )


def _choice(name: str, value: str, choices: dict[str, Any]) -> Any:
    if value not in choices:
        raise UpdateError(
            f"unknown {name}",
            where=f"similarity({name}=…)",
            expected=f"one of {', '.join(choices)}",
            got=repr(value),
            fix="choose one of them",
        )
    return choices[value]


def _at_least_one(name: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise UpdateError(
            "no direction was asked for",
            where=f"similarity({name}=…)",
            expected="a number of at least 1",
            got=str(value),
            fix="leave it out for all directions",
        )
    return value
