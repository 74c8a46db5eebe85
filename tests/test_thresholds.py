"""Noise thresholds and shrinkage against closed forms, quadrature and drawn matrices."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import gaussian, with_spectrum
from scipy import integrate

from rankscope.linalg.marchenko import noise_median, noise_share_below
from rankscope.measures import rank as ranks
from rankscope.measures import thresholds as m
from rankscope.measures.decay import spectral_decay

# β: λ*, ω with the exact Marchenko-Pastur median.
GAVISH_DONOHO = {
    0.05: (1.50661, 1.51934),
    0.1: (1.58165, 1.60877),
    0.2: (1.70482, 1.76505),
    0.25: (1.75803, 1.83687),
    1 / 3: (1.83854, 1.95140),
    0.5: (1.97860, 2.17119),
    0.75: (2.15609, 2.50143),
    1.0: (2.30940, 2.85836),
}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def density(x, beta):
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    return math.sqrt(max((high - x) * (x - low), 0)) / (2 * math.pi * beta * x)


class TestMarchenkoPastur:
    @pytest.mark.parametrize("beta", [0.01, 0.3, 0.9, 1.0])
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
    def test_the_closed_form_is_the_integral_of_the_density(self, beta, share):
        low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
        x = low + share * (high - low)
        area, _ = integrate.quad(density, low, x, args=(beta,), limit=200)
        assert noise_share_below(x, beta) == pytest.approx(area, abs=1e-7)
        assert noise_share_below(low, beta) == 0
        assert noise_share_below(high * 1.01, beta) == 1

    @pytest.mark.parametrize("beta", [1e-6, 0.05, 0.5, 1.0])
    def test_half_lies_below_the_median(self, beta):
        assert noise_share_below(noise_median(beta), beta) == pytest.approx(0.5, abs=1e-9)

    @pytest.mark.parametrize("beta", [0.0, -0.5, 1.5, math.nan])
    def test_a_ratio_that_is_none(self, beta):
        with pytest.raises(ValueError, match="aspect ratio"):
            noise_median(beta)


class TestThresholds:
    @pytest.mark.parametrize(("beta", "expected"), GAVISH_DONOHO.items())
    def test_gavish_and_donohos_table(self, beta, expected):
        known = m.hard_threshold_ratio(beta)
        assert known == pytest.approx(expected[0], abs=6e-6)
        assert known / math.sqrt(noise_median(beta)) == pytest.approx(expected[1], abs=6e-6)

    @pytest.mark.parametrize("beta", [0.1, 0.4, 0.7, 1.0])
    def test_their_cubic_is_near(self, beta):
        omega = m.hard_threshold_ratio(beta) / math.sqrt(noise_median(beta))
        cubic = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
        assert omega == pytest.approx(cubic, abs=0.02)

    def test_unknown_noise_is_omega_times_the_median(self):
        s, shape = tensor(50, 3, 2, 1.5, 1), (5, 20)
        threshold = m.hard_threshold(m.bulk_scale(s, shape), shape)
        assert threshold == pytest.approx(1.83687 * 2, rel=1e-5)
        assert m.hard_threshold_rank(s, shape) == 1

    @pytest.mark.parametrize("shape", [(200, 200), (100, 400), (300, 150)])
    def test_noise_has_its_scale_and_no_rank(self, rng, shape):
        noise = 0.03 * gaussian(*shape, rng=rng)
        s = torch.linalg.svdvals(noise)
        assert m.bulk_scale(s, shape) == pytest.approx(0.03, rel=0.02)
        assert m.entry_scale(noise) == pytest.approx(0.03, rel=0.02)
        assert m.bulk_edge_rank(s, shape) == m.bulk_edge_rank(s, shape, 0.03) == 0
        assert m.hard_threshold_rank(s, shape) == m.hard_threshold_rank(s, shape, 0.03) == 0
        assert s[0].item() == pytest.approx(m.bulk_edge(0.03, shape), rel=0.1)

    def test_the_edge_is_exceeded_once_in_a_thousand(self, rng):
        s = torch.linalg.svdvals(gaussian(3000, 20, 30, rng=rng))[:, 0]
        beyond = (s > m.bulk_edge(1.0, (20, 30))).double().mean().item()
        assert beyond == pytest.approx(0.001, abs=0.002)
        assert (s > math.sqrt(20) + math.sqrt(30)).double().mean() > 0.05  # the plain formula

    @pytest.mark.parametrize("r", [1, 4, 12])
    @pytest.mark.parametrize("shape", [(160, 160), (120, 240)])
    def test_planted_directions_are_counted(self, rng, r, shape):
        eta = 0.01
        detectable = eta * (shape[0] * shape[1]) ** 0.25
        planted = with_spectrum([4 * detectable] * r, *shape, rng)
        s = torch.linalg.svdvals(planted + eta * gaussian(*shape, rng=rng))
        for noise in (None, eta):
            assert m.bulk_edge_rank(s, shape, noise) == r
            assert m.hard_threshold_rank(s, shape, noise) == r

    @pytest.mark.parametrize("s", [(9.0, 4.0), (9.0, 4.0, 0.0, 0.0), (), (0.0, 0.0, 0.0, 0.0)])
    def test_without_a_bulk_nothing_is_counted(self, s):
        s = tensor(*s)
        assert m.bulk_scale(s, (4, 5)) == 0
        assert m.bulk_edge_rank(s, (4, 5)) is None
        assert m.hard_threshold_rank(s, (4, 5)) is None

    def test_the_median_of_an_odd_and_an_even_spectrum(self):
        unit = math.sqrt(4 * noise_median(1.0))
        assert m.bulk_scale(tensor(5, 3, 2, 1), (4, 4)) * unit == pytest.approx(2.5)
        unit = math.sqrt(3 * noise_median(1.0))
        assert m.bulk_scale(tensor(5, 3, 2), (3, 3)) * unit == pytest.approx(3)

    @given(factor=st.floats(1e-3, 1e3), seed=st.integers(0, 2**31))
    def test_scale_and_transpose(self, factor, seed):
        rng = torch.Generator().manual_seed(seed)
        s = torch.linalg.svdvals(gaussian(6, 9, rng=rng))
        assert m.bulk_scale(factor * s, (6, 9)) == pytest.approx(factor * m.bulk_scale(s, (9, 6)))
        assert m.bulk_edge_rank(factor * s, (6, 9)) == m.bulk_edge_rank(s, (9, 6))
        assert m.hard_threshold_rank(factor * s, (6, 9)) == m.hard_threshold_rank(s, (9, 6))


class TestShrinkage:
    def test_square_oracle(self):
        unit = 0.5 * math.sqrt(9)
        shrunk = m.shrunk(unit * tensor(2.5, 2.0, 1.0), (9, 9), 0.5)
        assert (shrunk / unit).tolist() == pytest.approx([1.5, 0, 0])

    def test_without_noise_nothing_shrinks(self):
        assert m.shrunk(tensor(2, 1), (4, 4), 0.0).tolist() == [2, 1]

    @pytest.mark.parametrize("shape", [(400, 400), (300, 600)])
    def test_it_is_the_planted_value_times_the_cosines(self, shape):
        # θ → what noise makes of it → what is left of it along the true directions.
        (short, long), z = sorted(shape), 1.8
        beta = short / long
        y = math.sqrt((z**2 + 1) * (z**2 + beta)) / z
        u = (z**4 - beta) / (z**4 + beta * z**2)
        v = (z**4 - beta) / (z**4 + z**2)
        unit = 0.1 * math.sqrt(long)
        shrunk = m.shrunk(tensor(y) * unit, shape, 0.1).item() / unit
        assert shrunk == pytest.approx(z * math.sqrt(u * v), rel=1e-12)

    def test_it_denoises_better_than_cutting(self, rng):
        shape, eta = (150, 200), 0.02
        truth = with_spectrum([1.2, 0.8, 0.6], *shape, rng)
        seen = truth + eta * gaussian(*shape, rng=rng)
        u, s, vh = torch.linalg.svd(seen, full_matrices=False)
        shrunk = (u * m.shrunk(s, shape, eta) @ vh - truth).norm()
        cut = (u * torch.where(s > m.hard_threshold(eta, shape), s, 0) @ vh - truth).norm()
        assert shrunk < cut < (seen - truth).norm()

    @given(st.lists(st.floats(0, 10), max_size=8), st.floats(0, 2))
    def test_it_never_grows_a_value(self, values, noise):
        s = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
        shrunk = m.shrunk(s, (8, 12), noise)
        assert ((shrunk >= 0) & (shrunk <= s + 1e-12)).all()
        assert (shrunk.diff() <= 1e-12).all()


class TestPureNoise:
    """The null that stands beside every ΔW: the ranks of a Gaussian matrix."""

    @pytest.mark.parametrize(
        ("beta", "effective", "nuclear", "energies"),
        [
            (4096 / 11008, 0.9476, 0.9044, (0.7120, 0.8206, 0.9494)),
            (1 / 4, 0.9662, 0.9364, (0.7612, 0.8605, 0.9653)),
            (1 / 8, 0.9838, 0.9685, (0.8158, 0.8995, 0.9775)),
        ],
    )
    def test_wide_matrix(self, rng, beta, effective, nuclear, energies):
        q = 160
        s = torch.linalg.svdvals(gaussian(q, round(q / beta), rng=rng))
        assert ranks.stable_rank(s) == pytest.approx(q / (1 + math.sqrt(beta)) ** 2, rel=0.04)
        assert ranks.participation_rank(s) == pytest.approx(q / (1 + beta), rel=0.01)
        assert ranks.effective_rank(s) == pytest.approx(effective * q, rel=0.01)
        assert ranks.nuclear_rank(s) == pytest.approx(nuclear * q, rel=0.01)
        for fraction, share in zip((0.90, 0.95, 0.99), energies, strict=True):
            assert ranks.energy_rank(s, fraction) == pytest.approx(share * q, abs=2)

    def test_square_matrix(self, rng):
        s = torch.linalg.svdvals(gaussian(400, 400, rng=rng))
        assert ranks.nuclear_rank(s) == pytest.approx((8 / 3 / math.pi) ** 2 * 400, rel=0.01)
        assert ranks.energy_rank(s, 0.95) == pytest.approx(0.6094 * 400, abs=3)
        assert ranks.energy_rank(s, 0.99) == pytest.approx(0.7706 * 400, abs=3)

    def test_its_decay_is_no_power_law(self, rng):
        s = torch.linalg.svdvals(gaussian(400, 400, rng=rng))
        assert spectral_decay(s).distance > 0.08


class TestDecay:
    @pytest.mark.parametrize("alpha", [2.0, 3.0, 5.0])
    def test_pareto_samples(self, rng, alpha):
        uniform = torch.rand(2000, generator=rng, dtype=torch.float64)
        energies = (1 - uniform).pow(-1 / (alpha - 1)).sort(descending=True).values
        decay = spectral_decay(energies.sqrt())
        assert decay.exponent == pytest.approx(alpha, abs=0.1 * (alpha - 1))
        assert abs(decay.exponent - alpha) < 3.5 * decay.error
        assert decay.distance < 0.02
        assert 100 < decay.tail <= 2000

    @pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
    def test_powers_of_the_index(self, p):
        decay = spectral_decay(torch.arange(1, 2001, dtype=torch.float64) ** -p)
        assert decay.exponent == pytest.approx(1 + 1 / (2 * p), rel=0.01)

    def test_two_values_by_hand(self):
        # Σ ln(λ/λ_min) = ln 4 of n = 2; the law leaves e^-2 beyond 4, the data one half.
        decay = spectral_decay(tensor(2, 1))
        assert decay.exponent == pytest.approx(1 + 2 / math.log(4))
        assert decay.tail == 2
        assert decay.distance == pytest.approx(0.5)
        assert decay.error == pytest.approx((decay.exponent - 1) / math.sqrt(2))

    def test_the_fit_is_the_best_of_all_tails(self, rng):
        s = torch.rand(60, generator=rng, dtype=torch.float64).sort(descending=True).values
        energies = s.square()
        found = {}
        for n in range(2, 61):
            tail = energies[:n]
            alpha = 1 + n / (tail / tail[-1]).log().sum()
            law = 1 - (tail / tail[-1]) ** (1 - alpha)
            steps = 1 - torch.arange(n + 1, dtype=torch.float64) / n
            gap = torch.maximum((law - steps[:-1]).abs(), (law - steps[1:]).abs()).max()
            found[n] = (gap.item(), alpha.item())
        n = min(found, key=lambda k: found[k][0])
        decay = spectral_decay(s)
        assert (decay.tail, decay.distance) == (n, pytest.approx(found[n][0]))
        assert decay.exponent == pytest.approx(found[n][1])

    @given(seed=st.integers(0, 2**31), factor=st.floats(1e-6, 1e6))
    def test_scale(self, seed, factor):
        rng = torch.Generator().manual_seed(seed)
        s = torch.rand(12, generator=rng, dtype=torch.float64).sort(descending=True).values
        one, two = spectral_decay(s), spectral_decay(factor * s)
        assert two.exponent == pytest.approx(one.exponent, rel=1e-6)

    @pytest.mark.parametrize("s", [(), (0.0, 0.0), (3.0,), (2.0, 2.0, 2.0), (2.0, 2.0, 0.0)])
    def test_no_two_values_no_decay(self, s):
        decay = spectral_decay(tensor(*s))
        assert decay.tail == 0
        assert math.isnan(decay.exponent)
        assert math.isnan(decay.distance)

    def test_equal_values_belong_to_one_tail(self):
        assert spectral_decay(tensor(4, 2, 1, 1, 1)).tail in (2, 5)
