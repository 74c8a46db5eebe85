"""One contract that every form of update and every method keeps, against the dense truth."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import gaussian, haar, with_spectrum

from rankscope.errors import AdapterError, UpdateError
from rankscope.spectra import Auto, Exact, Gram, svd
from rankscope.updates import DenseUpdate, FactoredUpdate

SHAPES = [(7, 5, 3), (5, 7, 3), (1, 6, 1), (6, 1, 1), (4, 4, 9), (3, 8, 3), (6, 5, 0)]
METHODS = [Exact(), Gram(), Auto()]


def factored(out, in_, r, seed=0, scale=-1.5):
    rng = torch.Generator().manual_seed(seed)
    return FactoredUpdate(gaussian(out, r, rng=rng), gaussian(r, in_, rng=rng), scale)


def build(form, out, in_, r, seed=0):
    update = factored(out, in_, r, seed)
    truth = update.scale * update.up @ update.down
    return (update if form == "factored" else DenseUpdate(truth)), truth


@pytest.fixture(params=["factored", "dense"])
def form(request):
    return request.param


@pytest.mark.parametrize("shape", SHAPES)
class TestContract:
    def test_compress_multiplies_back_with_orthonormal_sides(self, form, shape):
        update, truth = build(form, *shape)
        left, core, right = update.compress()
        product = core
        for basis, apply in ((left, "left"), (right, "right")):
            if basis is None:
                continue
            eye = torch.eye(basis.shape[1], dtype=torch.float64)
            torch.testing.assert_close(basis.T @ basis, eye)
            product = basis @ product if apply == "left" else product @ basis.T
        torch.testing.assert_close(product, truth)

    def test_dense_shape_transpose_and_matmul(self, form, shape):
        update, truth = build(form, *shape)
        assert update.shape == truth.shape
        torch.testing.assert_close(update.dense(), truth)
        torch.testing.assert_close(update.T.dense(), truth.T)
        x = gaussian(truth.shape[1], 2, rng=torch.Generator().manual_seed(1))
        torch.testing.assert_close(update.matmul(x), truth @ x)

    @pytest.mark.parametrize("other_form", ["factored", "dense"])
    def test_algebra(self, form, other_form, shape):
        a, x = build(form, *shape)
        b, y = build(other_form, *shape, seed=5)
        torch.testing.assert_close((a + b).dense(), x + y)
        torch.testing.assert_close((a - b).dense(), x - y)
        torch.testing.assert_close((2.5 * a).dense(), 2.5 * x)
        torch.testing.assert_close((a * -2).dense(), -2 * x)
        assert a.inner(b) == pytest.approx((x * y).sum().item(), rel=1e-12, abs=1e-12)
        assert b.inner(a) == pytest.approx(a.inner(b), rel=1e-12, abs=1e-12)
        assert a.norm() == pytest.approx(x.norm().item(), rel=1e-13)

    @pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
    def test_every_method_finds_the_spectrum(self, form, shape, method):
        update, truth = build(form, *shape)
        spectrum = svd(update, method=method)
        k = update.ceiling
        expected = torch.linalg.svdvals(truth)[:k]
        atol = max(spectrum.error_bound, 1e-14)
        torch.testing.assert_close(spectrum.values, expected, rtol=0, atol=atol)
        assert len(spectrum.values) == k == spectrum.left.shape[1] == spectrum.right.shape[1]
        product = spectrum.left * spectrum.values @ spectrum.right.T
        torch.testing.assert_close(product, truth, rtol=1e-7, atol=1e-7)
        assert spectrum.energy == pytest.approx(truth.square().sum().item(), rel=1e-12)


def test_sum_of_factored_updates_stays_factored_and_adds_ranks():
    total = factored(6, 5, 2) + factored(6, 5, 1, seed=3)
    assert isinstance(total, FactoredUpdate)
    assert total.up.shape[1] == 3


def test_difference_of_nearly_equal_updates_keeps_its_digits():
    a = factored(50, 40, 3)
    nudge = 1e-9
    b = FactoredUpdate(a.up * (1 + nudge), a.down, a.scale)
    # A norm from the Gram matrices would lose everything below 1e-8 of ‖a‖.
    assert (b - a).norm() == pytest.approx(nudge * a.norm(), rel=1e-5)


@pytest.mark.parametrize("grading", ["up", "down", "both", "shuffled"])
@pytest.mark.parametrize("r", [8, 33])
def test_graded_factors_keep_relative_accuracy(rng, grading, r):
    s = torch.logspace(0, -10, r, dtype=torch.float64)
    left, right = haar(60, r, rng), haar(50, r, rng)
    up, down = {
        "up": (left * s, right.T),
        "down": (left, (right * s).T),
        "both": (left * s.sqrt(), (right * s.sqrt()).T),
        "shuffled": (left * s.sqrt(), (right * s.sqrt()).T),
    }[grading]
    if grading == "shuffled":
        order = torch.randperm(r, generator=rng)
        up, down = up[:, order], down[order]
    values = svd(FactoredUpdate(up, down)).values
    torch.testing.assert_close(values, s, rtol=1e-12, atol=0)
    # The dense route cannot do this: the test would prove nothing if it could.
    dense = svd(DenseUpdate(up @ down)).values[:r]
    assert ((dense - s).abs() / s).max() > 1e-9


def test_low_precision_factors_are_upcast_before_the_product(rng):
    up, down = gaussian(64, 8, rng=rng).bfloat16(), gaussian(8, 48, rng=rng).bfloat16()
    values = svd(DenseUpdate(FactoredUpdate(up, down).dense())).values
    assert values[8] < 1e-13 * values[0]  # a bf16 product would have invented rank 9


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_zero_update(method, form):
    update = (
        FactoredUpdate(torch.zeros(5, 2), torch.ones(2, 4))
        if form == "factored"
        else DenseUpdate(torch.zeros(5, 4))
    )
    spectrum = svd(update, method=method)
    assert spectrum.values.tolist() == [0.0] * update.ceiling
    assert spectrum.directions == 0
    assert spectrum.energy == 0
    assert torch.isfinite(spectrum.left).all()
    assert torch.isfinite(spectrum.right).all()


def test_first_k_and_values_only():
    update = factored(9, 7, 4)
    spectrum = svd(update, k=2)
    assert spectrum.left.shape == (9, 2)
    torch.testing.assert_close(spectrum.values, svd(update).values[:2])
    assert spectrum.energy == pytest.approx(update.norm() ** 2)
    assert svd(update, vectors=False).left is None
    with pytest.raises(UpdateError, match="k of at least 1"):
        svd(update, k=0)


def test_auto_takes_gram_for_large_matrices_only(rng):
    matrix = with_spectrum([3.0, 2.0, 1.0], 12, 10, rng)
    assert svd(DenseUpdate(matrix), method=Auto(limit=10)).method == "exact"
    assert svd(DenseUpdate(matrix), method=Auto(limit=9)).method == "gram"


def test_gram_knows_what_it_cannot_resolve(rng):
    s = [1.0, 1e-3, 1e-10]
    spectrum = svd(DenseUpdate(with_spectrum(s, 30, 20, rng)), method=Gram())
    assert spectrum.directions == 2  # 1e-10 lies below the square root of eps
    assert spectrum.error_bound > 1e-10


def test_slow_driver_takes_over_when_divide_and_conquer_fails(monkeypatch, rng):
    def fail(*args, **kwargs):
        raise torch.linalg.LinAlgError("did not converge")

    matrix = with_spectrum([3.0, 2.0, 1.0], 6, 5, rng)
    monkeypatch.setattr(torch.linalg, "svd", fail)
    values = svd(DenseUpdate(matrix)).values
    assert values[:3].tolist() == pytest.approx([3.0, 2.0, 1.0], rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(bad, form):
    matrix = torch.eye(3)
    matrix[0, 1] = bad
    update = FactoredUpdate(matrix, torch.eye(3)) if form == "factored" else DenseUpdate(matrix)
    with pytest.raises(UpdateError, match="not finite"):
        svd(update)


@pytest.mark.parametrize(("up", "down"), [((4, 2), (3, 5)), ((4,), (4, 5)), ((4, 2, 1), (2, 5))])
def test_factors_that_do_not_fit_are_refused(up, down):
    with pytest.raises(AdapterError, match="do not fit together"):
        FactoredUpdate(torch.ones(up), torch.ones(down))


def test_dense_update_must_be_a_matrix():
    with pytest.raises(AdapterError, match="an update is a matrix"):
        DenseUpdate(torch.ones(2, 2, 2))


sizes = st.integers(1, 9)
seeds = st.integers(0, 2**31)


@given(seed=seeds, out=sizes, in_=sizes, r=sizes, factor=st.floats(-8, 8))
def test_scaling_scales_the_spectrum(seed, out, in_, r, factor):
    update = factored(out, in_, r, seed)
    scaled = svd(update * factor).values
    torch.testing.assert_close(scaled, abs(factor) * svd(update).values, rtol=1e-11, atol=1e-300)


@given(seed=seeds, out=sizes, in_=sizes, r=sizes)
def test_rotation_and_transpose_leave_the_spectrum(seed, out, in_, r):
    rng = torch.Generator().manual_seed(seed)
    update = factored(out, in_, r, seed)
    turned = FactoredUpdate(
        haar(out, out, rng) @ update.up, update.down @ haar(in_, in_, rng), -1.5
    )
    for other in (turned, update.T):
        torch.testing.assert_close(svd(other).values, svd(update).values, rtol=1e-9, atol=1e-12)


@given(seed=seeds, out=sizes, in_=sizes, r=sizes)
def test_gauge_changes_nothing(seed, out, in_, r):
    rng = torch.Generator().manual_seed(seed)
    update = factored(out, in_, r, seed)
    gauge = haar(r, r, rng) * torch.linspace(0.5, 2.0, r, dtype=torch.float64)
    other = FactoredUpdate(update.up @ torch.linalg.inv(gauge), gauge @ update.down, update.scale)
    one, two = svd(update), svd(other)
    torch.testing.assert_close(two.values, one.values, rtol=1e-9, atol=1e-12)
    assert two.directions == one.directions
    k = one.directions
    for a, b in ((one.left, two.left), (one.right, two.right)):
        projectors = [x[:, :k] @ x[:, :k].T for x in (a, b)]
        torch.testing.assert_close(*projectors, rtol=1e-6, atol=1e-6)


@given(seed=seeds, out=sizes, in_=sizes, r=sizes, more=st.integers(1, 4))
def test_padding_adds_only_zeros(seed, out, in_, r, more):
    update = factored(out, in_, r, seed)
    up = torch.nn.functional.pad(update.up, (0, more, 0, more))
    down = torch.nn.functional.pad(update.down, (0, more, 0, more))
    padded = svd(FactoredUpdate(up, down, update.scale)).values
    values = svd(update).values
    torch.testing.assert_close(padded[: len(values)], values, rtol=1e-11, atol=1e-13)
    assert (padded[len(values) :] <= 1e-13 * max(values[0].item(), 1)).all()


@pytest.mark.parametrize(
    "combine", [lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a.inner(b)]
)
@pytest.mark.parametrize(
    "forms",
    [("dense", "dense"), ("dense", "factored"), ("factored", "dense"), ("factored", "factored")],
)
def test_updates_of_different_shapes_are_not_broadcast(combine, forms):
    a, b = build(forms[0], 3, 4, 2)[0], build(forms[1], 1, 4, 2)[0]
    with pytest.raises(UpdateError, match="different shapes"):
        combine(a, b)


def test_updates_say_what_they_are_and_not_their_numbers(rng):
    update = FactoredUpdate(gaussian(30, 2, rng=rng), gaussian(2, 20, rng=rng))
    assert repr(update) == "FactoredUpdate(30 × 20, rank at most 2)"
    assert repr(DenseUpdate(update.dense())) == "DenseUpdate(30 × 20, rank at most 20)"
