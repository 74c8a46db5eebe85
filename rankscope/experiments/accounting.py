"""What adapters cost: parameters, checkpoint bytes, and the storage of many tasks."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

__all__ = [
    "GPT3_LAYERS",
    "GPT3_PARAMETERS",
    "GPT3_WIDTH",
    "adapter_parameters",
    "checkpoint_bytes",
    "gpt3_table",
    "share_of_all",
    "tasks_bytes",
]

GPT3_PARAMETERS = 175 * 10**9
GPT3_LAYERS, GPT3_WIDTH = 96, 12288
_HALF = 2  # bytes of a float16 number


def adapter_parameters(shapes: Iterable[tuple[int, int]], rank: int) -> int:
    """Return the trained numbers of LoRA, r·(d + k) for every d × k matrix.

    Parameters
    ----------
    shapes : iterable of (int, int)
        Of the adapted matrices.
    rank : int
        r, the same for all.

    Examples
    --------
    The factors of one 512 × 512 matrix at r = 4, of a 100 × 100 one at r = 2 (400 of 10,000,
    96 % fewer), and of a 1000 × 1000 one at r = 2:

    >>> [adapter_parameters([(d, d)], rank) for d, rank in ((512, 4), (100, 2), (1000, 2))]
    [4096, 400, 4000]
    """
    return sum(rank * (rows + columns) for rows, columns in shapes)


def share_of_all(trained: int, parameters: int) -> float:
    """Return the share of a model's numbers that are trained.

    Examples
    --------
    >>> share_of_all(400, 10_000)
    0.04
    """
    return trained / parameters


def checkpoint_bytes(parameters: int, bytes_each: int = _HALF) -> int:
    """Return the bytes of so many numbers, in float16 unless told otherwise.

    Examples
    --------
    >>> checkpoint_bytes(GPT3_PARAMETERS)  # the paper's 350 GB
    350000000000
    """
    return parameters * bytes_each


def tasks_bytes(whole: int, adapter: int, tasks: int) -> tuple[int, int]:
    """Return the bytes of one model per task, and of one model with an adapter per task.

    Parameters
    ----------
    whole, adapter : int
        Bytes of a checkpoint of the model and of one adapter.
    tasks : int

    Examples
    --------
    The paper's 100 tasks on GPT-3, r = 4 on q and v: 35 TB against 354 GB.

    >>> adapter = adapter_parameters([(GPT3_WIDTH, GPT3_WIDTH)] * 2 * GPT3_LAYERS, 4)
    >>> [n / 1e9 for n in tasks_bytes(350 * 10**9, checkpoint_bytes(adapter), 100)]
    [35000.0, 353.7748736]
    """
    return tasks * whole, whole + tasks * adapter


def gpt3_table(tasks: int = 100) -> pd.DataFrame:
    """Return the paper's accounting of GPT-3 at its budgets, in bytes of float16.

    Decimal units throughout: 175·10⁹ numbers are 350 GB and 100 copies 35 TB. The 37.7 MB are
    the 18.9 million parameters of r = 4 on q and v (or r = 8 on one kind of matrix): 18,874,368
    × 2 bytes = 37,748,736 bytes = 37.7 MB = 36 MiB exactly. The paper's "roughly 35 MB" for the
    same adapter is neither: it is 350 GB divided by its round factor of 10,000 (the exact factor
    is 9,272). The 37.7 million *parameters* are r = 8 on q and v, 0.02 % of all, 75.5 MB. The
    354 GB of 100 tasks come out with 35 MB (353.5 GB) and with 37.7 MB (353.8 GB) each.

    Parameters
    ----------
    tasks : int

    Returns
    -------
    DataFrame
        Columns ``targets rank parameters share adapter_bytes model_bytes reduction
        tasks_full_bytes tasks_adapter_bytes``.

    Examples
    --------
    >>> gpt3_table().parameters.tolist()[:4]
    [4718592, 9437184, 18874368, 37748736]
    """
    budgets = [("q,v", rank) for rank in (1, 2, 4, 8, 64)]
    budgets += [("q", 8), ("q,k,v,o", 2), ("q,k,v,o", 64)]
    whole = checkpoint_bytes(GPT3_PARAMETERS)
    return pd.DataFrame([_gpt3_row(targets, rank, whole, tasks) for targets, rank in budgets])


def _gpt3_row(targets: str, rank: int, whole: int, tasks: int) -> dict[str, object]:
    matrices = len(targets.split(",")) * GPT3_LAYERS
    trained = adapter_parameters([(GPT3_WIDTH, GPT3_WIDTH)] * matrices, rank)
    adapter = checkpoint_bytes(trained)
    full, adapters = tasks_bytes(whole, adapter, tasks)
    return {
        "targets": targets,
        "rank": rank,
        "parameters": trained,
        "share": share_of_all(trained, GPT3_PARAMETERS),
        "adapter_bytes": adapter,
        "model_bytes": whole,
        "reduction": whole / adapter,
        "tasks_full_bytes": full,
        "tasks_adapter_bytes": adapters,
    }
