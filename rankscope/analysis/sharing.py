"""The directions that the updates of one set share with those of another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rankscope.analysis.overlap import DENSE_LIMIT, check_shapes, in_other_order
from rankscope.analysis.pairing import Pairing, paired
from rankscope.errors import UpdateError
from rankscope.io.fused_layouts import fused_name
from rankscope.io.renames import spell
from rankscope.io.updateset import Site, UpdateSet
from rankscope.linalg.edges import cosine_edge
from rankscope.spectra import svd
from rankscope.updates import DenseUpdate, Update

__all__ = ["Sharing", "vectors"]

Side = Literal["right", "left"]


@dataclass(frozen=True)
class Sharing:
    """Two sets whose modules are paired as `rankscope.analysis.similarity` pairs them."""

    other: UpdateSet
    pairing: Pairing
    unclear: frozenset[str]

    @staticmethod
    def of(updates: UpdateSet, other: UpdateSet) -> Sharing:
        """Return the pairs of two sets whose slices are alike, see `split_alike`.

        Raises
        ------
        SourceError
            If there are none.
        """
        found = paired(updates, other)
        theirs = [other.site(name) for name in found.unmatched_b]
        fused = (
            name
            for name in found.unmatched_a
            if any(_overlap(updates.site(name), site) for site in theirs)
        )
        return Sharing(other, found, frozenset((*found.ambiguous, *fused)))

    def basis(self, module: str, update: Update, side: Side) -> Tensor:
        """Return the directions of one module that its partner has too, orthonormal columns.

        Without a column where the other set does not update the module.

        Raises
        ------
        UpdateError
            If the partner is not certain or cannot be compared with it.
        """
        if module in self.unclear:
            raise _no_certain_partner(module)
        if module not in self.pairing.partners:
            return torch.zeros(_dimension(update, side), 0, dtype=torch.float64)
        if side == "left" and module in self.pairing.reordered:
            raise in_other_order(module)
        theirs = self.other[self.pairing.partners[module]]
        check_shapes(module, [update, theirs], (side,))
        return _shared(update, theirs, side)

    def notes(self) -> Iterator[str]:
        """Yield how modules were matched, and which have no partner."""
        yield from self.pairing.notes
        alone = [name for name in self.pairing.unmatched_a if name not in self.unclear]
        if alone:
            shown = ", ".join(alone[:3]) + (" …" if len(alone) > 3 else "")
            yield f"{len(alone)} modules that the other does not update share nothing: {shown}"
        yield from (f"other: {note}" for note in self.other.notes)


def vectors(update: Update, side: Side, most: int | None = None) -> Tensor:
    """Return the singular directions of an update on one side, those that carry anything."""
    spectrum = svd(update, most)
    found = spectrum.right if side == "right" else spectrum.left
    assert found is not None  # svd() was asked for vectors
    return found[:, : spectrum.directions]


def _shared(update: Update, other: Update, side: Side) -> Tensor:
    """Return the principal vectors of an update whose cosines with another's are no chance.

    Of a dense update the first 64 directions, of a product of factors all. Of two subspaces
    that any choice would let meet, only as many are compared as leave them free.
    """
    d = _dimension(update, side)
    if d < 2:  # of one dimension all share all
        return torch.zeros(d, 0, dtype=torch.float64)
    one, two = (_compared(u, side, d // 2) for u in (update, other))
    if one.shape[1] + two.shape[1] > d:
        one, two = (basis[:, : d // 2] for basis in (one, two))
    if not (one.shape[1] and two.shape[1]):
        return one[:, :0]
    turned, cosines, _ = torch.linalg.svd(one.T @ two, full_matrices=False)
    edge = cosine_edge(one.shape[1], two.shape[1], d)
    shared: Tensor = one @ turned[:, cosines > edge]
    return shared


def _compared(update: Update, side: Side, free: int) -> Tensor:
    most = min(DENSE_LIMIT, free) if isinstance(update, DenseUpdate) else None
    return vectors(update, side, most)[:, :most]


def _dimension(update: Update, side: Side) -> int:
    return update.shape[1 if side == "right" else 0]


def _overlap(one: Site, other: Site) -> bool:
    """Whether one of two modules without a partner is a part of the other, fused otherwise."""
    mine, theirs = (spell(site.module).path for site in (one, other))
    return mine in _wholes(other) or theirs in _wholes(one)


def _wholes(site: Site) -> set[str]:
    """Return the spellings of a module and of the projections that it is a part of."""
    found = {spell(site.module).path, fused_name(spell(site.module).path)[0]}
    return found if site.whole is None else found | _wholes(site.whole)


def _no_certain_partner(module: str) -> UpdateError:
    return UpdateError(
        "what this module shares cannot be told",
        where=module,
        expected="one update of the other that is of the same module, or none",
        got="several that could be, or one that is fused otherwise",
        fix="open both with the same split= and the base whose config.json tells the layout, or "
        "leave the module out with select()",
    )
