"""Differences of checkpoints, formed block by block, against the whole in float64."""

import math

import pytest
import torch
from oracles import gaussian
from safetensors.torch import save_file

import rankscope as rs
from rankscope.errors import UpdateError
from rankscope.io import recipes
from rankscope.io.recipes import Difference
from rankscope.io.tensors import SafetensorsFile, StateDict
from rankscope.updates import DenseUpdate, FactoredUpdate

HALF = [torch.bfloat16, torch.float16]


def pair(shape, dtype, rng, base_dtype=None):
    base = 0.02 * gaussian(*shape, rng=rng)
    tuned = base + 1e-3 * gaussian(*shape, rng=rng)
    return tuned.to(dtype), base.to(base_dtype or dtype)


def difference(tuned, base, transposed=False):
    stores = (StateDict({"w": x}, label) for x, label in ((tuned, "tuned"), (base, "base")))
    return Difference(*stores, "w", transposed)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (1, 9), (9, 1), (300, 200)])
def test_small_differences_are_exact(shape, dtype, transposed, rng):
    tuned, base = pair(shape, dtype, rng)
    update = difference(tuned, base, transposed).build()
    truth = tuned.double() - base.double()
    assert torch.equal(update.matrix, truth.T if transposed else truth)
    assert update.matrix.dtype == torch.float64
    assert update.rounding == 0


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_large_half_precision_differences_are_float32_with_a_bound(dtype, rng, tmp_path):
    tuned, base = pair((1100, 1000), dtype, rng)
    for x, name in ((tuned, "tuned"), (base, "base")):
        save_file({"w": x}, tmp_path / f"{name}.safetensors")
    stores = (SafetensorsFile(tmp_path / f"{name}.safetensors") for name in ("tuned", "base"))
    update = Difference(*stores, "w").build()
    truth = tuned.double() - base.double()
    assert update.matrix.dtype == torch.float32
    error = (update.matrix - truth).norm().item()
    assert error <= update.rounding
    assert update.rounding == pytest.approx(2.0**-24 * truth.norm().item())
    spectrum = rs.svd(update, k=2)
    assert spectrum.error_bound >= update.rounding
    assert spectrum.energy == pytest.approx(truth.square().sum().item(), rel=1e-10)


def test_large_float32_differences_stay_exact(rng, monkeypatch):
    monkeypatch.setattr(recipes, "_LARGE", 10)
    for dtypes in ((torch.float32,) * 2, (torch.float32, torch.bfloat16), (torch.float64,) * 2):
        tuned, base = pair((30, 40), dtypes[0], rng, dtypes[1])
        update = difference(tuned, base).build()
        assert torch.equal(update.matrix, tuned.double() - base.double())
        assert update.rounding == 0


def test_rounding_travels_with_the_update(rng):
    update = DenseUpdate(gaussian(4, 5, rng=rng), rounding=0.5)
    factored = FactoredUpdate(torch.ones(4, 1), torch.ones(1, 5))
    assert (update * -2).rounding == 1.0
    assert (update + update).rounding == 1.0
    assert (update + factored).rounding == (factored - update).rounding == 0.5
    assert update.T.rounding == update.to("cpu").rounding == 0.5


@pytest.mark.parametrize("transposed", [False, True])
def test_read_gives_what_is_stored(transposed, rng):
    tuned, base = pair((6, 4), torch.bfloat16, rng)
    read = difference(tuned, base, transposed).read()
    for found, stored in zip(read, (tuned, base), strict=True):
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, stored.T if transposed else stored)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["tuned", "base", "both"])
@pytest.mark.parametrize("act", ["build", "read"])
def test_numbers_that_are_not_finite_are_refused_by_name(act, side, bad, rng, monkeypatch):
    monkeypatch.setattr(recipes, "_LARGE", 10)
    tuned, base = pair((30, 40), torch.bfloat16, rng)
    for x, label in ((tuned, "tuned"), (base, "base")):
        if side in (label, "both"):
            x[29, 39] = bad
    with pytest.raises(UpdateError, match="not finite") as raised:
        getattr(difference(tuned, base), act)()
    assert raised.value.where == ("base" if side == "base" else "tuned") + ", tensor 'w'"


def test_numbers_that_overflow_float32_are_formed_in_float64(monkeypatch):
    monkeypatch.setattr(recipes, "_LARGE", 1)
    tuned = torch.full((2, 3), 3e38).bfloat16()
    update = difference(tuned, -tuned).build()
    assert torch.equal(update.matrix, 2 * tuned.double())
    assert rs.svd(update).values[0] == pytest.approx(2 * tuned[0, 0].item() * math.sqrt(6))


def test_views_and_parameters_are_read_as_well(rng):
    tuned, base = pair((6, 4), torch.float32, rng)
    update = difference(torch.nn.Parameter(tuned.T), base.T).build()
    assert torch.equal(update.matrix, (tuned.double() - base.double()).T)
    assert not update.matrix.requires_grad
