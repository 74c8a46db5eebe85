"""Full checkpoints: the matrices in one, and the difference between a tuned one and its base."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property

from rankscope.errors import SourceError
from rankscope.io.adapters.family import Reading
from rankscope.io.containers.aligned import Aligned, common_names, is_stack
from rankscope.io.matching import Matching, match
from rankscope.io.names import expert_of, experts_transposed, natural_key, stored_transposed
from rankscope.io.recipes import Difference, Stored
from rankscope.io.rotary import alike, row_order
from rankscope.io.tensors import TensorStore
from rankscope.io.updateset import Site

__all__ = ["Pair", "read_checkpoint"]

# Matrices by their shape that are none: biases of stacked experts, masks, tables of rotations.
_BUFFER = re.compile(r"(^|[._])(bias|inv_freq|position_ids|num_batches_tracked|running_\w+)$")
# A weight that is computed from several tensors is none of them.
_COMPOSED = re.compile(r"\.weight_(g|v|orig|u)$|(^|\.)parametrizations\.")
# One row per token, so that tokenizers of different sizes differ in rows alone.
_VOCABULARY = re.compile(
    r"(^|\.)(embed|embed_tokens|embed_in|embed_out|wte|shared|word_embeddings|tok_embeddings"
    r"|token_embedding|lm_head)\.weight$"
)
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
_STACKED = "stacked experts are one module each, (out, in) by the shapes of a layer's stacks"


class Pair:
    """A tuned checkpoint and its base, under the tuned one's names.

    Convolutions become matrices, stacks of experts one matrix each; where the base's names
    lack a prefix or have one more, all of them are rewritten, and where another library named
    its tensors, they are looked up; vocabularies of different sizes are cut to the rows that
    both have.

    Attributes
    ----------
    tuned, base : TensorStore
        The two as they are compared, tensor by tensor.
    weights : TensorStore
        The base as `UpdateSet.weight` looks into it, stacks of experts whole.
    """

    def __init__(self, tuned: TensorStore, base: TensorStore) -> None:
        prefix = common_names(tuned, base)
        one, other = Aligned(tuned), Aligned(base, prefix)
        self._matching = _matched(one, other)
        names = {found.b: found.a for found in self._matching.pairs.values()}
        self._reordered = [
            found.a
            for found in self._matching.pairs.values()
            if not alike(found.a, row_order(one, found.a), found.b, row_order(other, found.b))
        ]
        other = Aligned(base, prefix, names=names)
        self._whole = (one, other)
        rows = {
            name: min(one.tensors[name].shape[0], other.tensors[name].shape[0])
            for name in one.tensors
            if _VOCABULARY.search(name) and _differ_in_rows(one, other, name)
        }
        self.tuned = Aligned(tuned, rows=rows)
        self.base = Aligned(base, prefix, rows, names)
        self.weights = Aligned(base, prefix, rows, names, stacked=True)

    def reading(self) -> Reading:
        """Return one site per floating-point matrix that both hold in one shape.

        Vectors (biases, norms) and buffers are left unread, as are tensors that only one
        side has or that differ in shape; the notes count them.

        Raises
        ------
        SourceError
            If the two have no matrix in common.
        """
        if not self._shared:
            raise SourceError(
                "the checkpoint and its base have no matrix in common",
                where=f"{self.tuned.label} against {self.base.label}",
                expected="tensors of the same names and shapes",
                got=f"{len(self.tuned.tensors)} and {len(self.base.tensors)} tensors, none shared",
                fix="pass the base that this checkpoint was tuned from",
            )
        notes = (
            *_notes(self.tuned),
            *self._matching.notes(),
            *self._rows_left_out(),
            *self._differences(),
            *self._tied(),
        )
        return _reading("pair", self.tuned, self.base, self._shared, notes)

    @cached_property
    def _shared(self) -> list[str]:
        ours, theirs = self.tuned.tensors, self.base.tensors
        return [
            name
            for name in ours
            if name in theirs
            and name not in self._reordered
            and _is_matrix(self.tuned, name)
            and _is_matrix(self.base, name)
            and ours[name].shape == theirs[name].shape
        ]

    def _rows_left_out(self) -> Iterator[str]:
        for name, kept in self.tuned.rows.items():
            ours, theirs = (store.tensors[name].shape[0] for store in self._whole)
            where = "the tuned checkpoint" if ours > theirs else "the base"
            extra = abs(ours - theirs)
            yield f"{name}: {extra} rows that only {where} has are left out, {kept} kept"

    def _differences(self) -> Iterator[str]:
        ours, theirs = self.tuned.tensors, self.base.tensors
        groups = {
            "q and k, with their rows in Meta's rotary order on one side only": self._reordered,
            "only in the tuned checkpoint": [n for n in ours if n not in theirs],
            "only in the base": [n for n in theirs if n not in ours],
            "of another shape than in the base": [
                n for n in ours if n in theirs and ours[n].shape != theirs[n].shape
            ],
        }
        return (f"{what}: {_some(names)}" for what, names in groups.items() if names)

    def _tied(self) -> Iterator[str]:
        yield from _heads_tied_in("the base", self.base, self.tuned)
        yield from _heads_tied_in("the tuned checkpoint", self.tuned, self.base)


def _matched(tuned: Aligned, base: Aligned) -> Matching:
    shapes = ({n: info.shape for n, info in store.tensors.items()} for store in (tuned, base))
    matching = match(*shapes)
    # A vocabulary may have grown; which of its rows count is decided by the names then.
    matching.pairs |= {n: m for n, m in matching.mismatches.items() if _VOCABULARY.search(n)}
    return matching


def _heads_tied_in(side: str, lacks: TensorStore, has: TensorStore) -> Iterator[str]:
    """Yield a note for every head that only one side stores, where the other has its twin."""
    for name, head in has.tensors.items():
        if not _HEAD.search(name) or name in lacks.tensors:
            continue
        for twin, info in lacks.tensors.items():
            if _VOCABULARY.search(twin) and info.shape == head.shape:
                yield f"{name}: {side} seems to tie it to {twin}; it is not measured"
                break


def read_checkpoint(store: TensorStore) -> Reading:
    """Return one site per floating-point matrix of a checkpoint: the weights themselves."""
    aligned = Aligned(store)
    matrices = [name for name in aligned.tensors if _is_matrix(aligned, name)]
    return _reading("checkpoint", aligned, None, matrices, tuple(_notes(aligned)))


def _reading(
    format_: str,
    store: Aligned,
    base: TensorStore | None,
    names: list[str],
    notes: tuple[str, ...],
) -> Reading:
    read = {store.parts[name].name for name in names}
    # The tell-tale neighbour may be in the base alone.
    both = {**(base.tensors if base is not None else {}), **store.tensors}
    shapes = {name: info.shape for name, info in (*both.items(), *store.store.tensors.items())}
    return Reading(
        format=format_,
        sites=tuple(_site(store, base, name, _turned(store, name, shapes)) for name in names),
        unread=tuple(name for name in store.store.tensors if name not in read),
        notes=notes,
    )


def _turned(store: Aligned, name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    stack, expert = expert_of(name)
    if expert is None:
        return stored_transposed(name, shapes)
    return experts_transposed(stack, shapes)


def _is_matrix(store: TensorStore, name: str) -> bool:
    info = store.tensors[name]
    return (
        info.floating
        and "float8" not in info.dtype
        and len(info.shape) == 2
        and 0 not in info.shape
        and not _BUFFER.search(name)
        and not _COMPOSED.search(name)
    )


def _differ_in_rows(one: TensorStore, other: TensorStore, name: str) -> bool:
    if name not in other.tensors:
        return False
    ours, theirs = one.tensors[name].shape, other.tensors[name].shape
    return len(ours) == len(theirs) == 2 and ours[1] == theirs[1] and ours[0] != theirs[0]


def _site(store: TensorStore, base: TensorStore | None, name: str, transposed: bool) -> Site:
    info = store.tensors[name]
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
        dtype=info.dtype if base is None else _coarser(info.dtype, base.tensors[name].dtype),
        recipe=recipe,
        row_order=row_order(store, name),
    )


def _coarser(one: str, other: str) -> str:
    """Return the dtype that rounds more: its rounding is in the difference."""
    return max(one, other, key=("float64", "float32", "float16", "bfloat16").index)


def _notes(store: Aligned) -> Iterator[str]:
    composed = [name for name in store.tensors if _COMPOSED.search(name)]
    scaled = [name for name, info in store.tensors.items() if "float8" in info.dtype]
    if composed:
        yield f"weights computed from several tensors are not measured: {_some(composed)}"
    if scaled:
        yield f"8-bit numbers without their scales are not measured: {_some(scaled)}"
    if any(is_stack(name, info) for name, info in store.store.tensors.items()):
        yield _STACKED


def _some(names: list[str]) -> str:
    names = sorted(names, key=natural_key)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
