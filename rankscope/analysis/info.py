"""What sources hold, read from their headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any, TypeVar

import pandas as pd

from rankscope.errors import BaseNeededError, RankscopeError, printable
from rankscope.io.roles import role_of
from rankscope.io.sources import Opened, Source, open_source, open_updates, open_weights
from rankscope.io.updateset import UpdateSet
from rankscope.results import InfoResult, provenance

__all__ = ["info"]

H = TypeVar("H", bound=Hashable)


def info(
    *sources: Source,
    base: Source | None = None,
    alpha: float | None = None,
    split: str = "auto",
    modules: bool = False,
    tensors: bool = False,
    metadata: bool = False,
    allow_pickle: bool = False,
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
    split : {"auto", "none", "heads"}
        How fused projections are listed, see `open_updates`.
    modules : bool
        Also list every module.
    tensors : bool
        Also list every tensor and what it is: ``update``, or as `rankscope.io.roles.role_of`
        says.
    metadata : bool
        Also return what the sources say of themselves.
    allow_pickle : bool
        Also open distributed checkpoints, which can execute code; only for what you trust.

    Returns
    -------
    InfoResult
        A row per source. `rank` and `scale` are one value where all modules agree, the
        sorted values where they do not, and undefined where there is none; `parameters`
        and `bytes` count all tensors of the source; `unread` lists the tensors that are no
        update or that are not understood; a note says how many of each kind. A checkpoint
        without its base has the format ``checkpoint``, its matrices counted as modules. Where
        the updates of an adapter depend on a base that is not given, `modules`, `rank` and
        `scale` are undefined and a note says why.

    Raises
    ------
    SourceError, AdapterError
        If no source can be read; one of several that cannot is among the failures.

    Examples
    --------
    >>> import torch
    >>> A, B = torch.ones(2, 9), torch.ones(9, 2)
    >>> adapter = {"h.0.q.lora_A.weight": A, "h.0.q.lora_B.weight": B}
    >>> info(adapter, alpha=4).table[["format", "modules", "rank", "scale"]].values.tolist()
    [['peft', 1, 2, 2.0]]
    """
    opened_base = None if base is None else open_source(base, allow_pickle=allow_pickle)
    read, failures, first = [], [], None
    for source in sources:
        try:
            one = open_source(source, allow_pickle=allow_pickle)
            read.append(_read(one, opened_base, alpha, split))
        except RankscopeError as error:
            name = source if isinstance(source, str | PathLike) else type(source).__name__
            failures.append({"module": str(name), **error.parts()})
            first = first or error
    if first is not None and not read:
        raise first
    inputs = [record for one in read for record in one.updates.inputs]
    return InfoResult(
        table=pd.DataFrame([_row(one) for one in read]),
        provenance=provenance(
            "info", {"sources": inputs}, {"alpha": alpha, "split": split}, "cpu"
        ),
        notes=tuple(note for one in read for note in _notes(one)),
        failures=tuple(failures),
        modules=_listed(_modules, read) if modules else None,
        tensors=_listed(_tensors, read) if tensors else None,
        metadata={one.opened.label: _metadata(one) for one in read} if metadata else None,
    )


@dataclass(frozen=True)
class _Read:
    """One source: its tensors, and its updates as far as they are known without the base."""

    opened: Opened
    updates: UpdateSet
    lacks_base: bool = False

    @property
    def roles(self) -> dict[str, str]:
        """What every tensor is."""
        unread = set(self.updates.unread)
        taken = "weight" if self.updates.format == "checkpoint" else "update"
        return {
            name: role_of(name, info) if name in unread else taken
            for name, info in self.opened.store.tensors.items()
        }


def _read(opened: Opened, base: Opened | None, alpha: float | None, split: str) -> _Read:
    if opened.family is None and base is None:
        return _Read(opened, open_weights(opened, split=split))
    try:
        return _Read(opened, open_updates(opened, base, alpha=alpha, split=split))
    except BaseNeededError as error:
        updates = UpdateSet(
            source=opened.label,
            format=opened.family.name if opened.family else "",
            sites=(),
            records=partial(tuple, opened.store.files),
            notes=(f"{error.what}; {error.fix}",),
            config=opened.config or {},
            alpha=alpha,
        )
        return _Read(opened, updates, lacks_base=True)


def _row(read: _Read) -> dict[str, Any]:
    updates, tensors = read.updates, read.opened.store.tensors.values()
    return {
        "source": updates.source,
        "format": updates.format,
        "modules": None if read.lacks_base else len(updates),
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


def _notes(read: _Read) -> Iterator[str]:
    yield from read.updates.notes
    counts = Counter(role for role in read.roles.values() if role not in ("update", "weight"))
    if counts:
        kinds = ", ".join(f"{count} {role}" for role, count in sorted(counts.items()))
        yield f"{read.opened.label}: tensors that are no update: {kinds}"


def _metadata(read: _Read) -> dict[str, Any]:
    return {"header": dict(read.opened.store.metadata), "config": read.updates.config}


def _listed(rows: Callable[[_Read], Iterable[dict[str, Any]]], read: list[_Read]) -> pd.DataFrame:
    table = pd.DataFrame([row for one in read for row in rows(one)])
    return table.astype({"expert": "Int64"}) if "expert" in table else table


def _modules(read: _Read) -> Iterator[dict[str, Any]]:
    for site in read.updates.sites:
        yield {
            "source": read.updates.source,
            "module": site.module,
            "expert": site.expert,
            "shape": site.shape,
            "rank": site.rank,
            "scale": site.scale,
            "format": read.updates.format,
        }


def _tensors(read: _Read) -> Iterator[dict[str, Any]]:
    for name, role in read.roles.items():
        info = read.opened.store.tensors[name]
        yield {
            "source": read.updates.source,
            "tensor": name,
            "shape": info.shape,
            "dtype": info.dtype,
            "role": role,
        }


def _common(values: Iterable[H | None]) -> H | list[H] | None:
    """Return the one value that all share, all values where they differ, None for none."""
    distinct = sorted({v for v in values if v is not None})  # type: ignore[type-var]
    return distinct[0] if len(distinct) == 1 else distinct or None
