"""The claims of the LoRA paper's section 7, tested on the runs of one experiment.

Which claims there are, their statistics and the rules by which they are held are fixed here, not
chosen by results. What was changed after reviews that knew the results, because a rule could not
have failed, or not in the same way at all ranks: *near chance*, whose sentence says what the
former rule gives; *falls with r*, whose trend test is now of the excess alone; *recovers*, which
is also judged by whole answers; and shuffled labels, judged at every rank and on both sides.

- *Sharing* (the top direction between ranks and between seeds) and *amplification* are tested
  against random directions, by seeded simulation that draws one direction per run and module, so
  that pairs which share a run are as dependent as the observed ones. Held: every pair (run) lies
  above chance and the adjusted p is below 0.05.
- *Above one half* is the paper's own threshold for φ(1,1). Held: every pair is above.
- *Near chance*: at most one direction is shared, on the mean over layers, in every pair: at most
  one principal cosine lies beyond what random subspaces of these ranks reach. It takes two
  directions of both.
- *q more than v*: in every pair of runs, and in every run.
- *Not emphasised*: less than a quarter of the energy that W has in its own first directions, in
  every run.
- *Falls with r*: the amplification at the largest rank lies below that at the smallest for every
  seed. It has no p: along random directions of one norm it falls as 1/r, and that stands beside
  it.
- *Later directions less those of W*: of the excess over random directions, Page's exact test of a
  trend over the ranks, seeds as rows; held if the adjusted p is below 0.05 and the largest rank
  lies below the smallest for every seed.
- *Suffices* and *recovers* are tests of non-inferiority: paired over seeds, one-sided t, margin
  0.01 of token accuracy, or of answers that are right as a whole, three seeds or more, on the
  same held-out rows. Held: adjusted p below
  0.05. Not tested unless r = 1 loses more than the margin in every seed (nothing could have been
  lost), nor where the differences do not vary.
- *Controls*: drawn directions must be within what chance reaches once in a thousand times, of
  19,999 draws; shuffled labels and shared starts must be separated from what they are compared
  with by every pair, of which it takes two.

Units are runs or pairs of runs, over whose modules everything is averaged first: the modules of a
run are not independent. Where runs are exchanged (p of signs, of labels) three seeds cannot give
less than 1/8, so there the effect in every unit decides, and p stands beside it, unadjusted.
Pairs share runs, so that their signs cannot be exchanged: they have no p. A claim for which there
are too few runs is not tested, and says why.
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
        random directions give. `p_adjusted` is Benjamini and Hochberg's over the claims that it
        decides, those of the rule ``p``. `held` is NA where there are too few runs; `rule` says
        what decided it: ``p``, the ``effect`` in every unit, or ``chance``, for the control that
        is drawn.
    """
    found = [*score_claims(runs), *direction_claims(runs), *weight_claims(runs)]
    return judged(found)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a claims table that are printed, `held` in words and by what rule."""
    words = [_WORDS.get(held, "not tested") for held in table.held]
    columns = ["claim", "value", "control", "chance", "p", "p_adjusted", "n", "rule"]
    return table[columns].assign(held=words)


def as_json(table: pd.DataFrame) -> Mapping[str, Any]:
    """Return the content of ``claims.json``; what is undefined is null."""
    content: Mapping[str, Any] = plain(
        {"schema": SCHEMA, "rows": table.astype({"held": object}).to_dict(orient="records")}
    )
    return content
