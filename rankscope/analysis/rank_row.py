"""The row of one module in a rank table."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rankscope.analysis.subject import Subject, is_pair
from rankscope.linalg.blocks import norm as frobenius
from rankscope.measures import rank as measures
from rankscope.measures.decay import spectral_decay
from rankscope.measures.noise import rank_above_noise
from rankscope.measures.thresholds import (
    bulk_edge,
    bulk_edge_rank,
    bulk_scale,
    entry_scale,
    hard_threshold_rank,
)
from rankscope.spectra import Spectrum
from rankscope.updates import DenseUpdate

__all__ = ["COLUMNS", "rank_row"]

COLLAPSED = 0.99
RELATIVE = 0.01  # of ‖W‖: the error that relative_rank_1 allows

COLUMNS = {
    "module": "str",
    "layer": "Int64",
    "kind": "str",
    "expert": "Int64",
    "rows": "int64",
    "columns": "int64",
    "ceiling": "int64",
    "frobenius": "float64",
    "spectral": "float64",
    "relative_norm": "float64",
    "numerical_rank": "Int64",
    "stable_rank": "float64",
    "participation_rank": "float64",
    "effective_rank": "float64",
    "energy_entropy_rank": "float64",
    "energy_rank_90": "int64",
    "energy_rank_95": "int64",
    "energy_rank_99": "int64",
    "top1_energy": "float64",
    "noise_edge": "float64",
    "rank_above_noise": "Int64",
    "unchanged_fraction": "float64",
    "stored_dtype": "str",
    "state": "str",
    "method": "str",
    "error_bound": "float64",
    "noise_share": "float64",
    "noise_gain": "float64",
    "noise_affected": "object",  # a list of columns
    "factor_rank": "Int64",
    "nuclear_rank": "float64",
    "bulk_edge": "float64",
    "bulk_edge_rank": "Int64",
    "hard_threshold_rank": "Int64",
    "base_cosine": "float64",
    "relative_rank_1": "Int64",
    "rank_above_base": "Int64",
    "decay_exponent": "float64",
    "decay_distance": "float64",
    "decay_tail": "Int64",
}

_RATIOS = {
    "stable_rank": measures.stable_rank,
    "participation_rank": measures.participation_rank,
    "effective_rank": measures.effective_rank,
    "energy_entropy_rank": measures.energy_entropy_rank,
    "nuclear_rank": measures.nuclear_rank,
}
_ENERGIES = {f"energy_rank_{percent}": percent / 100 for percent in (90, 95, 99)}


def rank_row(subject: Subject, spectrum: Spectrum, seed: int) -> dict[str, Any]:
    """Return every measure of one module, by the columns of `COLUMNS`."""
    site, (rows, columns) = subject.site, subject.update.shape
    largest = spectrum.values[0].item() if len(spectrum.values) else 0.0
    zero = largest <= spectrum.error_bound
    # In units of the largest, so that squares neither overflow nor vanish.
    s = spectrum.values[:0] if zero else spectrum.values / largest
    frobenius = largest * torch.linalg.vector_norm(s).item()
    ranks = _ranks(s, spectrum)
    above = _above_noise(subject, spectrum, seed)
    return {
        "module": site.module,
        "layer": site.layer,
        "kind": site.kind,
        "expert": site.expert,
        "rows": rows,
        "columns": columns,
        "ceiling": subject.update.ceiling,
        "frobenius": frobenius,
        "spectral": largest,
        **ranks,
        **_bulk(spectrum),
        **_against_base(subject, s, largest),
        "noise_affected": None,
        **_noise(subject, ranks, s, above),
        "stored_dtype": subject.dtype,
        "state": _state(zero, above, spectrum, ranks["top1_energy"]),
        "method": spectrum.method,
        "error_bound": spectrum.error_bound,
        "factor_rank": site.rank,
    }


def _above_noise(subject: Subject, spectrum: Spectrum, seed: int) -> int | None:
    """Return the rank above the noise of the storage; None where none was rounded."""
    if subject.noise is None or subject.tuned is None or subject.weight is None:
        return None
    return rank_above_noise(spectrum, subject.tuned, subject.weight, subject.noise, seed=seed)


def _ranks(s: Tensor, spectrum: Spectrum) -> dict[str, Any]:
    """Return the measures of the spectrum alone; `s` is it in units of its largest."""
    decay = spectral_decay(s[: spectrum.directions])
    exact = spectrum.method == "exact"
    count = measures.numerical_rank(spectrum.values, spectrum.error_bound)
    return {
        "numerical_rank": count if exact else None,
        **{name: measure(s) for name, measure in _RATIOS.items()},
        **{name: measures.energy_rank(s, share) for name, share in _ENERGIES.items()},
        "top1_energy": measures.top_energy(s),
        "decay_exponent": decay.exponent,
        "decay_distance": decay.distance,
        "decay_tail": decay.tail or None,
    }


def _state(zero: bool, above: int | None, spectrum: Spectrum, top: float) -> str:
    if zero:
        return "zero"
    if above == 0:
        return "below_noise"
    return "collapsed" if spectrum.ceiling > 1 and top > COLLAPSED else "ok"


def _bulk(spectrum: Spectrum) -> dict[str, Any]:
    """Return what exceeds the update's own bulk; undefined where its form allows no bulk."""
    if spectrum.ceiling < min(spectrum.shape):
        return {}
    s, shape = spectrum.values[: spectrum.directions], spectrum.shape
    noise = bulk_scale(s, shape)
    return {
        "bulk_edge": bulk_edge(noise, shape) if noise else math.nan,
        "bulk_edge_rank": bulk_edge_rank(s, shape),
        "hard_threshold_rank": hard_threshold_rank(s, shape),
    }


def _against_base(subject: Subject, s: Tensor, unit: float) -> dict[str, Any]:
    """Return what compares ΔW with W; undefined where W is all zero or cannot be read.

    `s` is the spectrum in units of its largest value, `unit`.
    """
    if subject.weight is None:
        return {}
    weight = subject.weight
    norm = frobenius(weight)
    if not norm:
        return {}
    edge = bulk_edge(entry_scale(weight), subject.update.shape)
    if weight.dtype == torch.float64:  # products of narrower numbers stay in its range
        along = subject.update.inner(DenseUpdate(weight / norm)) / norm
    else:
        along = subject.update.inner(DenseUpdate(weight)) / norm / norm
    relative = unit * torch.linalg.vector_norm(s).item() / norm
    return {
        "relative_norm": relative,
        "base_cosine": _cosine(along, relative),
        "relative_rank_1": measures.rank_within(s, RELATIVE * norm / unit) if unit else 0,
        "rank_above_base": int((unit * s > edge).sum()) if edge else None,
    }


def _cosine(along: float, relative: float) -> float:
    """Return the cosine of W + ΔW and W; NaN where the tuned weight is zero.

    `along` is the part of ΔW along W and `relative` its norm, both in units of ‖W‖.
    """
    tuned = math.sqrt(max(1 + 2 * along + relative * relative, 0.0))
    return min(max((1 + along) / tuned, -1.0), 1.0) if tuned else math.nan


def _noise(
    subject: Subject, ranks: dict[str, Any], s: Tensor, above: int | None
) -> dict[str, Any]:
    if not is_pair(subject.site) or not isinstance(subject.update, DenseUpdate):
        return {}
    unchanged = (subject.update.matrix == 0).double().mean().item()
    if subject.noise is None or above is None:
        return {"unchanged_fraction": unchanged}
    share = subject.noise.share
    return {
        "noise_edge": subject.noise.edge,
        "rank_above_noise": above,
        "unchanged_fraction": unchanged,
        "noise_share": share,
        "noise_gain": subject.noise.gain,
        "noise_affected": _noise_affected(ranks, s, above, share) if len(s) else [],
    }


def _noise_affected(ranks: dict[str, Any], s: Tensor, above: int, share: float) -> list[str]:
    """Return the measures that tell of the storage as much as of the update.

    The numerical rank where it counts any direction of the noise, energy ranks whose missing
    energy is less than the noise's, or may be, and other ranks that the directions above the
    noise alone would halve.
    """
    count = ranks["numerical_rank"]
    counted = ["numerical_rank"] if count is not None and above < count else []
    halved = [
        name
        for name, measure in _RATIOS.items()
        if not above or 2 * measure(s[:above]) < ranks[name]
    ]
    return counted + halved + [name for name, kept in _ENERGIES.items() if not share <= 1 - kept]
