"""Figures: artists, limits and labels, never pixels."""

import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from rankscope.errors import RankscopeError
from rankscope.plots import (
    KIND_COLORS,
    count_pages,
    figure_bytes,
    figure_rank,
    figure_similarity,
    figure_spectrum,
    plot_rank,
    plot_similarity,
    plot_spectrum,
    require_columns,
    theme,
)
from rankscope.plots.tables import short_names, ticks_from_one


def similarity_table(modules, rank_a=8, rank_b=8, sides=("right", "left"), d=64, layer=True):
    rng = np.random.default_rng(0)
    rows = [
        {
            "module": name,
            "layer": index if layer else None,
            "kind": kind,
            "side": side,
            "dimension": d,
            "rank_a": rank_a,
            "rank_b": rank_b,
            "phi": rng.uniform(size=(rank_a, rank_b)),
        }
        for index, (name, kind) in enumerate(modules)
        for side in sides
    ]
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def random_table(rank_a=8, rank_b=8, d=64):
    rows = [
        {"side": s, "dimension": d, "rank_a": rank_a, "rank_b": rank_b,
         "phi": np.full((rank_a, rank_b), max(rank_a, rank_b) / d)}
        for s in ("right", "left")
    ]  # fmt: skip
    return pd.DataFrame(rows)


EIGHT = [(f"h.{n}.{kind}", kind) for n in range(4) for kind in "qv"]
MANY = [(f"{n:03}", "other") for n in range(24)]


def meshes(figure):
    """Title and drawn array of every heat map, in drawing order."""
    found = []
    for ax in figure.axes:
        drawn = [c for c in ax.collections if isinstance(c, QuadMesh)]
        if drawn and ax.get_label() != "<colorbar>":
            found.append((ax, drawn[0]))
    return found


def array(mesh):
    return np.ma.filled(mesh.get_array(), np.nan)


def bar_of(figure):
    return next(ax for ax in figure.axes if ax.get_label() == "<colorbar>")


def texts(figure):
    return " ".join(text.get_text() for text in figure.texts)


class TestSimilarity:
    def test_figure_4_panels_are_kind_means_beside_a_random_one(self):
        table = similarity_table(EIGHT)
        figure = figure_similarity(table, random=random_table())
        found = meshes(figure)
        titles = [ax.get_title() for ax, _ in found]
        assert titles == ["q · mean of 4 layers", "v · mean of 4 layers", "random Gaussian"] * 2
        for side, row in (("right", found[:3]), ("left", found[3:])):
            for kind, (_, mesh) in zip("qv", row, strict=False):
                rows = table[(table.side == side) & (table.kind == kind)]
                np.testing.assert_allclose(array(mesh), np.mean(list(rows.phi), axis=0))
            np.testing.assert_allclose(array(row[2][1]), 8 / 64)
        assert "q 4, v 4" in texts(figure)

    def test_figure_3_enlarges_the_lower_left_triangle(self):
        table = similarity_table(EIGHT, rank_a=8, rank_b=32)
        figure = figure_similarity(table, random=random_table(8, 32))
        found = meshes(figure)
        enlarged = [(ax, mesh) for ax, mesh in found if "enlarged: j ≤ i" in ax.get_title()]
        assert len(enlarged) == 4
        grid = array(enlarged[0][1])
        mean = np.mean(list(table[(table.side == "right") & (table.kind == "q")].phi), axis=0)
        assert grid.shape == (8, 8)
        below = np.tri(8, dtype=bool)
        np.testing.assert_allclose(grid[below], mean[:, :8][below])
        assert np.isnan(grid[~below]).all()

    def test_colours_are_fixed_and_axes_count_from_one_downwards(self):
        figure = figure_similarity(similarity_table(EIGHT, 8, 64))
        for ax, mesh in meshes(figure):
            assert mesh.get_clim() == (0, 1)
            assert mesh.get_cmap().name == "rocket"
            low, high = ax.get_ylim()
            assert low > high  # i points down
            assert min(ax.get_yticks()) == 1
            assert min(ax.get_xticks()) == 1
            assert len(ax.get_xticks()) <= 12

    def test_one_colour_bar_with_chance_at_its_height(self):
        figure = figure_similarity(similarity_table(EIGHT, 8, 32))
        bars = [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]
        assert len(bars) == 1
        assert bars[0].get_ylabel() == "φ(i, j)"
        mark = next(line for line in bars[0].lines if line.get_label() == "chance")
        assert mark.get_ydata() == pytest.approx([32 / 64])
        assert any("0.5" in text.get_text() for text in bars[0].texts)

    def test_few_modules_have_a_panel_each(self):
        figure = figure_similarity(similarity_table(EIGHT[:3]))
        assert [ax.get_title() for ax, _ in meshes(figure)][:3] == ["h.0.q", "h.0.v", "h.1.q"]

    def test_many_modules_are_averaged_or_paged_and_the_figure_says_which(self):
        table = similarity_table(MANY, layer=False)
        assert "24 modules of kind other" in texts(figure_similarity(table))
        assert count_pages(table, by="module") == 2
        second = figure_similarity(table, by="module", page=2)
        assert "Page 2 of 2: modules 13 to 24 of 24" in texts(second)
        titles = [ax.get_title() for ax, _ in meshes(second)]
        assert titles[:12] == [f"{n:03}" for n in range(12, 24)]

    def test_no_text_overlaps_another(self):
        for table in (similarity_table(EIGHT, 8, 64), similarity_table(MANY, layer=False)):
            figure = figure_similarity(table, by="module", random=random_table())
            figure.draw_without_rendering()
            boxes = [text.get_window_extent() for text in figure.texts]
            boxes += [ax.title.get_window_extent() for ax in figure.axes if ax.get_title()]
            boxes += [
                label.get_window_extent()
                for ax, _ in meshes(figure)
                for label in ax.get_xticklabels()
                if label.get_visible() and ax.xaxis.get_tick_params()["labelbottom"]
            ]
            for index, box in enumerate(boxes):
                assert not any(box.overlaps(other) for other in boxes[:index])

    @pytest.mark.parametrize("page", [0, 3])
    def test_page_that_does_not_exist(self, page):
        with pytest.raises(RankscopeError, match="no such page"):
            figure_similarity(similarity_table(MANY), by="module", page=page)

    def test_unknown_arrangement(self):
        with pytest.raises(RankscopeError, match="cannot be arranged"):
            figure_similarity(similarity_table(EIGHT), by="layer")

    def test_grids_of_several_sizes_are_averaged_where_all_have_cells(self):
        table = pd.concat(
            [similarity_table(EIGHT[:4], 8, 8), similarity_table(EIGHT[4:], 5, 8)],
            ignore_index=True,
        )
        figure = figure_similarity(table, by="kind")
        assert array(meshes(figure)[0][1]).shape == (5, 8)
        assert "leading 5 × 8 block" in texts(figure)

    def test_zero_updates_are_left_out_and_named(self):
        table = similarity_table(EIGHT)
        table["phi"] = [
            np.zeros((8, 0)) if name == "h.1.q" else phi
            for name, phi in zip(table.module, table.phi, strict=True)
        ]
        assert "1 module left out (rank 0): h.1.q" in texts(figure_similarity(table))
        table["phi"] = [np.zeros((0, 0))] * len(table)
        nothing = figure_similarity(table)
        assert "every update is zero" in [t.get_text() for t in nothing.axes[0].texts]

    def test_plot_draws_into_given_axes(self):
        table = similarity_table(EIGHT[:1], 4, 6, sides=("right",))
        ax = Figure().add_subplot()
        assert plot_similarity(table, ax=ax, names=("one", "two")) is ax
        assert ax.get_ylabel() == "i (directions of one)"
        assert ax.get_xlabel() == "j (directions of two)"
        np.testing.assert_allclose(array(ax.collections[0]), table.phi[0])
        with pytest.raises(RankscopeError, match="both sides"):
            plot_similarity(similarity_table(EIGHT[:1]), ax=Figure().add_subplot())

    def test_names_of_the_adapters_are_on_the_axes(self):
        figure = figure_similarity(similarity_table(EIGHT), names=("r8", "r64"))
        assert "i (directions of r8)" in texts(figure)
        assert "j (directions of r64)" in texts(figure)


def spectrum_table(modules, values, edge=np.nan):
    return pd.DataFrame(
        {
            "module": [name for name, _ in modules],
            "layer": pd.array(range(len(modules)), dtype="Int64"),
            "kind": [kind for _, kind in modules],
            "singular_values": [np.asarray(values, dtype=float)] * len(modules),
            "noise_edge": edge,
            "energy": 1.0,
        }
    )


class TestSpectrum:
    def test_ratio_on_a_log_axis(self):
        ax = plot_spectrum(spectrum_table(EIGHT[:1], [4, 2, 0.04]), ax=Figure().add_subplot())
        assert ax.get_yscale() == "log"
        assert ax.lines[0].get_ydata().tolist() == pytest.approx([1, 0.5, 0.01])
        assert ax.lines[0].get_xdata().tolist() == [1, 2, 3]
        assert ax.lines[0].get_color() == KIND_COLORS["q"]

    def test_a_panel_per_kind_with_a_scale_of_layers(self):
        figure = figure_spectrum(spectrum_table(EIGHT, [4, 2, 1]))
        assert [ax.get_title() for ax in figure.axes[:2]] == ["q · 4 layers", "v · 4 layers"]
        assert len(figure.axes[0].lines) == 4
        assert figure.axes[-1].get_ylabel() == "layer"

    def test_noise_band_and_zeros(self):
        ax = plot_spectrum(spectrum_table(EIGHT[:1], [4, 2, 0.04], 0.4), ax=Figure().add_subplot())
        assert max(patch.get_bbox().y1 for patch in ax.patches) == pytest.approx(0.1)
        zero = figure_spectrum(spectrum_table(EIGHT[:2], [0, 0]))
        assert "every update is zero" in [t.get_text() for t in zero.axes[0].texts]

    def test_hundreds_of_modules(self):
        modules = [(f"h.{n}.{kind}", kind) for n in range(32) for kind in ("q", "k", "v", "o")]
        figure = figure_spectrum(spectrum_table(modules, np.logspace(0, -3, 16)))
        assert sum(len(ax.lines) for ax in figure.axes[:4]) == 128


def rank_table(layers):
    return pd.DataFrame(
        {
            "module": [name for name, _ in EIGHT],
            "layer": pd.array(layers, dtype="Int64"),
            "kind": [kind for _, kind in EIGHT],
            "ceiling": 8,
            **dict.fromkeys(
                ("effective_rank", "stable_rank", "participation_rank", "energy_rank_90"),
                np.linspace(2, 5, 8),
            ),
        }
    )


class TestRank:
    @pytest.mark.parametrize("layers", [[0, 0, 1, 1, 2, 2, 3, 3], [None] * 8])
    def test_axis_from_zero_and_the_values(self, layers):
        table = rank_table(layers)
        ax = plot_rank(table, ax=Figure().add_subplot())
        assert ax.get_ylim()[0] == 0
        drawn = np.concatenate(
            [line.get_ydata() for line in ax.lines if line.get_marker() != "None"]
        )
        np.testing.assert_allclose(np.sort(drawn), table.effective_rank)
        assert any("ceiling 8" in text.get_text() for text in ax.texts)

    def test_a_panel_per_measure(self):
        titles = [ax.get_title() for ax in figure_rank(rank_table([0] * 8)).axes]
        assert titles == [
            "effective rank",
            "stable rank",
            "participation rank",
            "energy rank, 90 %",
        ]


@pytest.mark.parametrize(
    ("draw", "maker"),
    [
        (figure_similarity, "similarity"),
        (plot_similarity, "similarity"),
        (figure_spectrum, "spectrum"),
        (figure_rank, "rank"),
    ],
)
def test_missing_columns_name_their_maker(draw, maker):
    with pytest.raises(RankscopeError, match="lacks columns") as caught:
        draw(pd.DataFrame({"module": ["a"], "kind": ["q"], "layer": [0]}))
    assert f"rankscope.{maker}" in caught.value.fix
    assert len(str(caught.value).splitlines()) == 5
    require_columns(pd.DataFrame({"a": []}), "a")


SCRIPT = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from test_plots import EIGHT, figure_bytes, figure_similarity, random_table, similarity_table
figure = figure_similarity(similarity_table(EIGHT, 8, 32), random=random_table(8, 32))
print([hashlib.sha256(figure_bytes(figure, f)).hexdigest() for f in ("svg", "pdf", "png")])
"""


def test_bytes_are_the_same_in_every_process():
    from pathlib import Path

    folder = str(Path(__file__).parent)
    runs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, folder], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_bytes_are_the_same_for_many_figures_of_one_process():
    # The layout's last bits vary with the order of its solver, in about one figure of ten.
    table = similarity_table(EIGHT[:3], 2, 3)
    assert len({figure_bytes(figure_similarity(table), "svg") for _ in range(12)}) == 1


def test_a_figure_can_be_saved_twice():
    figure = figure_similarity(similarity_table(EIGHT))
    assert figure_bytes(figure, "svg") == figure_bytes(figure, "svg")


def test_text_stays_text_and_fonts_are_embedded():
    figure = figure_similarity(similarity_table(EIGHT))
    assert "mean of 4 layers" in figure_bytes(figure, "svg").decode()
    with pytest.raises(RankscopeError, match="cannot be written"):
        figure_bytes(figure, "jpg")


def test_nothing_is_left_open_in_pyplot():
    plt.close("all")
    for _ in range(30):
        figure_similarity(similarity_table(EIGHT[:1]))
    assert plt.get_fignums() == []


def test_theme_does_not_outlive_its_block():
    before = plt.rcParams["font.size"]
    with theme():
        assert plt.rcParams["figure.figsize"][0] == 3.25
        assert plt.rcParams["pdf.fonttype"] == 42
    assert plt.rcParams["font.size"] == before


def test_names_stay_different_when_shortened():
    names = [f"model.vision.encoder.block.{n}.attention.projection.output" for n in range(12)]
    short = short_names(names, 14)
    assert len(set(short)) == 12
    assert all(len(line) <= 14 for name in short for line in name.split("\n"))


@pytest.mark.parametrize("n", [1, 2, 8, 24, 64, 1000])
def test_ticks(n):
    ticks = ticks_from_one(n)
    assert ticks[0] == 1
    assert max(ticks) <= n
    assert len(ticks) <= 12
