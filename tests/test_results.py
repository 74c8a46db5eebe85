"""Results: every form they are saved in holds the same numbers, and nothing is half-written."""

import errno
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from oracles import peft_tensors

import rankscope as rs
from rankscope.errors import OutputError, RankscopeError, UpdateError
from rankscope.io.write import replacing, write_json
from rankscope.tables import as_latex, as_markdown, as_text, plain


@pytest.fixture
def result(rng):
    modules = ["h.0.q", "h.1.q", "h.1.v"]
    return rs.similarity(peft_tensors(modules, 2, rng), peft_tensors(modules, 3, rng))


def test_json_holds_everything(result, tmp_path):
    result.save(tmp_path / "x.json")
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["schema"] == "rankscope.similarity/1"
    assert len(content["rows"]) == 6
    row = content["rows"][0]
    assert row["phi"] == result.table.phi[0].tolist()
    assert row["layer"] == 0
    assert content["unmatched_a"] == []
    assert content["provenance"]["versions"]["rankscope"] == rs.__version__
    assert len(content["provenance"]["inputs"]["a"][0]["sha256"]) == 64


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_long_form_of_similarity(result, tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    result.save(path)
    table = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    assert table.columns.tolist() == ["module", "side", "i", "j", "phi", "chance"]
    assert len(table) == 6 * 2 * 3
    cell = table.query("module == 'h.1.q' and side == 'left' and i == 2 and j == 3").iloc[0]
    assert cell.phi == result.grid("h.1.q", "left")[1, 2]
    assert cell.chance == 3 / 12


def test_long_form_of_a_spectrum(rng, tmp_path):
    result = rs.spectrum(peft_tensors(["h.0.q"], 3, rng))
    result.save(tmp_path / "x.csv")
    table = pd.read_csv(tmp_path / "x.csv")
    assert table["index"].tolist() == [1, 2, 3]
    assert table.singular_value.tolist() == result.table.singular_values[0].tolist()


@pytest.mark.parametrize("suffix", [".md", ".tex"])
def test_tables_for_reports(result, tmp_path, suffix):
    result.save(tmp_path / f"x{suffix}")
    text = (tmp_path / f"x{suffix}").read_text()
    assert "h.1.q" in text
    assert text.count("right") == 3
    assert ("| --- |" in text) if suffix == ".md" else ("\\toprule" in text)


@pytest.mark.parametrize("suffix", [".svg", ".pdf", ".png"])
def test_figures_are_the_same_bytes_every_time(result, tmp_path, suffix):
    for name in "ab":
        result.save(tmp_path / f"{name}{suffix}")
    content = (tmp_path / f"a{suffix}").read_bytes()
    assert len(content) > 1000
    assert content == (tmp_path / f"b{suffix}").read_bytes()


def test_json_is_the_same_bytes_every_time(rng, tmp_path):
    tensors = peft_tensors(["h.0.q"], 2, rng), peft_tensors(["h.0.q"], 3, rng)
    for name in "ab":
        rs.similarity(*tensors).save(tmp_path / f"{name}.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize("name", ["x.htm", "x.jpg", "x"])
def test_unknown_suffix(result, tmp_path, name):
    with pytest.raises(OutputError, match="not known"):
        result.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_missing_folder_is_made(result, tmp_path):
    result.save(tmp_path / "new" / "deep" / "x.json")
    assert (tmp_path / "new" / "deep" / "x.json").is_file()


def test_a_folder_where_a_file_should_be(result, tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        result.save(tmp_path / "x.json")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        result.save(tmp_path / "file" / "x.json")


def test_failure_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"old": True})
    with pytest.raises(OutputError, match="cannot write") as caught, replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.got == "no space left on device"
    assert json.loads(path.read_text()) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_disk_that_really_runs_full(tmp_path):
    code = (
        "import resource, signal\n"
        "from rankscope.errors import OutputError\n"
        "from rankscope.io.write import write_json\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "try:\n    write_json('out.json', list(range(100000)))\n"
        "except OutputError as error:\n    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("cannot write the output")
    assert len(run.stdout.splitlines()) == 5
    assert not list(tmp_path.iterdir())


def test_shown_forms_are_short_and_escaped(rng):
    name = "h.0.<script>alert(1)</script>\x1b[31m"
    result = rs.rank(peft_tensors([name], 2, rng), alpha=2)
    assert "<script>" not in result._repr_html_()
    assert "\x1b" not in repr(result)
    assert "\x1b" not in result.to_text()
    many = rs.rank(peft_tensors([f"h.{n}.q" for n in range(100)], 2, rng), alpha=2)
    assert len(repr(many).splitlines()) < 40
    assert len(many.to_text().splitlines()) == 101


def test_plain_values():
    value = {"a": np.float64("nan"), "b": [np.int64(3), pd.NA, None], "c": np.array([[1.0]])}
    assert plain(value) == {"a": None, "b": [3, None, None], "c": [[1.0]]}


def test_cells_that_would_break_a_table():
    table = pd.DataFrame({"na_me": ["a|b", "50% & more\n"], "x": [1.23456789, np.nan]})
    assert "a\\|b" in as_markdown(table)
    assert "50\\% \\& more" in as_latex(table)
    assert "na\\_me" in as_latex(table)
    assert as_text(table).splitlines()[1].split() == ["a|b", "1.235"]


def test_grid_of_what_is_not_there(result):
    with pytest.raises(UpdateError, match="no such module"):
        result.grid("h.9.q")


def test_info_has_no_figure(rng):
    with pytest.raises(RankscopeError, match="no figure"):
        rs.info(peft_tensors(["h.0.q"], 2, rng)).plot()


def test_a_probability_too_small_for_a_number_is_not_printed_as_none():
    table = pd.DataFrame({"p_full": [0.0, 1e-310], "p_shuffled": [0.0, 0.5]})
    assert [line.split() for line in as_text(table).splitlines()[1:]] == [
        ["<1e-300", "0"],
        ["1e-310", "0.5"],
    ]
