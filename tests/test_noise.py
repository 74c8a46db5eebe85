import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import gaussian, with_spectrum

from rankscope.errors import UpdateError
from rankscope.linalg.rounding import (
    Grid,
    leading,
    own_generator,
    rounded,
    spectral_norm,
    ulp,
)
from rankscope.measures.noise import rank_above_noise, storage_noise, stored_precision
from rankscope.spectra import svd
from rankscope.updates import DenseUpdate

BF16, FP16 = torch.bfloat16, torch.float16
FORMATS = pytest.mark.parametrize("dtype", [BF16, FP16], ids=["bf16", "fp16"])
SIGMA = 0.02


def weight(out, in_, rng, columns="even"):
    scales = torch.randn(in_, generator=rng).exp() if columns == "lognormal" else 1.0
    return SIGMA * torch.randn(out, in_, generator=rng) * scales


def planted(w, rank, size, rng):
    update = torch.randn(w.shape[0], rank, generator=rng) @ torch.randn(
        rank, w.shape[1], generator=rng
    )
    return update * (size * w.norm() / update.norm())


def spectrum_of(tuned, base):
    return svd(DenseUpdate(tuned.double() - base.double()), vectors=False)


def measured(tuned, base, seed=0):
    noise = storage_noise(tuned, base, seed=seed)
    return noise, rank_above_noise(spectrum_of(tuned, base), tuned, base, noise, seed=seed)


# Rounding


@FORMATS
@given(x=st.floats(-60000, 60000, allow_nan=False, width=16))
def test_ulp_is_the_step_to_the_next_larger_magnitude(dtype, x):
    stored = torch.tensor([abs(x)]).to(dtype)
    step = torch.nextafter(stored, torch.full_like(stored, math.inf)).double() - stored.double()
    assert ulp(-stored.float(), dtype).double() == step


def test_ulp_of_subnormal_zero_and_power_of_two():
    values = torch.tensor([0.0, 2.0**-24, 2.0**-15, 2.0**-14, 1.0, 1.999, 2.0])
    exponents = ulp(values, FP16).log2().tolist()
    assert exponents == [-24, -24, -24, -24, -10, -10, -9]
    assert ulp(torch.zeros(1), BF16).item() == 2.0**-133


@FORMATS
@given(x=st.floats(-1e5, 1e5, allow_nan=False, width=32))
def test_rounding_is_idempotent_and_within_half_a_spacing(dtype, x):
    x = torch.tensor([x])
    once = rounded(x, dtype)
    assert torch.equal(rounded(once, dtype), once)
    if abs(x) <= torch.finfo(dtype).max:
        assert (once - x).abs() <= ulp(x, dtype) / 2


@pytest.mark.parametrize(("dtype", "constant"), [(BF16, 1.659e-3), (FP16, 2.07e-4)])
def test_rounding_of_gaussian_weights(dtype, constant, rng):
    w = weight(1000, 1000, rng)
    error = (rounded(w, dtype) - w).double()
    predicted = Grid(dtype).deviation(w).double().square().mean().sqrt().item()
    assert error.square().mean().sqrt().item() == pytest.approx(predicted, rel=3e-3)
    # formulas: 1.655e-3 to 1.663e-3 over the phase of sigma within an octave
    assert predicted / SIGMA == pytest.approx(constant, rel=5e-3)


def test_leading_values_and_directions_are_lapacks(rng):
    s = torch.cat([torch.tensor([9.0, 8.0, 5.0, 4.0]), torch.linspace(1, 0, 60)])
    matrix = with_spectrum(s, 90, 70, rng).float()
    values, right = leading(matrix, 4)
    torch.testing.assert_close(values, s[:4], rtol=1e-5, atol=0)
    torch.testing.assert_close((matrix @ right).norm(dim=0), s[:4], rtol=1e-5, atol=0)
    again, _ = leading(matrix, 4, start=right)
    torch.testing.assert_close(again, values, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 3), (300, 40), (40, 300)])
def test_spectral_norm_is_lapacks(shape, rng):
    matrix = gaussian(*shape, rng=rng).float()
    exact = torch.linalg.matrix_norm(matrix, 2).item()
    assert spectral_norm(matrix) == pytest.approx(exact, rel=1e-4)
    low = torch.outer(matrix[:, 0], matrix[0])  # exhausts the Krylov space at once
    exact = torch.linalg.matrix_norm(low, 2).item()
    assert spectral_norm(low) == pytest.approx(exact, rel=1e-5)
    assert spectral_norm(torch.zeros(shape)) == 0


def test_surrogates_are_unlike_weights_of_the_same_seed():
    plain = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    own = torch.rand(1000, generator=own_generator(0, 0))
    assert abs(torch.corrcoef(torch.stack([plain, own]))[0, 1]) < 0.1


# What the bits show


@pytest.mark.parametrize(
    ("dtype", "carrier", "expected"),
    [
        (BF16, BF16, "bfloat16"),
        (FP16, FP16, "float16"),
        (BF16, torch.float32, "bfloat16"),
        (FP16, torch.float32, "float16"),
        (BF16, torch.float64, "bfloat16"),
        (torch.float32, torch.float32, "float32"),
        (torch.float32, torch.float64, "float32"),
        (torch.float64, torch.float64, "float64"),
    ],
)
def test_precision_is_what_the_bits_show(dtype, carrier, expected, rng):
    numbers = gaussian(20, 20, rng=rng).to(dtype)
    assert stored_precision(numbers.to(carrier)) == expected


def test_precision_knows_float16s_range():
    assert stored_precision(torch.tensor([2.0**-24, 1 + 2.0**-10])) == "float16"
    assert stored_precision(torch.tensor([2.0**-25, 1 + 2.0**-10])) == "float32"
    assert stored_precision(torch.tensor([65536.0, 1 + 2.0**-10])) == "float32"
    assert stored_precision(2.0**-24 * torch.tensor([0.0, 3, 100])) == "float16"
    assert stored_precision(2.0**-24 * torch.tensor([0.0, 3, 256])) == "bfloat16"
    assert stored_precision(2.0**-25 * torch.tensor([0.0, 3, 100])) == "bfloat16"
    assert stored_precision(torch.zeros(3)) == "bfloat16"


# The noise


@pytest.mark.parametrize("columns", ["even", "lognormal"])
def test_edge_of_a_fresh_rounding_is_its_largest_singular_value(columns, rng):
    w = weight(384, 256, rng, columns)
    tuned = w.bfloat16()
    noise = storage_noise(tuned, w)
    largest = torch.linalg.matrix_norm(tuned.float() - w, 2).item()
    variance = Grid(BF16).deviation(w).square()
    bound = sum(variance.sum(axis).max().sqrt().item() for axis in (0, 1))
    even = variance.mean().sqrt().item() * (math.sqrt(384) + math.sqrt(256))
    assert largest < noise.edge < (1.06 if columns == "even" else 1.2) * largest
    assert noise.edge < 1.1 * bound
    if columns == "lognormal":
        assert noise.edge > 1.5 * even  # one variance for all would be far too low
    else:
        assert noise.edge == pytest.approx(even, rel=0.06)
    assert noise.floor == pytest.approx((tuned.float() - w).norm().item(), rel=0.01)
    assert noise.share == pytest.approx(1, abs=1e-3)
    assert (noise.gain, noise.on_grid, noise.dead_zone) == (1, False, False)


@pytest.mark.parametrize(
    ("size", "changed", "gain"),
    [(1e-4, 0.022, 0.07), (3e-4, 0.066, 0.20), (1e-3, 0.21, 0.57), (3e-3, 0.49, 0.93)],
)
def test_dead_zone_of_rank_four(size, changed, gain, rng):
    w = weight(1024, 1024, rng).bfloat16().float()
    update = planted(w, 4, size, rng)
    noise = storage_noise((w + update).bfloat16(), w.bfloat16())
    assert 1 - noise.unchanged == pytest.approx(changed, rel=0.06)
    # the prediction is for Gaussian entries; those of rank 4 have a heavier tail
    assert noise.gain == pytest.approx(gain, rel=0.2)
    assert noise.on_grid
    assert noise.dead_zone


def test_dead_zone_ends_where_the_update_is_larger_than_the_grid(rng):
    w = weight(512, 512, rng).bfloat16().float()
    noise = storage_noise((w + planted(w, 4, 1e-2, rng)).bfloat16(), w)
    assert 1 - noise.unchanged == pytest.approx(0.79, abs=0.02)
    assert noise.gain == pytest.approx(0.999, abs=2e-3)
    assert noise.on_grid
    assert not noise.dead_zone


@pytest.mark.parametrize("size", [1e-3, 1e-2, 1e-1])
def test_two_roundings_have_root_two_times_the_noise(size, rng):
    w = weight(384, 384, rng)
    update = planted(w, 4, size, rng)
    once = storage_noise(rounded(w + update, BF16), w)
    base = rounded(w, BF16)
    twice = storage_noise(rounded(w + update, BF16), base)
    assert not twice.on_grid
    assert twice.floor == pytest.approx(math.sqrt(2) * once.floor, rel=5e-3)
    assert once.edge < twice.edge < 1.5 * once.edge
    x = rounded(w + update, BF16) - base
    correlation = (update * x).sum() / update.norm() / x.norm()
    assert twice.share == pytest.approx(1 - correlation.item() ** 2, rel=0.1)
    assert twice.gain == 1


# The rank above it


@pytest.mark.parametrize("columns", ["even", "lognormal"])
@FORMATS
def test_fresh_rounding_has_rank_zero(dtype, columns):
    for seed in range(8):
        w = weight(128, 192, torch.Generator().manual_seed(seed), columns)
        assert measured(w.to(dtype), w, seed)[1] == 0


@pytest.mark.parametrize("way", ["stored base", "both rounded", "finer base"])
@pytest.mark.parametrize("columns", ["even", "lognormal"])
@pytest.mark.parametrize("rank", [1, 2, 4, 16])
def test_planted_rank_comes_back(rank, columns, way, rng):
    w = weight(256, 192, rng, columns)
    base = w if way == "finer base" else rounded(w, BF16)
    origin = base if way == "stored base" else w
    for size in (1e-2, 5e-2):
        tuned = rounded(origin + planted(w, rank, size, rng), BF16)
        noise, found = measured(tuned, base)
        assert found == rank
        assert noise.on_grid == (way == "stored base")


@FORMATS
def test_planted_rank_comes_back_out_of_a_dead_zone(dtype, rng):
    size = 1e-3 if dtype == BF16 else 1.25e-4
    w = rounded(weight(384, 384, rng), dtype)
    for rank in (1, 4):
        tuned = rounded(w + planted(w, rank, size, rng), dtype)
        noise, found = measured(tuned.to(dtype), w.to(dtype))
        assert noise.dead_zone
        assert found == rank


def test_coherent_rounding_of_rank_one_is_not_counted(rng):
    w = rounded(weight(512, 512, rng), BF16)
    tuned = rounded(w + planted(w, 1, 1e-2, rng), BF16)
    noise, found = measured(tuned, w)
    assert (spectrum_of(tuned, w).values > noise.edge).sum() >= 5
    assert found == 1


def test_below_the_noise_is_rank_zero(rng):
    w = weight(256, 256, rng)
    tuned = rounded(w + planted(w, 16, 1e-4, rng), BF16)
    assert measured(tuned, w)[1] == 0


def test_full_rank_update_far_above_the_noise(rng):
    w = rounded(weight(128, 128, rng), BF16)
    update = 0.1 * weight(128, 128, rng)
    noise, found = measured(rounded(w + update, BF16), w)
    assert found == (torch.linalg.svdvals(update) > noise.edge).sum()
    assert found > 110


def test_leading_values_are_enough(rng):
    w = rounded(weight(192, 192, rng), BF16)
    tuned = rounded(w + planted(w, 4, 1e-2, rng), BF16)
    noise = storage_noise(tuned, w)
    for k in (2, 4, 10):
        spectrum = svd(DenseUpdate(tuned - w), k=k)
        assert rank_above_noise(spectrum, tuned, w, noise) == 4


# Scales


POWERS = {BF16: (-100, 120), FP16: (0, 17)}  # the range of a weight of 2**-9 to 2**-3


@FORMATS
@pytest.mark.parametrize("way", ["stored base", "both rounded", "finer base"])
@given(st.data())
@settings(max_examples=8)
def test_powers_of_two_change_nothing(dtype, way, data):
    power = data.draw(st.integers(*POWERS[dtype]))
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 3)))
    w = weight(48, 40, rng)
    w = w.sign() * w.abs().clamp(2.0**-9, 2.0**-3)
    base = w if way == "finer base" else rounded(w, dtype)
    origin = base if way == "stored base" else w
    tuned = rounded(origin + planted(w, 2, 0.02, rng), dtype)
    noise, found = measured(tuned, base)
    carrier = torch.float32 if way == "finer base" else dtype
    scaled, again = measured((tuned * 2.0**power).to(dtype), (base * 2.0**power).to(carrier))
    exact = 0 if dtype == BF16 else 1e-6  # some numbers were subnormal
    assert scaled.edge / 2.0**power == pytest.approx(noise.edge, rel=exact, abs=0)
    assert scaled.floor / 2.0**power == pytest.approx(noise.floor, rel=exact, abs=0)
    assert scaled.share == pytest.approx(noise.share, rel=exact, abs=0)
    assert again == found
    assert scaled.on_grid == noise.on_grid


@pytest.mark.parametrize(("dtype", "smallest"), [(BF16, 2.0**-133), (FP16, 2.0**-24)])
@pytest.mark.parametrize("way", ["stored base", "finer base"])
def test_subnormal_numbers_have_the_spacing_of_the_smallest(dtype, smallest, way, rng):
    w = 20 * smallest * torch.randn(192, 128, generator=rng, dtype=torch.float64)
    base = w if way == "finer base" else w.to(dtype).double()
    fresh = base.float().to(dtype) if way == "finer base" else base.to(dtype)
    noise, found = measured(fresh, base)
    assert found == 0
    assert noise.floor == pytest.approx(smallest * math.sqrt(192 * 128 / 12), rel=1e-5, abs=0)
    if way == "finer base":
        largest = torch.linalg.matrix_norm(fresh.double() - base, 2).item()
        assert largest < noise.edge < 1.1 * largest
    update = planted(w, 2, 0.2, rng)
    assert measured((base + update).to(dtype), base)[1] == 2


def test_differences_that_drown_cannot_be_told(rng):
    base = weight(16, 16, rng).bfloat16()
    base[0, 0] = 2.0**60
    tuned = base.clone()
    assert storage_noise(tuned, base).unchanged == 1
    tuned[3, 4] *= 2
    assert storage_noise(tuned, base) is None
    tiny = 1e-200 * weight(16, 16, rng).double()
    assert storage_noise(tiny, torch.zeros(16, 16).bfloat16()) is None
    ones = torch.ones(16, 16)
    assert storage_noise(ones.bfloat16(), ones.double() + 1e-12) is None


def test_the_ends_of_a_format_differ_by_more_than_it_holds():
    base = torch.full((4, 4), torch.finfo(BF16).max, dtype=BF16)
    noise, found = measured(-base, base)
    assert found == 1
    assert 0 < noise.edge < 2.0**127


# Where neither file is what one thinks


def test_unchanged_weight(rng):
    w = weight(64, 48, rng).bfloat16()
    noise, found = measured(w, w)
    assert (noise.edge, noise.unchanged, found) == (0, 1, 0)
    assert math.isnan(noise.share)
    assert math.isnan(noise.gain)
    assert not noise.dead_zone


def test_a_tuned_weight_of_zeros_is_no_noise(rng):
    base = weight(60, 40, rng)
    for stored in (base, rounded(base, BF16)):
        noise, found = measured(torch.zeros(60, 40), stored)
        assert found == 40
        assert noise.edge < 1e-30
        assert noise.share < 1e-3


@pytest.mark.parametrize("base", ["zeros", "ones", "integers"])
def test_small_integers_are_no_noise(base, rng):
    tuned = torch.randint(-3, 4, (6, 5), generator=rng).float()
    integers = torch.randint(-3, 4, (6, 5), generator=rng).float()
    base = {"zeros": torch.zeros(6, 5), "ones": torch.ones(6, 5), "integers": integers}[base]
    noise, found = measured(tuned, base)
    assert found == torch.linalg.matrix_rank(tuned - base)
    assert noise.share < 1e-3
    assert noise.gain == pytest.approx(1, abs=1e-3)


def test_one_changed_entry(rng):
    base = rounded(weight(64, 48, rng), BF16)
    tuned = base.clone()
    tuned[3, 5] = 1.0
    noise, found = measured(tuned, base)
    assert found == 1
    assert noise.share < 1e-3
    assert measured(torch.tensor([[2.0]]), torch.tensor([[1.0]]))[1] == 1
    assert measured(torch.full((9, 7), 2.0), torch.ones(9, 7))[1] == 1


def test_no_storage_noise_between_float32_files(rng):
    w = weight(16, 16, rng)
    assert storage_noise(w + 1e-3, w) is None
    assert storage_noise(w.double() * math.pi, w.double()) is None
    assert storage_noise(torch.zeros(0, 4), torch.zeros(0, 4)) is None


def test_eight_bits_are_not_modelled(rng):
    stored = weight(16, 16, rng).to(torch.float8_e4m3fn)
    assert stored_precision(stored) == "float8_e4m3fn"
    assert storage_noise(weight(16, 16, rng).bfloat16(), stored) is None


def test_float32_tuned_from_a_bfloat16_base_has_none(rng):
    base = rounded(weight(256, 256, rng), BF16)
    for size in (1e-4, 1e-2):
        noise, found = measured(base + planted(base, 4, size, rng), base)
        assert (noise.tuned_dtype, noise.base_dtype, noise.dtype) == (
            "float32",
            "bfloat16",
            "bfloat16",
        )
        assert noise.on_grid
        assert noise.share < 1e-3
        assert found == 4


def test_float32_tuned_from_a_finer_base_than_the_stored_one(rng):
    w = weight(256, 256, rng)
    tuned = w + planted(w, 4, 3e-3, rng)
    noise, found = measured(tuned, w.bfloat16())
    assert not noise.on_grid
    assert noise.floor == pytest.approx((w - rounded(w, BF16)).norm().item(), rel=0.01)
    assert found == 4


@pytest.mark.parametrize(("tuned_dtype", "base_dtype"), [(BF16, FP16), (FP16, BF16)])
def test_mixed_formats(tuned_dtype, base_dtype, rng):
    base = weight(256, 256, rng).to(base_dtype)
    tuned = (base.float() + planted(base.float(), 4, 1e-2, rng)).to(tuned_dtype)
    noise, found = measured(tuned, base)
    assert noise.dtype == "bfloat16"
    assert found == 4
    # bfloat16 lies on float16's grid, so that only the finer rounding is in the difference
    share = {BF16: 0.027, FP16: 4.3e-4}[tuned_dtype]
    assert noise.share == pytest.approx(share, rel=0.25)
    assert noise.on_grid == (base_dtype == BF16)


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (200, 1), (2, 300), (600, 20), (20, 600)])
def test_thin_shapes(shape, rng):
    w = weight(*shape, rng)
    noise, found = measured(w.bfloat16(), w)
    assert found <= (1 if min(shape) <= 2 else 0)
    noise, found = measured(rounded(w + planted(w, 1, 0.3, rng), BF16), w)
    assert found == 1
    assert 0 < noise.edge <= math.sqrt(3) * noise.floor * (1 + 1e-6)  # the longest error


@pytest.mark.parametrize("which", ["tuned", "base"])
def test_overflow_is_named(which, rng):
    pair = {"tuned": torch.ones(2, 2).half(), "base": torch.ones(2, 2).half()}
    pair[which] = pair[which] * 70000.0
    with pytest.raises(UpdateError, match="not finite") as error:
        storage_noise(**pair)
    assert which in error.value.where
    assert "4 NaN or infinite" in error.value.got
