"""The claims of the LoRA paper's section 7, tested on the runs of one experiment.

Which claims there are, their statistics and the rules by which they are held are fixed here, not
chosen by results:

- *Sharing* (the top direction between ranks and between seeds) and *amplification* are tested
  against random directions, by seeded simulation that draws one direction per run and module, so
  that pairs which share a run are as dependent as the observed ones. Held: every pair (run) lies
  above chance and the adjusted p is below 0.05.
- *Above one half* is the paper's own threshold for φ(1,1). Held: every pair is above.
- *Near chance*: of the way from chance to containment the directions but the first go less than a
  tenth, in every pair.
- *q more than v*: in every pair of runs, and in every run.
- *Not emphasised*: less than a quarter of the energy that W has in its own first directions, in
  every run.
- *Falls with r*: Page's exact test of a trend over the ranks, seeds as rows; held if the adjusted
  p is below 0.05 and the largest rank lies below the smallest for every seed.
- *Suffices* and *recovers* are tests of non-inferiority: paired over seeds, one-sided t, margin
  0.01 of token accuracy, three seeds or more. Held: adjusted p below 0.05.
- *Controls*: drawn directions must be within what chance reaches once in a thousand times;
  shuffled labels and different starts must be separated from what they are compared with by every
  pair.

Units are runs or pairs of runs, over whose modules everything is averaged first: the modules of a
run are not independent. Where units are exchanged (p of signs, of labels) three seeds cannot give
less than 1/8, so there the effect in every unit decides and p stands beside it. A claim for which
there are too few runs is not tested, and says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from rankscope.experiments.claims_directions import direction_claims
from rankscope.experiments.claims_scores import score_claims
from rankscope.experiments.claims_weights import weight_claims
from rankscope.experiments.evidence import judged
from rankscope.experiments.measured import Runs
from rankscope.tables import plain

__all__ = ["as_json", "claims", "shown"]

SCHEMA = "rankscope.claims/1"
_WORDS = {True: "held", False: "not held"}


def claims(runs: Runs) -> pd.DataFrame:
    """Return every claim with its test, and whether it is held here.

    Parameters
    ----------
    runs : Runs

    Returns
    -------
    DataFrame
        A row per claim: ``claim statistic value control chance p p_adjusted held rule n unit
        seeds says``. `control` is the statistic of what the claim compares with, `chance` what
        random directions give. `p_adjusted` is Benjamini and Hochberg's over all claims but the
        controls. `held` is NA where there are too few runs; `rule` says what decided it: ``p``,
        the ``effect`` in every unit, or ``chance``, for controls.
    """
    found = [*score_claims(runs), *direction_claims(runs), *weight_claims(runs)]
    return judged(found)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a claims table that are printed, `held` in words."""
    words = [_WORDS.get(held, "not tested") for held in table.held]
    columns = ["claim", "value", "control", "chance", "p", "p_adjusted", "n"]
    return table[columns].assign(held=words)


def as_json(table: pd.DataFrame) -> Mapping[str, Any]:
    """Return the content of ``claims.json``; what is undefined is null."""
    content: Mapping[str, Any] = plain(
        {"schema": SCHEMA, "rows": table.astype({"held": object}).to_dict(orient="records")}
    )
    return content
