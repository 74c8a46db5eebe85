import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import rankscope as rs
from rankscope.io.progress import in_notebook, progress_bar
from rankscope.tables import as_html, html_text

HOSTILE = [
    "h.0.<script>alert(1)</script>.q",
    "h.1.\"onmouseover='x'.q",
    "h.2.‮evil.q",
    "h.3.$\\color{red}{x}$.q",
    f"h.4.{'x' * 10_000}.q",
    "h.5.</td></table>&amp;.q",
]


class Tags(HTMLParser):
    """Collects tags and text, and checks that what is opened is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text, self.styles = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.add(tag)
        self.styles += [value for name, value in attrs if name == "style"]
        assert {name for name, _ in attrs} <= {"style", "class"}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(html):
    tags = Tags()
    tags.feed(html)
    tags.close()
    assert not tags.open
    return tags


def adapter(names, rng, rank=2):
    return {
        f"{name}.lora_{part}.weight": torch.randn(shape, generator=rng)
        for name in names
        for part, shape in (("A", (rank, 12)), ("B", (12, rank)))
    }


@pytest.fixture
def results(rng, tmp_path):
    """One of every kind."""
    one, two = (adapter(["h.0.q", "h.1.q"], rng) for _ in range(2))
    base = {f"h.{n}.q.weight": torch.randn(12, 12, generator=rng) for n in range(2)}
    save_file(one, tmp_path / "a.safetensors")
    full = {name: w + torch.randn(12, 12, generator=rng) for name, w in base.items()}
    return {
        "similarity": rs.similarity(one, two),
        "rank": rs.rank(one, alpha=1, advise=True),
        "spectrum": rs.spectrum(one),
        "amplification": rs.amplification(one, base=base, k=1),
        "intruders": rs.intruders(one, base=base, k=2),
        "compare": rs.compare(one, two),
        "resize": rs.resize(one, rank=1),
        "extract": rs.extract(full, base, rank=2),
        "info": rs.info(tmp_path / "a.safetensors", modules=True),
        "formats": rs.formats(),
    }


def test_every_result_is_a_table_with_its_notes(results):
    for name, result in results.items():
        tags = parsed(result._repr_html_())
        assert "table" in tags.seen, name
        text = "".join(tags.text)
        assert type(result).__name__ in text
        assert f"{len(result.table)} rows" in text
        assert all(html_text(note, 2000) in result._repr_html_() for note in result.notes), name


def test_no_colour_is_set_so_that_dark_themes_stay_dark(results):
    for result in results.values():
        styles = " ".join(parsed(result._repr_html_()).styles)
        assert not re.search(r"color|background|#|border", styles)


def test_what_stands_beside_the_table_is_folded(results):
    for name in ("similarity", "rank", "compare", "resize", "info"):
        assert "details" in parsed(results[name]._repr_html_()).seen, name
    assert "details" not in parsed(results["spectrum"]._repr_html_()).seen
    assert "h.1.q" in results["rank"].advice.side_by_side().module.tolist()


def test_hostile_names_stay_text(rng):
    result = rs.similarity(adapter(HOSTILE, rng), adapter(HOSTILE, rng))
    html = result._repr_html_()
    tags = parsed(html)
    assert not tags.seen & {"script", "img", "a", "style", "iframe"}
    assert "\u202e" not in html
    assert 'class="tex2jax_ignore mathjax_ignore"' in html  # a dollar sign starts no formula
    assert max(map(len, tags.text)) <= 300
    assert HOSTILE[0] in tags.text


def test_failures_are_shown(rng):
    tensors = adapter(["h.0.q", "h.1.<b>q</b>"], rng)
    tensors["h.1.<b>q</b>.lora_B.weight"][0, 0] = float("nan")
    html = rs.rank(tensors, alpha=1)._repr_html_()
    assert "could not be measured: 1 rows" in html
    assert "&lt;b&gt;q" in html
    assert "<b>q" not in html


def test_a_figure_shows_itself(results):
    for name in ("similarity", "rank", "spectrum", "amplification", "intruders", "compare"):
        figure = results[name].plot()
        png, size = figure._repr_png_()
        assert png[:4] == b"\x89PNG"
        assert size["width"] == round(120 * figure.get_figwidth())


def test_long_tables_scroll_and_end():
    html = as_html(pd.DataFrame({"n": range(1000)}))
    assert html.count("<tr>") == 201
    assert "800 more rows" in html
    assert "overflow:auto" in html


def test_numbers_stand_right_and_undefined_is_a_dash():
    html = as_html(pd.DataFrame({"x": [1.23456789, float("nan")], "name": ["a", None]}))
    assert '<td style="text-align:right;white-space:nowrap">1.235</td>' in html
    assert '<td style="text-align:right;white-space:nowrap">–</td>' in html
    assert '<td style="text-align:left">–</td>' in html


@pytest.fixture
def notebook(monkeypatch):
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_off_a_terminal_no_bar_shows(capsys):
    assert not in_notebook()
    for progress in (True, False, None):
        assert progress_bar(progress=progress, iterable=range(3)).disable


def test_in_a_notebook_a_bar_shows_unless_refused(notebook):
    assert in_notebook()
    assert progress_bar(progress=False, iterable=range(3)).disable
    for progress in (True, None):
        with progress_bar(progress=progress, total=3) as bar:
            assert not bar.disable


def test_short_work_leaves_no_bar_in_a_notebook(notebook, capsys):
    list(progress_bar(progress=None, iterable=range(3)))
    assert capsys.readouterr() == ("", "")


def test_long_work_shows_its_bar_without_the_colour_of_errors(notebook, capsys, monkeypatch):
    monkeypatch.setattr("rankscope.io.progress._PATIENCE", 0.0)
    list(progress_bar(progress=None, iterable=range(3)))
    out, err = capsys.readouterr()
    assert "3/3" in out
    assert not err
