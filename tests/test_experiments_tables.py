"""Tables and figures of planted runs: means by hand, chance by formula, what is drawn."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats
from section7 import LAYERS, D, experiment, row, write_adapter

from rankscope.experiments import tables, update_tables
from rankscope.experiments.correlations import correlated, forgetting_correlations, spearman
from rankscope.experiments.figures import FIGURES
from rankscope.experiments.measured import Pair, Runs, across_seeds
from rankscope.plots import figure_bytes
from rankscope.plots.scores import plot_scores


@pytest.fixture
def runs(tmp_path, rng):
    scores = {(4, s): {"token_accuracy": 0.7 + s / 10, "mixture_loss": 2.0 + s} for s in range(3)}
    return Runs(experiment(tmp_path, rng, scores=scores))


def test_pairs_differ_in_seed(runs):
    rows = runs.adapters()
    two, four = (rows[rows["rank"] == rank] for rank in (2, 4))
    assert len(across_seeds(two, two)) == 3
    pairs = across_seeds(two, four)
    assert len(pairs) == 6
    assert Pair("sql-qv-r2-s0", "sql-qv-r4-s0") not in pairs


def test_variants_are_not_among_the_plain_runs(tmp_path, rng):
    index = experiment(tmp_path, rng, ranks=(2,), seeds=(0, 1))
    extra = [
        row(f"sql-qv-r2-s0-{suffix}", tmp_path / "sql-qv-r2-s0", rank=2, **fields)
        for suffix, fields in (("alpha8", {"alpha": 8.0}), ("dora", {"method": "DoRA"}))
    ]
    runs = Runs(pd.concat([index, pd.DataFrame(extra)], ignore_index=True))
    assert len(runs.plain) == 4
    assert list(runs.variants("alpha8").name) == ["sql-qv-r2-s0-alpha8"]
    table = tables.alpha_table(runs)
    assert table.rule.tolist() == ["alpha fixed", "alpha/r fixed"]
    assert table.runs.tolist() == [1, 1]  # of the seed that both have
    methods = tables.methods_table(runs).set_index("method")
    assert set(methods.index) == {"full", "LoRA", "DoRA"}
    assert methods.published_wikisql["LoRA"] == 73.3  # q and v at rank 2
    assert methods.published_multinli["full"] == 89.5
    assert math.isnan(methods.published_wikisql["DoRA"])
    assert "DoRA" in set(tables.parameters_table(runs).method)


def test_means_and_spreads_by_hand(runs):
    table = tables.table6(runs).set_index(["targets", "rank"])
    found = table.loc[("q,v", 4)]
    assert found.token_accuracy == pytest.approx(0.8)
    assert found.token_accuracy_sd == pytest.approx(0.1)
    assert found.runs == 3
    assert found.published_wikisql == 73.7
    assert table.loc[("all", 0)].published_wikisql != table.loc[("all", 0)].published_wikisql
    five = tables.table5(runs)
    assert five[["targets", "rank"]].to_numpy().tolist() == [["q,v", 4]]
    lost = tables.forgetting_table(runs).set_index(["method", "rank"]).loc[("LoRA", 4)]
    assert (lost.forgetting, lost.forgetting_sd) == (pytest.approx(1.5), pytest.approx(1.0))


def test_the_second_task_has_a_row_per_rank_and_difficulty(runs):
    assert tables.table18(runs).empty
    index = runs.index.assign(task="slots", difficulty=2)
    table = tables.table18(Runs(index))
    assert table["rank"].tolist() == [1, 2, 4, 8]
    assert table.published_loss.tolist() == [1.23, 1.21, 1.18, 1.17]


def test_costs_are_counted(runs):
    table = tables.cost_table(runs).set_index(["method", "rank"])
    assert (table.trained_parameters == table.factors).all()
    one = table.loc[("LoRA", 4)]
    assert one.factors == 4 * (D + D) * 2 * LAYERS
    assert one.checkpoint_bytes == 2 * one.factors
    assert one.tasks_bytes == 2 * D * D * 8 + 100 * 2 * one.factors
    assert one.seconds_per_step == 0.5
    full = table.loc[("full", 0)]
    assert full.tasks_bytes == 100 * 2 * full.parameters


def test_table7_of_random_directions_is_at_chance(tmp_path, rng):
    runs = Runs(experiment(tmp_path, rng, shared=False, seeds=(0, 1, 2, 3)))
    table = update_tables.table7(runs)
    rows = table[(table.layers == "all") & (table["rank"] == 8)]
    expected = 8 * rows.norm_weight / D
    pd.testing.assert_series_equal(rows.projection_random, expected, check_names=False)
    assert rows.excess.mean() == pytest.approx(1, abs=0.15)
    assert np.allclose(rows.amplification_random, rows.norm_update / rows.projection_random)
    assert (rows.projection_weight > rows.projection_update).all()


def test_shares_and_pairs_beside_chance(runs):
    share = update_tables.full_share_table(runs)
    assert np.allclose(share.chance, share["rank"] / D)
    assert (share.share - share.chance).abs().mean() < 0.1
    pairs = update_tables.pairs_table(runs)
    first = pairs[(pairs.what == "seeds") & (pairs.side == "right")]
    assert np.allclose(first.phi_first, 1.0)
    assert np.allclose(pairs.chance_first, 1 / D)
    whole = update_tables.full_rank_table(runs)
    assert set(whole.seed) == {0, 1, 2}
    assert (update_tables.intruders_table(runs).intruders >= 0).all()
    assert {"q", "k", "v", "o"} == set(update_tables.ranks_table(runs).kind)


def test_drift_ends_where_the_run_ends(tmp_path, rng):
    index = experiment(tmp_path, rng, ranks=(2,), seeds=(0,))
    folder = tmp_path / "sql-qv-r2-s0" / "checkpoints"
    for step, size in ((0, 0.0), (2, 0.3), (5, 0.3)):
        write_adapter(folder / f"step-{step:06d}", 2, rng, size=size)
    table = update_tables.drift_table(Runs(index))
    assert sorted(set(table.step)) == [0, 2, 5, 10]
    assert table.phi[table.step == 0].isna().all()
    assert not table.norm[table.step == 0].any()
    assert np.allclose(table.phi[table.step == 10], 1.0)
    assert (table.phi[table.step == 2] < 0.9).all()
    assert update_tables.drift_table(Runs(index[index.method != "LoRA"].assign())).empty


def test_spearman_is_scipys():
    rng = np.random.default_rng(0)
    x = pd.Series(rng.normal(size=12))
    y = x + pd.Series(rng.normal(size=12))
    found = spearman(x, y)
    expected = stats.spearmanr(x, y)
    assert found["spearman"] == pytest.approx(expected.statistic)
    assert found["p"] == pytest.approx(expected.pvalue, abs=0.01)
    few = spearman(x[:6], y[:6])
    orders = stats.permutation_test(
        (x[:6],), lambda z: stats.spearmanr(z, y[:6]).statistic, permutation_type="pairings",
        n_resamples=np.inf,
    )  # fmt: skip
    assert few["p"] == pytest.approx(orders.pvalue)
    assert found["low"] < found["spearman"] < found["high"] <= 1
    assert math.isnan(spearman(x, y * 0)["spearman"])
    assert math.isnan(spearman(x[:3], y[:3])["low"])


def test_forgetting_goes_with_what_it_was_planted_with(tmp_path, rng):
    scores = {(r, s): {"mixture_loss": 1.5 + r} for r in (1, 2, 4, 8) for s in range(3)}
    table = forgetting_correlations(Runs(experiment(tmp_path, rng, scores=scores)))
    lora = table[(table.methods == "LoRA") & (table.y == "forgetting")].set_index("x")
    assert lora.spearman["rank"] == pytest.approx(1.0)
    assert lora.conditions["rank"] == 4  # not 12: seeds are no conditions
    assert lora.p["rank"] == pytest.approx(2 / 24)
    assert (table.p_adjusted.dropna() >= table.p.dropna()).all()


def forgotten(rng, conditions=6, seeds=3):
    """Runs whose norm and forgetting depend on the condition alone, each by itself."""
    rows = [
        {"task": "sql", "method": "LoRA", "targets": "q,v", "rank": rank, "seed": seed}
        for rank in range(1, conditions + 1)
        for seed in range(seeds)
    ]
    drawn = {
        name: np.repeat(rng.normal(size=conditions), seeds) + rng.normal(size=len(rows)) / 100
        for name in ("relative_norm", "intruders", "forgetting")
    }
    return pd.DataFrame(rows).assign(**drawn)


def test_seeds_of_a_condition_are_no_evidence():
    rng = np.random.default_rng(0)
    p = pd.concat([correlated(forgotten(rng)) for _ in range(25)]).p
    assert len(p) == 200
    assert (p < 0.05).mean() < 0.15


def test_where_alpha_is_the_rank_both_rules_have_the_plain_run(tmp_path, rng):
    index = experiment(tmp_path, rng, ranks=(2, 8), seeds=(0, 1))
    held = row("sql-qv-r2-s0-alpha8", tmp_path / "sql-qv-r2-s0", rank=2, alpha=8.0)
    runs = Runs(pd.concat([index, pd.DataFrame([held])], ignore_index=True))
    table = tables.alpha_table(runs)
    assert table["rank"].tolist() == [2, 2, 8, 8]
    assert table.rule.tolist() == ["alpha fixed", "alpha/r fixed"] * 2
    assert table.runs.tolist() == [1] * 4  # of the one seed with α held
    assert table.loss[2] == table.loss[3]


def test_a_module_without_k_directions_is_in_no_column():
    names = ["norm_update", "projection_update", "norm_weight", "projection_weight"]
    rows = [[4.0, 2.0, 9.0, 3.0], [1.0, math.nan, 7.0, 2.0], [1.0, math.nan, 1.0, 1.0]]
    table = pd.DataFrame(rows, columns=names).assign(kind=["q", "q", "v"], projection_random=1.0)
    means = update_tables.of_layers(table).set_index("kind")
    assert means.loc["q", [*names, "excess", "left_out"]].tolist() == [4, 2, 9, 3, 2, 1]
    assert means.loc["v", [*names, "excess"]].isna().all()
    assert means.left_out["v"] == 1


def test_one_seed_has_no_bar():
    table = pd.DataFrame(
        {"series": "LoRA", "trained_parameters": [1, 2], "token_accuracy": 0.5,
         "token_accuracy_sd": [math.nan, 0.1]}
    )  # fmt: skip
    bars = plot_scores(table, ax=Figure().add_subplot()).containers[0][2][0]
    assert [len(segment) for segment in bars.get_segments()] == [0, 2]


def test_figures_have_their_panels(runs):
    drawn = {name: make(runs) for name, make in FIGURES.items()}
    titles = {
        name: [ax.get_title() for ax in one.figure.axes if ax.get_title()]
        for name, one in drawn.items()
    }
    assert titles["figure3"] == [
        "layer 0: q", "layer 0: v", "layer 0: q, j ≤ i", "layer 0: v, j ≤ i",
    ]  # fmt: skip
    assert titles["figure4"] == ["layer 0: q", "layer 0: v", "random Gaussian"]
    assert len(titles["figure6"]) == 4 * LAYERS
    assert titles["figure7"] == [f"layer {n}: {kind}" for n in range(LAYERS) for kind in "qv"]
    assert titles["figure8"] == ["r = 2", "r = 4", "r = 8", "random"]
    assert titles["figure2"] == ["sql"]
    for one in drawn.values():
        assert len(one.table)
    assert drawn["figure3"].table.columns.tolist()[:5] == ["layer", "kind", "i", "chance", "j1"]
    # The planted top direction is the first cell.
    assert np.allclose(drawn["figure3"].table.query("i == 1").j1, 1.0)


def test_figures_are_the_same_bytes_again(runs):
    one, other = (figure_bytes(FIGURES["figure3"](runs).figure) for _ in range(2))
    assert one == other


def test_without_runs_figures_say_so(tmp_path, rng):
    runs = Runs(experiment(tmp_path, rng, ranks=(2,), seeds=(0,)))
    for name in ("figure3", "figure4", "figure6", "figure7"):
        drawn = FIGURES[name](runs)
        assert drawn.table.empty
        assert "not trained" in drawn.figure.axes[0].texts[0].get_text()
