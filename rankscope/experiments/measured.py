"""The runs of an index and what is measured of them, each thing once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd

from rankscope.analysis.ablation import truncate
from rankscope.analysis.amplification import amplification
from rankscope.analysis.compare import compare
from rankscope.analysis.intruders import intruders
from rankscope.analysis.rank import rank
from rankscope.analysis.similarity import similarity
from rankscope.errors import SourceError
from rankscope.io.sources import open_updates
from rankscope.io.updateset import UpdateSet
from rankscope.results import SimilarityResult
from rankscope.training.draws import seed_of

__all__ = ["ATTENTION", "Pair", "Run", "Runs", "across_seeds", "by_rank", "each", "grouped"]

T = TypeVar("T")

ATTENTION = ("q", "k", "v", "o")
_CHANGE_WEIGHTS = ("LoRA", "rsLoRA", "DoRA", "LoRA+", "QLoRA", "IA3", "full", "last")
_PLAIN = re.compile(r".*-s\d+")
_CHECKPOINTS = "step-*"


class Pair(NamedTuple):
    """Two runs that are compared, by name."""

    a: str
    b: str


class Run(NamedTuple):
    """The condition of one run."""

    name: str
    task: str
    method: str
    targets: str
    rank: int
    seed: int


class Runs:
    """Finished runs of one base, opened and measured when they are first asked for.

    Parameters
    ----------
    index : DataFrame
        A row per run: ``name task method targets rank alpha seed init_seed labels
        trained_parameters parameters loss token_accuracy exact_match mixture_loss steps seconds
        folder``. One has the method ``pre-training``: the base.

    Raises
    ------
    SourceError
        If there is no base among them.

    Attributes
    ----------
    index : DataFrame
        The rows, by name.
    """

    def __init__(self, index: pd.DataFrame) -> None:
        self.index = index.set_index("name", drop=False).rename_axis(None)
        self._kept: dict[tuple[object, ...], Any] = {}
        if not (index.method == "pre-training").any():
            raise SourceError(
                "the runs have no base",
                where="Runs(index)",
                expected="a finished run of the method pre-training",
                got=f"{len(index)} runs without one",
                fix="train the base first",
            )

    @property
    def base(self) -> pd.Series[Any]:
        """The row of the base."""
        return self.index[self.index.method == "pre-training"].iloc[0]

    @cached_property
    def plain(self) -> pd.DataFrame:
        """The runs of LoRA and of all weights without a control's or a variant's suffix."""
        rows = self.index[self.index.method.isin(["LoRA", "full"])]
        return rows[[_PLAIN.fullmatch(name) is not None for name in rows.name]]

    def adapters(self, task: str = "sql", targets: str = "q,v") -> pd.DataFrame:
        """Return the plain LoRA runs of a task and targets, by rank and seed."""
        rows = self.plain[(self.plain.method == "LoRA") & (self.plain.task == task)]
        return rows[rows.targets == targets].sort_values(["rank", "seed"])

    def whole(self, task: str = "sql") -> pd.DataFrame:
        """Return the full fine-tunings of a task, by seed."""
        rows = self.plain[(self.plain.method == "full") & (self.plain.task == task)]
        return rows.sort_values("seed")

    def variants(self, suffix: str, task: str = "sql") -> pd.DataFrame:
        """Return the runs of a task whose names end in ``-suffix``."""
        rows = self.index[self.index.task == task]
        return rows[[name.endswith(f"-{suffix}") for name in rows.name]]

    @cached_property
    def width(self) -> int:
        """How many inputs the matrices of attention have."""
        return self.opened(self.base.folder).sites[0].shape[1]

    @cached_property
    def ranks(self) -> tuple[int, int] | None:
        """The ranks that stand for the paper's 8 and 64; None if there are no two.

        The largest below the width, and the largest that is below half of it.
        """
        ranks = sorted({int(r) for r in self.adapters()["rank"] if r < self.width})
        low = [r for r in ranks if 2 * r < ranks[-1]]
        return (low[-1], ranks[-1]) if low else None

    def has_update(self, name: str) -> bool:
        """Whether a run changed matrices of attention, rather than adding something beside."""
        method = str(self.index.method[name])
        return method in _CHANGE_WEIGHTS and len(self.updates(name)) > 0

    # --- measured ----------------------------------------------------------------------------

    def once(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """Return what `make` gave for this key, or gives now."""
        if key not in self._kept:
            self._kept[key] = make()
        kept: T = self._kept[key]
        return kept

    def updates(self, name: str) -> UpdateSet:
        """Return the opened updates of a run, of its attention matrices."""
        return self.once(("updates", name), lambda: self.opened(self.index.folder[name]))

    def drawn(self, name: str, seed: int) -> str:
        """Return the name of an untrained control: a run's norms along random directions."""
        control = f"{name} drawn {seed}"
        own = seed_of("drawn", name, seed)  # every run's control has directions of its own
        self.once(
            ("updates", control),
            lambda: truncate(self.updates(name), k=self.width, control=own).updates,
        )
        return control

    def opened(self, source: Any, alpha: float | None = None) -> UpdateSet:
        """Return the attention matrices' updates of any source on this base."""
        return open_updates(source, self.base.folder, alpha=alpha).select(kind=ATTENTION)

    def similarity(self, pair: Pair) -> SimilarityResult:
        """Return φ of two runs."""
        return self.once(
            ("similarity", pair), lambda: similarity(self.updates(pair.a), self.updates(pair.b))
        )

    def rank(self, name: str) -> pd.DataFrame:
        """Return every rank measure of a run."""
        return self.once(("rank", name), lambda: rank(self.updates(name)).table)

    def weight_cosines(self, name: str, k: int = 10) -> pd.DataFrame:
        """Return the intruders of a run among the first `k` directions of W + ΔW."""
        return self.once(("intruders", name), lambda: intruders(self.updates(name), k=k).table)

    def amplification(self, name: str, ks: Sequence[int]) -> pd.DataFrame:
        """Return ΔW of a run against W, for every k."""
        return self.once(
            ("amplification", name, *ks), lambda: amplification(self.updates(name), k=ks).table
        )

    def containment(self, pair: Pair) -> pd.DataFrame:
        """Return how much energy of either run lies in the other's directions."""

        def make() -> pd.DataFrame:
            sets = {name: self.updates(name) for name in pair}
            return compare(sets, measures=("phi", "cosine", "containment")).table

        return self.once(("containment", pair), make)

    def steps(self, name: str) -> Mapping[int, UpdateSet]:
        """Return the updates at the checkpoints of a run and at its end, by step."""
        folder = Path(self.index.folder[name])
        found = sorted((folder / "checkpoints").glob(_CHECKPOINTS))
        kept = {int(path.name.rpartition("-")[2]): self.opened(path) for path in found}
        return kept | {int(self.index.steps[name]): self.updates(name)}


def each(rows: pd.DataFrame) -> list[Run]:
    """Return the conditions of the runs in `rows`."""
    return [
        Run(str(name), str(task), str(method), str(targets), int(rank), int(seed))
        for name, task, method, targets, rank, seed in rows[list(Run._fields)].to_numpy()
    ]


def by_rank(rows: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """Return the rows of every rank, the smallest first."""
    return {rank: rows[rows["rank"] == rank] for rank in sorted({*map(int, rows["rank"])})}


def across_seeds(one: pd.DataFrame, other: pd.DataFrame) -> list[Pair]:
    """Return every pair of a run of `one` and a run of `other` whose seeds differ.

    The pairs of one group with itself come once each.
    """
    seeds = dict(zip([*one.name, *other.name], [*one.seed, *other.seed], strict=True))
    same = list(one.name) == list(other.name)
    pairs = combinations(one.name, 2) if same else product(one.name, other.name)
    return [Pair(a, b) for a, b in pairs if seeds[a] != seeds[b]]


def grouped(
    rows: pd.DataFrame, by: Sequence[str], values: Iterable[str], fixed: Iterable[str] = ()
) -> pd.DataFrame:
    """Return mean, standard deviation over the rows (n − 1) and their number, by group.

    Of `fixed` columns, which do not vary, only the mean.
    """
    names, same = list(values), list(fixed)
    groups = rows.groupby(list(by), sort=False, dropna=False)
    parts = [groups[names].mean(), groups[names].std().add_suffix("_sd")]
    ordered = [column for name in names for column in (name, f"{name}_sd")]
    table = pd.concat(parts, axis=1)[ordered]
    return pd.concat([table, groups[same].mean()], axis=1).assign(runs=groups.size()).reset_index()
