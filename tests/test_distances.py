"""Principal angles and the distances built on them."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import haar, rotated

from rankscope.linalg.angles import principal_angles
from rankscope.measures.distances import DISTANCES, chordal, geodesic, padded
from rankscope.measures.similarity import phi_grid

# Of the angles 0.1, 0.3 and 0.7.
KNOWN = {
    "geodesic": 0.768115,
    "chordal": 0.715762,
    "procrustes": 0.754741,
    "projection": 0.644218,
    "spectral": 0.685796,
    "asimov": 0.7,
    "fubini_study": 0.756808,
    "binet_cauchy": 0.686604,
    "martin": 0.798481,
}


def turned(angles, d, rng):
    basis = haar(d, 2 * len(angles), rng)
    x, y = basis[:, : len(angles)], basis[:, len(angles) :]
    return x, rotated(x, y, angles)


@pytest.mark.parametrize(("name", "value"), KNOWN.items())
def test_three_known_angles(name, value, rng):
    angles = principal_angles(*turned([0.1, 0.3, 0.7], 20, rng))
    assert angles.tolist() == pytest.approx([0.1, 0.3, 0.7], abs=1e-14)
    assert DISTANCES[name](angles) == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize("size", [1e-4, 1e-8, 1e-12, 1e-15])
def test_small_angles_keep_their_digits(size, rng):
    angles = principal_angles(*turned([size, 2 * size], 12, rng))
    assert angles.tolist() == pytest.approx([size, 2 * size], abs=4e-16)
    if size >= 1e-12:
        assert geodesic(angles) == pytest.approx(math.sqrt(5) * size, rel=1e-3)


@given(
    seed=st.integers(0, 2**31), d=st.integers(1, 12), i=st.integers(1, 12), j=st.integers(1, 12)
)
def test_against_scipy(seed, d, i, j):
    rng = torch.Generator().manual_seed(seed)
    x, y = haar(d, min(i, d), rng), haar(d, min(j, d), rng)
    angles = principal_angles(x, y)
    expected = np.sort(scipy.linalg.subspace_angles(x.numpy(), y.numpy()))
    # SciPy takes some angles that are zero from their cosines: right to 1e-7 there.
    tolerance = np.where(expected < 1e-6, 1e-7, 1e-13)
    assert (np.abs(angles.numpy() - expected) <= tolerance).all()
    assert torch.equal(angles, principal_angles(y, x)) or torch.allclose(
        angles, principal_angles(y, x), atol=1e-13
    )


@given(seed=st.integers(0, 2**31), d=st.integers(2, 12), k=st.integers(1, 6))
def test_identities(seed, d, k):
    rng = torch.Generator().manual_seed(seed)
    k = min(k, d)
    x, y, z = (haar(d, k, rng) for _ in range(3))
    angles = principal_angles(x, y)
    px, py = x @ x.T, y @ y.T
    assert chordal(angles) == pytest.approx(
        torch.linalg.matrix_norm(px - py).item() / math.sqrt(2), abs=1e-12
    )
    assert DISTANCES["projection"](angles) == pytest.approx(
        torch.linalg.matrix_norm(px - py, 2).item(), abs=1e-12
    )
    assert phi_grid(x.T @ y)[-1, -1].item() == pytest.approx(1 - chordal(angles) ** 2 / k)
    u, _, vt = torch.linalg.svd(x.T @ y)
    assert DISTANCES["procrustes"](angles) == pytest.approx(
        torch.linalg.matrix_norm(x @ (u @ vt) - y).item(), abs=1e-12
    )
    det = torch.linalg.det(x.T @ y).abs().item()
    assert DISTANCES["fubini_study"](angles) == pytest.approx(math.acos(min(det, 1)), abs=1e-7)
    for name, distance in DISTANCES.items():
        one, two, three = (distance(principal_angles(a, b)) for a, b in ((x, y), (y, z), (x, z)))
        if name != "martin":
            assert three <= one + two + 1e-12, name


def test_equal_and_orthogonal_spans(rng):
    basis = haar(9, 6, rng)
    mix = torch.linalg.qr(torch.randn(3, 3, generator=rng, dtype=torch.float64))[0]
    same = principal_angles(basis[:, :3], basis[:, :3] @ mix)
    right = principal_angles(basis[:, :3], basis[:, 3:])
    for name, distance in DISTANCES.items():
        assert distance(same) < 1e-14, name
    assert DISTANCES["martin"](right) > 8
    assert DISTANCES["asimov"](right) == pytest.approx(math.pi / 2)
    assert DISTANCES["binet_cauchy"](right) == pytest.approx(1)
    assert math.isinf(DISTANCES["martin"](torch.tensor([math.pi / 2])))


def test_nested_spans_of_two_sizes(rng):
    basis = haar(9, 5, rng)
    angles = principal_angles(basis[:, :2], basis)
    assert geodesic(angles) < 1e-14
    metric = padded(angles, 2, 5)
    # ‖P_X − P_Y‖² = i + j − 2·p·φ = 3
    assert chordal(metric) ** 2 == pytest.approx(3)
    assert geodesic(metric) ** 2 == pytest.approx(3 * math.pi**2 / 4)


def test_no_directions_are_no_distance():
    empty = principal_angles(torch.zeros(4, 0), torch.eye(4)[:, :2])
    assert len(empty) == 0
    assert all(distance(empty) == 0 for distance in DISTANCES.values())
