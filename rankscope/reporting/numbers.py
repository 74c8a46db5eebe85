"""Numbers as a reader wants them: rounded on the page, whole behind it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["exact", "rounded", "short_name"]

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SMALLEST = 1e-300


def rounded(value: Any, form: str) -> str:
    """Return a value as `form` (see `Definition`) writes it; a dash where it is undefined.

    Examples
    --------
    >>> rounded(0.12345, "3"), rounded(0.5, "share"), rounded(4.2e-21, "p"), rounded(None, "1")
    ('0.123', '50 %', '10⁻²⁰', '–')
    >>> rounded(0.00195, "2")
    '0.002'
    """
    if undefined(value):
        return "–"
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(rounded(part, form) for part in value) or "–"
    if isinstance(value, str | bool | np.bool_):
        return str(value)
    return _number(float(value), form)


def _number(value: float, form: str) -> str:
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    if form == "p":
        return _probability(value)
    if form == "share":
        return _share(value)
    if form.isdigit():
        return _fixed(value, int(form))
    if value.is_integer():
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:,.1f}" if form == "count" else _norm(value)


def _fixed(value: float, decimals: int) -> str:
    """Return so many decimals, of smaller numbers than those show as many as show one digit."""
    size = abs(value)
    if 1e-5 <= size < 0.5 * 10**-decimals:
        decimals = -math.floor(math.log10(size))
    return f"{value:,.{decimals}f}".replace("-", "−")


def _norm(value: float) -> str:
    """Return three digits; powers of ten outside of what can be read at a glance."""
    if 1e-3 <= abs(value) < 1e5:
        decimals = max(2 - math.floor(math.log10(abs(value))), 0)
        return f"{value:,.{decimals}f}".replace("-", "−")
    return _powers(value, 2)


def _powers(value: float, digits: int) -> str:
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPTS)}".replace("-", "−")


def _share(value: float) -> str:
    percent = 100 * value
    digits = 0 if percent in (0.0, 100.0) or 10 <= percent < 99.5 or percent > 100 else 1
    return "< 0.1 %" if 0 < percent < 0.1 else f"{percent:.{digits}f} %"


def _probability(value: float) -> str:
    """Return two digits, of small ones the power of ten: more of it means nothing."""
    if value < _SMALLEST:
        return "< 10⁻³⁰⁰"
    if value >= 1e-3:
        return f"{value:.2g}"
    return f"10{str(round(math.log10(value))).translate(_SUPERSCRIPTS)}"


def exact(value: Any) -> str:
    """Return a number with every digit it has; empty for what is no fraction.

    Examples
    --------
    >>> exact(1 / 8), exact(8), exact("q")
    ('0.125', '', '')
    """
    if not isinstance(value, float | np.floating) or undefined(value) or float(value).is_integer():
        return ""
    return repr(float(value))


def undefined(value: Any) -> bool:
    """Whether a cell holds nothing."""
    if isinstance(value, list | tuple | np.ndarray):
        return False
    return value is None or bool(pd.isna(value))


def short_name(name: str, width: int = 72) -> str:
    """Return a name with its middle cut out where it is longer than `width`.

    Examples
    --------
    >>> short_name("model.layers.31.self_attn.q_proj", 20)
    'model.l…attn.q_proj'
    """
    if len(name) <= width:
        return name
    head = (width - 1) * 2 // 5
    return f"{name[:head]}…{name[len(name) - (width - 2 - head) :]}"
