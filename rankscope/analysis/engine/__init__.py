"""The engine: one map over independent items, in this process, in several, or on a cluster.

Every command that measures module by module is a `Study`: its tasks, and what the finished
result holds beside their rows. Where the tasks run changes no number.
"""

from __future__ import annotations

from rankscope.analysis.engine.mapping import map_modules
from rankscope.analysis.engine.plan import Plan, planned
from rankscope.analysis.engine.study import How, Study, finished, run
from rankscope.analysis.engine.task import Row, Task

__all__ = ["How", "Plan", "Row", "Study", "Task", "finished", "map_modules", "planned", "run"]
