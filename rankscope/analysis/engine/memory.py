"""How many processes a limit on memory has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rankscope.analysis.engine.task import Task
from rankscope.errors import UpdateError

__all__ = ["BASE", "Room", "room_for"]

# What a process holds of its own after its first item: libraries, and what the allocator keeps.
BASE = 320_000_000


@dataclass(frozen=True)
class Room:
    """Processes, the bytes that their items may hold together, and what to say of it."""

    jobs: int
    memory: int | None = None
    notes: list[str] = field(default_factory=list)


def room_for(tasks: Sequence[Task], jobs: int, memory: int | None) -> Room:
    """Return as many of the jobs as a limit on the memory of all processes lets work at once.

    Each process counts with what it holds of its own; the pages of files that are read do not
    count, since the system takes them back whenever it needs them.

    Raises
    ------
    UpdateError
        If not even one item fits.

    Examples
    --------
    >>> tasks = [Task("a", print, memory=10**9), Task("b", print, memory=10**9)]
    >>> room_for(tasks, 2, 100 * 10**9).jobs, room_for(tasks, 2, 3 * 10**9).jobs
    (2, 1)
    """
    if memory is None or not tasks:
        return Room(jobs, memory)
    left = memory - max(_held(), BASE)
    largest = max(tasks, key=lambda task: task.memory)
    if largest.memory > left:
        raise _no_room(largest, memory, memory - left)
    fitting = next((n for n in range(jobs, 1, -1) if _fits(tasks, n, left - n * BASE)), 1)
    if fitting == jobs:
        return Room(jobs, left - (jobs * BASE if jobs > 1 else 0))
    said = f"{memory / 1e9:.3g} GB of memory have room for {fitting} of {jobs} processes"
    return Room(fitting, left - (fitting * BASE if fitting > 1 else 0), [said])


def _fits(tasks: Sequence[Task], jobs: int, left: int) -> bool:
    """Whether the largest item fits, and so many of the smallest at once."""
    sizes = sorted(task.memory for task in tasks)
    return max(sizes[-1], sum(sizes[:jobs])) <= left


def _held() -> int:
    """Return the anonymous bytes of this process; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    lines = (line.split() for line in status.splitlines() if line.startswith("RssAnon:"))
    return next((int(kilobytes) * 1024 for _, kilobytes, _ in lines), 0)


def _no_room(task: Task, memory: int, own: int) -> UpdateError:
    needed = own + task.memory
    return UpdateError(
        "this module does not fit into the memory",
        where=task.item,
        expected=f"about {task.memory / 1e9:.2f} GB, and {own / 1e9:.2f} GB for the process",
        got=f"--memory {memory / 1e9:.3g}GB",
        fix=f"give --memory {needed / 1e9 * 1.01 + 0.005:.2f}GB, or leave it out with --exclude",
    )
