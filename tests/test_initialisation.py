"""What of a factor is its random start: planted, and calibrated on untouched factors."""

import math

import pytest
import torch
from oracles import gaussian, haar

from rankscope.measures.initialisation import init_residue, shared_init


def kaiming(r, n, rng):
    """The start of LoRA's A in PEFT, loralib and kohya: U(-1/√n, 1/√n)."""
    layer = torch.empty(r, n, dtype=torch.float64)
    return torch.nn.init.kaiming_uniform_(layer, a=math.sqrt(5), generator=rng)


def normal(r, n, rng):
    """PEFT's gaussian start and that of diffusers: of standard deviation 1/r."""
    return gaussian(r, n, rng=rng) / r


@pytest.mark.parametrize("start", [kaiming, normal])
@pytest.mark.parametrize("shape", [(1, 40), (2, 64), (4, 96), (8, 256), (16, 64)])
def test_untouched_factors_have_all_in_99_of_100_draws(start, shape, rng):
    found = [init_residue(start(*shape, rng)) for _ in range(600)]
    # 6 in 600 are allowed, and three standard deviations of the count.
    assert sum(residue == 1 for residue in found) >= 600 - 6 - 8
    assert min(found) > 0.5 or shape[0] < 4


def test_stored_in_bfloat16_it_is_the_same(rng):
    assert init_residue(kaiming(8, 256, rng).to(torch.bfloat16)) == 1


@pytest.mark.parametrize("trained", [1, 3, 6])
def test_trained_directions_leave_the_bulk(trained, rng):
    start = kaiming(8, 512, rng)
    moved = 3 * haar(8, trained, rng) @ haar(512, trained, rng).T
    assert init_residue(start + moved) == pytest.approx(1 - trained / 8)


def test_factors_far_from_any_start_have_none(rng):
    values = torch.tensor([40.0, 30, 14, 11, 9, 7, 5, 4], dtype=torch.float64)
    assert init_residue(haar(8, 8, rng) * values @ haar(300, 8, rng).T) == 0


def test_noise_that_an_optimiser_walked_in_is_no_start(rng):
    walked = kaiming(8, 256, rng) + 2 * kaiming(8, 256, rng)
    # Random, of √5 times the usual scale: what it was cannot be told.
    assert math.isnan(init_residue(walked))


def test_a_gauge_hides_the_start(rng):
    gauge = torch.diag(torch.tensor([20.0, 8, 5, 3, 2, 1.5, 0.2, 0.1], dtype=torch.float64))
    assert init_residue(gauge @ kaiming(8, 256, rng)) < 0.3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_orthogonal_rows_do_not_tell(dtype, rng):
    assert math.isnan(init_residue(haar(256, 8, rng).T.to(dtype)))


def test_nothing_to_tell_of_zeros_and_tall_factors(rng):
    assert math.isnan(init_residue(torch.zeros(4, 30)))
    assert math.isnan(init_residue(kaiming(30, 30, rng)))
    assert math.isnan(init_residue(torch.zeros(0, 30)))


class TestSharedInit:
    def test_the_same_start_is_seen_through_training(self, rng):
        start = kaiming(8, 256, rng)
        runs = [start + 0.02 * gaussian(8, 256, rng=rng) for _ in range(2)]
        assert shared_init(*runs) is True

    def test_other_starts_are_not_the_same(self, rng):
        assert not any(shared_init(kaiming(8, 256, rng), kaiming(8, 256, rng)) for _ in range(50))

    def test_what_all_rows_share_is_no_common_start(self, rng):
        direction = gaussian(1, 256, rng=rng)
        runs = [kaiming(8, 256, rng) + gaussian(8, 1, rng=rng) @ direction for _ in range(20)]
        assert not any(shared_init(a, b) for a, b in zip(runs[::2], runs[1::2], strict=True))

    def test_one_trained_row_shared_is_not_enough(self, rng):
        direction = gaussian(1, 256, rng=rng)
        runs = [direction + gaussian(1, 256, rng=rng) for _ in range(2)]
        assert shared_init(*runs) is False

    def test_a_gauge_hides_it(self, rng):
        start = kaiming(8, 256, rng)
        assert shared_init(start, haar(8, 8, rng) @ start) is False

    def test_ranks_that_differ_and_zeros_have_no_answer(self, rng):
        assert shared_init(kaiming(4, 256, rng), kaiming(8, 256, rng)) is None
        assert shared_init(torch.zeros(4, 256), kaiming(4, 256, rng)) is None
