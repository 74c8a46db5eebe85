"""Speed of the spectra of dense updates, as ratios to the plain way in the same run.

Run with ``pytest tests/benchmarks/bench_spectra.py``; no time is asserted, the answers are. All
in one thread and in processor time, which other load lengthens less than it does the clock's.
The largest matrices are marked slow: their baselines take up to a minute.
"""

import math
import time

import pytest
import torch
from oracles import gaussian
from safetensors.torch import save_file

import rankscope as rs
from rankscope.io.recipes import Difference
from rankscope.io.tensors import SafetensorsFile
from rankscope.spectra import Leading

pytestmark = pytest.mark.benchmark(timer=time.process_time)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.get_float32_matmul_precision() == "highest"  # float32 is float32
    yield
    torch.set_num_threads(before)


def best_of(function, rounds):
    times = []
    for _ in range(rounds):
        start = time.process_time()
        result = function()
        times.append(time.process_time() - start)
    return min(times), result


def mixed(s, n, rng):
    """A matrix with the singular values `s`, by reflections instead of whole bases."""
    matrix = torch.diag(s)
    for _ in range(3):
        for _ in range(2):
            q = torch.linalg.qr(gaussian(n, 16, rng=rng))[0]
            matrix = (matrix - 2 * q @ (q.T @ matrix)).T
    return matrix.contiguous()


def spectrum_of(kind, n, rng):
    if kind == "decaying":
        return mixed(torch.arange(1, n + 1, dtype=torch.float64) ** -1.0, n, rng)
    noise = gaussian(n, n, rng=rng)
    if kind == "planted":
        left, right = (torch.linalg.qr(gaussian(n, 16, rng=rng))[0] for _ in range(2))
        noise += left * torch.linspace(10, 6, 16, dtype=torch.float64) * math.sqrt(n) @ right.T
    return noise


def check_values(spectrum, truth):
    """Within the stated error, and LAPACK's own in float32."""
    k = len(spectrum.values)
    own = 1e-5 * truth[0].item()
    assert ((spectrum.values - truth[:k]).abs() <= spectrum.errors + own).all()


@pytest.mark.parametrize(
    "shape", [(2048, 2048), pytest.param((4096, 11008), marks=pytest.mark.slow)], ids=str
)
def test_whole_spectrum(benchmark, ratio, rng, shape):
    matrix = torch.randn(*shape, generator=rng)
    update, rounds = rs.DenseUpdate(matrix), 3 if shape[1] < 4096 else 1
    spectrum = benchmark.pedantic(
        lambda: rs.svd(update, method=rs.Gram(), vectors=False), rounds=rounds, warmup_rounds=0
    )
    seconds, dense = best_of(
        lambda: torch.linalg.svd(matrix, full_matrices=False).S, min(rounds, 2)
    )
    ratio(f"float32 torch.linalg.svd, {shape}", seconds)
    check_values(spectrum, dense)


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
@pytest.mark.parametrize(
    ("kind", "k"),
    [("planted", 16), ("decaying", 16), ("decaying", 64), ("planted", 64), ("bulk", 64)],
)
def test_leading_directions(benchmark, ratio, rng, lapack, kind, k, tolerance):
    matrix, seconds, (u, s) = lapack(kind)
    update, method = rs.DenseUpdate(matrix), Leading(k, tolerance)
    rounds = 1 if kind != "decaying" and k == 64 else 4
    spectrum = benchmark.pedantic(lambda: rs.svd(update, method=method), rounds=rounds)
    ratio(f"float32 torch.linalg.svd, {kind}, {len(matrix)}² ({spectrum.method})", seconds)
    benchmark.extra_info.update(method=spectrum.method, sine=spectrum.cut_errors[-1].item())
    check_values(spectrum, s)
    overlap = (u[:, :k].double().T @ spectrum.left).square().sum().item() / k
    assert overlap > 0.999 or spectrum.method == "gram" or kind != "decaying"


@pytest.fixture(scope="module")
def lapack():
    """Matrices of 4096 x 4096 in float32 with their decompositions, each made once."""
    known = {}

    def decomposed(kind):
        if kind not in known:
            known.clear()
            matrix = spectrum_of(kind, 4096, torch.Generator().manual_seed(5)).float()
            seconds, (u, s, _) = best_of(lambda: torch.linalg.svd(matrix, full_matrices=False), 1)
            known[kind] = matrix, seconds, (u[:, :64], s)
        return known[kind]

    return decomposed


@pytest.mark.parametrize("shape", [(4096, 4096), (4096, 11008)], ids=str)
def test_forming_a_difference(benchmark, ratio, rng, tmp_path, shape):
    base = torch.randn(*shape, generator=rng) * 0.02
    tuned = base + torch.randn(*shape, generator=rng) * 1e-3
    for name, tensor in (("tuned", tuned), ("base", base)):
        save_file({"w": tensor.bfloat16()}, tmp_path / f"{name}.safetensors")
    stores = [SafetensorsFile(tmp_path / f"{name}.safetensors") for name in ("tuned", "base")]
    recipe = Difference(*stores, "w")
    update = benchmark.pedantic(recipe.build, rounds=15, warmup_rounds=2)
    seconds, plain = best_of(lambda: stores[0].read("w").float() - stores[1].read("w").float(), 15)
    ratio(f".float() - .float(), {shape}", seconds)
    assert torch.equal(update.matrix, plain)


@pytest.mark.slow
@pytest.mark.parametrize("r", [64, 16])
def test_adapter_of_seven_billion(benchmark, ratio, rng, r):
    """32 layers of 4 x 4096², and 3 x (4096, 11008), from one measured matrix per shape."""
    shapes = {(4096, 4096): 4, (11008, 4096): 2, (4096, 11008): 1}
    updates = {
        shape: rs.FactoredUpdate(
            torch.randn(shape[0], r, generator=rng), torch.randn(r, shape[1], generator=rng)
        )
        for shape in shapes
    }

    def layer():
        for shape, count in shapes.items():
            for _ in range(count):
                rs.svd(updates[shape], vectors=False)

    benchmark.pedantic(layer, rounds=5, warmup_rounds=1)
    total = 0.0
    # A wide matrix takes as long as the tall one.
    for shape, count in {(4096, 4096): 4, (4096, 11008): 3}.items():
        update = updates[shape]
        seconds, dense = best_of(
            lambda update=update: torch.linalg.svd(update.up @ update.down, full_matrices=False),
            1,
        )
        total += count * seconds
        values = rs.svd(update).values
        torch.testing.assert_close(values.float(), dense.S[:r], rtol=1e-4, atol=1e-2)
    ratio(f"float32 torch.linalg.svd(B @ A), extrapolated over layers, r = {r}", total)
