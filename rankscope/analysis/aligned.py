"""The modules of many sets under one set of names: the first one's, where it has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

from rankscope.analysis.pairing import pairing
from rankscope.errors import SourceError
from rankscope.io.fused import split_alike
from rankscope.io.names import natural_key
from rankscope.io.updateset import Site, UpdateSet

__all__ = ["Aligned", "aligned"]


@dataclass
class Aligned:
    """What several sets have in common.

    Attributes
    ----------
    sets : dict
        The sets by their names, with fused projections joined where another set has them whole.
    modules : dict
        From every module that two sets update or more to what each of these sets calls it.
    reordered : dict
        From modules to the sets whose rows stand in another order than the first one's, so
        that only their input sides can be compared.
    notes : list of str
        How names were matched that are not the same.
    unmatched : dict
        The modules that only one set has, set by set.
    """

    sets: dict[str, UpdateSet]
    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    reordered: dict[str, set[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unmatched: dict[str, list[str]] = field(default_factory=dict)


def aligned(sets: Mapping[str, UpdateSet]) -> Aligned:
    """Match every set to those before it.

    Raises
    ------
    SourceError
        If no module is in two of them.
    """
    found = Aligned(_split_alike(sets))
    (first, reference), *others = found.sets.items()
    every = {name: {first: name} for name in reference.names}
    for name, updates in others:
        reference = _add(name, updates, reference, every, found)
    ordered = sorted(every, key=natural_key)
    found.modules = {module: every[module] for module in ordered if len(every[module]) > 1}
    found.unmatched = {
        name: [own for own in updates.names if {name: own} in every.values()]
        for name, updates in found.sets.items()
    }
    if not found.modules:
        raise _nothing_shared(sets)
    return found


def _add(
    name: str,
    updates: UpdateSet,
    reference: UpdateSet,
    every: dict[str, dict[str, str]],
    found: Aligned,
) -> UpdateSet:
    """Enter one set's modules; return the reference with those that it lacked."""
    pairs = pairing(reference, updates)
    for module, own in pairs.partners.items():
        every[module][name] = own
    for module in pairs.reordered:
        found.reordered.setdefault(module, set()).add(name)
    found.notes += [f"{name}: {note}" for note in pairs.notes]
    new: list[Site] = [updates.site(own) for own in pairs.unmatched_b if own not in every]
    every |= {site.module: {name: site.module} for site in new}
    return replace(reference, sites=(*reference.sites, *new))


def _split_alike(sets: Mapping[str, UpdateSet]) -> dict[str, UpdateSet]:
    joined = dict(sets)
    for a, b in combinations(sets, 2):
        joined[a], joined[b] = split_alike(joined[a], joined[b])
    return joined


def _nothing_shared(sets: Mapping[str, UpdateSet]) -> SourceError:
    return SourceError(
        "the sources have no module in common",
        where=", ".join(sets),
        expected="updates of the same modules of one model",
        got="; ".join(f"{name}: {', '.join(one.names[:2])}" for name, one in sets.items()),
        fix="look at them with rankscope info --modules",
    )
