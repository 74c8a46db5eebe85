"""Adapters of another rank."""

from __future__ import annotations

from rankscope.analysis.selection import opened
from rankscope.analysis.truncation import Precision, Size, cut_down
from rankscope.io.sources import Source
from rankscope.io.updateset import UpdateSet
from rankscope.results import ResizeResult

__all__ = ["resize"]


def resize(
    source: Source | UpdateSet,
    *,
    rank: int | None = None,
    energy: float | None = None,
    budget: int | str | None = None,
    base: Source | None = None,
    alpha: float | None = None,
    dtype: Precision = "float32",
    device: str = "cpu",
    progress: bool | None = None,
) -> ResizeResult:
    r"""Cut the updates of an adapter down to fewer directions, with the error reached.

    Each ΔW is replaced by its truncated singular value decomposition, the nearest matrix of
    that rank (Eckart and Young), taken from the factors without multiplying them out. Nothing
    is clamped or clipped. The new factors share each singular value,
    :math:`B = U \sqrt{\Sigma}` and :math:`A = \sqrt{\Sigma} V^\top`, at scale 1 (alpha = r).

    Parameters
    ----------
    source : path, state dict, module or UpdateSet
    rank : int, optional
        Of every update; one that has fewer directions keeps all it has, and a note says so.
    energy : float, optional
        In (0, 1]: each update gets the smallest rank that keeps this share of ‖ΔW‖².
    budget : int or str, optional
        Parameters of the whole adapter, or bytes such as ``"35MB"``: ranks go where they keep
        most energy, see `rankscope.measures.allocation.allocate`.
    base : path, state dict or module, optional
        The base weights, for updates that depend on them, or whose convolution only they show.
    alpha : float, optional
        LoRA's alpha, for files that do not say it.
    dtype : {"float32", "bfloat16", "float16"}
        Of the factors as they are written.
    device : str
        ``cpu``, ``cuda``, ``cuda:n`` or ``auto``; the arithmetic is float64 everywhere.
    progress : bool
        False shows no bar, True one on a terminal and in a notebook; unless given, long work
        shows one in a notebook only.

    Returns
    -------
    ResizeResult
        A row per module: `rank_before` is the largest rank that its form could have,
        `rank_after` that of the new factors; `energy_kept` is the share of ‖ΔW‖² in the
        directions kept; `relative_error` is ‖ΔW − ΔW'‖/‖ΔW‖ of the factors as they are
        rounded to `dtype`, `best_error` the least that any matrix of that rank can have;
        `bytes` are those of both factors. `save(folder)` writes a PEFT adapter, `updates`
        are its updates. Modules of rank 0 are left out of it; they have the error 1, and an
        undefined one where ΔW is zero. `not_covered` lists tensors that are no matrices.

    Raises
    ------
    SourceError, AdapterError
        If the source cannot be read, or PEFT could wrap none of its modules.
    UpdateError
        If not exactly one of `rank`, `energy` and `budget` is given, or it is out of range.

    Examples
    --------
    >>> import torch
    >>> import rankscope as rs
    >>> diagonal = rs.resize({"w.weight": torch.diag(torch.tensor([4.0, 3.0]))}, rank=1,
    ...                      base={"w.weight": torch.zeros(2, 2)}).table
    >>> diagonal.energy_kept.round(12).tolist(), diagonal.best_error.tolist()  # 16/25, 3/5
    ([0.64], [0.6])
    """
    size = Size(rank, energy, budget)
    updates = opened(source, base, alpha, split="none")
    return cut_down(ResizeResult, updates, size, dtype=dtype, device=device, progress=progress)
