"""Other layers in the place of a model's linear ones."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

__all__ = ["replace_linears"]


def replace_linears(
    model: nn.Module,
    chosen: Callable[[str], bool],
    make: Callable[[str, nn.Linear], nn.Module],
) -> None:
    """Put ``make(name, linear)`` in the place of every linear layer whose name is `chosen`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> replace_linears(model, lambda name: name == "1", lambda name, linear: nn.Identity())
    >>> model[1]
    Identity()
    """
    found = [(name, module) for name, module in model.named_modules() if chosen(name)]
    for name, module in found:
        if isinstance(module, nn.Linear):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, make(name, module))
