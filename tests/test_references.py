"""Floors, ceilings, other layers, starts and verdicts of a similarity, on planted subspaces."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from oracles import gaussian, haar, peft_tensors, write_peft
from scipy.linalg import subspace_angles

import rankscope as rs
from rankscope.cli import cli
from rankscope.errors import RankscopeError, SourceError, UpdateError

D = 128


def run(right, left, name="layers.0.q_proj"):
    """An adapter with these directions and well separated singular values."""
    s = 2.0 ** -torch.arange(right.shape[1], dtype=torch.float64)
    key = f"base_model.model.{name}"
    return {f"{key}.lora_A.weight": right.T.contiguous(), f"{key}.lora_B.weight": left * s}


@pytest.fixture
def basis(rng):
    return haar(D, 40, rng)


def sharing(basis, shared, start, left):
    """Four directions, the first `shared` of them common to all, the others from `start` on."""
    own = basis[:, start : start + 4 - shared]
    return run(torch.cat([basis[:, :shared], own], 1), left)


class TestFloorAndCeiling:
    def test_planted_levels_and_the_place_between_them(self, basis, rng):
        left = haar(D, 4, rng)
        a, b = sharing(basis, 2, 4, left), sharing(basis, 2, 8, left)
        floors = [sharing(basis, 1, 12, left), sharing(basis, 0, 16, left)]
        # A's third direction is its own: the ceiling has to have it to share three of four.
        ceiling = [run(torch.cat([basis[:, :2], basis[:, 4:5], basis[:, 20:21]], 1), left)]
        table = rs.similarity(a, b, floor=floors, ceiling=ceiling).table.set_index("side")
        right = table.loc["right"]
        assert right.reference_rank == 4
        assert right.phi_reference == pytest.approx(0.5)
        assert right.floor == pytest.approx(0.125)
        assert right.ceiling == pytest.approx(0.75)
        assert right.placed == pytest.approx((0.5 - 0.125) / (0.75 - 0.125))
        assert right.floor_error == pytest.approx(np.std([0.25, 0], ddof=1) / math.sqrt(2))
        assert right.ceiling_error == pytest.approx(right.chance_sd)
        # All share the output side: floor and ceiling are one level there.
        assert table.loc["left"].floor == pytest.approx(1)
        assert math.isnan(table.loc["left"].placed)
        assert "not told apart" in table.loc["left"].verdict
        assert "60% of the way up" in right.verdict

    def test_all_are_taken_at_the_fewest_directions(self, basis, rng):
        left = haar(D, 4, rng)
        a, b = run(basis[:, :4], left), run(basis[:, [4, 0, 1, 2]], left)
        two = run(basis[:, :2], left[:, :2])
        row = rs.similarity(a, b, ceiling=[two], side="right").table.iloc[0]
        assert (row.reference_rank, row.phi_full) == (2, pytest.approx(0.75))
        assert row.phi_reference == pytest.approx(row.phi[3, 1]) == pytest.approx(0.5)
        assert row.ceiling == pytest.approx(1)
        assert math.isnan(row.floor)

    def test_a_floor_alone(self, basis, rng):
        left = haar(D, 4, rng)
        a, b = sharing(basis, 2, 4, left), sharing(basis, 2, 8, left)
        one = rs.similarity(a, b, floor=[sharing(basis, 1, 12, left)], side="right").table
        assert "above the floor (φ 0.50 against 0.25)" in one.verdict[0]
        same = rs.similarity(a, b, floor=[b], side="right").table
        assert "no more than the floor" in same.verdict[0]

    def test_references_that_are_zero_or_lack_the_module_are_left_out(self, basis, rng):
        left = haar(D, 4, rng)
        a, b = sharing(basis, 2, 4, left), sharing(basis, 2, 8, left)
        zero = run(basis[:, :4], torch.zeros(D, 4, dtype=torch.float64))
        row = rs.similarity(a, b, floor=[zero]).table.iloc[0]
        assert math.isnan(row.floor)
        assert row.isna().reference_rank
        with pytest.raises(SourceError, match="no module in common"):
            rs.similarity(a, b, floor=[run(basis[:, :4], left, "layers.7.v_proj")])

    def test_a_reference_of_another_shape_is_told(self, basis, rng):
        left = haar(D, 4, rng)
        a = run(basis[:, :4], left)
        with pytest.raises(UpdateError, match="different shapes"):
            rs.similarity(a, a, floor=[run(haar(30, 4, rng), left)])

    def test_without_references_the_columns_are_undefined(self, basis, rng):
        a = run(basis[:, :4], haar(D, 4, rng))
        result = rs.similarity(a, a)
        row = result.to_dict()["rows"][0]
        assert {row[name] for name in ("floor", "ceiling", "placed", "shuffled_mean")} == {None}
        assert "placed" not in result.to_text()


class TestOtherLayers:
    def test_phi_of_the_other_layers(self, rng):
        modules = [f"layers.{n}.q_proj" for n in range(4)]
        a, b = (peft_tensors(modules, 2, rng, out=40, in_=30) for _ in range(2))
        result = rs.similarity(a, b, shuffle=True)
        sets = [rs.open_updates(tensors) for tensors in (a, b)]
        null = []
        for name in sets[0].names:
            u = rs.svd(sets[0][name]).right
            for other in sets[1].names:
                if other != name:
                    angles = subspace_angles(u.numpy(), rs.svd(sets[1][other]).right.numpy())
                    null.append(np.mean(np.cos(angles) ** 2))
        rows = result.table[result.table.side == "right"]
        assert sorted(np.concatenate(list(rows.shuffled))) == pytest.approx(sorted(null))
        assert set(rows.shuffled_mean.round(9)) == {round(np.mean(null), 9)}
        assert rows.shuffled_95.iloc[0] == pytest.approx(np.quantile(null, 0.95))
        for row in rows.itertuples():
            reached = sum(value >= row.phi_full for value in null)
            assert row.p_shuffled == pytest.approx((1 + reached) / (1 + len(null)))

    def test_at_most_eight_of_the_same_kind_and_the_same_draw(self, rng):
        modules = [f"layers.{n}.{kind}_proj" for n in range(12) for kind in "qv"]
        a, b = (peft_tensors(modules, 2, rng) for _ in range(2))
        first, again = (rs.similarity(a, b, shuffle=True, side="right").table for _ in range(2))
        assert [len(part) for part in first.shuffled] == [8] * 24
        for one, two in zip(first.shuffled, again.shuffled, strict=True):
            np.testing.assert_array_equal(one, two)

    def test_modules_without_a_layer_have_none(self, rng):
        result = rs.similarity(
            *(peft_tensors(["x.a", "x.b"], 2, rng) for _ in range(2)), shuffle=True
        )
        assert result.table.p_shuffled.isna().all()
        assert any("2 modules have no other layer" in note for note in result.notes)


class TestMeasures:
    def test_they_are_those_of_compare(self, rng):
        a, b = (peft_tensors(["layers.0.q"], r, rng, out=40, in_=30) for r in (3, 5))
        names = ["phi", "geodesic", "cka", "cosine", "containment", "mean_cosine"]
        mine = rs.similarity(a, b, measures=names).table
        theirs = rs.compare({"a": a, "b": b}, measures=names).table
        for name in ("geodesic", "cka", "cosine", "containment_a", "chance_b", "mean_cosine"):
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-12)
        assert "geodesic" not in rs.similarity(a, b).table

    def test_geodesic_against_scipy(self, rng):
        a, b = (peft_tensors(["layers.0.q"], 3, rng, out=40, in_=30) for _ in range(2))
        row = rs.similarity(a, b, measures=["geodesic"]).table.iloc[0]
        u, v = (rs.svd(next(iter(rs.open_updates(x)))).right.numpy() for x in (a, b))
        assert row.geodesic == pytest.approx(np.linalg.norm(subspace_angles(u, v)))

    @pytest.mark.parametrize("options", [{"measures": ["x"]}, {"vectors": "factor"}])
    def test_what_cannot_be_measured_is_told(self, options, rng):
        a = peft_tensors(["layers.0.q"], 3, rng)
        with pytest.raises(RankscopeError) as caught:
            rs.similarity(a, a, **{"measures": ["cka"], **options})
        assert len(str(caught.value).splitlines()) == 5


def lora(start, up, rng, name="layers.0.q_proj"):
    key = f"base_model.model.{name}"
    return {f"{key}.lora_A.weight": start, f"{key}.lora_B.weight": up}


class TestStarts:
    @pytest.fixture
    def starts(self, rng):
        return [(2 * torch.rand(8, 256, generator=rng) - 1) / 16 for _ in range(2)]

    def test_a_common_start_is_said_first(self, starts, rng):
        runs = [lora(starts[0], gaussian(64, 8, rng=rng).float(), rng) for _ in range(2)]
        result = rs.similarity(*runs)
        right, left = (row for row in result.table.itertuples())
        assert right.shared_init_suspected
        assert (right.init_residue_a, right.init_residue_b) == (1, 1)
        assert right.verdict.startswith("both started from the same numbers")
        assert left.shared_init_suspected is not True
        assert math.isnan(left.init_residue_a)
        assert any("started from the same" in note for note in result.notes)
        rows = result.to_dict()["rows"]
        assert (rows[0]["shared_init_suspected"], rows[1]["shared_init_suspected"]) == (True, None)

    def test_other_starts(self, starts, rng):
        a, b = (lora(start, gaussian(64, 8, rng=rng).float(), rng) for start in starts)
        row = rs.similarity(a, b).table.iloc[0]
        assert not row.shared_init_suspected
        assert "look like their random start" in row.verdict
        assert "no more than chance" in row.verdict

    def test_where_b_was_drawn_its_side_is_told(self, starts, rng):
        up = starts[0].T.contiguous()
        a = lora(gaussian(8, 64, rng=rng).float() * torch.logspace(0, 3, 8)[:, None], up, rng)
        right, left = rs.similarity(a, a).table.itertuples()
        assert left.init_residue_a == 1
        assert math.isnan(right.init_residue_a)

    def test_dense_updates_have_none(self, rng):
        base = {"w.weight": torch.zeros(20, 30, dtype=torch.float64)}
        full = rs.open_updates({"w.weight": gaussian(20, 30, rng=rng)}, base)
        table = rs.similarity(full, full).table
        assert table.init_residue_a.isna().all()
        assert table.shared_init_suspected.isna().all()


class TestVerdicts:
    def test_shared_directions_and_the_rest(self, basis, rng):
        left = [haar(D, 4, rng) for _ in range(2)]
        a, b = (run(torch.cat([basis[:, :1], haar(D, 3, rng)], 1), up) for up in left)
        result = rs.similarity(a, b)
        right, other = result.table.verdict
        assert (
            "1 of 4 input directions shared beyond chance, p < 1e-6; the rest at chance" in right
        )
        assert "no more than chance" in other
        assert [one["above_chance"] for one in result.verdicts] == [1, 0]

    def test_untrained_and_whole_spaces_have_nothing_to_compare(self, rng):
        a = peft_tensors(["layers.0.q"], 8, rng)
        whole = rs.similarity(a, a, side="right").table
        assert "every direction there is" in whole.verdict[0]
        zero = {**a, "base_model.model.layers.0.q.lora_B.weight": torch.zeros(12, 8)}
        result = rs.similarity(a, zero)
        assert set(result.table.verdict) == {"nothing to compare: an update is zero"}
        assert result.verdicts == ()

    def test_unrelated_tasks_are_never_called_the_same(self, real):
        folder = real / "roberta-base"
        agnews = rs.open_updates(folder / "peft-agnews").select(kind="q")
        result = rs.similarity(agnews, folder / "loralib-mnli")
        (left,) = (one for one in result.verdicts if one["side"] == "left")
        assert left["above_chance"] > 6
        assert "same" not in result.to_details()
        assert "unrelated tasks on one base are above chance too" in result.to_details()

    def test_two_steps_of_one_run_are_mostly_their_start(self, real):
        folder = real / "qwen2.5-0.5b/peft"
        steps = rs.open_updates(folder / "checkpoint-23").select(layer=range(4))
        table = rs.similarity(steps, folder / "final", side="right").table
        assert table.shared_init_suspected.all()
        assert (table.init_residue_a > 0.7).all()


def test_command(tmp_path, rng):
    modules = [f"layers.{n}.q_proj" for n in range(3)]
    names = ("a", "b", "f", "c")
    paths = [str(write_peft(tmp_path / n, peft_tensors(modules, 4, rng))) for n in names]
    a, b, floor, ceiling = paths
    flags = ["--floor", floor, "--ceiling", ceiling, "--shuffle", "--measure", "phi,cka"]
    journal = ["--journal", str(tmp_path / "journal")]
    result = CliRunner().invoke(cli, ["similarity", a, b, *flags, *journal, "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["schema"] == "rankscope.similarity/1"
    assert set(content["provenance"]["inputs"]) == {"a", "b", "floor", "ceiling"}
    assert content["provenance"]["options"]["floor"] == [f"{floor}/adapter_model.safetensors"]
    row = content["rows"][0]
    assert None not in (row["floor"], row["ceiling"], row["shuffled_95"], row["cka"])
    assert row["verdict"]
    assert {one["side"] for one in content["verdicts"]} == {"right", "left"}
    again = CliRunner().invoke(cli, ["similarity", a, b, *flags, *journal, "--resume", "--json"])
    assert again.stdout == result.stdout
    printed = CliRunner().invoke(cli, ["similarity", a, b, *flags, "-v"])
    assert "all q, right: " in printed.stdout
    assert "all q, right: " not in CliRunner().invoke(cli, ["similarity", a, b, *flags]).stdout
    wrong = CliRunner().invoke(cli, ["similarity", a, b, "--measure", "nonsense"])
    assert wrong.exit_code == 1
    assert len(wrong.stderr.strip().splitlines()) == 5
