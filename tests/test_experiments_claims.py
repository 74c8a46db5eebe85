"""The tests behind the claims, and the claims on planted runs."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import haar, write_peft
from scipy import stats
from section7 import D, experiment, modules, row, write_adapter

from rankscope.errors import SourceError
from rankscope.experiments.claims import as_json, claims, shown
from rankscope.experiments.claims_directions import _random, rest_beyond_chance
from rankscope.experiments.claims_scores import score_claims
from rankscope.experiments.evidence import Evidence, Rule, judged, untested
from rankscope.experiments.measured import Pair, Runs
from rankscope.experiments.statistics import (
    falling_p_value,
    first_overlap_draws,
    labels_p_value,
    noninferior_p_value,
    reached_p_value,
    sign_flip_p_value,
)
from rankscope.measures.similarity import phi_grid


@given(st.lists(st.integers(-500, 500).map(float), min_size=2, max_size=7))
def test_signs_agree_with_scipy(values):
    ours = sign_flip_p_value(values)
    flip = stats.permutation_test(
        (np.array(values),), np.mean, permutation_type="samples", alternative="greater",
        n_resamples=np.inf,
    )  # fmt: skip
    assert ours == pytest.approx(flip.pvalue, abs=1e-9)
    assert ours >= 2.0 ** -len(values)


def test_noninferiority_is_students_t():
    losses, margin = [0.004, -0.002, 0.001], 0.01
    expected = stats.ttest_1samp(losses, margin, alternative="less").pvalue
    assert noninferior_p_value(losses, margin) == pytest.approx(expected)
    assert math.isnan(noninferior_p_value([0.1 + 0.2, 0.3], margin))  # they do not vary


def test_a_rising_row_is_not_falling():
    assert falling_p_value([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]) == pytest.approx(1.0)


def test_relabelling_counts_the_groups():
    values = {"a": 3.0, "b": 2.0, "c": 0.0, "d": 0.0}
    mean = lambda group: float(np.mean([values[name] for name in group]))  # noqa: E731
    assert labels_p_value("abcd", "ab", mean) == pytest.approx(1 / 6)


def test_reached_is_never_zero():
    assert reached_p_value(9.0, np.zeros(1999)) == 1 / 2000


def test_drawn_overlaps_have_the_exact_moments():
    pairs = [Pair("a", "b"), Pair("c", "d")]
    d, modules = 24, 3
    draws = first_overlap_draws(pairs, modules, d)
    one = stats.beta(0.5, (d - 1) / 2)
    count = modules * len(pairs)
    assert draws.mean() == pytest.approx(1 / d, abs=5 * one.std() / (count * len(draws)) ** 0.5)
    assert draws.std() == pytest.approx(one.std() / count**0.5, rel=0.1)


def test_rest_of_equal_spaces_is_contained_and_of_random_ones_is_not(rng):
    basis = haar(64, 8, rng)
    assert rest_beyond_chance(phi_grid(basis.T @ basis).numpy(), 64) == pytest.approx(1.0)
    drawn = [
        rest_beyond_chance(phi_grid(haar(64, 8, rng).T @ haar(64, 16, rng)).numpy(), 64)
        for _ in range(60)
    ]
    assert np.mean(drawn) == pytest.approx(0, abs=0.02)


def test_only_the_first_direction_in_common_leaves_no_rest(rng):
    d = 64
    whole = haar(d, 15, rng)
    one, other = whole[:, :8], torch.cat([whole[:, :1], whole[:, 8:]], dim=1)
    grid = phi_grid(one.T @ other).numpy()
    assert grid[0, 0] == pytest.approx(1.0)
    assert rest_beyond_chance(grid, d) == pytest.approx(-(7 / d) / (1 - 7 / d))


def evidence(**fields):
    return Evidence(claim="c", statistic="s", n=3, **{"value": 0.0, **fields})


def test_rules():
    table = judged(
        [
            evidence(p=0.01, rule=Rule.BEYOND, agrees=True),
            evidence(p=0.4, rule=Rule.BEYOND, agrees=True),
            evidence(p=0.01, rule=Rule.BEYOND, agrees=False),
            evidence(p=0.125, agrees=True),
            evidence(p=0.5, rule=Rule.CHANCE, agrees=True),
            evidence(p=1e-4, rule=Rule.CHANCE, agrees=True),
            untested("c", "s", "no runs"),
        ]
    )
    assert table.held.tolist() == [True, False, False, True, True, False, pd.NA]
    # The effect's p and the controls' are none of the family.
    assert table.p_adjusted.isna().tolist() == [False] * 3 + [True] * 4
    assert table.p_adjusted[0] == pytest.approx(0.015)  # of three tests, two have 0.01


def test_one_unit_alone_shows_no_effect():
    table = judged([Evidence(claim="c", statistic="s", value=1.0, agrees=True, p=0.5, n=1)])
    assert table.held.isna().all()


def held(table, words):
    rows = table[[all(word in claim for word in words) for claim in table.claim]]
    assert len(rows), words
    return rows.held.tolist()


def test_planted_top_directions_are_shared_and_nothing_else(tmp_path, rng):
    scores = {
        (rank, s): {"token_accuracy": 0.9 + s * rank / 1e5} for rank in (4, 8, 0) for s in range(3)
    }
    scores |= {(1, s): {"token_accuracy": 0.5} for s in range(3)}
    scores |= {(2, s): {"token_accuracy": 0.5 + s / 1e3} for s in range(3)}
    runs = Runs(experiment(tmp_path, rng, scores=scores))
    assert runs.ranks == (2, 8)
    table = claims(runs)
    assert set(held(table, ["share the top direction"])) == {True}
    assert set(held(table, ["exceeds 0.5"])) == {True}
    assert held(table, ["same norms", "random"]) == [True]
    assert held(table, ["r = 4 as good as r = 8", "sql"]) == [True]
    assert set(held(table, ["shuffled"])) == {pd.NA}
    content = as_json(table)
    assert json.loads(json.dumps(content, allow_nan=False))["rows"][0]["claim"]
    assert {row["held"] for row in content["rows"]} >= {True, None}
    assert set(shown(table).held) <= {"held", "not held", "not tested"}


def test_random_runs_hold_none_of_it(tmp_path, rng):
    scores = {
        (rank, s): {"token_accuracy": 0.5 + s * rank / 1e3} for rank in (1, 2, 4) for s in range(3)
    }
    runs = Runs(experiment(tmp_path, rng, shared=False, scores=scores))
    table = claims(runs)
    assert not any(held(table, ["share the top direction"]))
    assert not any(held(table, ["exceeds 0.5"]))
    assert held(table, ["r = 4 as good as r = 8", "sql"]) == [False]
    assert not any(held(table, ["amplifies directions that"]))


def test_controls_with_one_start_and_with_shuffled_labels(tmp_path, rng):
    index = experiment(tmp_path, rng, ranks=(2, 8), seeds=(0, 1))
    rows = [index]
    for rank in (2, 8):
        first = index[index.name == f"sql-qv-r{rank}-s0"]
        rows.append(first.assign(name=f"sql-qv-r{rank}-s1-init0", seed=1))
    others = []
    for seed in (0, 1):
        write_adapter(tmp_path / f"shuffled{seed}", 8, rng)
        fields = {"rank": 8, "seed": seed, "labels": "shuffled"}
        name = f"sql-qv-r8-s{seed}-shuffled"
        others.append(row(name, tmp_path / f"shuffled{seed}", **fields))
    one = claims(Runs(pd.concat([*rows[:2], pd.DataFrame(others[:1])], ignore_index=True)))
    assert held(one, ["started alike"]) == [pd.NA]  # a coin toss
    assert held(one, ["shuffled"]) == [pd.NA] * 2  # on either side
    runs = Runs(pd.concat([*rows, pd.DataFrame(others)], ignore_index=True))
    table = claims(runs)
    assert held(table, ["started alike"]) == [True]
    alike = table[table.claim.str.contains("started alike")].iloc[0]
    assert (alike.n, alike.p != alike.p) == (2, True)
    for side in ("input", "output"):
        found = table[table.claim.str.contains(f"shuffled.*r = 8, {side}")].iloc[0]
        assert found.value < found.control
        assert found.chance == pytest.approx(8 / D)
        assert found.held


def test_whole_answers_tell_what_token_accuracy_does_not(tmp_path, rng):
    scores = {}
    for seed in range(3):
        one = {"token_accuracy": 0.999, "exact_match": 0.9 + seed / 1000}
        scores[1, seed] = {"token_accuracy": 0.7 + seed / 1000, "exact_match": 0.1}
        scores[D, seed] = one | {"token_accuracy": 0.998 + seed / 10000}
        scores[0, seed] = one | {"exact_match": 0.95}
    table = claims(Runs(experiment(tmp_path, rng, ranks=(1, 2, D), scores=scores)))
    by_tokens, by_answers = table[table.claim.str.contains("on q,v recovers")].itertuples()
    assert (by_tokens.held, by_answers.held) == (True, False)
    assert by_answers.value == pytest.approx(0.049)


def test_controls_that_share_a_direction_are_not_at_chance(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(Runs, "drawn", lambda self, name, seed: name)  # they are the runs
    runs = Runs(experiment(tmp_path, rng, ranks=(2, 8)))
    found = _random(runs)
    assert found.p == pytest.approx(2 / 20000)
    assert judged([found]).held.tolist() == [False]


def test_random_directions_of_one_norm_fall_by_chance_and_have_no_p(tmp_path, rng):
    table = claims(Runs(experiment(tmp_path, rng, shared=False)))
    fall = table[table.claim.str.contains("falls with r")].iloc[0]
    assert fall.rule == "effect"
    assert math.isnan(fall.p)
    assert math.isnan(fall.p_adjusted)
    assert fall.chance == pytest.approx(8, rel=0.3)  # r times the growth of the norm
    assert "random directions" in fall.says
    one = claims(Runs(experiment(tmp_path / "one", rng, seeds=(0,))))
    trends = one[one.claim.str.contains("falls with r|later directions")]
    assert trends.held.isna().all()
    assert all(says.startswith("not tested") for says in trends.says)


def write_sharing(folder, rank, rng, common):
    """An adapter whose first directions are `common`, the same in every module."""
    own = haar(D, rank, rng)
    right = torch.linalg.qr(torch.cat([common, own[:, common.shape[1] :]], dim=1))[0]
    tensors = {}
    for module in modules(("q", "v")):
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_A.weight"] = right.T.float().contiguous()
        tensors[f"{key}.lora_B.weight"] = haar(D, rank, rng).float().contiguous()
    write_peft(folder, tensors, r=rank, lora_alpha=rank)


@pytest.mark.parametrize(("many", "expected"), [(1, True), (3, False)])
def test_shared_directions_count_alike_at_all_ranks(many, expected, tmp_path, rng):
    index = experiment(tmp_path, rng, ranks=(), seeds=(0, 1))
    common = haar(D, many, rng)
    rows = []
    for rank in (4, 10):
        for seed in (0, 1):
            name = f"sql-qv-r{rank}-s{seed}"
            write_sharing(tmp_path / name, rank, rng, common)
            rows.append(row(name, tmp_path / name, rank=rank, seed=seed))
    table = claims(Runs(pd.concat([index, pd.DataFrame(rows)], ignore_index=True)))
    found = table[table.claim.str.contains("near chance")]
    assert np.allclose(found.value, many, atol=0.01)
    assert found.held[found.claim.str.startswith("r = 4")].tolist() == [expected] * 2
    assert found.p.isna().all()  # pairs share runs


def test_rank_1_has_no_other_directions(tmp_path, rng):
    table = claims(Runs(experiment(tmp_path, rng, ranks=(1, 4))))
    assert held(table, ["r = 1 and r = 4", "near chance"]) == [pd.NA] * 2
    assert math.isnan(rest_beyond_chance(np.ones((1, 4)), 32))


@pytest.mark.parametrize(
    ("least", "gain", "expected"),
    [(0.5, 1e-4, True), (0.899, 1e-4, pd.NA), (0.5, 0.0, pd.NA)],
    ids=["sensitive", "nothing could be lost", "nothing varies"],
)
def test_not_worse_takes_a_loss_that_could_be_seen(least, gain, expected, tmp_path, rng):
    scores = {(8, s): {"token_accuracy": 0.9} for s in range(3)}
    scores |= {(4, s): {"token_accuracy": 0.9 + gain * s} for s in range(3)}
    scores |= {(1, s): {"token_accuracy": least} for s in range(3)}
    runs = Runs(experiment(tmp_path, rng, ranks=(1, 4, 8), scores=scores))
    table = judged(score_claims(runs))
    assert held(table, ["r = 4 as good as r = 8"]) == [expected]


def test_what_is_undefined_is_not_tested():
    assert math.isnan(reached_p_value(math.nan, np.zeros(9)))
    table = judged([evidence(value=math.nan, agrees=True), evidence(value=1.0, agrees=True)])
    assert table.held.tolist() == [pd.NA, True]


def test_many_signs_are_drawn():
    values = np.random.default_rng(0).normal(0.3, 1, size=40)
    expected = stats.ttest_1samp(values, 0, alternative="greater").pvalue
    assert sign_flip_p_value(values) == pytest.approx(expected, abs=0.02)


def test_with_nothing_but_a_base_and_one_adapter_nothing_is_dropped(tmp_path, rng):
    index = experiment(tmp_path, rng, ranks=(2,), seeds=(0,))
    full = claims(Runs(experiment(tmp_path / "more", rng)))
    few = claims(Runs(index))
    assert len(few) == len(full)
    assert few.held.isna().sum() > 15
    assert all(says.startswith("not tested") for says in few.says[few.n == 0])


def test_runs_need_a_base(tmp_path, rng):
    index = experiment(tmp_path, rng, ranks=(2,), seeds=(0,))
    with pytest.raises(SourceError, match="no base"):
        Runs(index[index.method != "pre-training"])
    assert math.isclose(float(Runs(index).base.loss), 1.5)
