"""What every picture needs of its table: columns, order of kinds, names that fit, captions."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankscope.errors import RankscopeError
from rankscope.plots.style import KIND_COLORS

__all__ = ["TableError", "require_columns", "short_names"]

_SIMILARITY = "rankscope.similarity(a, b).table"
_SPECTRUM = "rankscope.spectrum(updates).table"
_RANK = "rankscope.rank(updates).table"
_MAKERS = dict.fromkeys(("dimension", "phi"), _SIMILARITY) | {
    "singular_values": _SPECTRUM,
    "noise_edge": _SPECTRUM,
    "ceiling": _RANK,
    **dict.fromkeys(
        ("projection_update", "alignment_i", "alignment_left", "alignment_right", "profile_k"),
        "rankscope.amplification(updates, base=…).table",
    ),
    "max_cosine": "rankscope.intruders(updates, base=…).table",
    "seeds_low": "rankscope.compare(sources, groups=…).groups",
    **dict.fromkeys(("a", "b"), "rankscope.compare(sources).table"),
    "directions": "rankscope.compare(sources).shared",
}


class TableError(RankscopeError, ValueError):
    """A table, or a choice of its rows, that cannot be drawn."""


def require_columns(table: pd.DataFrame, *names: str) -> None:
    """Raise unless `table` has every column in `names`.

    Parameters
    ----------
    table : DataFrame
        Any table.
    *names : str
        The columns that a picture reads.

    Raises
    ------
    TableError
        If any is missing; the message names the missing ones and the function that makes them.

    Examples
    --------
    >>> require_columns(pd.DataFrame({"module": ["a"], "phi": [None]}), "module", "phi")
    """
    missing = [name for name in names if name not in table.columns]
    if not missing:
        return
    maker = next((_MAKERS[name] for name in (*missing, *names) if name in _MAKERS), _RANK)
    raise TableError(
        "the table lacks columns that this figure needs",
        where=f"columns {', '.join(missing)}",
        expected=", ".join(names),
        got=", ".join(map(str, table.columns)) or "no columns",
        fix=f"pass the table that {maker} holds",
    )


def kinds_in_order(kinds: Iterable[str]) -> list[str]:
    """Return the distinct kinds: known ones in their fixed order, others after them."""
    present = dict.fromkeys(kinds)
    known = [kind for kind in KIND_COLORS if kind in present]
    return known + [kind for kind in present if kind not in KIND_COLORS]


def layer_numbers(table: pd.DataFrame) -> NDArray[np.float64]:
    """Return the layer of every row, NaN where a module has none."""
    numbers: NDArray[np.float64] = pd.to_numeric(table["layer"]).to_numpy(
        dtype=np.float64, na_value=np.nan
    )
    return numbers


def ticks_from_one(n: int, most: int = 10) -> list[int]:
    """Return 1 and the multiples of a round step up to `n`, about `most` ticks at most.

    Examples
    --------
    >>> ticks_from_one(64)
    [1, 8, 16, 24, 32, 40, 48, 56, 64]
    """
    steps = [c * 10**e for e in range(6) for c in (1, 2, 4, 5, 8)] + [16, 32, 64, 128, 256, 512]
    able = sorted(step for step in steps if n / step <= most)
    # A step that divides n labels the last cell, but not at the price of a bare axis.
    even = [step for step in able if n % step == 0 and step <= 2 * able[0]]
    step = even[0] if even else able[0]
    return sorted({1, *range(step, n + 1, step)})


def short_names(names: Sequence[str], width: int) -> list[str]:
    """Return the names cut to `width` characters on at most two lines, still all different.

    Names that fit stay as they are. Otherwise the dotted prefix that all share goes first, then
    a second line is used, then the middle gives way to an ellipsis.

    Parameters
    ----------
    names : sequence of str
        Module names.
    width : int
        Characters that one line holds.

    Returns
    -------
    list of str

    Examples
    --------
    >>> short_names(["model.layers.0.q_proj", "model.layers.1.q_proj"], 12)
    ['…0.q_proj', '…1.q_proj']
    """
    if all(len(name) <= width for name in names):
        return list(names)
    cut = _shared_prefix(names)
    rest = ["…" + name[cut:] if cut else name for name in names]
    short = [_two_lines(name, width) for name in rest]
    if len(set(short)) == len(set(names)):
        return short
    return [f"{number}: {_middle(name, width - 6)}" for number, name in enumerate(names, 1)]


def line_names(names: Sequence[str], width: int) -> list[str]:
    """Return the names cut to `width` characters on one line, still all different.

    What all share at the start and at the end goes first, then the middle.

    Examples
    --------
    >>> line_names(["runs/r8-seed0/model", "runs/r64-seed0/model"], 8)
    ['…r8…', '…r64…']
    """
    if all(len(name) <= width for name in names):
        return list(names)
    start = _shared_start(names)
    end = _shared_start([name[start:][::-1] for name in names])
    cut = [
        f"{'…' * bool(start)}{name[start : len(name) - end]}{'…' * bool(end)}" for name in names
    ]
    short = [_middle(name, width) for name in cut]
    if len(set(short)) == len(set(names)):
        return short
    return [f"{number}: {_middle(name, width - 4)}" for number, name in enumerate(names, 1)]


def _shared_start(names: Sequence[str]) -> int:
    """Return how many characters all names share at their start, up to a mark between words."""
    if len(set(names)) < 2:
        return 0
    first, last = min(names), max(names)
    same = list(itertools.takewhile(lambda n: first[n] == last[n], range(len(first))))
    return max((n + 1 for n in same if first[n] in "./-_ "), default=0)


def _shared_prefix(names: Sequence[str]) -> int:
    if len(set(names)) < 2:
        return 0
    first, last = min(names), max(names)  # what these two share, all between them share
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return first[: len(list(same))].rfind(".") + 1


def _two_lines(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    name = _middle(name, 2 * width - 4)
    dots = [at + 1 for at, letter in enumerate(name) if letter in "._/" and at < width]
    fitting = [at for at in dots if len(name) - at <= width]
    at = min(fitting, key=lambda at: abs(at - len(name) / 2), default=(len(name) + 1) // 2)
    return f"{name[:at]}\n{name[at:]}"


def _middle(name: str, width: int) -> str:
    if len(name) <= max(width, 5):
        return name
    head = max(width, 5) // 3
    return f"{name[:head]}…{name[len(name) - (max(width, 5) - head - 1) :]}"


def one_line(name: str, width: int = 40) -> str:
    """Return a name with its middle cut out where it is longer than `width`."""
    return _middle(name, width)


def count(n: int, noun: str) -> str:
    """Return a number with its noun: '1 module', '4 modules'."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def left_out(modules: Sequence[str], reason: str) -> str:
    """Return the sentence that names modules a figure leaves out; empty where there are none."""
    if not modules:
        return ""
    named = ", ".join(one_line(name) for name in modules[:3])
    more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
    return f"{count(len(modules), 'module')} left out ({reason}): {named}{more}."


def as_vector(values: Any) -> NDArray[np.float64]:
    """Return one cell of a table as a float vector; empty where it holds nothing."""
    return np.zeros(0) if values is None else np.asarray(values, dtype=np.float64).reshape(-1)


def as_floats(table: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Return the columns as floats, NaN where they are undefined."""
    values: pd.DataFrame = table[list(measures)].apply(pd.to_numeric)
    return values.astype("Float64").astype("float64")


def in_words(measure: str) -> str:
    """Return a column's name in words.

    Examples
    --------
    >>> in_words("energy_rank_90"), in_words("stable_rank")
    ('energy rank, 90 %', 'stable rank')
    """
    if measure == "phi":
        return "φ, all directions"
    stem, _, last = measure.rpartition("_")
    return f"{stem.replace('_', ' ')}, {last} %" if last.isdigit() else measure.replace("_", " ")


def indented(text: str, width: int) -> str:
    """Return `text` broken at spaces into lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(text, max(width, 8)))
