"""Updates cut down to fewer directions: how many each keeps, its new factors, the error."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from rankscope.analysis.budget import parse_budget
from rankscope.analysis.devices import resolve_device, with_room
from rankscope.analysis.engine import map_modules
from rankscope.errors import AdapterError, UpdateError
from rankscope.io.adapters.family import factored_site
from rankscope.io.names import FLAT_PREFIXES
from rankscope.io.recipes import Difference
from rankscope.io.save import joined, kernel_of, saved_name
from rankscope.io.tensors import StateDict
from rankscope.io.updateset import Site, UpdateSet
from rankscope.measures.allocation import allocate
from rankscope.measures.rank import energy_rank
from rankscope.results import ResizeResult, provenance
from rankscope.spectra import Gram, Leading, Method, Spectrum, svd
from rankscope.updates import FactoredUpdate, Update

__all__ = ["Precision", "Size", "cut_down"]

Precision = Literal["float32", "bfloat16", "float16"]
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# A module's own path: no number of a file without names, no underscores in place of dots.
_PATH = re.compile(rf"(?!{'|'.join(FLAT_PREFIXES)})[A-Za-z_][\w.]*")
# The hub's cache: models--org--name/snapshots/<commit>/…
_IN_CACHE = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\]")

# Of a short side: from here the Gram matrix, and a search for a few directions, are worth it.
_SMALL, _LARGE = 256, 768

_COLUMNS = {
    "module": "str",
    "layer": "Int64",
    "kind": "str",
    "rank_before": "int64",
    "rank_after": "int64",
    "energy_kept": "float64",
    "relative_error": "float64",
    "best_error": "float64",
    "bytes": "int64",
    "frobenius": "float64",
}


@dataclass(frozen=True)
class Size:
    """What is asked for: one rank for all, a share of each one's energy, or a size in all.

    Raises
    ------
    UpdateError
        If it is not exactly one of them, or out of range.
    """

    rank: int | None = None
    energy: float | None = None
    budget: int | str | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise _bad_size("exactly one of rank, energy and budget", given or "none of them")
        if self.rank is not None and (type(self.rank) is not int or self.rank < 1):
            raise _bad_size("a rank of at least 1", self.rank)
        if self.energy is not None and not 0 < self.energy <= 1:
            raise _bad_size("an energy above 0 and at most 1", self.energy)


@dataclass(frozen=True)
class _Piece:
    """What became of one update; no factors where nothing of it is kept."""

    name: str
    row: dict[str, Any]
    factors: FactoredUpdate | None
    kernel: tuple[int, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """Return the factors by PEFT's names, a convolution's first one with its kernel."""
        if self.factors is None:
            return {}
        up, down = self.factors.up, self.factors.down
        down = down.reshape(-1, *self.kernel) if self.kernel else down
        return dict(zip(self.names, (up, down), strict=True))

    @property
    def names(self) -> tuple[str, str]:
        """Of the second factor, B, and of the first, A."""
        module = self.name
        return f"{module}.lora_B.weight", f"{module}.lora_A.weight"


@dataclass(frozen=True)
class _Cutter:
    """Cuts the updates of one set, one at a time."""

    updates: UpdateSet
    size: Size
    dtype: torch.dtype
    device: str

    def allotted(self, *, progress: bool | None) -> dict[str, int]:
        """Return the rank of each module that makes best use of the budget."""
        assert self.size.budget is not None
        budget = parse_budget(self.size.budget, self.dtype.itemsize)
        spectra, _ = map_modules(
            self.updates.names,
            lambda name: [(name, self._values(name, budget))],
            progress=progress,
        )
        costs = [sum(self.updates.site(name).shape) for name, _ in spectra]
        ranks = allocate([values for _, values in spectra], costs, budget)
        trained = [cost for cost, (_, s) in zip(costs, spectra, strict=True) if s.any()]
        if trained and not any(ranks):
            raise _bad_size(f"a budget of at least {min(trained):,} parameters", f"{budget:,}")
        return {name: rank for (name, _), rank in zip(spectra, ranks, strict=True)}

    def _values(self, module: str, budget: int) -> Tensor:
        """Return as many singular values as the budget could pay for, without round-off."""
        return with_room(self.device, lambda device: self._values_on(device, module, budget))[0]

    def _values_on(self, device: str, module: str, budget: int) -> Tensor:
        site, update = self.updates.site(module), self.updates[module].to(device)
        self._kernel(site, update)  # what PEFT could not load takes nothing from the rest
        most = max(budget // sum(site.shape), 1)
        spectrum = svd(update, _needed(update, most), vectors=False)
        return spectrum.values[: _directions(spectrum)]

    def piece(self, module: str, allotted: Mapping[str, int]) -> _Piece:
        """Return one module cut down, and the errors reached and possible."""
        return with_room(self.device, lambda device: self._piece_on(device, module, allotted))[0]

    def _piece_on(self, device: str, module: str, allotted: Mapping[str, int]) -> _Piece:
        site, update = self.updates.site(module), self.updates[module].to(device)
        kernel = self._kernel(site, update)
        most = self.size.rank or allotted.get(module)
        k = _needed(update, most)
        spectrum = svd(update, k, _method(update, k, self.size))
        count = self._count(spectrum, most)
        kept, rest = _shares(spectrum, count)
        row = {
            "module": module,
            "layer": site.layer,
            "kind": site.kind,
            "rank_before": update.ceiling,
            "rank_after": count,
            "energy_kept": kept,
            "relative_error": math.sqrt(rest),  # of nothing, where nothing is written
            "best_error": math.sqrt(rest),
            "bytes": count * sum(site.shape) * self.dtype.itemsize,
            "frobenius": math.sqrt(spectrum.energy),
        }
        if not count:
            return _Piece(saved_name(site), row, None)
        factors = self._factors(spectrum, count)
        error = _error(update, factors.to(device), spectrum.energy)
        # The best is a difference of energies where the spectrum is partial: never above it.
        best = min(math.sqrt(rest), error)
        return _Piece(
            saved_name(site), row | {"relative_error": error, "best_error": best}, factors, kernel
        )

    def _kernel(self, site: Site, update: Update) -> tuple[int, ...]:
        """Return a convolution's kernel; raise where PEFT has no place for an update."""
        try:
            return kernel_of(self.updates, site)
        except AdapterError:
            if update.norm():
                raise
            return ()  # nothing needs no place

    def _count(self, spectrum: Spectrum, most: int | None) -> int:
        if self.size.energy == 1:
            most = _directions(spectrum)  # an energy of 1 - 1e-13 is not all of it
        elif self.size.energy is not None:
            most = energy_rank(spectrum.values, self.size.energy)
        return min(most or 0, _directions(spectrum))

    def _factors(self, spectrum: Spectrum, count: int) -> FactoredUpdate:
        """Return the first directions as two factors of equal size, rounded to the dtype."""
        assert spectrum.left is not None
        assert spectrum.right is not None
        root = spectrum.values[:count].sqrt()
        up, down = spectrum.left[:, :count] * root, (spectrum.right[:, :count] * root).T
        rounded = FactoredUpdate(up.to(self.dtype), down.to(self.dtype).contiguous())
        if not all(torch.isfinite(factor).all() for factor in (rounded.up, rounded.down)):
            raise UpdateError(
                "the factors are too large for this dtype",
                where=f"dtype={self.dtype}",
                expected=f"numbers up to {torch.finfo(self.dtype).max:g}",
                got=f"{max(up.abs().max().item(), down.abs().max().item()):g}",
                fix="write float32",
            )
        return rounded


def cut_down(
    result: type[ResizeResult],
    updates: UpdateSet,
    size: Size,
    *,
    dtype: Precision,
    device: str,
    progress: bool | None,
) -> ResizeResult:
    """Return every update cut down to `size`, in memory, as a `result`.

    One update is read at a time and only its new factors are kept; a budget takes two passes.

    Raises
    ------
    UpdateError
        If no update could be cut, the budget pays for no direction, or the dtype is unknown.
    """
    device = resolve_device(device)
    updates = replace(updates, sites=tuple(joined(updates.sites)))  # PEFT wraps whole modules
    if dtype not in _DTYPES:
        raise _bad_size(f"a dtype of {', '.join(_DTYPES)}", dtype)
    cutter = _Cutter(updates, size, _DTYPES[dtype], device)
    allotted = cutter.allotted(progress=progress) if size.budget is not None else {}
    pieces, failures = map_modules(
        updates.names, lambda module: [cutter.piece(module, allotted)], progress=progress
    )
    table = pd.DataFrame([p.row for p in pieces], columns=list(_COLUMNS)).astype(_COLUMNS)
    not_covered = _not_covered(updates)
    return result(
        table=table,
        provenance=provenance(
            result.schema.removeprefix("rankscope.").removesuffix("/1"),
            {"source": list(updates.inputs)},
            {**vars(size), "dtype": dtype, "alpha": updates.alpha, "modules": updates.names},
            device,
        ),
        notes=(*updates.notes, *_notes(updates, table, size, not_covered)),
        failures=tuple(failures),
        updates=_as_set(updates, pieces),
        total=_total(table, cutter.dtype),
        left_out=tuple(table[table.rank_after == 0].module),
        not_covered=not_covered,
    )


def _method(update: Update, k: int | None, size: Size) -> Method | None:
    """Return the quickest method that is exact enough: the energy kept is off by about 1e-8.

    That is the square of the sine by which the directions are off, and what all directions hold
    at most that `Gram` cannot tell from round-off. An energy of 1 asks for those as well.
    """
    side = min(update.shape)
    if isinstance(update, FactoredUpdate) or size.energy == 1 or side < _SMALL:
        return None
    few = k is not None and side >= _LARGE and 8 * k <= side
    return Leading(k, tolerance=1e-4) if few and k is not None else Gram()


def _needed(update: Update, most: int | None) -> int | None:
    """Return how many directions to compute: a factored update's are all at hand."""
    return None if most is None or isinstance(update, FactoredUpdate) else max(most, 1)


def _directions(spectrum: Spectrum) -> int:
    """Return how many directions carry anything; none where all squares vanish."""
    return spectrum.directions if spectrum.energy else 0


def _shares(spectrum: Spectrum, count: int) -> tuple[float, float]:
    """Return the shares of the energy in the first directions and in all others.

    The others' squares are summed where all are known: a difference from the whole energy has
    no digits left where it is small. NaN for a zero update.
    """
    if not _directions(spectrum):
        return math.nan, math.nan
    s = spectrum.values / spectrum.values[0]  # squares neither overflow nor vanish
    kept, rest = (part.square().sum().item() for part in (s[:count], s[count:]))
    if len(s) < spectrum.ceiling:
        rest = max(spectrum.energy / spectrum.values[0].item() ** 2 - kept, 0.0)
    return kept / (kept + rest), rest / (kept + rest)


def _error(update: Update, factors: FactoredUpdate, energy: float) -> float:
    """Return ‖ΔW − what is written‖ / ‖ΔW‖."""
    change = factors.inner(factors) - 2 * update.inner(factors)
    square = 1 + change / energy
    if square > 1e-8:
        return math.sqrt(square)
    # Too small for a difference of sums.
    return (update - factors).norm() / math.sqrt(energy)


def _as_set(updates: UpdateSet, pieces: list[_Piece]) -> UpdateSet:
    kept = [piece for piece in pieces if piece.factors is not None]
    tensors = {name: tensor for piece in kept for name, tensor in piece.tensors().items()}
    store = StateDict(tensors, updates.source) if tensors else None
    return replace(
        updates,
        format="peft",
        sites=tuple(
            factored_site(store, piece.name, *piece.names, 1.0)
            for piece in kept
            if store is not None
        ),
        unread=(),
        config=_base_name(updates) | updates.config,
        alpha=None,
    )


def _base_name(updates: UpdateSet) -> dict[str, Any]:
    """Return which repository of the hub's cache the base lies in, as PEFT names a base."""
    files = () if updates.base is None else updates.base.files
    found = (_IN_CACHE.search(str(file["path"])) for file in files)
    names = [match[1].replace("--", "/") for match in found if match]
    return {"base_model_name_or_path": names[0]} if names else {}


def _total(table: pd.DataFrame, dtype: torch.dtype) -> dict[str, Any]:
    size, energy = int(table.bytes.sum()), table.frobenius**2
    weights = energy / energy.sum() if energy.any() else energy * math.nan
    return {
        "parameters": size // dtype.itemsize,
        "bytes": size,
        "energy_kept": float((weights * table.energy_kept).sum(min_count=1)),
        "relative_error": math.sqrt((weights * table.relative_error**2).sum(min_count=1)),
    }


def _not_covered(updates: UpdateSet) -> tuple[str, ...]:
    """Return the tensors that are no update, of a pair those of them that changed."""
    pairs = (site.recipe for site in updates.sites if isinstance(site.recipe, Difference))
    pair = next(pairs, None)
    return tuple(name for name in updates.unread if pair is None or _changed(pair, name))


def _changed(pair: Difference, name: str) -> bool:
    if name not in pair.tuned.tensors or name not in pair.base.tensors:
        return True
    tuned, base = (store.read(name).double() for store in (pair.tuned, pair.base))
    return not torch.equal(tuned, base)


def _notes(
    updates: UpdateSet, table: pd.DataFrame, size: Size, not_covered: tuple[str, ...]
) -> list[str]:
    none = table.rank_after == 0
    zero = table.energy_kept.isna()
    capped = (table.rank_after < (size.rank or 0)) & ~none
    said: dict[str, Iterable[str]] = {
        "updates are zero (untrained) and left out": table[zero].module,
        "updates get no direction and are left out": table[none & ~zero].module,
        f"updates have fewer than {size.rank} directions and keep all": table[capped].module,
        "other tensors, such as biases and norms, are not in the adapter": not_covered,
        "names are not a model's own, so PEFT will not find their modules": [
            name for name in table.module if not _PATH.fullmatch(name)
        ],
    }
    found = {what: list(names) for what, names in said.items()}
    return [f"{len(names)} {what}: {_some(names)}" for what, names in found.items() if names]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _bad_size(expected: str, got: object) -> UpdateError:
    return UpdateError(
        "this size cannot be made",
        where="rank, energy, budget",
        expected=expected,
        got=str(got)[:200],
        fix="give one of rank=8, energy=0.95, budget=3000000 or budget='35MB'",
    )
