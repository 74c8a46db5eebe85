"""Rows as JSON and back, to the bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["decode", "encode"]

_ARRAY, _NA = "__array__", "__na__"


def encode(value: Any) -> str:
    """Return a value of numbers, words, lists and arrays as one line of JSON.

    Python writes floats with as many digits as it takes to read the same bits again.

    Examples
    --------
    >>> encode({"phi": np.array([0.1, np.nan])})
    '{"phi": {"__array__": [0.1, NaN], "dtype": "float64"}}'
    """
    return json.dumps(value, default=_plain)


def decode(line: str) -> Any:
    """Return what `encode` was given, with lists for tuples.

    Examples
    --------
    >>> decode(encode({"phi": np.array([[0.1]])}))["phi"]
    array([[0.1]])
    """
    return json.loads(line, object_hook=_rich)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {_ARRAY: value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        return value.item()
    if value is pd.NA:
        return {_NA: True}
    raise TypeError(f"a row holds a {type(value).__name__}")


def _rich(content: dict[str, Any]) -> Any:
    if content.keys() == {_ARRAY, "dtype"}:
        return np.array(content[_ARRAY], dtype=content["dtype"])
    return pd.NA if content.keys() == {_NA} else content
