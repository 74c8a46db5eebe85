"""Speed of the φ grid and of factored spectra, as ratios to the plain way in the same run.

Run with ``pytest tests/benchmarks/bench_numbers.py``; no time is asserted.
"""

import time

import numpy as np
import pytest
import torch
from oracles import haar

import rankscope as rs
from rankscope.measures.similarity import phi_grid

D = 4096


def best_of(function, rounds):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("k", [8, 64])
def test_phi_grid_against_a_product_per_cell(benchmark, ratio, rng, k):
    u, v = haar(D, k, rng), haar(D, k, rng)
    expected = np.empty((k, k))

    def per_cell():
        for i in range(k):
            for j in range(k):
                product = u[:, : i + 1].T @ v[:, : j + 1]
                expected[i, j] = product.square().sum() / min(i + 1, j + 1)

    grid = benchmark.pedantic(lambda: phi_grid(u.T @ v), rounds=50, warmup_rounds=5)
    ratio(f"a product per cell, {k} x {k}, d = {D}", best_of(per_cell, 1 if k > 8 else 10))
    np.testing.assert_allclose(grid.numpy(), expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("r", [8, 64])
def test_factored_spectrum_against_the_dense_one(benchmark, ratio, rng, r):
    up, down = (torch.randn(*shape, generator=rng) for shape in ((D, r), (r, D)))
    update = rs.FactoredUpdate(up, down)
    spectrum = benchmark.pedantic(
        lambda: rs.svd(update, vectors=False), rounds=20, warmup_rounds=3
    )
    dense = []
    seconds = best_of(lambda: dense.append(torch.linalg.svd(up @ down)), 1)
    ratio(f"float32 torch.linalg.svd(B @ A), d = {D}, r = {r}", seconds)
    torch.testing.assert_close(spectrum.values.float(), dense[0].S[:r], rtol=1e-4, atol=1e-4)
