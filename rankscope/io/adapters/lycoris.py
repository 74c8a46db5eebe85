"""What the header tells of one kohya or LyCORIS module: method, shape, rank and scale.

LoRA and LoCon (also Tucker), LoHa, LoKr, full differences, GLoRA in both layouts, Diag-OFT,
BOFT, IA3, and DoRA on the first three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rankscope.io.adapters import lycoris_formulas as formulas
from rankscope.io.adapters.lycoris_parts import Parts
from rankscope.io.adapters.products import hadamard, kronecker
from rankscope.updates import Update

__all__ = ["METHODS", "Draft", "Method", "draft_of"]


@dataclass(frozen=True)
class Draft:
    """An update whose base weight is not looked up yet.

    Attributes
    ----------
    function : callable
        The formula, with its `tensors` by argument name and its `options`.
    rows, columns : int or None
        Of ΔW; None where only the base tells.
    channels : int or None
        Input channels, where a tensor tells them.
    rank : int or None
        The adapter's own.
    scale : float or None
        What multiplies the product.
    why : str
        Why the base weight is needed; empty if it is not.
    note : str
        What a reader of the numbers must know.
    """

    function: Callable[..., Update]
    tensors: Mapping[str, str]
    rows: int | None
    columns: int | None = None
    channels: int | None = None
    rank: int | None = None
    scale: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    note: str = ""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether a base weight of this shape can be the module's."""
        theirs = (shape[0], math.prod(shape[1:]), shape[1])
        mine = (self.rows, self.columns, self.channels)
        return all(a in (None, b) for a, b in zip(mine, theirs, strict=True))


@dataclass(frozen=True)
class Method:
    """One kind of module.

    Attributes
    ----------
    parts : tuple of str
        The suffixes that tell it.
    extras : tuple of str
        Further suffixes that it reads.
    draft : callable
        From `Parts` to a `Draft`.
    """

    parts: tuple[str, ...]
    extras: tuple[str, ...]
    draft: Callable[[Parts], Draft]


def draft_of(parts: Parts, name: str) -> Draft:
    """Return the draft of a module whose method is `name`, DoRA included.

    Raises
    ------
    AdapterError
        If tensors are missing, do not fit together, or would change the update in a way that
        is not known.
    """
    method = METHODS[name]
    draft = method.draft(parts)
    if "dora_scale" not in parts:
        return draft
    if "dora_scale" not in method.extras:
        raise parts.error(f"dora_scale beside {name} is not read", "no dora_scale", "dora_scale")
    return _decomposed(parts, name, draft)


def _decomposed(parts: Parts, name: str, draft: Draft) -> Draft:
    shape = parts.shape("dora_scale")
    numbers = math.prod(shape)
    # (1, in, 1…) is the older default of LyCORIS; (out, 1…) and (out,) are per output row.
    on_input = len(shape) > 1 and shape[:2] == (1, numbers) and (draft.rows, numbers) != (1, 1)
    parts.check(on_input or numbers == draft.rows, "dora_scale (out, 1) or (1, in)", "dora_scale")
    return replace(
        draft,
        function=formulas.decomposed,
        tensors={**draft.tensors, "dora_scale": parts.names["dora_scale"]},
        options={"method": name, "on_input": on_input},
        channels=numbers if on_input else None,
        why="DoRA rescales the merged weight",
    )


def _lora(parts: Parts) -> Draft:
    names = {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight"}
    up, down, mid = names.values()
    parts.require(down, up)
    (rows, r_up), (rank, columns) = parts.matrix(up), parts.matrix(down)
    if mid in parts:
        parts.matrix(mid)
        outer, inner, *kernel = parts.shape(mid)
        columns *= math.prod(kernel)
        parts.check(inner == rank and outer == r_up, "lora_mid (r, r, kernel)", up, down, mid)
    else:
        parts.check(r_up == rank, "lora_up (out, r) and lora_down (r, in) with one r", up, down)
    return Draft(
        function=formulas.lora,
        tensors={key: parts.names[part] for key, part in names.items() if part in parts},
        rows=rows,
        columns=columns,
        rank=rank,
        scale=parts.scale(rank),
    )


def _loha(parts: Parts) -> Draft:
    parts.require("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    if "hada_t1" in parts or "hada_t2" in parts:
        parts.require("hada_t1", "hada_t2")
    one, two = (_product(parts, f"hada_w{side}", f"hada_t{side}") for side in "12")
    parts.check(one[:2] == two[:2], "two products of one shape", *METHODS["loha"].parts)
    rows, columns, rank = one
    return Draft(
        function=hadamard,
        tensors=_arguments(parts, METHODS["loha"].parts, "hada_"),
        rows=rows,
        columns=columns,
        rank=rank,
        scale=parts.scale(rank),
    )


def _lokr(parts: Parts) -> Draft:
    if "lokr_t1" in parts:
        raise parts.error("LoKr with a first Tucker middle is not read", "no lokr_t1", "lokr_t1")
    (rows1, columns1, rank1), (rows2, columns2, rank2) = (_kron_half(parts, s) for s in "12")
    rank = rank1 if rank2 is None else rank2
    return Draft(
        function=kronecker,
        tensors=_arguments(parts, METHODS["lokr"].parts, "lokr_"),
        rows=rows1 * rows2,
        columns=columns1 * columns2,
        rank=rank,
        # With both factors whole there is no rank to divide by: LyCORIS ignores alpha.
        scale=1.0 if rank is None else parts.scale(rank),
    )


def _kron_half(parts: Parts, side: str) -> tuple[int, int, int | None]:
    """Return (rows, columns, rank) of one Kronecker factor; rank None where it is whole."""
    whole = f"lokr_w{side}"
    if whole not in parts:
        parts.require(f"{whole}_a", f"{whole}_b")
        return _product(parts, whole, f"lokr_t{side}" if side == "2" else None)
    once = f"{whole}_a" not in parts and f"{whole}_b" not in parts
    parts.check(once, f"{whole}, or its two factors, not both", *METHODS["lokr"].parts)
    return *parts.matrix(whole), None


def _product(parts: Parts, stem: str, middle: str | None) -> tuple[int, int, int]:
    """Return (rows, columns, rank) of ``a @ b``, or of the Tucker form with its `middle`."""
    a, b = f"{stem}_a", f"{stem}_b"
    first, second = parts.matrix(a), parts.matrix(b)
    if middle is None or middle not in parts:
        parts.check(first[1] == second[0], f"{a} (out, r) and {b} (r, in) with one r", a, b)
        return first[0], second[1], second[0]
    parts.matrix(middle)
    outer, inner, *kernel = parts.shape(middle)
    fits = (outer, inner) == (first[0], second[0])
    parts.check(fits, f"{middle} (r, r, kernel), {a} (r, out), {b} (r, in)", middle, a, b)
    return first[1], second[1] * math.prod(kernel), second[0]


def _arguments(parts: Parts, suffixes: tuple[str, ...], prefix: str) -> dict[str, str]:
    return {part.removeprefix(prefix): parts.names[part] for part in suffixes if part in parts}


def _full(parts: Parts) -> Draft:
    rows, columns = parts.matrix("diff")
    return Draft(formulas.full, {"diff": parts.names["diff"]}, rows, columns)


def _glora(parts: Parts) -> Draft:
    if "bm.weight" in parts:
        raise parts.error("GLoRA with a Tucker middle is not read", "no bm.weight", "bm.weight")
    parts.require(*_GLORA)
    # The first layout of GLoRA has the two matrices of each product the other way round.
    layouts = [order for order in (_GLORA, _OLD_GLORA) if _glora_fits(parts, order)]
    ranks = [parts.matrix(order[0])[1] for order in layouts]
    certain = len(ranks) == 1 or (len(ranks) == 2 and ranks[0] != ranks[1])
    parts.check(certain, "a1 (in, r), a2 (r, in), b1 (out, r), b2 (r, in); r < in", *_GLORA)
    rank, (a1, a2, b1, b2) = min(zip(ranks, layouts, strict=True))
    return Draft(
        function=formulas.generalized,
        tensors={
            argument: parts.names[part]
            for argument, part in zip(("a1", "a2", "b1", "b2"), (a1, a2, b1, b2), strict=True)
        },
        rows=parts.matrix(b1)[0],
        columns=parts.matrix(b2)[1],
        channels=parts.matrix(a1)[0],
        rank=rank,
        scale=parts.scale(rank),
        why="GLoRA multiplies it",
    )


_GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
_OLD_GLORA = ("a2.weight", "a1.weight", "b2.weight", "b1.weight")


def _glora_fits(parts: Parts, order: tuple[str, ...]) -> bool:
    a1, a2, b1, b2 = (parts.matrix(part) for part in order)
    return a1 == a2[::-1] and a1[1] == b1[1] == b2[0]


def _oft(parts: Parts) -> Draft:
    shape = parts.shape("oft_blocks")
    square = len(shape) in (3, 4) and shape[-1] == shape[-2]
    parts.check(square, "oft_blocks (n, b, b) or (m, n, b, b)", "oft_blocks")
    rows = shape[-3] * shape[-1]
    if len(shape) == 4:
        # The last stage spans 2^(m-1) blocks; its groups must tile the rows.
        tiles = shape[-1] % 2 == 0 and shape[-3] % 2 ** (shape[0] - 1) == 0
        parts.check(tiles, "m butterfly stages of even blocks that tile the rows", "oft_blocks")
    tensors = {"blocks": parts.names["oft_blocks"]}
    if "rescale" in parts:
        fits = math.prod(parts.shape("rescale")) == rows
        parts.check(fits, f"rescale with {rows} numbers", "rescale", "oft_blocks")
        tensors["rescale"] = parts.names["rescale"]
    limit = _constraint(parts, rows)
    return Draft(
        function=formulas.rotated if len(shape) == 3 else formulas.butterfly,
        tensors=tensors,
        rows=rows,
        options={"limit": limit},
        why="OFT rotates it",
        note="" if limit is None else _CONSTRAINT,
    )


_CONSTRAINT = "OFT's constraint is the trainers', alpha · out; ComfyUI clips at alpha"


def _constraint(parts: Parts, rows: int) -> float | None:
    """Return the bound on ‖Q‖: OFT's alpha is a constraint, not a scale."""
    alpha = parts.scalar("alpha") if "alpha" in parts else 0.0
    # sd-scripts clamps at 0 as well; LyCORIS takes 0 for no constraint.
    clamps = parts.module.startswith("oft_unet_") and "alpha" in parts
    return alpha * rows if alpha > 0 or clamps else None


def _ia3(parts: Parts) -> Draft:
    parts.require("weight", "on_input")
    shape, on_input = parts.shape("weight"), parts.scalar("on_input") != 0
    numbers = math.prod(shape)
    parts.check(numbers == max(shape, default=0), "a vector", "weight")
    return Draft(
        function=formulas.ia3,
        tensors={"vector": parts.names["weight"]},
        rows=None if on_input else numbers,
        channels=numbers if on_input else None,
        options={"on_input": on_input},
        why="IA3 scales it",
    )


METHODS: Mapping[str, Method] = {
    "lora": Method(
        ("lora_down.weight", "lora_up.weight", "lora_mid.weight"), ("alpha", "dora_scale"), _lora
    ),
    "loha": Method(
        ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        ("alpha", "dora_scale"),
        _loha,
    ),
    "lokr": Method(
        ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        ("alpha", "dora_scale", "lokr_t1"),
        _lokr,
    ),
    "full": Method(("diff",), (), _full),
    "glora": Method((*_GLORA, "bm.weight"), ("alpha",), _glora),
    "oft": Method(("oft_blocks",), ("alpha", "rescale"), _oft),
    "ia3": Method(("on_input",), ("weight",), _ia3),
}
