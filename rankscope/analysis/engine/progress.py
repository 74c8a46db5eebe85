"""How far a run has come: a bar by work and not by count, on a terminal alone."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from contextlib import closing

from tqdm import tqdm

from rankscope.analysis.engine.task import Outcome, Task

__all__ = ["shown"]

_BAR = "{percentage:3.0f}%|{bar:20}| {postfix}, {elapsed} gone, {remaining} left"


def shown(
    outcomes: Generator[Outcome, None, None], tasks: Mapping[str, Task], *, progress: bool
) -> Generator[Outcome, None, None]:
    """Yield outcomes and show how far they are; silent where stderr is no terminal."""
    slowest = Outcome("", seconds=-1.0)
    total = sum(task.work for task in tasks.values())
    bar = tqdm(total=total, bar_format=_BAR, file=sys.stderr, disable=None if progress else True)
    with bar, closing(outcomes):
        for count, outcome in enumerate(outcomes, 1):
            slowest = max(slowest, outcome, key=lambda one: one.seconds)
            bar.set_postfix_str(
                f"{count} of {len(tasks)}, slowest {slowest.item} {slowest.seconds:.1f} s",
                refresh=False,
            )
            bar.update(tasks[outcome.item].work)
            yield outcome
