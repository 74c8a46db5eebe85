"""ΔW against W, from files to figures, against dense NumPy and plants."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from oracles import gaussian, peft_tensors, with_spectrum, write_peft
from safetensors.torch import save_file

import rankscope as rs
from rankscope.cli import cli
from rankscope.errors import RankscopeError, SourceError, UpdateError

NAME = "layers.0.q_proj"
DESIGNED = (
    "module layer kind k norm_weight norm_update projection_update projection_weight"
    " projection_random amplification excess z"
)


def pair(weight, update):
    """A base and a tuned state dict of one module."""
    return {f"{NAME}.weight": weight}, {f"{NAME}.weight": weight + update}


def measured(weight, update, **options):
    base, tuned = pair(weight, update)
    return rs.amplification(tuned, base=base, **options).table


def adapter(up, down):
    return {f"{NAME}.lora_A.weight": down, f"{NAME}.lora_B.weight": up}


def run(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="rankscope")


@pytest.mark.parametrize("factored", [False, True])
def test_every_number_against_dense_numpy(rng, factored):
    weight, up, down = (gaussian(*s, rng=rng) for s in ((14, 10), (14, 3), (3, 10)))
    dense = up @ down
    base, tuned = pair(weight, dense)
    source = rs.open_updates(adapter(up, down), base, alpha=3) if factored else tuned
    table = rs.amplification(source, base=None if factored else base, k=[1, 2, 3]).table
    u, s, vt = np.linalg.svd(dense.numpy())
    uw, sw, vwt = np.linalg.svd(weight.numpy())
    w = weight.numpy()
    for row in table.itertuples():
        k = row.k
        projected = np.linalg.norm(u[:, :k].T @ w @ vt[:k].T)
        assert row.projection_update == pytest.approx(projected, rel=1e-9)
        assert row.projection_weight == pytest.approx(np.linalg.norm(sw[:k]))
        assert row.projection_random == pytest.approx(k * np.linalg.norm(w) / math.sqrt(140))
        assert row.amplification == pytest.approx(np.linalg.norm(dense) / projected)
        assert row.excess == pytest.approx(row.projection_update / row.projection_random)
        assert row.amplification_random == pytest.approx(row.amplification * row.excess)
        left, right = np.linalg.norm(u[:, :k].T @ w), np.linalg.norm(w @ vt[:k].T)
        assert row.left_energy == pytest.approx((left / np.linalg.norm(w)) ** 2)
        assert row.right_energy == pytest.approx((right / np.linalg.norm(w)) ** 2)
        assert (row.rows, row.columns) == (14, 10)
        assert (row.left_chance, row.right_chance) == pytest.approx((k / 14, k / 10))
        cosines = [u[:, n] @ w @ vt[n] for n in range(k)]
        np.testing.assert_allclose(row.factors, s[:k] / np.abs(cosines), rtol=1e-8)
    first = table.iloc[0]
    middle = (uw.T @ dense.numpy() @ vwt.T)[:10] ** 2 / np.linalg.norm(dense) ** 2
    for at, k in enumerate(first.profile_k):
        assert first.profile_top[at] == pytest.approx(middle[:k, :k].sum())
        assert first.profile_bottom[at] == pytest.approx(middle[10 - k :, 10 - k :].sum())
    for side, ours, theirs in (("right", vt.T, vwt.T), ("left", u, uw)):
        for at, i in enumerate(first.alignment_i):
            for j in (1, 2, 3):
                phi = np.linalg.norm(theirs[:, :i].T @ ours[:, :j]) ** 2 / min(i, j)
                assert first[f"alignment_{side}"][at][j - 1] == pytest.approx(phi)


def test_planted_amplification_comes_back_exactly(rng):
    weight = with_spectrum([8.0, 6, 5, 3, 2, 1], 12, 9, rng)
    u, s, vt = torch.linalg.svd(weight)
    planted, factors = [1, 3, 5], torch.tensor([20.0, 10, 5], dtype=torch.float64)
    update = (u[:, planted] * (factors * s[planted])) @ vt[planted]
    row = measured(weight, update, k=3).iloc[0]
    np.testing.assert_allclose(row.factors, [20, 10, 5], rtol=1e-9)
    expected = torch.linalg.vector_norm(factors * s[planted]) / torch.linalg.vector_norm(
        s[planted]
    )
    assert row.amplification == pytest.approx(expected.item(), rel=1e-9)


def test_an_update_that_scales_the_weight(rng):
    weight = gaussian(9, 6, rng=rng)
    row = measured(weight, 0.25 * weight, k=6).iloc[0]
    assert row.amplification == pytest.approx(0.25)
    assert row.excess == pytest.approx(math.sqrt(54) / 6)
    assert (row.reweighting, row.rewiring, row.new) == pytest.approx((1, 0, 0), abs=1e-9)


def test_an_update_on_the_weakest_directions(rng):
    weight = with_spectrum([8.0, 6, 5, 3, 2, 1], 12, 9, rng)
    u, _, vt = torch.linalg.svd(weight)
    update = 7 * (u[:, 4:6] * torch.tensor([2.0, 1])) @ vt[4:6]
    row = measured(weight, update, k=2).iloc[0]
    assert row.amplification == pytest.approx(7 * math.sqrt(5) / math.sqrt(5))
    bottom = dict(zip(row.profile_k, row.profile_bottom, strict=True))
    assert bottom[9 - 4] == pytest.approx(1)  # of nine directions, three have no value


def test_an_update_in_the_null_space_amplifies_without_bound():
    weight, update = torch.zeros(4, 4).double(), torch.zeros(4, 4).double()
    weight[0, 0], update[3, 3] = 2.0, 1.0
    row = measured(weight, update, k=1).iloc[0]
    assert (row.projection_update, row.amplification, row.excess) == (0, math.inf, 0)


def test_the_papers_random_column():
    """‖Wq‖ = 61.95 at d = 12288 gives 0.02 and 0.33; here at d = 96 with the same formula."""
    weight = torch.eye(96).double() * 61.95 / math.sqrt(96)
    update = torch.diag(torch.linspace(2, 1, 96).double())
    table = measured(weight, update, k=[4, 64])
    assert table.norm_weight.tolist() == pytest.approx([61.95] * 2)
    scaled = table.projection_random * 96 / 12288
    assert scaled.tolist() == pytest.approx([0.02017, 0.3227], abs=5e-5)
    ratio = table.projection_drawn / table.projection_random
    assert ratio.tolist() == pytest.approx([1, 1], abs=0.15)


def test_k_above_the_rank_is_undefined_and_said(rng):
    up, down = gaussian(12, 2, rng=rng), gaussian(2, 9, rng=rng)
    base = {f"{NAME}.weight": gaussian(12, 9, rng=rng)}
    result = rs.amplification(adapter(up, down), base=base, k=[2, 3], alpha=2)
    below, above = result.table.itertuples()
    assert np.isfinite(below.amplification)
    assert np.isnan(above.amplification)
    assert np.isfinite(above.projection_weight)
    assert any("1 rows are undefined" in note and "(3)" in note for note in result.notes)
    assert result.to_dict()["rows"][1]["projection_update"] is None


def test_a_zero_update(rng):
    base = {f"{NAME}.weight": gaussian(12, 9, rng=rng)}
    result = rs.amplification(
        adapter(torch.zeros(12, 2), gaussian(2, 9, rng=rng)), base=base, k=1, alpha=2
    )
    row = result.table.iloc[0]
    assert row.norm_update == 0
    assert np.isnan(row.amplification)
    json.dumps(result.to_dict(), allow_nan=False)
    assert "nothing is defined" in result.plot().axes[0].texts[0].get_text()


def test_no_base_and_a_k_that_asks_for_nothing(rng):
    source = adapter(gaussian(12, 2, rng=rng), gaussian(2, 9, rng=rng))
    with pytest.raises(SourceError, match="compares ΔW with the base"):
        rs.amplification(source)
    base = {f"{NAME}.weight": gaussian(12, 9, rng=rng)}
    for k in (0, [], [4, -1]):
        with pytest.raises(UpdateError, match="no direction was asked for"):
            rs.amplification(source, base=base, k=k)


@pytest.fixture
def files(tmp_path, rng):
    modules = [f"layers.{n}.{kind}_proj" for n in range(2) for kind in "qv"]
    write_peft(tmp_path / "adapter", peft_tensors(modules, 4, rng), r=4)
    save_file(
        {f"{name}.weight": gaussian(12, 8, rng=rng) for name in modules},
        tmp_path / "base.safetensors",
    )
    return tmp_path


def test_command_json(files):
    base = files / "base.safetensors"
    result = run("amplification", files / "adapter", "--base", base, "-k", 2, "-k", 4, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["schema"] == "rankscope.amplification/1"
    assert [(r["module"], r["k"]) for r in content["rows"][:3]] == [
        ("layers.0.q_proj", 2),
        ("layers.0.q_proj", 4),
        ("layers.0.v_proj", 2),
    ]
    assert set(content["rows"][0]) >= set(DESIGNED.split())


def test_curves_are_written_once_and_never_into_csv(files):
    result = rs.amplification(files / "adapter", base=files / "base.safetensors", k=[2, 4])
    content = result.to_dict()
    modules = list(dict.fromkeys(result.table.module))
    assert [curve["module"] for curve in content["curves"]] == modules
    assert len(content["rows"]) == 2 * len(modules)
    first = result.table.iloc[0]
    for name in ("profile_k", "profile_top", "alignment_i", "alignment_right"):
        np.testing.assert_array_equal(content["curves"][0][name], first[name])
        assert name not in content["rows"][0]
    result.save(files / "table.csv")
    rows = pd.read_csv(files / "table.csv")
    assert rows.select_dtypes("number").columns.size == rows.columns.size - 2  # module, kind
    pytest.importorskip("pyarrow")
    result.save(files / "table.parquet")
    np.testing.assert_allclose(pd.read_parquet(files / "table.parquet").excess, rows.excess)


def test_modules_that_the_base_lacks_or_has_in_another_shape(files, rng):
    base = {
        "layers.0.q_proj.weight": gaussian(12, 8, rng=rng),
        "layers.0.v_proj.weight": gaussian(12, 7, rng=rng),
    }
    save_file(base, files / "part.safetensors")
    out = files / "out.json"
    result = run(
        "amplification", files / "adapter", "--base", files / "part.safetensors", "-o", out
    )
    assert result.exit_code == 3, result.output
    content = json.loads(out.read_text())
    assert [row["module"] for row in content["rows"]] == ["layers.0.q_proj"]
    assert len(content["failures"]) == 3
    assert "Traceback" not in result.output


def test_command_without_a_base(files):
    result = run("amplification", files / "adapter")
    assert result.exit_code == 1
    assert "--base" in result.output
    assert run("amplification", files / "adapter", "-k", 0).exit_code == 2


# Figures -------------------------------------------------------------------------------------


@pytest.fixture
def result(files):
    return rs.amplification(files / "adapter", base=files / "base.safetensors", k=[1, 2, 4])


def test_table_7_as_a_figure(result):
    rows = result.table[result.table.k == 2]
    ax = rs.plot_amplification(result.table, k=2, ax=Figure().add_subplot())
    assert ax.get_yscale() == "log"
    marked = [line for line in ax.lines if line.get_marker() not in ("None", "")]
    drawn = np.concatenate([line.get_ydata() for line in marked])
    np.testing.assert_allclose(np.sort(drawn), np.sort(rows.projection_update))
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    own = np.concatenate([line.get_ydata() for line in dashed])
    np.testing.assert_allclose(np.sort(own), np.sort(rows.projection_weight))
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(rows.projection_random.min() * 0.97)
    assert [t.get_text() for t in ax.get_legend().get_texts()][-1] == "random"
    with pytest.raises(RankscopeError, match="several numbers"):
        rs.plot_amplification(result.table, ax=Figure().add_subplot())


@pytest.mark.parametrize(("side", "d"), [("right", 8), ("left", 12)])
def test_figure_8_is_the_ratio_to_chance(result, side, d):
    one = result.table[result.table.module == NAME]
    ax = rs.plot_alignment(one, side=side, ax=Figure().add_subplot())
    mesh = next(c for c in ax.collections if isinstance(c, QuadMesh))
    grid = one[f"alignment_{side}"].iloc[0]
    i = one.alignment_i.iloc[0]
    chance = np.maximum(np.array(i)[:, None], np.arange(1, grid.shape[1] + 1)) / d
    np.testing.assert_allclose(np.ma.filled(mesh.get_array(), np.nan), np.log2(grid / chance))
    assert mesh.get_clim() == (-2, 2)
    low, high = ax.get_ylim()
    assert low > high  # i points down


def test_profile_beside_chance(result):
    one = result.table[result.table.module == NAME]
    ax = rs.plot_profile(one, ax=Figure().add_subplot())
    chance, top, bottom = ax.lines
    k = np.array(one.profile_k.iloc[0])
    np.testing.assert_allclose(chance.get_ydata(), k**2 / 96)
    np.testing.assert_allclose(top.get_ydata(), one.profile_top.iloc[0])
    np.testing.assert_allclose(bottom.get_ydata(), one.profile_bottom.iloc[0])


def test_the_whole_page(result, tmp_path):
    figure = result.plot()
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:4] == ["k = 1", "k = 2", "k = 4", "share of ‖ΔW‖²"]
    assert "q · 2 modules" in titles
    limits = {ax.get_ylim() for ax in figure.axes[:3]}
    assert len(limits) == 1
    path = tmp_path / "figure.svg"
    result.save(path)
    assert "share of ‖ΔW‖²" in path.read_text()


def test_tables_that_cannot_be_drawn(result):
    with pytest.raises(RankscopeError, match="lacks columns") as caught:
        rs.figure_amplification(result.table.drop(columns="projection_update"))
    assert "rankscope.amplification" in caught.value.fix
    assert rs.figure_amplification(result.table.iloc[:0]).axes[0].texts
    mixed = pd.concat(
        [result.table, result.table.assign(module="x", rows=30, alignment_i=[[1]] * 12)]
    )
    assert rs.figure_amplification(mixed).axes
