"""Finding the model's tensors inside what training scripts save around them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rankscope.errors import SourceError
from rankscope.io.containers.store import printable

__all__ = ["peeled"]

# Under these keys training scripts keep the model; all else is left out, above all the
# optimizer, whose moments have the shapes of weights.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "params",
    "params_ema",
    "ema",
    "ema_model",
    "model_ema",
    "generator",
    "net",
    "network",
    "student",
    "teacher",
)
# A dictionary in a pickle may hold itself.
_DEPTH = 8


def peeled(content: object, label: str, nest: str | None = None) -> dict[str, Tensor]:
    """Return the flat tensors of a model out of the dictionaries that wrap them.

    Entries beside the model (counters, options, the optimizer) are left out. Of several
    models `nest` says which is meant: the key that it stands under, or several, one inside
    the other, with ``::`` between.

    Raises
    ------
    SourceError
        If there are none, or several models and nothing says which is meant, or none under
        that key.

    Examples
    --------
    >>> import torch
    >>> list(peeled({"step": 3, "model": {"state_dict": {"w": torch.ones(1)}}}, "x.pt"))
    ['w']
    """
    keys = [] if nest is None else nest.split("::")
    for _ in range(_DEPTH):
        if not isinstance(content, Mapping):
            break
        if keys and _holds_tensors(content.get(keys[0])):
            content = content[keys.pop(0)]
            continue
        choices = [key for key in _WRAPPERS if _holds_tensors(content.get(key))]
        flat = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if keys and (len(choices) != 1 or _has_matrix(flat)):
            raise _no_such(label, keys[0], [*choices, *flat])
        if len(choices) > 1 or (choices and _has_matrix(flat)):
            raise _ambiguous(label, [*choices, *flat])
        if not choices and flat:
            return flat
        if not choices:
            break
        content = content[choices[0]]
    raise SourceError(
        "no tensors found",
        where=label,
        expected="a flat dictionary from names to tensors",
        got=_shown(content),
        fix="pass model.state_dict(), or the dictionary inside the checkpoint",
    )


def _holds_tensors(value: object) -> bool:
    """Whether a mapping has tensors, or wraps mappings that have."""
    for _ in range(_DEPTH):
        if not isinstance(value, Mapping):
            break
        if any(isinstance(v, Tensor) for v in value.values()):
            return True
        value = next((value[k] for k in _WRAPPERS if isinstance(value.get(k), Mapping)), None)
    return False


def _has_matrix(flat: Mapping[str, Tensor]) -> bool:
    # A loss or a step count is often saved as a tensor; only matrices make a second model.
    return any(tensor.ndim > 1 for tensor in flat.values())


def _ambiguous(label: str, choices: list[str]) -> SourceError:
    return SourceError(
        "the checkpoint holds several models",
        where=label,
        expected="one dictionary of tensors",
        got=_listed(choices),
        fix=f"name the one you mean: {label}::{printable(choices[0])}",
    )


def _no_such(label: str, key: str, found: list[str]) -> SourceError:
    return SourceError(
        "the checkpoint holds no model of this name",
        where=label,
        expected=f"tensors under the key {key!r}",
        got=_listed(found),
        fix="name one of these after '::', or none if there is only one",
    )


def _listed(names: list[str]) -> str:
    return ", ".join(map(printable, names[:8])) + (" …" if len(names) > 8 else "") or "none"


def _shown(content: object) -> str:
    if isinstance(content, Mapping) and content:
        keys = [printable(key) for key in list(content)[:6] if isinstance(key, str)]
        return f"{type(content).__name__} with {', '.join(keys)}"[:200]
    return type(content).__name__
