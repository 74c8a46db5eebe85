"""Many sources against each other, from files to figures, against dense NumPy and plants."""

import json
import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from oracles import gaussian, haar, peft_tensors, write_peft
from safetensors.torch import save_file

import rankscope as rs
from rankscope.cli import cli
from rankscope.errors import RankscopeError, SourceError, UpdateError

NAME = "layers.0.self_attn.q_proj"
DISTANCES = ["geodesic", "chordal", "projection", "martin"]


def adapter(up, down, module=NAME):
    return {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}


def opened(*factors, module=NAME):
    return rs.open_updates(adapter(*factors, module=module), alpha=len(factors[1]))


def drawn(rank, rng, m=14, n=10):
    return gaussian(m, rank, rng=rng), gaussian(rank, n, rng=rng)


def run(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="rankscope")


def dense_truth(one, other, side, k):
    """φ, cosine and both containments from whole matrices."""
    bases = []
    for matrix in (one, other):
        u, s, vt = np.linalg.svd(matrix)
        rank = min(int((s > 1e-10 * s[0]).sum()), k)
        bases.append((vt.T if side == "right" else u)[:, :rank])
    product = np.linalg.norm(bases[0].T @ bases[1]) ** 2 / min(b.shape[1] for b in bases)
    cosine = (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)
    seen = [
        np.linalg.norm(a @ b if side == "right" else a.T @ b) ** 2 / np.linalg.norm(a) ** 2
        for a, b in ((one, bases[1]), (other, bases[0]))
    ]
    return product, cosine, *seen


@pytest.mark.parametrize("k", [None, 2])
def test_adapters_and_a_full_fine_tune_against_dense_numpy(rng, k):
    base = {f"{NAME}.weight": gaussian(14, 10, rng=rng)}
    full = 0.1 * gaussian(14, 10, rng=rng)
    factors = [drawn(rank, rng) for rank in (3, 5)]
    sets = {f"r{len(down)}": opened(up, down) for up, down in factors}
    tuned = {f"{NAME}.weight": base[f"{NAME}.weight"] + full}
    sets["full"] = rs.open_updates(tuned, base)
    matrices = [(up @ down).numpy() for up, down in factors] + [full.numpy()]
    result = rs.compare(sets, k=k)
    assert len(result.table) == 6
    whole = dict(zip(sets, matrices, strict=True))
    sizes = dict(zip(sets, (min(k or r, r) for r in (3, 5, 10)), strict=True))
    for row in result.table.itertuples():
        truth = dense_truth(whole[row.a], whole[row.b], row.side, k or 64)
        seen = (row.phi, row.cosine, row.containment_a, row.containment_b)
        assert seen == pytest.approx(truth, rel=1e-8)
        assert (row.rank_a, row.rank_b) == (sizes[row.a], sizes[row.b])
        d = 10 if row.side == "right" else 14
        assert row.chance == pytest.approx(max(sizes[row.a], sizes[row.b]) / d)
        assert (row.chance_a, row.chance_b) == (sizes[row.b] / d, sizes[row.a] / d)


def test_every_distance_is_that_of_the_pair_alone(rng):
    from rankscope.linalg.angles import principal_angles
    from rankscope.measures.distances import DISTANCES as FUNCTIONS

    factors = {name: drawn(3, rng) for name in "abc"}
    sets = {name: opened(*pair) for name, pair in factors.items()}
    table = rs.compare(sets, measures=[*DISTANCES, "mean_cosine", "cka"]).table
    for row in table.itertuples():
        bases = [
            torch.linalg.qr(f[1].T if row.side == "right" else f[0])[0]
            for f in (factors[row.a], factors[row.b])
        ]
        angles = principal_angles(*bases)
        assert row.mean_cosine == pytest.approx(angles.cos().mean().item())
        for name in DISTANCES:
            assert getattr(row, name) == pytest.approx(FUNCTIONS[name](angles))
        one, other = ((f[0] @ f[1]).numpy() for f in (factors[row.a], factors[row.b]))
        if row.side == "right":
            one, other = one.T, other.T
        crossed = np.linalg.norm(one.T @ other) ** 2
        own = np.linalg.norm(one.T @ one) * np.linalg.norm(other.T @ other)
        assert row.cka == pytest.approx(crossed / own)


def test_the_same_source_twice(rng):
    up, down = drawn(3, rng, m=60, n=50)
    result = rs.compare({"one": opened(up, down), "again": opened(up, down)})
    for row in result.table.itertuples():
        assert (row.phi, row.cosine) == pytest.approx((1, 1), abs=1e-12)
        assert (row.containment_a, row.containment_b) == pytest.approx((1, 1))
        assert 0 <= row.p < 1e-3
        assert 0 <= row.p_adjusted < 1e-3
    assert result.shared.directions.tolist() == [3, 3]
    assert result.shared.interference.tolist() == pytest.approx([1, 1])
    for measure in DISTANCES:
        again = rs.compare(opened(up, down), opened(up, down), measures=[measure])
        assert again.matrix(measure).to_numpy() == pytest.approx(np.zeros((2, 2)), abs=1e-7)
    json.dumps(result.to_dict(), allow_nan=False)
    assert result.plot().axes


def test_what_orthogonal_and_nested_updates_share(rng):
    left, right = haar(14, 6, rng), haar(10, 6, rng)
    sets = {
        "one": opened(left[:, :2], right[:, :2].T),
        "wide": opened(left[:, :4], right[:, :4].T),
        "far": opened(left[:, 4:], right[:, 4:].T),
    }
    square = rs.compare(sets).matrix("containment")
    own = np.nan  # of a source in its own directions, which may be cut, nothing is said
    expected = [[own, 1, 0], [0.5, own, 0], [0, 0, own]]
    np.testing.assert_allclose(square.to_numpy(), expected, atol=1e-12)


def test_a_zero_update_is_undefined_and_no_error(rng):
    up, down = drawn(3, rng)
    result = rs.compare({"some": opened(up, down), "none": opened(0 * up, down)})
    assert result.table[["phi", "p", "cosine", "containment_b"]].isna().all(axis=None)
    assert result.table.rank_b.tolist() == [0, 0]
    assert result.to_dict()["rows"][0]["phi"] is None
    assert result.plot().axes


def test_names_of_another_library_are_matched_to_the_first_ones(rng):
    up, down = drawn(2, rng)
    module = "model.layers.3.self_attn.v_proj"
    names = {"here": module, "there": "blk.3.attn_v", "front": f"outer.{module}"}
    sets = {name: opened(up, down, module=other) for name, other in names.items()}
    result = rs.compare(sets)
    assert set(result.table.module) == {module}
    assert len(result.table) == 6
    assert any(note.startswith("there: ") and "llama.cpp" in note for note in result.notes)
    assert result.table.phi.to_numpy() == pytest.approx(np.ones(6))


def test_modules_that_the_first_source_lacks_are_compared_all_the_same(rng):
    def several(*modules):
        tensors = {}
        for module in modules:
            tensors |= adapter(*drawn(2, rng), module=module)
        return rs.open_updates(tensors, alpha=2)

    q, v, o = (f"layers.0.self_attn.{x}_proj" for x in "qvo")
    result = rs.compare({"first": several(q), "second": several(q, v), "third": several(v, o)})
    assert list(dict.fromkeys(result.table.module)) == [q, v]
    pairs = result.table[result.table.module == v]
    assert set(zip(pairs.a, pairs.b, strict=True)) == {("second", "third")}
    assert result.unmatched == {"first": (), "second": (), "third": (o,)}
    assert result.to_dict()["unmatched"]["third"] == [o]
    assert any(note.startswith("third: 1 modules that others share") for note in result.notes)


def test_rows_in_another_order_have_no_output_side(rng):
    factors = [drawn(2, rng) for _ in range(3)]
    sets = dict(zip("abc", (opened(*pair) for pair in factors), strict=True))
    turned = replace(sets["b"].sites[0], row_order="halves")
    sets["b"] = replace(sets["b"], sites=(turned,))
    result = rs.compare(sets)
    left = result.table[result.table.side == "left"]
    assert set(zip(left.a, left.b, strict=True)) == {("a", "c")}
    right = result.table[result.table.side == "right"].set_index(["a", "b"])
    assert right.cosine.isna().to_dict() == {
        ("a", "b"): True, ("a", "c"): False, ("b", "c"): True}  # fmt: skip
    truth = dense_truth(*((u @ d).numpy() for u, d in (factors[0], factors[2])), "left", 9)
    assert left.phi.item() == pytest.approx(truth[0])
    assert left.cosine.item() == pytest.approx(truth[1])
    assert result.shared.interference.isna().all()
    assert any("rotary order" in note for note in result.notes)


def test_chance_gives_what_chance_should(rng):
    sets = {f"{n}": opened(*drawn(2, rng, m=200, n=150)) for n in range(8)}
    table = rs.compare(sets).table
    assert len(table) == 2 * 28
    assert table.z.mean() == pytest.approx(0, abs=0.7)
    assert (table.p < 0.01).mean() < 0.1
    assert table.p_adjusted.to_numpy() == pytest.approx(table.p.to_numpy())  # one module


@pytest.mark.parametrize("sources", [[], ["one"]])
def test_fewer_than_two(sources, rng):
    with pytest.raises(UpdateError, match="nothing to compare"):
        rs.compare({name: opened(*drawn(2, rng)) for name in sources})


def test_what_cannot_be_compared(rng):
    one, other = (opened(*drawn(2, rng), module=f"{m}.weird") for m in ("left", "right"))
    with pytest.raises(SourceError, match="no module in common"):
        rs.compare(one, other)
    with pytest.raises(UpdateError, match="not known"):
        rs.compare(one, one, measures=["sameness"])
    with pytest.raises(UpdateError, match="no direction"):
        rs.compare(one, one, k=0)
    taller = opened(*drawn(2, rng, m=15), module="left.weird")
    with pytest.raises(UpdateError, match=r"could be measured|different shapes"):
        rs.compare(one, taller)


@pytest.mark.parametrize("count", [2, 5])
def test_matrix_is_the_mean_over_modules(count, rng):
    modules = [f"layers.{n}.q_proj" for n in range(3)]
    sets = {
        f"{n}": rs.open_updates(
            {k: v for m in modules for k, v in adapter(*drawn(2, rng), module=m).items()}, alpha=2
        )
        for n in range(count)
    }
    result = rs.compare(sets)
    square = result.matrix("cosine", "left")
    assert list(square) == list(sets)
    for a, b in combinations(sets, 2):
        rows = result.table.query("side == 'left' and a == @a and b == @b")
        assert square.loc[a, b] == square.loc[b, a] == pytest.approx(rows.cosine.mean())
    assert np.diag(square).tolist() == [1] * count
    figure = result.plot()
    drawn_meshes = [c for ax in figure.axes for c in ax.collections if isinstance(c, QuadMesh)]
    assert sum(mesh.get_array().shape == (count, count) for mesh in drawn_meshes) == 6


# The command ---------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, rng):
    modules = [f"layers.{n}.self_attn.{kind}_proj" for n in range(2) for kind in "qv"]
    for name in ("one", "two"):
        write_peft(tmp_path / name, peft_tensors(modules, 4, rng), r=4)
    base = {f"{name}.weight": gaussian(12, 8, rng=rng) for name in modules}
    save_file(base, tmp_path / "base.safetensors")
    tuned = {name: tensor + 0.1 * gaussian(12, 8, rng=rng) for name, tensor in base.items()}
    save_file(tuned, tmp_path / "full.safetensors")
    return tmp_path


def test_command_json_of_named_and_mixed_sources(files):
    result = run(
        "compare", f"mine={files / 'one'}", files / "two", f"full={files / 'full.safetensors'}",
        "--base", files / "base.safetensors", "--measure", "phi, cosine", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["schema"] == "rankscope.compare/1"
    assert content["names"] == ["mine", "two", "full"]
    assert len(content["rows"]) == 4 * 2 * 3
    assert {"module", "layer", "kind", "side", "a", "b", "phi", "p", "cosine"} <= set(
        content["rows"][0]
    )
    assert "containment_a" not in content["rows"][0]
    assert len(content["shared"]) == 4 * 2
    assert content["unmatched"] == {"mine": [], "two": [], "full": []}


def test_command_usage(files):
    same = run("compare", files / "one", f"one={files / 'two'}")
    assert same.exit_code == 2
    assert "two sources are named 'one'" in same.output
    assert run("compare").exit_code == 2
    alone = run("compare", files / "one")
    assert alone.exit_code == 1
    assert "nothing to compare" in alone.output
    unknown = run("compare", files / "one", files / "two", "--measure", "sameness")
    assert unknown.exit_code == 1
    assert "Traceback" not in unknown.output


def test_an_equals_sign_in_a_path_is_no_name(files, rng):
    folder = write_peft(files / "r=4", peft_tensors(["layers.0.self_attn.q_proj"], 4, rng), r=4)
    result = run("compare", folder, files / "one", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["names"] == ["r=4", "one"]


def test_modules_of_another_shape_are_listed(files, rng):
    modules = [f"layers.{n}.self_attn.{kind}_proj" for n in range(2) for kind in "qv"]
    tensors = peft_tensors(modules[:3], 4, rng) | peft_tensors(modules[3:], 4, rng, out=6)
    other = write_peft(files / "other", tensors, r=4)
    out = files / "out.json"
    result = run("compare", files / "one", other, "-o", out)
    assert result.exit_code == 3, result.output
    content = json.loads(out.read_text())
    assert {row["module"] for row in content["rows"]} == set(modules[:3])
    assert [failure["module"] for failure in content["failures"]] == modules[3:]


# Figures -------------------------------------------------------------------------------------


@pytest.fixture
def result(rng):
    left, right = haar(24, 9, rng), haar(20, 9, rng)
    near = {"a": [0, 1, 2], "far": [6, 7, 8], "b": [0, 1, 3], "c": [0, 1, 2]}
    modules = [f"layers.{n}.self_attn.{kind}_proj" for n in range(2) for kind in "qv"]
    sets = {
        name: rs.open_updates(
            {
                key: tensor
                for module in modules
                for key, tensor in adapter(left[:, at], right[:, at].T, module).items()
            },
            alpha=3,
        )
        for name, at in near.items()
    }
    return rs.compare(sets)


def mesh_of(ax):
    return next(c for c in ax.collections if isinstance(c, QuadMesh))


def test_what_is_alike_stands_together(result):
    square = result.matrix()
    ax = rs.plot_compare(square, chance=[0.15], ax=Figure().add_subplot())
    names = [label.get_text().split()[0] for label in ax.get_yticklabels()]
    assert sorted(names) == sorted(result.names)
    assert abs(names.index("a") - names.index("c")) == 1
    assert names.index("far") in (0, 3)
    drawn_values = np.ma.filled(mesh_of(ax).get_array(), np.nan)
    np.testing.assert_allclose(drawn_values, square.loc[names, names].to_numpy())
    assert mesh_of(ax).get_clim() == (0, 1)
    bar = ax.figure.axes[-1]
    mark = next(line for line in bar.lines if line.get_label() == "chance")
    assert mark.get_ydata() == pytest.approx([0.15])


def test_scales_by_the_meaning_of_the_measure(result):
    for measure, limits in (("cosine", (-1, 1)), ("containment", (0, 1))):
        ax = rs.plot_compare(result.matrix(measure), measure=measure, ax=Figure().add_subplot())
        assert mesh_of(ax).get_clim() == limits
    square = result.matrix() * 3
    ax = rs.plot_compare(square, measure="geodesic", ax=Figure().add_subplot())
    assert mesh_of(ax).get_clim() == (0, pytest.approx(3))


def test_the_whole_page(result, tmp_path):
    figure = result.plot()
    titles = [ax.get_title() for ax in figure.axes]
    assert titles.count("φ, all directions") == 2
    assert "shared directions, input side (right)" in titles
    path = tmp_path / "figure.svg"
    result.save(path)
    assert "containment" in path.read_text()


def test_shared_directions_by_layer(result):
    ax = rs.plot_shared(result.shared, side="left", ax=Figure().add_subplot())
    points = [line for line in ax.lines if line.get_linestyle() == "None"]
    assert [len(line.get_ydata()) for line in points] == [2, 2]
    assert ax.get_ylim()[0] == 0


def test_drift_along_a_series(result):
    ax = rs.plot_drift(result.table, names=result.names, ax=Figure().add_subplot())
    previous, last, chance = ax.lines
    np.testing.assert_allclose(previous.get_ydata(), [0, 0, 2 / 3], atol=1e-12)
    np.testing.assert_allclose(last.get_ydata(), [1, 0, 2 / 3], atol=1e-12)
    np.testing.assert_allclose(chance.get_ydata(), 3 / 20)
    titles = [a.get_title() for a in result.drift().axes]
    assert titles[:2] == ["input side (right)", "output side (left)"]


def test_long_names_stay_apart_and_on_one_line(result):
    long = {name: f"organisation/a-very-long-model-name-of-{name}-checkpoint" for name in "abc"}
    square = result.matrix().rename(index=long, columns=long)
    ax = rs.plot_compare(square, ax=Figure().add_subplot())
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert len(set(labels)) == 4
    assert all("\n" not in label and len(label) < 40 for label in labels)


def test_tables_that_cannot_be_drawn(result):
    with pytest.raises(RankscopeError, match="lacks columns") as caught:
        rs.plot_shared(result.shared.drop(columns="directions"))
    assert "rankscope.compare" in caught.value.fix
    with pytest.raises(RankscopeError, match="lacks columns"):
        rs.figure_drift(result.table.drop(columns="a"), names=result.names)
    unrelated = result.matrix()
    unrelated.iloc[0, 1] = unrelated.iloc[1, 0] = math.nan
    assert rs.plot_compare(unrelated, ax=Figure().add_subplot()).collections


@pytest.mark.parametrize("count", [2, 3, 4])
def test_equal_sources_interfere_by_one_and_orthogonal_ones_by_none(rng, count):
    up, down = drawn(3, rng)
    shared = rs.compare({str(n): opened(up, down) for n in range(count)}).shared
    assert shared.interference.tolist() == pytest.approx([1, 1])
    assert shared.directions.tolist() == [3, 3]
    left, right = haar(14, 6, rng), haar(10, 6, rng)
    apart = {str(n): opened(left[:, n : n + 1], right[:, n : n + 1].T) for n in range(count)}
    assert rs.compare(apart).shared.interference.tolist() == pytest.approx([0, 0], abs=1e-12)
