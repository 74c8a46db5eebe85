"""What a run would do: its items, what they read and hold, and about how long they take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch

from rankscope.analysis.engine.task import Task
from rankscope.linalg.svd import thin_svd
from rankscope.results import Result

__all__ = ["Plan", "planned"]

_PROBE = 256


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Result):
    """A run that was not done; columns ``module bytes memory seconds``."""

    schema: ClassVar[str] = "rankscope.plan/1"


def planned(tasks: Sequence[Task], provenance: dict[str, object], workers: int) -> Plan:
    """Return a row for each task: bytes read, bytes held at the peak, estimated seconds.

    The seconds are the task's operations at the speed of one small decomposition here and now:
    right to a factor of about three, and good for comparing modules.
    """
    speed = _operations_per_second()
    table = pd.DataFrame(
        {
            "module": [task.item for task in tasks],
            "bytes": [task.size for task in tasks],
            "memory": [task.memory for task in tasks],
            "seconds": [task.work / speed for task in tasks],
        }
    )
    largest = sorted(table.memory, reverse=True)[:workers]
    note = (
        f"{len(table)} items, {table.bytes.sum() / 1e9:.3g} GB to read, "
        f"at most {sum(largest) / 1e9:.3g} GB held at once, "
        f"about {table.seconds.sum() / workers:.3g} s with {workers} at a time"
    )
    return Plan(table, provenance, notes=(note,))


def _operations_per_second() -> float:
    matrix = torch.randn(_PROBE, _PROBE, generator=torch.Generator().manual_seed(0)).double()
    thin_svd(matrix)
    start = time.perf_counter()
    thin_svd(matrix)
    return 20 * _PROBE**3 / (time.perf_counter() - start)
