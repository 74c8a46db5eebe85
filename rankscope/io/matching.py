"""Which module of one source is which of another: by name, strongest evidence first.

Names are never compared by resemblance. A pair is two names with one spelling and one shape, or
all names of one side with another front; where two candidates remain there is no pair.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from rankscope.io.fronts import by_place, learned_front, moved
from rankscope.io.fused_layouts import canonical_slice
from rankscope.io.names import TOWER, bare_name, expert_of, layer_of
from rankscope.io.renames import Spelling, spell

__all__ = ["Catalogue", "Match", "Matching", "base_name", "catalogue", "match", "nearest"]

Shape = tuple[int, ...]

# Two names that share a flat spelling by the dozen are a trap, no model.
_CROWD = 64
# So many names, and so much of each, are compared by resemblance for a message.
_MANY, _LONG = 500, 200
_WORDS = {
    "bfl": "the original names of FLUX",
    "gguf": "llama.cpp's names",
    "ldm": "the original names of Stable Diffusion",
    "litgpt": "LitGPT's names",
    "torchtune": "torchtune's names",
    "transformers": "what transformers has renamed",
}


@dataclass(frozen=True)
class Match:
    """Two names of one module, and how that is known; no evidence where they are the same."""

    a: str
    b: str
    evidence: str = ""


@dataclass
class Matching:
    """The modules of two sources, paired.

    Attributes
    ----------
    pairs : dict
        From A's names to the matches, in A's order.
    mismatches : dict
        Modules of one name whose shapes differ, likewise.
    ambiguous : dict
        From A's names to the candidates among B's, where there are several.
    """

    pairs: dict[str, Match] = field(default_factory=dict)
    mismatches: dict[str, Match] = field(default_factory=dict)
    ambiguous: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Return a line for every kind of evidence, and for what remains unclear."""
        kinds: dict[str, list[Match]] = defaultdict(list)
        for match_ in self.pairs.values():
            kinds[match_.evidence].append(match_)
        notes = [
            f"{len(found)} names matched by {kind}: {found[0].a} is {found[0].b}"
            for kind, found in kinds.items()
            if kind
        ]
        for name, others in self.ambiguous.items():
            notes.append(f"{name} could be any of {', '.join(others)}: not matched")
            break
        return notes


def match(a: Mapping[str, Shape], b: Mapping[str, Shape]) -> Matching:
    """Pair the modules of two sources.

    Tried in this order, each on what is left: the same name; one spelling (what transformers
    has renamed, llama.cpp's, torchtune's and LitGPT's names, the original ones of Stable
    Diffusion and FLUX); flat names by look-up; one front of all names for another, of the
    names and then of the spellings.

    Parameters
    ----------
    a, b : mapping
        From the modules' names to their shapes.

    Returns
    -------
    Matching
        Never a pair of two shapes; the same pairs whichever side is called A.

    Examples
    --------
    >>> match({"model.layers.0.self_attn.v_proj": (4, 8)}, {"blk.0.attn_v": (4, 8)}).notes()
    ["1 names matched by llama.cpp's names: model.layers.0.self_attn.v_proj is blk.0.attn_v"]
    """
    return _Search(a, b).run()


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Return the names that look most like one, for messages; they prove nothing."""
    paths = {other: spell(other).path[-_LONG:] for other in names}
    path = spell(name).path[-_LONG:]
    same = [o for o, p in paths.items() if layer_of(p) == layer_of(path)]
    tried = list(dict.fromkeys((*same, *paths)))[:_MANY]
    scores = {o: difflib.SequenceMatcher(None, paths[o], path).ratio() for o in tried}
    return sorted(tried, key=lambda other: (-scores[other], other))[:count]


class _Search:
    """The modules of two sides that have no partner yet."""

    def __init__(self, a: Mapping[str, Shape], b: Mapping[str, Shape]) -> None:
        self.shapes = (a, b)
        self.rest = [dict.fromkeys(a), dict.fromkeys(b)]
        self.found = Matching()
        self.unfit: dict[str, Match] = {}

    def run(self) -> Matching:
        self.exact()
        for keys, compatible in _LEVELS:
            self.level(keys, compatible)
        self.front(lambda name: spell(name).bare, "another front of all names")
        self.front(lambda name: spell(name).path, "their spelling and another front of all names")
        return self.result()

    def result(self) -> Matching:
        rest_a, rest_b = self.rest
        found, order = self.found, self.shapes[0]
        taken = Counter(unfit.b for unfit in self.unfit.values())
        found.mismatches |= {
            name: unfit
            for name, unfit in self.unfit.items()
            if name in rest_a and unfit.b in rest_b and taken[unfit.b] == 1
        }
        return Matching(
            {n: found.pairs[n] for n in order if n in found.pairs},
            {n: found.mismatches[n] for n in order if n in found.mismatches},
            {n: others for n, others in found.ambiguous.items() if n in rest_a},
        )

    def add(self, a: str, b: str, evidence: str) -> None:
        one, other = (shapes[name] for shapes, name in zip(self.shapes, (a, b), strict=True))
        pairs = self.found.pairs if one == other else self.found.mismatches
        pairs[a] = Match(a, b, evidence)
        del self.rest[0][a], self.rest[1][b]

    def exact(self) -> None:
        theirs = {spell(name).bare: name for name in self.rest[1]}
        for name in list(self.rest[0]):
            other = name if name in self.rest[1] else theirs.get(spell(name).bare)
            if other is not None and other in self.rest[1]:
                self.add(name, other, "")

    def level(self, keys: _Keys, compatible: Callable[[Spelling, Spelling], bool]) -> None:
        """Pair what has one key on both sides, once it is certain."""
        ours = self.candidates(keys, compatible)
        theirs: dict[str, list[str]] = defaultdict(list)
        for name, others in ours.items():
            for other in others:
                theirs[other].append(name)
        for name, others in ours.items():
            fitting = [o for o in others if self.fits(name, o)]
            rivals = [n for o in fitting for n in theirs[o] if self.fits(n, o)]
            if len(fitting) == 1 == len(rivals):
                self.add(name, fitting[0], _evidence(name, fitting[0]))
            elif fitting:
                self.found.ambiguous.setdefault(name, tuple(fitting))
            elif len(others) == 1 == len(theirs[others[0]]):
                unfit = Match(name, others[0], _evidence(name, others[0]))
                self.unfit.setdefault(name, unfit)

    def fits(self, a: str, b: str) -> bool:
        return self.shapes[0][a] == self.shapes[1][b]

    def candidates(
        self, keys: _Keys, compatible: Callable[[Spelling, Spelling], bool]
    ) -> dict[str, list[str]]:
        index = _index(self.rest[1], keys)
        found = {name: _look_up(name, index, keys, compatible) for name in self.rest[0]}
        return {name: others for name, others in found.items() if others}

    def front(self, spelled: Callable[[str], str], evidence: str) -> None:
        sides = [{spelled(name): name for name in shapes} for shapes in self.shapes]
        if any(len(side) < len(shapes) for side, shapes in zip(sides, self.shapes, strict=True)):
            return
        rewriting = learned_front(
            *({p: shapes[n] for p, n in side.items()}
              for side, shapes in zip(sides, self.shapes, strict=True))
        )  # fmt: skip
        if rewriting is None:
            return
        old, new = rewriting
        shown = f"{evidence}, {new or 'nothing'} for {old or 'nothing'}"
        for path, name in sides[0].items():
            other = sides[1].get(moved(path, old, new) or "")
            if other in self.rest[1] and name in self.rest[0] and self.fits(name, other):
                self.add(name, other, shown)


_Keys = Callable[[Spelling], Collection[object]]


def _same_model(one: Spelling, other: Spelling) -> bool:
    return not one.component or not other.component or one.component == other.component


def _one_is_flat(one: Spelling, other: Spelling) -> bool:
    return (one.is_flat or other.is_flat) and _same_model(one, other)


# Keys that two names of one module share, and what else must hold; strongest first.
_LEVELS: tuple[tuple[_Keys, Callable[[Spelling, Spelling], bool]], ...] = (
    (lambda s: [(s.component, s.path)], _same_model),
    (lambda s: [s.path], _same_model),
    (lambda s: s.flats, _one_is_flat),
)


def _index(names: Iterable[str], keys: _Keys) -> dict[object, list[str]]:
    index: dict[object, list[str]] = defaultdict(list)
    for name in names:
        for key in keys(spell(name)):
            index[key].append(name)
    return index


def _look_up(
    name: str,
    index: Mapping[object, list[str]],
    keys: _Keys,
    compatible: Callable[[Spelling, Spelling], bool],
) -> list[str]:
    own = spell(name)
    found = dict.fromkeys(o for key in keys(own) for o in index.get(key, ())[:_CROWD])
    return [other for other in found if compatible(own, spell(other))]


def _evidence(a: str, b: str) -> str:
    one, other = spell(a), spell(b)
    words = [_WORDS[s] for s in sorted({one.scheme, other.scheme} - {""})]
    if one.is_flat != other.is_flat:
        words.append("flat names, looked up")
    if any(canonical_slice(name) != name for name in (one.bare, other.bare)):
        words.append("projections that one side has fused")
    return " and ".join(words) or "the part of the pipeline"


# One module among a base's tensors -----------------------------------------------------------


class Catalogue:
    """The tensors of a base, to be looked up by the names of modules.

    Examples
    --------
    >>> Catalogue(["blk.0.attn_v.weight"]).find("model.layers.0.self_attn.v_proj")
    'blk.0.attn_v.weight'
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.stored: dict[str, str] = {}
        for name in names:
            module = bare_name(name).removesuffix(".weight")
            if module not in self.stored or name.endswith(".weight"):
                self.stored[module] = name

    @cached_property
    def _indices(self) -> list[dict[object, list[str]]]:
        return [_index(self.stored, keys) for keys, _ in _LEVELS]

    @cached_property
    def _places(self) -> dict[tuple[int | None, str], list[str]]:
        return by_place(self.stored)

    def find(self, module: str, fits: Callable[[str], bool] = lambda _: True) -> str | None:
        """Return the tensor that is a module's weight; None if it is not certain."""
        found = self.candidates(module, fits)
        return found[0] if len(found) == 1 else None

    def candidates(self, module: str, fits: Callable[[str], bool]) -> list[str]:
        """Return the tensors that the strongest evidence gives, of those that fit."""
        for modules in self._evidence(spell(module).bare):
            found = [n for m in modules if fits(n := self.stored[m])]
            if found:
                return found
        return []

    def expert(self, module: str) -> tuple[str, int | None] | None:
        """Return the tensor that holds a module's weight, and which of its stack it is."""
        whole = self.find(module)
        stack, index = expert_of(spell(module).path)
        if whole is not None or index is None:
            return None if whole is None else (whole, None)
        found = self.find(expert_of(module)[0]) or self.find(stack)
        return None if found is None else (found, index)

    def _evidence(self, module: str) -> Iterator[list[str]]:
        yield [module] if module in self.stored else []
        for index, (keys, compatible) in zip(self._indices, _LEVELS, strict=True):
            yield _look_up(module, index, keys, compatible)
        place = layer_of(module), module.rpartition(".")[2]
        yield [m for m in self._places.get(place, ()) if _one_ends_the_other(m, module)]


@lru_cache(maxsize=8)
def _catalogue(names: tuple[str, ...]) -> Catalogue:
    return Catalogue(names)


def catalogue(names: Iterable[str]) -> Catalogue:
    """Return the catalogue of these names; the same object while they are the same."""
    return _catalogue(tuple(names))


def base_name(module: str, names: Iterable[str]) -> str | None:
    """Return which of a base's tensor names is a module's weight; None if it is not certain.

    The module's own name is best; then what another library calls it; else the one path in
    the same layer that ends with the other, as where an adapter was saved from an inner or
    outer model. One tower of a model of several is not the whole: ``vision_model.layers.0.q``
    is not ``layers.0.q``.

    Examples
    --------
    >>> base_name("h.0.q", ["model.h.0.q.weight", "model.h.1.q.weight"])
    'model.h.0.q.weight'
    """
    return catalogue(names).find(module)


def _one_ends_the_other(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    if not long.endswith(f".{short}"):
        return False
    before = long.removesuffix(f".{short}").split(".")
    return not any(TOWER.match(segment) for segment in before)
