import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rankscope.linalg import edges
from rankscope.linalg.chance import (
    adjusted_p_values,
    expected_overlap,
    overlap_p_value,
    overlap_sd,
    random_subspace,
)
from rankscope.linalg.edges import cosine_edge


def haar_overlaps(i, j, d, n, seed):
    """Overlaps of n random j-dimensional subspaces with the first i coordinates."""
    rng = np.random.default_rng(seed)
    draws = (random_subspace(d, j, rng)[:i] for _ in range(n))
    return np.array([np.square(block).sum() for block in draws]) / min(i, j)


def squared_cosines(i, j, d, n, seed):
    """Ascending roots of A(A+B)⁻¹, Wishart A and B: the law of n pairs, whatever the size of d."""
    rng, p = np.random.default_rng(seed), min(i, j)

    def wishart(freedom):
        factor = np.tril(rng.standard_normal((n, p, p)), -1)
        k = np.arange(p)
        factor[:, k, k] = np.sqrt(rng.chisquare(freedom - k, size=(n, p)))
        return factor @ factor.transpose(0, 2, 1)

    a, b = wishart(max(i, j)), wishart(d - max(i, j))
    root = np.linalg.inv(np.linalg.cholesky(a + b))
    return np.linalg.eigvalsh(root @ a @ root.transpose(0, 2, 1))


# Mean, standard deviation and the 95, 99 and 99.9 % quantiles, printed to a few digits.
TABLE = [
    (1, 1, 64, 0.015625, 0.02159, (0.0589, 0.1004, 0.163)),
    (4, 4, 64, 0.0625, 0.02056, (0.0994, 0.1181, 0.141)),
    (8, 64, 768, 0.08333, 0.00496, (0.0915, 0.0950, 0.0990)),
    (8, 64, 4096, 0.015625, 0.000968, (0.01725, 0.01794, 0.0187)),
    (64, 64, 4096, 0.015625, 0.0003398, (0.01621, 0.01643, 0.0167)),
    (1, 64, 12288, 0.005208, 0.000918, (0.0068, 0.0076, 0.0085)),
]


@pytest.mark.parametrize(("i", "j", "d", "mean", "sd", "quantiles"), TABLE)
def test_moments_and_quantiles_match_the_reference_table(i, j, d, mean, sd, quantiles):
    assert expected_overlap(i, j, d) == pytest.approx(mean, rel=1e-4)
    assert overlap_sd(i, j, d) == pytest.approx(sd, rel=1e-3)
    # The printed quantiles were drawn, and rounded: so far off, in standard deviations.
    slack = sd * np.array([0.1, 0.1, 0.25])
    levels = [0.05, 0.01, 0.001]
    assert (overlap_p_value(quantiles + slack, i, j, d) < levels).all()
    assert (overlap_p_value(quantiles - slack, i, j, d) > levels).all()


@pytest.mark.parametrize(("i", "j", "d"), [row[:3] for row in TABLE])
def test_moments_match_random_subspaces(i, j, d):
    n = 600 if min(i, j) > 8 else 20_000
    overlaps = squared_cosines(i, j, d, n, seed=11).mean(axis=1)
    mean, sd = expected_overlap(i, j, d), overlap_sd(i, j, d)
    assert abs(overlaps.mean() - mean) < 4 * sd / math.sqrt(n)
    kurtosis = stats.kurtosis(overlaps)
    assert overlaps.std() == pytest.approx(sd, rel=4 * math.sqrt((kurtosis + 2) / n) / 2)


def test_moments_broadcast_and_stay_floats_for_integers():
    i, j = np.arange(1, 4)[:, None], np.arange(1, 3)[None, :]
    assert expected_overlap(i, j, 8) * 8 == pytest.approx(np.array([[1, 2], [2, 2], [3, 3]]))
    assert overlap_sd(i, j, 8).shape == (3, 2)
    assert overlap_sd(i, j, 8)[2, 1] == overlap_sd(3, 2, 8)
    assert type(expected_overlap(2, 3, 8)) is type(overlap_sd(2, 3, 8)) is float


@pytest.mark.parametrize(("i", "d"), [(1, 1), (1, 5), (5, 5)])
def test_against_the_whole_space_nothing_is_random(i, d):
    assert expected_overlap(i, d, d) == 1.0
    assert overlap_sd(i, d, d) == overlap_sd(d, i, d) == 0.0
    assert overlap_p_value([0.3, 1 - 1e-12, 1.0, 1 + 1e-12], i, d, d) == pytest.approx(1.0)
    assert cosine_edge(i, d, d) == 1.0


UNIFORM = [
    (1, 5, 12),  # exact Beta
    (11, 5, 12),  # exact Beta, by complements
    (2, 2, 5),  # two cosines
    (2, 3, 8),
    (2, 2, 64),
    (7, 6, 9),  # two cosines, by complements
    (3, 3, 7),  # Monte Carlo
    (4, 4, 9),
    (6, 6, 9),  # Monte Carlo, by complements
    (3, 3, 16),  # moment-matched Beta, where it is worst
    (4, 4, 64),
    (8, 64, 256),
    (40, 30, 64),  # moment-matched Beta, by complements
]


@pytest.mark.parametrize(("i", "j", "d"), UNIFORM)
def test_p_values_are_uniform_under_chance(i, j, d):
    p = overlap_p_value(haar_overlaps(i, j, d, 2000, seed=5), i, j, d)
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_the_moment_matched_law_would_fail_in_a_small_space():
    i, j, d = 2, 2, 5
    mean, sd = expected_overlap(i, j, d), overlap_sd(i, j, d)
    weight = mean * (1 - mean) / sd**2 - 1
    law = stats.beta(mean * weight, (1 - mean) * weight)
    assert stats.kstest(haar_overlaps(i, j, d, 2000, seed=5), law.cdf).pvalue < 0.01


def test_two_planes_in_four_dimensions():
    # There 2φ − 1 is the product of two independent uniforms on [−1, 1].
    z = np.array([0.0, 1e-3, 0.2, 0.7, 0.999])
    tail = (1 - z + z * np.log(np.maximum(z, 1e-300))) / 2
    assert overlap_p_value((1 + z) / 2, 2, 2, 4) == pytest.approx(tail, rel=1e-4)
    assert overlap_p_value((1 - z) / 2, 2, 2, 4) == pytest.approx(1 - tail, abs=1e-6)


def test_two_cosines_agree_with_the_matched_law_in_a_large_space():
    i, j, d = 2, 64, 12288
    mean, sd = expected_overlap(i, j, d), overlap_sd(i, j, d)
    weight = mean * (1 - mean) / sd**2 - 1
    phi = mean + sd * np.array([-1.0, 0.0, 1.0, 3.0])
    law = stats.beta(mean * weight, (1 - mean) * weight)
    assert overlap_p_value(phi, i, j, d) == pytest.approx(law.sf(phi), rel=0.01)


@pytest.mark.parametrize(("i", "j", "d"), [(4, 4, 64), (8, 8, 64), (8, 64, 768), (3, 40, 64)])
def test_small_tails_are_of_the_right_size(i, j, d):
    n = 50_000
    overlaps = squared_cosines(i, j, d, n, seed=2).mean(axis=1)
    hits = np.count_nonzero(overlap_p_value(overlaps, i, j, d) <= 0.001)
    assert 25 <= hits <= 80  # 50 if exact


def test_complements_overlap_alike():
    rng = np.random.default_rng(0)
    i, j, d = 7, 6, 10
    first, second = (np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(2))
    overlap = np.square(first[:, :i].T @ second[:, :j]).sum()
    rest = np.square(first[:, i:].T @ second[:, j:]).sum()
    assert overlap == pytest.approx(i + j - d + rest, rel=1e-12)
    assert overlap_p_value(overlap / j, i, j, d) == overlap_p_value(rest / 3, d - i, d - j, d)


@pytest.mark.parametrize(("i", "j", "d"), [(1, 3, 32), (2, 3, 32), (4, 4, 64), (60, 60, 64)])
def test_extreme_overlaps(i, j, d):
    assert overlap_p_value(0.0, i, j, d) == 1.0
    assert overlap_p_value(1.0, i, j, d) == overlap_p_value(1 + 1e-7, i, j, d) == 0.0
    assert 0.0 < overlap_p_value(0.995, i, j, d) < 1e-6


def test_far_tails_keep_their_exponent():
    # One direction in the space of d: P(cos² ≥ φ) = (1 − φ)^((d − 2) / 2) for a plane.
    assert overlap_p_value(0.9, 1, 2, 502) == pytest.approx(1e-250, rel=1e-9)


def test_monte_carlo_never_says_zero_and_repeats():
    assert overlap_p_value(1.0, 3, 4, 9) == pytest.approx(2e-5)
    assert overlap_p_value(0.5, 3, 4, 9, seed=1) == overlap_p_value(0.5, 3, 4, 9, seed=1)
    first, second = (overlap_p_value(0.5, 3, 4, 9, seed=seed) for seed in (1, 2))
    assert first != second
    assert first == pytest.approx(second, rel=0.05)


def test_undefined_overlaps_stay_undefined():
    p = overlap_p_value([[np.nan, 0.0]], 3, 3, 7)
    assert p.shape == (1, 2)
    assert np.isnan(p[0, 0])
    assert p[0, 1] == 1.0
    assert math.isnan(overlap_p_value(math.nan, 4, 4, 4))


def test_errors_show_both_sides():
    for call in (expected_overlap, overlap_sd, cosine_edge):
        with pytest.raises(ValueError, match="dimensions 1 to 8; got 9 and 2"):
            call(9, 2, 8)
    with pytest.raises(ValueError, match="dimensions 1 to 8; got 0 and 2"):
        overlap_p_value(0.5, 0, 2, 8)
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]; got 0.5 to 1.5"):
        overlap_p_value([0.5, np.nan, 1.5], 2, 2, 8)
    with pytest.raises(ValueError, match="level"):
        cosine_edge(2, 2, 8, level=1.0)
    with pytest.raises(ValueError, match="dimensions 1 to 3"):
        random_subspace(3, 4, np.random.default_rng(0))


EDGES = [
    (2, 2, 5, 20_000),
    (2, 2, 16, 20_000),
    (2, 2, 64, 20_000),
    (3, 3, 24, 20_000),
    (4, 4, 64, 20_000),
    (8, 8, 256, 20_000),
    (8, 64, 768, 20_000),
    (5, 11, 16, 20_000),
    (64, 64, 256, 500),
    (64, 64, 4096, 500),
]


@pytest.mark.parametrize(("i", "j", "d", "n"), EDGES)
def test_chance_exceeds_the_edge_as_often_as_promised(i, j, d, n):
    largest = np.sqrt(squared_cosines(i, j, d, n, seed=3)[:, -1])
    for level in (0.5, 0.9, 0.99, 0.999):
        hits = int(np.count_nonzero(largest > cosine_edge(i, j, d, level)))
        assert stats.binomtest(hits, n, 1 - level).pvalue > 1e-3


def test_the_limit_law_would_fail_at_few_cosines():
    n = 20_000
    largest = np.sqrt(squared_cosines(2, 2, 16, n, seed=3)[:, -1])
    limit = math.sin(edges._soft_edge(2, 2, 16, edges.tracy_widom(0.999)))
    hits = int(np.count_nonzero(largest > limit))
    assert stats.binomtest(hits, n, 0.001).pvalue < 1e-3


@pytest.mark.parametrize("level", [0.01, 0.5, 0.999, 1 - 1e-6])
def test_edge_of_two_planes_in_four_dimensions(level):
    # Twice the smaller angle is the difference of two polar angles uniform on the sphere.
    angle = math.acos(cosine_edge(2, 2, 4, level))
    turn = 2 * angle
    reached = (1 + math.cos(turn) - (math.pi - turn) * math.sin(turn) / 2) / 2
    assert reached == pytest.approx(level, abs=1e-9)


def test_edge_of_one_direction_is_the_beta_quantile():
    for q in (1, 5, 63):
        exact = math.sqrt(stats.beta.ppf(0.999, q / 2, (64 - q) / 2))
        assert cosine_edge(1, q, 64) == cosine_edge(q, 1, 64) == pytest.approx(exact, rel=1e-12)
        total = edges._log_pfaffian(0.0, math.pi / 2, 1, q, 64)
        reached = edges._log_pfaffian(0.0, math.asin(exact), 1, q, 64) - total
        assert math.exp(reached) == pytest.approx(0.999, rel=1e-9)


def test_subspaces_that_must_meet_have_edge_one():
    assert cosine_edge(5, 4, 8) == cosine_edge(1, 1, 1) == 1.0
    assert cosine_edge(4, 4, 8) < 1.0


def test_the_limit_law_takes_over_without_a_jump(monkeypatch):
    exact = cosine_edge(128, 100, 1024), cosine_edge(128, 128, 4096)
    edges._edge.cache_clear()
    monkeypatch.setattr(edges, "_EXACT_UP_TO", 64)
    limit = cosine_edge(128, 100, 1024), cosine_edge(128, 128, 4096)
    edges._edge.cache_clear()
    assert limit == pytest.approx(exact, rel=1e-3)
    assert limit > exact


@pytest.mark.parametrize(("level", "quantile"), [(0.95, 0.9793), (0.99, 2.0234), (0.999, 3.2722)])
def test_tracy_widom_quantiles(level, quantile):
    assert edges.tracy_widom(level) == pytest.approx(quantile, abs=1e-4)


def test_benjamini_hochberg_by_hand():
    p = np.array([[0.01, 0.04, np.nan], [0.03, 0.005, np.nan]])
    adjusted = adjusted_p_values(p)
    assert adjusted[:, :2] == pytest.approx(np.array([[0.02, 0.04], [0.04, 0.02]]))
    assert np.isnan(adjusted[:, 2]).all()
    assert np.isnan(p[:, 2]).all()
    assert p[0, 0] == 0.01  # the caller's array is left alone
    assert np.isnan(adjusted_p_values([np.nan])).all()
    assert adjusted_p_values([]).shape == (0,)
    with pytest.raises(ValueError, match="between 0 and 1"):
        adjusted_p_values([0.5, 1.5])


def test_random_bases_are_haar_and_not_only_their_spans():
    rng = np.random.default_rng(0)
    corners = np.array([random_subspace(4, 2, rng)[0, 0] for _ in range(2000)])
    # Without the signs every corner would be negative, as Householder leaves it.
    assert stats.kstest((1 + corners) / 2, stats.beta(1.5, 1.5).cdf).pvalue > 0.01


# Spaces of 8 to 15 dimensions are left out only because each shape costs a Monte Carlo.
SPACES = st.one_of(st.integers(1, 7), st.integers(16, 150))
SHAPES = SPACES.flatmap(lambda d: st.tuples(st.integers(1, d), st.integers(1, d), st.just(d)))


@settings(deadline=None, max_examples=150)
@given(shape=SHAPES, phi=st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_p_values_are_symmetric_monotone_probabilities(shape, phi):
    i, j, d = shape
    p = overlap_p_value(sorted(phi), i, j, d)
    assert np.array_equal(p, overlap_p_value(sorted(phi), j, i, d))
    assert ((p >= 0) & (p <= 1)).all()
    assert (np.diff(p) <= 1e-6).all()  # the quadrature's error, see the two planes


@settings(deadline=None, max_examples=60)
@given(shape=SHAPES, levels=st.tuples(st.floats(0.01, 0.99), st.floats(1e-3, 0.0099)))
def test_edges_are_symmetric_and_grow_with_the_level(shape, levels):
    i, j, d = shape
    low, high = cosine_edge(i, j, d, levels[0]), cosine_edge(i, j, d, 1 - levels[1])
    assert 0 < low <= high <= 1
    assert low == cosine_edge(j, i, d, levels[0])
    assert expected_overlap(i, j, d) == expected_overlap(j, i, d)
    assert overlap_sd(i, j, d) == overlap_sd(j, i, d)


@settings(deadline=None)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_adjusting_keeps_order_and_only_raises(p):
    adjusted = adjusted_p_values(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
