"""The numbers that the LoRA paper prints, to stand beside measured ones."""

from __future__ import annotations

from importlib.resources import files

import pandas as pd

from rankscope.errors import SourceError

__all__ = ["PUBLISHED", "published"]

PUBLISHED = tuple(f"table{n}" for n in (1, 2, 3, 4, 5, 6, 7, 15, 16, 18))


def published(name: str) -> pd.DataFrame:
    """Return one table of the paper, as it is printed in version 2.

    Parameters
    ----------
    name : str
        One of `PUBLISHED`. 1: time of GPT-2 Medium's forward pass. 2: GLUE in percent, 3: GPT-2
        on E2E, 4: GPT-3 on WikiSQL (±0.5), MultiNLI (±0.1) and SAMSum (±0.2, ±0.2, ±0.1),
        against the method; `setup` is ``prior`` for numbers of earlier work, ``houlsby`` for
        runs set up as the adapters' authors did, ``paper`` for the others. 5 and 6: accuracy on
        WikiSQL and MultiNLI, in percent, against adapted matrices and rank. 7: ‖UᵀWV‖ of layer
        48's Wq with the first `rank` directions of ΔW, of W and of a random matrix. 15: methods
        and sizes on GPT-3; PE and PL add prefixes to embeddings and layers. 16: MultiNLI against
        the number of examples. 18: GPT-2 Medium on E2E against rank. Parameters are in millions;
        ``…_sd`` is what the paper prints behind ±.

    Returns
    -------
    DataFrame
        Empty cells, where the paper has none, are NaN.

    Raises
    ------
    SourceError
        If no such table is shipped.

    References
    ----------
    .. [1] E. Hu et al., "LoRA: Low-rank adaptation of large language models", 2021,
       arXiv:2106.09685v2

    Examples
    --------
    >>> published("table7").projection_update.tolist()
    [0.32, 1.9]
    """
    if name not in PUBLISHED:
        raise SourceError(
            "this table is not shipped",
            where="published(name)",
            expected=f"one of {', '.join(PUBLISHED)}",
            got=repr(name),
            fix="choose one of them",
        )
    with (files(__name__) / f"{name}.csv").open() as file:
        return pd.read_csv(file)
