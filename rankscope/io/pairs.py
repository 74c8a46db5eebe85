"""Full checkpoints: the matrices in one, and the difference between a tuned one and its base."""

from __future__ import annotations

import re

from rankscope.errors import SourceError
from rankscope.io.adapters.family import Reading
from rankscope.io.names import natural_key
from rankscope.io.recipes import Difference, Stored
from rankscope.io.tensors import TensorStore
from rankscope.io.updateset import Site

__all__ = ["read_checkpoint", "read_pair"]

# GPT-2 and its kin store these as (in, out); the fused c_attn, (d, 3d), gives them away.
_CONV1D = re.compile(r"(.*\.)?(c_attn|c_proj|c_fc|q_attn)\.weight$")


def read_pair(tuned: TensorStore, base: TensorStore) -> Reading:
    """Return one site per floating-point matrix that both checkpoints hold in one shape.

    Vectors (biases, norms), integer buffers and higher-dimensional tensors are left unread, as
    are tensors that only one side has or that differ in shape; the notes count them.

    Raises
    ------
    SourceError
        If the two have no matrix in common.
    """
    shared = [name for name in tuned.tensors if _comparable(tuned, base, name)]
    if not shared:
        raise SourceError(
            "the checkpoint and its base have no matrix in common",
            where=f"{tuned.label} against {base.label}",
            expected="tensors of the same names and shapes",
            got=f"{len(tuned.tensors)} and {len(base.tensors)} tensors, none shared",
            fix="pass the base that this checkpoint was tuned from",
        )
    return _reading("pair", tuned, base, shared, tuple(_notes(tuned, base)))


def read_checkpoint(store: TensorStore) -> Reading:
    """Return one site per floating-point matrix of a checkpoint: the weights themselves."""
    matrices = [name for name in store.tensors if _is_matrix(store, name)]
    return _reading("checkpoint", store, None, matrices, ())


def _reading(
    format_: str,
    store: TensorStore,
    base: TensorStore | None,
    names: list[str],
    notes: tuple[str, ...],
) -> Reading:
    conv1d, read = _stores_conv1d(store), set(names)
    return Reading(
        format=format_,
        sites=tuple(_site(store, base, name, conv1d) for name in names),
        unread=tuple(name for name in store.tensors if name not in read),
        notes=notes,
    )


def _is_matrix(store: TensorStore, name: str) -> bool:
    info = store.tensors[name]
    return info.floating and len(info.shape) == 2 and 0 not in info.shape


def _comparable(tuned: TensorStore, base: TensorStore, name: str) -> bool:
    return (
        _is_matrix(tuned, name)
        and name in base.tensors
        and _is_matrix(base, name)
        and base.tensors[name].shape == tuned.tensors[name].shape
    )


def _site(store: TensorStore, base: TensorStore | None, name: str, conv1d: bool) -> Site:
    info = store.tensors[name]
    transposed = conv1d and _CONV1D.match(name) is not None
    rows, columns = info.shape
    recipe = (
        Stored(store, name, transposed)
        if base is None
        else Difference(store, base, name, transposed)
    )
    return Site(
        module=name.removesuffix(".weight"),
        shape=(columns, rows) if transposed else (rows, columns),
        rank=None,
        scale=None,
        dtype=info.dtype,
        recipe=recipe,
    )


def _stores_conv1d(store: TensorStore) -> bool:
    fused = (i.shape for name, i in store.tensors.items() if name.endswith("c_attn.weight"))
    return any(len(shape) == 2 and shape[1] == 3 * shape[0] for shape in fused)


def _notes(tuned: TensorStore, base: TensorStore) -> list[str]:
    ours, theirs = tuned.tensors, base.tensors
    groups = {
        "only in the tuned checkpoint": [n for n in ours if n not in theirs],
        "only in the base": [n for n in theirs if n not in ours],
        "of another shape than in the base": [
            n for n in ours if n in theirs and ours[n].shape != theirs[n].shape
        ],
    }
    return [f"{what}: {_some(names)}" for what, names in groups.items() if names]


def _some(names: list[str]) -> str:
    names = sorted(names, key=natural_key)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
