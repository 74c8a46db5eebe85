"""What every PEFT method's reader is given, and the checks that they share."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from rankscope.errors import AdapterError
from rankscope.io.adapters.family import Context
from rankscope.io.adapters.peft_config import Config
from rankscope.io.adapters.peft_keys import Keys, Part
from rankscope.io.names import stored_transposed
from rankscope.io.recipes import Weight
from rankscope.io.tensors import TensorStore

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """One reading: the context, the configuration, the names, and notes as they come.

    Attributes
    ----------
    context : Context
    config : Config
    keys : Keys
    notes : dict
        Ordered and without repetition; the values say nothing.
    """

    context: Context
    config: Config
    keys: Keys
    notes: dict[str, None] = field(default_factory=dict)

    @property
    def store(self) -> TensorStore:
        """The adapter's tensors."""
        return self.context.store

    @property
    def own_base(self) -> bool:
        """Whether the base, if any, is what lies beside the adapter."""
        return self.context.base is None or self.context.base is self.store

    @cached_property
    def base_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the base's tensors by their names; empty without a base."""
        base = self.context.base
        return {} if base is None else {name: i.shape for name, i in base.tensors.items()}

    def note(self, text: str) -> None:
        """Add a note, once."""
        self.notes[text] = None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self.store.tensors[name].shape

    def flat(self, name: str) -> tuple[int, int]:
        """Return the shape of a whole matrix, a kernel flattened into its second dimension.

        Raises
        ------
        AdapterError
            If it has fewer than two dimensions, or an empty one.
        """
        shape = self.shape(name)
        if len(shape) < 2 or 0 in shape:
            raise self.wrong(name, "two dimensions or a convolution's, none of them 0")
        return shape[0], math.prod(shape[1:])

    def matrix(self, name: str) -> tuple[int, int]:
        """Return a factor's shape.

        Raises
        ------
        AdapterError
            If it has not two dimensions, or an empty one.
        """
        shape = self.shape(name)
        if len(shape) != 2 or 0 in shape:
            raise self.wrong(name, "two dimensions, none of them 0")
        return shape[0], shape[1]

    def wrong(self, name: str, expected: str) -> AdapterError:
        """Return the error for a tensor whose shape does not fit."""
        return AdapterError(
            "a tensor of the adapter has a shape that does not fit",
            where=f"{self.store.label}, tensor {name!r}",
            expected=expected,
            got=f"shape {self.shape(name)}",
            fix="save it again; gather sharded weights before saving",
        )

    def only(self, part: Part, needed: Collection[str], also: Collection[str] = ()) -> None:
        """Check which parameters a module has.

        Raises
        ------
        AdapterError
            If one of `needed` is missing, or there is one that is in neither list.
        """
        have = set(part.tensors)
        if not set(needed) <= have or not have <= {*needed, *also}:
            raise AdapterError(
                "the tensors of a module do not belong together",
                where=f"{self.store.label}, module {part.module!r}",
                expected=" and ".join(needed) + (f", maybe {', '.join(also)}" if also else ""),
                got=", ".join(sorted(have)),
                fix="save the adapter again; part of it is missing or of another method",
            )

    def weight(
        self, module: str, why: str, out: int | None = None, in_: int | None = None
    ) -> tuple[Weight, tuple[int, int]]:
        """Return where a module's base weight lies, and its canonical shape (out, in).

        Raises
        ------
        AdapterError
            If there is no base, or its shape is not (`out`, `in_`) either way round.
        """
        found = self.context.weight(module, why)
        info = found.store.tensors[found.name]
        shape = (info.shape[0] if info.shape else 0, math.prod(info.shape[1:]))
        ways = [(shape, False), (shape[::-1], True)] if len(info.shape) == 2 else [(shape, False)]
        if stored_transposed(found.name, self.base_shapes):
            ways.reverse()
        if out is None or in_ is None:
            # One length fits the other way round too easily; only the name is evidence then.
            ways = ways[:1]
        for (rows, columns), transposed in ways:
            if out in (None, rows) and in_ in (None, columns) and info.floating:
                return Weight(found.store, found.name, transposed), (rows, columns)
        raise AdapterError(
            "the base weight does not fit the adapter",
            where=f"{found.store.label}, tensor {found.name!r}",
            expected=f"floating numbers, out {out or 'any'} and in {in_ or 'any'}",
            got=f"{info.dtype} of shape {info.shape}",
            fix="give the base that this adapter was trained on",
        )

    def named(self, part: Part, letters: Mapping[str, str]) -> dict[str, str]:
        """Return the names of a module's tensors by a formula's argument names."""
        return {
            argument: part.tensors[parameter]
            for argument, parameter in letters.items()
            if parameter in part.tensors
        }
