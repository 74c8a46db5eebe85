"""Groups of runs: means, intervals and shuffled labels, against plants and simulations."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankscope.measures.replicates import (
    group_mean,
    mean_interval,
    pair_values,
    seed_interval,
    shuffle_p_value,
)


def drawn(count, rng, *, source=1.0, pair=1.0):
    """Return a symmetric square of source effects and pair effects, no groups."""
    own = source * rng.standard_normal(count)
    noise = np.triu(pair * rng.standard_normal((count, count)), 1)
    return own[:, None] + own + noise + noise.T


def plain_p(square, a, b):
    """Go through all arrangements with loops."""
    members = [*a, *b]

    def parted(first):
        within, between = [], []
        for i, j in combinations(members, 2):
            same = (i in first) == (j in first)
            (within if same else between).append(square[i, j])
        return np.mean(within) - np.mean(between)

    every = [parted(first) for first in combinations(members, len(a))]
    return np.mean([one >= parted(tuple(a)) - 1e-12 for one in every])


@given(seed=st.integers(0, 2**31), sizes=st.tuples(st.integers(1, 3), st.integers(2, 4)))
def test_every_arrangement_is_gone_through(seed, sizes):
    square = drawn(sum(sizes), np.random.default_rng(seed))
    a, b = range(sizes[0]), range(sizes[0], sum(sizes))
    p, arrangements = shuffle_p_value(square, a, b)
    assert arrangements == math.comb(sum(sizes), sizes[0])
    assert p == pytest.approx(plain_p(square, a, b))
    turned, _ = shuffle_p_value(-square, a, b, sign=-1.0)
    assert turned == p


def test_planted_groups_have_the_least_p():
    square = np.kron(np.eye(2), np.ones((4, 4))) + 0.01 * drawn(8, np.random.default_rng(0))
    assert shuffle_p_value(square, range(4), range(4, 8)) == (pytest.approx(2 / 70), 70)
    # Too many to go through: the truth and 9,999 drawn ones, of which few or none reach it.
    square = np.kron(np.eye(2), np.ones((10, 10)))
    p, arrangements = shuffle_p_value(square, range(10), range(10, 20))
    assert arrangements == 10_000
    assert 1e-4 <= p < 5e-4


@pytest.mark.parametrize(("sizes", "level"), [((3, 3), 0.1), ((2, 6), 0.1), ((4, 4), 0.2)])
def test_labels_without_meaning_are_rejected_as_often_as_said(sizes, level):
    rng = np.random.default_rng(3)
    a, b = range(sizes[0]), range(sizes[0], sum(sizes))
    found = [shuffle_p_value(drawn(sum(sizes), rng), a, b)[0] for _ in range(600)]
    # Never more often; less often where the p-values are few.
    assert np.mean(np.array(found) <= level) < level + 3 * math.sqrt(level / 600)
    assert np.mean(found) == pytest.approx(0.5 + 0.5 / 10, abs=0.08)


@pytest.mark.parametrize(("count", "least"), [(3, 0.4), (5, 0.7), (8, 0.78)])
def test_intervals_hold_the_truth_about_as_often_as_said(count, least):
    rng = np.random.default_rng(4)
    held = []
    for trial in range(200):
        places = range(count)
        low, high = seed_interval(drawn(count, rng, pair=0.3), places, places, seed=trial)
        held.append(low <= 0 <= high)
    assert least < np.mean(held) <= 0.97
    values = [mean_interval(rng.standard_normal(24), seed=n) for n in range(200)]
    assert np.mean([low <= 0 <= high for low, high in values]) == pytest.approx(0.94, abs=0.04)


def test_too_few_have_no_interval_and_no_test():
    square = drawn(4, np.random.default_rng(0))
    assert np.isnan(seed_interval(square, [0, 1], [0, 1])).all()
    assert np.isnan(seed_interval(square, [0, 1], [1, 2, 3])).all()
    assert np.isnan(mean_interval(np.array([1.0, math.nan, 2.0]))).all()
    assert math.isnan(shuffle_p_value(square, [0], [1])[0])
    assert math.isnan(group_mean(square, [2], [2]))


def test_pairs_that_share_nothing_do_not_count():
    square = drawn(6, np.random.default_rng(1))
    square[0, 1] = square[1, 0] = math.nan
    assert pair_values(square, [0, 1, 2], [0, 1, 2]).tolist() == [square[0, 2], square[1, 2]]
    assert group_mean(square, [0], [1]) != group_mean(square, [0], [1])  # NaN
    assert np.isfinite(seed_interval(square, [0, 1, 2], [0, 1, 2])).all()
    square[2, 2] = 1e9  # a diagonal is not read
    low, high = seed_interval(square, [0, 1, 2], [0, 1, 2])
    assert low <= group_mean(square, [0, 1, 2], [0, 1, 2]) <= high < 1e6
    p, arrangements = shuffle_p_value(square, [0, 1, 2], [3, 4, 5])
    assert arrangements == 20
    assert 0 < p <= 1
