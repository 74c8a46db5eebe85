"""Rank measures against closed forms."""

import math

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import gaussian, haar, with_spectrum
from safetensors.torch import load_file

import rankscope as rs
from rankscope.errors import RankscopeError
from rankscope.measures import rank as m
from rankscope.spectra import Auto, svd
from rankscope.updates import DenseUpdate, FactoredUpdate

RATIOS = (
    m.stable_rank,
    m.participation_rank,
    m.energy_entropy_rank,
    m.effective_rank,
    m.nuclear_rank,
)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("s", "stable", "participation", "effective", "entropy", "nuclear"),
    [
        ((3, 1), 10 / 9, 1.219512, 1.754765, 1.384145, 1.6),
        ((4, 3), 1.5625, 1.854599, 1.979626, 1.922100, 1.96),
        ((10, 1, 1, 1, 1), 1.04, 1.081168, 2.702977, 1.241528, 1.884615),
    ],
)
def test_worked_spectra(s, stable, participation, effective, entropy, nuclear):
    s = tensor(*s)
    assert m.stable_rank(s) == pytest.approx(stable, rel=1e-12)
    assert m.participation_rank(s) == pytest.approx(participation, abs=1e-6)
    assert m.effective_rank(s) == pytest.approx(effective, abs=1e-6)
    assert m.energy_entropy_rank(s) == pytest.approx(entropy, abs=1e-6)
    assert m.nuclear_rank(s) == pytest.approx(nuclear, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 7, 10, 64, 100])
def test_equal_singular_values_have_rank_k_by_every_definition(k):
    s = torch.full((k,), 0.3, dtype=torch.float64)
    for measure in RATIOS:
        assert measure(s) == pytest.approx(k, rel=1e-12)
    for percent in (90, 95, 99):
        expected = -(-percent * k // 100)  # ceil in integers
        assert m.energy_rank(s, percent / 100) == expected
        assert m.cumulative_rank(s, percent / 100) == expected
    assert m.gap_rank(s) is None
    assert m.numerical_rank(s, 1e-15) == k


def test_geometric_spectrum():
    s = 0.5 ** torch.arange(60, dtype=torch.float64)
    assert m.stable_rank(s) == pytest.approx(4 / 3)
    assert m.participation_rank(s) == pytest.approx(5 / 3)
    assert m.effective_rank(s) == pytest.approx(4)
    assert m.nuclear_rank(s) == pytest.approx(3)
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
    stable, participation, entropy, effective, nuclear = (measure(s) for measure in RATIOS)
    slack = 1 + 1e-9
    assert stable * slack >= 1
    assert stable <= participation * slack
    assert participation <= entropy * slack
    assert entropy <= effective * slack
    assert effective <= len(s) * slack
    assert participation <= stable**2 * slack
    assert stable <= nuclear * slack
    assert nuclear <= effective * slack


def test_kohyas_rules_as_they_are_meant():
    s = tensor(4, 3, 2, 1)
    assert m.cumulative_rank(s, 0.9) == 3  # 9 of 10, a tie in floating point
    assert m.frobenius_rank(s, 0.9) == 2  # 25 of 30 is above 0.81
    assert m.ratio_rank(s, 2.0) == 2  # strictly above 2
    assert m.cumulative_rank(s, 1.0) == m.frobenius_rank(s, 1.0) == m.ratio_rank(s, 5.0) == 4


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12), st.floats(0.05, 1))
def test_counts_do_what_they_say(values, fraction):
    s = tensor(*sorted(values, reverse=True))
    k, energies = m.cumulative_rank(s, fraction), s.square()
    assert s[:k].sum() >= fraction * s.sum() * (1 - 1e-9)
    assert k == 1 or s[: k - 1].sum() < fraction * s.sum()
    k = m.frobenius_rank(s, fraction)
    assert energies[:k].sum() >= fraction**2 * energies.sum() * (1 - 1e-9)
    assert m.frobenius_rank(s, fraction) == m.energy_rank(s, fraction**2)
    error = fraction * energies.sum().sqrt().item()
    k = m.rank_within(s, error)
    assert energies[k:].sum().sqrt() <= error * (1 + 1e-9)
    assert k == 0 or energies[k - 1 :].sum().sqrt() > error
    assert m.truncation_error(s, k) == pytest.approx(
        (energies[k:].sum() / energies.sum()).sqrt().item(), abs=1e-12
    )


def test_truncation_keeps_a_small_rest():
    # Subtracting the kept energy from the whole would leave nothing of 1e-20.
    assert m.truncation_error(tensor(1, 1e-10), 1) == pytest.approx(1e-10, rel=1e-12)
    assert m.truncation_error(tensor(3, 4), 0) == 1
    assert m.truncation_error(tensor(3, 4), 2) == m.truncation_error(tensor(3, 4), 9) == 0


@pytest.mark.parametrize(
    ("s", "expected"),
    [
        ((9, 8, 1, 0.9), 2),
        ((4, 2, 1), 1),
        ((3,), None),
        ((), None),
        ((2, 2), None),
        ((2, 0), None),
    ],
)
def test_gap(s, expected):
    assert m.gap_rank(tensor(*s)) == expected


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
    assert m.energy_rank(s, 0.9) == m.cumulative_rank(s, 0.9) == m.frobenius_rank(s, 0.9) == 0
    assert m.ratio_rank(s, 2.0) == m.rank_within(s, 0.0) == 0
    assert m.gap_rank(s) is None
    assert math.isnan(m.truncation_error(s, 1))
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
    monkeypatch.setattr("rankscope.spectra.spectrum.Auto", lambda: Auto(limit=4))
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


class TestAgainstTheBase:
    """What compares ΔW with the weight it changes."""

    def pair(self, rng, change, scale=0.02):
        base = scale * gaussian(60, 40, rng=rng)
        return {"w.weight": base + change}, {"w.weight": base}

    def test_relative_measures_by_hand(self, rng):
        tuned, base = self.pair(rng, with_spectrum([1.0, 0.2, 1e-3], 60, 40, rng))
        row = rs.rank(tuned, base=base).table.iloc[0]
        weight = base["w.weight"]
        cosine = (tuned["w.weight"] * weight).sum() / tuned["w.weight"].norm() / weight.norm()
        assert row.base_cosine == pytest.approx(cosine.item(), rel=1e-12)
        assert row.relative_rank_1 == 2  # 1 % of about 0.98
        edge = 0.02 * (math.sqrt(60) + math.sqrt(40))
        assert 0.2 < edge < 1.0
        assert row.rank_above_base == 1

    def test_adapters_are_compared_too(self, rng):
        adapter = {
            "w.lora_A.weight": gaussian(2, 40, rng=rng).float(),
            "w.lora_B.weight": gaussian(60, 2, rng=rng).float(),
        }
        _, base = self.pair(rng, torch.zeros(60, 40))
        row = rs.rank(adapter, base=base, alpha=2).table.iloc[0]
        tuned = (
            base["w.weight"] + (adapter["w.lora_B.weight"] @ adapter["w.lora_A.weight"]).double()
        )
        cosine = (tuned * base["w.weight"]).sum() / tuned.norm() / base["w.weight"].norm()
        assert row.base_cosine == pytest.approx(cosine.item(), rel=1e-5)
        for name in ("noise_edge", "noise_share", "rank_above_noise", "unchanged_fraction"):
            assert row.isna()[name]
        for name in ("bulk_edge", "bulk_edge_rank", "hard_threshold_rank"):
            assert row.isna()[name]

    @pytest.mark.parametrize("size", [1e-100, 1e100])
    def test_sizes_at_the_ends_of_float64(self, rng, size):
        change, base = gaussian(9, 8, rng=rng), {"w.weight": gaussian(9, 8, rng=rng)}
        factors = torch.linalg.qr(size * change)
        adapter = {"w.lora_A.weight": factors.R, "w.lora_B.weight": size * factors.Q}
        row = rs.rank(adapter, base=base, alpha=8, advise=True).table.iloc[0]
        assert row.relative_norm == pytest.approx(
            size**2 * change.norm().item() / base["w.weight"].norm().item()
        )
        assert row.relative_rank_1 == (8 if size > 1 else 0)
        assert row.rank_above_base == (8 if size > 1 else 0)

    def test_another_models_base_is_noticed(self, rng):
        tuned, base = self.pair(rng, torch.zeros(60, 40))
        base = {"w.weight": 0.02 * gaussian(60, 40, rng=rng)}
        result = rs.rank(tuned, base=base)
        assert abs(result.table.base_cosine[0]) < 0.1
        assert any("right base" in note for note in result.notes)

    @pytest.mark.parametrize("factor", [2.0, -1.0, 0.0])
    def test_a_base_made_larger_or_smaller_is_none_of_that(self, rng, factor):
        _, base = self.pair(rng, torch.zeros(60, 40))
        result = rs.rank({"w.weight": factor * base["w.weight"]}, base=base)
        assert result.table.relative_norm[0] == pytest.approx(abs(factor - 1))
        assert not any("right base" in note for note in result.notes)


class TestBulk:
    """A dense update's own noise."""

    def test_planted_directions_on_white_noise(self, rng):
        base = torch.zeros(80, 60, dtype=torch.float64)
        noise = 0.01 * gaussian(80, 60, rng=rng)
        tuned = noise + with_spectrum([1.0, 0.8], 80, 60, rng)
        row = rs.rank({"w.weight": tuned}, base={"w.weight": base}).table.iloc[0]
        assert (row.bulk_edge_rank, row.hard_threshold_rank, row.numerical_rank) == (2, 2, 60)
        assert row.bulk_edge == pytest.approx(0.01 * (math.sqrt(80) + math.sqrt(60)), rel=0.1)

    def test_an_exactly_low_rank_matrix_has_no_bulk(self, rng):
        tuned = {"w.weight": with_spectrum([1.0, 0.8], 30, 20, rng)}
        row = rs.rank(tuned, base={"w.weight": torch.zeros(30, 20)}).table.iloc[0]
        assert row.isna()[["bulk_edge", "bulk_edge_rank", "hard_threshold_rank"]].all()


class TestWeights:
    """W itself in place of ΔW."""

    def test_a_checkpoint_alone(self, rng):
        weight = with_spectrum([3.0, 1.0], 16, 12, rng)
        result = rs.rank({"h.0.q.weight": weight, "h.0.q.bias": torch.ones(16)}, of="weight")
        row = result.table.iloc[0]
        assert (row.module, row.numerical_rank, row.rows, row.columns) == ("h.0.q", 2, 16, 12)
        assert row.stable_rank == pytest.approx(10 / 9)
        assert row.isna()[["relative_norm", "base_cosine", "noise_edge"]].all()
        assert row.stored_dtype == "float64"
        assert result.provenance["options"]["of"] == "weight"

    def test_the_weights_that_an_adapter_changes(self, rng):
        adapter = {
            "h.0.q.lora_A.weight": gaussian(2, 12, rng=rng).float(),
            "h.0.q.lora_B.weight": gaussian(16, 2, rng=rng).float(),
        }
        base = {f"h.0.{kind}.weight": gaussian(16, 12, rng=rng) for kind in "qv"}
        table = rs.rank(adapter, base=base, of="weight").table
        assert table.module.tolist() == ["h.0.q"]
        assert table.frobenius[0] == pytest.approx(base["h.0.q.weight"].norm().item())
        opened = rs.open_updates(adapter, base)
        assert rs.rank(opened, of="weight").table.equals(table)

    def test_a_pair_has_its_bases_weights(self, rng):
        base = {"w.weight": gaussian(9, 8, rng=rng)}
        tuned = {"w.weight": 3 * base["w.weight"]}
        table = rs.rank(tuned, base=base, of="weight").table
        assert table.frobenius[0] == pytest.approx(base["w.weight"].norm().item())

    def test_an_adapter_without_base_has_none(self, rng):
        adapter = {
            "h.0.q.lora_A.weight": gaussian(2, 12, rng=rng),
            "h.0.q.lora_B.weight": gaussian(16, 2, rng=rng),
        }
        with pytest.raises(RankscopeError, match="no base weights"):
            rs.rank(adapter, of="weight")
        with pytest.raises(RankscopeError, match="update or weight"):
            rs.rank(adapter, of="factor")

    def test_spectra_of_weights(self, rng):
        weight = with_spectrum([3.0, 1.0], 16, 12, rng)
        table = rs.spectrum({"w.weight": weight}, of="weight").table
        assert table.singular_values[0][:2] == pytest.approx([3, 1])


class TestStorageNoise:
    """bf16 files: the floor is seen, named, and not taken for rank."""

    def rounded(self, data, factor):
        tuned, base = (load_file(data / n / "model.safetensors") for n in ("sql-full", "base"))
        names = [name for name in base if ".attn." in name and name.startswith("blocks.1.")]
        change = {name: factor * (tuned[name] - base[name]) for name in names}
        start = {name: base[name].bfloat16() for name in names}
        return {n: (start[n].float() + change[n]).bfloat16() for n in names}, start

    def test_the_floor_is_seen_and_named(self, data):
        pytest.importorskip("rankscope.measures.noise")
        tuned, base = self.rounded(data, 0.1)
        result = rs.rank(tuned, base=base)
        table = result.table
        assert (table.stored_dtype == "bfloat16").all()
        assert (table.noise_edge > 0).all()
        assert (table.rank_above_noise < table.numerical_rank).all()
        assert table.noise_share.between(0, 1, inclusive="neither").all()
        assert table.unchanged_fraction.between(0.05, 0.6).all()
        assert all("numerical_rank" in names for names in table.noise_affected)
        assert any("rounding of the storage (bfloat16)" in note for note in result.notes)
        # What rises above it is what float32 files show there too.
        exact = {n: base[n].float() + (tuned[n].float() - base[n].float()) for n in base}
        held = rs.rank(exact, base={n: base[n].float() for n in base}).table
        assert held.stored_dtype.tolist() == ["bfloat16"] * 4  # by bits, not by what holds them

    def test_spectrum_has_the_same_edge(self, data):
        pytest.importorskip("rankscope.measures.noise")
        tuned, base = self.rounded(data, 0.3)
        one, two = rs.rank(tuned, base=base).table, rs.spectrum(tuned, base=base).table
        assert one.noise_edge.tolist() == two.noise_edge.tolist()

    def test_what_cannot_be_told_is_null_and_noted(self, rng):
        base = gaussian(24, 16, rng=rng).bfloat16()
        base[0, 0] = 2.0**60
        tuned = base.clone()
        tuned[3, 4] *= 2
        result = rs.rank({"w.weight": tuned}, base={"w.weight": base})
        assert result.table[["noise_edge", "rank_above_noise"]].isna().all(axis=None)
        assert any("cannot be told of 1 updates" in note for note in result.notes)

    def test_nothing_but_rounding_is_below_the_noise(self, rng):
        pytest.importorskip("rankscope.measures.noise")
        base = 0.02 * gaussian(128, 96, rng=rng).float()
        result = rs.rank({"w.weight": base.bfloat16()}, base={"w.weight": base})
        row = result.table.iloc[0]
        assert (row.state, row.rank_above_noise) == ("below_noise", 0)
        assert {"stable_rank", "energy_rank_90", "numerical_rank"} <= set(row.noise_affected)
        assert any("do not rise above" in note for note in result.notes)
        assert result.to_dict()["rows"][0]["noise_affected"] == row.noise_affected
        assert result.long().noise_affected[0] == " ".join(row.noise_affected)

    def test_tables_of_some_rounded_and_some_exact_modules(self, rng, tmp_path):
        pytest.importorskip("rankscope.measures.noise")
        base = {name: gaussian(24, 16, rng=rng).float() for name in ("a.weight", "b.weight")}
        tuned = {"a.weight": base["a.weight"].bfloat16(), "b.weight": 2 * base["b.weight"]}
        result = rs.rank(tuned, base=base)
        assert result.table.noise_affected.isna().tolist() == [False, True]
        for suffix in ("csv", "parquet", "json", "md", "tex"):
            result.save(tmp_path / f"x.{suffix}")
        back = pd.read_parquet(tmp_path / "x.parquet")
        assert "numerical_rank" in back.noise_affected[0].split()
        assert pd.isna(back.noise_affected[1])

    def test_float32_files_have_no_such_floor(self, rng):
        pytest.importorskip("rankscope.measures.noise")
        base = 0.02 * gaussian(64, 48, rng=rng).float()
        result = rs.rank({"w.weight": base * 1.1}, base={"w.weight": base})
        assert result.table.isna()[["noise_edge", "noise_share", "noise_affected"]].all(axis=None)
        assert result.table.stored_dtype[0] == "float32"
        # But their rounding has full rank as well.
        assert [note for note in result.notes if "numerical_rank" in note] == list(result.notes)


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
