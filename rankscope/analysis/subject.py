"""What one module is measured from: its update, its weight, and the noise of their storage."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from rankscope.analysis.selection import opened
from rankscope.errors import RankscopeError, UpdateError
from rankscope.io.recipes import Difference, Stored
from rankscope.io.sources import Source, open_source, open_updates, open_weights
from rankscope.io.updateset import Site, UpdateSet
from rankscope.measures.noise import StorageNoise, storage_noise, stored_precision
from rankscope.spectra import Spectrum, svd
from rankscope.updates import DenseUpdate, Update

__all__ = ["Subject", "is_pair", "open_for", "open_subjects", "read_subject"]

_FINEST_FIRST = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class BaseWeight:
    """The recipe of a module's base weight: W itself in place of ΔW."""

    updates: UpdateSet
    module: str

    def build(self) -> DenseUpdate:
        """Return the weight, canonical (out, in)."""
        return DenseUpdate(self.updates.weight(self.module))


@dataclass(frozen=True, eq=False)
class Subject:
    """One module read into memory.

    Attributes
    ----------
    site : Site
        What the header tells of it.
    update : Update
        What is measured.
    weight : Tensor or None
        W, (out, in); None where there is no base, or none that can be read.
    tuned : Tensor or None
        W + ΔW as it is stored, for a difference of checkpoints.
    noise : StorageNoise or None
        Of a difference of checkpoints; None where none was rounded to 16 bits.
    dtype : str
        The precision that the numbers really have, whatever the file holds them in.
    """

    site: Site
    update: Update
    weight: Tensor | None
    tuned: Tensor | None
    noise: StorageNoise | None
    dtype: str

    def spectrum(self) -> Spectrum:
        """Return all singular values."""
        return svd(self.update, vectors=False)


def open_for(
    of: str,
    source: Source | UpdateSet,
    base: Source | None,
    alpha: float | None,
    *,
    split: str = "auto",
    allow_pickle: bool = False,
) -> UpdateSet:
    """Open a source, for its updates unless it is a checkpoint alone whose weights are meant.

    The options are those of `open_updates`.

    Raises
    ------
    UpdateError
        If `of` is neither ``update`` nor ``weight``.
    """
    if of not in ("update", "weight"):
        raise UpdateError(
            "this cannot be measured",
            where="of",
            expected="update or weight",
            got=repr(of),
            fix="use of='update' for ΔW, of='weight' for W itself",
        )
    if isinstance(source, UpdateSet):
        return open_updates(source, base, alpha=alpha)
    opened_ = open_source(source, allow_pickle=allow_pickle)
    if of == "weight" and base is None and opened_.family is None:
        return open_weights(opened_, split=split)
    return open_updates(opened_, base, alpha=alpha, split=split, allow_pickle=allow_pickle)


def open_subjects(
    of: str, source: Source | UpdateSet, base: Source | None, alpha: float | None
) -> UpdateSet:
    """Open the updates of a source, or the weights W in their place.

    The weights are those of the base where there is one, of the modules that the source
    updates; otherwise the matrices of the source, a checkpoint.
    """
    updates = opened(open_for(of, source, base, alpha), None, None)
    if of == "update" or updates.format == "checkpoint":
        return updates
    sites = [
        replace(site, recipe=BaseWeight(updates.only(site.module), site.module))
        for site in updates.sites
    ]
    return replace(updates, sites=tuple(sites), base=None, notes=())


def is_pair(site: Site) -> bool:
    """Whether the update is the difference of two stored tensors."""
    return isinstance(site.recipe, Difference)


def read_subject(updates: UpdateSet, module: str, device: str, seed: int) -> Subject:
    """Read one module, onto `device`; `seed` is that of the draws that stand for the noise."""
    site = updates.site(module)
    if isinstance(site.recipe, Difference):
        change = site.recipe.build().to(device)
        tuned, base = (tensor.to(device) for tensor in site.recipe.read())
        noise = storage_noise(tuned, base, seed=seed)
        dtypes = [stored_precision(tensor) for tensor in (tuned, base)]
        coarser = max(dtypes, key=_FINEST_FIRST.index)
        return Subject(site, change, base, tuned, noise, coarser)
    if isinstance(site.recipe, Stored | BaseWeight):
        whole = site.recipe.build().to(device)
        return Subject(site, whole, None, None, None, stored_precision(whole.matrix))
    update = site.recipe.build().to(device)
    return Subject(site, update, _weight(updates, module, device), None, None, site.dtype)


def _weight(updates: UpdateSet, module: str, device: str) -> Tensor | None:
    if updates.base is None:
        return None
    try:
        return updates.weight(module).to(device)
    except RankscopeError:  # ΔW is known all the same; a note says what is missing
        return None
