"""Microsoft's loralib, and the MergedLinear that early PEFT took over from it.

``<module>.lora_A`` (r, in) and ``<module>.lora_B`` (out, r), without ``.weight``; neither alpha
nor r is stored. A MergedLinear updates a fused projection, n of its N equal blocks of rows, with
one pair of factors per block: A (r·n, in), B (out·n/N, r); early PEFT stores the same as
``.lora_A.weight`` and, the kernel of a grouped convolution, ``.lora_B.weight`` (…, r, 1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rankscope.errors import AdapterError
from rankscope.io.adapters.family import (
    Context,
    Family,
    Reading,
    factored_site,
    formula_site,
    scale_of,
)
from rankscope.io.matching import base_name
from rankscope.io.names import bare_name, kind_of
from rankscope.io.tensors import TensorInfo, TensorStore
from rankscope.io.updateset import Site
from rankscope.updates import DenseUpdate, FactoredUpdate, Update

__all__ = [
    "FAMILY",
    "MERGED",
    "alpha_of",
    "complete",
    "convolution",
    "merged_linear",
    "merged_part",
    "paired",
]

_PLAIN = re.compile(r"(?!base_model\.)(?P<module>.+)\.lora_(?P<side>[AB])$")
_PEFT = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")
_UNKNOWN_SCALE = "the file does not say its alpha: the scale is unknown, numbers are at scale 1"


def merged_linear(
    up: Tensor, down: Tensor, *, rows: tuple[int, ...], enabled: tuple[bool, ...], scale: float = 1
) -> FactoredUpdate:
    """Return the update of a fused projection, ``scale * up_i @ down_i`` in its enabled blocks.

    Parameters
    ----------
    up : (sum of the enabled blocks' rows, r) or (…, r, 1) Tensor
        The blocks' B, one below the other.
    down : (r * enabled blocks, in) Tensor
        Their A.
    rows : tuple of int
        The rows of every block of the fused projection.
    enabled : tuple of bool
        Which blocks have factors; the rows of the others are 0.
    scale : float
        ``alpha / r``.

    Returns
    -------
    FactoredUpdate
        ``(sum(rows), in)``, of rank r times the number of enabled blocks.

    Examples
    --------
    >>> up, down = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    >>> merged_linear(up, down, rows=(1, 1, 1), enabled=(True, False, True)).dense().tolist()
    [[2.0], [0.0], [3.0]]
    """
    rank = up.shape[1]
    wide = up.new_zeros(sum(rows), rank * sum(enabled))
    row = done = column = 0
    for count, used in zip(rows, enabled, strict=True):
        if used:
            wide[row : row + count, column : column + rank] = up[done : done + count].flatten(1)
            done, column = done + count, column + rank
        row += count
    return FactoredUpdate(wide, down, scale)


def merged_part(
    up: Tensor,
    down: Tensor,
    *,
    rows: tuple[int, ...],
    enabled: tuple[bool, ...],
    part: int,
    scale: float = 1,
) -> FactoredUpdate:
    """Return the update of one block of a fused projection, of rank 0 where it has no factors.

    Examples
    --------
    >>> up, down = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    >>> blocks = {"rows": (1, 1, 1), "enabled": (True, False, True)}
    >>> [merged_part(up, down, **blocks, part=i).dense().item() for i in range(3)]
    [2.0, 0.0, 3.0]
    """
    rank = up.shape[1]
    first = sum(count for count, used in zip(rows[:part], enabled, strict=False) if used)
    column = rank * sum(enabled[:part])
    if not enabled[part]:
        return FactoredUpdate(up.new_zeros(rows[part], 0), down[:0], scale)
    return FactoredUpdate(
        up[first : first + rows[part]].flatten(1), down[column : column + rank], scale
    )


def convolution(up: Tensor, down: Tensor, *, out: int, kernel: int, scale: float = 1) -> Update:
    """Return the update of loralib's Conv2d, ``scale * (up @ down)`` seen as (out, in·k·k).

    Parameters
    ----------
    up : (out / groups * k, r * k) Tensor
    down : (r * k, in * k) Tensor
    out, kernel : int
        The output channels, and k.
    scale : float
        ``alpha / r``.

    Returns
    -------
    FactoredUpdate, or DenseUpdate where the convolution has groups

    Examples
    --------
    >>> convolution(torch.eye(2), torch.ones(2, 2), out=1, kernel=2).dense().tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """
    if len(up) != out * kernel:
        return DenseUpdate(scale * (up @ down).reshape(out, -1))
    # k rows of the product make one row of ΔW, each of them a product with the same A.
    stacked = torch.kron(torch.eye(kernel, dtype=down.dtype), down)
    return FactoredUpdate(up.reshape(out, -1), stacked, scale)


@dataclass(frozen=True)
class _Reader:
    """One source: where its factors lie, what is known of the blocks and of the scale."""

    context: Context
    alpha: float | None
    enabled: tuple[bool, ...] | None

    @property
    def store(self) -> TensorStore:
        return self.context.store

    def scale(self, rank: int) -> float | None:
        return None if self.alpha is None or not rank else scale_of(self.alpha, rank)

    def site(self, module: str, a: str, b: str, notes: list[str]) -> Site:
        down, up = (self.store.tensors[name].shape for name in (a, b))
        if len(down) == 2 and len(up) > 1 and 0 < up[1] < down[0] and down[0] % up[1] == 0:
            return self.merged(module, a, b, notes)
        shape = self.weight_shape(module)
        if len(shape) == 4 and len(down) == len(up) == 2:
            return self.convolution(module, a, b, shape)
        return factored_site(
            self.store, module, b, a, self.scale(down[0] if down else 0),
            transposed=kind_of(module) == "embed",
        )  # fmt: skip

    def merged(self, module: str, a: str, b: str, notes: list[str]) -> Site:
        (total, in_), up = (self.store.tensors[name].shape for name in (a, b))
        count = total // up[1]
        enabled = self.enabled or self.guess(module, in_, up[0], count, notes)
        if sum(enabled) != count or up[0] % count:
            raise _unclear(self.store, module, f"{count} pairs of factors, enable_lora {enabled}")
        block = up[0] // count
        return formula_site(
            self.store, module, merged_linear, {"up": b, "down": a},
            shape=(block * len(enabled), in_), rank=total, scale=self.scale(up[1]),
            rows=(block,) * len(enabled), enabled=enabled,
        )  # fmt: skip

    def guess(
        self, module: str, in_: int, rows: int, count: int, notes: list[str]
    ) -> tuple[bool, ...]:
        """Return the enabled blocks by the base's shape, or as the authors' recipe has them."""
        shape = self.weight_shape(module)
        out = (shape[0] if shape[-1] == in_ else shape[-1]) if len(shape) == 2 else None
        blocks = 3 if out is None else out * count // rows
        if blocks == count:
            return (True,) * count
        if (count, blocks) != (2, 3):
            raise _unclear(self.store, module, f"{count} pairs of factors for {blocks} blocks")
        note = "which blocks of a fused projection are updated is not stored: taken for q and v"
        notes.extend([note] if note not in notes else [])
        return (True, False, True)

    def convolution(self, module: str, a: str, b: str, shape: tuple[int, ...]) -> Site:
        out, kernel = shape[0], shape[-1]
        (rows, in_), (high, inner) = (self.store.tensors[name].shape for name in (a, b))
        if inner != rows or rows % kernel or high * in_ != math.prod(shape):
            raise _unclear(self.store, module, f"factors {(high, inner)}, {(rows, in_)}")
        return formula_site(
            self.store, module, convolution, {"up": b, "down": a},
            shape=(out, math.prod(shape[1:])), rank=rows // kernel,
            scale=self.scale(rows // kernel), out=out, kernel=kernel,
        )  # fmt: skip

    def weight_shape(self, module: str) -> tuple[int, ...]:
        """Return the shape of the module's own weight, () where nothing tells it."""
        for store in (self.context.base, self.store):
            for path in (module, f"{module}.conv"):
                name = None if store is None else base_name(path, store.tensors)
                if store is not None and name is not None:
                    return store.tensors[name].shape
        return ()


def _unclear(store: TensorStore, module: str, got: str) -> AdapterError:
    return AdapterError(
        "the factors do not tell which part of the weight they update",
        where=f"{store.label}, module {module!r}",
        expected="one pair of factors for every enabled block",
        got=got,
        fix="give the base weights, or enable_lora in an adapter_config.json beside the file",
    )


def _recognises(tensors: Mapping[str, TensorInfo]) -> bool:
    # AdaLoRA bears the same keys, and a diagonal between the factors.
    return any(map(_PLAIN.match, tensors)) and not any(".lora_E" in name for name in tensors)


def _recognises_merged(tensors: Mapping[str, TensorInfo]) -> bool:
    ends = (".lora_A.weight", ".lora_B.weight")
    pairs = [
        (tensors[name].shape, tensors[other].shape)
        for name in tensors
        if name.endswith(ends[0]) and (other := name.removesuffix(ends[0]) + ends[1]) in tensors
    ]
    # A 1-D convolution has three dimensions on both sides.
    return any(len(a) == 2 and len(b) == 3 and b[2] == 1 for a, b in pairs)


def _read_loralib(context: Context) -> Reading:
    reader = _Reader(context, context.alpha, _enabled(context))
    return _read(reader, _PLAIN, FAMILY.name)


def _read_merged(context: Context) -> Reading:
    return _read(_Reader(context, alpha_of(context), _enabled(context)), _PEFT, MERGED.name)


def _read(reader: _Reader, key: re.Pattern[str], name: str) -> Reading:
    pairs, unread = paired(reader.store, key)
    notes = [] if reader.alpha is not None else [_UNKNOWN_SCALE]
    sites = tuple(
        reader.site(bare_name(module), *complete(reader.store, pair), notes)
        for module, pair in pairs.items()
    )
    return Reading(format=name, sites=sites, unread=unread, notes=tuple(notes))


def paired(
    store: TensorStore, key: re.Pattern[str]
) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """Return the factors' names by module and side, as `key` finds them, and all other names."""
    pairs: dict[str, dict[str, str]] = {}
    unread = []
    for name in store.tensors:
        if match := key.match(name):
            pairs.setdefault(match["module"], {})[match["side"]] = name
        else:
            unread.append(name)
    return pairs, tuple(unread)


def complete(store: TensorStore, pair: Mapping[str, str]) -> tuple[str, str]:
    """Return the names of A and B, or raise an `AdapterError` if one is missing."""
    if len(pair) < 2:
        (letter, name), missing = next(iter(pair.items())), "B" if "A" in pair else "A"
        raise AdapterError(
            f"adapter has a lora_{letter} without its lora_{missing}",
            where=f"{store.label}, tensor {name!r}",
            expected=f"a tensor named {name.replace(f'lora_{letter}', f'lora_{missing}')!r}",
            got=f"{len(store.tensors)} tensors, none with that name",
            fix="save the adapter again; half of it is missing",
        )
    return pair["A"], pair["B"]


def _enabled(context: Context) -> tuple[bool, ...] | None:
    value = (context.config or {}).get("enable_lora")
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(x, bool) for x in value) or not value:
        raise _bad_config(context, "enable_lora", "a list of true and false", value)
    return tuple(value)


def alpha_of(context: Context) -> float | None:
    """Return alpha by the user, else by the configuration; None if neither says it."""
    value = (context.config or {}).get("lora_alpha")
    if context.alpha is not None or value is None:
        return context.alpha
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _bad_config(context, "lora_alpha", "a finite number", value)
    return float(value)


def _bad_config(context: Context, key: str, expected: str, got: object) -> AdapterError:
    return AdapterError(
        f"adapter_config.json has an unusable {key}",
        where=f"{context.store.label}, its adapter_config.json",
        expected=expected,
        got=repr(got)[:100],
        fix="correct the configuration, or give the scale with --alpha without it",
    )


FAMILY = Family("loralib", _recognises, _read_loralib)
MERGED = Family("peft-merged-linear", _recognises_merged, _read_merged)
