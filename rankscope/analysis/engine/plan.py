"""What a run would do: its items, what they read and hold, and about how long they take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch

from rankscope.analysis.engine.memory import BASE, room_for
from rankscope.analysis.engine.study import How, Study, remaining
from rankscope.analysis.engine.task import Task
from rankscope.linalg.svd import thin_svd
from rankscope.results import Result

__all__ = ["Plan", "planned"]

_PROBE = 256
_OVERHEAD, _READ = 0.005, 1e9  # seconds for each item, bytes a second


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Result):
    """A run that was not done; columns ``module bytes memory seconds``."""

    schema: ClassVar[str] = "rankscope.plan/1"


def planned(study: Study, how: How) -> Plan:
    """Return a row for each task that `run` would do: bytes read, bytes held, seconds.

    The seconds are the task's operations at the speed of one small decomposition here and now:
    right to a factor of about three, and good for comparing modules.

    Raises
    ------
    RankscopeError
        As `run` would, of the shard, the journal and the memory.
    """
    tasks = remaining(study, how)
    room = room_for(tasks, how.get("jobs", 1), how.get("memory"))
    speed = _operations_per_second()
    table = pd.DataFrame(
        {
            "module": [task.item for task in tasks],
            "bytes": [task.size for task in tasks],
            "memory": [task.memory for task in tasks],
            "seconds": [_seconds(task, speed) for task in tasks],
        }
    )
    largest = sum(sorted(table.memory, reverse=True)[: room.jobs])
    processes = room.jobs + (room.jobs > 1)
    note = (
        f"{len(table)} items, {table.bytes.sum() / 1e9:.3g} GB to read, "
        f"at most {min(largest, room.memory or largest) / 1e9:.3g} GB held at once beside "
        f"{processes * BASE / 1e9:.3g} GB for {processes} process{'es' * (processes > 1)}, "
        f"about {table.seconds.sum() / room.jobs:.3g} s with {room.jobs} at a time"
    )
    provenance = dict(study.as_run(how).about["provenance"])
    return Plan(table, provenance, notes=(note, *room.notes))


def _seconds(task: Task, speed: float) -> float:
    return _OVERHEAD + task.size / _READ + task.work / speed


def _operations_per_second() -> float:
    matrix = torch.randn(_PROBE, _PROBE, generator=torch.Generator().manual_seed(0)).double()
    thin_svd(matrix)
    start = time.perf_counter()
    thin_svd(matrix)
    return 20 * _PROBE**3 / (time.perf_counter() - start)
