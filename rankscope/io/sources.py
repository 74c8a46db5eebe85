"""Opening a source: which file is meant, what it holds, and the updates in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rankscope.errors import AdapterError, SourceError, os_reason, printable
from rankscope.io.adapters import FAMILIES
from rankscope.io.adapters.family import Context, Family, Reading
from rankscope.io.containers.distributed import DistributedFolder
from rankscope.io.containers.folder import locate
from rankscope.io.containers.gguf_file import check_no_stacks
from rankscope.io.containers.lens import cleaned
from rankscope.io.fused import check_split, split_fused
from rankscope.io.hub import PREFIX, open_address, origin
from rankscope.io.memory import live_model_config, store_of
from rankscope.io.model_config import ModelConfig, read_model_config
from rankscope.io.pairs import Pair, read_checkpoint
from rankscope.io.quantized import dequantised, dequantised_in_memory
from rankscope.io.rotary import in_halves
from rankscope.io.tensors import TensorStore, open_store
from rankscope.io.updateset import UpdateSet

__all__ = ["Opened", "Source", "open_source", "open_updates", "open_weights"]

Source = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module

_CONFIG_BYTES = 1_000_000


@dataclass(frozen=True)
class Opened:
    """A source whose header has been read: its tensors, its configuration, its family.

    `folder` is where its file lies, `model` what a live module says of its model.
    """

    store: TensorStore
    config: dict[str, Any] | None
    family: Family | None
    config_path: Path | None = None
    folder: Path | None = None
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Where it lies."""
        return self.store.label


def open_source(source: Source | Opened, *, allow_pickle: bool = False) -> Opened:
    """Return the tensors of a source and what family of adapters they are, if any.

    What is open already is returned as it is.

    Raises
    ------
    SourceError, AdapterError
        If it cannot be read.
    """
    if isinstance(source, Opened):
        return source
    config_path: Path | None = None
    folder: Path | None = None
    if isinstance(source, str | os.PathLike):
        store, folder = _open_place(os.fspath(source), allow_pickle)
        config_path = None if folder is None else folder / "adapter_config.json"
        config = None if config_path is None else _read_config(config_path)
    else:
        store, config = store_of(source)
    store = cleaned(store)
    family = next((f for f in FAMILIES if f.recognises(store.tensors)), None)
    if family is None:
        store = in_halves(dequantised(store, folder))
    elif _holds_its_base(store):
        store = dequantised_in_memory(store)
    told = None if config is None else config_path
    return Opened(store, config, family, told, folder, live_model_config(source))


def open_updates(
    source: Source | Opened | UpdateSet,
    base: Source | Opened | None = None,
    *,
    alpha: float | None = None,
    split: str = "auto",
    allow_pickle: bool = False,
) -> UpdateSet:
    """Open the weight updates of a source; headers are read now, numbers when asked.

    Parameters
    ----------
    source : path, state dict, module, PEFT model or UpdateSet
        A file or a folder with one adapter or checkpoint, or what is in memory. Of several
        models in one torch file ``file.pt::key`` means the one under that key. An
        `UpdateSet` is returned as it is.
    base : path, state dict or module, optional
        The base weights. Needed for a fully fine-tuned checkpoint, whose update is the
        difference; for an adapter it serves ``weight()`` and relative norms. A live PEFT
        model is its own base.
    alpha : float, optional
        LoRA's alpha, for files that do not say it; overrides what they say.
    split : {"auto", "none", "heads"}
        Whether projections that are several in one (``c_attn``, ``qkv_proj``,
        ``gate_up_proj`` …) are split into q, k, v, gate and up where the base's
        ``config.json``, the family or the shape tells how their rows are shared out;
        ``heads`` splits q, k, v, and o by its inputs, by attention head as well.
    allow_pickle : bool
        Also open distributed checkpoints (``.metadata`` and ``.distcp`` files), which can
        execute code; only for what you trust. Torch files are never opened so.

    Returns
    -------
    UpdateSet

    Raises
    ------
    SourceError
        If a file is missing, damaged or of another kind, or a checkpoint lacks its base.
    AdapterError
        If an adapter contradicts itself.

    Examples
    --------
    >>> import torch
    >>> base = {"h.0.q.weight": torch.zeros(2, 2)}
    >>> tuned = {"h.0.q.weight": torch.eye(2)}
    >>> open_updates(tuned, base)["h.0.q"].norm() ** 2
    2.0000000000000004
    """
    if isinstance(source, UpdateSet):
        return _as_opened(source, base, alpha)
    opened = open_source(source, allow_pickle=allow_pickle)
    opened_base = None if base is None else open_source(base, allow_pickle=allow_pickle)
    if opened_base is not None and opened_base.family is not None:
        _check_holds_weights(opened_base)
    base_store = _own_base(opened) if opened_base is None else opened_base.store
    if opened.family is not None:
        context = Context(opened.store, opened.config, alpha, base_store)
        updates = _update_set(opened, opened.family.read(context), base_store, alpha)
    elif base_store is not None:
        check_no_stacks(opened.store)
        pair = Pair(opened.store, base_store)
        updates = _update_set(opened, pair.reading(), pair.weights)
    else:
        raise _without_base(opened)
    return _split(updates, split, opened, opened_base)


def _check_holds_weights(base: Opened) -> None:
    if not _holds_its_base(base.store):
        raise SourceError(
            "an adapter is no base",
            where=base.label,
            expected="the weights that were tuned",
            got=_shown(base.store),
            fix="give the checkpoint first and its base after --base (base= in Python)",
        )


def _without_base(opened: Opened) -> SourceError:
    return SourceError(
        "a full checkpoint has no update without its base",
        where=opened.label,
        expected="an adapter, or a checkpoint and its base",
        got=_shown(opened.store),
        fix="give the weights it was tuned from: --base, or base= in Python",
    )


def open_weights(source: Source | Opened, *, split: str = "auto") -> UpdateSet:
    """Open the matrices of a checkpoint as if each were an update: W itself in place of ΔW.

    `split` is as for `open_updates`.

    Raises
    ------
    SourceError
        If the source cannot be read.
    """
    opened = open_source(source)
    check_no_stacks(opened.store)
    return _split(_update_set(opened, read_checkpoint(opened.store), None), split, opened)


def _split(
    updates: UpdateSet, split: str, opened: Opened, base: Opened | None = None
) -> UpdateSet:
    """Return the set with its fused projections split, by what is known of the model."""
    check_split(split)
    model = ModelConfig() if split == "none" else _model_config(opened, base)
    return split_fused(replace(updates, split=split, model=model))


def _as_opened(updates: UpdateSet, base: Source | Opened | None, alpha: float | None) -> UpdateSet:
    """Return an open set, unless what it was opened with is to change now."""
    if base is not None or (alpha is not None and alpha != updates.alpha):
        raise SourceError(
            "the source is open already",
            where=updates.source,
            expected="base and alpha when it is opened",
            got="an UpdateSet, and " + ("base" if base is not None else f"alpha={alpha}"),
            fix="give them to open_updates(source, base, alpha=…)",
        )
    return updates


def _update_set(
    opened: Opened, reading: Reading, base: TensorStore | None, alpha: float | None = None
) -> UpdateSet:
    stores = [opened.store]
    if base is not None and base is not opened.store:
        stores.append(base)
    return UpdateSet(
        source=opened.label,
        format=reading.format,
        sites=reading.sites,
        base=base,
        records=_records(opened, stores),
        unread=reading.unread,
        notes=reading.notes,
        config=opened.config or {},
        alpha=alpha,
    )


def _records(
    opened: Opened, stores: list[TensorStore]
) -> Callable[[], tuple[dict[str, Any], ...]]:
    """Return what makes the record of every file that decides a number.

    Headers tell two checkpoints of one architecture not apart: adapters are small enough to
    hash their content as well, but not so small that opening them could wait for it.
    """
    files = [file for store in stores for file in store.files]
    own = {file["path"] for file in opened.store.files} if opened.family is not None else set()
    return partial(_hashed, files, own - {None}, opened.config_path)


def _hashed(
    files: list[dict[str, Any]], own: set[str], config: Path | None
) -> tuple[dict[str, Any], ...]:
    records = [
        file | {"content_sha256": _content_hash(Path(file["path"]))}
        if file["path"] in own
        else file
        for file in files
    ]
    if config is not None:
        digest = _content_hash(config)
        record = {"path": str(config), "bytes": config.stat().st_size, "sha256": digest}
        records.append(record | {"content_sha256": digest})
    return tuple(record | origin(record["path"]) for record in records)


def _content_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(
            "a file of the source cannot be read any more",
            where=printable(str(path)),
            expected="the file as it was when the source was opened",
            got=os_reason(error),
            fix="leave the files in place until the result is there",
        ) from error


def _own_base(opened: Opened) -> TensorStore | None:
    own = opened.family is not None and _holds_its_base(opened.store)
    return opened.store if own else None


def _model_config(opened: Opened, base: Opened | None) -> ModelConfig:
    """Return what is known of the model: by the base, the source, or the folder it names."""
    both = [opened] if base is None else [base, opened]
    for one in both:
        if one.model:
            return ModelConfig(one.model)
    folders = [one.folder for one in both if one.folder is not None]
    return read_model_config([*folders, *_named_folder(opened)])


def _named_folder(opened: Opened) -> list[Path]:
    """Return the base's folder if the adapter names one and it is on this machine."""
    config = opened.config or {}
    named = config.get("base_model_name_or_path") or config.get("model")  # MLX says the latter
    if isinstance(named, str) and named.startswith(("//", "\\\\")):
        return []  # another machine's folder, which nobody asked to reach
    try:
        return [Path(named)] if isinstance(named, str) and Path(named).is_dir() else []
    except (OSError, ValueError):  # no name of a folder at all
        return []


def _holds_its_base(store: TensorStore) -> bool:
    return any(name.endswith(".base_layer.weight") for name in store.tensors)


def _shown(store: TensorStore) -> str:
    names = list(store.tensors)
    return f"{len(names)} tensors such as {', '.join(names[:3])}"


def _open_place(place: str, allow_pickle: bool) -> tuple[TensorStore, Path | None]:
    """Return the tensors that a path or an address means, and the folder that they are in."""
    place, nest = _split_nest(place)
    if place.startswith(PREFIX):
        return open_address(place, nest)
    path = locate(Path(place).expanduser(), allow_pickle=allow_pickle)
    if path.is_dir():
        return DistributedFolder(path, nest), path
    return open_store(path, nest), path.parent


def _split_nest(place: str) -> tuple[str, str | None]:
    """Return a place and the key after ``::``; a file that is named so means itself."""
    path, mark, nest = place.partition("::")
    with suppress(OSError):  # of names that no file can have
        if Path(place).exists():
            return place, None
    return (path, nest) if mark else (place, None)


def _read_config(path: Path) -> dict[str, Any] | None:
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > _CONFIG_BYTES:
            raise ValueError("more than a megabyte")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a JSON {type(content).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(
            "adapter_config.json cannot be used",
            where=str(path),
            expected="a JSON object of at most a megabyte",
            got=os_reason(error) if isinstance(error, OSError) else str(error),
            fix="correct it, or remove it and give the scale with --alpha",
        ) from error
    return content
