"""How far a run has come: a bar by work and not by count."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing

from rankscope.analysis.engine.task import Outcome, Task
from rankscope.io.progress import progress_bar

__all__ = ["shown"]

_BAR = "{percentage:3.0f}%|{bar:20}| {postfix}, {elapsed} gone, {remaining} left"


def shown(
    outcomes: Generator[Outcome, None, None], tasks: Mapping[str, Task], *, progress: bool | None
) -> Generator[Outcome, None, None]:
    """Yield outcomes and show how far they are, see `progress_bar`."""
    slowest = Outcome("", seconds=-1.0)
    total = sum(task.work for task in tasks.values())
    bar = progress_bar(progress=progress, total=total, bar_format=_BAR)
    with bar, closing(outcomes):
        for count, outcome in enumerate(outcomes, 1):
            slowest = max(slowest, outcome, key=lambda one: one.seconds)
            bar.set_postfix_str(
                f"{count} of {len(tasks)}, slowest {slowest.item} {slowest.seconds:.1f} s",
                refresh=False,
            )
            bar.update(tasks[outcome.item].work)
            yield outcome
