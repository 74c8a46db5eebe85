"""Many updates at once: every pair as it is alone, and what all share."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import gaussian, haar

from rankscope.measures.interference import contained_energy, update_cosine
from rankscope.measures.similarity import phi_grid
from rankscope.measures.together import (
    common_directions,
    common_edge,
    pair_containment,
    pair_cosines,
    pair_phi,
)
from rankscope.updates import FactoredUpdate

SIZES = st.lists(st.integers(0, 4), min_size=1, max_size=4)


def drawn(sizes, m, n, rng):
    lefts = [haar(m, k, rng) for k in sizes]
    rights = [haar(n, k, rng) for k in sizes]
    values = [gaussian(k, rng=rng).abs().sort(descending=True).values for k in sizes]
    return lefts, values, rights


@given(seed=st.integers(0, 2**31), sizes=SIZES)
def test_every_pair_is_as_it_is_alone(seed, sizes):
    rng = torch.Generator().manual_seed(seed)
    lefts, values, rights = drawn(sizes, 7, 6, rng)
    u, v, s = torch.cat(lefts, 1), torch.cat(rights, 1), torch.cat(values)
    phi = pair_phi(v.T @ v, sizes)
    contained = pair_containment(v.T @ v, s, sizes)
    cosines = pair_cosines(u.T @ u, v.T @ v, s, sizes)
    updates = [FactoredUpdate(a * b, c.T) for a, b, c in zip(lefts, values, rights, strict=True)]
    for a in range(len(sizes)):
        for b in range(len(sizes)):
            overlap = rights[a].T @ rights[b]
            if sizes[a] and sizes[b]:
                assert phi[a, b].item() == pytest.approx(phi_grid(overlap)[-1, -1].item())
                expected = update_cosine(updates[a], updates[b])
                assert cosines[a, b].item() == pytest.approx(expected, abs=1e-12)
            else:
                assert math.isnan(phi[a, b])
                assert math.isnan(cosines[a, b])
            expected = contained_energy(overlap, values[a])
            assert contained[a, b].item() == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_what_all_share(rng):
    basis = haar(30, 9, rng)
    spans = [basis[:, [0, 1, 2]], basis[:, [0, 3, 4]], basis[:, [0, 1, 5]]]
    turned = [x @ torch.linalg.qr(gaussian(3, 3, rng=rng))[0] for x in spans]
    together = torch.cat(turned, 1)
    values = common_directions(together.T @ together, 3)
    expected = [1, 2 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0]
    assert values.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("sizes", "d"), [((4, 4, 4), 64), ((2, 8), 40), ((1,) * 6, 30)])
def test_the_edge_is_what_chance_seldom_passes(sizes, d):
    rng = torch.Generator().manual_seed(7)
    edge, above = common_edge(sizes, d), 0
    largest = []
    for _ in range(1000):
        bases = torch.cat([haar(d, k, rng) for k in sizes], 1)
        largest.append(common_directions(bases.T @ bases, len(sizes))[0].item())
        above += largest[-1] > edge
    assert above <= 8  # 1 in the mean; 8 once in a million
    assert np.median(largest) < edge < np.max(largest) * 1.15


def test_nothing_at_all():
    empty = torch.zeros(0, 0)
    assert len(common_directions(empty, 2)) == 0
    assert torch.isnan(pair_phi(empty, [0, 0])).all()
