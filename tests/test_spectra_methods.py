"""Every method on every kind of matrix, against LAPACK in float64; and what is certified."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import gaussian, haar, with_spectrum

from rankscope.errors import UpdateError
from rankscope.linalg.blocks import (
    all_finite,
    gram,
    inner,
    mirror,
    norm,
    subtract,
    times,
    times_transposed,
)
from rankscope.linalg.certificate import (
    coupled_norm,
    cut_sines,
    remainder_bounds,
    value_errors,
)
from rankscope.linalg.krylov import krylov, lanczos, power_step, rayleigh_ritz
from rankscope.linalg.leading import leading_of_square, leading_svd
from rankscope.linalg.svd import gram_svd
from rankscope.spectra import Auto, Exact, Gram, Leading, svd
from rankscope.updates import DenseUpdate, FactoredUpdate

EPS = torch.finfo(torch.float64).eps
METHODS = [Exact(), Gram(), Leading(4), Leading(4, 1e-3), Auto(), Auto(limit=10)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def graded(out=90, in_=70):
    return with_spectrum(
        torch.logspace(0, -9, min(out, in_), dtype=torch.float64), out, in_, seeded()
    )


def repeated(out=80, in_=60):
    return with_spectrum([5.0] * 2 + [3.0] * 3 + [1.0] * 5, out, in_, seeded())


MATRICES = {
    "square": gaussian(40, 40, rng=seeded()),
    "tall": gaussian(300, 70, rng=seeded()),
    "wide": gaussian(70, 300, rng=seeded()),
    "column": gaussian(9, 1, rng=seeded()),
    "row": gaussian(1, 9, rng=seeded()),
    "one": torch.tensor([[-2.0]], dtype=torch.float64),
    "rank-deficient": with_spectrum([4.0, 2.0, 1.0], 90, 80, seeded()),
    "planted": with_spectrum([40.0, 30, 20, 10], 200, 160, seeded())
    + 0.1 * gaussian(200, 160, rng=seeded(1)),
    "repeated": repeated(),
    "graded": graded(),
    "zero": torch.zeros(30, 20, dtype=torch.float64),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def name_of(value):
    return repr(value).replace(".0", "")


def sine(one, other):
    """The sine of the largest angle between two spans of one dimension."""
    return torch.linalg.matrix_norm(one - other @ (other.T @ one), 2).item()


def check_against_lapack(matrix, spectrum, unit=1.0):
    """Values and, at cuts that are told apart, directions are as good as the result says."""
    truth = matrix.double() * (1 / unit)
    u, s, vt = torch.linalg.svd(truth, full_matrices=False)
    values, errors = spectrum.values / unit, spectrum.errors / unit
    k = len(values)
    own = max(matrix.shape) * EPS * s[0].item()  # LAPACK's error, on the other side
    assert ((values - s[:k]).abs() <= errors + own).all()
    assert spectrum.error_bound == spectrum.errors.max().item()
    following = s[k].item() if k < len(s) else 0.0
    assert spectrum.tail / unit >= following - spectrum.error_bound / unit - own
    assert spectrum.energy / unit**2 == pytest.approx(s.square().sum().item(), rel=1e-12)
    gaps = s[:k] - torch.cat([s[1:k], s.new_tensor([following])])
    for i in {0, 1, 2, 3, 9, k // 2, k - 1} & set(range(k)):
        bound = spectrum.cut_errors[i].item()
        blur = 2 * own / gaps[i].item() if gaps[i] > 0 else 1.0
        if bound + blur < 0.1:
            allowed = bound + blur + 1e-12
            assert sine(spectrum.left[:, : i + 1], u[:, : i + 1]) <= allowed
            assert sine(spectrum.right[:, : i + 1], vt[: i + 1].T) <= allowed


class TestContract:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("method", METHODS, ids=name_of)
    @pytest.mark.parametrize("name", MATRICES)
    def test_dense(self, name, method, dtype):
        matrix = MATRICES[name].to(dtype)
        for k in (None, 1, 3, 1000):
            spectrum = svd(DenseUpdate(matrix), k, method)
            most = min(*matrix.shape, k or 1000, getattr(method, "k", 1000))
            assert len(spectrum.values) == most == spectrum.left.shape[1]
            check_against_lapack(matrix, spectrum)
            alone = svd(DenseUpdate(matrix), k, method, vectors=False)
            assert alone.left is None
            atol = (spectrum.error_bound + alone.error_bound) or 0.0
            torch.testing.assert_close(alone.values, spectrum.values, rtol=0, atol=atol)

    @pytest.mark.parametrize("method", METHODS, ids=name_of)
    @pytest.mark.parametrize("shape", [(60, 50, 6), (50, 60, 6), (1, 9, 1), (9, 1, 3), (5, 4, 9)])
    def test_factored(self, shape, method):
        out, in_, r = shape
        update = FactoredUpdate(
            gaussian(out, r, rng=seeded()), gaussian(r, in_, rng=seeded(1)), -0.5
        )
        spectrum = svd(update, method=method)
        check_against_lapack(update.dense(), spectrum)
        assert len(spectrum.values) == min(update.ceiling, getattr(method, "k", 99))

    @pytest.mark.parametrize("unit", [1e-30, 1e30])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    @pytest.mark.parametrize("method", METHODS, ids=name_of)
    def test_tiny_and_huge(self, method, dtype, unit):
        matrix = (MATRICES["planted"] * unit).to(dtype)
        spectrum = svd(DenseUpdate(matrix), method=method)
        check_against_lapack(matrix, spectrum, unit)
        assert spectrum.method == svd(DenseUpdate(MATRICES["planted"]), method=method).method

    @pytest.mark.parametrize("unit", [1e-200, 1e200])
    def test_squares_out_of_range(self, unit):
        spectrum = svd(DenseUpdate(MATRICES["planted"] * unit), method=Gram())
        expected = torch.linalg.svdvals(MATRICES["planted"])
        torch.testing.assert_close(spectrum.values / unit, expected, rtol=1e-9, atol=0)

    def test_exact_takes_the_slow_driver_when_the_fast_one_fails(self, monkeypatch):
        def fail(*args, **kwargs):
            raise torch.linalg.LinAlgError("did not converge")

        matrix = MATRICES["tall"]
        expected = torch.linalg.svdvals(matrix)
        monkeypatch.setattr(torch.linalg, "svd", fail)
        monkeypatch.setattr(torch.linalg, "svdvals", fail)
        for vectors in (True, False):
            values = svd(DenseUpdate(matrix), method=Exact(), vectors=vectors).values
            torch.testing.assert_close(values, expected, rtol=1e-13, atol=0)


def test_gram_states_an_error_per_value_that_holds_and_is_not_idle():
    matrix, s = graded(), torch.logspace(0, -9, 70, dtype=torch.float64)
    spectrum = svd(DenseUpdate(matrix), method=Gram())
    assert ((spectrum.values - s).abs() <= spectrum.errors).all()
    assert spectrum.errors[0] < 1e-13  # near the largest value nothing is lost
    root = math.sqrt(90 * EPS)
    assert spectrum.error_bound == pytest.approx(root, rel=0.01)
    assert spectrum.floor == pytest.approx(root)
    assert spectrum.directions == (s > root).sum()
    # In between it is e / (2 s), about the truth and far below the old single number.
    i = 30
    assert spectrum.errors[i] == pytest.approx(90 * EPS / (2 * s[i].item()), rel=0.01)
    assert (spectrum.values[50:] - s[50:]).abs().max() > 1e-12  # worse than LAPACK is, indeed


def test_gram_of_the_first_few_alone_is_the_same():
    matrix = MATRICES["planted"].float()
    few, all_ = gram_svd(matrix, 4), gram_svd(matrix)
    torch.testing.assert_close(few[1], all_[1][:5], rtol=1e-12, atol=0)
    for one, other in ((few[0], all_[0]), (few[2], all_[2])):
        assert sine(one, other[:, :4]) < 1e-12


class TestAuto:
    def test_rule(self):
        s = torch.cat([torch.linspace(60, 40, 20), 0.01 * torch.ones(280)])
        update = DenseUpdate(with_spectrum(s, 310, 300, seeded()))
        assert svd(update, 20, Auto(limit=300)).method == "exact"
        assert svd(update, 20, Auto(limit=299)).method == "leading"
        assert svd(update, 37, Auto(limit=299)).notes  # tried: an eighth of 300 and no gap
        assert not svd(update, 38, Auto(limit=299)).notes
        assert svd(update, method=Auto(limit=299)).method == "gram"


# A certificate must be right whenever it is given, so many matrices are tried.


def planted(n, ranks, ratio, seed):
    rng = seeded(seed)
    s = torch.linspace(2 * ratio, ratio, ranks, dtype=torch.float64) * 2 * math.sqrt(n)
    return gaussian(n, n, rng=rng) + with_spectrum(s, n, n, rng)


def decaying(n, power, seed):
    s = torch.arange(1, n + 1, dtype=torch.float64) ** -power
    return with_spectrum(s, n, n, seeded(seed))


class TestLeading:
    @pytest.mark.parametrize("tolerance", [1e-9, 1e-6, 1e-3])
    @pytest.mark.parametrize("k", [1, 5, 16])
    def test_planted_in_noise_is_certified(self, k, tolerance):
        matrix = planted(600, 16, 3.0, 1)
        spectrum = svd(DenseUpdate(matrix), method=Leading(k, tolerance))
        assert spectrum.method == "leading"
        assert spectrum.notes == ()
        assert spectrum.cut_errors[-1] <= 1.01 * tolerance
        check_against_lapack(matrix, spectrum)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("power", [1.0, 2.0])
    def test_decaying_is_certified(self, power, dtype):
        matrix = decaying(300, power, 2).to(dtype)
        spectrum = svd(DenseUpdate(matrix), method=Leading(4))
        assert spectrum.method == "leading"
        check_against_lapack(matrix, spectrum)

    def test_low_rank_is_certified_without_a_gap_at_k(self):
        s = torch.tensor([5.0, 3.0, 1.0], dtype=torch.float64)
        matrix = with_spectrum(s, 300, 200, seeded())
        spectrum = svd(DenseUpdate(matrix), method=Leading(8))
        assert spectrum.method == "leading"
        torch.testing.assert_close(spectrum.values[:3], s, rtol=1e-13, atol=0)
        assert (spectrum.values[3:] < 1e-13).all()
        assert spectrum.directions == 3
        assert spectrum.cut_errors[2] < 1e-12
        assert (spectrum.cut_errors[3:] == 1).all()  # no direction beyond the rank is known

    @pytest.mark.parametrize(
        "matrix",
        [
            gaussian(300, 300, rng=seeded(3)),
            2.5 * haar(256, 256, seeded(4)),
            with_spectrum([3.0] * 10 + [1.0] * 290, 300, 300, seeded(5)),
            torch.eye(200, dtype=torch.float64),
        ],
        ids=["bulk", "orthogonal", "cluster across k", "identity"],
    )
    @pytest.mark.parametrize("tolerance", [1e-6, 1e-3])
    def test_what_is_not_separated_is_computed_in_full_and_said(self, matrix, tolerance):
        spectrum = svd(DenseUpdate(matrix), method=Leading(4, tolerance))
        assert spectrum.method == "gram"
        assert "not separated at k = 4" in spectrum.notes[0]
        check_against_lapack(matrix, spectrum)

    def test_cut_inside_a_cluster_is_never_called_precise(self):
        for matrix in (2.5 * haar(256, 256, seeded(4)), repeated()):
            spectrum = svd(DenseUpdate(matrix), method=Leading(4))
            assert spectrum.cut_errors[-1] == 1

    def test_whole_cluster_is_certified(self):
        s = [3.0] * 10 + [1.0] * 290
        matrix = with_spectrum(s, 300, 300, seeded(5))
        spectrum = svd(DenseUpdate(matrix), method=Leading(10))
        assert spectrum.method == "leading"
        assert (spectrum.cut_errors[:9] == 1).all()
        check_against_lapack(matrix, spectrum)

    @pytest.mark.parametrize("shape", [(1, 9), (9, 1), (20, 12), (40, 400)])
    @pytest.mark.parametrize("k", [3, 100])
    def test_k_beyond_what_can_be_searched(self, shape, k):
        matrix = gaussian(*shape, rng=seeded())
        spectrum = svd(DenseUpdate(matrix), method=Leading(k))
        assert len(spectrum.values) == min(k, *shape)
        check_against_lapack(matrix, spectrum)

    @pytest.mark.parametrize(("k", "tolerance"), [(0, 1e-6), (2, 0.0), (2, 1.0), (2, math.nan)])
    def test_bad_options_are_refused(self, k, tolerance):
        with pytest.raises(UpdateError, match="leading directions"):
            Leading(k, tolerance)

    @settings(max_examples=100)
    @given(
        seed=st.integers(0, 2**31),
        k=st.integers(1, 12),
        shape=st.sampled_from([(200, 200), (150, 400), (400, 150)]),
        power=st.floats(0.05, 3.0),
        spikes=st.integers(0, 14),
        tied=st.booleans(),
        tolerance=st.sampled_from([1e-10, 1e-8, 1e-6, 1e-3, 1e-2]),
        dtype=st.sampled_from([torch.float32, torch.float64]),
    )
    def test_certificate_is_honest(self, seed, k, shape, power, spikes, tied, tolerance, dtype):
        s = torch.arange(1, 151, dtype=torch.float64) ** -power
        s[:spikes] += torch.rand(spikes, generator=seeded(seed), dtype=torch.float64) * 3
        s[k : k + 2] = s[k - 1] * (1 - (0.0 if tied else 1e-5))
        matrix = with_spectrum(s.sort(descending=True).values, *shape, seeded(seed)).to(dtype)
        size = norm(matrix)
        tall = matrix if shape[0] >= shape[1] else matrix.T
        for found in (
            leading_svd(matrix, k, tolerance, size),
            leading_of_square(matrix, square_of(tall), k, tolerance, size),
        ):
            if found is not None:
                check_certificate(matrix.double(), found, k, tolerance)


def check_certificate(matrix, found, k, tolerance):
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    round_off = max(matrix.shape) * EPS * s[0]
    assert found.tail >= s[k] - round_off
    assert ((found.values - s[:k]).abs() <= found.errors + round_off).all()
    assert found.cut_errors[-1] <= tolerance
    for i in range(1, k + 1):
        slack = (4 * round_off / (s[i - 1] - s[i])).item()
        allowed = found.cut_errors[i - 1].item() + slack
        if allowed < 0.5:
            assert sine(found.left[:, :i], u[:, :i]) <= allowed
            assert sine(found.right[:, :i], vt[:i].T) <= allowed


class TestRandomisedWithoutACertificate:
    def naive(self, matrix, k, passes=2):
        """Halko, Martinsson and Tropp's subspace with power iterations."""
        q = torch.linalg.qr(matrix @ gaussian(matrix.shape[1], k + 10, rng=seeded(8)))[0]
        for _ in range(passes):
            q = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ q)[0])[0]
        u, s, vt = torch.linalg.svd(q.T @ matrix, full_matrices=False)
        return q @ u[:, :k], s[:k], vt[:k].T

    def test_it_is_wrong_inside_a_bulk(self):
        matrix, k = planted(400, 8, 3.0, 6), 32
        left, s, right = self.naive(matrix, k)
        u, exact, vt = torch.linalg.svd(matrix)
        torch.testing.assert_close(s[:8], exact[:8], rtol=1e-3, atol=0)  # it looks right
        assert (u[:, :k].T @ left).square().sum() / k < 0.9  # a tenth of the span and more is not
        assert sine(right, vt[:k].T) > 0.9
        sure = svd(DenseUpdate(matrix), k, Leading(k))
        assert sine(sure.right, vt[:k].T) < 1e-6

    def test_the_bound_finds_what_a_subspace_lacks(self):
        matrix = planted(300, 8, 3.0, 7)
        u, s, vt = torch.linalg.svd(matrix)
        keep = [0, 1, 2, 4, 5, 6, 7, 8, 9]  # the fourth direction is left out
        *_, bound = remainder_bounds(matrix, u[:, keep], vt.T[:, keep], s[10].item(), 1)
        assert bound >= s[3]


@pytest.mark.parametrize("guess", [0.2, 1.0, 1.7])
@pytest.mark.parametrize("number", range(5))
def test_bounds_hold_at_every_step_and_come_close(guess, number):
    n, c = 200, 6
    matrix = gaussian(n, 150, rng=seeded(number))
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    bounds = list(remainder_bounds(matrix, u[:, :c], vt[:c].T, guess * s[c].item(), number))
    assert min(bounds) >= s[c]
    if guess == 1.0:
        assert bounds[-1] < 1.1 * s[c]


def test_bounds_of_nothing_and_of_a_guess_that_is_absurd():
    none = torch.empty(40, 0, dtype=torch.float64)
    zero = torch.zeros(40, 40, dtype=torch.float64)
    assert list(remainder_bounds(zero, none, none, 1e-9, 1))[-1] < 1.1e-9
    eye = torch.eye(40, dtype=torch.float64)
    assert min(remainder_bounds(eye, none, none, 1e-300, 1)) >= 1


@given(a=st.floats(0, 9), b=st.floats(0, 9), c=st.floats(0, 9))
def test_coupled_norm_is_that_of_the_matrix(a, b, c):
    expected = np.linalg.norm([[a, b], [0, c]], 2)
    assert coupled_norm(a, b, c) == pytest.approx(expected, rel=1e-7, abs=1e-12)


@given(seed=st.integers(0, 2**31), size=st.floats(1e-4, 0.5))
def test_coupling_moves_values_by_less_than_the_bound(seed, size):
    rng = seeded(seed)
    top = torch.tensor([5.0, 4.0, 3.0], dtype=torch.float64)
    rest = with_spectrum([2.0, 1.0], 6, 7, rng)
    coupling = gaussian(3, 7, rng=rng)
    coupling *= size / torch.linalg.matrix_norm(coupling, 2)
    whole = torch.cat(
        [
            torch.cat([torch.diag(top), coupling], 1),
            torch.cat([torch.zeros(6, 3, dtype=torch.float64), rest], 1),
        ]
    )
    moved = (torch.linalg.svdvals(whole)[:3] - top).abs()
    assert (moved <= value_errors(top, size, 2.0) + 1e-13).all()


@given(seed=st.integers(0, 2**31), size=st.floats(1e-4, 0.3), gap=st.floats(0.0, 1.0))
def test_cut_sines_bound_those_of_the_block_matrix(seed, size, gap):
    rng = seeded(seed)
    s = torch.tensor([5.0, 4.0, 4.0 - gap, 2.9], dtype=torch.float64)
    rest = with_spectrum([2.0, 1.0], 6, 7, rng)
    coupling = size * gaussian(4, 7, rng=rng)
    coupling[:2] *= 0.01  # the first are found best
    corner = torch.zeros(6, 4, dtype=torch.float64)
    whole = torch.cat([torch.cat([torch.diag(s), coupling], 1), torch.cat([corner, rest], 1)])
    sines = cut_sines(s, torch.linalg.vector_norm(coupling, dim=1), 2.0, 4)
    u, _, vt = torch.linalg.svd(whole, full_matrices=False)
    for i in range(1, 5):
        for basis in (u[:, :i], vt[:i].T):
            assert torch.linalg.matrix_norm(basis[i:], 2).item() <= sines[i - 1] + 1e-12


def test_cut_sines_need_a_gap():
    two, small, none = torch.tensor([2.0, 2.0]), torch.tensor([0.1, 0.1]), torch.zeros(2)
    for residuals in (small, none):
        sines = cut_sines(two, residuals, 1.0, 2)
        assert torch.isinf(sines[0])
        assert sines[1] < 0.2
        assert torch.isinf(cut_sines(two, residuals, 2.0, 2)).all()
    assert torch.isinf(cut_sines(none, none, 0.0, 2)).all()


def square_of(matrix):
    return mirror(gram(matrix))


@pytest.mark.parametrize("squared", [False, True])
def test_krylov_values_never_exceed_the_true_ones_and_residuals_are_true(squared):
    matrix = decaying(200, 0.7, 9)
    truth = torch.linalg.svdvals(matrix)
    square = lanczos(square_of(matrix), 16, 96)
    sizes, off = [], 10.0 if squared else 1.0  # what roots of squares may be worse by
    for space in square if squared else krylov(matrix, 16, 96, torch.float64):
        ritz = space.ritz()
        q = len(ritz.values)
        sizes.append(q)
        assert (ritz.values <= truth[:q] + off * 1e-14).all()
        right = ritz.right(q)
        torch.testing.assert_close(right.T @ right, torch.eye(q).double(), rtol=0, atol=1e-13)
        left = matrix @ right / ritz.values
        residuals = torch.linalg.vector_norm(matrix.T @ left - right * ritz.values, dim=0)
        torch.testing.assert_close(ritz.residuals, residuals, rtol=1e-6, atol=off * 1e-13)
    assert sizes == list(range(16, 97, 16))


@pytest.mark.parametrize("squared", [False, True])
def test_krylov_finds_no_direction_twice_where_the_rank_ends(squared):
    matrix = with_spectrum([4.0, 2.0, 1.0], 200, 180, seeded())
    square = lanczos(square_of(matrix), 16, 64)
    *_, space = square if squared else krylov(matrix, 16, 64, torch.float64)
    ritz = space.ritz()
    torch.testing.assert_close(ritz.values[:3], torch.tensor([4.0, 2.0, 1.0]).double())
    assert ritz.values[3] < (1e-6 if squared else 1e-14)
    right = ritz.right(64)
    torch.testing.assert_close(right.T @ right, torch.eye(64).double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("matrix", [gaussian(50, 30, rng=seeded()), MATRICES["rank-deficient"]])
def test_rayleigh_ritz_residuals_are_orthogonal_to_what_was_found(matrix):
    found = rayleigh_ritz(matrix, haar(matrix.shape[1], 7, seeded(1)))
    left, right = found.left, found.right
    torch.testing.assert_close(matrix @ right, left * found.values, rtol=0, atol=1e-13)
    torch.testing.assert_close(left.T @ left, torch.eye(7).double(), rtol=0, atol=1e-13)
    assert (right.T @ found.residual).abs().max() < 1e-13


@given(seed=st.integers(0, 2**31), power=st.floats(0.1, 4.0), error=st.floats(1e-9, 0.1))
def test_a_power_step_says_what_its_float32_products_blur(seed, power, error):
    matrix = decaying(60, power, seed)
    right = torch.linalg.svd(matrix).Vh.T[:, :7]
    start = right + error * gaussian(60, 7, rng=seeded(seed + 1))
    before = rayleigh_ritz(matrix, start)
    found, exact = (
        power_step(matrix, before, norm(matrix)),
        rayleigh_ritz(matrix, before.image),
    )
    lack = matrix @ found.right - found.left * found.values
    wrong = found.image - matrix.T @ found.left
    for difference in (lack, wrong, found.values - exact.values):
        assert difference.norm() <= found.blur + 1e-14
    assert sine(found.right, exact.right) <= found.blur / exact.values[-1].item() + 1e-13
    for side in (found.left, found.right):
        torch.testing.assert_close(side.T @ side, torch.eye(7).double(), rtol=0, atol=1e-13)
    assert found.blur < 1e-4 * error + 1e-9


class TestBlocks:
    @pytest.mark.parametrize("shape", [(1300, 40), (40, 1300), (1, 5), (600, 600)])
    @pytest.mark.parametrize("turned", [False, True])
    def test_products(self, shape, turned):
        rng = seeded()
        matrix = gaussian(*(shape[::-1] if turned else shape), rng=rng).float()
        matrix = matrix.T if turned else matrix
        x, y = gaussian(shape[1], 3, rng=rng), gaussian(shape[0], 3, rng=rng)
        wide = matrix.double()
        for dtype, rtol in ((torch.float64, 1e-13), (torch.float32, 1e-3)):
            one, other = times(matrix, x.to(dtype)), times_transposed(matrix, y.to(dtype))
            assert one.dtype == other.dtype == dtype
            atol = rtol * max(shape)
            torch.testing.assert_close(one.double(), wide @ x, rtol=rtol, atol=atol)
            torch.testing.assert_close(other.double(), wide.T @ y, rtol=rtol, atol=atol)
        square = (wide.T @ wide).tril()
        torch.testing.assert_close(gram(matrix).tril(), square, rtol=1e-12, atol=1e-12)
        assert norm(matrix) == pytest.approx(wide.norm().item(), rel=1e-12)
        half = gaussian(*matrix.shape, rng=rng).bfloat16()
        expected = torch.einsum("ij,ij->", wide, half.double()).item()
        assert inner(matrix, half) == pytest.approx(expected, rel=1e-12, abs=1e-11)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("dtype", [*DTYPES], ids=str)
    @pytest.mark.parametrize("shape", [(3, 5), (500, 700), (7,), (2, 3, 4)])
    def test_finite(self, shape, dtype, bad):
        tensor = torch.full(shape, 6e4).to(dtype)
        assert all_finite(tensor)
        assert all_finite(torch.zeros(0, 3))
        tensor.view(-1)[-1] = bad
        assert not all_finite(tensor)

    @pytest.mark.parametrize("shape", [(3, 5), (500, 700), (1, 70_000), (70_000, 1)])
    def test_difference_of_half_precision_is_exact_or_next_to_it(self, shape):
        rng = seeded()
        base = gaussian(*shape, rng=rng)
        base *= 10.0 ** torch.randint(-9, 3, shape, generator=rng)
        for dtype, span in ((torch.bfloat16, 15), (torch.float16, 12)):
            one = base.to(dtype)
            other = (base * (1 + 0.01 * gaussian(*shape, rng=rng))).to(dtype)
            other[0] = gaussian(1, shape[1], rng=rng)[0].to(dtype)  # far apart, some of them
            truth = one.double() - other.double()
            found, size = subtract(one, other, torch.float32)
            near = (one.double().frexp()[1] - other.double().frexp()[1]).abs() <= span
            near |= (one == 0) | (other == 0)
            assert torch.equal(found[near].double(), truth[near])
            assert ((found - truth).abs() <= 2.0**-24 * truth.abs()).all()
            assert size == pytest.approx(found.double().norm().item(), rel=1e-13)


sizes = st.integers(1, 12)


@given(seed=st.integers(0, 2**31), out=sizes, in_=sizes, power=st.integers(-60, 60))
@pytest.mark.parametrize("method", [Exact(), Gram(), Leading(3)], ids=name_of)
def test_rotation_transpose_and_scale(method, seed, out, in_, power):
    rng = seeded(seed)
    matrix = gaussian(out, in_, rng=rng)
    one = svd(DenseUpdate(matrix), method=method)
    turned = haar(out, out, rng) @ matrix @ haar(in_, in_, rng)
    for other, unit in ((turned, 1.0), (matrix.T, 1.0), (matrix * 2.0**power, 2.0**power)):
        two = svd(DenseUpdate(other), method=method)
        moved = (two.values / unit - one.values).abs()
        assert (moved <= one.errors + two.errors / unit + 1e-12 * one.values[0]).all()
