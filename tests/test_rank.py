"""Rank measures against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import gaussian, haar, with_spectrum

import rankscope as rs
from rankscope.measures import rank as m
from rankscope.spectra import Auto, svd
from rankscope.updates import DenseUpdate, FactoredUpdate

RATIOS = (m.stable_rank, m.participation_rank, m.energy_entropy_rank, m.effective_rank)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("s", "stable", "participation", "effective", "entropy"),
    [
        ((3, 1), 10 / 9, 1.219512, 1.754765, 1.384145),
        ((4, 3), 1.5625, 1.854599, 1.979626, 1.922100),
        ((10, 1, 1, 1, 1), 1.04, 1.081168, 2.702977, 1.241528),
    ],
)
def test_worked_spectra(s, stable, participation, effective, entropy):
    s = tensor(*s)
    assert m.stable_rank(s) == pytest.approx(stable, rel=1e-12)
    assert m.participation_rank(s) == pytest.approx(participation, abs=1e-6)
    assert m.effective_rank(s) == pytest.approx(effective, abs=1e-6)
    assert m.energy_entropy_rank(s) == pytest.approx(entropy, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 7, 10, 64, 100])
def test_equal_singular_values_have_rank_k_by_every_definition(k):
    s = torch.full((k,), 0.3, dtype=torch.float64)
    for measure in RATIOS:
        assert measure(s) == pytest.approx(k, rel=1e-12)
    for percent in (90, 95, 99):
        expected = -(-percent * k // 100)  # ceil in integers
        assert m.energy_rank(s, percent / 100) == expected
    assert m.numerical_rank(s, 1e-15) == k


def test_geometric_spectrum():
    s = 0.5 ** torch.arange(60, dtype=torch.float64)
    assert m.stable_rank(s) == pytest.approx(4 / 3)
    assert m.participation_rank(s) == pytest.approx(5 / 3)
    assert m.effective_rank(s) == pytest.approx(4)
    assert [m.energy_rank(s, q) for q in (0.90, 0.95, 0.99)] == [2, 3, 4]


def test_harmonic_spectrum_tends_to_its_limits():
    s = 1 / torch.arange(1, 200_001, dtype=torch.float64)
    assert m.stable_rank(s) == pytest.approx(math.pi**2 / 6, rel=1e-4)
    assert m.participation_rank(s) == pytest.approx(2.5, rel=1e-4)


@pytest.mark.parametrize(
    ("s", "expected"), [((10, 1, 1, 1, 1), (1, 1, 4)), ((4, 3, 2, 1), (3, 3, 4))]
)
def test_energy_ranks(s, expected):
    assert tuple(m.energy_rank(tensor(*s), q) for q in (0.90, 0.95, 0.99)) == expected


def test_energy_rank_counts_what_a_partial_spectrum_leaves_out():
    # Two of four equal directions hold half of the energy: 90 % is beyond what is listed.
    assert m.energy_rank(tensor(1, 1), 0.5, energy=4.0) == 2
    assert m.energy_rank(tensor(1, 1), 0.25, energy=4.0) == 1


def test_gaussian_matrix_has_the_ranks_of_noise(rng):
    n = 400
    s = torch.linalg.svdvals(gaussian(n, n, rng=rng))
    assert m.stable_rank(s) == pytest.approx(0.25 * n, rel=0.03)
    assert m.participation_rank(s) == pytest.approx(0.5 * n, rel=0.01)
    assert m.effective_rank(s) == pytest.approx(0.805 * n, rel=0.01)
    assert m.energy_entropy_rank(s) == pytest.approx(math.exp(-0.5) * n, rel=0.01)
    assert m.energy_rank(s, 0.9) == pytest.approx(0.51 * n, rel=0.01)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12))
def test_order_of_the_measures(values):
    s = tensor(*sorted(values, reverse=True))
    stable, participation, entropy, effective = (measure(s) for measure in RATIOS)
    slack = 1 + 1e-9
    assert stable * slack >= 1
    assert stable <= participation * slack
    assert participation <= entropy * slack
    assert entropy <= effective * slack
    assert effective <= len(s) * slack
    assert participation <= stable**2 * slack


@given(seed=st.integers(0, 2**31), factor=st.floats(1e-3, 1e3))
def test_all_ranks_ignore_scale_and_rotation(seed, factor):
    rng = torch.Generator().manual_seed(seed)
    x = gaussian(6, 4, rng=rng)
    one = svd(DenseUpdate(x)).values
    two = svd(DenseUpdate(factor * haar(6, 6, rng) @ x)).values
    for measure in RATIOS:
        assert measure(two) == pytest.approx(measure(one), rel=1e-9)


@pytest.mark.parametrize("s", [torch.zeros(3), torch.zeros(0)])
def test_zero_has_rank_zero_and_no_ratios(s):
    assert m.numerical_rank(s, 0.0) == 0
    assert m.energy_rank(s, 0.9) == 0
    for measure in (*RATIOS, m.top_energy):
        assert math.isnan(measure(s))


@pytest.mark.parametrize("r", [1, 3, 8])
def test_numerical_rank_of_a_factored_update_is_its_rank(rng, r):
    update = FactoredUpdate(gaussian(40, r, rng=rng).float(), gaussian(r, 30, rng=rng).float(), 2)
    spectrum = svd(update)
    assert m.numerical_rank(spectrum.values, spectrum.error_bound) == r


def test_table_of_a_pair(rng):
    base = {"layers.0.q_proj.weight": gaussian(16, 12, rng=rng).float()}
    change = with_spectrum([3.0, 1.0], 16, 12, rng).float()
    tuned = {"layers.0.q_proj.weight": base["layers.0.q_proj.weight"] + change}
    row = rs.rank(tuned, base=base).table.iloc[0]
    assert (row.module, row.layer, row.kind) == ("layers.0.q_proj", 0, "q")
    assert (row.rows, row.columns, row.ceiling) == (16, 12, 12)
    assert row.frobenius == pytest.approx(math.sqrt(10), rel=1e-5)
    assert row.spectral == pytest.approx(3, rel=1e-5)
    norm = base["layers.0.q_proj.weight"].double().norm().item()
    assert row.relative_norm == pytest.approx(math.sqrt(10) / norm, rel=1e-5)
    assert row.stable_rank == pytest.approx(10 / 9, rel=1e-5)
    assert row.top1_energy == pytest.approx(0.9, rel=1e-5)
    assert row.state == "ok"
    assert row.unchanged_fraction == 0
    assert row.method == "exact"


def test_unchanged_entries_are_counted():
    base = {"w.weight": torch.zeros(4, 5)}
    tuned = {"w.weight": torch.zeros(4, 5)}
    tuned["w.weight"][0, :2] = 1.0
    row = rs.rank(tuned, base=base).table.iloc[0]
    assert row.unchanged_fraction == pytest.approx(0.9)
    assert row.state == "collapsed"
    assert math.isnan(row.relative_norm)  # a base of norm 0


def test_untrained_adapter_is_a_value_with_a_note():
    adapter = {
        "a.lora_A.weight": torch.ones(2, 6),
        "a.lora_B.weight": torch.zeros(5, 2),
    }
    result = rs.rank(adapter, alpha=2)
    row = result.table.iloc[0]
    assert row.state == "zero"
    assert (row.numerical_rank, row.energy_rank_90, row.frobenius) == (0, 0, 0)
    assert math.isnan(row.stable_rank)
    assert math.isnan(row.top1_energy)
    assert any("are zero" in note for note in result.notes)
    assert result.to_dict()["rows"][0]["stable_rank"] is None


def test_large_dense_update_leaves_the_numerical_rank_open(rng, monkeypatch):
    monkeypatch.setattr("rankscope.spectra.Auto", lambda: Auto(limit=4))
    base = {"w.weight": torch.zeros(8, 8)}
    row = rs.rank({"w.weight": with_spectrum([2.0, 1.0], 8, 8, rng)}, base=base).table.iloc[0]
    assert row.method == "gram"
    assert row.isna().numerical_rank
    assert row.stable_rank == pytest.approx(1.25)


def test_terms_that_cancel_are_zero_and_not_round_off_of_full_rank(rng):
    up, down = gaussian(30, 4, rng=rng), gaussian(4, 20, rng=rng)
    adapter = {
        "a.lora_A.weight": torch.cat([down, down]),
        "a.lora_B.weight": torch.cat([up, -up], dim=1),
    }
    row = rs.rank(adapter, alpha=8).table.iloc[0]
    assert (row.state, row.numerical_rank, row.energy_rank_90) == ("zero", 0, 0)
    assert row.spectral <= row.error_bound
    update = FactoredUpdate(up, down)
    assert svd(update - update).directions == 0
    # A difference of 1e-9 keeps its four true directions and none of the round-off.
    nudged = FactoredUpdate(up, down + 1e-9 * gaussian(4, 20, rng=rng))
    assert svd(nudged - update).directions == 4


@pytest.mark.parametrize("size", [1e-90, 1e-30, 1e30, 1e90])
def test_sizes_at_the_ends_of_float64(rng, size):
    up, down = gaussian(12, 3, rng=rng) * size, gaussian(3, 10, rng=rng) * size
    plain = rs.rank({"a.lora_A.weight": down / size, "a.lora_B.weight": up / size}, alpha=3)
    row = rs.rank({"a.lora_A.weight": down, "a.lora_B.weight": up}, alpha=3).table.iloc[0]
    assert row.state == "ok"
    for column in ("stable_rank", "effective_rank", "energy_rank_90", "numerical_rank"):
        assert row[column] == pytest.approx(plain.table.iloc[0][column], rel=1e-9)
    assert row.frobenius == pytest.approx(plain.table.frobenius[0] * size**2, rel=1e-9)


def test_a_rank_one_adapter_is_not_collapsed(rng):
    row = rs.rank(
        {"a.lora_A.weight": gaussian(1, 9, rng=rng), "a.lora_B.weight": gaussian(8, 1, rng=rng)},
        alpha=1,
    ).table.iloc[0]
    assert row.state == "ok"
    assert row.stable_rank == 1


def test_pairs_say_that_rounding_counts(rng):
    base = {"w.weight": gaussian(40, 40, rng=rng).bfloat16()}
    change = with_spectrum([0.3, 0.2], 40, 40, rng)
    tuned = {"w.weight": (base["w.weight"].double() + change).bfloat16()}
    result = rs.rank(tuned, base=base)
    assert result.table.numerical_rank[0] > 2  # the note is needed
    assert any("rounding of the storage" in note for note in result.notes)


@pytest.mark.parametrize(
    "base",
    [
        {"a.weight": torch.ones(8, 9, dtype=torch.int8)},
        {"a.weight": torch.ones(36, 1, dtype=torch.uint8)},
        {"a.weight": torch.ones(8, 9).to(torch.float8_e4m3fn)},
        {"b.weight": torch.ones(8, 9)},
    ],
    ids=["int8", "packed", "fp8", "missing"],
)
def test_a_base_that_cannot_be_read_leaves_the_ranks(rng, base):
    adapter = {
        "a.lora_A.weight": gaussian(2, 9, rng=rng),
        "a.lora_B.weight": gaussian(8, 2, rng=rng),
    }
    result = rs.rank(adapter, base=base, alpha=2)
    assert result.table.numerical_rank[0] == 2
    assert math.isnan(result.table.relative_norm[0])
    assert any("no readable weight" in note for note in result.notes)
    assert not result.failures


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 30),
    k=st.integers(0, 30),
    fraction=st.floats(0.01, 1),
)
def test_energy_rank_of_a_partial_spectrum_is_bracketed(seed, n, k, fraction):
    rng = torch.Generator().manual_seed(seed)
    s = gaussian(n, rng=rng).abs().sort(descending=True).values
    energy = s.square().sum().item()
    low, high = m.energy_rank_bracket(s[:k], fraction, energy, n)
    assert low <= m.energy_rank(s, fraction) <= high <= n
    assert k < n or low == high


def test_bracket_is_reached_from_both_sides():
    # 20 of 27 are known of 4, 2, ...: the rest as 2, 2, sqrt(2) or as ten times 1.
    steep = torch.tensor([4.0, 2, 2, 2, 2**0.5])
    flat = torch.tensor([4.0, 2, *[1.0] * 10])
    bracket = m.energy_rank_bracket(steep[:2], 0.9, 30.0, 12)
    assert bracket == (m.energy_rank(steep, 0.9), m.energy_rank(flat, 0.9)) == (4, 9)
    assert m.energy_rank_bracket(torch.zeros(2), 0.9, 0.0, 5) == (0, 0)
