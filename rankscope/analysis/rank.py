"""Every rank measure of every update of one source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import pandas as pd

from rankscope.analysis.advise import Case, Plan
from rankscope.analysis.costs import cost
from rankscope.analysis.devices import resolve_device
from rankscope.analysis.engine import How, Row, Study, Task, run
from rankscope.analysis.rank_row import COLUMNS, rank_row
from rankscope.analysis.subject import is_pair, open_subjects, read_subject
from rankscope.io.sources import Source
from rankscope.io.updateset import UpdateSet
from rankscope.results import RankResult, provenance

__all__ = ["finish", "rank", "rank_study"]

# Of a base that is not the one a checkpoint was tuned from: ΔW is as large as W, and the two
# weights have nothing in common.
_LARGE, _UNRELATED = 0.9, 0.1
_SWALLOWED = 0.9


def rank(
    source: Source | UpdateSet,
    *,
    base: Source | None = None,
    alpha: float | None = None,
    of: str = "update",
    advise: bool = False,
    budget: int | str | None = None,
    dtype: str = "float32",
    seed: int = 0,
    device: str = "cpu",
    **how: Unpack[How],
) -> RankResult:
    """Measure the rank of every update of a source, by every definition.

    Parameters
    ----------
    source : path, state dict, module or UpdateSet
    base : path, state dict or module, optional
        The base weights: needed for a full checkpoint; gives an adapter its relative norm.
    alpha : float, optional
        LoRA's alpha, for files that do not say it. Ranks do not depend on it, norms do.
    of : {"update", "weight"}
        Measure ΔW, or W itself in its place: the base's weight of every module where there is
        a base, otherwise the matrices of `source`, a checkpoint.
    advise : bool
        Also say which rank each module needs, by several rules: `RankResult.advice`.
    budget : int or str, optional
        Parameters, or bytes such as ``"35MB"``, for all modules together: advises the ranks
        that keep most energy within it.
    dtype : {"float32", "bfloat16", "float16"}
        Of the advised factors, for their bytes.
    seed : int
        Of the draws that stand for the rounding of the storage.
    device : str
        ``cpu``, ``cuda``, ``cuda:n`` or ``auto``.
    **how
        As `How`: jobs, threads, journal, progress and so on.

    Returns
    -------
    RankResult
        A row per module. What is undefined is NaN or ``<NA>``.

        `ceiling` is the largest rank that its form can have; `frobenius`, `spectral` are norms
        in the unit of the weight. `stable_rank`, `participation_rank`, `energy_entropy_rank`,
        `effective_rank`, `nuclear_rank` are in [1, ceiling]; `energy_rank_90` is the number of
        directions that hold 90 % of the energy. An update that is zero has rank 0 and
        undefined ratios.

        Where there is a base: `relative_norm` is ‖ΔW‖/‖W‖, `base_cosine` the cosine of
        W + ΔW and W, `relative_rank_1` the number of directions that leave an error of at
        most 1 % of ‖W‖, and `rank_above_base` the number of singular values of ΔW above the
        noise edge of a matrix whose entries are as large as W's typical ones, by their
        median.

        For the difference of two checkpoints: `noise_edge` is the largest singular value that
        the rounding of the storage alone makes, `rank_above_noise` the number of directions
        that it does not explain, `noise_share` its share of the energy, `noise_gain` the
        part of the update that the storage left, `noise_affected` the
        names of the measures that tell of it as much as of the update: `numerical_rank` where
        any direction is the noise's, energy ranks whose missing energy is less than the
        noise's, others that it at least doubles. `unchanged_fraction` is the share of entries
        that both have exactly equal, `stored_dtype` the precision that the numbers have,
        whatever they are held in.

        For a dense update `bulk_edge` is the edge of its own bulk, from its median singular
        value, `bulk_edge_rank` the number of directions above it and `hard_threshold_rank`
        Gavish and Donoho's; undefined where half of the spectrum is zero. `decay_exponent` is
        that of a power law fitted to the energies of the first `decay_tail` directions, with
        Kolmogorov and Smirnov's `decay_distance`: above about 0.1 there is no power law.

        `state` is ``ok``, ``zero`` (to rounding), ``below_noise`` or ``collapsed`` (of several
        possible directions the first holds more than 99 %).

    Raises
    ------
    SourceError, AdapterError
        If the source cannot be read.
    UpdateError
        If no update could be measured, or an option or the budget cannot be met.

    Examples
    --------
    The toy matrix of many introductions has two independent rows:

    >>> import torch
    >>> import rankscope as rs
    >>> W = torch.tensor([[1.0, 2, 3, 4], [2, 4, 6, 8], [5, 3, 9, 7]])
    >>> rs.rank({"w.weight": W}, base={"w.weight": torch.zeros(3, 4)}).table.numerical_rank[0]
    np.int64(2)
    """
    study = rank_study(
        open_subjects(of, source, base, alpha),
        of=of,
        advise=advise,
        budget=budget,
        dtype=dtype,
        seed=seed,
        device=device,
    )
    result = run(study, how)
    assert isinstance(result, RankResult)
    return result


def rank_study(
    updates: UpdateSet,
    *,
    of: str = "update",
    advise: bool = False,
    budget: int | str | None = None,
    dtype: str = "float32",
    seed: int = 0,
    device: str = "cpu",
) -> Study:
    """Return what `rank` does with opened subjects, module by module."""
    device = resolve_device(device)
    plan = vars(Plan(dtype, budget)) if advise or budget is not None else None
    options = {"of": of, "alpha": updates.alpha, "split": updates.split, "seed": seed}
    options |= {"modules": updates.names} | (plan or {})
    about = {
        "provenance": provenance("rank", {"source": list(updates.inputs)}, options, device),
        "notes": list(updates.notes),
        "pairs": [site.module for site in updates.sites if is_pair(site)],
        "has_base": updates.base is not None,
        "plan": plan,
    }
    tasks = [
        Task(
            site.module,
            _rows,
            (updates.only(site.module), seed, plan is not None),
            device=device,
            **cost(site),
        )
        for site in updates.sites
    ]
    return Study("rank", tasks, about, finish)


def finish(
    rows: list[Row], failures: list[dict[str, Any]], about: Mapping[str, Any]
) -> RankResult:
    """Return the result of all rows."""
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    plan = None if about["plan"] is None else Plan(**about["plan"])
    return RankResult(
        table=table,
        provenance=about["provenance"],
        notes=(*about["notes"], *_notes(table, set(about["pairs"]), about["has_base"])),
        failures=tuple(failures),
        advice=plan.advice([Case.from_row(row["case"]) for row in rows]) if plan else None,
    )


def _rows(
    module: str, updates: UpdateSet, seed: int, advised: bool, *, device: str
) -> Iterator[Row]:
    subject = read_subject(updates, module, device, seed)
    spectrum = subject.spectrum()
    row = rank_row(subject, spectrum, seed)
    yield row | ({"case": Case.of(row, spectrum).as_row()} if advised else {})


def _notes(table: pd.DataFrame, pairs: set[str], has_base: bool) -> list[str]:
    notes = []
    zero, below = (int((table.state == state).sum()) for state in ("zero", "below_noise"))
    if zero:
        notes.append(f"{zero} updates are zero (untrained)")
    if below:
        notes.append(f"{below} updates do not rise above the rounding of the storage")
    notes.extend(_storage_notes(table))
    finer = table[table.module.isin(pairs) & table.noise_edge.isna()]
    untold = int(finer.stored_dtype.isin(["bfloat16", "float16"]).sum())
    if untold:
        notes.append(
            f"the rounding of the storage cannot be told of {untold} updates: they are too small "
            "beside the largest number of their weights (noise_edge, rank_above_noise)"
        )
    if "float32" in set(finer.stored_dtype) and finer.numerical_rank.notna().any():
        notes.append(
            "differences of float32 tensors: numerical_rank counts the rounding of the storage"
        )
    if pairs and _unrelated(table):
        notes.append(
            "ΔW is as large as W and the tuned weights do not resemble the base's: is this the "
            "right base?"
        )
    if has_base and table.relative_norm.isna().any():
        none = table.relative_norm.isna().all()
        notes.append(
            "the base has no readable weight of any of these modules: is it the right one?"
            if none
            else "relative_norm is undefined where the base has no readable weight"
        )
    return notes


def _storage_notes(table: pd.DataFrame) -> list[str]:
    """Return what the storage added to the updates, and what it took from them."""
    known = table[table.noise_affected.notna()]
    counts = Counter(name for names in known.noise_affected for name in names)
    notes = []
    dtypes = ", ".join(dict.fromkeys(known.stored_dtype))
    if counts:
        listed = ", ".join(f"{name} in {n}" for name, n in counts.most_common())
        notes.append(
            f"the rounding of the storage ({dtypes}) counts in {listed} of {len(known)} modules: "
            "see noise_affected, noise_share and rank_above_noise"
        )
    low = known[known.noise_gain < _SWALLOWED]
    if len(low):
        notes.append(
            f"the storage ({dtypes}) swallowed part of {len(low)} updates, leaving "
            f"{low.noise_gain.min():.0%} at worst: their norms are too small (noise_gain)"
        )
    return notes


def _unrelated(table: pd.DataFrame) -> bool:
    """Whether most of the tuned weights are as far from the base as any other model's."""
    known = table[table.base_cosine.notna()]
    strange = (known.relative_norm >= _LARGE) & (known.base_cosine.abs() < _UNRELATED)
    return bool(2 * strange.sum() > len(known) > 0)
