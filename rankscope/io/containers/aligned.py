"""Checkpoints as lists of matrices, under names that two of them share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import final

from typing_extensions import override

from rankscope.io.containers.lens import Lens, Part
from rankscope.io.containers.store import TensorInfo, TensorStore

__all__ = ["Aligned", "Prefix", "common_names", "is_stack"]

# How a base's names become the tuned checkpoint's: taken from the front, then put there.
Prefix = tuple[str, str]
_SAME: Prefix = ("", "")
_EXPERTS = re.compile(r"(^|[._])experts([._]|$)")
# So many names, and so many prefixes before them, are tried.
_SAMPLES = 8


@final
class Aligned(Lens):
    """A checkpoint whose convolutions are matrices and whose stacked experts stand alone.

    Parameters
    ----------
    store : TensorStore
        The checkpoint.
    prefix : (str, str)
        What every name loses at its front, and what it gets instead.
    rows : mapping, optional
        How many of the first rows count, by the new name.
    names : mapping, optional
        What single tensors are called instead, by the name that they have by then.
    stacked : bool
        Whether stacks of experts stay whole.
    """

    def __init__(
        self,
        store: TensorStore,
        prefix: Prefix = _SAME,
        rows: Mapping[str, int] | None = None,
        names: Mapping[str, str] | None = None,
        *,
        stacked: bool = False,
    ) -> None:
        super().__init__(store)
        self.prefix = prefix
        self.rows = rows or {}
        self.names = names or {}
        self.stacked = stacked

    @cached_property
    @override
    def parts(self) -> Mapping[str, Part]:
        parts: dict[str, Part] = {}
        for stored, info in self.store.tensors.items():
            name = _renamed(stored, self.prefix)
            if not is_stack(name, info):
                flat = len(info.shape) > 2 and name.endswith(".weight") and info.floating
                name = self.names.get(name, name)
                parts[name] = Part(stored, rows=self.rows.get(name), flat=flat)
            elif self.stacked:
                parts[name] = Part(stored)
            else:
                experts = {f"{name}[{e}]": e for e in range(info.shape[0])}
                parts |= {self.names.get(n, n): Part(stored, index=e) for n, e in experts.items()}
        return parts


def is_stack(name: str, info: TensorInfo) -> bool:
    """Whether a tensor is the matrices of all experts of a layer, (expert, out, in)."""
    # Without the last test ten bytes could declare a billion experts, all of them empty.
    named = _EXPERTS.search(name) is not None
    return named and len(info.shape) == 3 and info.floating and 0 not in info.shape


def common_names(tuned: TensorStore, base: TensorStore) -> Prefix:
    """Return the one rewriting of all the base's names under which most tensors meet.

    The names as they are win unless a prefix brings more tensors of one shape together, at
    least half of all that the smaller side has; two equally good prefixes decide nothing.

    Examples
    --------
    >>> import torch
    >>> from rankscope.io.tensors import StateDict
    >>> tuned = StateDict({"model.h.0.q": torch.ones(2, 2)}, "tuned")
    >>> common_names(tuned, StateDict({"h.0.q": torch.ones(2, 2)}, "base"))
    ('', 'model.')
    """
    scores = {p: _meeting(tuned, base, p) for p in {_SAME, *_candidates(tuned, base)}}
    best = max(scores.values())
    winners = [prefix for prefix, score in scores.items() if score == best]
    enough = 2 * best >= min(len(_matrices(tuned)), len(_matrices(base)))
    return winners[0] if len(winners) == 1 and enough else _SAME


def _candidates(tuned: TensorStore, base: TensorStore) -> set[Prefix]:
    lacking = {("", prefix) for prefix in _prefixes(tuned, base)}
    return lacking | {(prefix, "") for prefix in _prefixes(base, tuned)}


def _prefixes(longer: TensorStore, shorter: TensorStore) -> list[str]:
    """Return what stands most often before some of the shorter names in the longer ones."""
    samples = sorted(_matrices(shorter), key=len)[-_SAMPLES:]
    found = Counter(
        name.removesuffix(sample)
        for sample in samples
        for name in longer.tensors
        if name.endswith(f".{sample}")
    )
    return [prefix for prefix, _ in found.most_common(_SAMPLES)]


def _meeting(tuned: TensorStore, base: TensorStore, prefix: Prefix) -> int:
    """Return how many matrices have one name and shape; -1 if two would get one name."""
    renamed = {_renamed(name, prefix): info.shape for name, info in base.tensors.items()}
    if len(renamed) < len(base.tensors):
        return -1
    return sum(renamed.get(name) == shape for name, shape in _matrices(tuned).items())


def _matrices(store: TensorStore) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in store.tensors.items() if len(info.shape) > 1}


def _renamed(name: str, prefix: Prefix) -> str:
    old, new = prefix
    return new + name.removeprefix(old)
