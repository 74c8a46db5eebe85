"""What is trained: every run of the experiment, and why with these hyper-parameters.

All of them are fixed here, before any result, so that `full` takes about 5,700 seconds of one
core, 48 minutes of two, and `quick` 240 seconds, 2 minutes; for these reasons:

- **Steps, batch.** Everything that starts from the base trains for as many steps and, at one
  seed, on the same rows, so that what trains is all that differs. Four hundred steps are the
  trainer's own; of its sixteen rows a step takes eight, at half the price: at r = 8, 450 steps
  of eight end at the held-out loss of 400 steps of sixteen (0.34).
- **Rates** are the trainer's own, with its reasons, and the same for all ranks.
- **α/r** is 1 at every rank, so that the rank does not change the scale of what is learned; the
  runs in the group ``alpha`` hold α = 8 instead, to show the difference.
- **Seeds** decide the adapters' start and the order of the data. The pairs in the group ``init``
  share the start alone.
- **Threads** are one for every run but the base, so that runs can be trained side by side and
  their bits do not depend on how many are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rankscope.training import TrainingConfig

__all__ = ["BASE", "Design", "RunSpec", "full", "quick"]

BASE = "base"
RANKS = (1, 2, 4, 8, 64, 256)
TARGETS = ("q", "qv", "qkvo")
SEEDS = (0, 1, 2)

Options = Mapping[str, Any]


@dataclass(frozen=True)
class RunSpec:
    """One run.

    Attributes
    ----------
    name : str
        Of its folder.
    options : mapping
        The arguments of `TrainingConfig` that are not its defaults; the base's folder is
        relative to the experiment's.
    groups : tuple of str
        What the run is for.
    """

    name: str
    options: Options = field(default_factory=dict)
    groups: tuple[str, ...] = ()

    def config(self, *, threads: int) -> TrainingConfig:
        """Return the whole configuration, with `threads` unless the options say how many.

        Examples
        --------
        >>> RunSpec("sql-qv-r8-s0", {"base": "runs/base", "rank": 8}).config(threads=1).method
        'LoRA'
        """
        return TrainingConfig(**{"threads": threads, **self.options})


@dataclass(frozen=True)
class Design:
    """An experiment: the base, and the runs that start from it."""

    name: str
    base: RunSpec
    runs: tuple[RunSpec, ...]


def adapter(
    rank: int,
    targets: str,
    seed: int,
    *groups: str,
    task: str = "sql",
    suffix: str = "",
    **options: Any,
) -> RunSpec:
    """Return a run that trains adapters of `rank` on `targets`, one letter each.

    Examples
    --------
    >>> adapter(8, "qv", 0, "main").name
    'sql-qv-r8-s0'
    """
    own = {"rank": rank, "targets": tuple(targets), "seed": seed, "task": task}
    name = f"{task}-{targets}-r{rank}-s{seed}{suffix}"
    return RunSpec(name, {"base": f"runs/{BASE}", **own, **options}, groups)


def whole(seed: int, *groups: str, task: str = "sql", suffix: str = "", **options: Any) -> RunSpec:
    """Return a run that trains all weights.

    Examples
    --------
    >>> whole(0, "main").name
    'sql-full-s0'
    """
    own = {"rank": "full", "seed": seed, "task": task}
    return RunSpec(
        f"{task}-full-s{seed}{suffix}", {"base": f"runs/{BASE}", **own, **options}, groups
    )


# --- the designs -----------------------------------------------------------------------------

_STEPS = 400
_DRIFT = (0, 10, 20, 50, 100, 200, 300)
_RELATIVES = ("rsLoRA", "DoRA", "LoRA+", "QLoRA")
_OTHERS = {"bottleneck": 8, "prefix": 8, "IA3": None, "bias": None, "last": None}


def full() -> Design:
    """Return the whole experiment.

    Ranks are 1, 2, 4, 8, 64 and 256, which is d; targets q, q and v, or q, k, v and o; seeds
    three. Beside these and the full twin of every seed: the equal budgets of the paper's Table 5,
    a second task, the controls, and one run of every other method.
    """
    sql: dict[str, Any] = {"steps": _STEPS, "batch": 8}
    runs = [*_sql(**sql), *_slots(**sql), *_controls(**sql), *_methods(**sql)]
    return Design("full", RunSpec(BASE), tuple(runs))


def quick() -> Design:
    """Return what the paper's Figures 3 and 4 and its Table 7 need, on a hardly trained base."""
    short: dict[str, Any] = {"steps": 200, "batch": 8, "held_out": 64}
    runs = [adapter(rank, "qv", seed, "main", **short) for rank in (8, 64) for seed in (0, 1)]
    runs += [
        whole(0, "full", **short),
        adapter(8, "qv", 0, "shuffled", suffix="-shuffled", labels="shuffled", **short),
    ]
    return Design("quick", RunSpec(BASE, {"steps": 200, "batch": 16, "held_out": 64}), tuple(runs))


def _sql(**options: Any) -> Iterator[RunSpec]:
    """Yield the paper's Table 6, the rows of Table 5 that are not in it, and the full twins."""
    for seed in SEEDS:
        for targets in TARGETS:
            for rank in RANKS:
                drift = (targets, seed) == ("qv", 0) and rank in (8, 64)
                groups = ("main", *_further_groups(targets, rank, seed))
                kept = _DRIFT if drift else ()
                yield adapter(rank, targets, seed, *groups, save_at=kept, **options)
        for targets, rank in (("k", 8), ("v", 8), ("o", 8), ("qk", 4)):
            yield adapter(rank, targets, seed, "budget", **options)
        yield whole(seed, "full", save_at=() if seed else _DRIFT, **options)


def _further_groups(targets: str, rank: int, seed: int) -> Iterator[str]:
    """Yield what else a run of Table 6 serves."""
    if (targets, rank) in (("q", 8), ("qv", 4), ("qkvo", 2)):
        yield "budget"  # as many parameters as k, v or o at r = 8
    if (targets, rank, seed) == ("qv", 8, 0):
        yield "alpha"


def _slots(**options: Any) -> Iterator[RunSpec]:
    for seed in SEEDS:
        for rank in (1, 8, 64):
            yield adapter(rank, "qv", seed, "slots", task="slots", **options)
        yield whole(seed, "slots", task="slots", **options)
    for difficulty in (1, 3):
        own = {"task": "slots", "difficulty": difficulty, **options}
        suffix = f"-difficulty{difficulty}"
        yield adapter(8, "qv", 0, "difficulty", suffix=suffix, **own)
        yield whole(0, "difficulty", suffix=suffix, **own)


def _controls(**options: Any) -> Iterator[RunSpec]:
    for rank in (8, 64):
        for seed in (0, 1):
            own = {"labels": "shuffled", **options}
            yield adapter(rank, "qv", seed, "shuffled", suffix="-shuffled", **own)
        yield adapter(rank, "qv", 1, "init", suffix="-init0", init_seed=0, **options)
    for rank in RANKS:
        if rank != 8:
            yield adapter(rank, "qv", 0, "alpha", suffix="-alpha8", alpha=8.0, **options)


def _methods(**options: Any) -> Iterator[RunSpec]:
    """Yield one run of every other method: the relatives of LoRA at r = 8 on q and v."""
    for method in _RELATIVES:
        suffix = f"-{method.lower()}"
        yield adapter(8, "qv", 0, "methods", suffix=suffix, method=method, **options)
    for method, size in _OTHERS.items():
        name = f"sql-{'' if size is None else f'r{size}-'}s0-{method.lower()}"
        own = {"base": f"runs/{BASE}", "method": method, "rank": size, "task": "sql"}
        yield RunSpec(name, {**own, **options}, ("methods",))
