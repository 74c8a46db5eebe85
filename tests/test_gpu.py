"""The numbers of a GPU are those of the CPU, within their bounds."""

import numpy as np
import pytest
import torch
from oracles import gaussian

import rankscope as rs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def pair(rng):
    base = {f"layers.{n}.q_proj.weight": gaussian(192, 128, rng=rng).float() for n in range(2)}
    tuned = {
        name: weight + 0.1 * (gaussian(192, 6, rng=rng) @ gaussian(6, 128, rng=rng)).float()
        for name, weight in base.items()
    }
    return tuned, base


@pytest.mark.parametrize("measure", [rs.rank, rs.spectrum, rs.amplification, rs.intruders])
def test_one_source(pair, measure):
    tuned, base = pair
    here, there = (measure(tuned, base=base, device=device).table for device in ("cpu", "cuda"))
    assert_alike(here, there)


def test_two_sources(pair, rng):
    tuned, base = pair
    other = {
        name: weight + 0.1 * gaussian(*weight.shape, rng=rng).float()
        for name, weight in tuned.items()
    }
    here, there = (
        rs.similarity(tuned, other, base=base, device=device).table for device in ("cpu", "cuda")
    )
    assert_alike(here, there)
    for one, two in zip(here.phi, there.phi, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


def assert_alike(here, there):
    for name in here.select_dtypes("number").columns:
        np.testing.assert_allclose(
            here[name].astype(float), there[name].astype(float), rtol=1e-6, atol=1e-9, err_msg=name
        )
