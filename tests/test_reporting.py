"""Reports without a browser: structure, policy, escapes, all rows, the same bytes, Markdown."""

import base64
import hashlib
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from commands import ask
from oracles import peft_tensors, write_peft
from pages import HOSTILE, Page, hostile_pair, write_pair

import rankscope as rs
from rankscope.cli import cli
from rankscope.errors import UpdateError
from rankscope.reporting.drawing import LEVELS, chart, palette, png
from rankscope.reporting.numbers import exact, rounded

CSS = Path(rs.__file__).parent / "reporting" / "templates" / "page.css"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def report(pair):
    return rs.report(*pair)


@pytest.fixture(scope="module")
def saved(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.save(path)
    return path


@pytest.fixture(scope="module")
def page(saved):
    return Page(saved.read_text())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    report = rs.report(hostile_pair(), alpha=2)
    report.save(folder / "h.html")
    report.save(folder / "h.md")
    return folder


def test_it_is_well_formed(page):
    assert page.open == []
    assert page.all("html")[0][1]["lang"] == "en"
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("title")) - _figures(page)
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {a["href"] for _, a in page.all("a")}
    assert links <= {f"#{name}" for name in ids}


def _figures(page):
    return len(
        [a for _, a in page.all("svg") if "chart" not in a.get("class", "") and "role" in a]
    )


def test_headings_skip_no_level(page):
    levels = [int(tag[1]) for tag, _ in page.all("h1", "h2", "h3", "h4")]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_everything_has_an_accessible_name(page):
    for tag, attributes, within in page.elements:
        if tag == "svg" and attributes.get("role") == "img":
            assert attributes["aria-label"]
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if tag == "button":
            assert within[-1] == "th"
    assert len(page.all("caption")) == len(page.all("table"))
    sortable = [a for _, a in page.all("th") if "aria-sort" in a]
    assert len(sortable) == len(page.all("button")) > 20


def test_its_policy_allows_its_own_script_and_style_and_nothing_else(page):
    policy = next(a["content"] for _, a in page.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    (script,), (style,) = page.scripts, page.styles
    for directive, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    assert "unsafe" not in policy
    for _, attributes, _ in page.elements:
        assert not {"style", "srcset", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))


def test_it_says_what_was_measured_and_how(page, pair, report):
    titles = {attributes.get("title") for _, attributes, _ in page.elements}
    for source in pair:
        file = str(source / "adapter_model.safetensors")
        assert file in page.words or file in titles  # there where it is long
    assert report["rank"].provenance["inputs"]["source"][0]["content_sha256"] in page.words
    for words in ("exp(−Σ p ln p)", "Σσ² / σ₁²", "max(i, j) / d", "Random updates", "rankscope 0"):
        assert words in page.words


def test_a_percent_sign_stays_with_its_number(page):
    assert re.search(r"\d\u00a0%", page.words)
    assert "\\xa0" not in page.words


def test_every_module_and_row_is_there(page, report):
    modules = set(report["rank"].table.module)
    described = [a for _, a in page.all("details") if a.get("class") == "module"]
    assert len(described) == len(modules) == 4
    assert all(module in page.words for module in modules)
    for value in report["similarity"].table.phi_full:
        assert any(
            attributes.get("title") == repr(float(value)) for _, attributes, _ in page.elements
        )
    assert len(page.all("img")) == len(report["similarity"].table)


def test_it_is_the_same_bytes_every_time(saved, pair, tmp_path):
    rs.report(*pair).save(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == saved.read_bytes()


def test_hostile_names_stay_text(hostile):
    text = (hostile / "h.html").read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.scripts) == 1
    assert [a["src"][:15] for _, a in page.all("img")] == ["data:image/png;"] * 16
    for name in HOSTILE[:2]:
        assert name in page.words
    assert "7*7" in page.words  # and not 49: names are no templates
    forbidden = {"\u202e", "\u2066", "\x1b", "\x00", "\x07"}
    assert not forbidden & set(text)
    assert "a\\u202eb\\u2066c" in page.words
    assert text.count("n" * 10_000) == 1  # the whole name once, shortened elsewhere


def test_hostile_names_stay_text_in_markdown(hostile):
    text = (hostile / "h.md").read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert not re.search(r"(?<!\\)\]\(javascript", text)
    assert not {"\u202e", "\x1b", "\x00"} & set(text)
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


@pytest.mark.parametrize("name", HOSTILE[:2] + HOSTILE[4:7])
def test_a_hostile_file_is_reported_or_refused_but_never_obeyed(name, tmp_path, rng):
    tensors = peft_tensors([f"layers.0.{name}.q_proj"], 2, rng, out=48, in_=32)
    source = write_peft(tmp_path / "a", tensors, r=2, base_model_name_or_path=HOSTILE[0])
    ask("report", source, "-q", "-o", tmp_path / "x.html")
    page = Page((tmp_path / "x.html").read_text())
    assert page.open == []
    assert len(page.scripts) == 1
    assert name in page.words


@pytest.mark.parametrize("command", ["info", "rank", "report"])
@pytest.mark.parametrize("name", [HOSTILE[2], HOSTILE[3], HOSTILE[7]])
def test_names_that_would_command_a_terminal_are_refused(command, name, tmp_path, rng):
    tensors = peft_tensors([f"layers.0.{name}.q_proj"], 2, rng, out=48, in_=32)
    source = write_peft(tmp_path / "a", tensors, r=2)
    out = ["-o", tmp_path / "x.html"] if command == "report" else []
    said = ask(command, source, *out, code=1).output
    assert "the name of a tensor" in said
    assert not {"\u202e", "\x1b", "\x00"} & set(said)
    assert len(said) < 2000


def test_markdown_has_its_figures_beside_it(report, tmp_path):
    report.save(tmp_path / "x.md")
    text = (tmp_path / "x.md").read_text()
    named = re.findall(r"\]\((x_figures/[\w.-]+)\)", text)
    assert named
    assert sorted(named) == sorted(
        f"x_figures/{p.name}" for p in (tmp_path / "x_figures").iterdir()
    )
    assert "## Verdicts" in text
    assert "| --- |" in text


@pytest.mark.parametrize("command", ["rank", "spectrum", "similarity"])
def test_one_result_is_a_page_as_well(command, pair, tmp_path):
    sources = pair if command == "similarity" else pair[:1]
    ask(command, *sources, "-q", "-o", tmp_path / "x.html")
    page = Page((tmp_path / "x.html").read_text())
    assert page.open == []
    assert "layers.1.v_proj" in page.words
    assert page.all("figure")


def test_a_result_of_another_kind_is_a_page(tmp_path):
    rs.formats().save(tmp_path / "x.html")
    assert "loralib" in Page((tmp_path / "x.html").read_text()).words


def test_the_command_prints_verdicts_and_writes_files(pair, tmp_path):
    out = tmp_path / "r.html"
    result = ask("report", *pair, "-o", out, "-o", tmp_path / "r.json")
    assert "Rank of a" in result.stdout
    assert out.stat().st_size > 10_000
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["schema"] == "rankscope.report/1"
    assert {one["schema"] for one in content["results"]} >= {
        "rankscope.info/1", "rankscope.rank/1", "rankscope.spectrum/1", "rankscope.similarity/1"
    }  # fmt: skip


def test_where_to_write_must_be_said(pair):
    result = CliRunner().invoke(cli, ["report", str(pair[0])])
    assert result.exit_code == 2
    assert "-o report.html" in result.output


def test_an_unknown_suffix_is_refused_before_the_work(pair, tmp_path):
    assert "not known" in ask("report", pair[0], "-o", tmp_path / "x.htm", code=1).output


def test_sources_without_a_module_in_common_are_reported_all_the_same(tmp_path, rng):
    for name, module in (("a", "layers.0.q_proj"), ("b", "other.0.fc1")):
        write_peft(tmp_path / name, peft_tensors([module], 2, rng, out=48, in_=32), r=2)
    arguments = ["report", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "x.html"]
    assert "similarity of a, b" in ask(*arguments, code=3).output
    words = Page((tmp_path / "x.html").read_text()).words
    assert "What could not be measured" in words
    assert "other.0.fc1" in words


def test_a_journal_has_a_folder_for_each_analysis(pair, tmp_path):
    arguments = ["report", *pair, "--journal", tmp_path / "j"]
    ask(*arguments, "-q", "-o", tmp_path / "a.html")
    assert {p.name for p in (tmp_path / "j").iterdir()} == {
        "rank-1", "rank-2", "spectrum-1", "spectrum-2", "similarity-1-2"
    }  # fmt: skip
    ask(*arguments, "--resume", "-q", "-o", tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_more_than_two_are_compared_and_a_base_adds_what_needs_one(tmp_path, rng):
    a, b = write_pair(tmp_path, layers=1)
    modules = ["layers.0.q_proj", "layers.0.v_proj"]
    base = {f"{name}.weight": torch.randn(48, 32, generator=rng) for name in modules}
    report = rs.report({"a": a, "b": b, "again": a}, base=base, skip=["intruders"])
    commands = [one.command for one in report.findings]
    assert commands.count("rank") == commands.count("amplification") == 3
    assert "compare" in commands
    assert "intruders" not in commands
    report.save(tmp_path / "x.html")
    words = Page((tmp_path / "x.html").read_text()).words
    assert "Most alike as whole updates are a and again, with a cosine of 1.00" in words


def test_an_untrained_source_is_said_to_be_one(tmp_path, rng):
    tensors = peft_tensors(["layers.0.q_proj"], 2, rng, out=48, in_=32)
    zero = {k: v * ("lora_A" in k) for k, v in tensors.items()}
    report = rs.report({"new": write_peft(tmp_path / "z", zero, r=2)})
    assert "not trained" in report.table.verdict[0]
    report.save(tmp_path / "x.html")


@pytest.mark.parametrize(("arguments", "what"), [((), "nothing"), (("a",), "left out")])
def test_nothing_and_an_unknown_part_are_refused(arguments, what, pair):
    with pytest.raises(UpdateError, match=what):
        rs.report(*pair[: len(arguments)], skip=arguments)


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, "1", "–"),
        (float("nan"), "3", "–"),
        (0.12345, "3", "0.123"),
        (-0.5, "1", "−0.5"),
        (12345.0, "count", "12,345"),
        (1.5, "count", "1.5"),
        (0.9963, "share", "99.6 %"),
        (0.0004, "share", "< 0.1 %"),
        (1.0, "share", "100 %"),
        (0.0431, "p", "0.043"),
        (3.2e-21, "p", "10⁻²⁰"),
        (0.0, "p", "< 10⁻³⁰⁰"),
        (0.000123456, "norm", "1.23·10⁻⁴"),
        (61.95, "norm", "62.0"),
        ("q", "1", "q"),
        ([1, 2], "count", "1, 2"),
    ],
)
def test_numbers_are_rounded_for_the_eye(value, form, text):
    assert rounded(value, form) == text


def test_the_exact_number_is_behind_it():
    assert float(exact(1 / 3)) == 1 / 3
    assert exact(float("nan")) == exact(3) == exact("x") == ""


def test_a_grid_is_a_picture_of_its_cells():
    matplotlib = pytest.importorskip("matplotlib.image")
    import io

    grid = torch.tensor([[0.0, 1.0, 0.5], [0.25, 1.5, -1.0]]).numpy()
    pixels = matplotlib.imread(io.BytesIO(base64.b64decode(png(grid))))
    levels = (grid.clip(0, 1) * (LEVELS - 1)).round().astype(int)
    expected = [[palette()[level] for level in row] for row in levels]
    assert (pixels[..., :3] * 255).round().astype(int).tolist() == [
        [list(colour) for colour in row] for row in expected
    ]


def test_half_of_a_grid_keeps_the_last_cell():
    matplotlib = pytest.importorskip("matplotlib.image")
    import io

    grid = torch.zeros(5, 4).numpy()
    grid[-1, -1] = 1
    pixels = matplotlib.imread(io.BytesIO(base64.b64decode(png(grid, step=2))))
    assert pixels.shape[:2] == (3, 2)
    assert pixels[-1, -1].sum() > pixels[0, 0].sum()


def test_a_chart_leaves_out_what_is_zero():
    assert chart({0: [0.0, 0.0]}, "x") is None
    drawn = chart({0: [10.0, 1.0, 0.0], 1: [2.0]}, "x")
    assert (drawn.top, drawn.bottom, drawn.last) == ("10", "1", "2")
    assert drawn.lines[0] == (0, "M0 0L240 96")
    assert drawn.lines[1][1].endswith("h0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_on_every_ground(scheme):
    blocks = re.findall(r":root \{(.*?)\}", CSS.read_text(), re.DOTALL)
    colours = {}
    for block in blocks[: 1 if scheme == "light" else 2]:
        colours |= dict(re.findall(r"--([a-z]+): (#[0-9a-f]+)", block))
    for ink in ("ink", "soft", "accent", "warn", "bad"):
        for ground in ("paper", "card", "tint"):
            assert _contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def _contrast(one, two):
    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
        r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.slow
def test_a_large_model_fits_into_three_megabytes(tmp_path, rng):
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
    modules = [f"model.layers.{n}.{kind}" for n in range(32) for kind in kinds]
    for name in "ab":
        write_peft(tmp_path / name, peft_tensors(modules, 16, rng, out=64, in_=64), r=16)
    rs.report(tmp_path / "a", tmp_path / "b").save(tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    assert len(text.encode()) < 3_000_000
    page = Page(text)
    assert len([a for _, a in page.all("details") if a.get("class") == "module"]) == 224
    assert len([a for _, a in page.all("details") if a.get("class") == "group"]) == 32


def test_a_figures_suffix_is_refused_before_the_work(pair):
    wrong = CliRunner().invoke(cli, ["report", str(pair[0]), "-o", "x.pdf"])
    assert wrong.exit_code == 1
    assert ".html" in wrong.output
