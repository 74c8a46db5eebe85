"""ΔW against W: closed forms, planted amplification, and chance by its exact moments."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import gaussian, haar, with_spectrum

from rankscope.measures import amplification as amp


def triple(s, m, n, rng):
    return haar(m, len(s), rng), torch.as_tensor(s, dtype=torch.float64), haar(n, len(s), rng)


@pytest.mark.parametrize("k", [4, 64])
def test_the_papers_random_column(k):
    assert amp.random_projection(61.95, (12288, 12288), k) == pytest.approx(
        {4: 0.0202, 64: 0.3227}[k], abs=5e-5
    )


def test_the_directions_of_w_hold_its_leading_energy(rng):
    u, s, v = triple([5.0, 3.0, 2.0, 1.0], 9, 7, rng)
    weight = (u * s) @ v.T
    for k in range(1, 5):
        expected = s[:k].norm().item()
        assert amp.projected_norm(weight, u[:, :k], v[:, :k]) == pytest.approx(expected, rel=1e-13)
        share = (expected / s.norm().item()) ** 2
        assert amp.captured_energy(weight, u[:, :k], "left") == pytest.approx(share, rel=1e-13)
        assert amp.captured_energy(weight, v[:, :k], "right") == pytest.approx(share, rel=1e-13)


def test_planted_amplification_is_recovered(rng):
    u, s, v = triple([3.36, 2.03, 0.70, 0.3], 12, 10, rng)
    gains = torch.tensor([20.0, 10.0, 5.0], dtype=torch.float64)
    planted = gains * s[:3]
    weight, update = (u * s) @ v.T, (u[:, :3] * planted) @ v[:, :3].T
    factors, cosines = amp.direction_amplification(weight, u[:, :3], planted, v[:, :3])
    assert factors.tolist() == pytest.approx(gains.tolist(), rel=1e-13)
    assert cosines.tolist() == pytest.approx((s[:3] / s.norm()).tolist(), rel=1e-13)
    whole = update.norm().item() / amp.projected_norm(weight, u[:, :3], v[:, :3])
    assert whole == pytest.approx((planted.norm() / s[:3].norm()).item(), rel=1e-13)
    assert amp.rewiring(update, u, v) == pytest.approx((1, 0, 0), abs=1e-13)


def test_a_multiple_of_w(rng):
    weight = gaussian(8, 6, rng=rng)
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    factors, _ = amp.direction_amplification(weight, u, 0.5 * s, vt.T)
    assert factors.tolist() == pytest.approx([0.5] * 6)
    projected = amp.projected_norm(weight, u, vt.T)
    chance = amp.random_projection(weight.norm().item(), (8, 6), 6)
    assert projected / chance == pytest.approx(math.sqrt(48) / 6)


def test_rewiring_of_a_permutation(rng):
    u, s, v = triple([4.0, 2.0, 1.0], 7, 5, rng)
    update = (u * s) @ v.roll(1, dims=1).T
    assert amp.rewiring(update, u, v) == pytest.approx((0, 1, 0), abs=1e-13)
    new = haar(7, 7, rng)
    new = new - u @ (u.T @ new)
    assert amp.rewiring(new[:, :1] @ v[:, :1].T, u, v) == pytest.approx((0, 0, 1), abs=1e-13)
    assert all(math.isnan(share) for share in amp.rewiring(torch.zeros(7, 5), u, v))


@pytest.mark.parametrize(("m", "n", "k"), [(24, 20, 1), (24, 20, 3), (10, 16, 7), (5, 5, 4)])
@pytest.mark.parametrize("spectrum", ["flat", "steep"])
def test_the_moments_by_drawing(m, n, k, spectrum):
    rng = torch.Generator().manual_seed(m * n * k)
    q = min(m, n)
    s = torch.ones(q) if spectrum == "flat" else 0.5 ** torch.arange(q)
    s = s.double()
    weight = with_spectrum(s, m, n, rng)
    draws = np.array(
        [amp.projected_norm(weight, haar(m, k, rng), haar(n, k, rng)) ** 2 for _ in range(4000)]
    )
    chance = amp.random_projection(s.norm().item(), (m, n), k)
    assert draws.mean() == pytest.approx(chance**2, rel=4 * draws.std() / draws.mean() / 63)
    z = [amp.projected_z(math.sqrt(t), s, (m, n), k) for t in (chance**2, draws.mean())]
    assert z[0] == pytest.approx(0, abs=1e-9)
    one_sd = math.sqrt(chance**2 + draws.std())
    assert amp.projected_z(one_sd, s, (m, n), k) == pytest.approx(1, rel=0.12)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (4, 4), (1, 6)])
def test_no_spread_no_z(m, n):
    k = min(m, n)
    whole = m == n == k
    z = amp.projected_z(1.0, torch.ones(k), (m, n), k)
    assert math.isnan(z) == whole
    assert math.isnan(amp.projected_z(1.0, torch.zeros(3), (9, 9), 2))


@given(seed=st.integers(0, 2**31), scale=st.floats(1e-100, 1e100))
def test_invariances(seed, scale):
    rng = torch.Generator().manual_seed(seed)
    weight = gaussian(6, 5, rng=rng)
    u, v = haar(6, 2, rng), haar(5, 2, rng)
    left, right = haar(6, 6, rng), haar(5, 5, rng)
    s = torch.linalg.svdvals(weight)
    plain = amp.projected_norm(weight, u, v)
    turned = left @ weight @ right.T
    assert amp.projected_norm(turned, left @ u, right @ v) == pytest.approx(plain, rel=1e-12)
    assert amp.projected_norm(weight.T, v, u) == pytest.approx(plain, rel=1e-12)
    mixed = u @ torch.linalg.qr(gaussian(2, 2, rng=rng))[0]
    assert amp.projected_norm(weight, mixed, v) == pytest.approx(plain, rel=1e-12)
    z = amp.projected_z(plain, s, (6, 5), 2)
    assert amp.projected_z(scale * plain, scale * s, (6, 5), 2) == pytest.approx(z, rel=1e-9)
    assert amp.projected_z(plain, s, (5, 6), 2) == pytest.approx(z, rel=1e-9)
