"""Advice: the rank every module needs, what it costs, and what a budget buys."""

import json
import math

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import gaussian, with_spectrum

import rankscope as rs
from rankscope.errors import RankscopeError


def adapter(rng, spectra, out=12, in_=8):
    """An adapter whose modules have the singular values given."""
    tensors = {}
    for name, s in spectra.items():
        u, values, vh = torch.linalg.svd(with_spectrum(s, out, in_, rng), full_matrices=False)
        tensors[f"{name}.lora_A.weight"] = values[: len(s), None] * vh[: len(s)]
        tensors[f"{name}.lora_B.weight"] = u[:, : len(s)]
    return tensors


def advised(tensors, **options):
    return rs.rank(tensors, alpha=len(tensors["a.lora_A.weight"]), advise=True, **options).advice


def by_rule(advice, module="a"):
    rows = advice.table[advice.table.module == module]
    return dict(zip(rows.rule, rows["rank"], strict=True))


def test_rules_by_hand(rng):
    advice = advised(adapter(rng, {"a": [4.0, 3.0, 2.0, 1.0, 0.04]}))
    ranks = by_rule(advice)
    # Energies 16, 9, 4, 1 of 30: 0.83, 0.97, 0.9999.
    assert [ranks[f"energy_{q}"] for q in (90, 95, 99)] == [3, 3, 4]
    assert ranks["gap"] == 4  # 1 / 0.04
    assert (ranks["sv_ratio_20"], ranks["sv_cumulative_90"], ranks["sv_fro_90"]) == (4, 4, 2)
    assert ranks["above_noise"] is pd.NA
    assert ranks["hard_threshold"] is pd.NA
    row = advice.chosen.iloc[0]
    assert (row.rule, row["rank"], row.parameters, row.bytes) == ("energy_95", 3, 60, 240)
    assert row.relative_error == pytest.approx(math.sqrt(1.0016 / 30.0016), rel=1e-9)
    assert advice.rank_pattern == {"a": 3}


def test_the_predicted_error_is_that_of_the_truncation(rng):
    tensors = adapter(rng, {"a": [4.0, 3.0, 2.0, 1.0]})
    update = rs.open_updates(tensors, alpha=4)["a"]
    for row in advised(tensors).table.dropna().itertuples():
        spectrum = rs.svd(update, k=row.rank)
        cut = spectrum.left * spectrum.values @ spectrum.right.T
        error = (update.dense() - cut).norm() / update.dense().norm()
        assert row.relative_error == pytest.approx(error.item(), abs=1e-12)


def test_a_budget_buys_the_strongest_directions_of_all_modules(rng):
    tensors = adapter(rng, {"a": [4.0, 3.0, 0.1], "b": [2.0, 1.0, 0.5]})
    assert advised(tensors, budget=60).rank_pattern == {"a": 2, "b": 1}
    assert advised(tensors, budget=79).rank_pattern == {"a": 2, "b": 1}
    assert advised(tensors, budget=80).rank_pattern == {"a": 2, "b": 2}
    advice = advised(tensors, budget=40)
    assert advice.rule == "budget"
    assert (advice.rank_pattern, advice.left_out) == ({"a": 2}, ["b"])
    assert by_rule(advice, "b")["budget"] == 0


def test_bytes_are_those_of_the_dtype(rng):
    tensors = adapter(rng, {"a": [4.0, 3.0, 0.1], "b": [2.0, 1.0, 0.5]})
    assert advised(tensors, budget="240B").rank_pattern == {"a": 2, "b": 1}
    advice = advised(tensors, budget="240 B", dtype="bfloat16")
    assert advice.rank_pattern == {"a": 3, "b": 3}
    assert advice.to_dict()["bytes"] == 240
    assert advice.to_dict()["parameters"] == 120


def test_a_budget_alone_is_a_wish_for_advice(rng):
    result = rs.rank(adapter(rng, {"a": [4.0, 3.0]}), alpha=2, budget=20)
    assert result.advice.rank_pattern == {"a": 1}
    assert rs.rank(adapter(rng, {"a": [4.0, 3.0]}), alpha=2).advice is None


@pytest.mark.parametrize(
    "options",
    [
        {"budget": 19},
        {"budget": 0},
        {"budget": -5},
        {"budget": "35M"},
        {"budget": "lots"},
        {"budget": ""},
        {"dtype": "int4"},
    ],
)
def test_budgets_that_buy_nothing_or_are_none(rng, options):
    with pytest.raises(RankscopeError) as caught:
        advised(adapter(rng, {"a": [4.0, 3.0]}), **options)
    assert all(caught.value.parts().values())


@given(
    first=st.lists(st.floats(0.01, 10), min_size=1, max_size=5),
    second=st.lists(st.floats(0.01, 10), min_size=1, max_size=5),
    budget=st.integers(20, 250),
)
def test_a_budget_is_kept_and_well_spent(first, second, budget):
    rng = torch.Generator().manual_seed(0)
    spectra = {"a": sorted(first, reverse=True), "b": sorted(second, reverse=True)}
    advice = rs.rank(adapter(rng, spectra), alpha=1, budget=budget).advice
    assert advice.chosen.parameters.sum() <= budget
    # All costs are equal: the best choice is the strongest directions of both.
    found = sum(advice.rank_pattern.values())
    assert found == min(budget // 20, len(first) + len(second))


def test_updates_that_are_zero_need_no_rank(rng):
    tensors = adapter(rng, {"a": [4.0, 3.0], "b": [2.0, 1.0]})
    tensors["b.lora_B.weight"].zero_()
    advice = advised(tensors)
    assert (advice.rank_pattern, advice.left_out) == ({"a": 2}, ["b"])
    both = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    assert advised(both, budget=1).rank_pattern == {}
    json.dumps(advised(both).to_dict())


def test_dense_updates_have_noise_rules(rng):
    tuned = 0.01 * gaussian(60, 50, rng=rng) + with_spectrum([3.0, 2.0], 60, 50, rng)
    base = {"w.weight": torch.zeros(60, 50, dtype=torch.float64)}
    ranks = by_rule(rs.rank({"w.weight": tuned}, base=base, advise=True).advice, "w")
    assert (ranks["hard_threshold"], ranks["gap"]) == (2, 2)


def test_energy_is_counted_above_the_noise_of_the_storage(rng):
    pytest.importorskip("rankscope.measures.noise")
    base = 0.02 * gaussian(200, 160, rng=rng)
    change = with_spectrum([0.03, 0.025, 0.02, 0.015], 200, 160, rng)
    stored = base.bfloat16()
    tuned = {"w.weight": (stored.double() + change).bfloat16()}
    result = rs.rank(tuned, base={"w.weight": stored}, advise=True)
    ranks = by_rule(result.advice, "w")
    above = result.table.rank_above_noise[0]
    assert ranks["above_noise"] == above
    assert 1 <= ranks["energy_99"] <= above < result.table.energy_rank_99[0]


def test_what_is_below_the_noise_needs_no_rank(rng):
    pytest.importorskip("rankscope.measures.noise")
    base = 0.02 * gaussian(96, 64, rng=rng).float()
    tuned = {"w.weight": base.bfloat16()}
    advice = rs.rank(tuned, base={"w.weight": base}, budget=10_000).advice
    assert (advice.rank_pattern, advice.left_out) == ({}, ["w"])
    assert by_rule(advice, "w")["energy_99"] == 0


def test_text_and_json(rng, tmp_path):
    tensors = adapter(rng, {"a": [4.0, 3.0, 0.1], "b": [2.0, 1.0, 0.5]})
    result = rs.rank(tensors, alpha=3, budget=60)
    text = result.to_text()
    assert json.loads(text.splitlines()[-1]) == {"rank_pattern": {"a": 2, "b": 1}}
    assert "budget: 60 parameters, 240 bytes in float32" in text
    result.save(tmp_path / "x.json")
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["schema"] == "rankscope.rank/1"
    assert content["advice"]["rank_pattern"] == {"a": 2, "b": 1}
    row = next(r for r in content["advice"]["rows"] if r["rule"] == "above_noise")
    assert row["rank"] is None
    assert row["bytes"] is None
    assert content["provenance"]["options"]["budget"] == 60
