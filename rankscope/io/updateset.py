"""UpdateSet: the updates of one source, named and described, their numbers still on disk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from torch import Tensor

from rankscope.errors import SourceError
from rankscope.io.containers.sliced import Block
from rankscope.io.model_config import ModelConfig
from rankscope.io.names import expert_number, kind_of, layer_of, natural_key
from rankscope.io.recipes import Recipe
from rankscope.io.save import save_adapter
from rankscope.io.tensors import TensorStore
from rankscope.io.weights import BaseWeights
from rankscope.updates import Update

__all__ = ["Site", "UpdateSet"]


@dataclass(frozen=True)
class Site:
    """One module that a source updates: what the header tells, and how to read the rest.

    Attributes
    ----------
    module : str
        Its name, without the prefixes of the library that saved it.
    shape : (int, int)
        ``(out, in)`` of ΔW.
    rank : int or None
        Of the factors; None for a dense update.
    scale : float or None
        What multiplies the product; None where the source does not tell.
    dtype : str
        Of the stored numbers.
    recipe : Recipe
        How its numbers are read.
    row_order : str
        How the rows of q and k stand: ``halves`` if in Hugging Face's order, ``rotary`` in
        Meta's, ``unknown`` where the source should tell and does not; else empty, as the name
        says.
    whole : Site or None
        The fused projection that this is a slice of, or the projection that this is a head of.
    block : Block or None
        Which rows or columns of `whole` it is.
    """

    module: str
    shape: tuple[int, int]
    rank: int | None
    scale: float | None
    dtype: str
    recipe: Recipe
    row_order: str = ""
    whole: Site | None = None
    block: Block | None = None

    @property
    def layer(self) -> int | None:
        """The block's number in the name, from 0."""
        return layer_of(self.module)

    @property
    def kind(self) -> str:
        """q, k, v, o, up, gate, down, embed, head or other."""
        return kind_of(self.module)

    @property
    def expert(self) -> int | None:
        """Which expert of its layer it is, from 0; None outside."""
        return expert_number(self.module)


@dataclass(frozen=True)
class UpdateSet:
    """The updates of one source, in natural order of their names; numbers are read on demand.

    Iterating yields `Update` objects, ``items()`` yields ``(name, update)``; each is read
    when it is reached and not kept. Sets made from files are picklable.

    Attributes
    ----------
    source : str
        Where it came from.
    format : str
        What was recognised: ``peft``, ``w_a/w_b``, ``pair``.
    sites : tuple of Site
        One per update.
    base : TensorStore or None
        The base weights, where there are any.
    records : callable
        What makes the `inputs`.
    unread : tuple of str
        Tensors that are no update, or that are not understood.
    notes : tuple of str
        What a reader of the numbers must know.
    config : dict
        What the source says of itself.
    alpha : float or None
        LoRA's alpha, where the user gave it.
    model : ModelConfig
        What the base model's ``config.json`` says of it; empty where there is none.
    split : str
        How fused projections were split: ``auto``, ``none`` or ``heads``.

    Examples
    --------
    >>> import torch
    >>> from rankscope.io.sources import open_updates
    >>> r = open_updates({"h.0.q.lora_A.weight": torch.ones(1, 3),
    ...                   "h.0.q.lora_B.weight": torch.ones(2, 1)}, alpha=1)
    >>> len(r), r.names, r["h.0.q"].shape
    (1, ['h.0.q'], (2, 3))
    """

    source: str
    format: str
    sites: tuple[Site, ...]
    base: TensorStore | None = None
    records: Callable[[], tuple[dict[str, Any], ...]] = field(default=tuple, repr=False)
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    alpha: float | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    split: str = "none"

    def __post_init__(self) -> None:
        twice = [name for name, n in Counter(s.module for s in self.sites).items() if n > 1]
        if twice:
            raise SourceError(
                "two updates of one source have the same name",
                where=self.source,
                expected="one update per module",
                got=f"several of {twice[0]!r}",
                fix="save the source again without the doubled tensors",
            )
        ordered = sorted(self.sites, key=lambda site: natural_key(site.module))
        object.__setattr__(self, "sites", tuple(ordered))

    def __len__(self) -> int:
        return len(self.sites)

    def __iter__(self) -> Iterator[Update]:
        return (site.recipe.build() for site in self.sites)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Update:
        return self.site(name).recipe.build()

    def __repr__(self) -> str:
        kinds = ", ".join(dict.fromkeys(site.kind for site in self.sites))
        return f"UpdateSet({self.source!r}: {len(self)} {self.format} updates of {kinds or '-'})"

    @cached_property
    def inputs(self) -> tuple[dict[str, Any], ...]:
        """Path, size and header hash of every file read, and of adapters that of the content.

        Made when it is first asked for: to hash a large adapter takes longer than to read it.
        """
        return self.records()

    @cached_property
    def _by_name(self) -> dict[str, Site]:
        return {site.module: site for site in self.sites}

    @property
    def names(self) -> list[str]:
        """The modules' names, in natural order."""
        return [site.module for site in self.sites]

    def items(self) -> Iterator[tuple[str, Update]]:
        """Yield ``(name, update)`` in natural order, one read at a time."""
        return ((site.module, site.recipe.build()) for site in self.sites)

    def site(self, name: str) -> Site:
        """Return what is known of one module without reading its numbers."""
        if name in self._by_name:
            return self._by_name[name]
        raise SourceError(
            "no such module",
            where=self.source,
            expected=f"one of {len(self)} modules, such as {', '.join(self.names[:3])}",
            got=repr(name),
            fix="list them with rankscope info --modules",
        )

    def only(self, name: str) -> UpdateSet:
        """Return the subset of one module, which is quick and travels light.

        Raises
        ------
        SourceError
            If there is no such module.
        """
        return replace(self, sites=(self.site(name),))

    def select(
        self,
        *,
        kind: str | Collection[str] | None = None,
        layer: int | Collection[int] | None = None,
        name: str | None = None,
        names: Collection[str] | None = None,
    ) -> UpdateSet:
        """Return the subset that meets every condition given.

        Parameters
        ----------
        kind : str or collection of str, optional
            Such as ``"q"`` or ``{"q", "v"}``.
        layer : int or collection of int, optional
            Such as ``range(8, 16)``.
        name : str, optional
            A pattern with ``*`` and ``?`` that the whole name must match.
        names : collection of str, optional
            The modules' names themselves.

        Returns
        -------
        UpdateSet
            Possibly empty.
        """
        tests: list[Callable[[Site], bool]] = []
        if kind is not None:
            kinds = {kind} if isinstance(kind, str) else set(kind)
            tests.append(lambda site: site.kind in kinds)
        if layer is not None:
            layers = {layer} if isinstance(layer, int) else set(layer)
            tests.append(lambda site: site.layer in layers)
        if name is not None:
            tests.append(lambda site: fnmatchcase(site.module, name))
        if names is not None:
            wanted = set(names)
            tests.append(lambda site: site.module in wanted)
        return replace(self, sites=tuple(s for s in self.sites if all(t(s) for t in tests)))

    def find(
        self,
        *,
        kind: str | None = None,
        layer: int | None = None,
        name: str | None = None,
    ) -> Update:
        """Return the one update that meets every condition given.

        Raises
        ------
        SourceError
            If none does, or several do.
        """
        found = self.select(kind=kind, layer=layer, name=name)
        if len(found) != 1:
            raise SourceError(
                "not exactly one update",
                where=self.source,
                expected=f"one with kind={kind}, layer={layer}, name={name}",
                got=f"{len(found)}: {', '.join(found.names[:4]) or 'none'}",
                fix="use more conditions, or select() for several",
            )
        return next(iter(found))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write low-rank updates as a PEFT adapter, see `rankscope.io.save.save_adapter`.

        Raises
        ------
        AdapterError
            If one of the updates is dense or cannot be a module of a PEFT adapter.
        OutputError
            If the folder cannot be written.
        """
        save_adapter(self, folder)

    def weight(self, name: str) -> Tensor:
        """Return the base weight W of a module, canonical (out, in), as it is stored.

        Of a slice the same rows of W; a base may keep projections apart that the source has
        fused, and the other way round.

        Raises
        ------
        SourceError
            If there is no base, or it lacks the module or has it in another shape.
        """
        site = self.site(name)
        if self.base is None:
            raise SourceError(
                "no base weights to read",
                where=self.source,
                expected="a source opened with its base",
                got="no base",
                fix="pass base=… (on the command line --base)",
            )
        if self.config.get("layer_replication") and self.base.label != self.source:
            raise SourceError(
                "the adapter counts its layers in a replicated stack, not in the base",
                where=self.base.label,
                expected="the weight of the base's layer that was replicated",
                got=f"layer_replication {self.config['layer_replication']!r:.60}",
                fix="give the live model, whose layers are replicated, or do without W",
            )
        return BaseWeights(self.base, self.model).weight(site)
