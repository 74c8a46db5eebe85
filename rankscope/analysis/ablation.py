"""Some directions of every update kept or removed: what they are for, by what is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rankscope.analysis.decompositions import decomposed
from rankscope.analysis.engine import map_modules
from rankscope.analysis.intruders import reach_of
from rankscope.analysis.rank import rank
from rankscope.analysis.selection import opened, with_base
from rankscope.analysis.sharing import Sharing, vectors
from rankscope.errors import UpdateError
from rankscope.io.adapters.family import factored_site
from rankscope.io.added import added
from rankscope.io.fused import rejoined, split_alike
from rankscope.io.sources import Source
from rankscope.io.tensors import StateDict
from rankscope.io.updateset import Site, UpdateSet
from rankscope.linalg.chance import random_subspace
from rankscope.measures.intruders import closeness
from rankscope.results import Result, provenance
from rankscope.spectra import svd
from rankscope.updates import DenseUpdate, FactoredUpdate, Update

__all__ = ["Directions", "TruncateResult", "truncate"]

Directions = Literal["first", "shared", "intruder", "noise"]
Side = Literal["right", "left"]
Weights = dict[str, Tensor]
Score = float | Mapping[str, Any]

_DIRECTIONS = ("first", "shared", "intruder", "noise")
_SIDES = ("right", "left")
_COLUMNS = {
    "module": "str",
    "layer": "Int64",
    "kind": "str",
    "side": "str",
    "directions": "int64",
    "energy_share": "float64",
    "relative_error": "float64",
}


@dataclass(frozen=True, eq=False, repr=False)
class TruncateResult(Result):
    """Updates without some of their directions; columns as in ``rankscope.truncate/1``.

    Attributes
    ----------
    updates : UpdateSet
        What is left of each update, in memory.
    score : float, mapping or None
        What `evaluate` returned.
    """

    schema: ClassVar[str] = "rankscope.truncate/1"
    hidden: ClassVar[tuple[str, ...]] = ("layer",)

    updates: UpdateSet = field(kw_only=True)
    score: Score | None = None

    def weights(self) -> Weights:
        """Return W + what is left of ΔW, each weight as the base stores it.

        Raises
        ------
        SourceError
            If the source was opened without its base.
        UpdateError
            If there are `failures`: of those modules it is not known what is left.
        """
        if self.failures:
            raise _unknown(self.failures)
        return added(self.updates)

    def extra(self) -> dict[str, Any]:
        """Return the score."""
        return {"score": self.score}


@dataclass(frozen=True)
class _Choice:
    """Which directions are meant."""

    directions: Directions
    k: int | None
    side: Side
    epsilon: float
    sharing: Sharing | None
    noise: Mapping[str, int]

    def basis(self, updates: UpdateSet, module: str, update: Update) -> Tensor:
        """Return the directions of one module, orthonormal columns on `side`."""
        if self.directions == "shared":
            assert self.sharing is not None
            return self.sharing.basis(module, update, self.side)
        if self.directions == "intruder":
            return self._intruders(updates.weight(module), update)
        own = vectors(update, self.side)
        return own[:, : self.k] if self.directions == "first" else own[:, self.noise[module] :]

    def _intruders(self, weight: Tensor, update: Update) -> Tensor:
        base = decomposed(weight)
        tuned = svd(DenseUpdate(weight.double() + update.dense()), self.k)
        assert tuned.left is not None  # svd() was asked for vectors
        assert tuned.right is not None
        sides = {"right": (tuned.right, base.right), "left": (tuned.left, base.left)}
        own, theirs = sides[self.side]
        near = reach_of(update, tuned.left, tuned.right)
        return own[:, closeness(own, theirs, base.values, near) < self.epsilon]


def truncate(
    source: Source | UpdateSet,
    *,
    directions: Directions = "first",
    k: int | None = None,
    remove: bool = False,
    other: Source | UpdateSet | None = None,
    base: Source | None = None,
    side: Side = "right",
    epsilon: float = 0.5,
    control: int | None = None,
    evaluate: Callable[[Weights], Score] | None = None,
    alpha: float | None = None,
) -> TruncateResult:
    r"""Keep or remove some directions of every update, and score the model that remains.

    With P the projector on the chosen directions of one side, what is kept is ΔW P on the input
    side (P ΔW on the output side), what is removed leaves ΔW (1 − P).

    Parameters
    ----------
    source : path, state dict, module or UpdateSet
    directions : {"first", "shared", "intruder", "noise"}
        ``first``: the first k singular directions. ``shared``: the directions that `other` has
        too, those of ΔW's principal vectors whose cosine chance does not explain. ``intruder``:
        those among the first k of W + ΔW that no direction of W resembles, as `intruders` counts
        them. ``noise``: those beyond what rises above the rounding of the storage, or, where
        that is not known, above the bulk of a dense update.
    k : int, optional
        Needed for ``first``; 10 for ``intruder`` unless given.
    remove : bool
        Remove the directions rather than everything else.
    other : path, state dict, module or UpdateSet, optional
        The other updates, for ``shared``, matched module by module as `similarity` does. Of a
        dense update 64 directions are compared, of a product of factors all; of two that have
        more than the space leaves free, at most half as many as it has dimensions. A module
        that `other` does not update shares nothing: it stays as it is where what is shared is
        removed, and is dropped where that is kept; a note counts such modules.
    base : path, state dict or module, optional
        The base weights: for ``intruder``, for full checkpoints, and to score anything.
    side : {"right", "left"}
        Input or output directions.
    epsilon : float
        An intruder's largest cosine with any direction of W lies below it.
    control : int, optional
        A seed: in place of the chosen part of ΔW, one with the same singular values along
        random directions is kept, or removed.
    evaluate : callable, optional
        Gets W + ΔW' of all modules as ``module.weight``, each in the orientation, shape and
        dtype in which the base stores it, a fused projection or a stack of experts whole. What
        the base has in one tensor with others, or apart, and what the source calls by another
        library's names, has the base's. Returns a number, or several by name, such as a loss.
        ``model.load_state_dict(weights, strict=False)`` takes them where the model's names are
        these; those that are not it returns as ``unexpected_keys``. It is not called where a
        module failed, as W alone would stand for what is not known.
    alpha : float, optional
        LoRA's alpha, for files that do not say it.

    Returns
    -------
    TruncateResult
        A row per module: how many `directions` were chosen, the `energy_share` of ‖ΔW‖² that
        lies in them (of a control: of what stands for them), and the `relative_error`
        ‖ΔW − ΔW'‖/‖ΔW‖. `updates` are ΔW', `weights` W + ΔW', `score` what `evaluate` returned.

    Raises
    ------
    SourceError, AdapterError
        If a source cannot be read, or there is no base where one is needed.
    UpdateError
        If an option is out of range, something that `directions` needs is missing, or the model
        is to be scored and one of its modules failed.

    Examples
    --------
    >>> import torch
    >>> import rankscope as rs
    >>> base = {"w.weight": torch.zeros(2, 2)}
    >>> tuned = {"w.weight": torch.diag(torch.tensor([4.0, 3.0]))}
    >>> left = truncate(tuned, base=base, k=1, remove=True, evaluate=lambda w: w["w.weight"].sum())
    >>> round(float(left.score), 6), left.table.energy_share.round(6).tolist()  # 3, 16/25
    (3.0, [0.64])
    """
    updates = opened(source, base, alpha)
    _check(directions, k, side, other)
    if directions == "intruder" or evaluate is not None:
        with_base(updates, "W + ΔW needs the base weights")
    second = None if other is None else opened(other, base, alpha)
    if second is not None:
        updates, second = split_alike(updates, second)
    sharing = None if second is None else Sharing.of(updates, second)
    noise = _noise_ranks(updates) if directions == "noise" else {}
    looked_at = 10 if k is None and directions == "intruder" else k
    choice = _Choice(directions, looked_at, side, epsilon, sharing, noise)
    found, failures = map_modules(
        updates.names,
        lambda module: [_truncated(updates, module, choice, remove, control)],
        progress=False,
    )
    result = TruncateResult(
        table=pd.DataFrame([row for row, _ in found], columns=list(_COLUMNS)).astype(_COLUMNS),
        provenance=_provenance(updates, choice, {"remove": remove, "control": control}),
        notes=(*updates.notes, *(sharing.notes() if sharing else ())),
        failures=tuple(failures),
        updates=_as_set(updates, {row["module"]: update for row, update in found}),
    )
    return result if evaluate is None else replace(result, score=evaluate(result.weights()))


def _provenance(updates: UpdateSet, choice: _Choice, options: Mapping[str, Any]) -> dict[str, Any]:
    said = {name: getattr(choice, name) for name in ("directions", "k", "side", "epsilon")}
    said |= {**options, "alpha": updates.alpha, "modules": updates.names}
    sets = {"source": updates} | ({"other": choice.sharing.other} if choice.sharing else {})
    inputs = {name: list(one.inputs) for name, one in sets.items()}
    return provenance("truncate", inputs, said, "cpu")


def _truncated(
    updates: UpdateSet, module: str, choice: _Choice, remove: bool, control: int | None
) -> tuple[dict[str, Any], Update]:
    site, update = updates.site(module), updates[module]
    basis = choice.basis(updates, module, update)
    part = _projected(update, basis, choice.side)
    if control is not None and basis.shape[1]:
        part = _turned(part, basis.shape[1], np.random.default_rng([control, *module.encode()]))
    rest = update - part
    kept, lost = (rest, part) if remove else (part, rest)
    norm = update.norm()
    row = {
        "module": module,
        "layer": site.layer,
        "kind": site.kind,
        "side": choice.side,
        "directions": basis.shape[1],
        "energy_share": (part.norm() / norm) ** 2 if norm else math.nan,
        "relative_error": lost.norm() / norm if norm else math.nan,
    }
    return row, kept


def _projected(update: Update, basis: Tensor, side: Side) -> Update:
    """Return ΔW P or P ΔW, in factors."""
    if side == "left":
        return _projected(update.T, basis, "right").T
    return FactoredUpdate(update.matmul(basis), basis.T.contiguous())


def _turned(part: Update, count: int, rng: np.random.Generator) -> Update:
    """Return an update with the singular values of `part` along random directions."""
    s = svd(part, vectors=False).values[:count]
    left, right = (torch.from_numpy(random_subspace(d, len(s), rng)) for d in part.shape)
    return FactoredUpdate(left * s, right.T.contiguous())


def _noise_ranks(updates: UpdateSet) -> dict[str, int]:
    """Return how many directions of each update are none of the noise's."""
    table = rank(updates).table
    known = table.rank_above_noise.astype("Float64").fillna(table.bulk_edge_rank)
    if known.isna().any():
        raise UpdateError(
            "there is no noise to tell from the update",
            where=str(table.module[known.isna()].iloc[0]),
            expected="the difference of two checkpoints",
            got="an update of low rank",
            fix="choose other directions, or give a full fine-tune and its base",
        )
    return dict(zip(table.module, known.astype(int), strict=True))


def _as_set(updates: UpdateSet, left: Mapping[str, Update]) -> UpdateSet:
    factors = {name: _factors(update) for name, update in left.items()}
    tensors: dict[str, Tensor] = {}
    for name, (up, down) in factors.items():
        tensors |= {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}
    store = StateDict(tensors, updates.source)
    sites = rejoined(_site(store, updates.site(name)) for name in factors)
    return replace(updates, format="peft", sites=tuple(sites), unread=(), alpha=None)


def _site(store: StateDict, site: Site) -> Site:
    """Return the site of what is left of an update, which lies where that did."""
    name = site.module
    left = factored_site(store, name, f"{name}.lora_B.weight", f"{name}.lora_A.weight", 1.0)
    return replace(left, row_order=site.row_order, whole=site.whole, block=site.block)


def _factors(update: Update) -> tuple[Tensor, Tensor]:
    if isinstance(update, FactoredUpdate):
        up, down = update.scale * update.up.double(), update.down.double()
    else:
        up, down = update.dense(), torch.eye(update.shape[1], dtype=torch.float64)
    if up.shape[1]:
        return up.contiguous(), down.contiguous()
    rows, columns = update.shape  # nothing is kept: a file has no factors of rank 0
    return up.new_zeros(rows, 1), down.new_zeros(1, columns)


def _check(directions: str, k: int | None, side: str, other: object) -> None:
    """Raise for the first option that is wrong or missing."""
    if directions not in _DIRECTIONS or side not in _SIDES:
        raise _bad(
            f"one of {', '.join(_DIRECTIONS)}, on the side {' or '.join(_SIDES)}",
            f"{directions!r}, {side!r}",
            "choose directions and side among these",
        )
    if (directions == "first" and k is None) or (k is not None and k < 1):
        raise _bad("a number k of directions, at least 1", f"k={k}", "give k=8")
    if (directions == "shared") != (other is not None):
        got = "none" if other is None else f"one, with {directions!r}"
        raise _bad("another update for 'shared', and only there", got, "give other=…, or leave it")


def _bad(expected: str, got: str, fix: str) -> UpdateError:
    return UpdateError(
        "these directions cannot be chosen",
        where="truncate(directions, k, side, other)",
        expected=expected,
        got=got,
        fix=fix,
    )


def _unknown(failures: Sequence[Mapping[str, Any]]) -> UpdateError:
    first = failures[0]
    more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
    return UpdateError(
        "the model that remains is not known: a module failed",
        where=f"{first['module']}{more}",
        expected="what is left of every update",
        got=f"{first['what']} ({first['got']})",
        fix="mend that module, or leave it at W on purpose: take the others with select()",
    )
