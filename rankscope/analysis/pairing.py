"""Which update of one set is of the same module as which of another."""

from __future__ import annotations

from dataclasses import dataclass

from rankscope.errors import SourceError
from rankscope.io.matching import match, nearest
from rankscope.io.rotary import alike
from rankscope.io.updateset import UpdateSet

__all__ = ["Pairing", "paired", "pairing"]

# Formats that number their modules instead of naming them.
_NUMBERED = ("cloneofsimo", "w_a/w_b")


@dataclass(frozen=True)
class Pairing:
    """The modules that two sets share.

    Attributes
    ----------
    partners : dict
        From A's names to B's, in A's order; their shapes may differ.
    reordered : frozenset of str
        Those of A's names whose rows stand in another order than B's, so that only the input
        sides can be compared.
    notes : tuple of str
        How names were matched that are not the same.
    unmatched_a, unmatched_b : tuple of str
        The modules that only one side has.
    ambiguous : tuple of str
        Those of `unmatched_a` that could be any of several of B's.
    """

    partners: dict[str, str]
    reordered: frozenset[str]
    notes: tuple[str, ...]
    unmatched_a: tuple[str, ...]
    unmatched_b: tuple[str, ...]
    ambiguous: tuple[str, ...]


def paired(a: UpdateSet, b: UpdateSet) -> Pairing:
    """Return which modules two sets share, by whatever names.

    Raises
    ------
    SourceError
        If there are none.
    """
    found = pairing(a, b)
    if not found.partners:
        raise _nothing_shared(a, b)
    return found


def pairing(a: UpdateSet, b: UpdateSet) -> Pairing:
    """Return which modules two sets share, by whatever names; perhaps none."""
    matching = match(*({site.module: site.shape for site in updates.sites} for updates in (a, b)))
    found = matching.pairs | matching.mismatches
    partners = {name: found[name].b for name in a.names if name in found}
    theirs = set(partners.values())
    reordered = frozenset(
        name
        for name, other in partners.items()
        if not alike(name, a.site(name).row_order, other, b.site(other).row_order)
    )
    return Pairing(
        partners,
        reordered,
        (*matching.notes(), *_reordered_note(reordered)),
        tuple(name for name in a.names if name not in partners),
        tuple(name for name in b.names if name not in theirs),
        tuple(name for name in matching.ambiguous if name not in partners),
    )


def _reordered_note(reordered: frozenset[str]) -> list[str]:
    if not reordered:
        return []
    return [
        f"{len(reordered)} modules, q and k, have their rows in Meta's rotary order on one side "
        "only: their output sides are not compared; a base that tells its heads (--base) puts "
        "them right"
    ]


def _nothing_shared(a: UpdateSet, b: UpdateSet) -> SourceError:
    numbered = [u.source for u in (a, b) if u.format in _NUMBERED]
    first = a.names[0]
    likely = ", ".join(nearest(first, b.names))
    return SourceError(
        "the two sources have no module in common",
        where=f"{a.source} and {b.source}",
        expected="updates of the same modules of one model",
        got=f"{numbered[0]} numbers its modules and does not name them"
        if len(numbered) == 1
        else f"{first} {a.sites[0].shape}, and most like it {likely}",
        fix="compare it with a file that counts the same modules in the same order"
        if len(numbered) == 1
        else "look at both with rankscope info --modules",
    )
