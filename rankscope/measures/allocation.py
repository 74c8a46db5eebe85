r"""Allocation: the ranks of several updates that share one budget of parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.errors import UpdateError

__all__ = ["allocate"]


def allocate(
    spectra: Sequence[Float[Tensor, " _"]], costs: Sequence[int], budget: int
) -> list[int]:
    r"""Return the rank of each update that together keep most energy within a budget.

    Maximises :math:`\sum_m \sum_{i \le r_m} s_{m,i}^2` under :math:`\sum_m r_m c_m \le B`,
    taking directions in the order of energy per parameter, :math:`s^2 / c`, and passing over
    those that no longer fit.

    Parameters
    ----------
    spectra : sequence of (k,) Tensor
        Singular values of each update, descending, all in the same unit; the k may differ.
    costs : sequence of int
        Parameters per unit of rank, ``out + in``, one per update.
    budget : int
        Parameters in all, 0 or more.

    Returns
    -------
    list of int
        Between 0 and the number of singular values that are not zero; all 0 where the budget
        holds not a single direction. Equal energies per parameter go to the earlier update.

    Raises
    ------
    UpdateError
        If there is not one cost of at least 1 per spectrum, or the budget is negative.

    Notes
    -----
    This is a knapsack whose items come in the right order by themselves: values descend within
    an update. If nothing had to be passed over, or all costs are equal, no choice keeps more
    energy. Otherwise the best choice keeps more by less than the energy of the first direction
    passed over: up to it no choice of that size is better, and what is left of the budget is
    worth less than the whole direction at its own price [1]_.

    References
    ----------
    .. [1] G. B. Dantzig, "Discrete-variable extremum problems", Operations Research 5 (1957).

    Examples
    --------
    >>> allocate([torch.tensor([4.0, 1.0]), torch.tensor([3.0, 2.0])], costs=[10, 10], budget=30)
    [1, 2]
    """
    _check(spectra, costs, budget)
    # In units of the largest, so that squares neither overflow nor vanish.
    unit = max((s.max().item() for s in spectra if len(s)), default=0.0) or 1.0
    gains = [(s.double() / unit).square() / cost for s, cost in zip(spectra, costs, strict=True)]
    ranks, left = [0] * len(spectra), budget
    for owner in _by_gain(gains):
        if costs[owner] <= left:
            ranks[owner] += 1
            left -= costs[owner]
    return ranks


def _by_gain(gains: Sequence[Tensor]) -> list[int]:
    """Return the owner of every gain above zero, largest gain first, ties in their order."""
    if not gains:
        return []
    sizes = torch.tensor([len(gain) for gain in gains])
    owners = torch.arange(len(gains)).repeat_interleave(sizes)
    together = torch.cat(list(gains)).cpu()
    order = together.argsort(descending=True, stable=True)
    found: list[int] = owners[order[together[order] > 0]].tolist()
    return found


def _check(spectra: Sequence[Tensor], costs: Sequence[int], budget: int) -> None:
    if len(costs) != len(spectra) or any(cost < 1 for cost in costs) or budget < 0:
        raise UpdateError(
            "ranks cannot be allocated so",
            where="allocate(spectra, costs, budget)",
            expected=f"{len(spectra)} costs of at least 1, and a budget of at least 0",
            got=f"{len(costs)} costs, the least {min(costs, default=None)}, and {budget}",
            fix="pass out + in of each update, and a number of parameters",
        )
