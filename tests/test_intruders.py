"""Intruder dimensions, from files to figures, against dense NumPy and plants."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure
from oracles import gaussian, haar, with_spectrum
from safetensors.torch import save_file

import rankscope as rs
from rankscope.cli import cli
from rankscope.errors import RankscopeError, SourceError, UpdateError

NAME = "layers.0.q_proj"
DESIGNED = (
    "module layer kind side k epsilon epsilon_chance intruders intruder_energy_share max_cosine"
)


def measured(weight, update, **options):
    base = {f"{NAME}.weight": weight}
    return rs.intruders({f"{NAME}.weight": weight + update}, base=base, **options).table


def run(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="rankscope")


def test_every_number_against_dense_numpy(rng):
    weight, update = gaussian(14, 10, rng=rng), gaussian(14, 10, rng=rng)
    table = measured(weight, update, k=[3, 6], epsilon=[0.5, 0.9])
    uw, _, vw = np.linalg.svd(weight.numpy(), full_matrices=False)
    u, s, v = np.linalg.svd((weight + update).numpy(), full_matrices=False)
    cosines = {"left": np.abs(uw.T @ u).max(0), "right": np.abs(vw @ v.T).max(0)}
    assert len(table) == 2 * 2 * 2
    for row in table.itertuples():
        seen = cosines[row.side][: row.k]
        np.testing.assert_allclose(row.max_cosine, seen, rtol=1e-9)
        assert row.intruders == row.intruders_single == (seen < row.epsilon).sum()
        energies = s[: row.k] ** 2
        share = energies[seen < row.epsilon].sum() / energies.sum()
        assert row.intruder_energy_share == pytest.approx(share)
        assert row.below_chance == (seen < row.chance_99).sum()
        assert row.epsilon_chance < row.chance_99


def test_a_scaled_weight_has_none(rng):
    weight = gaussian(14, 10, rng=rng)
    table = measured(weight, 1.5 * weight, k=10, epsilon=0.999)
    assert table.intruders.tolist() == [0, 0]
    np.testing.assert_allclose(np.stack(table.max_cosine), 1, atol=1e-9)


def test_a_random_spike_is_one_and_the_first(rng):
    weight = with_spectrum(torch.linspace(2, 1, 60), 60, 60, rng)
    spike = 50 * haar(60, 1, rng) @ haar(60, 1, rng).T
    table = measured(weight, spike, k=10)
    assert table.intruders.tolist() == [1, 1]
    assert [row[0] < 0.5 for row in table.max_cosine] == [True, True]
    assert (table.intruder_energy_share > 0.9).all()


def test_directions_that_mix_within_one_percent_are_none(rng):
    values = torch.tensor([3.0, 2.0, 1.999, 1.998, 1.997, 1.0])
    u, v = haar(12, 6, rng), haar(9, 6, rng)
    turn = torch.zeros(6, 6).double()
    turn[1:5, 1:5] = 0.2 * haar(4, 4, rng)
    table = measured(u * values @ v.T, u @ turn @ v.T, k=6, epsilon=0.9)
    assert table.intruders.tolist() == [0, 0]
    assert (table.intruders_single > 0).all()


def test_a_zero_update_has_none_and_a_small_matrix_cuts_k(rng):
    weight = gaussian(6, 4, rng=rng)
    base = {f"{NAME}.weight": weight}
    source = {
        f"{NAME}.lora_A.weight": torch.zeros(1, 4),
        f"{NAME}.lora_B.weight": torch.zeros(6, 1),
    }
    table = rs.intruders(source, base=base, alpha=1).table
    assert table.intruders.tolist() == [0, 0]
    assert table.k.tolist() == [4, 4]


def test_options_out_of_range(rng):
    weight = gaussian(6, 4, rng=rng)
    for epsilon in (0, 1.5, []):
        with pytest.raises(UpdateError, match="no threshold"):
            measured(weight, weight, epsilon=epsilon)
    with pytest.raises(UpdateError, match="no direction"):
        measured(weight, weight, k=0)
    with pytest.raises(SourceError, match="base weights lack"):
        rs.intruders({f"{NAME}.lora_A.weight": weight.T, f"{NAME}.lora_B.weight": weight})


@pytest.fixture
def files(tmp_path, rng):
    names = [f"layers.{n}.{kind}_proj" for n in range(2) for kind in "qkv"]
    base = {f"{name}.weight": gaussian(12, 8, rng=rng) for name in names}
    tuned = {name: tensor + 0.3 * gaussian(12, 8, rng=rng) for name, tensor in base.items()}
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    return tmp_path


def test_command_json_and_exit_codes(files):
    arguments = ["intruders", files / "tuned.safetensors", "--base", files / "base.safetensors"]
    result = run(*arguments, "-k", 4, "--epsilon", 0.5, "--epsilon", 0.8, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["schema"] == "rankscope.intruders/1"
    assert set(content["rows"][0]) >= set(DESIGNED.split())
    assert len(content["rows"]) == 6 * 2 * 2
    assert run(*arguments, "--epsilon", 2).exit_code == 1
    assert run(*arguments, "-k", 0).exit_code == 2


# Figures -------------------------------------------------------------------------------------


@pytest.fixture
def result(files):
    return rs.intruders(files / "tuned.safetensors", base=files / "base.safetensors", k=4)


def test_every_cosine_with_epsilon_and_chance(result):
    ax = rs.plot_closeness(result.table, side="left", ax=Figure().add_subplot())
    rows = result.table[result.table.side == "left"]
    points = [line for line in ax.lines if line.get_linestyle() == "None"]
    drawn = np.sort(np.concatenate([line.get_ydata() for line in points]))
    np.testing.assert_allclose(drawn, np.sort(np.concatenate(list(rows.max_cosine))))
    epsilon = next(line for line in ax.lines if line.get_label() == "ε")
    assert set(epsilon.get_ydata()) == {0.5}
    tops = [patch.get_bbox().y1 for patch in ax.patches]
    assert max(tops) == pytest.approx(rows.chance_99.max())
    assert ax.get_ylim() == (0, 1.02)
    with pytest.raises(RankscopeError, match="both sides"):
        rs.plot_closeness(result.table, ax=Figure().add_subplot())


def test_counts(result):
    ax = rs.plot_intruders(result.table, side="right", ax=Figure().add_subplot())
    assert ax.get_ylabel() == "intruders of 4, ε = 0.5"
    rows = result.table[result.table.side == "right"]
    points = [line for line in ax.lines if line.get_linestyle() == "None"]
    drawn = np.concatenate([line.get_ydata() for line in points])
    assert sorted(drawn) == sorted(rows.intruders)


def test_the_whole_page(result, tmp_path):
    figure = result.plot()
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:4:2] == [
        "input side (right)",
        "intruders of 4, ε = 0.5, input side (right)",
    ]
    path = tmp_path / "figure.svg"
    result.save(path)
    assert "largest cosine with a direction of W" in path.read_text()
    two = result.table[result.table.kind != "k"]
    counts = rs.figure_intruders(two).axes[2]
    assert counts.get_ylim()[0] == 0
    assert counts.lines


def test_tables_that_cannot_be_drawn(result):
    with pytest.raises(RankscopeError, match="lacks columns") as caught:
        rs.figure_intruders(result.table.drop(columns="max_cosine"))
    assert "rankscope.intruders" in caught.value.fix
    assert rs.figure_intruders(result.table.iloc[:0]).axes[0].texts


@pytest.mark.parametrize("rank", [0, 3])
def test_a_null_space_is_none_of_the_bases_directions(rng, rank):
    weight = (
        with_spectrum(torch.linspace(2, 1, rank), 24, 20, rng) if rank else torch.zeros(24, 20)
    )
    weight = weight.double()
    left, right = (haar(n, 4, rng) for n in (24, 20))
    u, _, vt = torch.linalg.svd(weight)
    left, right = (torch.linalg.qr(x - b @ (b.T @ x))[0]
                   for x, b in ((left, u[:, :rank]), (right, vt[:rank].T)))  # fmt: skip
    table = measured(weight, 50 * left @ right.T, k=4)
    assert table.intruders.tolist() == [4, 4]
    assert all(np.max(cosines) < 1e-6 for cosines in table.max_cosine)
    base = {f"{NAME}.weight": weight}
    tuned = {f"{NAME}.weight": weight + 50 * left @ right.T}
    row = rs.amplification(tuned, base=base, k=2).table.iloc[0]
    assert (row.reweighting, row.rewiring, row.new) == pytest.approx((0, 0, 1), abs=1e-12)
