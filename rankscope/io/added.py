"""Updates added to their base weights, tensor by tensor as the base stores them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from rankscope.errors import SourceError
from rankscope.io.containers.aligned import Aligned
from rankscope.io.containers.lens import Lens, Part
from rankscope.io.containers.sliced import Block
from rankscope.io.names import bare_name
from rankscope.io.recipes import Cut
from rankscope.io.renames import spell
from rankscope.io.tensors import TensorStore
from rankscope.io.updateset import Site, UpdateSet

__all__ = ["added"]


def added(updates: UpdateSet) -> dict[str, Tensor]:
    """Return every weight that some updates change, with them added to it.

    Each has the orientation, shape and dtype in which the base stores it, and the name
    ``module.weight``. Where the base stores it otherwise, in one tensor with others or in
    several, and where the module's name is another library's, its name is the base's. A fused
    projection or a stack of experts is one tensor; its parts that nothing updates stay as they
    are.

    Parameters
    ----------
    updates : UpdateSet
        With their base.

    Raises
    ------
    SourceError
        If there is no base, it lacks a weight, or two updates change one.

    Examples
    --------
    >>> from rankscope.io.sources import open_updates
    >>> lora = {"h.0.c_attn.lora_A.weight": torch.ones(1, 1),
    ...         "h.0.c_attn.lora_B.weight": torch.tensor([[1.0], [2.0], [3.0]])}
    >>> base = {"h.0.c_attn.weight": torch.zeros(1, 3)}  # (in, out), as GPT-2 has it
    >>> updates = open_updates(lora, base, alpha=1)
    >>> updates.names
    ['h.0.c_attn.k', 'h.0.c_attn.q', 'h.0.c_attn.v']
    >>> added(updates)
    {'h.0.c_attn.weight': tensor([[1., 2., 3.]])}
    """
    places = None if updates.base is None else _Places(updates.base)
    numbered = replace(updates, base=places, sites=tuple(map(_looked_up, updates.sites)))
    found: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    changed = Counter[str]()
    for site in numbered.sites:
        positions, matrix = numbered.weight(site.module), site.recipe.build().dense()
        assert places is not None  # weight() has read it
        for stored, inside, at in places.told(positions):
            if stored not in found:
                found[stored] = places.copied(stored)
            whole = found[stored]
            names.setdefault(stored, _named(site, stored, whole.numel()))
            changed[stored] += len(at)
            _check_once(changed[stored], whole, site.module, places.label)
            flat = whole.view(-1)
            flat[at] = (flat[at].double() + matrix[inside]).to(whole.dtype)
    return {names[stored]: whole for stored, whole in found.items()}


def _named(site: Site, stored: str, count: int) -> str:
    """Return the name of a stored weight of `count` numbers that a module or its whole is."""
    while site.whole is not None:
        site = site.whole
    spelling = spell(site.module)
    alone = stored.endswith(".weight") and math.prod(site.shape) == count
    # PEFT has its names from the live model; those of files for other programs name no tensor.
    models = not spelling.is_flat and not spelling.scheme
    return f"{site.module}.weight" if alone and models else bare_name(stored)


def _looked_up(site: Site) -> Site:
    """Return a site whose W is looked up in the base, be it a difference of two checkpoints."""
    return replace(site, recipe=Cut(site.recipe, Block(1, 0, site.shape[0])))


@final
class _Places(Lens):
    """A base that shows where each number is stored instead of the number itself.

    Whatever is read through it, turned, cut or joined, tells where its numbers belong.
    """

    def __init__(self, base: TensorStore) -> None:
        aligned = base if isinstance(base, Aligned) else None
        super().__init__(base if aligned is None else aligned.store)
        self._aligned = aligned
        counts = [info.parameters for info in self.store.tensors.values()]
        # One after the other, so that a position also says in which tensor it is.
        self._starts = dict(zip(self.store.tensors, accumulate(counts, initial=0), strict=False))
        self._asked: list[str] = []
        self._last = ("", torch.empty(0))

    @cached_property
    @override
    def parts(self) -> Mapping[str, Part]:
        if self._aligned is not None:
            return self._aligned.parts
        return {name: Part(name) for name in self.store.tensors}

    @override
    def read(self, name: str) -> Tensor:
        self._asked.append(name)
        start, stop = self._range(name)
        part = self.parts[name]
        if self._last[0] != part.name:  # experts of one stack come one after the other
            shape = self.store.tensors[part.name].shape
            self._last = (part.name, torch.arange(start, stop).view(shape))
        return part.cut(self._last[1])

    def told(self, positions: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield which tensors a weight just read lies in, which of its numbers, and where."""
        asked, self._asked = dict.fromkeys(self._asked), []
        for name in asked:
            start, stop = self._range(name)
            inside = (positions >= start) & (positions < stop)
            if inside.any():
                yield name, inside, positions[inside] - start

    def copied(self, name: str) -> Tensor:
        """Return a tensor as it is stored, to be changed."""
        stored = self.store.read(self.parts[name].name)
        return stored.clone(memory_format=torch.contiguous_format)

    def _range(self, name: str) -> tuple[int, int]:
        stored = self.parts[name].name
        start = self._starts[stored]
        return start, start + self.store.tensors[stored].parameters


def _check_once(count: int, whole: Tensor, module: str, label: str) -> None:
    """Raise where more numbers are changed than there are, as of a head tied to its embedding."""
    if count > whole.numel():
        raise SourceError(
            "two updates change one stored weight",
            where=f"{label}, {module}",
            expected="a weight of its own for every update",
            got="a weight that the base stores once for two modules",
            fix="leave one of them out with select(), or give a base that stores both",
        )
