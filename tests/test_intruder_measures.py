"""Intruder dimensions and measures between updates, against closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import gaussian, haar

from rankscope.measures.interference import (
    cka,
    contained_energy,
    task_interference,
    update_cosine,
)
from rankscope.measures.intruders import chance_closeness, closeness, intruder_energy_share
from rankscope.measures.similarity import phi_grid
from rankscope.updates import DenseUpdate, FactoredUpdate


def svd(matrix):
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vt.T


def apart(count):
    """Return descending values of which none is near to another."""
    return 1.02 ** -torch.arange(count).double()


class TestIntruders:
    @pytest.mark.parametrize("factor", [1.0, -2.5])
    def test_none_in_a_multiple_of_the_base(self, rng, factor):
        weight = gaussian(20, 16, rng=rng)
        (u, s, v), (x, _, y) = svd(weight), svd(factor * weight)
        assert closeness(x, u, s).min() > 1 - 1e-12
        assert closeness(y, v, s).min() > 1 - 1e-12

    @pytest.mark.parametrize(("strength", "intruders"), [(0.5, 0), (3.0, 1)])
    def test_a_spike_above_the_bulk_is_one(self, rng, strength, intruders):
        # Unit variance per dimension: the bulk ends at 2, a spike detaches above 1.
        weight = gaussian(300, 300, rng=rng) / math.sqrt(300)
        spike = haar(300, 1, rng) @ haar(300, 1, rng).T
        (u, s, _), (x, t, _) = svd(weight), svd(weight + strength * spike)
        found = closeness(x[:, :10], u, s) < 0.5
        assert int(found[:1].sum()) == intruders
        share = intruder_energy_share(t[:1], found[:1].double())
        assert share == pytest.approx(intruders)

    def test_turning_equal_directions_makes_none(self, rng):
        m = 5
        values = torch.tensor([3.0] * m + [1.0, 0.5])
        u = haar(12, 7, rng)
        turn = torch.linalg.qr(gaussian(m, m, rng=rng))[0]
        x = u[:, :m] @ turn
        assert closeness(x, u, values).min() > 1 - 1e-12
        unequal = values + torch.linspace(0.1, 0, 7)
        alone = closeness(x, u, unequal)
        assert alone.max() < 1
        assert alone.min() >= 1 / math.sqrt(m) - 1e-12

    def test_directions_outside_the_span_are_as_far_as_can_be(self, rng):
        u = haar(10, 4, rng)
        assert closeness(u[:, 3:], u[:, :3], torch.ones(3)).item() < 1e-12
        assert closeness(u, u[:, :0], torch.ones(0)).tolist() == [0, 0, 0, 0]

    def test_a_pair_that_mixes_freely_is_none(self, rng):
        # Two values 1e-4 apart, which an update ten times that turns by 45 degrees.
        values = torch.tensor([3.0, 2.0, 2.0 - 1e-4, 1.0, 0.5]).double()
        u, v = haar(12, 5, rng), haar(9, 5, rng)
        weight = u * values @ v.T
        turn = 1e-3 * (u[:, [1]] @ v[:, [2]].T + u[:, [2]] @ v[:, [1]].T)
        x, t, y = svd(weight + turn)
        x, y = x[:, :5], y[:, :5]
        reach = torch.maximum((turn @ y).norm(dim=0), (turn.T @ x).norm(dim=0))
        for own, base in ((x, u), (y, v)):
            single = closeness(own, base, values, blocks=False)
            assert single[1:3].max() < 0.73  # an intruder at ε = 0.8, by single directions
            assert closeness(own, base, values, reach).min() > 1 - 1e-6
        assert t[1] == pytest.approx(2 + 1e-3, abs=1e-4)

    @pytest.mark.parametrize(
        ("gap", "reach", "one"), [(1e-4, 1e-5, False), (1e-4, 1e-3, True), (0.1, 1.0, False)]
    )
    def test_near_is_what_the_update_reaches_and_a_hundredth(self, gap, reach, one):
        values = torch.tensor([2.0, 2.0 - gap, 1.0]).double()
        half = torch.tensor([[1.0], [1.0], [0.0]]).double() / math.sqrt(2)
        found = closeness(half, torch.eye(3).double(), values, torch.tensor([reach]).double())
        assert found.item() == pytest.approx(1.0 if one else math.sqrt(0.5))

    def test_an_intruder_among_near_values_is_one_all_the_same(self, rng):
        # Pairs of values 1e-4 apart, and a spike that belongs to none of them.
        values = torch.linspace(2, 1, 150).double().repeat_interleave(2)
        values[1::2] -= 1e-4
        u, v = haar(300, 300, rng), haar(300, 300, rng)
        weight = u * values @ v.T
        spike = 6 * haar(300, 1, rng) @ haar(300, 1, rng).T
        x, t, y = svd(weight + spike)
        x, y = x[:, :5], y[:, :5]
        reach = torch.maximum((spike @ y).norm(dim=0), (spike.T @ x).norm(dim=0))
        assert t[0] > 6
        for own, base in ((x, u), (y, v)):
            assert (closeness(own, base, values, reach) < 0.5).tolist()[0]

    @pytest.mark.parametrize(("d", "mean"), [(512, 0.144), (1024, 0.107)])
    def test_chance_is_what_random_directions_reach(self, d, mean):
        draws = np.random.default_rng(1).standard_normal((2000, d))
        largest = np.abs(draws).max(axis=1) / np.linalg.norm(draws, axis=1)
        assert largest.mean() == pytest.approx(mean, rel=0.03)
        low, middle = chance_closeness(d, apart(d), (0.01, 0.5))
        assert middle == pytest.approx(np.median(largest), rel=0.01)
        assert low == pytest.approx(np.quantile(largest, 0.01), rel=0.02)

    def test_chance_knows_blocks(self, rng):
        values = torch.linspace(2, 1, 200).double()
        middle = chance_closeness(200, values, (0.5,))[0]
        assert middle > 1.1 * chance_closeness(200, apart(200), (0.5,))[0]
        draws = haar(200, 200, rng)
        seen = closeness(draws, torch.eye(200).double(), values, torch.full((200,), 9.0).double())
        assert seen.median().item() == pytest.approx(middle, rel=0.05)
        assert chance_closeness(200, torch.ones(200)) == pytest.approx((1, 1))

    def test_chance_in_the_plane_is_known(self):
        # The larger of |cos| and |sin| of a uniform angle: its median is cos(π/8).
        found = [chance_closeness(2, apart(q), (0.5,))[0] for q in (2, 1)]
        assert found[0] == pytest.approx(math.cos(math.pi / 8), rel=0.01)
        # One coordinate alone: |cos| of a uniform angle.
        assert found[1] == pytest.approx(math.cos(math.pi / 4), rel=1e-9)
        assert np.isnan(chance_closeness(2, apart(0))).all()

    def test_fewer_base_directions_are_farther(self):
        low = [chance_closeness(64, apart(q))[0] for q in (8, 32, 64)]
        assert low == sorted(low)


class TestBetweenUpdates:
    @given(seed=st.integers(0, 2**31))
    def test_against_dense(self, seed):
        rng = torch.Generator().manual_seed(seed)
        a, b = (gaussian(7, 3, rng=rng) @ gaussian(3, 6, rng=rng) for _ in range(2))
        (u, s, v), (_, t, y) = svd(a), svd(b)
        expected = torch.linalg.matrix_norm(a @ b.T) ** 2 / (
            torch.linalg.matrix_norm(a @ a.T) * torch.linalg.matrix_norm(b @ b.T)
        )
        assert cka(v.T @ y, s, t) == pytest.approx(expected.item(), rel=1e-10)
        inside = torch.linalg.matrix_norm(a @ y[:, :2] @ y[:, :2].T) ** 2 / a.norm() ** 2
        assert contained_energy(v.T @ y[:, :2], s) == pytest.approx(inside.item(), rel=1e-10)
        cosine = (a * b).sum() / (a.norm() * b.norm())
        for one in (DenseUpdate(a), FactoredUpdate(u[:, :3] * s[:3], v[:, :3].T)):
            assert update_cosine(one, DenseUpdate(b)) == pytest.approx(cosine.item(), abs=1e-12)

    def test_equal_strengths_make_cka_of_phi(self, rng):
        u, v = haar(12, 3, rng), haar(12, 5, rng)
        phi = phi_grid(u.T @ v)[-1, -1].item()
        value = cka(u.T @ v, torch.ones(3), torch.ones(5))
        assert value == pytest.approx(phi * math.sqrt(3 / 5), rel=1e-12)

    def test_chance_of_containment_and_cosine(self):
        rng = torch.Generator().manual_seed(5)
        u, s = haar(40, 3, rng), torch.tensor([5.0, 2.0, 1.0])
        draws = [contained_energy(u.T @ haar(40, 8, rng), s) for _ in range(600)]
        assert np.mean(draws) == pytest.approx(8 / 40, abs=0.01)
        cosines = [
            update_cosine(*(DenseUpdate(gaussian(6, 5, rng=rng)) for _ in range(2))) ** 2
            for _ in range(4000)
        ]
        assert np.mean(cosines) == pytest.approx(1 / 30, rel=0.08)

    def test_orthogonal_and_doubled_tasks(self, rng):
        basis = haar(12, 6, rng)
        u, x = basis[:, :3], basis[:, 3:]
        s = torch.tensor([3.0, 2.0, 1.0])
        assert task_interference([u, x], [s, s], [u, x]) == pytest.approx(0, abs=1e-12)
        assert task_interference([u, u], [s, s], [u, u]) == pytest.approx(12, rel=1e-12)
        # Sharing one side alone does not interfere.
        assert task_interference([u, u], [s, s], [u, x]) == pytest.approx(0, abs=1e-12)

    def test_zero_updates_are_undefined(self):
        zero = DenseUpdate(torch.zeros(3, 2))
        assert math.isnan(update_cosine(zero, DenseUpdate(torch.ones(3, 2))))
        assert math.isnan(cka(torch.eye(2), torch.zeros(2), torch.ones(2)))
        assert math.isnan(contained_energy(torch.eye(2), torch.zeros(2)))
        assert math.isnan(contained_energy(torch.zeros(0, 2), torch.zeros(0)))

    def test_energy_shares_do_not_overflow(self, rng):
        u = haar(9, 2, rng)
        for scale in (1e-200, 1e200):
            assert contained_energy(u.T @ u, scale * torch.ones(2).double()) == pytest.approx(1)
