"""Maps of kind and layer, and the band of the storage noise: artists, limits, labels."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from rankscope.errors import RankscopeError
from rankscope.plots import figure_bytes, figure_rank_map, figure_spectrum, plot_rank_map

KINDS = ("q", "k", "v", "o", "gate", "up", "down")


def rank_table(layers, kinds=KINDS):
    places = [(layer, kind) for layer in layers for kind in kinds]
    count = len(places)
    return pd.DataFrame(
        {
            "module": [f"h.{layer}.{kind}" for layer, kind in places],
            "layer": pd.array([layer for layer, _ in places], dtype="Int64"),
            "kind": [kind for _, kind in places],
            "effective_rank": np.linspace(1, 40, count),
            "stable_rank": np.linspace(1, 9, count),
            "rank_above_noise": pd.array(range(count), dtype="Int64"),
            "unchanged_fraction": np.linspace(0.1, 0.6, count),
        }
    )


def mesh_of(ax):
    return next(c for c in ax.collections if isinstance(c, QuadMesh))


def maps(figure):
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def texts(figure):
    return " ".join(text.get_text() for text in figure.texts)


def test_cells_are_the_values_by_kind_and_layer():
    table = rank_table(range(3), ("v", "q"))
    ax = plot_rank_map(table, ax=Figure().add_subplot())
    grid = np.asarray(mesh_of(ax).get_array())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["q", "v"]
    for kind, row in zip(("q", "v"), grid, strict=True):
        np.testing.assert_allclose(row, table[table.kind == kind].effective_rank)
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first kind on top
    assert ax.get_xlabel() == "layer"


def test_scales_start_at_zero_and_shares_end_at_one():
    figure = figure_rank_map(
        rank_table(range(2)), measures=["effective_rank", "unchanged_fraction"]
    )
    one, two = (mesh_of(ax) for ax in maps(figure))
    assert one.get_clim() == (0, 40)
    assert two.get_clim() == (0, 1)
    assert len(figure.axes) == 4  # each with its colour scale
    assert [ax.get_title() for ax in maps(figure)] == ["effective rank", "unchanged fraction"]


def test_several_modules_in_a_cell_are_averaged_and_it_says_so():
    table = rank_table([0, 0, 1], ("q",))
    figure = figure_rank_map(table, measures=["stable_rank"])
    np.testing.assert_allclose(np.asarray(mesh_of(maps(figure)[0]).get_array()), [[3, 9]])
    assert "Means of up to 2 modules" in texts(figure)


def test_gaps_are_grey_and_modules_without_layer_stand_last():
    table = rank_table([0, 3], ("q", "v"))
    table.loc[0, "stable_rank"] = np.nan
    table.loc[3, "layer"] = pd.NA
    ax = maps(figure_rank_map(table, measures=["stable_rank"]))[0]
    grid = np.ma.getmaskarray(mesh_of(ax).get_array())
    assert grid.shape == (2, 5)
    assert grid.tolist() == [[True, True, True, False, True], [False, True, True, True, False]]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "3", "none"]


@pytest.mark.parametrize("layers", [1, 8, 32, 80, 130])
def test_labels_do_not_overlap(layers):
    figure = figure_rank_map(
        rank_table([*range(layers), None]), measures=["effective_rank", "unchanged_fraction"]
    )
    figure.draw_without_rendering()
    for ax in figure.axes:
        for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
            boxes = [label.get_window_extent() for label in labels if label.get_text()]
            boxes = [box for box in boxes if box.width]
            for index, box in enumerate(boxes):
                assert not any(box.overlaps(other) for other in boxes[:index])


def test_few_cells_have_their_numbers():
    few, many = (
        maps(figure_rank_map(rank_table(range(n)), measures=["stable_rank"]))[0] for n in (2, 32)
    )
    assert [text.get_text() for text in few.texts][:2] == ["1", "5.31"]
    assert len(few.texts) == 14
    assert not many.texts


def test_nullable_columns_and_tables_without_the_measure():
    table = rank_table(range(2))
    assert figure_rank_map(table, measures=["rank_above_noise"])
    table["unchanged_fraction"] = np.nan
    nothing = figure_rank_map(table, measures=["unchanged_fraction"])
    assert "no measure is defined" in [t.get_text() for t in nothing.axes[0].texts]
    assert "14 modules left out" in texts(nothing)
    assert figure_rank_map(table.iloc[:0], measures=["stable_rank"])
    with pytest.raises(RankscopeError, match="lacks columns"):
        figure_rank_map(table, measures=["no_such_rank"])


def test_bytes_are_the_same():
    table = rank_table(range(3))
    assert len({figure_bytes(figure_rank_map(table, measures=["stable_rank"]), "svg")
                for _ in range(3)}) == 1  # fmt: skip


def spectra(edges, error=np.nan):
    return pd.DataFrame(
        {
            "module": [f"h.{n}.{kind}" for n, kind in enumerate("qvo")],
            "layer": range(3),
            "kind": list("qvo"),
            "singular_values": [np.array([4.0, 0.4, 0.004])] * 2 + [np.array([1.0, 0.5, 2e-15])],
            "noise_edge": edges,
            "error_bound": error,
        }
    )


def test_the_noise_band_reaches_the_foot_of_every_panel():
    figure = figure_spectrum(spectra([0.04, np.nan, 0.2], 1e-13))
    panels = figure.axes[:3]
    # A little below the smallest ratio that means something, not at the next decade.
    assert all(ax.get_ylim() == pytest.approx((0.7e-3, 1.5)) for ax in panels)
    for ax, top in zip(panels, (0.01, None, 0.2), strict=True):
        boxes = [patch.get_bbox() for patch in ax.patches]
        assert all(box.y0 == pytest.approx(0.7e-3) for box in boxes)
        assert [box.y1 for box in boxes] == ([] if top is None else pytest.approx([top, top]))
    assert "noise of the storage" in texts(figure)
    assert "noise" not in texts(figure_spectrum(spectra([np.nan] * 3)))


def test_round_off_does_not_stretch_the_axis():
    bottoms = [
        figure_spectrum(spectra([np.nan] * 3, error)).axes[0].get_ylim()[0]
        for error in (np.nan, 1e-13)
    ]
    assert bottoms == [pytest.approx(0.7 * 2e-15), pytest.approx(0.7e-3)]
