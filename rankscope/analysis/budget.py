"""Budgets: how many parameters a number, or a size in bytes, allows."""

from __future__ import annotations

import re
from fractions import Fraction

from rankscope.errors import UpdateError

__all__ = ["parse_budget"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_BYTES = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*(?:([kmgt]?)b|([kmgt])ib)", re.ASCII)


def parse_budget(budget: int | str, bytes_per_parameter: int) -> int:
    """Return the number of parameters that a budget allows.

    Parameters
    ----------
    budget : int or str
        A number of parameters, or bytes with their unit: ``35MB`` (10⁶), ``35MiB`` (2²⁰),
        ``1.5GB``; in letters of either case. Bytes are those of the factors' numbers, without
        the few hundred per module that a file's header takes.
    bytes_per_parameter : int
        Of the dtype that is written: 4 for float32, 2 for bfloat16 and float16.

    Returns
    -------
    int
        Rounded down; at least 1.

    Raises
    ------
    UpdateError
        If it is neither, or allows no parameter at all. A bare ``35M`` is neither: it could
        be either.

    Examples
    --------
    >>> parse_budget("35MB", 4), parse_budget("1KiB", 2), parse_budget(1000, 2)
    (8750000, 512, 1000)
    """
    text = str(budget).strip().lower()
    size = _BYTES.fullmatch(text)
    if size is not None:
        unit = _BINARY[size[3]] if size[3] else _UNITS[size[2]]
        allowed = int(Fraction(size[1]) * unit / bytes_per_parameter)
    else:
        allowed = int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else 0
    if allowed < 1:
        raise UpdateError(
            "this is no budget",
            where="budget",
            expected="a number of parameters such as 3000000, or bytes such as 35MB or 35MiB",
            got=repr(budget)[:100],
            fix="write a whole number, or a number with B, kB, MB, GB, KiB, MiB or GiB",
        )
    return allowed
