"""Figures as commands write them: styles, what stands beside them, LaTeX tables of groups."""

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from oracles import peft_tensors, write_peft
from test_plots import EIGHT, random_table, similarity_table

import rankscope as rs
from rankscope.cli import cli, options
from rankscope.errors import RankscopeError
from rankscope.plots import figure_bytes, figure_compare, figure_rank, figure_similarity, theme
from rankscope.plots.style import COLOURS, STYLES
from rankscope.tables import as_latex, with_spread


@pytest.fixture
def adapters(tmp_path, rng):
    modules = [f"layers.{n}.{kind}_proj" for n in range(2) for kind in "qv"]
    for name in "abcd":
        write_peft(tmp_path / name, peft_tensors(modules, 2, rng), r=2)
    return [tmp_path / name for name in "abcd"]


def run(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="rankscope")
    assert result.exit_code == code, result.output
    return result


def page(**look):
    with theme(**look):
        return figure_similarity(similarity_table(EIGHT, 2, 3), random=random_table(2, 3))


@pytest.mark.parametrize("style", STYLES)
def test_a_style_sets_width_fonts_and_lines(style):
    figure = page(style=style)
    figure.draw_without_rendering()
    assert figure.get_size_inches()[0] == pytest.approx(STYLES[style].width)
    ticks = figure.axes[0].get_xticklabels()
    assert ticks[0].get_size() == pytest.approx(6 / 7 * STYLES[style].font)
    assert figure.axes[0].spines["left"].get_linewidth() == pytest.approx(
        0.6 * STYLES[style].line / 0.9
    )


def test_no_text_of_a_page_leaves_it():
    for style in STYLES:
        figure = page(style=style, title="A title " * 20)
        figure.draw_without_rendering()
        for text in figure.texts:
            box = text.get_window_extent()
            assert figure.bbox.padded(1).containsx(box.x0), (style, text.get_text())
            assert figure.bbox.padded(1).containsx(box.x1), (style, text.get_text())


def test_a_legend_stands_below_the_title():
    table = pd.DataFrame({"module": ["a", "b"], "layer": [0, 0], "kind": ["q", "v"],
                          "ceiling": 8, "stable_rank": [2.0, 3.0]})  # fmt: skip
    with theme("talk", title="A title"):
        figure = figure_rank(table, measures=["stable_rank"])
    figure.draw_without_rendering()
    (title,) = (text for text in figure.texts if text.get_text() == "A title")
    (legend,) = figure.subfigs[0].legends
    assert legend.get_window_extent().y1 <= title.get_window_extent().y0
    assert figure.axes[0].title.get_window_extent().y1 <= legend.get_window_extent().y0


def test_a_style_has_its_bytes_wherever_it_is_saved():
    figure = page(style="talk")
    inside, outside = page(style="talk"), figure_bytes(figure)
    with theme("paper"):
        assert figure_bytes(inside) == outside
    assert figure_bytes(page(style="notebook")) != outside


def test_text_stays_text_in_pdf_and_titles_are_taken_literally():
    figure = page(title="of $\\frac and <script>")
    svg = figure_bytes(figure).decode()
    assert "of $\\frac and &lt;script&gt;" in svg
    assert "<path" in svg
    assert re.search(r"<text[^>]*>1", svg)
    # Type 42 keeps letters; Type 3 would make drawings of them.
    pdf = figure_bytes(figure, "pdf")
    assert b"/Subtype /Type0" in pdf or b"/FontFile2" in pdf
    assert b"/Subtype /Type3" not in pdf


def test_colours_are_those_asked_for():
    (grey, own) = (page(cmap=cmap).axes[0].collections[0].cmap for cmap in ("gray", "vlag"))
    assert grey.name == "gray"
    assert own.name == "rocket"  # vlag has a middle, φ has none


def test_colours_grow_lighter_or_darker_throughout():
    for name in COLOURS[:6]:
        with theme(cmap=name):
            mesh = figure_similarity(similarity_table(EIGHT)).axes[0].collections[0]
        light = mesh.cmap(np.linspace(0, 1, 64))[:, :3] @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(light) > -0.004).all(), name


def test_names_that_there_are_none_of():
    for look in ({"style": "poster"}, {"cmap": "jet"}):
        with pytest.raises(RankscopeError, match="cannot be drawn") as caught, theme(**look):
            pass
        assert len(str(caught.value).splitlines()) == 5
    assert tuple(STYLES) == options._STYLES
    assert options._COLOURS == COLOURS


def test_results_take_a_style(adapters, tmp_path):
    result = rs.similarity(*adapters[:2])
    figure = result.plot(style="talk", title="Two seeds", cmap="gray")
    assert figure.get_size_inches()[0] == 12
    assert "Two seeds" in [text.get_text() for text in figure.texts]
    result.save(tmp_path / "x.svg", title="Two seeds")
    assert "Two seeds" in (tmp_path / "x.svg").read_text()


def test_commands_take_a_style_and_say_which_there_are(adapters, tmp_path):
    a, b = adapters[:2]
    out = tmp_path / "x.svg"
    run("similarity", a, b, "-o", out, "--style", "talk", "--title", "Seeds", "--cmap", "gray")
    assert "Seeds" in out.read_text()
    wrong = run("similarity", a, b, "-o", out, "--style", "poster", code=2).stderr
    assert "'paper', 'talk', 'notebook'" in wrong
    assert "add -o" in run("rank", a, "--title", "x", code=2).stderr


def test_numbers_and_provenance_stand_beside_a_figure(adapters, tmp_path):
    a, out = adapters[0], tmp_path / "x.svg"
    said = run("rank", a, "-o", out, "-o", tmp_path / "x.png").stderr
    assert said.count("x.csv") == said.count("x.json") == 1
    run("rank", a, "-o", tmp_path / "alone.csv", "-q")
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    about = json.loads((tmp_path / "x.json").read_text())
    assert about["beside"]["figures"] == ["x.svg", "x.png"]
    assert about["provenance"]["command"] == "rank"
    before = {path.name: path.read_bytes() for path in tmp_path.glob("x.*")}
    run("rank", a, "-o", out, "-o", tmp_path / "x.png", "-q")  # what is its own it may replace
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("x.*")}


def test_of_many_cells_the_means_that_are_drawn_stand_beside_a_figure(
    adapters, tmp_path, monkeypatch
):
    monkeypatch.setattr("rankscope.results.similarity.MOST_CELLS", 10)
    a, b = adapters[:2]
    run("similarity", a, b, "-o", tmp_path / "x.svg", "-q")
    assert "module" in pd.read_csv(tmp_path / "x.csv")  # four are drawn one by one
    monkeypatch.setattr("rankscope.plots.panels.AUTO_MODULES", 3)
    run("similarity", a, b, "-o", tmp_path / "x.svg", "-q")
    means = pd.read_csv(tmp_path / "x.csv").set_index(["side", "panel", "i", "j"])
    about = json.loads((tmp_path / "x.json").read_text())
    assert {"p_full", "cosines"} <= set(about["rows"][0])
    assert "phi" not in about["rows"][0]
    run("similarity", a, b, "-o", tmp_path / "y.svg", "-o", tmp_path / "y.csv", "-q")
    cells = pd.read_csv(tmp_path / "y.csv")
    cells = cells[cells.module.str.endswith("q_proj")].assign(panel="q")
    expected = cells.groupby(["side", "panel", "i", "j"])[["phi", "chance"]].mean()
    ours = means.loc[means.index.get_level_values("panel") == "q", ["phi", "chance"]]
    pd.testing.assert_frame_equal(ours.sort_index(), expected.sort_index(), rtol=1e-12)


@pytest.mark.parametrize("taken", ["x.csv", "x.json"])
def test_what_somebody_else_wrote_is_left_alone(adapters, tmp_path, taken):
    (tmp_path / taken).write_text("mine")
    wrong = run("rank", adapters[0], "-o", tmp_path / "x.svg", code=1).stderr
    assert "a file stands where" in wrong
    assert len(wrong.splitlines()) == 5
    assert (tmp_path / taken).read_text() == "mine"
    assert not (tmp_path / "x.svg").exists()
    run("rank", adapters[0], "-o", tmp_path / "x.svg", "-o", tmp_path / taken, "-q")
    assert (tmp_path / taken).read_text() != "mine"


def test_numbers_that_were_changed_by_hand_are_left_alone(adapters, tmp_path):
    run("rank", adapters[0], "-o", tmp_path / "x.svg", "-q")
    table = tmp_path / "x.csv"
    table.write_text(table.read_text() + "mine\n")
    run("rank", adapters[0], "-o", tmp_path / "x.svg", code=1)
    assert table.read_text().endswith("mine\n")


def test_groups_in_latex_have_mean_and_spread(adapters, tmp_path):
    named = [f"{folder.name}={folder}" for folder in adapters]
    groups = ("--group", "one_x=a,b", "--group", "two=c,d")
    run("compare", *named, *groups, "-o", tmp_path / "x.tex", "-q")
    text = (tmp_path / "x.tex").read_text()
    assert text.count(r"\toprule") == 1
    assert re.search(r"right & one\\_x & two & \d\.\d+ \$\\pm\$ \d\.\d+ &", text)


def test_a_spread_has_two_digits():
    rows = {"measure": "phi", "side": "right", "a": "r", "b": ["r", "s", "t"]}
    table = with_spread(pd.DataFrame(rows | {"mean": [0.5, 12.345, 0.25], "sd": [np.nan, 1.5, 0]}))
    assert table.phi.tolist() == ["0.5", "12.3 ± 1.5", "0.25"]
    assert r"\textasciitilde{}\textasciicircum{}" in as_latex(pd.DataFrame({"a": ["~^"]}))


def test_both_sides_of_a_comparison_have_one_order():
    names = list("abc")
    near = {frozenset("ab"): 0.9, frozenset("bc"): 0.1, frozenset("ac"): 0.1}
    squares = {
        side: {"phi": pd.DataFrame(
            [[1.0 if a == b else value(a, b) for b in names] for a in names], names, names)}
        for side, value in (
            ("right", lambda a, b: near[frozenset(a + b)]),
            ("left", lambda a, b: 1 - near[frozenset(a + b)] / 2),
        )
    }  # fmt: skip
    shared = pd.DataFrame({"module": ["m"], "layer": [0], "kind": "q", "side": "right",
                           "directions": [1]})  # fmt: skip
    chance = {"right": {"phi": [0.25]}, "left": {"phi": [0.125]}}
    figure = figure_compare(squares, chance=chance, shared=shared)
    labels = [[t.get_text() for t in ax.get_yticklabels()] for ax in figure.axes]
    orders = [found for found in labels if sorted(found) == names]
    assert len(orders) == 2
    assert orders[0] == orders[1]


SCRIPT = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from test_figures import page
from rankscope.plots import figure_bytes
figure = page(style="talk", title="Seeds", cmap="gray")
print([hashlib.sha256(figure_bytes(figure, f)).hexdigest() for f in ("svg", "pdf", "png")])
"""


def test_styled_bytes_are_the_same_in_every_process():
    from pathlib import Path

    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent)]
    once, again = (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert once == again


def test_what_cannot_be_written_is_printed_and_reported(adapters, tmp_path):
    (tmp_path / "taken").write_text("a file")
    result = run("rank", adapters[0], "-o", tmp_path / "taken" / "x.json", code=1)
    assert "layers.0.q_proj" in result.stdout
    assert "cannot write the output" in result.stderr


def test_a_probability_too_small_for_a_float_is_no_zero(adapters, tmp_path):
    names = [tmp_path / f"x{suffix}" for suffix in (".md", ".tex", ".html")]
    outputs = [part for name in names for part in ("-o", name)]
    run("similarity", adapters[0], adapters[0], *outputs, "-q")
    text, latex, _ = (name.read_text() for name in names)
    assert "| <1e-300 |" in text
    assert r"\textless{}1e-300" in latex
    assert "&lt;1e-300" in rs.similarity(adapters[0], adapters[0])._repr_html_()
