"""The spectrum of an update without structure, against the law and against real draws."""

import pytest
import torch
from oracles import gaussian

from rankscope.linalg.unstructured import unstructured_spectrum
from rankscope.measures.rank import effective_rank, energy_rank, participation_rank, stable_rank


@pytest.mark.parametrize(
    ("shape", "stable", "participation", "effective", "energy"),
    [
        # Of the Marchenko-Pastur law: 1/(1+√β)², 1/(1+β), and its integrals.
        ((1000, 1000), 0.25, 0.5, 0.8050, 0.5098),
        ((4096, 11008), 0.3858, 0.7288, 0.9476, 0.7120),
        ((1000, 8000), 0.5458, 0.8889, 0.9838, 0.8158),
    ],
)
def test_a_full_matrix_has_the_shares_of_the_law(shape, stable, participation, effective, energy):
    s = unstructured_spectrum(*shape, None)
    q = min(shape)
    assert len(s) == q
    assert stable_rank(s) / q == pytest.approx(stable, rel=0.02)  # of the edge, as n^(-2/3)
    assert participation_rank(s) / q == pytest.approx(participation, rel=1e-3)
    assert effective_rank(s) / q == pytest.approx(effective, rel=1e-3)
    assert energy_rank(s, 0.9) / q == pytest.approx(energy, abs=1e-3)


@pytest.mark.parametrize(
    "form", [(64, 64, 8), (96, 24, 12), (30, 200, 1), (24, 40, 24), (20, 50, 30)]
)
def test_two_factors_have_the_spectrum_of_products_really_drawn(form, rng):
    rows, columns, r = form
    drawn = [
        torch.linalg.svdvals(gaussian(rows, r, rng=rng) @ gaussian(r, columns, rng=rng))[
            : min(form)
        ]
        for _ in range(64)
    ]
    mean = torch.stack(drawn).mean(0)
    s = unstructured_spectrum(*form)
    assert s[0] == 1
    assert (s.diff() <= 0).all()
    # Eight draws against 64: a few per cent.
    assert effective_rank(s) == pytest.approx(effective_rank(mean), rel=0.05)
    assert torch.allclose(s, mean / mean[0], atol=0.12)


def test_it_is_the_same_in_every_call_and_empty_where_there_is_nothing():
    first = unstructured_spectrum(20, 30, 4).clone()
    unstructured_spectrum.cache_clear()
    assert torch.equal(first, unstructured_spectrum(20, 30, 4))
    assert unstructured_spectrum(5, 9, 0).shape == (0,)
