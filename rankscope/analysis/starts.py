"""What of the updates of one module is still the random start of their factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from rankscope.analysis.engine import Row
from rankscope.analysis.overlap import Side
from rankscope.io.updateset import Site
from rankscope.measures.initialisation import init_residue, shared_init
from rankscope.updates import FactoredUpdate, Update

__all__ = ["start_columns"]


class _Drawn(NamedTuple):
    """The factor that was drawn at random, where the other one was zero; on its side."""

    side: Side
    factor: Tensor
    residue: float


def start_columns(side: Side, sites: Sequence[Site], updates: Sequence[Update]) -> Row:
    """Return the columns of one side of two updates.

    They are defined on the side of the factor that was drawn at random, the input side unless
    B looks much more like it: the other factor started from zero.
    """
    one, other = (
        _on(side, _drawn(site, update)) for site, update in zip(sites, updates, strict=True)
    )
    shared = None
    if one is not None and other is not None:
        shared = shared_init(one.factor, other.factor)
    return {
        "init_residue_a": math.nan if one is None else one.residue,
        "init_residue_b": math.nan if other is None else other.residue,
        "shared_init_suspected": shared,
    }


def _on(side: Side, drawn: _Drawn | None) -> _Drawn | None:
    return drawn if drawn is not None and drawn.side == side else None


def _drawn(site: Site, update: Update) -> _Drawn | None:
    # Factors computed from the stored ones (LoHa, rebased PiSSA) were never drawn as they are,
    # and some columns of A do not tell the size of the whole.
    if not isinstance(update, FactoredUpdate) or update.up.shape[1] != site.rank:
        return None
    if site.block is not None and site.block.columns:
        return None
    right, left = init_residue(update.down), init_residue(update.up.T)
    if left > max(0.5, 0.0 if math.isnan(right) else right):
        return _Drawn("left", update.up.T, left)
    return _Drawn("right", update.down, right)
