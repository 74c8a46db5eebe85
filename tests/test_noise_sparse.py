"""Storage noise of updates that touch a part of the entries: rows, columns, blocks, any."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_noise import BF16, FORMATS, FP16, measured, planted, weight

import rankscope as rs
from rankscope.linalg.rounding import rounded
from rankscope.linalg.surrogates import Leading
from rankscope.measures.acts import likelier
from rankscope.measures.noise import storage_noise
from rankscope.measures.stored import Pair

SIDE = 384
SCALES = {BF16: 1.0, FP16: 0.125}  # of the spacings


def low_rank(rows, columns, rng):
    return planted(torch.ones(rows, columns), 2, 1, rng)


def update_of(kind, rng):
    """Return an update of unit entries where it is not zero, and the rank where it is low."""
    update = torch.zeros(SIDE, SIDE)
    if kind == "rows":
        update[:20] = low_rank(20, SIDE, rng)
    elif kind == "columns":
        update[:, ::19] = low_rank(SIDE, 21, rng)
    elif kind == "block":
        update[30:70, 200:260] = low_rank(40, 60, rng)
    elif kind == "full rows":
        update[:20] = torch.randn(20, SIDE, generator=rng)
    else:
        chosen = torch.rand(SIDE, SIDE, generator=rng) < float(kind.rstrip("%")) / 100
        update = torch.randn(SIDE, SIDE, generator=rng) * chosen
    return update


def truth(update, x):
    """Return the share and the gain, and the norm of what is not the update."""
    update, x = update.double(), x.double()
    product, energy = (update * x).sum().item(), update.square().sum().item()
    share = 1 - product**2 / energy / x.square().sum().item()
    rest = torch.linalg.matrix_norm(x - product / energy * update, 2).item()
    return share, product / energy, rest


KINDS = pytest.mark.parametrize("kind", ["rows", "columns", "block", "full rows", "5%", "50%"])
SIZES = pytest.mark.parametrize("size", [3e-4, 3e-3, 1e-2])


@KINDS
@FORMATS
@SIZES
def test_share_and_gain_of_a_sparse_update(kind, dtype, size, rng):
    base = rounded(weight(SIDE, SIDE, rng), dtype)
    update = 0.02 * SCALES[dtype] * size * update_of(kind, rng)
    tuned = rounded(base + update, dtype)
    noise = storage_noise(tuned.to(dtype), base.to(dtype))
    share, gain, rest = truth(update, tuned - base)
    if kind == "block" and size == 3e-4:  # too few entries changed to tell
        assert math.isnan(noise.share)
        assert math.isnan(noise.gain)
        gain = math.nan
    else:
        assert noise.share == pytest.approx(share, rel=0.2, abs=0.05)
        assert noise.gain == pytest.approx(gain, abs=0.08)
    assert noise.unchanged == pytest.approx((tuned == base).double().mean().item())
    assert noise.edge > 0.7 * rest  # a rounding of low rank is the one that exceeds it
    if math.isnan(gain):
        assert not noise.dead_zone
    elif abs(gain - 0.99) > 0.01:
        assert noise.dead_zone == (gain < 0.99)


@pytest.mark.parametrize("kind", ["rows", "columns", "block"])
@FORMATS
def test_rank_of_an_update_of_some_rows_or_columns(kind, dtype, rng):
    base = rounded(weight(SIDE, SIDE, rng), dtype)
    for size in (3e-3, 1e-2, 3e-2):
        update = 0.02 * SCALES[dtype] * size * update_of(kind, rng)
        noise, found = measured(rounded(base + update, dtype), base)
        assert noise.on_grid
        assert found == 2


@KINDS
def test_two_roundings_of_a_sparse_update(kind, rng):
    w = weight(SIDE, SIDE, rng)
    update = 0.02 * 3e-3 * update_of(kind, rng)
    tuned, base = rounded(w + update, BF16), rounded(w, BF16)
    noise = storage_noise(tuned, base)
    assert not noise.on_grid
    assert noise.gain == 1
    assert noise.share == pytest.approx(truth(update, tuned - base)[0], rel=0.2)


def test_edge_of_a_few_rows_of_full_rank(rng):
    base = rounded(weight(SIDE, SIDE, rng), BF16)
    update = 2e-4 * update_of("full rows", rng)
    tuned = rounded(base + update, BF16)
    largest = torch.linalg.matrix_norm(tuned - base - update, 2).item()
    assert largest < storage_noise(tuned, base).edge < 1.3 * largest


@settings(max_examples=8)
@given(st.integers(0, 3), st.integers(0, 300), st.integers(0, 40))
def test_rows_and_columns_that_nothing_touched_change_nothing(seed, rows, columns):
    rng = torch.Generator().manual_seed(seed)
    base = rounded(weight(64, 96, rng), BF16)
    tuned = rounded(base + planted(base, 2, 0.03, rng), BF16)
    frozen = rounded(weight(64 + rows, 96 + columns, rng).clamp(-0.05, 0.05), BF16)
    wider = []
    for x in (tuned, base):
        wider.append(frozen.clone())
        wider[-1][rows:, :96] = x
    noise = storage_noise(*wider)
    assert dataclasses.replace(storage_noise(tuned, base), unchanged=noise.unchanged) == noise


@pytest.mark.parametrize("rank", [1, 16])
@pytest.mark.parametrize("size", [1e-5, 1e-4, 1e-3])
def test_a_dead_zone_is_no_sparse_update(rank, size, rng):
    base = rounded(weight(SIDE, SIDE, rng), BF16)
    update = planted(base, rank, size, rng)
    pair = Pair.of(rounded(base + update, BF16), base, ("bfloat16", "bfloat16"))
    touched = pair.touched()
    # A row or column without a change holds next to nothing of the update.
    assert touched.difference.norm() == pair.difference.norm()
    assert touched.base.numel() > 0.95 * pair.base.numel()
    assert likelier(touched, Leading(touched.difference, 0), 0).support == 1


def test_too_few_changes_are_no_answer(rng):
    base = rounded(weight(SIDE, SIDE, rng), BF16)
    update = 0.02 * 3e-4 * update_of("0.2%", rng)
    noise = storage_noise(rounded(base + update, BF16), base)
    assert math.isnan(noise.gain)
    assert not noise.dead_zone


def test_a_correct_rank_of_some_rows_is_not_affected(rng):
    base = weight(SIDE, SIDE, rng).bfloat16()
    tuned = (base.float() + 2e-4 * update_of("rows", rng)).bfloat16()
    name = "model.embed_tokens.weight"
    row = rs.rank({name: tuned}, base={name: base}).table.iloc[0]
    assert (row.energy_rank_90, row.rank_above_noise) == (2, 2)
    assert "energy_rank_90" not in row.noise_affected
    assert "energy_rank_99" in row.noise_affected


@pytest.mark.parametrize("changes", [25, 500])
def test_very_few_changes_are_not_judged(changes, rng):
    base = rounded(weight(512, 512, rng), BF16)
    flat = base.clone().view(-1)
    chosen = torch.randperm(flat.numel(), generator=rng)[:changes]
    flat[chosen] += 2.0**-6 * flat[chosen].abs()
    noise = storage_noise(flat.view_as(base).to(BF16), base.to(BF16))
    assert math.isnan(noise.share)
    assert math.isnan(noise.gain)
    assert noise.edge > 1e-3 * base.std()  # not that of nothing
