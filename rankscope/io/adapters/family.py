"""What every adapter family provides, and the checks that all share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rankscope.errors import AdapterError
from rankscope.io.tensors import TensorInfo, TensorStore
from rankscope.io.updateset import Factors, Site

__all__ = ["Family", "Reading", "factored_site"]


@dataclass(frozen=True)
class Reading:
    """What a family makes of a store: the sites, and what it left."""

    format: str
    sites: tuple[Site, ...]
    unread: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One adapter format.

    Attributes
    ----------
    name : str
        As reported by ``rankscope info``.
    recognises : callable
        Whether the tensors' names are this family's.
    read : callable
        From ``(store, config, alpha)`` to a `Reading`; `config` is the parsed
        ``adapter_config.json`` or None, `alpha` overrides what the file says.
    """

    name: str
    recognises: Callable[[Mapping[str, TensorInfo]], bool]
    read: Callable[[TensorStore, dict[str, Any] | None, float | None], Reading]


def factored_site(
    store: TensorStore,
    module: str,
    up: str,
    down: str,
    scale: float | None,
    *,
    transposed: bool = False,
) -> Site:
    """Return the site of ``scale * up @ down``, after checking that the shapes chain.

    Raises
    ------
    AdapterError
        If a factor is no matrix, is empty, or the two ranks disagree.
    """
    shapes = {name: store.tensors[name].shape for name in (up, down)}
    for name, shape in shapes.items():
        if len(shape) != 2 or 0 in shape:
            raise AdapterError(
                "a factor is not a matrix",
                where=f"{store.label}, tensor {name!r}",
                expected="two dimensions, none of them 0",
                got=f"shape {shape}",
                fix="gather sharded weights before saving; convolutions are not read yet",
            )
    (out, r_up), (r_down, in_) = shapes[up], shapes[down]
    if r_up != r_down:
        raise AdapterError(
            "the two factors of an update disagree about the rank",
            where=f"{store.label}, tensors {up!r} and {down!r}",
            expected="(out, r) and (r, in) with one r",
            got=f"{shapes[up]} and {shapes[down]}",
            fix="the file mixes two adapters, or is of a family that is not read yet",
        )
    return Site(
        module=module,
        shape=(in_, out) if transposed else (out, in_),
        rank=r_up,
        scale=scale,
        dtype=store.tensors[up].dtype,
        recipe=Factors(store, up, down, scale, transposed),
    )
