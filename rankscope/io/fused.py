"""Fused projections as what they are: q, k and v, gate and up, and heads of attention."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from rankscope.errors import SourceError
from rankscope.io.adapters.loralib import merged_linear, merged_part
from rankscope.io.containers.sliced import Block, Sliced
from rankscope.io.fused_layouts import (
    Layout,
    canonical_slice,
    is_fused,
    layout_of,
    split_names,
    told_of,
)
from rankscope.io.model_config import ModelConfig
from rankscope.io.names import expert_of
from rankscope.io.recipes import Cut, Difference, Formula, Joined, Recipe, Stored
from rankscope.io.updateset import Site, UpdateSet
from rankscope.io.weights import BaseWeights

__all__ = [
    "canonical_slice",
    "check_split",
    "rejoined",
    "split_alike",
    "split_fused",
    "split_names",
]

_SPLITS = ("auto", "none", "heads")

_FUSED_LEFT = "{} fused projections stay whole ({}): {}"
_HEADS_LEFT = "{} projections are not split by head ({}): {}"
_CROSSING = (
    "the adapter leaves out one run of rows (enable_lora), but here q, k and v lie together head "
    "by head: of some heads nothing is updated, of the others k too"
)
_NO_HEADS = "no config.json beside the base tells the number of heads"


def split_fused(updates: UpdateSet) -> UpdateSet:
    """Return a set whose fused projections are split, as its own `split` and `model` say.

    A slice bears the fused projection's name and ``.q``, ``.k``, ``.v``, ``.gate`` or
    ``.up`` behind it; a head ``[head 3]``. Factors stay factors. Where nothing tells how
    the rows are shared out the projection stays as it is, and a note says so.

    Parameters
    ----------
    updates : UpdateSet
        As it was read; `split` is ``auto``, ``none`` or ``heads``.

    Returns
    -------
    UpdateSet

    Examples
    --------
    >>> import torch
    >>> from rankscope.io.sources import open_updates
    >>> A, B = torch.ones(1, 2), torch.arange(6.0)[:, None]
    >>> lora = {"h.0.c_attn.lora_A.weight": A, "h.0.c_attn.lora_B.weight": B}
    >>> updates = open_updates(lora, alpha=1)
    >>> updates.names, updates["h.0.c_attn.k"].up.flatten().tolist()
    (['h.0.c_attn.k', 'h.0.c_attn.q', 'h.0.c_attn.v'], [2.0, 3.0])
    >>> open_updates(lora, alpha=1, split="none").names
    ['h.0.c_attn']
    """
    if updates.split == "none":
        return updates
    sites, notes = _each_split(updates)
    if updates.split == "heads":
        sites, more = _each_by_head(sites, updates.model)
        notes += more
    split = replace(updates, sites=tuple(sites), notes=(*updates.notes, *notes))
    record = updates.model.record
    if record is None or all(site.whole is None for site in sites):
        return split
    return replace(split, records=partial(_and, updates.records, record))


def _and(
    records: Callable[[], tuple[dict[str, Any], ...]], record: dict[str, Any]
) -> tuple[dict[str, Any], ...]:
    return (*records(), record)


def split_alike(a: UpdateSet, b: UpdateSet) -> tuple[UpdateSet, UpdateSet]:
    """Return two sets with every slice joined again whose projection the other has whole.

    The layout may be known for one of them only, by its base.
    """
    return _joined_as(a, b), _joined_as(b, a)


def rejoined(sites: Iterable[Site]) -> list[Site]:
    """Return sites of new factors with wholes that are these factors put together.

    Parameters
    ----------
    sites : iterable of Site
        Slices and heads among them, whose `whole` is still that of the old update.
    """
    alone: list[Site] = []
    parts: dict[str, list[Site]] = {}
    for site in sites:
        (parts.setdefault(site.whole.module, []) if site.whole else alone).append(site)
    if not parts:
        return alone
    wholes = {whole.module: whole for whole in rejoined(map(_of_parts, parts.values()))}
    split = [replace(part, whole=wholes[name]) for name, of_it in parts.items() for part in of_it]
    return alone + split


def _of_parts(parts: Sequence[Site]) -> Site:
    whole = parts[0].whole
    assert whole is not None  # of a part
    blocks = tuple((part.block, part.recipe) for part in parts if part.block is not None)
    rank = sum(part.rank or 0 for part in parts)
    recipe = Joined(whole.shape, blocks)
    return replace(whole, rank=rank, scale=1.0, dtype=parts[0].dtype, recipe=recipe)


def _joined_as(updates: UpdateSet, other: UpdateSet) -> UpdateSet:
    wholes = {site.module: _whole_in(other, site) for site in updates.sites}
    have = Counter[str]()
    for site in updates.sites:
        have[wholes[site.module].module] += math.prod(site.shape)
    sites = {}
    for site in updates.sites:
        whole = wholes[site.module]
        # Some slices alone were selected: the whole is not meant.
        kept = whole if have[whole.module] == math.prod(whole.shape) else site
        sites[kept.module] = kept
    return replace(updates, sites=tuple(sites.values()))


def _whole_in(other: UpdateSet, site: Site) -> Site:
    """Return the nearest whole of a slice that another set has, itself if there is none."""
    found: Site | None = site
    while found is not None and found.module not in other:
        found = found.whole
    return found or site


def check_split(split: str) -> str:
    """Return it, or raise a `SourceError` if there is no such way to split."""
    if split not in _SPLITS:
        raise SourceError(
            "fused projections cannot be split in this way",
            where="open_updates(split=…)",
            expected=f"one of {', '.join(_SPLITS)}",
            got=repr(split),
            fix="choose one of them",
        )
    return split


def _each_split(updates: UpdateSet) -> tuple[list[Site], list[str]]:
    base = updates.base
    # Once per stack: many experts share one, and to look it up takes a while.
    straight = cache(lambda stack: base and BaseWeights(base, updates.model).is_straight(stack))
    sites: list[Site] = []
    left: dict[str, list[str]] = {}
    crossing = False
    for site in updates.sites:
        layout = _layout(site, updates, straight) if is_fused(site.module) else None
        if isinstance(layout, Layout):
            sites += _slices(site, layout)
            crossing = crossing or _crosses(site, layout)
            continue
        sites.append(site)
        if layout is not None:
            left.setdefault(layout, []).append(site.module)
    return sites, _said(_FUSED_LEFT, left) + [_CROSSING] * crossing


def _layout(site: Site, updates: UpdateSet, straight: Callable[[str], object]) -> Layout | str:
    merged, (stack, expert) = _merged(site), expert_of(site.module)
    if merged is not None and updates.format == "litgpt":
        return Layout(1, tuple(zip("qkv", merged.options["rows"], strict=True)))
    known = expert is not None and not updates.model and bool(straight(stack))
    return layout_of(site.module, site.shape, updates.model, straight=known)


def _crosses(site: Site, layout: Layout) -> bool:
    """Whether an adapter left out a run of rows that is not one of q, k and v."""
    merged = _merged(site)
    return merged is not None and layout.groups > 1 and not all(merged.options["enabled"])


def _slices(site: Site, layout: Layout) -> list[Site]:
    parts = [_part(site, f"{site.module}.{name}", b) for name, b in layout.blocks.items()]
    rows = tuple(count for _, count in layout.parts)
    merged = _merged(site)
    if merged is None or layout.groups > 1 or merged.options["rows"] != rows:
        return parts
    # One pair of factors per part: its own rank is not that of the whole.
    enabled = merged.options["enabled"]
    rank = (site.rank or 0) // sum(enabled)
    alone = [
        replace(merged, function=merged_part, options={**merged.options, "part": index})
        for index in range(len(parts))
    ]
    return [
        replace(part, rank=rank if used else 0, recipe=recipe)
        for part, used, recipe in zip(parts, enabled, alone, strict=True)
    ]


def _merged(site: Site) -> Formula | None:
    recipe = site.recipe
    merged = isinstance(recipe, Formula) and recipe.function is merged_linear
    return recipe if merged and isinstance(recipe, Formula) else None


def _part(site: Site, module: str, block: Block) -> Site:
    return replace(
        site,
        module=module,
        shape=block.shape(site.shape),
        recipe=_cut(site.recipe, block),
        whole=site,
        block=block,
    )


def _cut(recipe: Recipe, block: Block) -> Recipe:
    """Return how a part is read: matrices are cut where they are stored, all else as it is built.

    So the difference of two checkpoints stays one, of these rows alone.
    """
    if not isinstance(recipe, Difference | Stored):
        return Cut(recipe, block)
    stored = block.T if recipe.transposed else block
    if isinstance(recipe, Stored):
        return replace(recipe, store=Sliced(recipe.store, recipe.name, stored))
    tuned, base = (Sliced(store, recipe.name, stored) for store in (recipe.tuned, recipe.base))
    return replace(recipe, tuned=tuned, base=base)


def _each_by_head(sites: Iterable[Site], model: ModelConfig) -> tuple[list[Site], list[str]]:
    found: list[Site] = []
    left: dict[str, list[str]] = {}
    for site in sites:
        blocks = _head_blocks(site, model) if site.kind in ("q", "k", "v", "o") else "other"
        if isinstance(blocks, str):
            found.append(site)
            if blocks != "other":
                left.setdefault(blocks, []).append(site.module)
        else:
            found += [_part(site, f"{site.module}[head {n}]", b) for n, b in enumerate(blocks)]
    return found, _said(_HEADS_LEFT, left)


def _head_blocks(site: Site, model: ModelConfig) -> list[Block] | str:
    """Return the rows of each head of q, k or v, the columns of each of o; or why not."""
    told = told_of(site.module, model)
    heads = told.kv_heads if site.kind in ("k", "v") else told.heads
    size = told.head_size
    if heads is None or size is None:
        return _NO_HEADS
    columns = site.kind == "o"
    have = site.shape[1 if columns else 0]
    if have != heads * size:
        return f"{heads} heads of {size} do not give {have} {'columns' if columns else 'rows'}"
    return [Block(1, n * size, (n + 1) * size, columns) for n in range(heads)]


def _said(text: str, left: dict[str, list[str]]) -> list[str]:
    return [
        text.format(len(names), ", ".join(names[:2]) + (" …" if len(names) > 2 else ""), why)
        for why, names in left.items()
    ]
