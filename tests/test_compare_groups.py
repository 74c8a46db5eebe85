"""Groups and series of sources: tables, files and figures, against plants and plain NumPy."""

import json
import math
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure
from oracles import gaussian, haar, peft_tensors, write_peft

import rankscope as rs
from rankscope.cli import cli
from rankscope.errors import RankscopeError, UpdateError
from rankscope.plots import plot_groups

MODULES = [f"layers.{n}.self_attn.{kind}_proj" for n in range(3) for kind in "qv"]


def near(left, right, rng, share=0.5):
    """Return an adapter whose every module has the given directions, and as strong noise."""
    tensors = {}
    for module in MODULES:
        up = left + share * gaussian(*left.shape, rng=rng) / math.sqrt(len(left))
        down = right + share * gaussian(*right.shape, rng=rng) / math.sqrt(len(right))
        tensors |= {f"{module}.lora_A.weight": down.T, f"{module}.lora_B.weight": up}
    return rs.open_updates(tensors, alpha=left.shape[1])


def tensors_of(updates):
    """Return what `near` was given, at scale 1."""
    return {
        f"{name}.lora_{letter}.weight": factor
        for name, update in updates.items()
        for letter, factor in (("B", update.up), ("A", update.down))
    }


@pytest.fixture
def runs(rng):
    """Two tasks of three seeds each."""
    found = {}
    for task in "xy":
        left, right = haar(30, 2, rng), haar(24, 2, rng)
        found |= {f"{task}{seed}": near(left, right, rng) for seed in range(3)}
    return found


GROUPS = {"x": ["x0", "x1", "x2"], "y": ["y0", "y1", "y2"]}


def test_groups_against_the_pairs(runs):
    result = rs.compare(runs, measures=["phi", "containment", "geodesic"], groups=GROUPS)
    groups = result.groups.set_index(["measure", "side", "a", "b"])
    pairs = result.table[result.table.side == "left"]
    for name, members in GROUPS.items():
        inside = pairs[pairs.a.isin(members) & pairs.b.isin(members)]
        row = groups.loc[("phi", "left", name, name)]
        assert row["mean"] == pytest.approx(inside.phi.mean())
        assert (row.pairs, row.modules) == (3, 6)
        assert row.chance == pytest.approx(2 / 30)
        each = [one.phi.mean() for _, one in inside.groupby(["a", "b"])]
        assert row.sd == pytest.approx(np.std(each, ddof=1))
        assert row.seeds_low <= row["mean"] <= row.seeds_high
        assert row.modules_low <= row["mean"] <= row.modules_high
        assert row.isna().p_shuffled
    between = pairs[pairs.a.isin(GROUPS["x"]) & pairs.b.isin(GROUPS["y"])]
    row = groups.loc[("phi", "left", "x", "y")]
    assert row["mean"] == pytest.approx(between.phi.mean())
    assert (row.pairs, row.arrangements) == (9, 20)
    # Two tasks: of twenty ways to deal six runs, the true one and its mirror part them best.
    assert row.p_shuffled == pytest.approx(2 / 20)
    assert groups.loc[("geodesic", "left", "x", "y")].p_shuffled == pytest.approx(2 / 20)
    for way in (("x", "y"), ("y", "x")):
        ends = "a" if way == ("x", "y") else "b"
        seen = groups.loc[("containment", "left", *way)]
        assert seen["mean"] == pytest.approx(between[f"containment_{ends}"].mean())
        assert seen.chance == pytest.approx(2 / 30)


def test_groups_of_other_ranks_are_not_shuffled(runs, rng):
    runs |= {f"wide{n}": near(haar(30, 4, rng), haar(24, 4, rng), rng) for n in range(2)}
    result = rs.compare(runs, groups={"x": GROUPS["x"], "wide": ["wide0", "wide1"]})
    apart = result.groups[result.groups.a != result.groups.b].set_index("measure")
    assert apart.loc["phi"].p_shuffled.isna().all()
    # What a cosine is by chance does not depend on the rank.
    assert apart.loc["cosine"].p_shuffled.notna().all()
    (note,) = (note for note in result.notes if "p_shuffled" in note)
    assert note.startswith("groups x and wide have other numbers of directions")
    alone = rs.compare(runs, measures=["cosine"], groups={"x": ["x0", "x1"], "wide": ["wide0"]})
    assert not any("p_shuffled" in note for note in alone.notes)


def test_groups_are_shuffled_in_the_modules_that_all_of_them_update(runs, rng):
    common = rs.compare(runs, measures=["phi"], groups=GROUPS).groups.p_shuffled
    further = {name: haar(24, 2, rng) for name in ("a", "b")}
    for name in GROUPS["y"]:  # alike in a module that the other group does not have
        extra = {"more.o_proj.lora_A.weight": further["a"].T}
        extra |= {"more.o_proj.lora_B.weight": further["b"]}
        runs[name] = rs.open_updates(tensors_of(runs[name]) | extra, alpha=2)
    result = rs.compare(runs, measures=["phi"], groups=GROUPS)
    np.testing.assert_array_equal(result.groups.p_shuffled, common)
    assert any("p_shuffled is of the 6 of 7" in note for note in result.notes)


def test_a_group_of_one_and_of_zero_updates(runs):
    up = runs["x0"]
    nothing = rs.open_updates(
        {f"{m}.lora_{x}.weight": t for m in MODULES
         for x, t in (("A", torch.zeros(2, 24)), ("B", torch.zeros(30, 2)))}, alpha=2
    )  # fmt: skip
    result = rs.compare({"one": up, "zero": nothing}, groups={"a": ["one"], "b": ["zero"]})
    assert result.groups[result.groups.measure == "phi"]["mean"].isna().all()
    assert result.groups.p_shuffled.isna().all()
    json.dumps(result.to_dict(), allow_nan=False)
    sizes = result.updates[result.updates.name == "zero"]
    assert (sizes.norm == 0).all()
    assert sizes.stable_rank.isna().all()
    assert result.plot().axes


@pytest.mark.parametrize(
    ("groups", "got"),
    [
        ({"x": ["nobody"]}, "'nobody', which is none of them"),
        ({"x": ["x0", "x1"], "y": ["x0"]}, "'x0' twice"),
        ({"x": []}, "a group without a source"),
    ],
)
def test_groups_that_cannot_be(runs, groups, got):
    with pytest.raises(UpdateError, match="cannot be made of the sources") as caught:
        rs.compare(runs, groups=groups)
    assert caught.value.got == got


def test_sizes_are_those_of_each_update(runs):
    result = rs.compare(runs, k=1)
    assert len(result.updates) == 6 * len(MODULES)
    for row in result.updates.itertuples():
        update = runs[row.name][row.module]
        s = np.linalg.svd(update.dense().numpy(), compute_uv=False)
        assert row.directions == 1
        assert (row.norm, row.spectral) == pytest.approx((np.linalg.norm(s), s[0]))
        assert row.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2)
        # With one direction of two it is known only where that one is enough, or both are.
        assert pd.isna(row.energy_rank_90) or row.energy_rank_90 == 1 + (
            s[0] ** 2 < 0.9 * (s**2).sum()
        )


def test_a_series_against_the_pairs(runs):
    result = rs.compare(runs, series=True)
    series = result.series[result.series.side == "right"]
    assert series.name.tolist() == list(runs)
    assert series.step.tolist() == [1, 2, 3, 4, 5, 6]
    square = result.matrix("phi", "right").to_numpy()
    np.testing.assert_allclose(series.phi_previous[1:], np.diag(square, 1))
    np.testing.assert_allclose(series.phi_last[:-1], square[:-1, -1])
    assert math.isnan(series.phi_previous.iloc[0])
    assert math.isnan(series.phi_last.iloc[-1])
    norms = [math.sqrt(sum(update.norm() ** 2 for update in one)) for one in runs.values()]
    np.testing.assert_allclose(series.norm, norms)
    titles = [ax.get_title() for ax in result.plot().axes]
    assert titles[:2] == ["input side (right)", "output side (left)"]
    labels = [ax.get_ylabel() for ax in result.plot().axes]
    assert labels[2:] == ["‖ΔW‖", "stable rank"]
    assert len(rs.compare(runs).series) == 0


def test_a_mean_rank_is_undefined_where_one_modules_is(rng):
    weights = {f"layers.{n}.q_proj.weight": gaussian(150, 150, rng=rng) for n in range(2)}
    steps = {}
    for step, full in (("one", 0), ("two", 1)):
        low = gaussian(150, 2, rng=rng) @ gaussian(2, 150, rng=rng)
        steps[step] = {
            name: weight + (gaussian(150, 150, rng=rng) if n < full else low)
            for n, (name, weight) in enumerate(weights.items())
        }
    ranks = rs.compare(steps, base=weights, series=True).series.query("side == 'left'")
    assert ranks.energy_rank_90.tolist()[0] == 2
    assert math.isnan(ranks.energy_rank_90.tolist()[1])  # 64 directions do not hold 90 %


def test_means_and_intervals_are_drawn(runs):
    groups = rs.compare(runs, groups=GROUPS).groups
    ax = plot_groups(groups, side="left", ax=Figure().add_subplot())
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["within x", "within y", "x – y"]
    rows = groups[(groups.measure == "phi") & (groups.side == "left")].set_index(["a", "b"])
    means = [line.get_xdata()[0] for line in ax.lines]
    order = [("x", "x"), ("y", "y"), ("x", "y")]
    assert means == pytest.approx([rows.loc[pair]["mean"] for pair in order])
    assert [text.get_text() for text in ax.texts] == ["p = 0.1"]
    low, high = ax.get_xlim()
    assert low <= 0
    assert max(*means, rows.modules_high.max()) <= high < 1.3 * rows.modules_high.max()
    contained = plot_groups(groups, measure="containment", ax=Figure().add_subplot())
    assert [label.get_text() for label in contained.get_yticklabels()][2:] == ["x in y", "y in x"]
    with pytest.raises(RankscopeError, match="lacks columns") as caught:
        plot_groups(groups.drop(columns="seeds_low"))
    assert "rankscope.compare" in caught.value.fix
    titles = [ax.get_title() for ax in rs.compare(runs, groups=GROUPS).plot().axes]
    assert "groups, output side (left)" in titles


# Mixed sources -------------------------------------------------------------------------------


def test_a_fused_source_among_split_ones(rng):
    front, width = "model.layers.0.mlp", 12
    down, up = gaussian(3, width, rng=rng), gaussian(2 * width, 3, rng=rng)
    fused = {
        f"{front}.gate_up_proj.lora_A.weight": down,
        f"{front}.gate_up_proj.lora_B.weight": up,
    }
    split, other = {}, {}
    for name, rows in zip(("gate", "up"), up.chunk(2), strict=True):
        split |= {
            f"{front}.{name}_proj.lora_A.weight": down,
            f"{front}.{name}_proj.lora_B.weight": rows,
        }
        other |= {
            f"{front}.{name}_proj.lora_A.weight": gaussian(3, width, rng=rng),
            f"{front}.{name}_proj.lora_B.weight": gaussian(width, 3, rng=rng),
        }
    sets = {"fused": fused, "split": split, "other": other}
    result = rs.compare({name: rs.open_updates(one, alpha=3) for name, one in sets.items()})
    assert result.unmatched == {"fused": (), "split": (), "other": ()}
    assert len(result.table) == 2 * 2 * 3
    same = result.table[result.table.b == "split"]
    assert same.phi.tolist() == pytest.approx([1] * 4)
    assert same.cosine.tolist() == pytest.approx([1] * 4)
    # Against the third one the fused source says what the split one says.
    apart = result.table[result.table.b == "other"].groupby("a").phi.apply(list)
    assert apart["fused"] == pytest.approx(apart["split"])
    assert any("fused" in note for note in result.notes)


@pytest.mark.parametrize("k", [None, 2])
def test_the_full_fine_tune_of_a_task_in_an_adapters_span(rng, k):
    base, tuned = gaussian(20, 16, rng=rng), 0.1 * gaussian(20, 16, rng=rng)
    u, s, v = torch.linalg.svd(tuned, full_matrices=False)
    near = {"h.0.q.lora_A.weight": v[:4], "h.0.q.lora_B.weight": u[:, :4] * s[:4]}
    far = {"h.0.q.lora_A.weight": gaussian(4, 16, rng=rng),
           "h.0.q.lora_B.weight": gaussian(20, 4, rng=rng)}  # fmt: skip
    full = rs.open_updates({"h.0.q.weight": base + tuned}, {"h.0.q.weight": base})
    sets = {"near": rs.open_updates(near, alpha=4), "far": rs.open_updates(far, alpha=4)}
    table = rs.compare({**sets, "full": full}, k=k).table
    rows = table[table.b == "full"].set_index(["a", "side"])
    count = k or 4
    for side, d in (("right", 16), ("left", 20)):
        row = rows.loc[("near", side)]
        # Its own leading directions: the most that so many can hold, far above k/d.
        best = float(s[:count].square().sum() / s.square().sum())
        assert row.containment_b == pytest.approx(best)
        assert row.chance_b == pytest.approx(count / d)
        assert row.containment_b > row.chance_b
        # Of the adapter the full fine-tune's first directions hold as much as they are.
        held = float(s[:count].square().sum() / s[:4].square().sum())
        assert row.containment_a == pytest.approx(held)
        update = sets["far"]["h.0.q"].dense()
        left, _, right = np.linalg.svd(update.numpy())
        basis = right[:count].T if side == "right" else left[:, :count]
        seen = tuned.numpy() @ basis if side == "right" else tuned.numpy().T @ basis
        share = np.linalg.norm(seen) ** 2 / float(s.square().sum())
        assert rows.loc[("far", side)].containment_b == pytest.approx(share)


# The command ---------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="rankscope")


@pytest.fixture
def folders(tmp_path, rng):
    names = [f"{task}{seed}" for task, seed in product("xy", range(2))]
    return [write_peft(tmp_path / name, peft_tensors(MODULES, 4, rng), r=4) for name in names]


def test_command_with_groups(folders):
    arguments = ["compare", *folders, "--group", "x=x0,x1", "--group", "y=y0, y1"]
    content = json.loads(run(*arguments, "--json").stdout)
    assert {(row["a"], row["b"]) for row in content["groups"]} == {
        *combinations("xy", 2), ("x", "x"), ("y", "y"), ("y", "x")}  # fmt: skip
    assert content["provenance"]["options"]["groups"] == {"x": ["x0", "x1"], "y": ["y0", "y1"]}
    assert len(content["updates"]) == 4 * len(MODULES)
    assert "series" not in content
    assert "p_shuffled" in run(*arguments).stdout


def test_command_with_a_series(folders, tmp_path):
    out = tmp_path / "out.csv"
    result = run("compare", *folders, "--series", "-o", out, "-o", tmp_path / "out.svg", "--json")
    assert result.exit_code == 0, result.output
    steps = pd.read_csv(out)
    assert steps.name.tolist() == ["x0", "x1", "y0", "y1"] * 2
    assert [row["step"] for row in json.loads(result.stdout)["series"]] == [1, 2, 3, 4] * 2
    assert "stable rank" in (tmp_path / "out.svg").read_text()


@pytest.mark.parametrize("group", ["x0,x1", "=x0", "x=x0 --group x=x1"])
def test_command_usage(folders, group):
    result = run("compare", *folders, "--group", *group.split())
    assert result.exit_code == 2
    assert "give each group once" in result.output
    unknown = run("compare", *folders, "--group", "x=nobody")
    assert unknown.exit_code == 1
    assert "none of them" in unknown.output
