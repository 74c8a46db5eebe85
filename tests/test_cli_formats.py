"""``rankscope formats``: one row per family, and none forgotten."""

import json

import pytest
from click.testing import CliRunner

import rankscope as rs
from rankscope.cli import cli
from rankscope.io.adapters import FAMILIES

FIELDS = ["format", "supported", "oracle", "needs_base"]


def test_every_family_has_its_row():
    assert sorted(rs.formats().table.format) == sorted([*(f.name for f in FAMILIES), "pair"])


def test_json():
    result = CliRunner().invoke(cli, ["formats", "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["schema"] == "rankscope.formats/1"
    assert content["provenance"]["inputs"] == {}
    rows = {row["format"]: row for row in content["rows"]}
    assert all(list(row) == FIELDS for row in rows.values())
    assert all(row["supported"] and row["oracle"] for row in rows.values())
    assert rows["pair"]["needs_base"] == "always"
    assert rows["loralib"]["needs_base"] is None


@pytest.mark.parametrize("suffix", [".md", ".csv", ".tex", ".json"])
def test_tables(suffix, tmp_path):
    path = tmp_path / f"formats{suffix}"
    result = CliRunner().invoke(cli, ["formats", "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert "PEFT's own merge" in result.stdout
    assert "PEFT's own merge" in path.read_text()


def test_a_figure_is_refused(tmp_path):
    result = CliRunner().invoke(cli, ["formats", "-o", str(tmp_path / "formats.svg")])
    assert result.exit_code == 1
    assert "no figure" in result.stderr
