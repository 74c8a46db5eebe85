"""What sources hold, read from their headers alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, TypeVar

import pandas as pd

from rankscope.errors import printable
from rankscope.io.sources import Opened, Source, open_source, open_updates, open_weights
from rankscope.io.updateset import Site, UpdateSet
from rankscope.results import InfoResult, provenance

__all__ = ["info"]

H = TypeVar("H", bound=Hashable)


def info(
    *sources: Source,
    base: Source | None = None,
    alpha: float | None = None,
    modules: bool = False,
    metadata: bool = False,
) -> InfoResult:
    """Say what each source is: format, modules, ranks, scale, what is not understood.

    Parameters
    ----------
    *sources : path, state dict or module
        Each an adapter or a checkpoint; only headers are read.
    base : path, state dict or module, optional
        Makes a full checkpoint a pair, whose modules are then the updates.
    alpha : float, optional
        LoRA's alpha, for files that do not say it.
    modules : bool
        Also list every module.
    metadata : bool
        Also return what the sources say of themselves.

    Returns
    -------
    InfoResult
        A row per source. `rank` and `scale` are one value where all modules agree, the
        sorted values where they do not, and undefined where there is none; `parameters`
        and `bytes` count all tensors of the source; `unread` lists the tensors that are no
        update or that are not understood. A checkpoint without its base has the format
        ``checkpoint``, its matrices counted as modules.

    Raises
    ------
    SourceError, AdapterError
        If a source cannot be read.

    Examples
    --------
    >>> import torch
    >>> A, B = torch.ones(2, 9), torch.ones(9, 2)
    >>> adapter = {"h.0.q.lora_A.weight": A, "h.0.q.lora_B.weight": B}
    >>> info(adapter, alpha=4).table[["format", "modules", "rank", "scale"]].values.tolist()
    [['peft', 1, 2, 2.0]]
    """
    rows: list[dict[str, Any]] = []
    listed: list[dict[str, Any]] = []
    said: dict[str, Any] = {}
    notes: list[str] = []
    inputs: list[dict[str, Any]] = []
    for source in sources:
        opened = open_source(source)
        if opened.family is None and base is None:
            updates = open_weights(source)
        else:
            updates = open_updates(source, base, alpha=alpha)
        rows.append(_row(opened, updates))
        listed += [_module(site, updates) for site in updates.sites]
        said[opened.label] = {
            "header": dict(opened.store.metadata),
            "config": updates.config,
        }
        notes += updates.notes
        inputs += updates.inputs
    return InfoResult(
        table=pd.DataFrame(rows),
        provenance=provenance("info", {"sources": inputs}, {"alpha": alpha}, "cpu"),
        notes=tuple(notes),
        modules=pd.DataFrame(listed) if modules else None,
        metadata=said if metadata else None,
    )


def _row(opened: Opened, updates: UpdateSet) -> dict[str, Any]:
    tensors = opened.store.tensors.values()
    return {
        "source": updates.source,
        "format": updates.format,
        "modules": len(updates),
        "rank": _common(site.rank for site in updates.sites),
        "alpha": _said(updates, "lora_alpha") if updates.alpha is None else updates.alpha,
        "scale": _common(site.scale for site in updates.sites),
        "dtype": _common(tensor.dtype for tensor in tensors if tensor.floating),
        "base_model": _said(updates, "base_model_name_or_path"),
        "parameters": sum(tensor.parameters for tensor in tensors),
        "bytes": sum(tensor.bytes for tensor in tensors),
        "unread": list(updates.unread),
    }


def _said(updates: UpdateSet, key: str) -> Any:
    """Return what the configuration says, without what a terminal would obey."""
    value = updates.config.get(key)
    return value if value is None or isinstance(value, int | float) else printable(str(value))


def _module(site: Site, updates: UpdateSet) -> dict[str, Any]:
    return {
        "source": updates.source,
        "module": site.module,
        "shape": site.shape,
        "rank": site.rank,
        "scale": site.scale,
        "format": updates.format,
    }


def _common(values: Iterable[H | None]) -> H | list[H] | None:
    """Return the one value that all share, all values where they differ, None for none."""
    distinct = sorted({v for v in values if v is not None})  # type: ignore[type-var]
    return distinct[0] if len(distinct) == 1 else distinct or None
