"""φ, cosines and their table, against definitions and constructions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    gaussian,
    haar,
    hadamard,
    peft_tensors,
    phi_by_definition,
    rotated,
    with_spectrum,
)
from scipy.linalg import subspace_angles

import rankscope as rs
from rankscope.analysis.selection import short_names
from rankscope.errors import RankscopeError, SourceError, UpdateError
from rankscope.io.updateset import UpdateSet
from rankscope.measures.similarity import (
    ambiguous_cuts,
    phi_grid,
    principal_cosines,
    shared_directions,
)
from rankscope.spectra import Auto
from rankscope.updates import FactoredUpdate

sizes = st.integers(1, 6)
seeds = st.integers(0, 2**31)


def adapter(up, down, module="layers.0.q_proj"):
    return {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}


@given(seed=seeds, i=sizes, j=sizes)
def test_grid_is_the_definition_in_every_cell(seed, i, j):
    rng = torch.Generator().manual_seed(seed)
    u, v = haar(9, i, rng), haar(9, j, rng)
    grid = phi_grid(u.T @ v)
    for a in range(i):
        for b in range(j):
            assert grid[a, b].item() == pytest.approx(
                phi_by_definition(u, v, a + 1, b + 1), abs=1e-13
            )
    assert ((grid >= 0) & (grid <= 1)).all()


@given(seed=seeds, i=sizes, j=sizes)
def test_relations_of_phi(seed, i, j):
    rng = torch.Generator().manual_seed(seed)
    u, v = haar(9, i, rng), haar(9, j, rng)
    grid, cosines = phi_grid(u.T @ v), principal_cosines(u.T @ v)
    p, phi = min(i, j), grid[-1, -1].item()
    torch.testing.assert_close(phi_grid(v.T @ u), grid.T)  # symmetric under swap
    assert phi == pytest.approx(cosines.square().mean().item(), abs=1e-13)
    projectors = torch.linalg.matrix_norm(u @ u.T - v @ v.T).item() ** 2
    assert i + j - 2 * p * phi == pytest.approx(projectors, abs=1e-12)
    angles = np.sort(subspace_angles(u.numpy(), v.numpy()))
    np.testing.assert_allclose(np.arccos(cosines.numpy()), angles, atol=1e-7)
    # N(i, j) = φ·min(i, j) never falls, and grows by at most 1 a step.
    rows, columns = (torch.arange(1, n + 1) for n in (i, j))
    energy = grid * torch.minimum(rows[:, None], columns)
    for axis in (0, 1):
        steps = energy.diff(dim=axis)
        assert (steps >= -1e-12).all()
        assert (steps <= 1 + 1e-12).all()


def test_planted_angles():
    basis = hadamard(8)
    x = basis[:, :3]
    y = rotated(x, basis[:, 3:6], [0.1, 0.3, 0.7])
    overlap = x.T @ y
    assert phi_grid(overlap)[-1, -1].item() == pytest.approx(0.829228, abs=1e-6)
    expected = torch.tensor([0.1, 0.3, 0.7], dtype=torch.float64).cos()
    torch.testing.assert_close(principal_cosines(overlap), expected)


@pytest.mark.parametrize("shared", [0, 1, 3])
def test_phi_counts_shared_columns(shared):
    basis = hadamard(8)
    u, v = basis[:, :3], basis[:, 3 - shared : 6 - shared]
    assert phi_grid(u.T @ v)[-1, -1].item() == pytest.approx(shared / 3, abs=1e-15)


def test_same_orthogonal_and_nested_spans():
    basis = hadamard(8)
    assert phi_grid(basis[:, :4].T @ basis[:, :4]).flatten().tolist() == pytest.approx([1.0] * 16)
    assert phi_grid(basis[:, :3].T @ basis[:, 5:]).max().item() < 1e-30
    nested = phi_grid(basis[:, :2].T @ basis[:, :5])
    assert nested[:, -1].tolist() == pytest.approx([1.0, 1.0])


def test_empty_sides():
    assert phi_grid(torch.zeros(0, 3)).shape == (0, 3)
    assert principal_cosines(torch.zeros(3, 0)).shape == (0,)


def test_cuts_inside_equal_values_are_named():
    assert ambiguous_cuts(torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0])) == [2, 3]
    assert ambiguous_cuts(torch.tensor([3.0])) == []
    assert shared_directions(torch.tensor([0.9, 0.5, 0.2]), 0.5) == 1


def test_table_has_a_row_per_module_and_side_with_the_planted_numbers(rng):
    d_in, d_out = 64, 32
    right_a, left = haar(d_in, 6, rng), haar(d_out, 6, rng)
    right_b = torch.cat([right_a[:, :2], haar(d_in, 1, rng)], 1)
    right_b = torch.linalg.qr(right_b)[0]
    s = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    a = adapter(left[:, :3] * s, right_a[:, :3].T)
    b = adapter(left[:, 3:] * s, right_b.T)
    table = rs.similarity(a, b).table.set_index("side")
    assert table.index.tolist() == ["right", "left"]
    right = table.loc["right"]
    assert (right.dimension, right.rank_a, right.rank_b) == (64, 3, 3)
    assert right.phi_first == pytest.approx(1, abs=1e-12)
    assert right.phi[1, 1] == pytest.approx(1, abs=1e-12)
    assert right.phi_full == right.phi[-1, -1]
    assert right.shared_directions == 2
    assert right.chance_full == pytest.approx(3 / 64)
    assert right.chance_sd > 0
    assert right.z_full == pytest.approx((right.phi_full - 3 / 64) / right.chance_sd)
    assert right.p_first < 1e-10
    assert right.p_full < 1e-10
    left_row = table.loc["left"]
    assert left_row.dimension == 32
    assert left_row.phi_full == pytest.approx(0, abs=1e-12)
    assert left_row.p_full == pytest.approx(1)
    assert left_row.shared_directions == 0


def test_delta_ignores_the_gauge_and_factor_does_not(rng):
    update = FactoredUpdate(gaussian(30, 4, rng=rng), gaussian(4, 40, rng=rng))
    gauge = torch.diag(torch.tensor([9.0, 1.0, 3.0, 0.2], dtype=torch.float64)) @ haar(4, 4, rng)
    one = adapter(update.up, update.down)
    two = adapter(update.up @ torch.linalg.inv(gauge), gauge @ update.down)
    delta = rs.similarity(one, two).table
    for phi in delta.phi:
        assert np.diag(phi) == pytest.approx(1, abs=1e-9)
    factor = rs.similarity(one, two, vectors="factor").table
    for phi in factor.phi:
        assert phi[-1, -1] == pytest.approx(1, abs=1e-9)  # the whole row space is gauge-free
        assert phi[0, 0] < 0.9


def test_factor_takes_the_directions_of_a_and_b_alone(rng):
    up, down = gaussian(10, 3, rng=rng), gaussian(3, 12, rng=rng)
    other = gaussian(10, 3, rng=rng), gaussian(3, 12, rng=rng)
    result = rs.similarity(adapter(up, down), adapter(*other), vectors="factor")
    right = [np.linalg.svd(x.numpy())[2].T[:, :3] for x in (down, other[1])]
    left = [np.linalg.svd(x.numpy())[0][:, :3] for x in (up, other[0])]
    for side, (u, v) in (("right", right), ("left", left)):
        expected = phi_by_definition(torch.tensor(u), torch.tensor(v), 2, 3)
        assert result.grid("layers.0.q_proj", side)[1, 2] == pytest.approx(expected, abs=1e-12)


def test_scale_does_not_matter(rng):
    a, b = (peft_tensors(["layers.0.q"], 3, rng) for _ in range(2))
    one = rs.similarity(a, b).table
    two = rs.similarity(a, b, alpha=77).table
    for x, y in zip(one.phi, two.phi, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-12)


def test_dense_updates_are_cut_at_64_unless_told(rng):
    base = {"w.weight": torch.zeros(80, 70, dtype=torch.float64)}
    tuned = {"w.weight": gaussian(80, 70, rng=rng)}
    full = rs.open_updates(tuned, base)
    row = rs.similarity(full, full).table.iloc[0]
    assert (row.rank_a, row.rank_b) == (64, 64)
    row = rs.similarity(full, full, max_i=5, max_j=70).table.iloc[0]
    assert (row.rank_a, row.rank_b) == (5, 70)
    # All 70 directions span the input side: chance already gives 1, so nothing is shared.
    assert row.phi_full == pytest.approx(1)
    assert row.p_full == 1
    assert math.isnan(row.z_full)


def test_untrained_adapter_has_rank_zero_rows(rng):
    a = peft_tensors(["layers.0.q", "layers.1.q"], 3, rng)
    b = {**a, "base_model.model.layers.0.q.lora_B.weight": torch.zeros(12, 3)}
    result = rs.similarity(a, b)
    row = result.table[result.table.module == "layers.0.q"].iloc[0]
    assert (row.rank_a, row.rank_b) == (3, 0)
    assert row.phi.shape == (3, 0)
    assert math.isnan(row.phi_full)
    assert math.isnan(row.p_adjusted)
    assert any("untrained" in note for note in result.notes)
    rows = result.to_dict()["rows"]
    assert rows[0]["phi_first"] is None
    assert rows[0]["shared_directions"] is None
    assert rows[2]["p_adjusted"] is not None


def test_adjustment_is_over_the_modules_of_a_side(rng):
    modules = [f"layers.{n}.q" for n in range(5)]
    table = rs.similarity(peft_tensors(modules, 2, rng), peft_tensors(modules, 2, rng)).table
    for _, side in table.groupby("side"):
        p = np.sort(side.p_full.to_numpy())
        stepped = np.minimum.accumulate((p * 5 / np.arange(1, 6))[::-1])[::-1]
        np.testing.assert_allclose(np.sort(side.p_adjusted), np.minimum(stepped, 1))


def test_unmatched_modules_are_listed(rng):
    a = peft_tensors(["layers.0.q", "layers.1.q"], 2, rng)
    b = peft_tensors(["layers.1.q", "layers.2.q"], 2, rng)
    result = rs.similarity(a, b)
    assert result.table.module.unique().tolist() == ["layers.1.q"]
    assert result.unmatched_a == ("layers.0.q",)
    assert result.unmatched_b == ("layers.2.q",)


def test_no_module_in_common(rng):
    with pytest.raises(SourceError, match="no module in common"):
        rs.similarity(peft_tensors(["a.0.q"], 2, rng), peft_tensors(["b.0.q"], 2, rng))


def test_other_shapes_are_a_failure_of_that_module_only(rng):
    a = peft_tensors(["layers.0.q", "layers.1.q"], 2, rng)
    b = peft_tensors(["layers.0.q"], 2, rng) | peft_tensors(["layers.1.q"], 2, rng, in_=9)
    result = rs.similarity(a, b)
    assert result.table.module.unique().tolist() == ["layers.0.q"]
    assert result.failures[0]["module"] == "layers.1.q"
    # The output sides still fit.
    assert not rs.similarity(a, b, side="left").failures


def test_random_control_sits_at_chance(rng):
    a, b = (peft_tensors(["layers.0.q"], 8, rng, out=300, in_=400) for _ in range(2))
    result = rs.similarity(a, b, seed=3)
    for row in result.random.itertuples():
        sd = result.table[result.table.side == row.side].chance_sd.iloc[0]
        assert abs(row.phi[-1, -1] - 8 / row.dimension) < 4 * sd
    again = rs.similarity(a, b, seed=3).random
    other = rs.similarity(a, b, seed=4).random
    np.testing.assert_array_equal(result.random.phi[0], again.phi[0])
    assert not np.allclose(result.random.phi[0], other.phi[0])


@pytest.mark.parametrize(
    "options", [{"side": "up"}, {"vectors": "A"}, {"max_i": 0}, {"device": "tpu"}]
)
def test_options_out_of_range(options, rng):
    tensors = peft_tensors(["layers.0.q"], 2, rng)
    with pytest.raises(RankscopeError) as caught:
        rs.similarity(tensors, tensors, **options)
    assert len(str(caught.value).splitlines()) == 5


def test_dense_update_has_no_factors(rng):
    full = rs.open_updates({"w.weight": torch.eye(4)}, {"w.weight": torch.zeros(4, 4)})
    with pytest.raises(UpdateError, match="no factors"):
        rs.similarity(full, full, vectors="factor")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("runs/r8/adapter_model.safetensors", "runs/r64/adapter_model.safetensors", ("r8", "r64")),
        ("run-1/x.safetensors", "run-2/x.safetensors", ("run-1/x", "run-2/x")),
        ("x.safetensors", "x.safetensors", ("x (A)", "x (B)")),
    ],
)
def test_short_names_tell_the_sources_apart(a, b, expected):
    sets = [UpdateSet(source, "peft", ()) for source in (a, b)]
    assert short_names(*sets) == expected


def test_directions_that_any_two_subspaces_share_do_not_count(rng):
    d, r = 64, 40
    a, b = (adapter(gaussian(d, r, rng=rng), gaussian(r, d, rng=rng)) for _ in range(2))
    same = rs.similarity(a, a).table.iloc[0]
    assert same.shared_directions == 64 - 40  # all that is not forced
    other = rs.similarity(a, b).table.iloc[0]
    assert other.shared_directions == 0
    assert 0 < other.shared_edge < 1
    full = adapter(gaussian(d, d, rng=rng), gaussian(d, d, rng=rng))
    assert rs.similarity(a, full).table.isna().shared_directions.all()


def test_the_factors_of_an_untrained_adapter_are_not_compared(rng):
    untrained = adapter(torch.zeros(30, 4), gaussian(4, 40, rng=rng))
    result = rs.similarity(untrained, untrained, vectors="factor")
    assert (result.table.rank_a == 0).all()
    assert any("untrained" in note for note in result.notes)
    assert any("initial numbers" in note for note in result.notes)


def test_equal_singular_values_are_noted(rng):
    flat = adapter(haar(30, 4, rng), haar(40, 4, rng).T)
    result = rs.similarity(flat, flat)
    assert result.table.ambiguous_a[0] == [1, 2, 3]
    assert any("φ(1,1) is arbitrary" in note for note in result.notes)


def test_leading_directions_of_large_dense_updates_give_the_numbers_of_all(rng, monkeypatch):
    s = torch.cat([torch.linspace(9, 5, 8), torch.linspace(1, 0.5, 372)])
    base = {"w.weight": torch.zeros(400, 380, dtype=torch.float64)}
    tuned = [{"w.weight": with_spectrum(s, 400, 380, rng)} for _ in range(2)]
    a, b = (rs.open_updates(x, base) for x in tuned)
    exact = rs.similarity(a, b, max_i=8, max_j=8).table
    monkeypatch.setattr(Auto, "__init__", lambda self: self.__dict__.update(limit=100))
    assert rs.svd(a["w"], 8).method == "leading"
    quick = rs.similarity(a, b, max_i=8, max_j=8).table
    for one, other in zip(exact.phi, quick.phi, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)
    assert quick.ambiguous_a.tolist() == [[], []]


def test_the_last_cut_is_ambiguous_where_the_next_value_is_equal(rng):
    base = {"w.weight": torch.zeros(20, 30, dtype=torch.float64)}
    tuned = {"w.weight": with_spectrum([3.0, 2.0, 2.0, 1.0], 20, 30, rng)}
    full = rs.open_updates(tuned, base)
    row = rs.similarity(full, full, max_i=2, max_j=3).table.iloc[0]
    assert (row.ambiguous_a, row.ambiguous_b) == ([2], [2])
