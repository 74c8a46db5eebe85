"""One front of all names for another: ``model.`` for ``model.language_model.`` and the like.

Learned from all modules of two sides at once, and only if nearly all follow: never a guess at
a single name.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from rankscope.io.names import TOWER, layer_of

__all__ = ["by_place", "learned_front", "moved"]

Shape = tuple[int, ...]
_Place = tuple[int | None, str]

# Names of one layer and ending by the dozen are a trap, no model.
_CROWD = 64
# So many names of a side propose a rewriting of all, and this share must follow it.
_SAMPLES = 8
_MOST = 0.95


def learned_front(a: Mapping[str, Shape], b: Mapping[str, Shape]) -> tuple[str, str] | None:
    """Return what all of A's names have in front, and what B's have there; None if unclear.

    Examples
    --------
    >>> learned_front({"h.0.q": (2, 2), "h.1.q": (2, 2)}, {"m.h.0.q": (2, 2), "m.h.1.q": (2, 2)})
    ('', 'm.')
    """
    groups = [by_place(side) for side in _layered(a, b)]
    comparable = [
        [name for place, names in ours.items() if place in theirs for name in names]
        for ours, theirs in (groups, groups[::-1])
    ]
    scores = {
        front: _followers({name: a[name] for name in comparable[0]}, b, *front)
        for front in _fronts(comparable, groups)
        if _is_plausible(*front)
    }
    best = max(scores.values(), default=0)
    winners = [front for front, score in scores.items() if score == best]
    if len(winners) != 1 or best < _MOST * _bearing(comparable, *winners[0]):
        return None
    # A single pair with two fronts would be one name guessed from another.
    return winners[0] if best > 1 or "" in winners[0] else None


def _layered(a: Iterable[str], b: Iterable[str]) -> list[list[str]]:
    """Return the names in numbered blocks, by which fronts are told; all, where there are none."""
    sides = [list(side) for side in (a, b)]
    layered = [[name for name in side if layer_of(name) is not None] for side in sides]
    return layered if all(layered) else sides


def _bearing(comparable: list[list[str]], old: str, new: str) -> int:
    """Return how many names must follow a rewriting: all of the side that only gains a front."""
    counts = [
        sum(name.startswith(front) for name in names)
        for front, names in zip((old, new), comparable, strict=True)
    ]
    if "" in (old, new):
        return counts[(old, new).index("")]
    return min(counts)


def by_place(names: Iterable[str]) -> dict[_Place, list[str]]:
    """Return the names by their layer and last segment, which no front changes."""
    found: dict[_Place, list[str]] = defaultdict(list)
    for name in names:
        found[layer_of(name), name.rpartition(".")[2]].append(name)
    return found


def _fronts(
    comparable: list[list[str]], groups: list[dict[_Place, list[str]]]
) -> list[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for side, names in enumerate(comparable):
        for name in names[:: -(-len(names) // _SAMPLES) or 1]:
            place = layer_of(name), name.rpartition(".")[2]
            for other in groups[1 - side].get(place, ())[:_CROWD]:
                pair = (name, other) if side == 0 else (other, name)
                counts[_split(*pair)] += 1
    return [front for front, _ in counts.most_common(_SAMPLES) if front[0] != front[1]]


def _split(a: str, b: str) -> tuple[str, str]:
    """Return what is before the last segments that two names share."""
    one, other = a.split("."), b.split(".")
    shared = 0
    while shared < min(len(one), len(other)) and one[-1 - shared] == other[-1 - shared]:
        shared += 1
    old, new = ("".join(f"{s}." for s in p[: len(p) - shared]) for p in (one, other))
    return old, new


def _is_plausible(old: str, new: str) -> bool:
    """Whether two fronts may lead to one model: one has all of the other's words, and no tower."""
    one, other = sorted((old.split("."), new.split(".")), key=len)
    words = iter(other)
    within = all(word in words for word in one)
    return within and not any(TOWER.match(word) or word.isdigit() for word in other)


def moved(path: str, old: str, new: str) -> str | None:
    """Return a name with another front; None if it does not have the old one."""
    return new + path.removeprefix(old) if path.startswith(old) else None


def _followers(a: Mapping[str, Shape], b: Mapping[str, Shape], old: str, new: str) -> int:
    return sum(b.get(moved(name, old, new) or "") == shape for name, shape in a.items())
