r"""Storage noise: how much of the difference of two checkpoints is rounding.

A checkpoint in bfloat16 or float16 holds every weight :math:`w` as the nearest point of a grid
of spacing :math:`\mathrm{ulp}(w)`, with an error of variance :math:`\mathrm{ulp}(w)^2 / 12`.
The difference X of two checkpoints holds such errors in one of two ways:

* **from the stored base**: training began at the stored numbers and only the tuned file was
  rounded, :math:`X = \mathrm{RN}(W_0 + Δ) - W_0`. Where the base lies on the grid of the tuned
  file this is a *dead zone*: an entry changes only if :math:`|Δ|` exceeds half a spacing. Small
  updates are attenuated, and for very low ranks the rounding is itself a pattern of low rank.
* **both rounded** from finer originals: an independent error in each file, nothing attenuated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.linalg.blocks import by_rows, norm
from rankscope.linalg.surrogates import Leading, noise_edge
from rankscope.measures.acts import Act, likelier
from rankscope.measures.rerounding import least_rank
from rankscope.measures.stored import PRECISIONS, Pair, stored_precision
from rankscope.spectra import Spectrum, svd
from rankscope.updates import DenseUpdate

__all__ = ["StorageNoise", "rank_above_noise", "storage_noise", "stored_precision"]

_COHERENT_UP_TO = 64  # the rank above which rounding leaves no pattern


@dataclass(frozen=True)
class StorageNoise:
    """What the storage of two checkpoints leaves in their difference X.

    Parameters
    ----------
    tuned_dtype, base_dtype : str
        The precision of each file, as its bits show.
    dtype : str
        The coarser of the two.
    edge : float
        The largest singular value that unstructured rounding gives, in the unit of the weight;
        a rounding exceeds it in less than 1 % of cases, but for some updates of a fifth to
        four fifths of the entries in a dead zone (by up to 14 %).
    floor : float
        ``‖rounding‖_F`` if every entry that the update touches is rounded; in a dead zone less
        is.
    unchanged : float
        Fraction of the entries that are exactly equal, in [0, 1].
    share : float
        Predicted share of ``‖X‖²`` that is rounding: one minus the squared correlation of X
        with the true update, in [0, 1]. NaN where nothing changed, and where too little did to
        say.
    gain : float
        Predicted ``⟨Δ, X⟩ / ‖Δ‖²`` with the true update Δ: 1 without a dead zone, where
        nothing is lost. NaN where nothing or too little changed to say.
    on_grid : bool
        Whether the tuned weights were rounded from the stored base plus an update, and that
        base lies on their grid. If not, the base is finer than the grid, or both files were
        rounded from finer originals.
    dead_zone : bool
        Whether the grid swallowed more than 1 % of the update; False where the gain is NaN.
    """

    tuned_dtype: str
    base_dtype: str
    dtype: str
    edge: float
    floor: float
    unchanged: float
    share: float
    gain: float
    on_grid: bool
    dead_zone: bool


def storage_noise(
    tuned: Float[Tensor, "out in"], base: Float[Tensor, "out in"], *, seed: int = 0
) -> StorageNoise | None:
    """Return what storage leaves in the difference of two stored weights.

    Parameters
    ----------
    tuned, base : (out, in) Tensor
        As they were stored, in any floating dtype; finite.
    seed : int
        Of the surrogates: an edge varies with it by some tenths of a percent.

    Returns
    -------
    StorageNoise or None
        None where both are float32 or float64 by their bits. Their rounding is smaller than
        that of bfloat16 by 2**16: it matters below ``‖ΔW‖ / ‖W‖`` of 1e-6. Nor is that of a
        format of 8 bits modelled. None too where the two differ by less than 2**-50 of their
        largest number: that float32, in which all is computed, cannot tell.

    Raises
    ------
    UpdateError
        If a weight holds NaN or infinity (a float16 overflow).

    Notes
    -----
    *Edge.* `rankscope.linalg.surrogates.noise_edge`: of uniform errors with the variance
    ``ulp² / 12`` of every entry, or of X with random signs where that is less. In a dead zone most
    entries carry no error, and two files rounded from like originals share theirs: the first
    alone would be up to ten times too high.

    *Which way.* Both ways are acted out on a sample of the entries, with an update of Gaussian
    entries, or of products of two (rank one), beside what of X is too large for rounding. The
    one is taken whose energy and share of changed entries come nearest, octave by octave of the
    base: in a dead zone large weights do not change, in the other way they change the most.
    Share and gain are those of that act.

    *Sparse updates.* In a dead zone the share of changed entries falls with the size of the base
    weight, in an update of a part of the entries it does not. Rows and columns without a change
    are left out of all but `unchanged` where the others change too often for that to be a dead
    zone: ten changes are expected, octave by octave of the base. Within the rest, where updates
    of every entry are far from what is seen, both ways are acted out too with updates of a part
    of the entries; if less than 0.8 of them explain it twice as well, share and gain are those
    of that act, and rounding is where entries changed. Updates that are uneven instead, of heavy
    tails or a few strong columns, come out nearer to the truth that way than as even ones.

    *Limits.* A thousand changed entries are needed to tell a sparse update from a dead zone: share
    and gain are NaN where fewer changed, and less than 1 in 400, and the edge is then that
    of an update of every entry, far too high rather than too low. Where acts about as near
    disagree, share or gain is NaN. The gain is called 1 wherever the
    base lies not on the grid; that of a bfloat16 file tuned from a float16 one is above it for
    small updates, 1.1 to 1.2 at ``‖ΔW‖ / ‖W‖`` of 3e-4. An update of full rank that dwarfs
    the rounding leaves the way open, and with it a factor of two in the share, which is then
    small, and of √2 in the edge.

    Examples
    --------
    Every second entry moves by one spacing (2**-7 at 1) of bfloat16:

    >>> base = torch.ones(4, 4, dtype=torch.bfloat16)
    >>> tuned = base + 2**-7 * (torch.arange(4) % 2)
    >>> noise = storage_noise(tuned, base)
    >>> noise.dtype, noise.base_dtype, noise.unchanged
    ('bfloat16', 'bfloat16', 0.5)
    """
    names = stored_precision(tuned), stored_precision(base)
    coarse = [name for name in PRECISIONS[:2] if name in names]
    if not coarse or not tuned.numel() or set(names).difference(PRECISIONS):
        return None
    pair = Pair.of(tuned, base, names)
    if not pair.seen and not _equal(tuned, base):
        return None
    pair = pair.touched()
    found = Leading(pair.difference, seed)
    act = likelier(pair, found, seed) if pair.changed else Act(False, 0.0, math.nan, math.nan)
    deviation = pair.deviation(act.both)
    on_grid = not act.both and pair.base_on_grid
    return StorageNoise(
        tuned_dtype=names[0],
        base_dtype=names[1],
        dtype=coarse[0],
        edge=pair.unit * noise_edge(found, _where_changed(deviation, pair, act), seed=seed),
        floor=pair.unit * math.sqrt(act.support) * norm(deviation),
        unchanged=1 - pair.changed / tuned.numel(),
        share=act.share,
        gain=act.gain if on_grid or math.isnan(act.gain) else 1.0,
        on_grid=on_grid,
        dead_zone=on_grid and act.gain < 0.99,
    )


def _where_changed(deviation: Tensor, pair: Pair, act: Act) -> Tensor:
    """Return the deviations where an update of a part of the entries is known to be."""
    if act.support == 1:
        return deviation
    # Those that it touched and that changed stand for the ones that did not.
    scale = math.sqrt(act.support * deviation.numel() / pair.changed)
    return by_rows(lambda part, x: part * scale * (x != 0), deviation, pair.difference)


def _equal(tuned: Tensor, base: Tensor) -> bool:
    wide = torch.promote_types(tuned.dtype, base.dtype)
    return torch.equal(tuned.to(wide), base.to(wide))


def rank_above_noise(
    spectrum: Spectrum,
    tuned: Float[Tensor, "out in"],
    base: Float[Tensor, "out in"],
    noise: StorageNoise,
    *,
    seed: int = 0,
) -> int:
    """Return the number of directions of a difference that its storage does not explain.

    Parameters
    ----------
    spectrum : Spectrum
        Of ``tuned - base``; the leading values are enough, and vectors are not needed.
    tuned, base : (out, in) Tensor
        As they were stored.
    noise : StorageNoise
        `storage_noise` of the two.
    seed : int
        Of the random starts.

    Returns
    -------
    int
        Never more than the number of singular values above ``noise.edge``; 0 where all is
        below the noise.

    Notes
    -----
    Of an update that was rounded on the grid of its base, a rank k is enough if k directions,
    added to the base and rounded again, leave a (k+1)th singular value within 1.2 of the one
    measured; up to the true rank the ratio is 3 and more. The k directions are those of X. Where
    the ratio is between 1.2 and 2.5 they are corrected, at most twice, for what rounding takes
    from them, :math:`Δ ← P_k[Δ + (X - R(Δ)) / g]` with the gain
    :math:`g = ⟨Δ, R(Δ)⟩ / ‖Δ‖²`: without, the ratio at the true rank would be up to 1.4 where
    the gain is 0.6, and 2 where it is 0.2. The k below the largest step of the spectrum is tried
    first.

    Examples
    --------
    >>> base = torch.ones(4, 4, dtype=torch.bfloat16)
    >>> tuned = base + torch.eye(4).bfloat16() / 2
    >>> difference = DenseUpdate(tuned.float() - base.float())
    >>> rank_above_noise(svd(difference), tuned, base, storage_noise(tuned, base))
    4
    """
    if len(spectrum.values) < min(tuned.shape) and spectrum.values[-1] > noise.edge:
        spectrum = svd(DenseUpdate(tuned.double() - base.double()), vectors=False)
    values = spectrum.values
    above = int((values > max(noise.edge, spectrum.floor)).sum())
    highest = min(above - 1, _COHERENT_UP_TO)
    if not noise.on_grid or highest < 1:
        return above
    pair = Pair.of(tuned, base, (noise.tuned_dtype, noise.base_dtype))
    tried = [value / pair.unit for value in values[: highest + 1].tolist()]
    return least_rank(pair, tried, seed) or above
